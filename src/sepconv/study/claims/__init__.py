"""Fourteen claims about depthwise separable convolution, each put to the test by measurement.

A claim is a function of a Lab, which trains networks (or finds runs already made) on one data set with paired
seeds; what comes of it is a Finding. The findings on each data set are kept as JSON, and `docs/claims.md` is written
from all that are there.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib import style
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sepconv import InputError, networks, terminal
from sepconv.config import Augment, ClaimsConfig, TrainConfig, check_choice, complete, read
from sepconv.costs import closed_forms, counting, receptive_field, roofline
from sepconv.data.datasets import Dataset, load
from sepconv.data.module import count_images
from sepconv.devices import describe_device, find_device
from sepconv.networks import lowrank
from sepconv.networks.blocks import ConvNormActivation, depthwise_separable
from sepconv.networks.separable import TABLE
from sepconv.study.compare import Difference, Estimate, Run, describe, find, paired
from sepconv.study.report import STYLE, p_value, percent, signed
from sepconv.tables import markdown_table
from sepconv.training import runs
from sepconv.training.train import load_classifier, make_classifier, measure_accuracy, train

WIDTHS = [i / 8 for i in range(1, 65)]  # tried to match one network's cost to another's
CHANNELS = (8, 16, 32, 64, 128, 256, 512)  # in and out, of the layers of claim C12
SIDE = 16  # of their maps


@dataclass
class Finding:
    """What was found about one claim on one data set."""

    how: str  # it was tested
    headings: list[str]
    rows: list[list[str]]
    verdict: str
    plot: Figure | None = None


class Lab:
    """Trains on the data of a configuration, a seed at a time, and remembers."""

    def __init__(self, config: ClaimsConfig, dataset: Dataset) -> None:
        self.config, self.dataset = config, dataset
        self.device = find_device(config.trainer)
        self.counted: dict[str, closed_forms.Cost] = {}  # by network
        self.done: dict[str, Run] = {}
        self.used: list[Run] = []
        if Path(config.runs).expanduser().is_dir():
            finished, _ = find([config.runs])
            self.done = {self.identity(run.config): run for run in finished}

    @staticmethod
    def identity(config: TrainConfig) -> str:
        """What a run's figures depend on."""
        kept = asdict(read(TrainConfig, asdict(config)))  # as it is once read back: 0.0 where 0 was given
        kept["model"] = complete(kept["model"])
        kept["data"] = {key: value for key, value in kept["data"].items() if key not in ("root", "download")}
        return json.dumps({key: kept[key] for key in ("data", "model", "recipe", "trainer", "seed")}, sort_keys=True)

    def train(self, model: dict[str, Any], seed: int, size: int | None = None, plain: bool = False) -> Run:
        """A run of `model`; on `size` training images over as many steps; `plain` with nothing against overfitting."""
        recipe, data = self.config.recipe, self.config.data
        if size is not None:
            steps = math.ceil(count_images(self.dataset, recipe) / recipe.batch_size)  # of an epoch
            data, batch_size = replace(data, train=size), min(recipe.batch_size, size)
            recipe = replace(recipe, batch_size=batch_size, epoch_images=steps * batch_size)
        if plain:
            recipe = replace(recipe, augment=Augment(), label_smoothing=0.0, optimizer=undecayed(recipe.optimizer))
        wanted = TrainConfig(data=data, model=model, recipe=recipe, trainer=self.config.trainer, seed=seed,
                             runs=self.config.runs)  # fmt: skip
        key = self.identity(wanted)
        if key not in self.done:
            with terminal.hushed():
                path, result = train(wanted, [], time.time())
            self.done[key] = Run(path, wanted, result)
            options = " ".join(f"{k}={v}" for k, v in model.items() if k != "name")
            where = "" if size is None else f" on {size} images"
            terminal.CONSOLE.print(
                f"  {model['name']} {options} seed={seed}{where}: {result['test_accuracy']:.2%}", soft_wrap=True
            )
        self.used.append(self.done[key])
        return self.done[key]

    def accuracies(self, model: dict[str, Any]) -> list[float]:
        """Test accuracy of `model` for each seed."""
        return [self.train(model, seed).result["test_accuracy"] for seed in self.config.seeds]

    def build(self, model: dict[str, Any]) -> nn.Module:
        """A network with new weights for these images."""
        return networks.build(shape=self.dataset.shape, classes=len(self.dataset.classes), **model)

    def costs(self, model: dict[str, Any]) -> closed_forms.Cost:
        """Parameters and MACs of a network."""
        key = repr(model)
        if key not in self.counted:
            with torch.device("meta"):
                net = self.build(model)
            self.counted[key] = closed_forms.Cost(counting.parameters(net), counting.macs(net, self.dataset.shape))
        return self.counted[key]

    def match(self, model: dict[str, Any], wanted: closed_forms.Cost, by: str) -> dict[str, Any]:
        """`model` at the width whose `by` (parameters, macs) is nearest to `wanted`'s."""

        def distance(width: float) -> float:
            return abs(math.log(getattr(self.costs(model | {"width": width}), by) / getattr(wanted, by)))

        return model | {"width": min(WIDTHS, key=distance)}


