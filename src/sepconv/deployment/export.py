"""A run's network as a file that runs elsewhere, written once it is shown to do the same, and what it costs."""

import importlib.metadata
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepconv import InputError, files
from sepconv.config import EXPORTED
from sepconv.config.keys import ExportConfig, SourceConfig, TrainConfig
from sepconv.costs import counting
from sepconv.costs.peak_memory import live_bytes, live_maps
from sepconv.data.datasets import Dataset, sample
from sepconv.deployment.formats import (
    BATCH,
    CONVERT,
    WRITE,
    ExportedFile,
    FileRecord,
    classify_with,
    read_file,
)
from sepconv.deployment.quantization import Quantizer
from sepconv.deployment.speed import Speed, measure, time_layers
from sepconv.devices import describe_device
from sepconv.networks.lowrank import multiply_out
from sepconv.packing import pack
from sepconv.reading import write_yaml
from sepconv.study.compare import Run, make_labels, name_hardware, read_run
from sepconv.tables import Column, Table
from sepconv.terminal import CONSOLE, track
from sepconv.training import runs
from sepconv.training.classifier import ImageClassifier, explain_difference
from sepconv.training.recorded import load_classifier, load_run

SLOWER = 1.05  # times as long, from which int8 is said to be slower in a layer
NAMED = 5  # such layers that are named


@dataclass(frozen=True)
class Source:
    """A run, and what its network gives in PyTorch, in fp32."""

    run: Run
    classifier: ImageClassifier
    dataset: Dataset
    test: Tensor  # logits (N, classes) of the test images

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.run.result.model}-{self.run.result.data}"

    @property
    def images(self) -> dict[str, Any]:
        """Its images, as `describe_images` gives them."""
        described: dict[str, Any] = self.classifier.hparams["images"]
        return described


@dataclass(frozen=True)
class Row:
    """A file, and what it costs."""

    label: str  # of the network
    source: Source
    file: ExportedFile
    speed: Speed

    @property
    def record(self) -> FileRecord:
        return self.file.record

    @cached_property
    def net(self) -> nn.Module:
        """The network that the file holds, of shapes alone."""
        return multiply_out(self.source.classifier.net)

    @property
    def parameters(self) -> int:
        return counting.parameters(self.net)

    @property
    def macs(self) -> int:
        return counting.macs(self.net, self.source.dataset.shape)

    @property
    def peak(self) -> int:
        """Bytes of the maps that are alive at once, at most, for one image."""
        shape = self.source.dataset.shape
        maps = live_maps(counting.layers(self.net, shape), (1, *shape))
        return max(live_bytes(each, self.record.precision) for each in maps)


def export(config: ExportConfig, overrides: list[str]) -> None:
    """Writes the files that `config` asks for, then prints and writes what they cost; or copies the run.

    Raises InputError for what is no run, images that are not those of the run, a network that the format does not
    have, a file that would not do the same as the network, and a folder that cannot be written.
    """
    folder = Path(config.output)
    if config.format == "run":
        copy_run(config.run, folder)
        return
    source = read_source(config.run, config.data)
    twin = read_source(config.twin, config.data) if config.twin else None
    if twin and (reason := explain_difference(source.images, twin.images)):
        raise InputError(f"twin={config.twin} is of other images than run={config.run}: {reason}")
    command = name_command(overrides)
    paths = {precision: folder / f"{source.name}{end}" for precision, end in ends(config.format, config.int8).items()}
    check_folder(folder, source, config.format)
    sources = [source, twin] if twin else [source]
    made: list[tuple[str, Source, ExportedFile]] = []
    refused: dict[str, str] = {}  # by network: why there is no file in int8
    for label, each in zip(make_labels([each.run for each in sources]), sources, strict=True):
        found, reason = make_files(each, config, command)
        made += [(label, each, file) for file in found]
        if reason:
            refused[label] = reason
        for file in found if each is source else []:  # of the twin there are figures alone
            files.write(paths[file.record.precision], file.content)
            CONSOLE.print(f"{file.record.name} in {paths[file.record.precision].resolve()}", soft_wrap=True)
    speeds = measure([file for _, _, file in made])
    rows = [Row(*each, speed) for each, speed in zip(made, speeds, strict=True)]
    device = describe_device(torch.device("cpu"))
    title = f"{source.run.result.data}, {name_hardware(device)}"
    Table(title, COLUMNS, rows).show(CONSOLE)
    slower = list(explain_speeds(rows))
    for line in slower:
        CONSOLE.print(line, soft_wrap=True)
    record = {
        "date": time.strftime("%Y-%m-%d"), "command": command, "git": runs.current_code(), "device": device,
        "versions": runs.versions() | library_versions(config.format), "refused": refused, "slower": slower,
        "files": [describe_row(row) for row in rows],
    }  # fmt: skip
    figures = folder / f"{source.name}{EXPORTED[config.format]}.json"
    files.write(figures, json.dumps(record, indent=2) + "\n")
    CONSOLE.print(f"figures in {figures.resolve()}", soft_wrap=True)
    for label, reason in refused.items():
        if label != rows[0].label:
            CONSOLE.print(f"{label}: {reason}", soft_wrap=True)
    if rows[0].label in refused:
        older = f"; {paths['int8']} is of an earlier export" if paths["int8"].exists() else ""
        raise InputError(f"no int8 file is written: {refused[rows[0].label]}{older}")


