"""Exported networks: files that do as their runs do, what they say of themselves, and what is refused."""

import csv
import io
import json
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SLIM, Outcome, data_config, refused, script
from torch import nn

from sepconv import InputError
from sepconv.config.keys import ExportConfig, SourceConfig
from sepconv.config.read import complete, read
from sepconv.costs import counting
from sepconv.costs.peak_memory import live_bytes, live_maps
from sepconv.data.datasets import load
from sepconv.deployment import export, speed
from sepconv.deployment.equalization import Weights, equalize, find_ranges, find_streams, largest
from sepconv.deployment.formats import (
    ExportedFile,
    classify,
    classify_with,
    export_program,
    read_file,
    run_onnx,
    session_options,
    to_onnx,
    write_onnx,
)
from sepconv.deployment.quantization import Quantizer, on_x86
from sepconv.deployment.speed import time_layers
from sepconv.networks import names
from sepconv.packing import pack
from sepconv.training.classifier import ImageClassifier, describe_images
from sepconv.training.runs import fingerprint, read_config, read_result

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

Command = Callable[..., Outcome]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Speeds are measured over little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "ROUNDS", 1)
        patch.setattr(speed, "TURN", 0.02)
        yield


def make_run(folder: Path, *arguments: str) -> Path:
    script("train", "trainer=cpu", "recipe.epochs=8", f"runs={folder}", *arguments)
    (run,) = folder.glob("digits/*/*")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a trained run."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of its dense twin."""
    return make_run(tmp_path_factory.mktemp("twin"), "model.conv=dense")