def undecayed(options: dict[str, Any]) -> dict[str, Any]:
    """`options` of an optimizer, and of `others` and `biases` in it, without weight decay."""
    inner = {key: undecayed(value) for key, value in options.items() if isinstance(value, dict)}
    return options | {"weight_decay": 0.0} | inner


def separable(**options: Any) -> dict[str, Any]:
    """The network that most claims are tested on, with options."""
    return {"name": "separable", "width": 1.0, "resolution": 1.0, "depth": 1, "residual": False, "stem": "standard",
            "conv": "separable"} | options  # fmt: skip


def mean(values: Sequence[float]) -> str:
    """A mean of shares with its interval, in percent."""
    return percent(Estimate.of(list(values)))


def points(difference: Difference) -> str:
    """A paired difference in percentage points, with its interval and p-value."""
    return f"{signed(difference.estimate)}, p {p_value(difference)}"


def judge(cases: dict[str, Difference]) -> str:
    """The verdict where the claim says that each difference is above 0: by their 95 % intervals."""
    above = [case for case, d in cases.items() if (d.estimate.low or 0) > 0]
    below = [case for case, d in cases.items() if (d.estimate.high or 0) < 0]
    neither = [case for case in cases if case not in above + below]
    if len(above) == len(cases):
        return "true"
    parts = []
    if above:
        parts.append(f"true when {', when '.join(above)}")
    if below:
        parts.append(f"{'false' if not above else 'the opposite'} when {', when '.join(below)}")
    if neither:
        parts.append(f"not shown when {', when '.join(neither)}: the interval holds 0")
    return "; ".join(parts)


def c1(lab: Lab) -> Finding:
    return against_torch("standard", lambda ins, outs, k, sides: closed_forms.standard(ins, outs, k, sides))


def c2(lab: Lab) -> Finding:
    return against_torch("depthwise", lambda ins, outs, k, sides: closed_forms.depthwise(ins, k, sides))


def c3(lab: Lab) -> Finding:
    finding = against_torch("pointwise", lambda ins, outs, k, sides: closed_forms.pointwise(ins, outs, sides))
    conv, images = nn.Conv2d(5, 7, 1).double(), torch.randn(2, 5, 6, 6, dtype=torch.double)
    dense = F.linear(images.permute(0, 2, 3, 1), conv.weight[:, :, 0, 0], conv.bias).permute(0, 3, 1, 2)
    difference = float((conv(images) - dense).detach().abs().max())
    finding.rows.append(["against a dense layer at every position", "", "", f"largest difference {difference:.0e}"])
    if difference > 1e-12:
        finding.verdict = "false"
    return finding


