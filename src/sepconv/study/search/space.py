"""The networks that a search draws from: tables of `model=staged`, at the widths that a budget admits."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sepconv.networks.blocks import KINDS

if TYPE_CHECKING:
    import optuna

STAGES = 4  # at most; a stage of no blocks is none
BLOCKS = 3  # of a stage, at most
GROWTH = (1.0, 1.5, 2.0)  # of the channels from a stage to the next
KERNELS = (3, 5)
EXPANSIONS = (None, 2, 3, 4, 6)  # None: plain blocks
RESOLUTIONS = (0.75, 1.0)  # of the image's side
ACTIVATIONS = ("relu", "hardswish")
SMALL = 64  # pixels of a side, up to which the first layer has a stride of 1 or 2; from there on of 2 or 4
WIDTHS = [2 ** (step / 4) for step in range(-8, 17)]  # that multiply BASE
BASE = 16  # channels of the first layer at the width 1
FILLS = (0.5, 1.0)  # how much of the budget a network may take up

Cost = Callable[[dict[str, Any]], float]


def draw(
    trial: "optuna.Trial", shape: tuple[int, int, int], share: Cost | None, kinds: Sequence[str] = tuple(KINDS)
) -> dict[str, Any]:
    """The options of `model=staged` that `trial` chooses, for images of `shape` (channels, height, width).

    Ordered choices are numbers to the sampler: it learns from neighbours, too.

    Args:
        share: how much of the budget a network takes up, where that is known without measuring. The network is as wide
            as a part of the budget, that is drawn too, admits: few of any other widths would be within a tight budget,
            or near a loose one. None: the width itself is drawn.
        kinds: of convolutions, that there is a choice of.
    """

    def choose(name: str, choices: tuple[Any, ...]) -> Any:
        return choices[trial.suggest_int(name, 0, len(choices) - 1)]

    model: dict[str, Any] = {
        "name": "staged",
        "stem_stride": choose("stem_stride", (1, 2) if max(shape[1:]) <= SMALL else (2, 4)),
        "conv": trial.suggest_categorical("conv", list(kinds)),
        "residual": choose("residual", (False, True)),
        "activation": choose("activation", ACTIVATIONS),
        "resolution": choose("resolution", RESOLUTIONS),
    }
    depthwise_first = choose("depthwise_first", (False, True))
    stages, growth = [], 1.0
    for stage in range(STAGES):
        blocks = trial.suggest_int(f"blocks{stage}", 0 if stage else 1, BLOCKS)
        growth *= choose(f"growth{stage}", GROWTH)
        row = {"channels": growth, "blocks": blocks, "stride": choose(f"stride{stage}", (1, 2)),
               "kernel_size": choose(f"kernel_size{stage}", KERNELS)}  # fmt: skip
        expansion, squeeze = choose(f"expansion{stage}", EXPANSIONS), choose(f"squeeze{stage}", (False, True))
        if expansion is not None:
            row |= {"expansion": expansion, "squeeze": squeeze, "depthwise_first": depthwise_first}
        if blocks:
            stages.append(row)

    def at(width: float) -> dict[str, Any]:
        rows = [row | {"channels": divisible(width * BASE * row["channels"])} for row in stages]
        return model | {"stem": divisible(width * BASE), "stages": rows}

    if share is None:
        return at(trial.suggest_float("width", WIDTHS[0], WIDTHS[-1], log=True))
    return at(widest(lambda width: share(at(width)), trial.suggest_float("fill", *FILLS, log=True)))


def divisible(channels: float) -> int:
    """Channels to the nearest multiple of 4, from 32 on of 8, 4 at least."""
    step = 4 if channels < 32 else 8
    return max(4, step * round(channels / step))


def widest(share: Callable[[float], float], most: float) -> float:
    """The largest of WIDTHS at which a network takes up at most so much of the budget; if none does, the smallest."""
    low, high = 0, len(WIDTHS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if share(WIDTHS[middle]) <= most else (low, middle)
    return WIDTHS[low]
