"""Claim C15, of networks as they are deployed; seeds are paired."""

import numpy as np
from numpy.typing import NDArray

from sepconv.config import CALIBRATION_IMAGES
from sepconv.data.datasets import sample
from sepconv.deployment.formats import classify_with, to_onnx
from sepconv.deployment.quantization import Quantizer
from sepconv.study.claims.finding import Accuracies, Cell, Finding, Paired
from sepconv.study.claims.lab import Lab, separable_model
from sepconv.study.claims.trained import best_classifier
from sepconv.study.compare import Run
from sepconv.study.frontier.networks import nearest_width

SCALES = ("layer", "channel")  # what has a scale of its own among the weights


def loss_in_int8(lab: Lab) -> Finding:
    """In int8 separable networks lose more accuracy than dense ones."""
    separable, dense = separable_model(), separable_model(conv="dense")
    narrow = dense | {"width": equal_width(lab)}
    networks = {"separable": separable, "dense, as wide": dense, "dense, of as many parameters": narrow}
    # by network: test accuracies in fp32, and by what has a scale of its own in int8
    found: dict[str, dict[str, Accuracies]] = {}
    for name, model in networks.items():
        seeds = [quantize(lab, lab.train(model, seed)) for seed in lab.seeds(model)]
        found[name] = {key: Accuracies.of([right[key] for right in seeds]) for key in ("fp32", *SCALES)}
    rows: list[list[Cell]] = []
    for scale in SCALES:
        losses = {name: Paired(each["fp32"], each[scale]) for name, each in found.items()}
        for name, model in networks.items():
            cell: Cell = "-"
            if name != "separable":
                case = f"weights have a scale for each {scale} and the other network is {name}"
                cell = Paired(losses["separable"], losses[name], case)
            rows.append([name, lab.cost(model).parameters, f"for each {scale}", found[name]["fp32"], found[name][scale],
                         losses[name], cell])  # fmt: skip
    return Finding(
        "The separable network and its dense twin, of the same widths and of as many parameters, quantised after "
        f"training by onnxruntime: weights and maps in 8 bits, calibrated on {CALIBRATION_IMAGES} training images, "
        "with a scale for each layer's weights or for each of its output channels; seeds paired.",
        ["network", "parameters", "scales of weights", "test accuracy in fp32", "in int8", "lost (points)",
         "separable less dense (points)"], rows, "{cases}",
    )  # fmt: skip


def equal_width(lab: Lab) -> float:
    """The width multiplier at which the dense network has as many parameters as the separable one, most nearly."""
    return nearest_width(
        lambda width: lab.cost(separable_model(conv="dense", width=width)).parameters,
        lab.cost(separable_model()).parameters,
    )


def quantize(lab: Lab, run: Run) -> dict[str, NDArray[np.bool_]]:
    """Which test images a run's network is right about, (N,): in fp32, and by what has a scale of its own in int8."""
    dataset = lab.dataset
    model = to_onnx(best_classifier(run))
    calibration = dataset[sample(dataset.train, CALIBRATION_IMAGES)][0]
    models = {"fp32": model}
    models |= {scale: Quantizer(model, calibration, per_channel=scale == "channel").quantize() for scale in SCALES}
    images, labels = dataset[dataset.test]
    predicted = {key: classify_with(each, "onnx", images).argmax(1) for key, each in models.items()}
    return {key: (classes == labels).numpy() for key, classes in predicted.items()}