def against_torch(kind: str, form: Callable[[int, int, int, tuple[int, int]], closed_forms.Cost]) -> Finding:
    """A closed form against the parameters of torch's layer, and the MACs that torch's own counter gives it."""
    rows, right = [], True
    for ins, outs, size, side in ((1, 32, 3, 28), (3, 16, 5, 32), (64, 128, 3, 14), (256, 256, 3, 7)):
        size = 1 if kind == "pointwise" else size
        layer = nn.Conv2d(ins, ins if kind == "depthwise" else outs, size, bias=False,
                          groups=ins if kind == "depthwise" else 1)  # fmt: skip
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            layer(torch.zeros(1, ins, side, side))
        expected = form(ins, outs, size, (side, side))
        counted = closed_forms.Cost(counting.parameters(layer), counter.get_total_flops() // 2)
        right &= expected == counted
        rows.append([
            f"{size} x {size}, {ins} to {layer.out_channels}, {side} x {side}",
            f"{expected.parameters:,}", f"{expected.macs:,}", f"{counted.parameters:,}, {counted.macs:,}",
        ])  # fmt: skip
    return Finding(
        "The closed form against torch's layers: their number of weights, and torch's own count of operations.",
        ["layer", "parameters", "MACs", "counted"], rows, "true" if right else "false",
    )  # fmt: skip


def c4(lab: Lab) -> Finding:
    rows, right, factors = [], True, []
    for size, outs in ((3, 64), (3, 256), (3, 1024), (5, 256)):
        dense, both = closed_forms.standard(64, outs, size, (32, 32), padding=size // 2), closed_forms.separable(
            64, outs, size, (32, 32), padding=size // 2)  # fmt: skip
        ratio = closed_forms.separable_ratio(outs, size)
        right &= both.macs == ratio * dense.macs
        if size == 3:
            factors.append(float(1 / ratio))
        rows.append([str(size), str(outs), f"{dense.macs:,}", f"{both.macs:,}", f"{float(ratio):.4f}",
                     f"{float(1 / ratio):.2f}"])  # fmt: skip
    right &= 8 < factors[1] < 9
    return Finding(
        "Exact fractions: the two steps' MACs over the standard layer's, for 64 channels in, 32 x 32 out.",
        ["K", "C_out", "standard MACs", "separable MACs", "ratio", "times fewer"], rows, "true" if right else "false",
    )  # fmt: skip


def c5(lab: Lab) -> Finding:
    rows, shares = [], []
    for outs in (4, 16, 64, 256, 1024, 65536):
        factor = float(1 / closed_forms.separable_ratio(outs, 3))
        shares.append(factor / 9)
        rows.append([f"{outs:,}", f"{factor:.2f}", f"{factor / 9:.1%}"])
    right = all(a < b for a, b in pairwise(shares)) and shares[-1] > 0.999
    return Finding(
        "The exact factor 1 / (1/C_out + 1/K²) for K = 3, beside K² = 9.", ["C_out", "times fewer", "of K²"], rows,
        f"true when C_out is large ({shares[-2]:.1%} of it at 1,024); at 16 it is {shares[1]:.0%} of K²" if right
        else "false",
    )  # fmt: skip


def c6(lab: Lab) -> Finding:
    expected = {
        "standard": (closed_forms.standard(3, 4, 3, (5, 5)), (108, 972)),
        "depthwise": (closed_forms.depthwise(3, 3, (5, 5)), (27, 243)),
        "pointwise": (closed_forms.pointwise(3, 4, (3, 3)), (12, 108)),
        "separable": (closed_forms.separable(3, 4, 3, (5, 5)), (39, 351)),
        "standard, padding 1": (closed_forms.standard(3, 4, 3, (5, 5), padding=1), (108, 2700)),
        "separable, padding 1": (closed_forms.separable(3, 4, 3, (5, 5), padding=1), (39, 975)),
    }
    rows = [[name, f"{found.parameters}", f"{found.macs:,}", f"{hand[0]}, {hand[1]:,}"]
            for name, (found, hand) in expected.items()]  # fmt: skip
    right = all((found.parameters, found.macs) == hand for found, hand in expected.values())
    return Finding("The cost library against a count by hand: 5 x 5 x 3 in, 3 x 3 kernel, 4 maps out.",
                   ["layer", "parameters", "MACs", "by hand"], rows, "true" if right else "false")  # fmt: skip


def c7(lab: Lab) -> Finding:
    dense = separable(conv="dense", width=0.5)
    wanted = lab.costs(dense)
    base = lab.accuracies(dense)
    rows = [["dense, as deep as the table", f"{dense['width']:g}", f"{wanted.parameters:,}", f"{wanted.macs:,}",
             mean(base), "-"]]  # fmt: skip
    arms: dict[str, tuple[dict[str, Any], list[str]]] = {}  # a network that is matched in both is one arm
    for by in ("parameters", "macs"):
        for depth, residual in ((1, False), (3, False), (3, True)):
            model = lab.match(separable(depth=depth, residual=residual), wanted, by)
            arms.setdefault(repr(model), (model, []))[1].append("MACs" if by == "macs" else by)
    cases, shown = {}, {rows[0][0]: base}
    for model, matched in arms.values():
        costs, accuracies = lab.costs(model), lab.accuracies(model)
        difference = paired(accuracies, base)
        as_many = f"as many {' and '.join(matched)}"
        deep = "as deep" if model["depth"] == 1 else f"{model['depth']} times as deep"
        deep += ", with residuals" if model["residual"] else ""
        rows.append([f"separable, {as_many}, {deep}", f"{model['width']:g}", f"{costs.parameters:,}", f"{costs.macs:,}",
                     mean(accuracies), points(difference)])  # fmt: skip
        if model["depth"] > 1:
            cases[f"it has {as_many} and is {deep}"] = difference
        shown[rows[-1][0]] = accuracies
    return Finding(
        "The same table of blocks, dense at half width, and separable at the width that comes nearest in parameters "
        "or in MACs: as deep, three times as deep, and that with residuals; seeds paired. The verdict is of the "
        "deeper ones.",
        ["network", "width", "parameters", "MACs", "test accuracy", "less dense (points)"], rows, judge(cases),
        strip(shown),
    )  # fmt: skip


def strip(shown: dict[str, list[float]]) -> Figure:
    """Each network's accuracies, a dot a seed, with mean and 95 % interval."""
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, accuracies in enumerate(shown.values()):
        estimate = Estimate.of(accuracies)
        half = 100 * ((estimate.high or estimate.mean) - estimate.mean)
        axes.plot([100 * value for value in accuracies], [place] * len(accuracies), "o", color="0.7", markersize=5)
        axes.errorbar(100 * estimate.mean, place, xerr=half, fmt="D", color="C0", capsize=4)
    axes.set_yticks(range(len(shown)), list(shown))
    axes.invert_yaxis()
    axes.set(xlabel=f"test accuracy (%): {len(accuracies)} seeds, their mean and its 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    return figure


def c8(lab: Lab) -> Finding:
    batch, dtype = (128, "bf16") if lab.device.type == "cuda" else (8, "fp32")
    rows, gains = [], {}
    for row in roofline.sweep(lab.device, dtype, batch):
        assert row.standard_seconds is not None
        assert row.separable_seconds is not None
        gains[row.in_channels] = row.standard_seconds / row.separable_seconds
        rows.append([str(row.in_channels), f"{row.standard.macs / row.separable.macs:.2f}",
                     f"{(row.standard.macs - row.separable.macs) / 1e6:,.1f}", f"{1e3 * row.standard_seconds:.2f}",
                     f"{1e3 * row.separable_seconds:.2f}", f"{gains[row.in_channels]:.2f}"])  # fmt: skip
    few, many = statistics.median(gains[c] for c in (1, 3)), statistics.median(gains[c] for c in (64, 128, 256, 512))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(gains), list(gains.values()), "o-", label="times faster")
    axes.axhline(float(rows[-1][1]), color="C1", linestyle="--", label="times fewer MACs")
    axes.axhline(1, color="0.5", linewidth=1)
    axes.set(
        xscale="log",
        xlabel="input channels",
        ylabel="standard over separable",
        title=f"3 x 3 to {roofline.OUT_CHANNELS} channels, {describe(describe_device(lab.device))}, {dtype}",
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return Finding(
        f"One 3 x 3 layer of {roofline.SIDE} x {roofline.SIDE} positions to {roofline.OUT_CHANNELS} channels, "
        f"standard and separable, forward, {dtype}, batch {batch}, empty caches, medians of {roofline.REPEATS}.",
        ["C_in", "times fewer MACs", "million MACs saved", "standard ms", "separable ms", "times faster"], rows,
        ("true" if few < 0.5 * many else "false") + f" of time: {few:.2f} times as fast at 1 and 3 channels, "
        f"{many:.2f} from 64 on; false of the ratio of MACs, which C_in does not change",
        figure,
    )  # fmt: skip


def c9(lab: Lab) -> Finding:
    cases, rows, norms = {}, [], {}
    for depth in (2, 6):
        with_, without = (separable(depth=depth, residual=residual) for residual in (True, False))
        a, b = lab.accuracies(with_), lab.accuracies(without)
        difference = paired(a, b)
        layers = 1 + 2 * len(TABLE) * depth
        cases[f"there are {layers} convolutions"] = difference
        flows = {}
        for name, model in (("with", with_), ("without", without)):
            flows[name] = norms[f"{name}, {layers} convolutions"] = gradient_norms(lab, model)
        ratio = {name: flow[0] / flow[-1] for name, flow in flows.items()}
        rows.append([str(layers), mean(a), mean(b), points(difference), f"{ratio['with']:.2g}",
                     f"{ratio['without']:.2g}"])  # fmt: skip
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, flow), marker in zip(norms.items(), "o^s*", strict=True):
        axes.plot([i / (len(flow) - 1) for i in range(len(flow))], flow, marker=marker, markersize=4, label=name)
    axes.set(
        yscale="log",
        xlabel="depth, from the stem (0) to the last convolution (1)",
        ylabel="gradient norm of a layer's weights, relative to theirs",
        title="first step, median of seeds",
    )
    axes.legend(title="residuals", frameon=False)
    axes.grid(alpha=0.3)
    return Finding(
        "The separable network with each block of the table repeated, with and without the identity added around "
        "blocks that keep their shape; seeds paired. Gradient flow: the norm of the weights' gradient relative to "
        "the weights' own in the first step, at the stem over that at the last convolution (batch norm in all).",
        ["convolutions", "with", "without", "difference (points)", "gradient first/last, with", "without"], rows,
        judge(cases), figure,
    )  # fmt: skip


def gradient_norms(lab: Lab, model: dict[str, Any]) -> list[float]:
    """Of each convolution, in order: gradient norm over weight norm on a first batch, the median over seeds."""
    found = []
    for seed in lab.config.seeds:
        torch.manual_seed(seed)
        classifier = make_classifier(model, lab.config.recipe, lab.dataset)
        classifier.whiten(lab.dataset)
        rows = lab.dataset.train[torch.randperm(len(lab.dataset.train))[: lab.config.recipe.batch_size]]
        images, labels = lab.dataset[rows]
        F.cross_entropy(classifier(images), labels).backward()
        weights = [m.weight for m in classifier.net.modules() if isinstance(m, nn.Conv2d)]
        found.append([float(w.grad.norm() / w.detach().norm()) for w in weights if w.grad is not None])
    return [statistics.median(values) for values in zip(*found, strict=True)]


def c10(lab: Lab) -> Finding:
    rows, cases = [], {}
    sizes = [*(size for size in lab.config.train_sizes if size < len(lab.dataset.train)), None]
    gaps: dict[str, list[list[float]]] = {"dense": [], "separable": []}
    bytes_: dict[str, int] = {}
    costs = {conv: lab.costs(separable(conv=conv)) for conv in gaps}
    for size in sizes:
        accuracy = {}
        for conv in gaps:
            trained = [lab.train(separable(conv=conv), seed, size=size, plain=True) for seed in lab.config.seeds]
            bytes_[conv] = weight_bytes(trained[0])
            accuracy[conv] = [run.result["test_accuracy"] for run in trained]
            fits = [train_accuracy(lab, run) for run in trained]
            gaps[conv].append([fit - reached for fit, reached in zip(fits, accuracy[conv], strict=True)])
        count = size or len(lab.dataset.train)
        difference = paired(gaps["dense"][-1], gaps["separable"][-1])
        cases[f"there are {count:,} training images"] = difference
        rows.append([f"{count:,}", mean(accuracy["dense"]), mean(accuracy["separable"]), mean(gaps["dense"][-1]),
                     mean(gaps["separable"][-1]), points(difference)])  # fmt: skip
    rows.append(["parameters", *(f"{costs[conv].parameters:,}" for conv in gaps), "", "", ""])
    rows.append(["bytes of the weights", *(f"{bytes_[conv]:,}" for conv in gaps), "", "", ""])
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    counts = [size or len(lab.dataset.train) for size in sizes]
    for (conv, found), marker in zip(gaps.items(), "Do", strict=True):
        estimates = [Estimate.of(values) for values in found]
        half = [100 * ((e.high or e.mean) - e.mean) for e in estimates]
        label = f"{conv}, {costs[conv].parameters:,} parameters"
        axes.errorbar(counts, [100 * e.mean for e in estimates], half, marker=marker, capsize=3, label=label)
    axes.set(xscale="log", xlabel="training images", ylabel=f"train less test accuracy (points), n = {len(found[0])}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    less = bytes_["separable"] < bytes_["dense"]
    storage = f"storage: {'true' if less else 'false'}, {bytes_['dense'] / bytes_['separable']:.1f} times fewer bytes"
    return Finding(
        "The same table of blocks at the same widths, separable and dense, trained on parts of the training set over "
        "as many steps, with no augmentation, label smoothing or weight decay; gap: accuracy on the training images "
        "less that on the test images, of the checkpoint that validation chose; seeds paired.",
        ["training images", "test accuracy, dense", "separable", "gap, dense", "separable",
         "dense less separable (points)"],
        rows, f"less overfitting: {judge(cases)}; {storage}", figure,
    )  # fmt: skip


def train_accuracy(lab: Lab, run: Run) -> float:
    """Accuracy of a run's best checkpoint on the images that it was trained on, as they are."""
    dataset = load(run.config.data)
    path = runs.read_checkpoint(run.path, "best", run.config)
    classifier = load_classifier(path)
    return measure_accuracy(classifier, replace(dataset, test=dataset.train), lab.config.trainer)


def weight_bytes(run: Run) -> int:
    """Bytes of the weights that a run's checkpoint holds."""
    path = runs.read_checkpoint(run.path, "best", run.config)
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def c11(lab: Lab) -> Finding:
    torch.manual_seed(lab.config.seeds[0])
    net = lab.build(separable(depth=2)).eval()
    layers = counting.layers(net, lab.dataset.shape)
    maps = receptive_field.effective(net, layers)
    shown = [layer for layer in receptive_field.spatial(layers) if layer.name in maps]
    theory = [min(layer.receptive_field(lab.dataset.shape)) for layer in shown]
    effective = [receptive_field.effective_side(maps[layer.name], layer) for layer in shown]
    rows = [[layer.name, layer.kind, f"{t:g}", f"{e}"] for layer, t, e in zip(shown, theory, effective, strict=True)]
    grows = all(a < b for a, b in pairwise(theory))
    dense = lab.build(separable(depth=2, conv="dense"))
    same = [min(layer.receptive_field(lab.dataset.shape))
            for layer in receptive_field.spatial(counting.layers(dense, lab.dataset.shape))]  # fmt: skip
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(theory) + 1), theory, "o-", label="theoretical")
    axes.plot(
        range(1, len(theory) + 1), effective, "s--", label=f"effective, {receptive_field.MASS:.0%} of the gradient"
    )
    axes.axhline(lab.dataset.shape[1], color="0.5", linewidth=1, label="the image")
    axes.set(xlabel="3 x 3 layers", ylabel="side of the receptive field (pixels)")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    verdict = "true" if grows and effective[-1] > effective[0] else "false"
    if same == theory:
        verdict += "; as much as dense layers of the same kernels do: pointwise steps add nothing"
    return Finding(
        "The separable network, each block twice, with initial weights: the theoretical receptive field from kernels "
        "and strides, the effective one from the gradient of the central output.",
        ["layer", "kind", "theoretical side", "effective side"], rows, verdict, figure,
    )  # fmt: skip


def c12(lab: Lab) -> Finding:
    """Training time and bytes of a layer, dense and separable, by channels."""
    batch, dtype = (128, "bf16") if lab.device.type == "cuda" else (32, "fp32")
    machine = roofline.measure_machine(lab.device)
    rows, gains, macs = [], {}, {}
    for channels in CHANNELS:
        nets = {
            "dense": ConvNormActivation(channels, channels, norm_layer=None, activation_layer=None),
            "separable": depthwise_separable(channels, channels, norm_layer=None, activation_layer=None, between=False),
        }
        seconds, bytes_, flops = {}, {}, {}
        for name, net in nets.items():
            total = counting.total(counting.layers(net, (channels, SIDE, SIDE), batch))
            seconds[name] = roofline.seconds(training_pass(net, channels, batch, dtype, lab.device), lab.device)
            flops[name] = 2 * (total.macs + total.macs_backward)
            # forward: the maps read and written; backward: those again and their gradients
            bytes_[name] = 3 * total.bytes(dtype)
        gains[channels], macs[channels] = seconds["dense"] / seconds["separable"], flops["dense"] / flops["separable"]
        rows.append([
            str(channels), *(f"{1e3 * seconds[name]:.2f}" for name in nets), f"{gains[channels]:.2f}",
            f"{macs[channels]:.2f}", f"{bytes_['separable'] / bytes_['dense']:.2f}",
            *(f"{flops[name] / seconds[name] / machine.flops[dtype]:.0%}" for name in nets),
            *(f"{bytes_[name] / seconds[name] / machine.bandwidth:.0%}" for name in nets),
        ])  # fmt: skip
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(CHANNELS, list(gains.values()), "o-", label="times faster")
    axes.plot(CHANNELS, list(macs.values()), "s--", label="times fewer MACs")
    axes.axhline(1, color="0.5", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="channels in and out", ylabel="dense over separable",
             title=f"{machine.device['name']}, {dtype}, batch {batch}")  # fmt: skip
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    loses = [c for c in CHANNELS if gains[c] < 1]
    faster = [c for c in CHANNELS if c > max(loses, default=0)]  # from where on it never loses
    here = f"it is faster from {min(faster)} channels on" if faster else f"it is slower at {max(loses)} channels"
    here = f"{here}{', slower below' if loses and faster else ''}, by less than its MACs are fewer" + (
        "" if all(gains[c] < macs[c] for c in CHANNELS) else " at most widths"
    )
    verdict = "not yet measured on this hardware (no GPU); on this CPU: " if lab.device.type != "cuda" else (
        f"true when there are {max(loses)} channels or fewer: " if loses else "false: ")  # fmt: skip
    return Finding(
        f"One 3 x 3 layer of {SIDE} x {SIDE} positions, dense and separable with nothing between its steps, forward "
        f"and backward, {dtype}, batch {batch}, stock kernels, medians of {roofline.REPEATS}; shares of the "
        f"machine's measured peaks ({machine.flops[dtype] / 1e9:,.0f} GFLOP/s, {machine.bandwidth / 1e9:,.1f} GB/s); "
        "bytes are those of maps and weights read and written once a pass, by count.",
        ["channels", "dense ms", "separable ms", "times faster", "times fewer MACs", "bytes, separable over dense",
         "of peak, dense", "separable", "of bandwidth, dense", "separable"], rows, verdict + here, figure,
    )  # fmt: skip


def training_pass(net: nn.Module, channels: int, batch: int, dtype: str, device: torch.device) -> Callable[[], Any]:
    """A call of a layer's forward and backward pass."""
    layout, kind = torch.channels_last, roofline.DTYPES[dtype]
    net = net.to(device, kind).to(memory_format=layout)
    images = torch.randn(batch, channels, SIDE, SIDE, device=device, dtype=kind).to(memory_format=layout)
    images.requires_grad_()
    gradient = torch.randn_like(images)

    def call() -> None:
        with torch.enable_grad():
            torch.autograd.grad(net(images), [images, *net.parameters()], gradient)

    return call


def c13(lab: Lab) -> Finding:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 6, 5, bias=False).double()
    with torch.no_grad():  # kernels of rank 1: outer products
        one, other = (torch.randn(6, 4, 5, generator=generator, dtype=torch.double) for _ in range(2))
        conv.weight.copy_(one[..., :, None] * other[..., None, :])
    images = torch.randn(2, 4, 12, 12, generator=generator, dtype=torch.double)
    exact = lowrank.Decomposition(conv, "spatial").factors(1)
    difference = float((exact(images) - conv(images)).detach().abs().max() / conv(images).detach().abs().max())
    rows = [["random kernels of rank 1, as K x 1 and 1 x K", "-", f"{difference:.0e} of the output", "-", "-"]]
    dense = separable(conv="dense")
    whole = lab.accuracies(dense)
    errors: dict[int, list[float]] = {rank: [] for rank in (3, 2, 1)}
    reached: dict[int, list[float]] = {rank: [] for rank in errors}
    for seed in lab.config.seeds:
        run = lab.train(dense, seed)
        classifier = load_classifier(runs.read_checkpoint(run.path, "best", run.config))
        found = lowrank.find_separable(classifier.net, "spatial").values()
        decompositions = [lowrank.Decomposition(layer, "spatial") for layer in found]
        for rank in errors:
            with torch.no_grad():
                for layer in decompositions:  # as one kernel: what its many small steps compute, and much faster
                    layer.conv.weight.copy_(layer.weight(min(rank, layer.full)))
            lost = sum(layer.error(min(rank, layer.full)) for layer in decompositions)
            errors[rank].append((lost / sum(layer.error(0) for layer in decompositions)) ** 0.5)
            reached[rank].append(measure_accuracy(classifier, lab.dataset, lab.config.trainer))
    for rank in errors:
        error = f"{statistics.fmean(errors[rank]):.1%}"
        rows.append([f"trained dense network, rank {rank}, not trained further", error, mean(reached[rank]),
                     points(paired(reached[rank], whole)), "-"])  # fmt: skip
    spatial = separable(conv="spatial")
    scratch = lab.accuracies(spatial)
    from_scratch = paired(scratch, whole)
    saved = lab.costs(spatial).macs / lab.costs(dense).macs
    rows.append(["spatially separable, trained from scratch", "-", mean(scratch), points(from_scratch),
                 f"{saved:.1%} of the dense MACs"])  # fmt: skip
    rows.insert(1, ["trained dense network", "-", mean(whole), "-", "100 %"])
    verdict = "true of kernels of rank 1" if difference < 1e-12 else "false"
    verdict += f"; trained kernels are not of rank 1 (they change by {rows[4][1]} of their norm)"
    return Finding(
        "Random kernels of rank 1 against their two steps, in float64; the 3 x 3 kernels of trained dense networks "
        "approximated at each rank by singular value decomposition; and a network of K x 1 and 1 x K layers trained "
        "from scratch. Seeds paired.",
        ["network", "weight error", "test accuracy", "less dense (points)", "MACs"], rows, verdict,
    )  # fmt: skip


