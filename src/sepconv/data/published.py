"""Published data sets, as torchvision lays them out: every file that is read is checked, what is missing is fetched.

A file is read unpacked where its checksum is known, else from the archive that it came in, in memory. Processes that
fetch into one folder take turns, and a file appears there whole, by renaming: others may read at any time.
"""

import contextlib
import gzip
import hashlib
import http
import http.client
import io
import math
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets as tv

from sepconv import InputError
from sepconv.config.keys import DataConfig
from sepconv.files import open_file, unreadable, write
from sepconv.terminal import Progress, track
from sepconv.text import printable

T = TypeVar("T")
Parts = tuple[dict[str, tuple[Tensor, Tensor]], list[str]]  # (pixels, labels) of `train`, ...; names of the classes

LOCK = ".sepconv-download.lock"
SILENCE = 60  # seconds without a byte, after which a server is given up
CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class Archive:
    """A file as it is published, and the files that it holds; all paths are under the data root."""

    path: str
    md5: str
    urls: tuple[str, ...]  # mirrors of it
    members: dict[str, str | None]  # path: MD5, or None where only the archive's is known


# torchvision has the checksums of MNIST's archives, but not of the files in them.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def mnist(config: DataConfig) -> Parts:
    """MNIST (LeCun et al. 1998): 60,000 + 10,000 images of 28 x 28."""
    return read_idx(config, tv.MNIST, MNIST_MD5)


def fashion_mnist(config: DataConfig) -> Parts:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 images of 28 x 28."""
    return read_idx(config, tv.FashionMNIST, dict.fromkeys(MNIST_MD5))


def cifar10(config: DataConfig) -> Parts:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 32 x 32 x 3."""
    return read_cifar(config, tv.CIFAR10)


def cifar100(config: DataConfig) -> Parts:
    """CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 32 x 32 x 3."""
    return read_cifar(config, tv.CIFAR100)


def read_idx(config: DataConfig, source: type[tv.MNIST], checksums: dict[str, str | None] | dict[str, str]) -> Parts:
    """A set in the format of MNIST's files, each of which has an archive of its own."""
    folder = f"{source.__name__}/raw"
    archives = [
        Archive(f"{folder}/{name}", md5, tuple(mirror + name for mirror in source.mirrors),
                {f"{folder}/{name.removesuffix('.gz')}": checksums[name.removesuffix(".gz")]})
        for name, md5 in source.resources
    ]  # fmt: skip
    contents = read(config, archives)
    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (contents[f"{folder}/{prefix}-{kind}-ubyte"] for kind in ("images-idx3", "labels-idx1"))
        parts[part] = torch.from_numpy(parse_idx(images))[..., None], torch.from_numpy(parse_idx(labels)).long()
    return parts, list(source.classes)


def parse_idx(content: bytes) -> np.ndarray:
    """The uint8 array in a file of MNIST's format: its number of axes in byte 3, then its shape, then its values."""
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def read_cifar(config: DataConfig, source: type[tv.CIFAR10]) -> Parts:
    """A set in the format of CIFAR's files, which are in one archive."""
    files = {
        "train": source.train_list,
        "test": source.test_list,
        "meta": [[source.meta["filename"], source.meta["md5"]]],
    }
    members = {f"{source.base_folder}/{name}": md5 for part in files.values() for name, md5 in part}
    contents = read(config, [Archive(source.filename, source.tgz_md5, (source.url,), members)])
    entries = {
        part: [pickle.loads(contents[f"{source.base_folder}/{name}"], encoding="latin1") for name, _ in named]
        for part, named in files.items()
    }
    parts = {}
    for part in ("train", "test"):
        pixels = np.concatenate([entry["data"] for entry in entries[part]]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = [label for entry in entries[part] for label in entry.get("labels") or entry["fine_labels"]]
        parts[part] = torch.from_numpy(pixels), torch.tensor(labels)
    return parts, entries["meta"][0][source.meta["key"]]


def read(config: DataConfig, archives: list[Archive]) -> dict[str, bytes]:
    """The contents of all files in `archives` by their paths; what is not under the data root is fetched first.

    Raises:
        InputError: a file is damaged or cannot be read, or is missing and not to be had.
    """
    root = Path(config.root)
    found: Sequence[dict[str, bytes] | None] = [find(archive, root) for archive in archives]
    absent = [archive for archive, contents in zip(archives, found, strict=True) if contents is None]
    if absent and not config.download:
        raise missing(config, root, absent, "data.download=false")
    if absent:
        try:
            found = fetch(archives, root, config.name)
        except (OSError, http.client.HTTPException) as error:  # no network, say, or a full disk
            raise missing(config, root, absent, str(error)) from error
    return {name: content for contents in found if contents for name, content in contents.items()}


def find(archive: Archive, root: Path) -> dict[str, bytes] | None:
    """The contents of the files in `archive`, checked; None where they are not there, packed or unpacked."""
    contents = {name: read_checked(root / name, md5) if md5 else None for name, md5 in archive.members.items()}
    there = {name: content for name, content in contents.items() if content is not None}
    if len(there) == len(contents):
        return there
    packed = read_checked(root / archive.path, archive.md5)
    return None if packed is None else unpack(archive, packed) | there


def read_checked(path: Path, md5: str) -> bytes | None:
    """The file's content; None where there is no file. Raises InputError where it cannot be read or is damaged."""
    try:
        with open_file(path) as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path.absolute(), error) from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise InputError(
            f"{printable(path.absolute())} is damaged, or not yet written whole: "
            "if it stays so, delete it; data.download=true fetches it again"
        )
    return content


