"""What `scripts/cost.py` prints: a network's layers, its dense twin, and what a machine makes of them."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from sepconv import InputError, networks
from sepconv.config.keys import CostConfig
from sepconv.costs import counting, peak_memory, roofline, twin
from sepconv.costs.counting import Layer
from sepconv.costs.effective_receptive_field import effective_side, gradient_maps, spatial_layers
from sepconv.costs.peak_memory import Map, live_bytes
from sepconv.data.datasets import image_shape
from sepconv.devices import describe_device, prepare_memory
from sepconv.tables import Column, Table, as_csv
from sepconv.terminal import CONSOLE

log = logging.getLogger(__name__)

Record = dict[str, Any]
Drawing = Callable[[Any], Any]  # takes the module sepconv.costs.plots, which waits for matplotlib, and gives a figure
Drawings = dict[str, Drawing]  # by the configuration's key that asks for the picture
Shape = tuple[int, int, int]  # channels, height, width

COUNTS = ("parameters", "macs", "macs_backward", "macs_data_gradient", "macs_weight_gradient")


def report_costs(config: CostConfig) -> None:
    """Prints the figures that `config` asks for, then writes its pictures. Raises InputError where that fails."""
    record, drawings = count_costs(config)
    show(record, config.format)
    if drawings:
        from sepconv.costs import plots

        for key, draw in drawings.items():
            plots.save(draw(plots), getattr(config, key), key)


def count_costs(config: CostConfig) -> tuple[Record, Drawings]:
    """The figures that `config` asks for, as plain values, and what draws its pictures, by their keys.

    Raises InputError for a network that cannot be built for these images, or a device that is not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda: torch finds no CUDA device here; choose device=cpu")
    device = torch.device(config.device) if config.device else None
    if config.sweep:
        sweep = {
            "out_channels": roofline.OUT_CHANNELS,
            "side": roofline.SIDE,
            "batch": config.batch,
            "dtype": config.dtype,
            "device": device and describe_device(device),
            "sweep": roofline.sweep(device, config.dtype, config.batch),
        }
        return sweep, {}
    if config.shape is None or config.classes is None:
        shape, classes = image_shape(config.data)
    if config.shape is not None:
        shape = config.shape[0], config.shape[1], config.shape[2]
    classes = config.classes or classes
    torch.manual_seed(0)  # of the weights that the gradients of the effective receptive field go through
    net = networks.build(shape=shape, classes=classes, **config.model)
    layers = counting.layers(net, shape, config.batch)
    live = peak_memory.live_maps(layers, (config.batch, *shape))
    *rows, total = layer_records(layers, live, shape, config.dtype)
    result: Record = {
        "model": config.model["name"],
        "shape": list(shape),
        "classes": classes,
        "batch": config.batch,
        "dtype": config.dtype,
        "layers": rows,
        "total": total,
        "peak": peak_record(layers, live, config.dtype),
        **twin_record(config.model, net, shape, classes),
    }
    drawings: Drawings = {}
    if config.receptive_field:
        drawings["receptive_field"] = add_effective_sides(result, net, layers, device or torch.device("cpu"))
    if device is not None:
        draw = add_times(result, net, layers, device, config)
        drawings |= {"plot": draw} if config.plot else {}
    return result, drawings


def layer_records(layers: list[Layer], live: list[list[Map]], shape: Shape, dtype: str) -> list[Record]:
    """The figures of each layer, and of their total, which has the peak of the live maps."""
    sizes = [live_bytes(maps, dtype) for maps in live]
    rows = zip([*layers, counting.total(layers)], [*sizes, max(sizes)], strict=True)
    return [layer_record(layer, size, shape, dtype) for layer, size in rows]