@pytest.fixture(scope="module")
def exported(run: Path, twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run's files in fp32 and int8, with the figures of its twin."""
    folder = tmp_path_factory.mktemp("exported")
    script("export", f"run={run}", f"twin={twin}", "int8=true", f"output={folder}")
    return folder


def test_files_do_as_their_run(command: Command, exported: Path, run: Path, twin: Path, tmp_path: Path) -> None:
    """Their logits, their record and their figures; evaluate.py and compare.py take them."""
    assert sorted(path.name for path in exported.iterdir()) == [
        "separable-digits-int8.onnx", "separable-digits.onnx", "separable-digits.onnx.json",
    ]  # fmt: skip
    fp32, int8 = (read_file(exported / f"separable-digits{end}.onnx") for end in ("", "-int8"))
    source = export.read_source(str(run), SourceConfig())
    images, labels = source.dataset[source.dataset.test]
    assert (fp32.classify(images) - source.test).abs().max() < 1e-4
    portable = replace(read_result(run), overrides=["trainer=cpu", "recipe.epochs=8"])
    assert fp32.record.result == int8.record.result == portable
    for file, precision in ((fp32, "fp32"), (int8, "int8")):
        hits = file.classify(images).argmax(1) == labels
        assert file.record.precision == precision
        assert file.record.test_accuracy == pytest.approx(float(hits.double().mean()), abs=1e-6)
        assert file.right.tolist() == hits.tolist()
        assert file.record.run == run.name
        assert file.record.config.model == source.run.config.model
        facts = {each.key: each.value for each in onnx.load_model_from_string(file.content).metadata_props}
        assert json.loads(facts["classes"]) == list("0123456789")
        assert json.loads(facts["image_shape"]) == list(source.dataset.shape)
        assert facts["commit"] == str(file.record.git["sha"])
        assert facts["command"] == f"python scripts/export.py run={run.name} twin={twin.name} int8=true"
        assert not [place for place in (run.parents[2], REPOSITORY) if str(place).encode() in file.content]
    assert int8.record.test_accuracy > 0.8
    assert len(int8.content) < 0.6 * len(fp32.content)
    rows = json.loads((exported / "separable-digits.onnx.json").read_text())["files"]
    assert [(row["run"], row["precision"]) for row in rows] == [
        (each.name, precision) for each in (run, twin) for precision in ("fp32", "int8")
    ]
    assert ["model.conv=dense" in row["network"] for row in rows] == [False, False, True, True]
    assert rows[0]["peak_bytes"] == 4 * rows[1]["peak_bytes"] > 0
    assert all(row["one_thread"] > 0 < row["images_per_second"] for row in rows)
    outcome = command("evaluate", f"file={int8.path}", "trainer=cpu")
    assert outcome.out.count(f"{int8.record.test_accuracy:.2%}") == 2, outcome.out
    outcome = command("compare", str(run.parent), str(fp32.path), str(int8.path), f"output={tmp_path}/comparison")
    assert outcome.status == 0, outcome.err
    with (tmp_path / "comparison/networks.csv").open() as table:
        networks = {row["network"]: row for row in csv.DictReader(table)}
    assert set(networks) == {"separable", "separable, fp32 ONNX", "separable, int8 ONNX"}
    accuracy = float(networks["separable, int8 ONNX"]["test_accuracy"])
    assert accuracy == pytest.approx(int8.record.test_accuracy, abs=1e-6)
    assert networks["separable, int8 ONNX"]["eval_images_per_second"] == ""


def test_any_number_of_images(exported: Path) -> None:
    file = read_file(exported / "separable-digits.onnx")
    dataset = load(data_config("digits", image_size=file.record.shape[1]))
    images, _ = dataset[dataset.test[:7]]
    singly = torch.cat([file.classify(image[None]) for image in images])
    assert torch.allclose(file.classify(images), singly, atol=1e-5)


def test_layers_have_times(exported: Path) -> None:
    """In both precisions each convolution is known by its module, and what is none by its kind."""
    fp32, int8 = (time_layers(read_file(exported / f"separable-digits{end}.onnx"), 20) for end in ("", "-int8"))
    layers = {"stem.conv", "classifier"} | {
        f"blocks.{block}.{step}.conv" for block in range(4) for step in ("depthwise", "pointwise")
    }
    assert layers <= fp32.keys()
    assert layers <= int8.keys()
    assert "QuantizeLinear" in int8
    assert min(*fp32.values(), *int8.values()) > 0


def test_a_run_is_copied_to_be_shared(command: Command, run: Path, tmp_path: Path) -> None:
    """With all that evaluates it and tells of it, and nothing of this machine."""
    outcome = command("export", f"run={run}", "format=run", f"output={tmp_path}")
    assert outcome.status == 0, outcome.err
    copy = tmp_path / run.name
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()} == {
        "checkpoints/best.ckpt", "code.yaml", "config.yaml", "overrides.yaml", "predictions.npy", "result.json",
    }  # fmt: skip
    places = (str(run.parents[2]).encode(), str(REPOSITORY).encode())
    assert not [path for path in copy.rglob("*.*") if path.is_file() and any(p in path.read_bytes() for p in places)]
    result = read_result(copy)
    assert result == replace(read_result(run), overrides=["trainer=cpu", "recipe.epochs=8"])
    assert result.configuration == fingerprint(read_config(copy)[1])
    assert command("evaluate", f"run={copy}", "trainer=cpu").out.count(f"{result.test_accuracy:.2%}") == 2
    refused(command("export", f"run={run}", "format=run", f"output={tmp_path}"), "cannot make", "File exists")
    refused(command("export", f"run={run}", "format=run", f"twin={run}"), "twin= is for files")
    refused(command("export", f"run={run}", "format=run", "int8=true"), "int8=true is for format=onnx")


def test_torch_export(command: Command, run: Path, tmp_path: Path) -> None:
    outcome = command("export", f"run={run}", "format=torch_export", f"output={tmp_path}")
    # the figures of another format have another name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["separable-digits.pt2", "separable-digits.pt2.json"]
    assert outcome.status == 0, outcome.err
    file = read_file(tmp_path / "separable-digits.pt2")
    assert (file.record.name, file.record.run) == ("fp32 torch_export", run.name)
    outcome = command("evaluate", f"file={file.path}", "trainer=cpu", "trainer.limit_batches=1")
    assert f"{file.record.test_accuracy:.2%}" in outcome.out


