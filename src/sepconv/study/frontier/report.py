"""The page of a frontier, `<data>.md`, and its picture, `<data>.png`, from its record alone."""

from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from sepconv import files
from sepconv.study.frontier.record import Network, Record, Speed
from sepconv.study.frontier.verdicts import EDGE, Comparison, compare, orders
from sepconv.study.plots import SETTINGS, STYLE, WORST, accuracy_by_error, plain_log, short
from sepconv.study.statistics import MARGIN, Estimate, write_p
from sepconv.tables import Column, Table
from sepconv.terminal import epochs, kept
from sepconv.text import code_span, escape_markdown

KINDS = {
    "separable": ("separable", "#0072B2", "o-"),  # its name in words, and how it is drawn, in colours by Okabe and Ito
    "dense": ("dense", "#D55E00", "s-"),
    "deep_separable": ("deeper separable", "#56B4E9", "o--"),
    "deep_dense": ("deeper dense", "#E69F00", "s--"),
}
# what an accuracy is set against: in a sentence, and on an axis
COSTS = {
    "parameters": ("parameters", "parameters"),
    "macs": ("MACs", "MACs an image"),
    "seconds": ("time of training", "seconds of training"),
    "ms_per_image": ("time of evaluation", "milliseconds an image, in evaluation"),
}
# kinds that are compared, and what that answers
QUESTIONS = {
    ("separable", "dense"): "Separable or dense, as deep",
    ("deep_separable", "dense"): "A deeper separable network or a dense one",
    ("deep_separable", "separable"): "A deeper or a shallower separable network",
    ("deep_dense", "dense"): "A deeper or a shallower dense network",
    ("deep_separable", "deep_dense"): "Separable or dense, where both are deeper",
}
WORDS = {
    "better": "{kind} is better",
    "worse": "{other} is better",
    "equal": "the two are equal to within {margin:g} point",
    "not shown": "neither a difference nor equality is shown",
}
INTRODUCTION = """\
What test accuracy networks of separable convolutions and of dense ones reach, at what cost. All have the same blocks
(`model=separable`), at the widths that come nearest to each size; dense ones have `model.conv=dense`, deeper ones
`model.depth=2 model.residual=true`. `python scripts/frontier.py` trains them and writes this page."""
METHOD = """\
Each network is trained {epochs}, at the learning rate, one of {rates}, that gives the best validation accuracy with
seed {tuning_seed}, and then with seeds {seeds}, which are reported. Test accuracy chooses nothing; it is of the epoch
that validates best. Accuracies are means over seeds, with 95 % intervals by a bootstrap crossed over seeds and test
images.

Times are not those of the trainings, which ran beside each other. Once all are trained, the networks take turns with
nothing else running, in training steps and in evaluation, both on batches of the recipe's size, by PyTorch; a time is
by the median over turns. The time of training is that of its steps alone.

At equal cost: each network is set against the other kind's accuracy at just its cost, read off a curve through that
kind's networks (a monotone cubic in the logarithm of the cost); a network that costs over {edge:.0%} more, or less,
than all of the other kind is left out. Differences are paired by seed and by image, with intervals and p-values by
the same bootstrap, one at a time. The comparisons of two kinds at one cost are a family: verdicts are by p-values
that Holm's method corrects for their number. One kind is called better where a difference has p < 0.05, and the two
equal where two one-sided tests exclude one of {margin:g} point or more at p < 0.05."""


def write_page(record: Record, folder: Path) -> None:
    """Writes the page and the picture. Raises InputError where the page cannot be written."""
    name = record.settings.data
    if any(map(record.is_complete, record.networks)):
        with kept(f"the picture of {name}"), style.context([STYLE, SETTINGS]):
            draw(record).savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
    files.write(folder / f"{name}.md", page(record))