def layer_record(layer: Layer, size: int, shape: Shape, dtype: str) -> Record:
    """A layer's figures as plain values; `size` is its live maps', in bytes."""
    return {
        "name": layer.name,
        "kind": layer.kind,
        "kernel": layer.kernel and list(layer.kernel),
        "stride": layer.stride and list(layer.stride),
        "input": list(layer.input[1:]),
        "output": list(layer.output[1:]),
        **{key: getattr(layer, key) for key in COUNTS},
        "activation_bytes": layer.activation_bytes(dtype),
        "live_bytes": size,
        "weight_bytes": layer.weight_bytes(dtype),
        "flop_per_byte": layer.intensity(dtype),
        "receptive_field": list(layer.receptive_field(shape)),
        "jump": [extent.jump for extent in layer.sees],
    }


def peak_record(layers: list[Layer], live: list[list[Map]], dtype: str) -> Record:
    """The peak of the live maps, the first layer that reaches it, and the maps that are alive there."""
    maps = max(live, key=lambda maps: live_bytes(maps, dtype))
    return {
        "bytes": live_bytes(maps, dtype),
        "layer": layers[live.index(maps)].name,
        "maps": [
            {"layer": each.layer, "shape": list(each.shape[1:]), "bytes": live_bytes([each], dtype)} for each in maps
        ],
    }


def twin_record(model: Record, net: nn.Module, shape: Shape, classes: int) -> Record:
    """The comparison with the dense twin, per block and in all, or why there is none."""
    dense = twin.dense_twin(model, shape, classes)
    if dense is None:
        return {"comparison": [], "no_comparison": f"{model['name']} has no option conv, and so no dense twin"}
    blocks = twin.compare_blocks(net, dense, shape)
    if len(blocks) == 1 and blocks[0].macs == blocks[0].dense_macs:
        return {"comparison": [], "no_comparison": f"this {model['name']} is its own dense twin"}
    return {"comparison": [asdict(block) for block in blocks]}


def add_effective_sides(result: Record, net: nn.Module, layers: list[Layer], device: torch.device) -> Drawing:
    """Adds each layer's effective receptive field, None where it has none or no gradient arrives; gives what draws."""
    if not spatial_layers(layers):
        raise InputError("receptive_field= has nothing to draw: every map has one position; choose larger images")
    maps = gradient_maps(net, layers, device=device)
    for layer, row in zip(layers, result["layers"], strict=True):
        mass = maps.get(layer.name) if layer.call is None else None
        row["effective_receptive_field"] = effective_side(mass, layer) if mass is not None and mass.any() else None
    return lambda plots: plots.draw_receptive_fields(maps, layers)


def add_times(result: Record, net: nn.Module, layers: list[Layer], device: torch.device, config: CostConfig) -> Drawing:
    """Adds the device's roofline, the time of each layer, and the steps of the network and of its dense twin.

    A batch of one image is not trained: a norm's statistics may be of a single value.

    Returns:
        What draws the roofline.
    """
    prepare_memory()  # as a training does
    shape, dtype = result["shape"], config.dtype
    seconds = roofline.time_layers(net, layers, device, dtype)
    machine = roofline.measure_machine(device)
    for layer, row, measured in zip(layers, result["layers"], seconds, strict=True):
        row |= {
            "bound": machine.bound(layer, dtype),
            "predicted_seconds": machine.seconds(layer, dtype),
            "measured_seconds": measured,
            "flop_per_second": 2 * layer.macs / measured,
        }
    for key in ("predicted_seconds", "measured_seconds"):
        result["total"][key] = sum(row[key] for row in result["layers"])
    for row in (*result["layers"], result["total"]):
        row["share"] = row["predicted_seconds"] / row["measured_seconds"]
    result["machine"] = asdict(machine) | {"bandwidth": machine.bandwidth}
    dense = twin.dense_twin(config.model, shape, result["classes"]) if result["comparison"] else None
    nets = {result["model"]: net} | ({"dense twin": dense} if dense else {})
    parts = (True, False) if config.batch > 1 else (False,)
    result["steps"] = [
        {"network": name} | asdict(roofline.measure_step(each, shape, config.batch, machine, dtype, training))
        for training in parts
        for name, each in nets.items()
    ]
    shares = {row["name"]: row["share"] for row in result["layers"]}
    shares |= {call["call"]: call["share"] for step in result["steps"] for call in step["calls"]}
    if wrong := roofline.above_peak(shares):
        log.warning(wrong)
    return lambda plots: plots.draw_roofline(machine, layers, seconds, dtype)


