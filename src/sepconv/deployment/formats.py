"""Classifiers as files, and what such a file says of itself.

A file takes plain pixels, uint8 (B, C, H, W) from 0 to 255 with any B, under the name `pixels`, and gives `logits`,
float32 (B, classes). It has the run's configuration and figures with it, in ONNX's `metadata_props` or torch.export's
extra files, so that nothing else must be kept to know what it is.
"""

import io
import json
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sepconv import InputError
from sepconv.config import EXPORTED
from sepconv.config.keys import TrainConfig
from sepconv.config.read import complete, read
from sepconv.config.rules import check_shape, checked, number, one_of
from sepconv.files import open_file
from sepconv.packing import unpack
from sepconv.reading import check_fields
from sepconv.text import shorten
from sepconv.training import runs
from sepconv.training.classifier import ImageClassifier
from sepconv.training.runs import Code, Result

RECORD = "sepconv"  # the key of what a file says of itself
MOST = 2**31  # bytes of a file: ONNX's own limit
LAYERS = ("Conv", "Gemm", "MatMul")  # what has weights, in ONNX
BATCH = 500  # images that a file classifies at once, where it is asked for many
PLAIN = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # has torch load plain values alone, wherever it loads
MISSING = "ONNX files need onnx, onnxscript and onnxruntime: python -m pip install 'sepconv[deploy]'"

Pixels = NDArray[np.uint8]  # (B, C, H, W)
Logits = NDArray[np.float32]  # (B, classes)
Run = Callable[[Pixels], Logits]


@dataclass(kw_only=True)
class FileFigures:
    """Accuracies are shares of 1, of the file and not of its run."""

    format: str = one_of(*EXPORTED)
    precision: str = one_of("fp32", "int8")
    shape: list[int] = checked(check_shape)  # channels, height, width of an image
    classes: list[str]
    test_accuracy: float = number(least=0, most=1)
    right: str  # which test images it classifies rightly: `pack`
    val_accuracy: float = number(least=0, most=1)
    run: str  # name of the run's directory
    date: str
    git: dict[str, Any] = checked(partial(check_fields, Code))  # the code that wrote it
    command: str

    @property
    def name(self) -> str:
        """Precision and format in words."""
        return f"{self.precision} {'ONNX' if self.format == 'onnx' else self.format}"


@dataclass(kw_only=True)
class FileRecord(FileFigures):
    """What a file says of itself."""

    config: TrainConfig  # of the run, without the places of a machine
    result: Result  # of the run

    @classmethod
    def parse(cls, text: str) -> "FileRecord":
        """A record from JSON. Raises InputError, or another error, for what is none."""
        values = json.loads(text)
        check_fields(FileFigures, "", values)
        config = read(TrainConfig, values.get("config"))
        check_fields(Result, "result", values.get("result"))
        result = Result(
            **{each.name: values["result"][each.name] for each in fields(Result) if each.name in values["result"]}
        )
        figures = {each.name: values[each.name] for each in fields(FileFigures)}
        return cls(**figures, config=replace(config, model=complete(config.model)), result=result)


@dataclass(frozen=True)
class ExportedFile:
    """A file that classifies images."""

    path: Path
    record: FileRecord
    content: bytes

    def run(self, threads: int | None = None) -> Run:
        """What gives logits of pixels, on so many threads of the CPU; by default as many as there are cores.

        Raises InputError for a file that the library of its format does not run.
        """
        try:
            return RUN[self.record.format](self.content, threads)
        except InputError:
            raise
        except Exception as error:  # of many kinds, the libraries' own among them
            reason = shorten(" ".join(str(error).split()), 200)
            raise InputError(f"{self.path} does not run ({type(error).__name__}: {reason}): export it again") from error

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images, uint8 (B, C, H, W), in batches."""
        return classify(self.run(), images)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Of each test image, whether the file classifies it rightly.

        Raises InputError where that is not told, or is not what its accuracy says.
        """
        count = self.record.result.images["test"]
        try:
            right = unpack(self.record.right, count)
        except ValueError as error:
            raise InputError(f"{self.path} does not tell which test images it classifies rightly: {error}") from error
        if abs(float(right.mean()) - self.record.test_accuracy) > runs.ROUNDED:
            raise InputError(f"{self.path} tells of other test images than of its accuracy: export it again")
        return right


