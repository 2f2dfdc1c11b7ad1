"""int8 after training: an ONNX network with weights and maps in 8 bits, calibrated on images.

Weights are whole numbers from -128 to 127 with a scale, one for each output channel of a layer; maps have one scale and
a number that stands for 0 (Jacob et al., arXiv 1712.05877, section 2.1; Krishnamoorthi, arXiv 1806.08342, section 3).
onnxruntime's static quantisation makes them. What comes before the first layer, the normalisation of the pixels, stays
in fp32.

Maps are unsigned on an x86 processor, else signed. Why: its instructions multiply unsigned by signed numbers, and of
signed maps onnxruntime (1.32) turns those that feed two layers, as around a residual block, back to fp32.
"""

import platform
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sepconv import InputError
from sepconv.deployment.equalization import BATCH, equalize
from sepconv.deployment.formats import LAYERS, MISSING, quiet
from sepconv.devices import read_processor


class Quantizer:
    """An ONNX network, prepared once, and quantised whole or a layer at a time.

    Args:
        model: an onnx.ModelProto in fp32, as `to_onnx` gives it.
        images: uint8 (N, C, H, W) to calibrate on: the ranges of maps are those that occur with them.
        per_channel: a scale for each output channel of a layer's weights, instead of one a layer.
        equalized: give the channels of each map like ranges first.

    Raises InputError where the libraries are not installed.
    """

    def __init__(self, model: Any, images: Tensor, per_channel: bool = True, equalized: bool = False) -> None:
        try:
            import onnx
            from onnxruntime.quantization.shape_inference import quant_pre_process
        except ImportError as error:
            raise InputError(MISSING) from error
        self.images, self.per_channel = images, per_channel
        with tempfile.TemporaryDirectory() as folder, quiet():
            source, prepared = Path(folder) / "model.onnx", Path(folder) / "prepared.onnx"
            onnx.save(model, source)
            quant_pre_process(str(source), str(prepared))
            self.prepared = onnx.load(prepared)
        if equalized:
            self.prepared = equalize(self.prepared, images)
        self.layers = [node.name for node in self.prepared.graph.node if node.op_type in LAYERS]

    def quantize(self, layers: Sequence[str] | None = None) -> Any:
        """The network in int8 as an onnx.ModelProto; where `layers` are given, those alone, the others in fp32."""
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self, images: Tensor) -> None:
                self.batches: Iterator[Tensor] = iter(images.split(BATCH))

            def get_next(self) -> dict[str, Any] | None:
                batch = next(self.batches, None)
                return None if batch is None else {"pixels": np.ascontiguousarray(batch.numpy())}

        with tempfile.TemporaryDirectory() as folder, quiet():
            source, target = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
            onnx.save(self.prepared, source)
            quantize_static(
                str(source), str(target), Reader(self.images), quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8 if on_x86() else QuantType.QInt8, weight_type=QuantType.QInt8,
                per_channel=self.per_channel,
                reduce_range=needs_reduced_range(), nodes_to_quantize=layers, nodes_to_exclude=self.before_layers(),
            )  # fmt: skip
            return onnx.load(target)

    def before_layers(self) -> list[str]:
        """Names of the nodes that no layer feeds."""
        fed: set[str] = set()  # maps that come from a layer
        before = []
        for node in self.prepared.graph.node:
            if node.op_type in LAYERS or fed & set(node.input):
                fed |= set(node.output)
            else:
                before.append(node.name)
        return before


def needs_reduced_range() -> bool:
    """Whether weights must have 7 bits: sums of two 8-bit products overflow on an x86 processor without VNNI."""
    return on_x86() and not {"avx512_vnni", "avx_vnni"} & set(read_processor().get("flags", "").split())


def on_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")