def show(result: Record, form: str) -> None:
    """Prints what `count_costs` gave, as a table, json, csv (the layers, or the sweep, alone) or markdown."""
    if form == "json":
        print(json.dumps(result, indent=2))
        return
    if form == "csv":
        records = result["sweep"] if "sweep" in result else [*result["layers"], result["total"]]
        print(as_csv([{key: by_axis(value) for key, value in record.items()} for record in records]), end="")
        return
    for table in tables(result):
        if form == "markdown":
            print(as_markdown(table))
        else:
            table.show(CONSOLE)
    if peak := result.get("peak"):
        maps = ", ".join(f"{each['layer']} ({' x '.join(map(str, each['shape']))})" for each in peak["maps"])
        print(f"Peak of live maps: {peak['bytes']:,} bytes, in {peak['layer']}: {maps}.")
    if "no_comparison" in result:
        print(f"No comparison: {result['no_comparison']}.")
    elif "comparison" in result:
        print("1/C_out + 1/K²: a depthwise and a pointwise convolution over a standard one in their place.")


def tables(result: Record) -> list[Table]:
    """The tables of what `count_costs` gave."""
    if "sweep" in result:
        title = (
            f"3 x 3 convolution of {result['side']} x {result['side']} to {result['out_channels']} channels, separable "
            f"against standard, batch of {result['batch']}, {result['dtype']}"
        )
        if result["device"]:
            title += f", {', '.join(map(str, result['device'].values()))}"
        return [Table(title, SWEEP_COLUMNS, result["sweep"]).filled()]
    many = "" if result["batch"] == 1 else f" in a batch of {result['batch']}"
    size = " x ".join(map(str, result["shape"]))
    rows = [*result["layers"], result["total"]]
    sections = [Table(f"{result['model']}, {size}{many}, {result['dtype']}", LAYER_COLUMNS, rows).filled()]
    if blocks := result["comparison"]:
        sections.append(Table(f"{result['model']} and its dense twin, an image", BLOCK_COLUMNS, blocks))
    if machine := result.get("machine"):
        peaks = ", ".join(f"{name} {peak / 1e9:,.0f} GFLOP/s" for name, peak in machine["flops"].items())
        title = (
            f"Roofline of {', '.join(map(str, machine['device'].values()))}: {machine['bandwidth'] / 1e9:,.1f} GB/s "
            f"from memory, up to {max(machine['bandwidths'].values()) / 1e9:,.1f} from a cache, {peaks}"
        )
        sections.append(Table(title, ROOFLINE_COLUMNS, rows))
        title = f"Steps of {result['batch']} images: by the peaks, as the sum of their kernels alone, and measured"
        sections.append(Table(title, STEP_COLUMNS, result["steps"]))
    return sections


def as_markdown(table: Table) -> str:
    """A table in Markdown, under its title."""
    return "\n".join([f"**{table.title}**", "", *table.markdown()]) + "\n"


def layer_markdown(net: nn.Module, shape: Shape) -> str:
    """What each layer of a network costs, for one image in fp32, as a table in Markdown."""
    layers = counting.layers(net, shape)
    rows = layer_records(layers, peak_memory.live_maps(layers, (1, *shape)), shape, "fp32")
    return as_markdown(Table("Cost by layer, an image in fp32", LAYER_COLUMNS, rows).filled())


def column(heading: str, key: str, text: Callable[[Any], str] = str) -> Column:
    """A column of the records' `key`; empty where a record has none."""
    return Column(heading, lambda record: "" if record.get(key) is None else text(record[key]))


