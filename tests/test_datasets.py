import gzip
import hashlib
import http.server
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REAL_DATA, data_config, real
from PIL import Image
from torchvision.datasets import MNIST

from sepconv import InputError
from sepconv import devices as measure
from sepconv.config import RecipeConfig, read
from sepconv.data import datasets
from sepconv.data.datasets import Dataset, hold_out, load
from sepconv.data.module import Batches, ImageData, ShuffledBatches


def parts(dataset: Dataset) -> list[set[int]]:
    return [set(rows.tolist()) for rows in (dataset.train, dataset.validation, dataset.test)]


def write_folder(root: Path, classes: dict[str, int], side: int = 20) -> None:
    """Images of one noisy colour a class, as PNG files."""
    noise = np.random.default_rng(0)
    for i, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for k in range(count):
            picture = noise.integers(0, 60, (side, side + 4, 3), dtype=np.uint8)
            picture[..., i % 3] += 150
            Image.fromarray(picture).save(root / name / f"{k}.png")


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
        original = MNIST(REAL_DATA, train=False)
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


def test_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, {"red": 30, "green": 20, "blue": 10})
    dataset = load(data_config("folder", root=str(tmp_path), image_size=12))
    assert dataset.shape == (3, 12, 12)
    assert dataset.classes == ("blue", "green", "red")
    assert [len(part) for part in parts(dataset)] == [43, 5, 12]
    images, labels = dataset[torch.arange(60)]
    # each class's colour came through
    channel = {0: 2, 1: 1, 2: 0}
    assert all(
        image.float().mean((1, 2)).argmax() == channel[int(label)] for image, label in zip(images, labels, strict=True)
    )


def test_folder_with_a_test_part(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 12, "b": 12})
    write_folder(tmp_path / "test", {"a": 2, "b": 3})
    dataset = load(data_config("folder", root=str(tmp_path), image_size=8))
    assert [len(part) for part in parts(dataset)] == [22, 2, 5]
    (tmp_path / "test/b").rename(tmp_path / "test/c")
    with pytest.raises(InputError, match=r"classes under .* differ"):
        load(data_config("folder", root=str(tmp_path), image_size=8))


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


def idx(array: np.ndarray) -> bytes:
    """`array` in the format of MNIST's files."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def fashion(noise: np.random.Generator) -> dict[str, bytes]:
    """A small Fashion-MNIST: its four files' contents."""
    files = {}
    for part, count in (("train", 200), ("t10k", 50)):
        files[f"{part}-images-idx3-ubyte"] = idx(noise.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return files


def test_damaged_fashion_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for name, content in fashion(np.random.default_rng(0)).items():
        (raw / name).write_bytes(content)
    config = data_config("fashion_mnist", root=str(tmp_path), validation=20)
    assert [len(part) for part in parts(load(config))] == [180, 20, 50]
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 nothing more")
    with pytest.raises(InputError, match="damaged"):
        load(config)


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing files are fetched, checked and unpacked: from a server on this machine."""
    served = tmp_path / "served"
    served.mkdir()
    resources = []
    for name, content in fashion(np.random.default_rng(0)).items():
        packed = gzip.compress(content)
        (served / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.tv.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(datasets.tv.FashionMNIST, "resources", resources)
        config = data_config("fashion_mnist", root=str(tmp_path / "data"), validation=20)
        assert [len(part) for part in parts(load(config))] == [180, 20, 50]
        (tmp_path / "data/FashionMNIST/raw/t10k-labels-idx1-ubyte").unlink()
        (tmp_path / "data/FashionMNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
        (served / "t10k-labels-idx1-ubyte.gz").write_bytes(b"not what was promised")
        with pytest.raises(InputError, match="fashion_mnist is not in"):
            load(config)
        server.shutdown()


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="unknown data=nonsense: choose from digits, mnist"):
        load(replace(data_config("digits"), name="nonsense"))
