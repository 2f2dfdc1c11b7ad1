"""Claims C7, C9, C10, C13 and C14, of trained networks; seeds are paired."""

import statistics
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from sepconv import InputError, terminal
from sepconv.data.datasets import Dataset, load
from sepconv.networks.lowrank import Decomposition, find_separable
from sepconv.networks.separable import TABLE
from sepconv.study.claims.finding import Accuracies, Cell, Finding, Losses, Number, Paired
from sepconv.study.claims.lab import Lab, separable_model
from sepconv.study.compare import Run
from sepconv.study.frontier.record import Record
from sepconv.study.frontier.report import call, sentence
from sepconv.study.plots import finish, make_panel
from sepconv.study.statistics import Estimate
from sepconv.training.classifier import ImageClassifier
from sepconv.training.recorded import load_classifier, measure_test
from sepconv.training.train import make_classifier
from sepconv.training.whitening import find_stem, whiten

FIT_WIDTHS = (0.5, 1.0, 2.0)  # of the networks of claim C10, on all images
DEEP = ("deep_separable", "dense")  # the kinds of networks that claim C7 sets against each other


def depth_at_equal_cost(lab: Lab) -> Finding:
    """For the same parameters, or the same MACs, a separable network can be deeper than a dense one, and better for
    it.
    """
    path = Path(lab.config.frontier) / f"{lab.config.data.name}.json"
    command = f"python scripts/frontier.py data={lab.config.data.name}"
    if not path.exists():
        raise InputError(f"C7 is read off the frontier, and {path} is not there: make it by {command}, or give only=")
    record = Record.read(path)
    networks = [network for kind in DEEP for network in record.of_kind(kind)]
    if not record.is_complete(*networks) or not all(map(record.of_kind, DEEP)):
        raise InputError(f"C7 is read off the frontier, and {path} is not complete: go on by {command}, or give only=")
    rows: list[list[Cell]] = []
    for network in networks:
        accuracies = Accuracies.of(list(record.right(network)))
        rows.append([call(network.kind), network.parameters, network.macs, accuracies])
    sizes = [network.size for network in networks]
    costs = (f"at equal {name}, {sentence(record, *DEEP, cost)}"
             for cost, name in (("parameters", "parameters"), ("macs", "MACs")))  # fmt: skip
    return Finding(
        "The separable network with each block of the table twice, and residuals, against the dense one with each "
        f"once, at sizes from {min(sizes):,} to {max(sizes):,} parameters, {terminal.epochs(record.epochs)} each, "
        f"n = {len(record.settings.seeds)}: the frontier ({path.parent.name}/{path.stem}.md), which says how, with "
        "its own intervals and corrections.",
        ["network", "parameters", "MACs", "test accuracy"], rows, "; ".join(costs),
    )  # fmt: skip