def c14(lab: Lab) -> Finding:
    rows, found = [], {}
    for stem in ("standard", "separable"):
        model = separable(stem=stem)
        costs, found[stem] = lab.costs(model), lab.accuracies(model)
        rows.append([stem, f"{costs.parameters:,}", f"{costs.macs:,}", mean(found[stem]), "-"])
    difference = paired(found["standard"], found["separable"])
    rows[0][-1] = points(difference)
    return Finding(
        "The separable network with a standard first layer and with a separable one; seeds paired.",
        ["first layer", "parameters", "MACs", "test accuracy", "standard less separable (points)"], rows,
        judge({"the first layer is standard rather than separable": difference}),
    )  # fmt: skip


# each claim in a sentence, and its test
CLAIMS: dict[str, tuple[str, Callable[[Lab], Finding]]] = {
    "C1": ("A standard convolution has K²·C_in·C_out weights, and does as many MACs at each output position.", c1),
    "C2": ("A depthwise convolution, a filter a channel, has K²·C_in weights and does as many MACs a position.", c2),
    "C3": ("A pointwise convolution is one dense layer at every position: C_in·C_out weights and MACs a position.", c3),
    "C4": ("Depthwise and pointwise together cost 1/C_out + 1/K² of the standard layer: 8 to 9 times less for K = 3 "
           "and C_out = 256.", c4),
    "C5": ("The parameters shrink by a factor of K².", c5),
    "C6": ("In the worked example, 5 x 5 x 3 to 4 maps, a separable layer has 39 weights for 108, 351 MACs for 972.",
           c6),
    "C7": ("For the same parameters, or the same MACs, a separable network can be deeper than a dense one, and "
           "better for it.", c7),
    "C8": ("With few input channels a separable layer has little advantage.", c8),
    "C9": ("Residual connections help separable networks train.", c9),
    "C10": ("A separable network, having fewer parameters, overfits less and takes less storage.", c10),
    "C11": ("Stacked separable convolutions enlarge the receptive field.", c11),
    "C12": ("Separable convolution does not suit a GPU: two steps in series, and an intermediate map to move.", c12),
    "C13": ("A kernel of rank 1 is a column times a row, so that one K x K convolution equals a K x 1 and a 1 x K "
            "one; others are approximated by singular value decomposition.", c13),
    "C14": ("Separable layers combine well with a standard first layer.", c14),
}  # fmt: skip


