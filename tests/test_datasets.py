import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REAL_DATA, data_config, real
from served import SMALL, Published, fashion
from torchvision import datasets as tv

from sepconv import InputError
from sepconv import devices as measure
from sepconv.config.keys import RecipeConfig
from sepconv.config.read import read
from sepconv.data.datasets import Dataset, hold_out, load
from sepconv.data.module import Batches, ImageData, ShuffledBatches


def parts(dataset: Dataset) -> list[set[int]]:
    return [set(rows.tolist()) for rows in (dataset.train, dataset.validation, dataset.test)]


def test_digits() -> None:
    dataset = load(data_config("digits"))
    assert dataset.shape == (1, 16, 16)
    assert [len(part) for part in parts(dataset)] == [1294, 144, 359]
    assert dataset.pixels.dtype == torch.uint8
    assert dataset.pixels.max() > 200
    assert dataset.classes == tuple("0123456789")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_real_data(name: str) -> None:
    dataset = load(real(name))
    train = {"mnist": 55_000, "cifar10": 45_000}[name]
    assert [len(part) for part in parts(dataset)] == [train, 5_000, 10_000]
    assert dataset.shape == {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}[name]
    mean, deviation = dataset.statistics()
    pixels = dataset.pixels[dataset.train].double() / 255
    assert mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), rel=1e-9)
    assert deviation == pytest.approx(pixels.std((0, 1, 2), correction=0).tolist(), rel=1e-9)
    # the test part is torchvision's, in its order
    if name == "mnist":
        original = tv.MNIST(REAL_DATA, train=False)
        assert torch.equal(dataset.pixels[dataset.test][..., 0], original.data)
        assert torch.equal(dataset.labels[dataset.test], original.targets)


def test_split_is_disjoint_seeded_and_stratified() -> None:
    first, again = load(data_config("digits")), load(data_config("digits"))
    other = load(data_config("digits", split_seed=1))
    train, validation, test = parts(first)
    assert len(train | validation | test) == len(train) + len(validation) + len(test) == 1797
    assert parts(again) == parts(first)
    assert parts(other) != parts(first)
    labels = first.labels
    for rows in (first.train, first.validation, first.test):
        shares = labels[rows].bincount(minlength=10) / len(rows)
        assert (shares - labels.bincount() / len(labels)).abs().max() < 0.012


def test_hold_out_takes_the_count_from_every_class() -> None:
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)[torch.randperm(100)]
    generator = torch.Generator().manual_seed(3)
    kept, held = hold_out(torch.arange(100), labels, 20, generator, "data.validation")
    assert labels[held].bincount().tolist() == [14, 4, 2]
    assert sorted(kept.tolist() + held.tolist()) == list(range(100))
    with pytest.raises(InputError, match="leave some on both sides"):
        hold_out(torch.arange(100), labels, 100, generator, "data.validation")


def test_a_share_for_the_test_where_there_is_a_test_set() -> None:
    with pytest.raises(InputError, match=r"data\.test=0\.3 is for digits and folder; mnist has a test set of its own"):
        load(data_config("mnist", test=0.3))