def classify(run: Run, images: Tensor) -> Tensor:
    """Logits (B, classes) of images, uint8 (B, C, H, W), in batches."""
    parts = [run(np.ascontiguousarray(part.numpy())) for part in images.split(BATCH)]
    return torch.from_numpy(np.concatenate(parts))


class PixelClassifier(nn.Module):
    """A classifier without the means of its training: logits (B, classes) of plain pixels, uint8 (B, C, H, W)."""

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.normalize, self.net = classifier.normalize, classifier.net

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(self.normalize(pixels))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what exporters say of their own inside from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def export_program(classifier: ImageClassifier) -> torch.export.ExportedProgram:
    """The classifier as torch.export's program of plain pixels."""
    shape = classifier.hparams["images"]["shape"]
    pixels = torch.zeros(2, *shape, dtype=torch.uint8)
    module = PixelClassifier(classifier).eval().to(memory_format=torch.contiguous_format)
    with quiet(), torch.no_grad():
        return torch.export.export(module, (pixels,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def to_onnx(classifier: ImageClassifier) -> Any:
    """The classifier as an onnx.ModelProto, each layer under its module's name.

    Norms are folded into the convolutions that they directly follow; those after a pooling, say, stay.

    Raises InputError where the libraries are not installed, or ONNX has no form of what the network computes.
    """
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise InputError(MISSING) from error
    program = export_program(classifier)
    try:
        with quiet():
            exported = torch.onnx.export(
                program, (), input_names=["pixels"], output_names=["logits"], dynamo=True, verbose=False
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = shorten(" ".join(str(error.__cause__ or error).split()), 200)
        raise InputError(f"this network has no form in ONNX ({reason}): choose format=torch_export") from error
    assert exported is not None
    model = exported.model_proto
    name_layers(model)
    return model


def name_layers(model: Any) -> None:
    """Names layers after their modules, and the batch's size; removes notes of the exporter.

    The notes have paths of the machine, and take half of a small file. A layer that is used again has a number.
    """
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    uses: dict[str, int] = defaultdict(int)
    for node in graph.node:
        if node.op_type in LAYERS and (layer := find_layer(node.input)):
            uses[layer] += 1
            node.name = layer if uses[layer] == 1 else f"{layer}_{uses[layer]}"
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def find_layer(inputs: Iterable[str]) -> str | None:
    """The module whose weights or bias are among the inputs of a node, by their names; None for none."""
    for name in inputs:
        for part in (".weight", ".bias"):
            module, found, _ = name.partition(part)
            if found and module.startswith("net."):
                return module.removeprefix("net.")
    return None


def write_onnx(model: Any, record: FileRecord | None = None) -> bytes:
    """The content of an ONNX file, with its record, whose main figures stand there by themselves too."""
    import onnx

    if record is None:
        return bytes(model.SerializeToString())
    facts = {
        "classes": json.dumps(record.classes),
        "image_shape": json.dumps(record.shape),
        "test_accuracy": f"{record.test_accuracy:.6f}",
        "commit": str(record.git["sha"]),
        "command": record.command,
        RECORD: json.dumps(asdict(record)),
    }
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, facts)
    model.producer_name = "sepconv"
    return bytes(model.SerializeToString())


def write_program(program: torch.export.ExportedProgram, record: FileRecord | None = None) -> bytes:
    """The content of a file of torch.export, with its record."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={RECORD: json.dumps(record and asdict(record))})
    return file.getvalue()


def read_file(place: str | Path) -> ExportedFile:
    """A file that scripts/export.py wrote. Raises InputError for any other."""
    path = Path(place)
    formats = {suffix: name for name, suffix in EXPORTED.items()}
    if path.suffix not in formats:
        raise InputError(f"{path} is no exported network: give a file that ends in {' or '.join(formats)}")
    try:
        with open_file(path) as file:
            content = file.read(MOST + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    try:
        record = FileRecord.parse(READ[formats[path.suffix]](content))
        if record.format != formats[path.suffix]:
            raise ValueError(f"it says that it is {record.format}")
    except InputError as error:
        raise InputError(f"{path} is not as scripts/export.py writes it: {error}") from error
    except Exception as error:  # of a damaged file, of many kinds
        reason = shorten(" ".join(str(error).split()), 200)
        raise InputError(f"{path} is not as scripts/export.py writes it ({type(error).__name__}: {reason})") from error
    return ExportedFile(path, record, content)


def read_onnx_record(content: bytes) -> str:
    """What an ONNX file says of itself."""
    try:
        import onnx
    except ImportError as error:
        raise InputError(MISSING) from error
    model = onnx.load_model_from_string(content)
    found = {each.key: each.value for each in model.metadata_props}
    if RECORD not in found:
        raise InputError("it has no record of a run; it was made by another program")
    return found[RECORD]


def load_program(content: bytes, extra_files: dict[str, Any] | None = None) -> torch.export.ExportedProgram:
    """The program of a file's content, its weights as plain values, which run no code of the file's.

    Its expressions PyTorch evaluates all the same: a .pt2 file of somebody else must be trusted.
    """
    before = os.environ.get(PLAIN)
    os.environ[PLAIN] = "1"
    try:
        with quiet():
            return torch.export.load(io.BytesIO(content), extra_files=extra_files)
    finally:
        os.environ.pop(PLAIN)
        if before is not None:
            os.environ[PLAIN] = before


def read_program_record(content: bytes) -> str:
    """What a file of torch.export says of itself."""
    found = {RECORD: ""}
    load_program(content, found)
    if not found[RECORD]:
        raise InputError("it has no record of a run; it was made by another program")
    return found[RECORD]


def run_onnx(content: bytes, threads: int | None) -> Run:
    """An ONNX file in onnxruntime, on the CPU."""
    session = open_session(content, threads)
    return lambda pixels: session.run(["logits"], {"pixels": pixels})[0]


def open_session(content: bytes, threads: int | None = None) -> Any:
    """onnxruntime's session of an ONNX file, on the CPU. Raises InputError where the library is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(MISSING) from error
    return onnxruntime.InferenceSession(content, session_options(threads), providers=["CPUExecutionProvider"])


def session_options(threads: int | None) -> Any:
    """Those of onnxruntime: so many threads, which spin between two calls where they are several, and no warnings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads == 1 else "1")
    return options


def run_program(content: bytes, threads: int | None) -> Run:
    """A file of torch.export in PyTorch, on the CPU."""
    module = load_program(content).module()

    def run(pixels: Pixels) -> Logits:
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            with torch.no_grad():
                return np.asarray(module(torch.from_numpy(pixels)).numpy())
        finally:
            torch.set_num_threads(before)

    return run


# by format: a classifier as the library's own object, that as a file's content, what a content says of itself, and what
# runs it on so many threads
CONVERT: dict[str, Callable[[ImageClassifier], Any]] = {"onnx": to_onnx, "torch_export": export_program}
WRITE: dict[str, Callable[[Any, FileRecord | None], bytes]] = {"onnx": write_onnx, "torch_export": write_program}
READ: dict[str, Callable[[bytes], str]] = {"onnx": read_onnx_record, "torch_export": read_program_record}
RUN: dict[str, Callable[[bytes, int | None], Run]] = {"onnx": run_onnx, "torch_export": run_program}


def classify_with(network: Any, form: str, images: Tensor) -> Tensor:
    """Logits (B, classes) of images, uint8 (B, C, H, W), by a library's own object, as a file of it would give them."""
    return classify(RUN[form](WRITE[form](network, None), None), images)