def unpack(archive: Archive, packed: bytes) -> dict[str, bytes]:
    """The contents of the files in the archive `packed`."""
    if archive.path.endswith(".tar.gz"):
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            return {name: tar.extractfile(name).read() for name in archive.members}  # type: ignore[union-attr]
    return dict.fromkeys(archive.members, gzip.decompress(packed))  # of one file


def fetch(archives: list[Archive], root: Path, name: str) -> list[dict[str, bytes]]:
    """The contents of `archives`, those that are missing under `root` downloaded, and unpacked for others to read.

    Raises OSError or HTTPException where that cannot be done; then folders that it made are gone again, if empty.
    """
    if not root.is_dir():
        from_mirror(archives[0], ask)  # before there is a folder, which others that begin now would keep
    found = []
    with directory(root), exclusive(root, f"waiting for another process, which downloads {name}"):
        for archive in archives:
            contents = find(archive, root)  # another process may have been here
            if contents is None:
                with directory((root / archive.path).parent):
                    contents = unpack(archive, download(archive, root / archive.path))
                for member, content in contents.items():
                    if archive.members[member] and not (root / member).exists():
                        (root / member).parent.mkdir(exist_ok=True)
                        write(root / member, content)
            found.append(contents)
    return found


@contextlib.contextmanager
def directory(path: Path) -> Iterator[None]:
    """Makes a directory and those above it; an exception takes away again those that were made and are empty."""
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for each in made:
                each.rmdir()
        raise


@contextlib.contextmanager
def exclusive(root: Path, waiting: str) -> Iterator[None]:
    """Within it, no other process is within it for the same `root`; an exception takes the lock's file away."""
    lock = FileLock(root / LOCK)
    with Progress(waiting):
        lock.acquire()
    try:
        yield
    except BaseException:
        (root / LOCK).unlink(missing_ok=True)
        raise
    finally:
        lock.release()


def download(archive: Archive, path: Path) -> bytes:
    """The archive, now at `path` too. Raises OSError."""
    aside = path.with_name(path.name + ".part")
    content = from_mirror(archive, lambda url: transfer(url, aside, archive.md5))
    os.replace(aside, path)
    return content


def from_mirror(archive: Archive, get: Callable[[str], T]) -> T:
    """What `get` makes of the first of an archive's mirrors with which it succeeds. Raises OSError."""
    failures = []
    for url in archive.urls:
        try:
            return get(url)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {str(error) or type(error).__name__}")
    raise OSError("; ".join(failures))


def ask(url: str) -> None:
    """Raises OSError where no server answers for `url`."""
    with contextlib.suppress(HTTPError), urlopen(Request(url, method="HEAD"), timeout=SILENCE):
        pass


def transfer(url: str, aside: Path, md5: str) -> bytes:
    """Downloads `url` to the file `aside`, or the rest of it, if a part is there. Raises OSError or HTTPException."""
    begun = aside.stat().st_size if aside.exists() else 0
    request = Request(url, headers={"User-Agent": "sepconv", "Range": f"bytes={begun}-"})
    try:
        with urlopen(request, timeout=SILENCE) as answer:
            begun *= answer.status == http.HTTPStatus.PARTIAL_CONTENT
            length = answer.length
            chunks = iter(lambda: answer.read(CHUNK), b"")
            with aside.open("ab" if begun else "wb") as file:
                for chunk in track(chunks, f"downloading {Path(url).name}: MiB", length and math.ceil(length / CHUNK)):
                    file.write(chunk)
                if length and file.tell() < begun + length:
                    raise OSError("the connection broke off")
    except HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            aside.unlink()
        raise
    content = aside.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        aside.unlink()
        raise OSError("it gives another file than was published")
    return content


def missing(config: DataConfig, root: Path, absent: list[Archive], reason: str) -> InputError:
    """The error for files that are neither there nor to be had."""
    wanted, unchecked = [], ""
    for archive in absent:
        for name, md5 in archive.members.items():
            if md5 is None and (root / name).exists():
                unchecked = f" ({name} is there, but it has no checksum that is known)"
        unpacked = [name for name, md5 in archive.members.items() if md5 and not (root / name).exists()]
        wanted.append(" or ".join(filter(None, [", ".join(unpacked), archive.path])))
    reason = printable(" ".join(reason.split()))
    return InputError(
        f"{config.name} is not in {printable(root.absolute())} and was not downloaded ({reason}): set data.root to the "
        f"folder that holds it, or choose data=digits, which needs no files. Looked for {'; '.join(wanted)}{unchecked}"
    )