def by_axis(value: Any) -> Any:
    """A list as 3x32x32, anything else as it is."""
    return "x".join(f"{part:g}" for part in value) if isinstance(value, list) else value


def side(value: Sequence[float]) -> str:
    """One number for both axes where they are alike."""
    return by_axis(value[:1] if len(set(value)) == 1 else value)


def kib(value: int) -> str:
    return f"{value / 1024:,.1f}"


def microseconds(value: float) -> str:
    return f"{value * 1e6:,.1f}"


def milliseconds(value: float) -> str:
    return f"{value * 1e3:,.2f}"


count, decimal, ratio = "{:,}".format, "{:.2f}".format, "{:.4f}".format

LAYER_COLUMNS = [
    column("layer", "name"),
    column("kind", "kind"),
    column("kernel", "kernel", by_axis),
    column("stride", "stride", side),
    column("output", "output", by_axis),
    column("parameters", "parameters", count),
    column("MACs", "macs", count),
    column("MACs backward", "macs_backward", count),
    column("maps KiB", "activation_bytes", kib),
    column("live maps KiB", "live_bytes", kib),
    column("weights KiB", "weight_bytes", kib),
    column("FLOP/byte", "flop_per_byte", decimal),
    column("receptive field", "receptive_field", side),
    column("jump", "jump", side),
    column("effective", "effective_receptive_field"),
]
BLOCK_COLUMNS = [
    column("block", "block"),
    column("parameters", "parameters", count),
    column("dense", "dense_parameters", count),
    column("ratio", "parameter_ratio", ratio),
    column("MACs", "macs", count),
    column("dense", "dense_macs", count),
    column("ratio", "mac_ratio", ratio),
    column("1/C_out + 1/K²", "closed_form", ratio),
]
ROOFLINE_COLUMNS = [
    column("layer", "name"),
    column("kind", "kind"),
    column("FLOP/byte", "flop_per_byte", decimal),
    column("bound by", "bound"),
    column("predicted us", "predicted_seconds", microseconds),
    column("measured us", "measured_seconds", microseconds),
    column("of the roof", "share", "{:.0%}".format),
    column("GFLOP/s", "flop_per_second", lambda rate: f"{rate / 1e9:,.1f}"),
]
STEP_COLUMNS = [
    column("network", "network"),
    Column("part", itemgetter("part"), left=True),
    Column("kernels called", lambda step: str(len(step["calls"]))),
    Column("MiB moved", lambda step: f"{sum(call['moved_bytes'] for call in step['calls']) / 2**20:,.1f}"),
    Column("GFLOP", lambda step: f"{sum(call['flop'] for call in step['calls']) / 1e9:,.2f}"),
    column("ms by the peaks", "least_seconds", milliseconds),
    column("kernels alone", "alone_seconds", milliseconds),
    column("between them", "between_seconds", milliseconds),
    column("measured", "measured_seconds", milliseconds),
    Column("measured / peaks", lambda step: f"{step['measured_seconds'] / step['least_seconds']:.2f}"),
    Column("measured / alone and between",
           lambda step: f"{step['measured_seconds'] / (step['alone_seconds'] + step['between_seconds']):.2f}"),
]  # fmt: skip
SWEEP_COLUMNS = [
    column("C_in", "in_channels", count),
    column("MACs", "standard_macs", count),
    column("separable", "separable_macs", count),
    column("ratio", "macs_ratio", ratio),
    column("KiB", "standard_bytes", kib),
    column("separable", "separable_bytes", kib),
    column("ratio", "bytes_ratio", ratio),
    column("FLOP/byte", "standard_flop_per_byte", decimal),
    column("separable", "separable_flop_per_byte", decimal),
    column("us", "standard_seconds", microseconds),
    column("separable", "separable_seconds", microseconds),
    column("ratio", "seconds_ratio", ratio),
]
