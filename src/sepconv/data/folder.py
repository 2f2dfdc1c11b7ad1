"""One's own images: a folder with a directory of images for each class, perhaps in parts (train, validation, test)."""

import hashlib
import logging
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sepconv import InputError
from sepconv.config.keys import DataConfig
from sepconv.data.images import ENDINGS, read_image
from sepconv.data.published import Parts
from sepconv.devices import check_memory
from sepconv.files import unreadable
from sepconv.terminal import track
from sepconv.text import printable, tell_apart

log = logging.getLogger(__name__)

# usual names of the parts; in any case, and with more to them: Test, train_images, val2017
PART_NAMES = {
    "train": "train|training|trn",
    "validation": "val|valid|validation|dev|devel|development",
    "test": "test|testing|tst",
}
MORE = "data|dataset|images?|imgs?|part|set|split"
# directories that programs leave behind, which are no classes; nor are hidden ones, whose names begin with a dot
PACKAGING = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


def folder(config: DataConfig) -> Parts:
    """The images under `data.root`: a directory for each class, or for each part with one for each class in it.

    A class's images may also lie in directories within its own. Each file counts once, however many links lead to it.
    Without `data.channels`, the images have one channel where each of them is grey all over, else three.

    Raises:
        InputError: what is under the root cannot be read, or makes no classes; see also `read_image`.
    """
    root, side = Path(config.root), config.image_size
    if side is None:
        raise InputError("data=folder needs data.image_size: images of one size make one tensor")
    if not is_directory(root):
        raise InputError(
            f"data.root={printable(root)} is no directory: give one that holds a directory of images per class"
        )
    tops = find_parts(root)
    search = Search(root, tops)
    names = match_classes(search, tops)
    images = {
        part: [(path, label) for label, name in enumerate(names) for path in search.images(part, name)] for part in tops
    }
    paths, targets = zip(*(image for part in images.values() for image in part), strict=True)
    copies = len(paths) * min(len(tops), 2) + 4  # as parts are joined, and an image is read by way of some more
    check_memory(copies * side**2 * (config.channels or 3), torch.device("cpu"))
    pixels, labels = read_images(paths, side, config.channels), torch.tensor(targets)
    search.report(root)
    report_nesting(search, tops)
    report_copies(pixels, labels, paths)
    sizes = [len(part) for part in images.values()]
    parts = zip(pixels.split(sizes), labels.split(sizes), strict=True)
    return dict(zip(tops, parts, strict=True)), tell_apart(names)


def read_images(paths: Sequence[str], side: int, channels: int | None) -> Tensor:
    """The image files as uint8 (N, side, side, C): C is `channels`; where that is None, 1 if all are grey, else 3."""
    pixels = torch.empty(len(paths), side, side, channels or 3, dtype=torch.uint8)
    remarks: dict[str, list[str]] = {}
    for i, path in enumerate(track(paths, "reading: image")):
        image, said = read_image(path, side, channels or 3)
        pixels[i] = torch.from_numpy(image)
        for remark in said:
            remarks.setdefault(re.sub(r"\d+", "#", remark), []).append(path)
    for remark, of in remarks.items():
        log.warning("images such as %s (%d of %d): %s", printable(of[0]), len(of), len(paths), remark)
    grey = channels is None and all((part == part[..., :1]).all() for part in pixels.split(1000))
    return pixels[..., :1].contiguous() if grey else pixels


def report_copies(pixels: Tensor, labels: Tensor, paths: Sequence[str]) -> None:
    """Says, in the log, how many images look like another one."""
    first: dict[bytes, int] = {}
    copies = []
    for i, image in enumerate(pixels):
        other = first.setdefault(hashlib.sha256(image.numpy().data).digest(), i)
        if other != i:
            copies.append((i, other))
    if copies:
        classes = sum(bool(labels[i] != labels[other]) for i, other in copies)
        log.warning("%d images look the same as another one, %d of them in another class, such as %s and %s: if one is "
                    "trained on and the other tested, the test says too much", len(copies), classes,
                    *(printable(paths[i]) for i in reversed(copies[0])))  # fmt: skip


def is_directory(path: Path) -> bool:
    """Whether there is a directory. Raises InputError where that cannot be seen."""
    try:
        return path.is_dir()
    except OSError as error:
        raise unreadable(path, error) from error


def entries(path: str | Path) -> list[os.DirEntry[str]]:
    """What is in a directory, by name. Raises InputError where it cannot be read."""
    try:
        with os.scandir(path) as scanned:
            return sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(path, error) from error