def copy_run(run: str, folder: Path) -> None:
    """Copies a finished run into `folder`, by the name of its directory: what evaluates it, and its record.

    Where files lie on this machine is left out of the configuration and of the overrides.

    Raises InputError for what is no run or not finished, and where the copy cannot be written or something is there.
    """
    source = read_run(Path(run))
    load_classifier(source.path, "best", source.config)
    target = folder / source.path.name
    result = replace(source.result, overrides=without_places(source.result.overrides))
    try:
        (target / "checkpoints").mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot make {target} ({error.strerror}): choose another output=") from error
    for name in ("checkpoints/best.ckpt", "code.yaml", runs.PREDICTIONS):
        if (source.path / name).exists():
            files.write(target / name, (source.path / name).read_bytes())
    files.write(target / "config.yaml", write_yaml(asdict(portable(source.config))))
    files.write(target / "overrides.yaml", write_yaml(result.overrides))
    runs.write_result(target, result)  # last: without it the copy is no finished run
    CONSOLE.print(f"run in {target.resolve()}", soft_wrap=True)


def without_places(overrides: list[str]) -> list[str]:
    """A run's overrides but for those that say where files lie on one machine."""
    return [override for override in overrides if not override.startswith(runs.PLACES)]


def ends(form: str, int8: bool) -> dict[str, str]:
    """How the name of each file of a format ends, by its precision."""
    suffix = EXPORTED[form]
    return {"fp32": suffix} | ({"int8": f"-int8{suffix}"} if int8 else {})


def check_folder(folder: Path, source: Source, form: str) -> None:
    """Raises InputError where files cannot be written to `folder`, or one of the format there is of another run.

    A file of either precision: the figures of both have one name.
    """
    files.make_folder(folder)
    for end in ends(form, int8=True).values():
        path = folder / f"{source.name}{end}"
        if path.exists() and (other := read_file(path).record.run) != source.run.path.name:
            raise InputError(f"{path} is of another run, {other}: choose another output=, or remove it")


def read_source(run: str, data: SourceConfig) -> Source:
    """A run, its images and its network's logits. Raises InputError for what is none, or has other images."""
    path, _, classifier, dataset = load_run(run, "best", data)
    classifier.eval()
    with torch.no_grad():
        logits = [classifier(images.contiguous()) for images in dataset[dataset.test][0].split(BATCH)]
    return Source(read_run(path), classifier, dataset, torch.cat(logits))


def make_files(source: Source, config: ExportConfig, command: str) -> tuple[list[ExportedFile], str]:
    """The files of a network, fp32 and, where it is asked for, int8; and why there is none in int8, else nothing.

    Raises InputError where the file in fp32 does not classify as the network does.
    """
    images, held_out = (source.dataset[rows][0] for rows in (source.dataset.test, source.dataset.validation))
    network = CONVERT[config.format](source.classifier)
    logits = classify_with(network, config.format, images)
    if differing := int((logits.argmax(1) != source.test.argmax(1)).sum()):
        largest = float((logits - source.test).abs().max())
        raise InputError(
            f"no file is written: it classifies {differing} of {len(images):,} test images otherwise than the network "
            f"does in PyTorch (logits differ by up to {largest:.1g})"
        )
    fp32 = make_file(source, config.format, "fp32", command, network, logits,
                     classify_with(network, config.format, held_out))  # fmt: skip
    if not config.int8:
        return [fp32], ""
    part = sample(source.dataset.train, config.calibration_images)
    quantizer = Quantizer(network, source.dataset[part][0], equalized=True)
    network = quantizer.quantize()
    int8 = make_file(source, config.format, "int8", command, network, classify_with(network, config.format, images),
                     classify_with(network, config.format, held_out))  # fmt: skip
    drop = round(fp32.record.val_accuracy - int8.record.val_accuracy, 6)
    if drop <= config.int8_drop:
        return [fp32, int8], ""
    layer, cost = find_costliest(quantizer, source, fp32.record.val_accuracy)
    return [fp32], (
        f"int8 costs {100 * drop:.2f} points on the validation images, more than int8_drop={config.int8_drop:g}; "
        f"{layer} costs most, {100 * cost:.2f} points alone"
    )


