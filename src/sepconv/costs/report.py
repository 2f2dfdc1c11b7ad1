"""What `scripts/cost.py` prints: a network's layers, its dense twin, and what a machine makes of them."""

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from sepconv import InputError, networks
from sepconv.config import CostConfig
from sepconv.costs import counting, receptive_field, roofline, twin
from sepconv.costs.counting import Layer
from sepconv.data.datasets import image_shape
from sepconv.tables import markdown_table, print_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]
Column = tuple[str, str, Callable[[Any], str]]  # heading, key of a record, how its value is written


def report(config: CostConfig) -> Record:
    """The figures that `config` asks for, as plain values; its pictures are written.

    Raises InputError for a network that cannot be built for these images, a device that is not there, or a picture
    that cannot be written.
    """
    device = roofline.find_device(config.device) if config.device else None
    if config.sweep:
        return sweep_report(config, device)
    shape, classes = image(config)
    torch.manual_seed(0)  # of the weights that the gradients of the effective receptive field go through
    net = networks.build(shape=shape, classes=classes, **config.model)
    layers = counting.layers(net, shape, config.batch)
    rows = [layer_record(layer, shape, config.dtype) for layer in layers]
    total = layer_record(counting.total(layers), shape, config.dtype)
    result: Record = {
        "model": config.model["name"],
        "shape": list(shape),
        "classes": classes,
        "batch": config.batch,
        "dtype": config.dtype,
        "layers": rows,
        "total": total,
        **compare(config.model, net, shape, classes),
    }
    if config.receptive_field:
        if not receptive_field.spatial(layers):
            raise InputError("receptive_field= has nothing to draw: every map has one position; choose larger images")
        maps = receptive_field.effective(net, layers, device=device or "cpu")
        for layer, row in zip(layers, rows, strict=True):
            known = layer.call is None and layer.name in maps
            row["effective_receptive_field"] = (
                receptive_field.effective_side(maps[layer.name], layer) if known else None
            )
        save(receptive_field.draw(maps, layers), config.receptive_field, "receptive_field")
    if device is not None:
        machine = roofline.measure_machine(device)
        times = roofline.time_layers(net, layers, device, config.dtype)
        for layer, row, measured in zip(layers, rows, times, strict=True):
            predicted = machine.seconds(layer, config.dtype)
            row |= {
                "bound": machine.bound(layer, config.dtype),
                "predicted_seconds": predicted,
                "measured_seconds": measured,
                "flop_per_second": 2 * layer.macs / measured,
            }
        total |= {
            "predicted_seconds": sum(row["predicted_seconds"] for row in rows),
            "measured_seconds": sum(times),
        }
        result["machine"] = asdict(machine)
        result["network_seconds"] = roofline.time_network(net, shape, config.batch, device, config.dtype)
        if config.plot:
            save(roofline.draw(machine, layers, times, config.dtype), config.plot, "plot")
    return result


def image(config: CostConfig) -> tuple[tuple[int, int, int], int]:
    """(channels, height, width) of an image, and the number of classes."""
    if config.shape is None or config.classes is None:
        shape, classes = image_shape(config.data)
    if config.shape is not None:
        shape = config.shape[0], config.shape[1], config.shape[2]
    return shape, config.classes or classes


def layer_record(layer: Layer, shape: tuple[int, int, int], dtype: str) -> Record:
    """A layer's figures as plain values."""
    return {
        "name": layer.name,
        "kind": layer.kind,
        "kernel": layer.kernel and list(layer.kernel),
        "stride": layer.stride and list(layer.stride),
        "input": list(layer.input[1:]),
        "output": list(layer.output[1:]),
        "parameters": layer.parameters,
        "macs": layer.macs,
        "macs_backward": layer.macs_backward,
        "macs_data_gradient": layer.macs_data_gradient,
        "macs_weight_gradient": layer.macs_weight_gradient,
        "activation_bytes": layer.activation_bytes(dtype),
        "weight_bytes": layer.weight_bytes(dtype),
        "flop_per_byte": layer.intensity(dtype),
        "receptive_field": list(layer.receptive_field(shape)),
        "jump": [extent.jump for extent in layer.sees],
    }