def page(record: Record) -> str:
    """The text of the page."""
    settings, done = record.settings, record.planned - len(record.left())
    state = f"All {done} trainings are in." if done == record.planned else (
        f"**{done} of {record.planned} trainings are in.** There is no verdict on kinds of which some lack."
    )  # fmt: skip
    if lost := record.lost():
        state += f" Diverged, so that their networks lack them: {escape_markdown('; '.join(map(str, lost)))}."
    pairs = [pair for pair in QUESTIONS if set(pair) <= set(record.kinds)]
    lines = [f"# The frontier on {escape_markdown(settings.data)}", "", INTRODUCTION, "", state, ""]
    if any(map(record.is_complete, record.networks)):
        lines += [f"![Test accuracy against cost]({settings.data}.png)", ""]
    lines += ["## Which is better at equal cost", ""]
    for kind, other in pairs:
        lines += [f"**{QUESTIONS[kind, other]}**", ""]
        lines += [f"- At equal {COSTS[cost][0]}, {sentence(record, kind, other, cost)}." for cost in COSTS] + [""]
    if (table := network_table(record)).records:
        lines += ["## The networks", "", *table.markdown(), ""]
    for kind, other in pairs:
        for cost in COSTS:
            if comparisons := compare(record, kind, other, cost):
                title = f"## {call(kind).capitalize()} minus {call(other)}, at equal {COSTS[cost][0]}"
                lines += [title, "", *comparison_table(comparisons).markdown(), ""]
    lines += ["## Trained twice as long", "", *order_lines(record), "", "## Learning rates", "", *rate_lines(record)]
    method = METHOD.format(
        epochs=epochs(record.epochs), rates=", ".join(f"{rate:g}" for rate in settings.rates),
        tuning_seed=settings.tuning_seed, seeds=", ".join(map(str, settings.seeds)),
        edge=EDGE - 1, margin=100 * MARGIN,
    )  # fmt: skip
    return "\n".join([*lines, "", "## How", "", method, "", *origin(record)]).rstrip() + "\n"


def call(kind: str) -> str:
    """A kind of network in words."""
    return KINDS[kind][0]


def sentence(record: Record, kind: str, other: str, cost: str) -> str:
    """Where which of two kinds is better, and by how much."""
    comparisons = compare(record, kind, other, cost)
    if comparisons is None:
        complete = record.is_complete(*record.of_kind(kind), *record.of_kind(other))
        return "there is no verdict: " + ("times are not measured" if complete else "trainings lack")
    parts, every = [], [network.size for network in record.of_kind(kind)]
    for verdict, words in WORDS.items():
        found = [each for each in comparisons if each.verdict == verdict]
        if found:
            text = words.format(kind=call(kind), other=call(other), margin=100 * MARGIN)
            parts.append(f"{text} at {listed([each.network.size for each in found], every)} ({amounts(found)})")
    compared = [each.network.size for each in comparisons]
    if beyond := [size for size in every if size not in compared]:
        parts.append(f"at {listed(beyond, every)} no {call(other)} network costs the same")
    return "; ".join(parts)


def listed(sizes: list[int], every: list[int]) -> str:
    """Some sizes of `every`, in order: three or more in a row by the first and the last."""
    runs: list[list[int]] = []
    for size in sizes:
        if runs and every.index(size) == every.index(runs[-1][-1]) + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    texts = [f"{short(run[0])} to {short(run[-1])}" if len(run) > 2 else ", ".join(map(short, run)) for run in runs]
    return f"{', '.join(texts)} parameters"


def amounts(comparisons: list[Comparison]) -> str:
    """The lowest and the highest difference, in points; of one alone its interval."""
    estimates = [each.difference.estimate for each in comparisons]
    if len(estimates) == 1:
        return f"{estimates[0].points()} points"
    means = sorted(100 * estimate.mean for estimate in estimates)
    return f"{means[0]:+.2f} to {means[-1]:+.2f} points"


def network_table(record: Record) -> Table:
    """A row for each network of which a seed is in."""

    def time(name: str) -> Column:
        def cell(network: Network) -> str:
            value = record.cost(network, name)
            return "" if value is None else f"{value:,.4g}"

        return Column(COSTS[name][1], cell)

    columns = [
        Column("network", lambda network: call(network.kind)),
        Column("width", lambda network: f"{network.width:g}"),
        Column("parameters", lambda network: f"{network.parameters:,}"),
        Column("MACs", lambda network: f"{network.macs:,}"),
        Column("epochs", lambda network: str(network.epochs)),
        Column("learning rate", lambda network: f"{record.rate(network):g}"),
        Column("n", lambda network: str(len(record.reported(network)))),
        Column("test accuracy", lambda network: Estimate.crossed(record.right(network)).percent()),
        time("seconds"),
        time("ms_per_image"),
    ]
    return Table("", columns, [network for network in record.networks if record.reported(network)])


def comparison_table(comparisons: list[Comparison]) -> Table:
    """A row for each network of the first kind."""
    columns = [
        Column("at", lambda each: f"{each.cost:,.4g}" if each.cost < 1e4 else short(float(f"{each.cost:.3g}"))),
        Column("parameters", lambda each: f"{each.network.parameters:,}"),
        Column("difference (points)", lambda each: each.difference.estimate.points()),
        Column("p", lambda each: write_p(each.difference.p)),
        Column("p, corrected", lambda each: f"{each.p:.2g}"),
        Column("p of equality, corrected", lambda each: f"{each.equivalence:.2g}"),
        Column("verdict", lambda each: each.verdict, left=True),
    ]
    return Table("", columns, comparisons)


