"""Separations that are stopped at any moment, then begun again by the same command."""

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from trials import Script, trials

from sepconv.training import checkpoints

pytestmark = pytest.mark.timeout(1800)

TRAINING = ["trainer=cpu", "model=baseline", "recipe.epochs=2", "recipe.precision=fp32"]
SEPARATION = ["trainer=cpu", "trainer.limit_batches=4", "method=depthwise", "accuracy_drop=0.3", "sweep=3"]
CHANGING = ("images_per_second", "finetuned_run", "command")  # from one separation to its like


def describe(folder: Path) -> dict[str, Any] | None:
    """What a separation in `folder` found, and both networks' weights; None of one that is not complete."""
    reports = [(path, json.loads(path.read_text())) for path in folder.glob("digits/separated/*/separation.json")]
    assert len(reports) < 2
    if not reports or not reports[0][1]["complete"]:
        return None
    ((path, report),) = reports
    weights = {}
    for run in (path.parent, Path(report["finetuned_run"])):
        state = checkpoints.load(run / "checkpoints/best.ckpt")["state_dict"]
        weights |= {f"{run == path.parent} {name}": tensor.numpy().tobytes() for name, tensor in state.items()}
    for part in (report, *report["networks"]):
        for key in CHANGING:
            part.pop(key, None)
    return report | weights


def test_a_stopped_separation(tmp_path: Path, figures: dict[str, Any]) -> None:
    """A separation that is killed, or stopped by a signal, at any moment goes on where the same command is given again, to the same networks and figures."""  # noqa: E501
    training = Script("train", [*TRAINING, f"runs={tmp_path / 'original'}"], tmp_path / "train.log")
    assert training.wait() == 0, training.output
    (original,) = tmp_path.glob("original/*/*/*")

    def separate(folder: Path) -> Script:
        return Script("separate", [f"run={original}", *SEPARATION, f"runs={folder}"], tmp_path / "separate.log")

    started = time.time()
    script = separate(tmp_path / "whole")
    assert script.wait() == 0, script.output
    expected, seconds = describe(tmp_path / "whole"), time.time() - started
    assert expected
    draw = random.Random(0)
    counts: Counter[str] = Counter()
    separations = 0
    while sum(counts.values()) < trials(40):
        folder = tmp_path / str(separations)
        separations += 1
        for _ in range(draw.randint(1, 4)):
            number = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            script = separate(folder)
            script.stop(draw.uniform(0, seconds), number)
            ended = script.wait()
            counts[number.name] += 1
            assert ended in (0, -number, 128 + number), script.output
            if ended == 128 + number and "original:" in script.output:
                assert script.output.splitlines()[-1].startswith("stopped: what is finished is kept"), script.output
            if describe(folder):
                break
        else:
            script = separate(folder)
            assert script.wait() == 0, script.output
        assert describe(folder) == expected
    figures.update({**counts, "separations": separations, "gone on with and identical": separations, "lost": 0})