class Pickled:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_weights_of_a_program_run_no_code(command: Command, run: Path, tmp_path: Path) -> None:
    """Pickled weights are plain values, or the file is refused."""
    assert command("export", f"run={run}", "format=torch_export", f"output={tmp_path}").status == 0
    trap = io.BytesIO()
    torch.save(Pickled(tmp_path / "sprung"), trap)
    changed = 0
    with (
        zipfile.ZipFile(tmp_path / "separable-digits.pt2") as archive,
        zipfile.ZipFile(tmp_path / "trap.pt2", "w") as copy,
    ):
        for part in archive.infolist():
            content = archive.read(part)
            if content.startswith(b"PK"):  # torch.save's
                content, changed = trap.getvalue(), changed + 1
            copy.writestr(part, content)
    assert changed
    refused(command("evaluate", f"file={tmp_path}/trap.pt2"), "trap.pt2 is not as scripts/export.py writes it")
    assert not (tmp_path / "sprung").exists()


def classifier_of(model: dict[str, Any], normalize: str = "standardize") -> ImageClassifier:
    """A classifier of digits with new weights."""
    recipe = {"epochs": 1, "batch_size": 8, "optimizer": {"name": "SGD", "lr": 0.1}, "normalize": normalize}
    images = describe_images(load(data_config("digits", image_size=32)))
    torch.manual_seed(0)
    return ImageClassifier(model, recipe, images).eval()


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * (each not in ("baseline", "resnet"))) for each in names()]
)
def test_every_network_has_a_form_in_onnx(name: str) -> None:
    """Also in int8: with layers that have the names of modules."""
    classifier = classifier_of({"name": name, **SLIM.get(name, {})})
    model = to_onnx(classifier)
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = classifier(images)
    assert (classify(run_onnx(write_onnx(model), 1), images) - expected).abs().max() < 1e-4 * expected.abs().max()
    quantizer = Quantizer(model, images)
    modules = {name for name, each in classifier.net.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    assert set(quantizer.layers) == modules
    assert classify(run_onnx(write_onnx(quantizer.quantize()), 1), images).isfinite().all()
    equalized = Quantizer(model, images, equalized=True).prepared
    assert (classify(run_onnx(write_onnx(equalized), 1), images) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_poolings_are_single_operations() -> None:
    """In both formats: what runs the files has a kernel for them."""
    classifier = classifier_of({"name": "baseline"})
    kinds = [node.op_type for node in to_onnx(classifier).graph.node]
    assert kinds.count("MaxPool") == 2
    assert not {"Slice", "Max"} & set(kinds)
    operations = [str(node.target) for node in export_program(classifier).graph.nodes]
    assert operations.count("aten.max_pool2d.default") == 2
    assert not [operation for operation in operations if "slice" in operation or "maximum" in operation]


@pytest.mark.slow
def test_moments_have_a_form_in_onnx() -> None:
    classifier = classifier_of({"name": "tiny"}, "moments")
    dataset = load(data_config("digits", image_size=32))
    images, _ = dataset[dataset.test[:20]]
    with torch.no_grad():
        expected = classifier(images)
    assert (classify(run_onnx(write_onnx(to_onnx(classifier)), 1), images) - expected).abs().max() < 1e-3


def test_figures_are_of_the_network_in_the_file(run: Path) -> None:
    """One separated by method=spatial is in it as the convolutions that it multiplies out to."""
    base = classifier_of({"name": "baseline"})
    spatial = {"name": "separated", "base": {"name": "baseline"}, "method": "spatial", "ranks": {"conv2.conv": 2}}
    classifier = classifier_of(spatial)
    source = export.read_source(str(run), SourceConfig())
    source = replace(source, classifier=classifier, dataset=load(data_config("digits", image_size=32)))
    row: Any = export.Row("", source, SimpleNamespace(record=SimpleNamespace(precision="fp32")), None)  # type: ignore[arg-type]
    shape = source.dataset.shape
    assert (row.parameters, row.macs) == (counting.parameters(base.net), counting.macs(base.net, shape))
    assert row.macs < counting.macs(classifier.net, shape)
    maps = live_maps(counting.layers(base.net, shape), (1, *shape))
    assert row.peak == max(live_bytes(each, "fp32") for each in maps)


def test_equal_ranges_keep_int8_right(run: Path) -> None:
    """A channel far larger than the others of its map, though the network computes the same, costs nothing."""
    source = export.read_source(str(run), SourceConfig())
    blocks: Any = source.classifier.net.blocks
    with torch.no_grad():
        norm, after = blocks[1].depthwise.norm, blocks[1].pointwise.conv
        norm.weight[0] *= 1e3
        norm.bias[0] *= 1e3
        after.weight[:, 0] /= 1e3
    images, labels = source.dataset[source.dataset.test]
    network = to_onnx(source.classifier)
    plain, equal = Quantizer(network, images), Quantizer(network, images, equalized=True)
    assert (classify_with(equal.prepared, "onnx", images) - source.test).abs().max() < 1e-4 * source.test.abs().max()
    logits = source.test, *(classify_with(each.quantize(), "onnx", images) for each in (plain, equal))
    fp32, worse, same = (float((each.argmax(1) == labels).double().mean()) for each in logits)
    assert worse < fp32 - 0.1
    assert abs(same - fp32) < 0.01


def test_equal_ranges_within_residual_blocks() -> None:
    """Maps that are added have one scale a channel, and what reads them by depthwise weights leaves it free."""
    block = {"channels": 8, "blocks": 3, "expansion": 2, "depthwise_first": True}
    classifier = classifier_of(complete({"name": "staged", "stages": [{"channels": 8, "stride": 2}, block]}))
    images, _ = load(data_config("digits", image_size=32))[torch.arange(50)]
    before = Quantizer(to_onnx(classifier), images).prepared
    after = equalize(before, images)
    expected = classify_with(before, "onnx", images)
    assert (classify_with(after, "onnx", images) - expected).abs().max() < 1e-5 * expected.abs().max()
    streams = [each for each in find_streams(before, Weights(before)) if not each.others]
    assert sorted(len(each.writers) for each in streams) == [1] * 8 + [4]  # stem, its block's step, and 3 blocks' steps
    for stream in streams:
        spreads = [largest(find_ranges(model, stream.maps, images).values()) for model in (before, after)]
        first, last = (float(each.max() / each.min()) for each in spreads)
        assert last <= first * 1.001
        if not any(Weights(before).mixes(node) for node in stream.readers):
            assert last == pytest.approx(1, rel=1e-3)


@pytest.mark.skipif(not on_x86(), reason="of the kernels on x86")
def test_int8_layers_are_computed_in_int8(tmp_path: Path) -> None:
    """Also around residual blocks, where a map feeds two layers: onnxruntime leaves none of them in fp32."""
    block = {"channels": 8, "blocks": 3, "expansion": 2, "depthwise_first": True}
    classifier = classifier_of(complete({"name": "staged", "stages": [{"channels": 8, "stride": 2}, block]}))
    images, _ = load(data_config("digits", image_size=32))[torch.arange(50)]
    quantizer = Quantizer(to_onnx(classifier), images)
    options = session_options(1)
    options.optimized_model_filepath = str(tmp_path / "as_run.onnx")
    onnxruntime.InferenceSession(write_onnx(quantizer.quantize()), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "as_run.onnx").graph.node)
    assert (kinds["QLinearConv"], kinds["QGemm"]) == (len(quantizer.layers) - 1, 1)
    assert (kinds["Conv"], kinds["Gemm"], kinds["Add"]) == (0, 0, 1)  # the normalisation of pixels adds


def test_int8_that_costs_too_much_is_refused(run: Path) -> None:
    """Weights on a channel that is always 0 change nothing, but the others in their row are lost beside them."""
    source = export.read_source(str(run), SourceConfig())
    blocks: Any = source.classifier.net.blocks
    with torch.no_grad():
        norm, after = blocks[1].depthwise.norm, blocks[1].pointwise.conv
        norm.weight[0] = norm.bias[0] = 0
        after.weight[:, 0] = 1e5
        images, _ = source.dataset[source.dataset.test]
        source = replace(source, test=source.classifier(images))
    config = ExportConfig(run=str(run), data=SourceConfig(), int8=True)
    (fp32,), refusal = export.make_files(source, config, "")
    assert fp32.record.precision == "fp32"
    assert "points on the validation images, more than int8_drop=0.002" in refusal
    assert "blocks.1.pointwise.conv costs most" in refusal, refusal
    assert len(export.make_files(source, replace(config, int8_drop=0.99), "")[0]) == 2


@pytest.mark.slow
def test_a_refusal_says_that_an_older_file_stays(
    command: Command, run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.make_files
    monkeypatch.setattr(export, "make_files", lambda *arguments: (real(*arguments)[0][:1], "it costs too much"))
    arguments = [f"run={run}", "int8=true", f"output={tmp_path}"]
    refusal = "no int8 file is written: it costs too much"
    outcome = command("export", *arguments)
    refused(outcome, refusal)
    assert "earlier" not in outcome.err
    older = tmp_path / "separable-digits-int8.onnx"
    shutil.copy(exported / older.name, older)
    refused(command("export", *arguments), refusal, f"{older} is of an earlier export")


def test_a_file_that_differs_is_not_written(
    command: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.classify_with

    def wrong(*arguments: Any) -> torch.Tensor:
        logits = real(*arguments)
        logits[3] = -logits[3]
        return logits

    monkeypatch.setattr(export, "classify_with", wrong)
    refused(command("export", f"run={run}", f"output={tmp_path}"), "no file is written", "1 of 359 test images")
    assert list(tmp_path.iterdir()) == []


def test_bad_input(command: Command, run: Path, twin: Path, exported: Path, tmp_path: Path) -> None:
    refused(command("export", f"run={tmp_path}"), "is no run")
    refused(command("export"), "run is missing")
    refused(command("export", f"run={run}", "int8=true", "format=torch_export"), "int8=true is for format=onnx")
    refused(command("export", f"run={run}", "int8_drop=2"), "int8_drop=2")
    refused(command("export", f"run={run}", "output=/dev/null/x"), "cannot write", "output=")
    refused(command("export", f"run={twin}", f"output={exported}"), "is of another run", run.name)
    refused(command("evaluate", f"run={run}", f"file={exported}/separable-digits.onnx"), "give run=", "file=")
    file = f"file={exported}/separable-digits.onnx"
    refused(command("evaluate", file, "checkpoint=last"), "checkpoint=last", "file=")
    refused(command("evaluate", file, "trainer.accelerator=gpu"), "trainer.accelerator=gpu", "file=", "CPU")
    refused(command("evaluate", f"file={tmp_path}/x.h5"), "is no exported network", ".onnx")
    refused(command("evaluate", f"file={tmp_path}/x.onnx"), "x.onnx cannot be read")
    path = exported / "separable-digits.onnx"
    content = path.read_bytes()
    for wrong in (b"", content[:1000], content.replace(b'"precision": "fp32"', b'"precision": "fp64"')):
        (tmp_path / "wrong.onnx").write_bytes(wrong)
        refused(command("evaluate", f"file={tmp_path}/wrong.onnx"), "wrong.onnx is not as scripts/export.py writes it")
    (tmp_path / "wrong.pt2").write_bytes(content)
    refused(command("compare", str(tmp_path / "wrong.pt2")), "wrong.pt2 is not as scripts/export.py writes it")
    other = make_run(tmp_path / "other", "data.split_seed=1")
    refused(command("export", f"run={run}", f"twin={other}", f"output={tmp_path}/new"), "is of other images")


def test_libraries_that_are_missing(
    command: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(command("export", f"run={run}", f"output={tmp_path}"), "pip install 'sepconv[deploy]'")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_run_is_one_line(exported: Path) -> None:
    file = read_file(exported / "separable-digits.onnx")
    broken = ExportedFile(file.path, file.record, b"no network")
    with pytest.raises(InputError, match="does not run"):
        broken.run()
    right = np.ones(359, bool)
    with pytest.raises(InputError, match="tells of other test images"):
        _ = replace(broken, record=replace(file.record, right=pack(right))).right
    assert read(ExportConfig, {"run": "x", "data": {}}).int8 is False
