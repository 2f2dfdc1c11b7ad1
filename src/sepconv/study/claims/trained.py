"""Claims C7, C9, C10, C13 and C14, of trained networks; seeds are paired."""

import statistics
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from sepconv.data.datasets import load
from sepconv.networks.lowrank import Decomposition, find_separable
from sepconv.networks.separable import TABLE
from sepconv.study.claims.finding import Cell, Finding, Number, Paired
from sepconv.study.claims.lab import Lab, separable_model
from sepconv.study.compare import Run
from sepconv.study.plots import finish, make_panel
from sepconv.study.statistics import Estimate
from sepconv.training.classifier import ImageClassifier
from sepconv.training.evaluate import load_classifier, measure_accuracy
from sepconv.training.train import make_classifier
from sepconv.training.whitening import find_stem, whiten


def depth_at_equal_cost(lab: Lab) -> Finding:
    """For the same parameters, or the same MACs, a separable network can be deeper than a dense one, and better for
    it.
    """
    dense = separable_model(conv="dense", width=0.5)
    dense_cost, dense_accuracies = lab.cost(dense), lab.accuracies(dense)
    first = "dense, as deep as the table"
    rows: list[list[Cell]] = [[first, Number(dense["width"], "g"), dense_cost.parameters, dense_cost.macs,
                               dense_accuracies, "-"]]  # fmt: skip
    arms: dict[str, tuple[dict[str, Any], list[str]]] = {}  # a network that is matched in both is one arm
    for by in ("parameters", "macs"):
        for depth, residual in ((1, False), (3, False), (3, True)):
            model = lab.match(separable_model(depth=depth, residual=residual), dense_cost, by)
            arms.setdefault(repr(model), (model, []))[1].append("MACs" if by == "macs" else by)
    strips = {first: dense_accuracies}
    for model, matches in arms.values():
        cost, accuracies = lab.cost(model), lab.accuracies(model)
        as_many = f"as many {' and '.join(matches)}"
        deep = "as deep" if model["depth"] == 1 else f"{model['depth']} times as deep"
        deep += ", with residuals" if model["residual"] else ""
        case = f"it has {as_many} and is {deep}" if model["depth"] > 1 else None
        name = f"separable, {as_many}, {deep}"
        rows.append([name, Number(model["width"], "g"), cost.parameters, cost.macs, accuracies,
                     Paired(accuracies, dense_accuracies, case)])  # fmt: skip
        strips[name] = accuracies
    return Finding(
        "The same table of blocks, dense at half width, and separable at the width that comes nearest in parameters "
        "or in MACs: as deep, three times as deep, and that with residuals; seeds paired. The verdict is of the "
        "deeper ones.",
        ["network", "width", "parameters", "MACs", "test accuracy", "less dense (points)"], rows, "{cases}",
        partial(draw_strips, strips),
    )  # fmt: skip