def verify(config: ClaimsConfig, overrides: list[str]) -> None:
    """Tests the claims that `config` asks for, prints each verdict, and writes the findings and `claims.md`.

    Raises InputError for an unknown claim, data that are not there, or a folder that cannot be written.
    """
    asked = config.only or list(CLAIMS)
    for name in asked:
        check_choice("only", name, *CLAIMS)
    dataset = load(config.data)
    lab = Lab(config, dataset)
    folder = Path(config.output).expanduser()
    data = config.data.name
    try:
        (folder / "claims").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder} ({error.strerror}): choose another output=") from error
    path = folder / "claims" / f"{data}.json"
    findings: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in asked:
        sentence, test = CLAIMS[name]
        terminal.CONSOLE.print(f"[bold]{name}[/] {sentence}", soft_wrap=True)
        started, lab.used = time.time(), []
        with style.context(STYLE):
            finding = test(lab)
            if finding.plot is not None:
                finding.plot.savefig(folder / "claims" / f"{data}-{name}.png", dpi=110)
        findings[name] = {
            key: value for key, value in asdict(replace(finding, plot=None)).items() if key != "plot"
        } | {
            "plot": finding.plot is not None,
            "scale": config.scale,
            "seeds": len(config.seeds) if lab.used else None,
            "epochs": config.recipe.epochs if lab.used else None,
            "commits": sorted({str(run.result["git"]["sha"]) for run in lab.used}),
            "seconds": round(time.time() - started, 1),
            "date": time.strftime("%Y-%m-%d"),
            "device": describe(describe_device(lab.device)),
            "torch": str(torch.__version__),
            "command": runs.command_line("claims", overrides),
        }  # fmt: skip
        path.write_text(json.dumps(findings, indent=1, ensure_ascii=False) + "\n")  # at once: some take long
        terminal.CONSOLE.print(f"  {finding.verdict} ({findings[name]['seconds']:.0f} s)", soft_wrap=True)
    (folder / "claims.md").write_text(write_report(folder))
    terminal.CONSOLE.print(f"report in {folder.resolve()}/claims.md", soft_wrap=True)