def order_lines(record: Record) -> list[str]:
    """Whether twice as many epochs change which of two kinds is the better one, at the middle size."""
    found = orders(record)
    if found is None:
        return ["These trainings are not all in."]
    unshown = " (which is better is shown at neither length)"
    changed = [
        f"{call(each.kind)} and {call(each.other)}{unshown * (not each.shown)}" for each in found if each.changes
    ]
    size = short(record.longer[0].size)
    columns = [
        Column("kinds", lambda each: f"{call(each.kind)} minus {call(each.other)}"),
        Column(f"{epochs(record.epochs)} (points)", lambda each: each.once.points()),
        Column(f"{epochs(2 * record.epochs)} (points)", lambda each: each.twice.points()),
        Column("order", lambda each: "changes" if each.changes else "stays", left=True),
    ]
    verdict = f"these change places: {'; '.join(changed)}" if changed else "no two kinds change places"
    text = f"At {size} parameters, with twice as many epochs, {verdict}. P-values are of one test each, uncorrected."
    return [text, "", *Table("", columns, found).markdown()]


def rate_lines(record: Record) -> list[str]:
    """What each learning rate gave on the validation images, and how often the chosen one is an extreme of them."""
    rates = record.settings.rates
    if len(rates) == 1:
        return [f"All networks were trained at {rates[0]:g}: there was nothing to choose from."]

    def accuracy(rate: float) -> Column:
        def cell(network: Network) -> str:
            training = record.tuning(network)[rates.index(rate)]
            if training in record.diverged:
                return "diverged"
            value = f"{record.rows[training].val_accuracy:.2%}" if training in record.rows else ""
            return f"{value}, chosen" if rate == record.rate(network) else value

        return Column(f"{rate:g}", cell)

    networks = [network for network in record.networks if not all(map(record.is_missing, record.tuning(network)))]
    chosen = [rate for network in networks if (rate := record.rate(network)) is not None]
    extreme = sum(rate in (min(rates), max(rates)) for rate in chosen)
    columns = [
        Column("network", lambda network: call(network.kind)),
        Column("parameters", lambda network: f"{network.parameters:,}"),
        Column("epochs", lambda network: str(network.epochs)),
        *map(accuracy, rates),
    ]
    text = (
        f"Validation accuracy at each; of equals the first is chosen. The lowest or the highest was chosen {extreme} "
        f"times in {len(chosen)}: there, one beyond it might be better."
    )
    return [text, "", *Table("", columns, networks).markdown()]


def origin(record: Record) -> list[str]:
    """What the trainings were made with."""
    rows = list(record.rows.values())
    if not rows:
        return []
    facts = [
        "; ".join(record.devices),
        *(f"torch {version}" for version in sorted({row.torch for row in rows})),
        *sorted({row.precision for row in rows}),
        *sorted({f"commit {str(row.commit)[:7]}{', with changes' * (row.code is None)}" for row in rows}),
    ]
    timed = [f"Times: {escape_markdown(text)}." for text in dict.fromkeys(map(describe_speed, record.speeds))]
    return [f"{escape_markdown('; '.join(facts))}: [{record.settings.data}.json]({record.settings.data}.json), by",
            f"{code_span(record.settings.command)}", *timed]  # fmt: skip


def describe_speed(speed: Speed) -> str:
    """What a speed was measured with."""
    commit = f"commit {str(speed.commit)[:7]}{', with changes' * bool(speed.dirty)}"
    turns = f"{len(speed.training)} turns"
    return "; ".join([speed.date, speed.device, f"torch {speed.torch}", speed.precision, commit, turns])


def draw(record: Record) -> Figure:
    """Test accuracy with its 95 % interval against each cost, of the networks of which every seed is in."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True).flatten()
    for axes, (cost, (_, label)) in zip(panels, COSTS.items(), strict=True):
        for kind in record.kinds:
            networks = [network for network in record.of_kind(kind) if record.is_complete(network)]
            points = {value: Estimate.crossed(record.right(network)) for network in networks
                      if (value := record.cost(network, cost)) is not None}  # fmt: skip
            name, color, line = KINDS[kind]
            axes.errorbar(
                list(points), [100 * max(WORST, 1 - e.mean) for e in points.values()],
                [[100 * e.arms[side] for e in points.values()] for side in (1, 0)],
                fmt=line, color=color, capsize=3, markersize=5, linewidth=1, label=name,
            )  # fmt: skip
        plain_log(axes)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    accuracy_by_error(panels[0])
    for axes in panels[::2]:
        axes.set_ylabel("test accuracy (%)")
    panels[0].legend(frameon=False)
    done, settings = record.planned - len(record.left()), record.settings
    title = f"{settings.data}, {epochs(record.epochs)}: mean of {len(settings.seeds)} seeds and 95 % interval"
    lacking = "" if done == record.planned else f" ({done} of {record.planned} trainings are in)"
    figure.suptitle(title + lacking)
    return figure