def make_file(
    source: Source, form: str, precision: str, command: str, network: Any, test: Tensor, validation: Tensor
) -> ExportedFile:
    """The file of a network in the library's form, which gives these logits."""
    dataset, result = source.dataset, source.run.result
    result = replace(result, overrides=without_places(result.overrides))
    record = FileRecord(
        format=form, precision=precision, shape=list(dataset.shape), classes=list(dataset.classes),
        test_accuracy=share(test, dataset, dataset.test), val_accuracy=share(validation, dataset, dataset.validation),
        right=pack((test.argmax(1) == dataset.labels[dataset.test]).numpy()), run=source.run.path.name,
        date=time.strftime("%Y-%m-%d"), git=runs.current_code(), command=command,
        config=portable(source.run.config), result=result,
    )  # fmt: skip
    return ExportedFile(Path(f"{source.name}{EXPORTED[form]}"), record, WRITE[form](network, record))


def name_command(overrides: list[str]) -> str:
    """The command without the places of this machine: runs by their directories' names."""
    named = [f"{key}={Path(value).name}" if key in ("run", "twin") else override
             for override in overrides for key, _, value in [override.partition("=")]
             if key not in ("output", "data.root")]  # fmt: skip
    return runs.command_line("export", named)


def portable(config: TrainConfig) -> TrainConfig:
    """A run's configuration without the places of this machine."""
    weights = config.weights and Path(config.weights).name
    return replace(config, data=replace(config.data, root="data"), runs="runs", resume=None, weights=weights)


def share(logits: Tensor, dataset: Dataset, rows: Tensor) -> float:
    """The accuracy of logits (N, classes) of the images `rows` (N,), to six digits."""
    return round(float((logits.argmax(1) == dataset.labels[rows]).double().mean()), 6)


def find_costliest(quantizer: Quantizer, source: Source, accuracy: float) -> tuple[str, float]:
    """The layer whose quantisation costs most, and what it costs alone, in validation accuracy.

    It is the one that, alone in int8, gives the largest validation loss.
    """
    dataset = source.dataset
    images, labels = dataset[dataset.validation]
    found: list[tuple[float, str, float]] = []
    for layer in track(quantizer.layers, "int8: layer"):
        logits = classify_with(quantizer.quantize([layer]), "onnx", images)
        loss = float(F.cross_entropy(logits, labels))
        found.append((loss, layer, accuracy - share(logits, dataset, dataset.validation)))
    _, layer, cost = max(found)
    return layer, cost


def explain_speeds(rows: Sequence[Row]) -> Iterator[str]:
    """Of each network that int8 does not make faster on one thread: by how much, and in which layers."""
    for fp32, int8 in pairwise(rows):
        if fp32.source is not int8.source or fp32.speed.one_thread > int8.speed.one_thread:
            continue
        before, after = time_layers(fp32.file), time_layers(int8.file)
        layers = [layer for layer in after if layer in before]
        slower = sorted(
            (before[layer] - after[layer], layer) for layer in layers if after[layer] > SLOWER * before[layer]
        )
        named = ", ".join(f"{layer} ({after[layer] / before[layer]:.1f} times as long)" for _, layer in slower[:NAMED])
        more = f" and {len(slower) - NAMED} more" if slower[NAMED:] else ""
        others = sum(after.values()) - sum(after[layer] for layer in layers)
        yield (
            f"{fp32.label}: int8 is not faster than fp32 at a batch of one image on one thread; longer take "
            f"{named or 'no layers'}{more}, and what is not a layer takes {others * 1e6:.0f} us"
        )


def describe_row(row: Row) -> dict[str, Any]:
    """A row's figures as plain values."""
    record, result = row.record, row.record.result
    return {
        "network": row.label, "run": record.run, "format": record.format, "precision": record.precision,
        "test_accuracy": record.test_accuracy, "val_accuracy": record.val_accuracy,
        "test_images": result.images["test"], "parameters": row.parameters, "macs": row.macs,
        "file_bytes": len(row.file.content), "peak_bytes": row.peak, **asdict(row.speed),
    }  # fmt: skip


def library_versions(form: str) -> dict[str, str]:
    """Versions of what writes and runs files of a format, beside torch."""
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime") if form == "onnx"}


COLUMNS = [
    Column("network", lambda row: row.label),
    Column("precision", lambda row: row.record.precision, left=True),
    Column("test accuracy", lambda row: f"{row.record.test_accuracy:.2%}"),
    Column("validation", lambda row: f"{row.record.val_accuracy:.2%}"),
    Column("parameters", lambda row: f"{row.parameters:,}"),
    Column("MACs", lambda row: f"{row.macs:,}"),
    Column("file bytes", lambda row: f"{len(row.file.content):,}"),
    Column("peak bytes of maps", lambda row: f"{row.peak:,}"),
    Column("ms, 1 thread", lambda row: f"{1e3 * row.speed.one_thread:.3f}"),
    Column("ms, all threads", lambda row: f"{1e3 * row.speed.all_threads:.3f}"),
    Column("images/s at 128", lambda row: f"{row.speed.images_per_second:,.0f}"),
]