def write_report(folder: Path) -> str:
    """`claims.md` from the findings in `folder`/claims, which may be of several data sets."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "claims").glob("*.json"))}
    lines = [
        "# The claims, tested", "",
        "What is said of depthwise separable convolution, put to the test by `python scripts/claims.py`, which wrote "
        "this page. Intervals are 95 % by Student's t over paired seeds; p-values are of paired t-tests, one at a "
        "time. A claim is called true only where its interval leaves out 0, and *not shown* where it does not. A "
        "verdict holds for trainings of the length given with it.", "",
    ]  # fmt: skip
    rows = []
    for name, (sentence, _) in CLAIMS.items():
        verdicts = [f"{data}{trained(findings[name])}: {findings[name]['verdict']}"
                    for data, findings in found.items() if name in findings]  # fmt: skip
        rows.append([f"[{name}](#{name.lower()})", sentence, "<br>".join(unique(verdicts)) or "not yet measured"])
    lines += [*markdown_table(["", "claim", "verdict"], rows), ""]
    for name, (sentence, _) in CLAIMS.items():
        lines += [f"## {name}", "", sentence, ""]
        for data, findings in found.items():
            if name not in findings:
                continue
            finding = findings[name]
            lines += [
                f"**{data}**: {finding['verdict']}.", "",
                f"{finding['how']} {finding['device']}, torch {finding['torch']}, {finding['date']}{trained(finding)}; "
                f"`{finding['command']}`", "",
            ]  # fmt: skip
            lines += [*markdown_table(finding["headings"], finding["rows"]), ""]
            if finding["plot"]:
                lines += [f"![{name} on {data}](claims/{data}-{name}.png)", ""]
    return "\n".join(lines).rstrip() + "\n"


def trained(finding: dict[str, Any]) -> str:
    """How many trainings of what length a finding rests on; nothing where it rests on none."""
    if finding["seeds"] is None:
        return ""
    return f", n = {finding['seeds']} seeds, {terminal.epochs(finding['epochs'])}"


def unique(verdicts: list[str]) -> list[str]:
    """Verdicts, one for all data sets where they agree."""
    texts = {verdict.partition(": ")[2] for verdict in verdicts}
    return list(texts) if len(texts) == 1 else verdicts