def compare(model: Record, net: nn.Module, shape: tuple[int, int, int], classes: int) -> Record:
    """The comparison with the dense twin, per block and in all, or why there is none."""
    dense = twin.dense_twin(model, shape, classes)
    if dense is None:
        return {"comparison": [], "no_comparison": f"{model['name']} has no option conv, and so no dense twin"}
    blocks = twin.compare(net, dense, shape)
    if len(blocks) == 1 and blocks[0].macs == blocks[0].dense_macs:
        return {"comparison": [], "no_comparison": f"this {model['name']} is its own dense twin"}
    return {"comparison": [
        asdict(block) | {"parameter_ratio": block.parameter_ratio, "mac_ratio": block.mac_ratio} for block in blocks
    ]}  # fmt: skip


def sweep_report(config: CostConfig, device: torch.device | None) -> Record:
    """A standard and a separable layer side by side, by input channels."""
    rows = []
    for row in roofline.sweep(device, config.dtype, config.batch):
        record: Record = {"in_channels": row.in_channels}
        for name, layer, time in (("standard", row.standard, row.standard_seconds),
                                  ("separable", row.separable, row.separable_seconds)):  # fmt: skip
            record |= {
                f"{name}_parameters": layer.parameters,
                f"{name}_macs": layer.macs,
                f"{name}_bytes": layer.bytes(config.dtype),
                f"{name}_flop_per_byte": layer.intensity(config.dtype),
                f"{name}_seconds": time,
            }
        for what in ("macs", "bytes", "seconds"):
            standard, separable = record[f"standard_{what}"], record[f"separable_{what}"]
            record[f"{what}_ratio"] = separable / standard if standard else None
        rows.append(record)
    return {
        "out_channels": roofline.OUT_CHANNELS,
        "side": roofline.SIDE,
        "batch": config.batch,
        "dtype": config.dtype,
        "device": device and roofline.describe_device(device),
        "sweep": rows,
    }


def save(figure: "Figure", path: str, key: str) -> None:
    """Writes a picture. Raises InputError where its file cannot be written."""
    try:
        figure.savefig(Path(path).expanduser(), dpi=150)
    except OSError as error:
        raise InputError(f"cannot write {key}={path} ({error.strerror}): choose another file") from error


def show(result: Record, form: str) -> None:
    """Prints what `report` gave, as a table, json, csv (the layers, or the sweep, alone) or markdown."""
    if form == "json":
        print(json.dumps(result, indent=2))
    elif form == "csv":
        records = result["sweep"] if "sweep" in result else [*result["layers"], result["total"]]
        writer = csv.DictWriter(sys.stdout, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: flat(value) for key, value in record.items()} for record in records)
    else:
        for table in tables(result):
            if form == "markdown":
                print(markdown(*table))
            else:
                print_table(*table)
        if "no_comparison" in result:
            print(f"No comparison: {result['no_comparison']}.")
        elif "comparison" in result:
            print("1/C_out + 1/K²: a depthwise and a pointwise convolution over a standard one in their place.")


def flat(value: Any) -> Any:
    """A list as 3x32x32, anything else as it is."""
    return "x".join(f"{part:g}" for part in value) if isinstance(value, list) else value


def tables(result: Record) -> list[tuple[str, list[Column], list[Record]]]:
    """The title, columns and rows of each table."""
    if "sweep" in result:
        return [sweep_table(result)]
    image = " x ".join(str(side) for side in result["shape"])
    many = "" if result["batch"] == 1 else f" in a batch of {result['batch']}"
    rows = [*result["layers"], result["total"]]
    columns = LAYER_COLUMNS
    if "effective_receptive_field" in rows[0]:
        columns = [*columns, ("effective", "effective_receptive_field", str)]
    found = [(f"{result['model']}, {image}{many}, {result['dtype']}", columns, rows)]
    if result["comparison"]:
        found.append((f"{result['model']} and its dense twin, an image", COMPARISON_COLUMNS, result["comparison"]))
    if "machine" in result:
        machine = result["machine"]
        peaks = ", ".join(f"{name} {peak / 1e9:,.0f} GFLOP/s" for name, peak in machine["flops"].items())
        title = (
            f"Roofline of {', '.join(map(str, machine['device'].values()))}: {machine['bandwidth'] / 1e9:,.1f} GB/s, "
            f"{peaks}; whole network {microseconds(result['network_seconds'])} us"
        )
        found.append((title, ROOFLINE_COLUMNS, rows))
    return found


