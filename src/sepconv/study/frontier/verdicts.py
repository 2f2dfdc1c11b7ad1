"""Which kind of network is better at equal cost: the differences, corrected for their number, and what they show."""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from sepconv.study.frontier.record import Network, Record
from sepconv.study.statistics import CONFIDENCE, MARGIN, Difference, holm

TIE = 1e-6  # between equal accuracies of a curve, which has no derivative there; less than one image of all seeds
CHANGE = 1e-9  # of an accuracy, by which it is found how a curve moves
EDGE = 1.05  # times as much, or as little, as another kind costs at most that is still read as its end


@dataclass(frozen=True)
class Comparison:
    """A network, less another kind at equal cost. The p-values are corrected for the number of such comparisons."""

    network: Network
    cost: float
    difference: Difference
    p: float  # of no difference
    equivalence: float  # of a difference of MARGIN or more

    @property
    def verdict(self) -> str:
        """better, worse, equal or not shown."""
        if self.p < 1 - CONFIDENCE:
            return "better" if self.difference.estimate.mean > 0 else "worse"
        return "equal" if self.equivalence < 1 - CONFIDENCE else "not shown"


def compare(record: Record, kind: str, other: str, cost: str) -> list[Comparison] | None:
    """Each network of `kind` less `other` at equal `cost`, those left out that cost more or less than any of `other`.

    These are one family, for Holm's correction. None while a training of either kind lacks, or a cost is not known.
    """
    ours, theirs = record.of_kind(kind), record.of_kind(other)
    networks = ours + theirs
    costs = {network: value for network in networks if (value := record.cost(network, cost)) is not None}
    if not record.is_complete(*networks) or len(costs) < len(networks):
        return None
    right = {network: record.right(network) for network in networks}
    points = {costs[network]: right[network] for network in theirs}
    curve = {cost: float(point.mean()) for cost, point in points.items()}
    found = {}
    for network in ours:
        if (weights := read_curve(curve, costs[network])) is not None:
            reference = sum(weight * points[cost] for cost, weight in weights.items())
            found[network] = Difference.of(right[network] - reference)
    p_values = holm([1.0 if d.p is None else d.p for d in found.values()])
    equivalences = [d.equivalence(MARGIN) for d in found.values()]
    corrected = holm([1.0 if p is None else p for p in equivalences])
    figures = zip(found.items(), p_values, corrected, strict=True)
    return [Comparison(network, costs[network], difference, *both) for (network, difference), *both in figures]


def read_curve(curve: dict[float, float], cost: float) -> dict[float, float] | None:
    """The weights of a curve's points in the accuracy at `cost`; None where that is beyond the ends of the curve.

    Args:
        curve: of each cost, the accuracy.

    Between its points the curve is a cubic in the logarithm of the cost that rises where they rise (Fritsch and
    Carlson, SIAM J. Numer. Anal. 17, 1980). A weight is by how much it rises with a point: the accuracies by their
    weights come to what the curve says and, as long as they change by little, so do those of a seed or an image.
    """
    costs = sorted(curve)
    if not costs[0] / EDGE <= cost <= costs[-1] * EDGE:
        return None
    if len(costs) == 1:
        return {costs[0]: 1.0}
    place = np.log(min(max(cost, costs[0]), costs[-1]))
    accuracies = np.array([curve[each] for each in costs]) + TIE * np.arange(len(costs))
    changes = CHANGE * np.eye(len(costs))
    above, below = (PchipInterpolator(np.log(costs), accuracies + each, axis=1)(place) for each in (changes, -changes))
    weights = ((above - below) / (2 * CHANGE)).round(6)  # without noise: at a point, its own alone
    return dict(zip(costs, (weights / weights.sum()).tolist(), strict=True))


@dataclass(frozen=True)
class Order:
    """Two kinds at the middle size: the difference in accuracy as long as all are trained, and twice as long."""

    kind: str
    other: str
    once: Difference
    twice: Difference

    @property
    def changes(self) -> bool:
        """Whether another kind is the better one, by the means."""
        return self.once.estimate.mean * self.twice.estimate.mean < 0

    @property
    def shown(self) -> bool:
        """Whether there is a difference at all, at either length, by its own p-value."""
        return any(d.p is not None and d.p < 1 - CONFIDENCE for d in (self.once, self.twice))


def orders(record: Record) -> list[Order] | None:
    """Each pair of kinds at the middle size; None while a training of theirs lacks."""
    pairs = {network.kind: (find(record, network), network) for network in record.longer}
    if not record.is_complete(*(network for pair in pairs.values() for network in pair)):
        return None
    right = {kind: [record.right(network) for network in pair] for kind, pair in pairs.items()}
    kinds = list(pairs)
    return [
        Order(kind, other, *map(Difference.crossed, right[kind], right[other]))
        for place, kind in enumerate(kinds) for other in kinds[place + 1 :]
    ]  # fmt: skip


def find(record: Record, longer: Network) -> Network:
    """The network of which `longer` is the one that is trained twice as long."""
    return next(network for network in record.of_kind(longer.kind) if network.size == longer.size)