def test_selection_is_rows_in_order() -> None:
    dataset = load(data_config("digits"))
    rows = torch.tensor([5, 1700, 5])
    images, labels = dataset[rows]
    assert images.shape == (3, 1, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    for i, row in enumerate(rows):
        assert torch.equal(images[i], dataset.pixels[row].permute(2, 0, 1))
        assert labels[i] == dataset.labels[row]


def test_batches_cover_an_epoch_in_a_new_order_each_time() -> None:
    rows = torch.arange(100, 110)
    batches = ShuffledBatches(rows, 4, len(rows), torch.Generator().manual_seed(0))
    first, second = list(batches), list(batches)
    assert len(batches) == len(first) == 3
    assert sorted(torch.cat(first).tolist()) == rows.tolist()
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    dropped = ShuffledBatches(rows, 4, 8, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in dropped] == [4, 4]
    assert len(dropped) == 2
    assert torch.cat(list(Batches(rows, 4))).tolist() == rows.tolist()


CPU = torch.device("cpu")


def recipe(**changes: Any) -> RecipeConfig:
    base = {"epochs": 1, "batch_size": 64, "drop_last": False, "schedule": "constant", "optimizer": {"name": "SGD"}}
    return read(RecipeConfig, {**base, "augment": {}, **changes})


@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 1294), ({"drop_last": True}, 1280), ({"epoch_images": 200}, 200),
     ({"epoch_images": 200, "drop_last": True}, 192)],
)  # fmt: skip
def test_images_of_an_epoch(changes: dict[str, Any], count: int) -> None:
    """So many, each once, others in the next epoch."""
    data = ImageData(load(data_config("digits")), recipe(**changes), CPU)
    first, second = (torch.cat(list(data.train_dataloader())) for _ in range(2))
    assert len(first) == len(first.unique()) == len(second) == count
    assert data.steps == -(-count // 64)
    assert (set(first.tolist()) == set(second.tolist())) == (count == 1294)


def test_an_epoch_of_several_passes() -> None:
    """Each image once in each pass, in another order."""
    data = ImageData(load(data_config("digits")), recipe(epoch_images=2 * 1294 + 100, drop_last=True), CPU)
    rows = torch.cat(list(data.train_dataloader()))
    assert len(rows) == 2688 - 2688 % 64 == data.steps * 64
    passes = rows.split(1294)
    assert [len(part.unique()) for part in passes] == [1294, 1294, len(rows) - 2588]
    assert not torch.equal(passes[0], passes[1])


def test_generator_state_is_kept() -> None:
    data = ImageData(load(data_config("digits")), recipe(), CPU, seed=3)
    state = data.state_dict()
    one = torch.cat(list(data.train_dataloader()))
    data.load_state_dict(state)
    assert torch.equal(torch.cat(list(data.train_dataloader())), one)


def test_set_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.psutil, "virtual_memory", lambda: type("", (), {"available": 2**20})())
    with pytest.raises(InputError, match=r"takes .* MiB and cpu has 1 MiB free"):
        load(data_config("digits", image_size=64))


def copy_mnist(root: Path) -> Path:
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True)
    for path in (REAL_DATA / "MNIST/raw").iterdir():
        (raw / path.name).symlink_to(path)
    return raw


@pytest.mark.parametrize("harm", ["truncated", "one bit"])
def test_damaged_mnist(tmp_path: Path, harm: str) -> None:
    real("mnist")
    path = copy_mnist(tmp_path) / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    path.unlink()
    if harm == "one bit":
        content[5000] ^= 1
    path.write_bytes(content[: 1000 if harm == "truncated" else None])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte .*is damaged"):
        load(data_config("mnist", root=str(tmp_path)))


def test_damaged_cifar(tmp_path: Path) -> None:
    real("cifar10")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for path in (REAL_DATA / "cifar-10-batches-py").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "data_batch_3").unlink()
    (folder / "data_batch_3").write_bytes(b"short")
    with pytest.raises(InputError, match=r"data_batch_3 .*is damaged"):
        load(data_config("cifar10", root=str(tmp_path)))


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    served = Published()
    for patch in served.patches:
        monkeypatch.setattr(*patch)
    yield served
    served.stop()