def draw_strips(strips: dict[str, list[float]]) -> Figure:
    """Each network's accuracies, a dot a seed, with mean and 95 % interval."""
    figure, axes = make_panel(9, 1.2 + 0.5 * len(strips))
    for place, accuracies in enumerate(strips.values()):
        estimate = Estimate.of(accuracies).within(0.0, 1.0)
        arms = [[100 * arm] for arm in estimate.arms]
        axes.plot([100 * value for value in accuracies], [place] * len(accuracies), "o", color="0.7", markersize=5)
        axes.errorbar(100 * estimate.mean, place, xerr=arms, fmt="D", color="C0", capsize=4)
    axes.set_yticks(range(len(strips)), list(strips))
    axes.invert_yaxis()
    axes.set(xlabel=f"test accuracy (%): {len(accuracies)} seeds, their mean and its 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    return figure


def residual_connections(lab: Lab) -> Finding:
    """Residual connections help separable networks train."""
    rows: list[list[Cell]] = []
    flows: dict[str, list[float]] = {}
    for depth in (2, 6):
        models = {"with": separable_model(depth=depth, residual=True), "without": separable_model(depth=depth)}
        accuracies = {name: lab.accuracies(model) for name, model in models.items()}
        layers = 1 + 2 * len(TABLE) * depth
        norms = {name: gradient_norms(lab, model) for name, model in models.items()}
        flows |= {f"{name}, {layers} convolutions": flow for name, flow in norms.items()}
        pair = Paired(accuracies["with"], accuracies["without"], f"there are {layers} convolutions")
        rows.append([layers, *accuracies.values(), pair,
                     *(Number(flow[0] / flow[-1], ".2g") for flow in norms.values())])  # fmt: skip
    return Finding(
        "The separable network with each block of the table repeated, with and without the identity added around "
        "blocks that keep their shape; seeds paired. Gradient flow: the norm of the weights' gradient relative to "
        "the weights' own in the first step, at the stem over that at the last convolution (batch norm in all).",
        ["convolutions", "with", "without", "difference (points)", "gradient first/last, with", "without"], rows,
        "{cases}", partial(draw_flows, flows),
    )  # fmt: skip


def draw_flows(flows: dict[str, list[float]]) -> Figure:
    """The gradient norm of each network's layers, by depth."""
    figure, axes = make_panel(7, 4)
    for (name, flow), marker in zip(flows.items(), "o^s*", strict=True):
        places = [i / (len(flow) - 1) for i in range(len(flow))]
        axes.plot(places, flow, marker=marker, markersize=4, label=name)
    axes.set(yscale="log", xlabel="depth, from the stem (0) to the last convolution (1)")
    axes.set(ylabel="gradient norm of a layer's weights, relative to theirs", title="first step, median of seeds")
    finish(axes, title="residuals")
    return figure


def gradient_norms(lab: Lab, model: dict[str, Any]) -> list[float]:
    """Of each convolution, in order: gradient norm over weight norm on a first batch, the median over seeds."""
    norms = []
    for seed in lab.seeds(model):
        torch.manual_seed(seed)
        classifier = make_classifier(model, lab.config.recipe, lab.dataset)
        if classifier.recipe.whiten:
            find_stem(classifier.net).requires_grad_(False)
            whiten(classifier, lab.dataset)
        rows = lab.dataset.train[torch.randperm(len(lab.dataset.train))[: lab.config.recipe.batch_size]]
        images, labels = lab.dataset[rows]
        F.cross_entropy(classifier(images), labels).backward()
        weights = [layer.weight for layer in classifier.net.modules() if isinstance(layer, nn.Conv2d)]
        norms.append([float(w.grad.norm() / w.detach().norm()) for w in weights if w.grad is not None])
    return [statistics.median(values) for values in zip(*norms, strict=True)]


def overfitting_and_storage(lab: Lab) -> Finding:
    """A separable network, having fewer parameters, overfits less and takes less storage."""
    rows: list[list[Cell]] = []
    everything = len(lab.dataset.train)
    sizes = [*(size for size in lab.config.train_sizes if size < everything), everything]
    models = {conv: separable_model(conv=conv) for conv in ("dense", "separable")}
    costs = {conv: lab.cost(model) for conv, model in models.items()}
    gaps: dict[str, list[list[float]]] = {conv: [] for conv in models}
    storage: dict[str, int] = {}
    for size in sizes:
        accuracies = {}
        for conv, model in models.items():
            part = None if size == everything else size
            trainings = [lab.train(model, seed, size=part, plain=True) for seed in lab.seeds(model)]
            storage[conv] = sum(weight.nbytes for weight in best_classifier(trainings[0]).state_dict().values())
            accuracies[conv] = [run.result.test_accuracy for run in trainings]
            gaps[conv].append([train_accuracy(lab, run) - run.result.test_accuracy for run in trainings])
        last = {conv: values[-1] for conv, values in gaps.items()}
        pair = Paired(last["dense"], last["separable"], f"there are {size:,} training images")
        rows.append([size, *accuracies.values(), *last.values(), pair])
    rows.append(["parameters", *(cost.parameters for cost in costs.values()), "", "", ""])
    rows.append(["bytes of the weights and running statistics", *storage.values(), "", "", ""])

    def draw() -> Figure:
        figure, axes = make_panel(6, 4)
        for (conv, values), marker in zip(gaps.items(), "Do", strict=True):
            estimates = [Estimate.of(gap) for gap in values]
            half = [100 * (estimate.half or 0) for estimate in estimates]
            label = f"{conv}, {costs[conv].parameters:,} parameters"
            axes.errorbar(sizes, [100 * e.mean for e in estimates], half, marker=marker, capsize=3, label=label)
        seeds = len(lab.config.seeds)
        axes.set(xscale="log", xlabel="training images", ylabel=f"train less test accuracy (points), n = {seeds}")
        finish(axes)
        return figure

    less = "true" if storage["separable"] < storage["dense"] else "false"
    return Finding(
        "The same table of blocks at the same widths, separable and dense, trained on parts of the training set over "
        "as many steps, with no augmentation, label smoothing or weight decay; gap: accuracy on the training images "
        "less that on the test images, of the checkpoint that validation chose; seeds paired.",
        ["training images", "test accuracy, dense", "separable", "gap, dense", "separable",
         "dense less separable (points)"],
        rows,
        f"less overfitting: {{cases}}; less storage: {less}",
        draw,
    )  # fmt: skip


def best_classifier(run: Run) -> ImageClassifier:
    """The classifier of a run's best checkpoint."""
    return load_classifier(run.path, "best", run.config)


def train_accuracy(lab: Lab, run: Run) -> float:
    """Accuracy of a run's best checkpoint on the images that it was trained on, as they are."""
    dataset = load(run.config.data)
    return measure_accuracy(best_classifier(run), replace(dataset, test=dataset.train), lab.config.trainer)


def rank_one_kernels(lab: Lab) -> Finding:
    """A kernel of rank 1 is a column times a row, so that one K x K convolution equals a K x 1 and a 1 x K one; others
    are approximated by singular value decomposition.
    """
    difference = rank_one_error()
    dense, spatial = separable_model(conv="dense"), separable_model(conv="spatial")
    dense_accuracies = lab.accuracies(dense)
    rows: list[list[Cell]] = [
        ["random kernels of rank 1, as K x 1 and 1 x K (the output's error)", Number(difference, ".0e"), "-", "-", "-"],
        ["trained dense network", "-", dense_accuracies, "-", Number(1, ".1%")],
    ]
    errors: dict[int, list[float]] = {rank: [] for rank in (3, 2, 1)}
    accuracies: dict[int, list[float]] = {rank: [] for rank in errors}
    for seed in lab.seeds(dense):
        classifier = best_classifier(lab.train(dense, seed))
        convolutions = find_separable(classifier.net, "spatial").values()
        decompositions = [Decomposition(conv, "spatial") for conv in convolutions]
        for rank in errors:
            with torch.no_grad():
                for layer in decompositions:  # as one kernel: what its many small steps compute, and much faster
                    layer.conv.weight.copy_(layer.weight(min(rank, layer.full)))
            lost = sum(layer.error(min(rank, layer.full)) for layer in decompositions)
            errors[rank].append((lost / sum(layer.error(0) for layer in decompositions)) ** 0.5)
            accuracies[rank].append(measure_accuracy(classifier, lab.dataset, lab.config.trainer))
    for rank, values in accuracies.items():
        rows.append([f"trained dense network, rank {rank}, not trained further", errors[rank], values,
                     Paired(values, dense_accuracies), "-"])  # fmt: skip
    from_scratch = lab.accuracies(spatial)
    rows.append(["spatially separable, trained from scratch", "-", from_scratch, Paired(from_scratch, dense_accuracies),
                 Number(lab.cost(spatial).macs / lab.cost(dense).macs, ".1%")])  # fmt: skip
    verdict = "true of kernels of rank 1" if difference < 1e-12 else "false"
    verdict += f"; trained kernels are {'not ' * (min(errors[1]) > 1e-3)}of rank 1"
    return Finding(
        "Random kernels of rank 1 against their two steps, in float64; the 3 x 3 kernels of trained dense networks "
        "approximated at each rank by singular value decomposition; and a network of K x 1 and 1 x K layers trained "
        "from scratch. Seeds paired.",
        ["network", "weight error", "test accuracy", "less dense (points)", "of the dense MACs"], rows, verdict,
    )  # fmt: skip


def rank_one_error() -> float:
    """The largest difference of a convolution with kernels of rank 1 from its K x 1 and 1 x K steps, relative."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 6, 5, bias=False).double()
    with torch.no_grad():  # outer products
        column, row = (torch.randn(6, 4, 5, generator=generator, dtype=torch.double) for _ in range(2))
        conv.weight.copy_(column[..., :, None] * row[..., None, :])
        images = torch.randn(2, 4, 12, 12, generator=generator, dtype=torch.double)
        whole, steps = conv(images), Decomposition(conv, "spatial").factors(1)(images)
    return float((steps - whole).abs().max() / whole.abs().max())


def first_layer(lab: Lab) -> Finding:
    """Separable layers combine well with a standard first layer."""
    rows: list[list[Cell]] = []
    accuracies = {}
    for stem in ("standard", "separable"):
        model = separable_model(stem=stem)
        cost, accuracies[stem] = lab.cost(model), lab.accuracies(model)
        rows.append([stem, cost.parameters, cost.macs, accuracies[stem], "-"])
    case = "the first layer is standard rather than separable"
    rows[0][-1] = Paired(accuracies["standard"], accuracies["separable"], case)
    return Finding(
        "The separable network with a standard first layer and with a separable one; seeds paired.",
        ["first layer", "parameters", "MACs", "test accuracy", "standard less separable (points)"], rows,
        "{cases}",
    )  # fmt: skip
