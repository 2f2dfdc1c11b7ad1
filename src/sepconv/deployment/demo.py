"""A page on this machine, on which two networks classify what one draws or drops.

The page is Gradio's, which is imported only here, and only once its reports to others are turned off.
"""

import base64
import io
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sepconv import InputError
from sepconv.config import EXPORTED
from sepconv.config.keys import DemoConfig
from sepconv.data.images import decode
from sepconv.data.pictures import Preparation
from sepconv.deployment.formats import classify, run_onnx, to_onnx, write_onnx
from sepconv.deployment.predict import Network, file_network, run_network
from sepconv.deployment.speed import TURN, time_batch
from sepconv.study.compare import Run, make_labels, read_exported, read_run
from sepconv.terminal import CONSOLE
from sepconv.text import escape_markdown
from sepconv.training.classifier import ImageClassifier
from sepconv.training.runs import Result

HOST = "127.0.0.1"  # the only address that is served: of this machine, for this machine
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # nothing is told to others
MISSING = "the page needs Gradio, which `make demo` installs; elsewhere: python -m pip install 'sepconv[demo]'"
TOP = 5  # classes that are shown, at most
SIDE, STROKE = 280, 22  # pixels of the canvas: its side; a stroke, about as thick as MNIST's once it is that small
SEEN = 168  # pixels, at most: the side that a network's small image is enlarged to
SHOWN = 560  # pixels, at most: the longer side of a dropped picture, as the page shows it
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # the system's own
SCRIPT = Path(__file__).with_name("canvas.js")
CANVAS = f'<canvas width="{SIDE}" height="{SIDE}" aria-label="Draw here"></canvas><button type="button">Clear</button>'
CANVAS_STYLE = """
canvas {border: 1px solid #888; cursor: crosshair; touch-action: none}
button {display: block; margin-top: 8px; padding: 4px 16px; border: 1px solid #888; border-radius: 4px; font-size: 14px}
"""
STYLE = ".name {min-height: 4.83em} .seen img {image-rendering: pixelated}"


@dataclass(frozen=True)
class Answer:
    """What a network says of a picture."""

    probabilities: dict[str, float]  # of all classes, by name
    seconds: float  # of one image on one thread, from pixels to probabilities
    pixels: NDArray[np.uint8]  # (C, H, W): what it saw
    changes: list[str]  # of the picture, before it was classified


@dataclass(frozen=True)
class Contender:
    """One of the two networks."""

    label: str
    run: Run
    network: Network
    prepare: Preparation

    def answer(self, picture: Image.Image) -> Answer:
        """What it says of a picture in RGB."""
        pixels, changes = self.prepare.apply(picture)
        (probabilities,) = self.network.probabilities(pixels[None])
        by_class = dict(zip(self.network.classes, probabilities.tolist(), strict=True))
        return Answer(by_class, time_batch(self.network.probabilities, pixels[None]), pixels, changes)


def demo(config: DemoConfig) -> None:
    """Serves the page until a signal ends it.

    Raises InputError where Gradio is missing, for what is no network, for two of other classes than each other's, and
    for a port that cannot be had.
    """
    load_gradio()
    torch.set_num_threads(1)
    contenders = read_contenders(config.networks)
    with serve(contenders, config.port) as address:
        names = " and ".join(contender.label for contender in contenders)
        CONSOLE.print(f"{names}: {address} (this machine only; Ctrl-C ends it)", soft_wrap=True)
        if config.open:
            webbrowser.open(address)
        while True:
            threading.Event().wait(3600)


def load_gradio() -> Any:
    """Gradio, silenced. Raises InputError where it is not installed."""
    os.environ.update(QUIET)
    try:
        import gradio
    except ImportError as error:
        raise InputError(MISSING) from error
    return gradio


def read_contenders(places: Sequence[str]) -> list[Contender]:
    """The networks of run directories or exported files, each on one thread of the CPU.

    Raises InputError for any other place, for a run that is not finished, and where the classes are not the same.
    """
    found = [read_place(Path(place)) for place in places]
    classes = [network.classes for _, network in found]
    if any(each != classes[0] for each in classes):
        named = "; ".join(f"{run.path}: {run.config.data.name}, {len(network.classes)} classes"
                          for run, network in found)  # fmt: skip
        raise InputError(f"networks of other classes cannot be set side by side ({named}): give two of the same")
    labels = make_labels([run for run, _ in found])
    return [Contender(label, run, network, Preparation(network.data, network.shape))
            for label, (run, network) in zip(labels, found, strict=True)]  # fmt: skip


def read_place(path: Path) -> tuple[Run, Network]:
    """A finished run or an exported file, and its network."""
    if not os.path.lexists(path):
        raise InputError(f"{path} is not there: give networks=[A,B], each a run's directory or a file of export.py")
    if path.suffix in EXPORTED.values():
        run = read_exported(path)
        assert run.file is not None
        return run, file_network(run.file, threads=1)
    return read_run(path), compiled_network(path)


def compiled_network(path: Path) -> Network:
    """The network of a run as a file in ONNX would have it: PyTorch takes longer to call small layers than to compute
    them, so that its times would not tell networks apart.
    """
    network = run_network(path)
    assert isinstance(network.classify, ImageClassifier)
    run = run_onnx(write_onnx(to_onnx(network.classify)), threads=1)
    return replace(network, classify=lambda images: classify(run, images))


def read_drawing(drawing: str) -> Image.Image | None:
    """What canvas.js says is drawn, black on white in RGB; None where nothing is."""
    if not drawing:
        return None
    content = base64.b64decode(drawing.removeprefix("data:image/png;base64,"))
    return Image.open(io.BytesIO(content), formats=["PNG"]).convert("RGB")