@pytest.mark.parametrize("name", SMALL)
def test_download(tmp_path: Path, published: Published, name: str) -> None:
    """Missing files are fetched, once, and found by later runs; a transfer that broke off goes on."""
    config = data_config(name, root=str(tmp_path / "new/data"), validation=20)
    archive = {"fashion_mnist": "t10k-images-idx3-ubyte.gz", "cifar10": "cifar-10-python.tar.gz"}[name]
    published.cut = {archive}
    with pytest.raises(InputError, match=rf"{name} is not in .*broke off.*Looked for .*{archive}"):
        load(config)
    first = load(config)
    assert [len(part) for part in parts(first)] == SMALL[name]
    assert published.asked[-1] == f"{archive} from {len(published.content[archive]) // 2}" or name == "fashion_mnist"
    assert len([asked for asked in published.asked if asked.startswith(archive)]) == 2
    again = load(replace(config, download=False))
    assert again.digests() == first.digests()
    assert not list(tmp_path.rglob("*.part"))


def test_a_missing_file_of_cifar(tmp_path: Path, published: Published) -> None:
    """It is taken from the archive that is there, or fetched."""
    config = data_config("cifar10", root=str(tmp_path), validation=20)
    first, meta = load(config), tmp_path / "cifar-10-batches-py/batches.meta"
    meta.unlink()
    assert load(replace(config, download=False)).digests() == first.digests()
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    with pytest.raises(InputError, match=r"Looked for cifar-10-batches-py/batches.meta or cifar-10-python.tar.gz"):
        load(replace(config, download=False))
    assert load(config).classes == first.classes
    assert meta.is_file()


@pytest.mark.parametrize("harm", ["one bit", "another archive", "only unpacked"])
def test_damaged_fashion_mnist(tmp_path: Path, published: Published, harm: str) -> None:
    """Only what has a known checksum is read: the archives, not the files that others unpack or convert from them."""
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    images = raw / "train-images-idx3-ubyte.gz"
    for name, content in fashion().items():
        (raw / name).write_bytes(content)
        (raw / name.removesuffix(".gz")).write_bytes(b"converted by others")
    (tmp_path / "FashionMNIST/processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(50, 28, 28, dtype=torch.uint8), torch.zeros(50)), raw.parent / "processed" / name)
    config = data_config("fashion_mnist", root=str(tmp_path), validation=20, download=False)
    assert [len(part) for part in parts(load(config))] == SMALL["fashion_mnist"]
    content = bytearray(images.read_bytes())
    content[5000] ^= 1
    images.unlink()
    if harm != "only unpacked":
        images.write_bytes(content if harm == "one bit" else fashion()["t10k-images-idx3-ubyte.gz"])
    words = (
        "Looked for .*train-images-idx3-ubyte.gz .*is there, but it has no checksum"
        if harm == "only unpacked"
        else "train-images.*is damaged"
    )
    with pytest.raises(InputError, match=words):
        load(config)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.timeout(20)
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.raises(InputError, match=f"{path} cannot be read .*no regular file"):
        load(data_config("mnist", root=str(tmp_path)))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_wrong_root_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tv.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens on the discard port
    monkeypatch.setattr(tv.CIFAR10, "url", "http://127.0.0.1:9/")
    (tmp_path / "there").mkdir()
    looked_for = {"mnist": "MNIST/raw/t10k-labels-idx1-ubyte", "cifar10": "cifar-10-batches-py/data_batch_1"}[name]
    for root in ("there", "not/there"):
        with pytest.raises(InputError, match=f"{name} is not in {tmp_path / root}.*refused.*Looked for .*{looked_for}"):
            load(data_config(name, root=str(tmp_path / root)))
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("validation", value) for value in (1.5, 1.0, 2.7, 5e3, 0, 0.0, -1, -0.1, float("nan"), float("inf"), True)]
    + [("test", value) for value in (1.5, 2.7, 1, 1.0, 0, float("nan"))]
    + [("train", value) for value in (1.5, 0, 0.5)]
    + [("channels", value) for value in (0, 2, 1.5, 1)],
)  # fmt: skip
def test_no_share_and_no_count(key: str, value: float) -> None:
    with pytest.raises(InputError, match=key):
        data_config("mnist", **{key: value})


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="unknown data=nonsense: choose from digits, mnist"):
        load(replace(data_config("digits"), name="nonsense"))
