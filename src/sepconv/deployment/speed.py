"""How fast exported networks are on this machine's CPU, in all and layer by layer."""

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sepconv.deployment.formats import ExportedFile, Pixels, find_layer, session_options
from sepconv.terminal import track

LATENCY_BATCH, THROUGHPUT_BATCH = 1, 128  # images at once
ROUNDS = 7  # turns of each file
TURN = 0.15  # seconds of a turn
WARM = 0.05  # seconds before it that do not count


@dataclass(frozen=True)
class Speed:
    """Medians over ROUNDS turns."""

    one_thread: float  # seconds of a batch of one image
    all_threads: float
    images_per_second: float  # in batches of THROUGHPUT_BATCH, on all threads


def measure(files: Sequence[ExportedFile]) -> list[Speed]:
    """The speeds of files, which take turns, so that what else the machine does meets all of them."""
    threads = torch.get_num_threads()
    # of each file: on how many threads, and how many images at once
    cases = ((1, LATENCY_BATCH), (threads, LATENCY_BATCH), (threads, THROUGHPUT_BATCH))
    generator = np.random.default_rng(0)
    calls = [[(file.run(count), generator.integers(0, 256, (batch, *file.record.shape), np.uint8))
              for count, batch in cases] for file in files]  # fmt: skip
    seconds = np.zeros((ROUNDS, len(files), len(cases)))
    for turn in track(range(ROUNDS), "measuring: turn"):
        for file, case in np.ndindex(len(files), len(cases)):
            seconds[turn, file, case] = time_batch(*calls[file][case])
    medians = np.median(seconds, axis=0).tolist()
    return [Speed(one, every, THROUGHPUT_BATCH / many) for one, every, many in medians]


def time_batch(run: Callable[[Pixels], object], pixels: Pixels) -> float:
    """Seconds of a call, the median of those of a turn."""
    ended = time.perf_counter() + WARM
    while time.perf_counter() < ended:
        run(pixels)
    seconds: list[float] = []
    ended += TURN
    while time.perf_counter() < ended or not seconds:
        started = time.perf_counter()
        run(pixels)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def time_layers(file: ExportedFile, runs: int = 300) -> dict[str, float]:
    """Seconds of each layer of an ONNX file, at a batch of one image on one thread, as onnxruntime tells them.

    They are the mean of the faster half of `runs`, for single ones are told in whole microseconds.
    What belongs to no layer stands under its kind of operation: QuantizeLinear, ReorderOutput.
    """
    import onnx
    import onnxruntime

    pixels = np.zeros((1, *file.record.shape), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(1)
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        session = onnxruntime.InferenceSession(file.content, options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(["logits"], {"pixels": pixels})
        events = json.loads(Path(session.end_profiling()).read_text())
        optimized = onnx.load(f"{folder}/optimized.onnx", load_external_data=False)
    layers = {node.name: layer for node in optimized.graph.node if (layer := find_layer(node.input))}
    kernels: dict[tuple[str, str], list[float]] = defaultdict(list)  # by name and kind: seconds of each run
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kernels[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(event["dur"] / 1e6)
    totals: dict[str, float] = defaultdict(float)
    for (name, kind), seconds in kernels.items():
        totals[layers.get(name, kind)] += statistics.mean(sorted(seconds)[: runs // 2])
    return dict(totals)