def read_dropped(path: str) -> tuple[Image.Image, list[str]]:
    """As `decode`, but that the error names the file without the folder into which Gradio put it."""
    try:
        return decode(path)
    except InputError as error:
        raise InputError(str(error).replace(f"{Path(path).parent}{os.sep}", "")) from error


def enlarge(pixels: NDArray[np.uint8]) -> Image.Image:
    """An image (C, H, W) with each pixel as a square."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    times = max(1, SEEN // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def describe(result: Result) -> str:
    """What a network costs and reaches, in Markdown."""
    lines = (f"{result.parameters:,} parameters", f"{result.macs:,} MACs", f"{result.test_accuracy:.2%} test accuracy")
    return "  \n".join(lines)


def show(answer: Answer | None, remarks: Sequence[str] = ()) -> list[Any]:
    """What stands in a network's column: probabilities by class, the time, what it saw, and what was changed.

    Args:
        remarks: what `decode` says of the picture.
    """
    if answer is None:
        return [None, "", None, ""]
    changes = ", ".join([*remarks, *answer.changes]) or "as it is"
    return [
        answer.probabilities, f"**{1000 * answer.seconds:.2f} ms** an image", enlarge(answer.pixels),
        f"What it saw: {escape_markdown(changes)}",
    ]  # fmt: skip


def build(contenders: Sequence[Contender]) -> Any:
    """The page, a `gradio.Blocks`. It has a canvas where both networks were trained on digits."""
    gr = load_gradio()
    drawable = all(contender.prepare.crop == "ink" for contender in contenders)
    title = f"{'Draw a digit' if drawable else 'Drop a picture'}, and two networks say what it is"
    top = min(TOP, len(contenders[0].network.classes))

    def answer(picture: Image.Image | None, remarks: Sequence[str] = ()) -> list[Any]:
        cells = []
        for contender in contenders:
            cells += show(None if picture is None else contender.answer(picture), remarks)
        return cells

    def draw(drawing: str) -> list[Any]:
        return answer(read_drawing(drawing))

    def drop(path: str | None) -> list[Any]:
        if path is None:
            return [gr.Image(visible=False), "", *answer(None)]
        try:
            picture, remarks = read_dropped(path)
        except InputError as error:
            return [gr.Image(visible=False), escape_markdown(str(error)), *answer(None)]
        shown = picture.copy()
        shown.thumbnail((SHOWN, SHOWN))
        return [gr.Image(shown, visible=True), "", *answer(picture, remarks)]

    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"# {title}\nThe page and the networks are on this machine, and what you draw or drop stays here.")
        with gr.Row():
            with gr.Column(scale=4, min_width=SIDE + 10):
                if drawable:
                    with gr.Tab("Draw"):
                        canvas = gr.HTML(
                            "", html_template=CANVAS, css_template=CANVAS_STYLE, js_on_load=SCRIPT.read_text(),
                            stroke=STROKE,
                        )  # fmt: skip
                with gr.Tab("Drop a picture"):
                    file = gr.File(label="JPEG, PNG, TIFF, WebP, BMP or PPM", height=140)
                    refusal = gr.Markdown()
                    dropped = gr.Image(type="pil", format="png", interactive=False, buttons=[], show_label=False,
                                       visible=False)  # fmt: skip
            cells = []
            for contender in contenders:
                with gr.Column(scale=3, min_width=220):
                    gr.Markdown(f"**{escape_markdown(contender.label)}**", elem_classes="name")
                    gr.Markdown(describe(contender.run.result))
                    cells += [
                        gr.Label(num_top_classes=top, show_label=False),
                        gr.Markdown(),
                        gr.Image(type="pil", format="png", interactive=False, buttons=[], show_label=False,
                                 height=SEEN + 20, elem_classes="seen"),
                        gr.Markdown(),
                    ]  # fmt: skip
        gr.Markdown(
            "MACs: multiply-accumulates of one image. Milliseconds: of one image, from pixels to probabilities, on "
            f"one thread of the CPU, the median of the calls in {TURN} seconds, measured anew for each picture. "
            "Bringing the picture to the size and the look of the training images is not in it. Networks run in "
            "onnxruntime, those of .pt2 files in PyTorch."
        )
        options = {"show_progress": "hidden", "trigger_mode": "always_last", "concurrency_id": "networks",
                   "concurrency_limit": 1}  # fmt: skip
        if drawable:
            canvas.submit(draw, canvas, cells, **options)
        file.change(drop, file, [dropped, refusal, *cells], **options)
    return page


@contextmanager
def serve(contenders: Sequence[Contender], port: int | None) -> Iterator[str]:
    """The address of the page, which is served within.

    Raises InputError for a port that cannot be had.
    """
    gr = load_gradio()
    proxied = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    os.environ["no_proxy"] = f"{proxied},{HOST}".lstrip(",")  # Gradio asks the page whether it is there
    port = port or find_port()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of the pictures that are drawn and dropped
        page = build(contenders)
        try:
            page.launch(
                server_name=HOST, server_port=port, share=False, inbrowser=False, quiet=True, prevent_thread_lock=True,
                footer_links=[], ssr_mode=False, mcp_server=False, enable_monitoring=False, root_path="",
                theme=gr.themes.Default(**FONTS), css=STYLE,
            )  # fmt: skip
        except OSError as error:
            raise InputError(f"port={port} is in use, or not to be had: give port=0 for a free one") from error
        try:
            yield f"http://{HOST}:{port}"
        finally:
            page.close(verbose=False)


def find_port() -> int:
    """A free one."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