def leads_to_directory(entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is a directory or a link to one. Raises InputError for a link that leads nowhere."""
    try:
        return entry.is_dir() or (entry.is_symlink() and stat.S_ISDIR(entry.stat().st_mode))
    except OSError as error:
        raise unreadable(entry.path, error) from error


def ignored(name: str) -> bool:
    """Whether a file or directory is hidden, or what programs leave behind."""
    return name.startswith(".") or name.casefold() in PACKAGING


def leads_above(path: Path) -> bool:
    """Whether a directory is a link to one that it lies in itself."""
    return path.is_symlink() and Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(path))


def subfolders(path: str | Path) -> list[Path]:
    """The directories in a directory that may be parts or classes."""
    folders = [Path(entry) for entry in entries(path) if not ignored(entry.name) and leads_to_directory(entry)]
    return [folder for folder in folders if not leads_above(folder)]


def part_of(name: str) -> tuple[str | None, bool]:
    """The part that a directory called `name` holds, if any, and whether all of the name says so."""
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", name).casefold())
    words = [word for word in words if not re.fullmatch(MORE, word)]
    found = [part for word in words for part, names in PART_NAMES.items() if re.fullmatch(f"({names})({MORE})?", word)]
    return (found[0], len(words) == 1) if len(set(found)) == 1 else (None, False)


def find_parts(root: Path) -> dict[str, Path]:
    """The directories of the parts `train`, `validation` and `test` in this order, as far as they are there.

    A root without any is the part `train`: its directories are classes. Raises InputError for one that has some of
    both, two directories for one part, or no `train` among its parts.
    """
    named = {path.name: part_of(path.name) for path in subfolders(root)}
    sure = [name for name, (_, whole) in named.items() if whole]
    others = [name for name, (part, _) in named.items() if part is None]
    found = {part: [name for name in named if named[name][0] == part] for part in PART_NAMES}
    if not sure and (others or not found["train"]):
        return {"train": root}
    here = f"data.root={printable(root)}"
    if others:
        raise InputError(
            f"{here} mixes parts ({listed(sure)}) and classes ({listed(others)}): put classes into the parts, or "
            "rename a class that is called like a part"
        )
    for part, names in found.items():
        if len(names) > 1:
            raise InputError(f"{here} has more than one directory for {part}, {listed(names)}: join or rename them")
    if not found["train"]:
        raise InputError(f"{here} has parts, {listed(named)}, and none to train on: it would be called train")
    return {part: root / names[0] for part, names in found.items() if names}


def listed(names: Iterable[str]) -> str:
    """Names in a line, the first few of many."""
    shown = [printable(name) for name in names]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


class Place(NamedTuple):
    """Where an image counts."""

    part: str
    name: str  # of its class


class Search:
    """The image files of each class in each part, each file once.

    Directories are searched first, then what links lead to: a file that lies in a class's directory counts there, and
    links to it do not.

    Args:
        root: the directory that holds all, or links to it.
        tops: the directory of each part: below the root, or the root itself.

    Raises:
        InputError: a directory cannot be read; two of a part have one name in Unicode; a file is in two parts, or in
            two classes.
    """

    def __init__(self, root: Path, tops: dict[str, Path]) -> None:
        self.found: dict[Place, list[str]] = {}
        self.nested: dict[Place, set[str]] = {}  # directories in the directory of a class that has no images itself
        self.left_out: Counter[str] = Counter()
        self.endings: set[str] = set()
        self.seen: dict[tuple[int, int | str], tuple[Place, str, bool]] = {}  # what counts; whether by a link
        self.links: list[tuple[Place, str]] = []
        for part, top in tops.items():
            for path in subfolders(top):
                self.start(Place(part, unicodedata.normalize("NFC", path.name)), path)
        for top in {root, *tops.values()}:
            loose = [
                entry for entry in entries(top) if entry.name.lower().endswith(ENDINGS) and not ignored(entry.name)
            ]
            self.left_out["outside the classes' directories"] += sum(not leads_to_directory(entry) for entry in loose)
        for link in self.links:  # which grow
            self.follow(*link)

    def start(self, place: Place, path: Path) -> None:
        """Counts the files in the directory of a class."""
        if place in self.found:
            raise InputError(
                f"{printable(path.parent)} has two directories called {printable(place.name)}, whose letters are "
                "encoded in two ways (NFC and NFD): join or rename them"
            )
        self.found[place] = []
        self.walk(place, str(path), linked=False)

    def walk(self, place: Place, top: str, linked: bool) -> None:
        """Counts the files in a directory and those within it to `place`; what links lead to waits."""
        waiting, inner = [top], set()
        while waiting:
            directory = waiting.pop()
            if self.known(place, directory, linked):
                continue
            for entry in entries(directory):
                image = entry.name.lower().endswith(ENDINGS)
                if ignored(entry.name):
                    self.left_out["hidden"] += 1
                elif entry.is_symlink() and (image or leads_to_directory(entry)):
                    self.links.append((place, entry.path))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    if directory == top:
                        inner.add(entry.name)
                elif not image:
                    self.left_out["by their ending"] += 1
                    self.endings.add(os.path.splitext(entry.name)[1].lower() or "none")
                elif not self.known(place, entry.path, linked):
                    self.found[place].append(entry.path)
            if directory == top and not linked and not self.found[place]:
                self.nested[place] = inner

    def follow(self, place: Place, link: str) -> None:
        """Counts what a link in the directories of `place` leads to, unless it counts already."""
        if leads_above(Path(link)):
            self.left_out["links to a directory above"] += 1
        elif os.path.isdir(link):
            self.walk(place, link, linked=True)
        elif not self.known(place, link, linked=True):
            self.found[place].append(link)

    def known(self, place: Place, path: str, linked: bool) -> bool:
        """Whether a file or directory counts already, and is to be left out here; if not, it counts now."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from error
        key = (status.st_dev, status.st_ino or os.path.realpath(path))  # some file systems have no numbers
        other, there, by_link = self.seen.setdefault(key, (place, path, linked))
        if there == path:
            return False
        if other.part != place.part:
            raise InputError(
                f"{printable(there)} and {printable(path)} are one and the same, in {other.part} and in {place.part}: "
                "what is trained on cannot be tested too"
            )
        if other != place and by_link == linked:
            raise InputError(
                f"{printable(there)} and {printable(path)} are one and the same, in two classes: remove one"
            )
        self.left_out["links to what counts already"] += 1
        return True

    def images(self, part: str, name: str) -> list[str]:
        """The paths of a class's images, directory by directory."""
        return sorted(self.found[Place(part, name)], key=os.path.split)

    def report(self, root: Path) -> None:
        """Says, in the log, how many files count nowhere, and why."""
        reasons = {why: count for why, count in self.left_out.items() if count}
        if reasons:
            whys = [
                f"{count:,} {why}" + (f" ({listed(sorted(self.endings))})" if why == "by their ending" else "")
                for why, count in reasons.items()
            ]
            log.warning("%s: left out %s", printable(root), ", ".join(whys))


def match_classes(search: Search, tops: dict[str, Path]) -> list[str]:
    """The names of the classes, two or more, of which each part has all. Raises InputError where that is not so."""
    classes = {part: sorted(place.name for place in search.found if place.part == part) for part in tops}
    names = sorted({name for names in classes.values() for name in names})
    labels = dict(zip(names, tell_apart(names), strict=True))
    check_nesting(search, tops)
    for part, top in tops.items():
        empty = [labels[name] for name in classes[part] if not search.found[Place(part, name)]]
        if empty or not classes[part]:
            kinds = ", ".join(ending.lstrip(".") for ending in ENDINGS)
            lacks = f"{listed(empty)} has none" if empty else "it holds no directories"
            if search.endings:
                lacks += f" (left out by their ending: {listed(sorted(search.endings))})"
            raise InputError(f"{printable(top)} needs at least one image ({kinds}) in each class's directory: {lacks}")
    names = classes["train"]
    for part, top in tops.items():
        sides = {tops["train"]: set(names) - set(classes[part]), top: set(classes[part]) - set(names)}
        only = [f"only {printable(path)} has {listed(labels[name] for name in sorted(more))}"
                for path, more in sides.items() if more]  # fmt: skip
        if only:
            raise InputError(
                f"the classes under {printable(tops['train'])} and {printable(top)} differ: {'; '.join(only)}"
            )
    if len(names) == 1:
        inner = search.nested.get(Place("train", names[0]))
        hint = f"; or is data.root={printable(tops['train'] / names[0])} meant?" if inner else ""
        raise InputError(
            f"{printable(tops['train'])} holds one class, {labels[names[0]]}: a classifier needs two or more{hint}"
        )
    return names


def check_nesting(search: Search, tops: dict[str, Path]) -> None:
    """Raises InputError where parts are within classes."""
    for place, inner in search.nested.items():
        if len({part for part, whole in map(part_of, inner) if whole}) > 1:
            raise InputError(
                f"{printable(tops[place.part] / place.name)} holds parts, {listed(sorted(inner))}: "
                "put the directories of the classes into those of the parts"
            )


def report_nesting(search: Search, tops: dict[str, Path]) -> None:
    """Says, in the log, where what counts as classes may be parts."""
    for part, top in tops.items():
        inners = [search.nested.get(place, set()) for place in search.found if place.part == part]
        if len(inners[0]) > 1 and all(inner == inners[0] for inner in inners):
            log.warning(
                "%s: each of its directories counts as a class, and holds directories of the same names, %s; if these "
                "are the classes, call the others train, validation and test",
                printable(top),
                listed(sorted(inners[0])),
            )
