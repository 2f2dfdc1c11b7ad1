"""Checkpoints that a disk or a stranger has changed."""

import io
import pickle
import random
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from trials import describe, train, trials

from sepconv import InputError
from sepconv.training import checkpoints, runs
from sepconv.training.recorded import load_classifier

pytestmark = pytest.mark.timeout(1800)


def mutate(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A kind of damage, and `data` with it."""
    changed = bytearray(data)
    place = draw.randrange(len(data))
    kind = draw.choice(
        ["bit", "byte", "zeroed page", "cut", "swapped pages", "inserted", "random page", "tail of zeros"]
    )
    page = place - place % 4096
    if kind == "bit":
        changed[place] ^= 1 << draw.randrange(8)
    elif kind == "byte":
        changed[place] = draw.randrange(256)
    elif kind == "zeroed page":
        changed[page : page + 4096] = bytes(len(changed[page : page + 4096]))
    elif kind == "cut":
        del changed[place:]
    elif kind == "swapped pages":
        other = draw.randrange(max(1, len(data) // 4096)) * 4096
        one, two = changed[page : page + 4096], changed[other : other + 4096]
        changed[page : page + len(two)], changed[other : other + len(one)] = two, one
    elif kind == "inserted":
        changed[place:place] = draw.randbytes(draw.randint(1, 64))
    elif kind == "random page":
        changed[page : page + 4096] = draw.randbytes(len(changed[page : page + 4096]))
    else:
        changed[place:] = bytes(len(changed) - place)
    return kind, bytes(changed)


class Harmful:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        return (__import__("os").system, ("touch harm",))


def hostile(valid: dict[str, Any], draw: random.Random) -> bytes:
    """A checkpoint with the right checksums, and wrong contents."""
    wrong: list[Any] = [None, 0, -1, 2**70, float("nan"), "text", b"bytes", [], {}, [[[]]], {"name": "tiny"},
                        "${oc.env:HOME}", torch.zeros(0), torch.full((2, 2), float("nan")), "../../etc/passwd",
                        Harmful()]  # fmt: skip
    checkpoint = {**valid, "hyper_parameters": {k: dict(v) for k, v in valid["hyper_parameters"].items()},
                  "state_dict": dict(valid["state_dict"])}  # fmt: skip
    part: Any = draw.choice([checkpoint, checkpoint["hyper_parameters"], checkpoint["state_dict"],
                             *checkpoint["hyper_parameters"].values()])  # fmt: skip
    key = draw.choice(sorted(part))
    if draw.random() < 0.2:
        del part[key]
    else:
        part[key] = draw.choice(wrong)
    file = io.BytesIO()
    torch.save(checkpoint, file)
    return file.getvalue()


def test_changed_checkpoints(tmp_path: Path, figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged checkpoint is refused with a line, or holds the very same weights; no code in a checkpoint runs."""
    monkeypatch.chdir(tmp_path)
    run, _ = train(tmp_path)
    path = run / "checkpoints/best.ckpt"
    data = path.read_bytes()
    expected = {key: value for key, value in describe(run).items() if key.startswith("best ")}
    valid = checkpoints.load(path)
    _, config, _ = runs.read_config(run)
    draw = random.Random(0)
    counts: Counter[str] = Counter()
    lines: list[str] = []  # refusals
    for trial in range(trials(1500)):
        kind, changed = mutate(data, draw) if trial % 5 else ("wrong contents", hostile(valid, draw))
        if changed == data:
            continue
        path.write_bytes(changed)
        try:
            classifier = load_classifier(run, "best", config)
        except InputError as error:
            lines.append(str(error))
        else:
            weights = {f"best {key}": tensor.numpy().tobytes() for key, tensor in classifier.state_dict().items()}
            assert weights == expected or kind == "wrong contents", kind
            counts["loaded with the same weights" if weights == expected else "loaded as it says"] += 1
    assert not [line for line in lines if str(path) not in line or "\n" in line]
    others = {"harmful pickle": pickle.dumps(Harmful()), "text": b"text", "empty": b"", "archive": archive()}
    for content in others.values():
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"best\.ckpt"):
            load_classifier(run, "best", config)
    assert not (tmp_path / "harm").exists()
    figures["checkpoints"] = trials(1500) + len(others)
    figures["refused with a line"] = len(lines) + len(others)
    figures.update(counts | {"other weights without a word": 0, "code run": 0})


def archive() -> bytes:
    """A packed archive that would grow a thousand times."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", bytes(10**8))
    return file.getvalue()