def residual_connections(lab: Lab) -> Finding:
    """Residual connections help separable networks train."""
    rows: list[list[Cell]] = []
    flows: dict[str, list[float]] = {}
    for conv, depth in product(("separable", "dense"), (2, 6)):
        models = {
            name: separable_model(conv=conv, depth=depth, residual=name == "with") for name in ("with", "without")
        }
        layers = 1 + len(TABLE) * depth * (2 if conv == "separable" else 1)
        norms = {name: gradient_norms(lab, model) for name, model in models.items()}
        if conv == "separable":
            flows |= {f"{name}, {layers} convolutions": flow for name, flow in norms.items()}
        for epochs in lab.config.lengths:
            ours, without = (lab.accuracies(model, epochs) for model in models.values())
            case = f"{layers} convolutions are trained for {terminal.epochs(epochs)}" if conv == "separable" else None
            rows.append([conv, layers, epochs, ours, without, Paired(ours, without, case),
                         *(Number(flow[0] / flow[-1], ".2g") for flow in norms.values())])  # fmt: skip
    return Finding(
        "The separable network and, as a control, its dense twin, with each block of the table repeated, with and "
        "without the identity added around blocks that keep their shape, trained for a short time and a long one; "
        "seeds paired. The verdict is of the separable ones. Gradient flow: the norm of the weights' gradient relative "
        "to the weights' own in the first step, at the stem over that at the last convolution (batch norm in all).",
        ["network", "convolutions", "epochs", "with", "without", "difference (points)", "gradient first/last, with",
         "without"], rows, "{cases}", partial(draw_flows, flows),
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
    everything = len(lab.dataset.train)
    parts = [(1.0, size) for size in lab.config.train_sizes if size < everything]
    rows: list[list[Cell]] = []
    gaps: dict[str, dict[tuple[float, int], list[float]]] = {"dense": {}, "separable": {}}
    storage: dict[str, int] = {}
    for width, size in [*parts, *((width, everything) for width in FIT_WIDTHS)]:
        accuracies: dict[str, Accuracies] = {}
        losses: dict[str, list[float]] = {}
        models = {conv: separable_model(conv=conv, width=width) for conv in gaps}
        for conv, model in models.items():
            part = None if size == everything else size
            trainings = [lab.train(model, seed, size=part, plain=True) for seed in lab.seeds(model)]
            rights, losses[conv], gaps[conv][width, size] = [], [], []
            for run in trainings:
                classifier = best_classifier(run)
                (right, test), (_, train) = (measure_test(classifier, images, lab.config.trainer)
                                             for images in (lab.dataset, trained_images(run)))  # fmt: skip
                rights.append(right)
                losses[conv].append(test)
                gaps[conv][width, size].append(test - train)
            accuracies[conv] = Accuracies.of(rights)
            if width == 1:
                storage[conv] = sum(weight.nbytes for weight in classifier.state_dict().values())
        costs = [lab.cost(model).parameters for model in models.values()]
        last = [gaps[conv][width, size] for conv in gaps]
        many = f"there are {size:,} training images and {costs[1]:,} for {costs[0]:,} parameters"
        rows.append([size, *costs, *accuracies.values(), *map(Losses, [*losses.values(), *last]),
                     Paired(last[0], last[1], many, losses=True)])  # fmt: skip
    rows.append(["bytes of the weights and running statistics, width 1", *storage.values(), *[""] * 7])

    def draw() -> Figure:
        figure = Figure(figsize=(11, 4), layout="constrained")
        by_size, by_parameters = figure.subplots(1, 2, sharey=True)
        for (conv, found), marker in zip(gaps.items(), "Do", strict=True):
            sizes = {size: gap for (width, size), gap in found.items() if width == 1}
            counts = {lab.cost(separable_model(conv=conv, width=width)).parameters: gap
                      for (width, size), gap in found.items() if size == everything}  # fmt: skip
            for axes, values in ((by_size, sizes), (by_parameters, counts)):
                estimates = [Estimate.of(gap) for gap in values.values()]
                axes.errorbar(list(values), [e.mean for e in estimates], [e.half or 0 for e in estimates],
                              marker=marker, capsize=3, label=conv)  # fmt: skip
        for axes, label in ((by_size, "training images, at width 1"), (by_parameters, "parameters, all images")):
            axes.set(xscale="log", xlabel=label)
            axes.grid(alpha=0.3)
        by_size.set(ylabel=f"test less training loss, n = {len(lab.config.seeds)}")
        by_size.legend(frameon=False)
        return figure

    less = "true" if storage["separable"] < storage["dense"] else "false"
    return Finding(
        "The same table of blocks at the same widths, separable and dense, trained on parts of the training set over "
        "as many steps, with no augmentation, label smoothing or weight decay, and at three widths on all of it; gap: "
        "cross entropy on the test images less that on the training images, of the checkpoint that validation chose; "
        "seeds paired.",
        ["training images", "parameters, dense", "separable", "test accuracy, dense", "separable", "test loss, dense",
         "separable", "gap, dense", "separable", "dense less separable"],
        rows,
        f"less overfitting: {{cases}}; less storage: {less}",
        draw,
    )  # fmt: skip


def best_classifier(run: Run) -> ImageClassifier:
    """The classifier of a run's best checkpoint."""
    return load_classifier(run.path, "best", run.config)


def trained_images(run: Run) -> Dataset:
    """The images that a run was trained on, as those of a test."""
    dataset = load(run.config.data)
    return replace(dataset, test=dataset.train)


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
    rights: dict[int, list[NDArray[np.bool_]]] = {rank: [] for rank in errors}
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
            rights[rank].append(measure_test(classifier, lab.dataset, lab.config.trainer)[0])
    for rank, accuracies in ((rank, Accuracies.of(seeds)) for rank, seeds in rights.items()):
        rows.append([f"trained dense network, rank {rank}, not trained further", errors[rank], accuracies,
                     Paired(accuracies, dense_accuracies), "-"])  # fmt: skip
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
        cost, accuracies[stem] = lab.cost(model), lab.accuracies(model, seeds=lab.config.stem_seeds)
        rows.append([stem, cost.parameters, cost.macs, accuracies[stem], "-"])
    case = "the first layer is standard rather than separable"
    rows[0][-1] = Paired(accuracies["standard"], accuracies["separable"], case)
    return Finding(
        "The separable network with a standard first layer and with a separable one; "
        f"n = {len(lab.config.stem_seeds)}, seeds paired.",
        ["first layer", "parameters", "MACs", "test accuracy", "standard less separable (points)"], rows,
        "{cases}",
    )  # fmt: skip
