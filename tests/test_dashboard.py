"""What TensorBoard's own server says of a run."""

import io
import json
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard import program

from sepconv.networks import build
from sepconv.training.dashboard import Dashboard, draw_confusion, filters

SHORT = ["recipe.epochs=2", "trainer.limit_batches=4"]


@pytest.fixture
def serve() -> Callable[[Path], Callable[..., Any]]:
    """Starts TensorBoard on a folder, on a free port: a function that asks one of its addresses."""

    def start(folder: Path) -> Callable[..., Any]:
        server = program.TensorBoard()
        server.configure(argv=[None, "--logdir", str(folder), "--port", "0", "--load_fast", "false"])
        url = server.launch()

        def get(path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
            address = f"{url}data/{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
            data = None if body is None else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=60) as answer:
                content = answer.read()
            return json.loads(content) if "json" in answer.headers["Content-Type"] else content

        return get

    return start


def test_tensorboard_shows_a_run(train: Callable[..., Path], serve: Callable[[Path], Callable[..., Any]]) -> None:
    runs = [train(f"model={model}", *SHORT) for model in ("baseline", "separable")]
    folder = runs[0].parents[2]
    names = [str(run.relative_to(folder)) for run in runs]
    get = serve(folder)
    assert set(names) <= set(get("runs"))

    layout = get("plugin/custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"] for group in layout["category"] for chart in group["chart"]}
    assert [group["title"] for group in layout["category"]] == ["Comparison", "Training"]
    assert list(charts)[:3] == [
        "validation accuracy",
        "validation loss",
        "images/s in training",
    ]  # once each, though both runs have it
    for name in names:  # and each chart has something to show of each run
        for tag in [tag for tags in charts.values() for tag in tags]:
            found = get("plugin/custom_scalars/scalars", run=name, tag=tag)
            assert found["regex_valid"]
            assert found["tag_to_events"], tag

    images = get("plugin/images/tags")
    for name in names:
        assert {"images/original", "images/augmented", "test/confusion", "test/mistakes"} <= set(images[name])
        assert any(tag.startswith("filters/first layer") for tag in images[name])
        sample = get("plugin/images/images", run=name, tag="images/augmented", sample="0")
        picture = get(f"plugin/images/individualImage?{sample[0]['query']}")
        assert Image.open(io.BytesIO(picture)).size == (548, 548)  # 8 x 8 of 64 pixels, 4 between
    assert any(tag.startswith("filters/depthwise") for tag in images[names[1]])
    assert not any(tag.startswith("filters/depthwise") for tag in images[names[0]])

    (text,) = get("plugin/text/text", run=names[1], tag="cost/text_summary")
    assert "<table>" in text["text"]
    assert "receptive field" in text["text"]
    curves = get("plugin/pr_curves/tags")
    assert len(curves[names[0]]) == 10

    experiment = get("plugin/hparams/experiment", {"experimentName": ""})
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {"result/test_accuracy", "result/parameters", "result/macs", "result/train_images_per_second"} <= metrics
    columns = {info["name"] for info in experiment["hparamInfos"]}
    assert {"model", "data", "seed", "optimizer.lr", "epochs"} <= columns
    assert len(columns) <= 10  # parallel coordinates of more cannot be read


def test_dashboard_leaves_training_as_it_is(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What it draws costs training no random number, and what it takes is recorded."""
    run = train("seed=3", *SHORT)
    result = json.loads((run / "result.json").read_text())
    assert 0 < result["dashboard_seconds"] < 30
    monkeypatch.setattr(Dashboard, "on_train_epoch_end", lambda *_: None)
    monkeypatch.setattr(Dashboard, "show_test", lambda *_: None)
    bare = train("seed=3", *SHORT)
    one, other = (torch.load(r / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for r in (run, bare))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_filters_in_colour_and_by_channel() -> None:
    colour = filters(build("separable", (3, 32, 32), 10))
    first = next(picture for tag, picture in colour.items() if tag.startswith("first layer"))
    assert not torch.equal(first[0], first[1])
    grey = filters(build("baseline", (1, 28, 28), 10))
    assert list(grey) == ["first layer conv1.conv"]
    (picture,) = grey.values()
    assert torch.equal(picture[0], picture[1])
    assert float(picture.min()) == 0.0


def test_confusion_counts() -> None:
    labels, predicted = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 0])
    figure = draw_confusion(predicted, labels, ("a", "b", "c"))
    texts = {(text.get_position(), text.get_text()) for text in figure.axes[0].texts}
    assert texts == {((0, 0), "1"), ((1, 0), "1"), ((1, 1), "1"), ((2, 2), "1"), ((0, 2), "1")}
    assert "60.00%" in figure.axes[0].get_title()