def sweep_table(result: Record) -> tuple[str, list[Column], list[Record]]:
    side = result["side"]
    where = "" if result["device"] is None else ", " + ", ".join(map(str, result["device"].values()))
    title = (
        f"3 x 3 convolution of {side} x {side} to {result['out_channels']} channels, separable against standard, "
        f"batch of {result['batch']}, {result['dtype']}{where}"
    )
    columns = SWEEP_COLUMNS if result["device"] else [c for c in SWEEP_COLUMNS if "seconds" not in c[1]]
    return title, columns, result["sweep"]


def print_table(title: str, columns: list[Column], records: list[Record]) -> None:
    table = Table(title=title, title_justify="left")
    for place, (heading, _, _) in enumerate(columns):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=True)
    for record in records:
        row = cells(record, columns)
        if row[0] == "total":
            table.add_section()
        table.add_row(*row)
    print_whole(Console(highlight=False), table)


def markdown(title: str, columns: list[Column], records: list[Record]) -> str:
    """A table in Markdown, under its title."""
    align = ["---", *["---:"] * (len(columns) - 1)]
    rows = [cells(record, columns) for record in records]
    lines = markdown_table([heading for heading, _, _ in columns], rows, align)
    return "\n".join([f"**{title}**", "", *lines]) + "\n"


def cells(record: Record, columns: list[Column]) -> list[str]:
    return [write(record[key]) if record.get(key) is not None else "" for _, key, write in columns]


def count(value: int) -> str:
    return f"{value:,}"


def kib(value: int) -> str:
    return f"{value / 1024:,.1f}"


def decimal(value: float) -> str:
    return f"{value:.2f}"


def ratio(value: float) -> str:
    return f"{value:.4f}"


def microseconds(value: float) -> str:
    return f"{value * 1e6:,.1f}"


def giga(value: float) -> str:
    return f"{value / 1e9:,.1f}"


def sides(value: list[float]) -> str:
    return flat(value[:1] if len(set(value)) == 1 else value)


LAYER_COLUMNS: list[Column] = [
    ("layer", "name", str),
    ("kind", "kind", str),
    ("kernel", "kernel", flat),
    ("stride", "stride", sides),
    ("output", "output", flat),
    ("parameters", "parameters", count),
    ("MACs", "macs", count),
    ("MACs backward", "macs_backward", count),
    ("maps KiB", "activation_bytes", kib),
    ("weights KiB", "weight_bytes", kib),
    ("FLOP/byte", "flop_per_byte", decimal),
    ("receptive field", "receptive_field", sides),
    ("jump", "jump", sides),
]
COMPARISON_COLUMNS: list[Column] = [
    ("block", "block", str),
    ("parameters", "parameters", count),
    ("dense", "dense_parameters", count),
    ("ratio", "parameter_ratio", ratio),
    ("MACs", "macs", count),
    ("dense", "dense_macs", count),
    ("ratio", "mac_ratio", ratio),
    ("1/C_out + 1/K²", "closed_form", ratio),
]
ROOFLINE_COLUMNS: list[Column] = [
    ("layer", "name", str),
    ("kind", "kind", str),
    ("FLOP/byte", "flop_per_byte", decimal),
    ("bound by", "bound", str),
    ("predicted us", "predicted_seconds", microseconds),
    ("measured us", "measured_seconds", microseconds),
    ("GFLOP/s", "flop_per_second", giga),
]
SWEEP_COLUMNS: list[Column] = [
    ("C_in", "in_channels", count),
    ("MACs", "standard_macs", count),
    ("separable", "separable_macs", count),
    ("ratio", "macs_ratio", ratio),
    ("KiB", "standard_bytes", kib),
    ("separable", "separable_bytes", kib),
    ("ratio", "bytes_ratio", ratio),
    ("FLOP/byte", "standard_flop_per_byte", decimal),
    ("separable", "separable_flop_per_byte", decimal),
    ("us", "standard_seconds", microseconds),
    ("separable", "separable_seconds", microseconds),
    ("ratio", "seconds_ratio", ratio),
]
