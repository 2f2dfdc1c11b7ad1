import json
import subprocess
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Outcome, data_config, refused

from sepconv import InputError
from sepconv.benchmark import airbench, peers, time_to_accuracy
from sepconv.data.datasets import load

# as airbench94_muon.py prints it; the warm-up, then one training
TABLE = """\
---------------------------------------------------------------------------------
|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
---------------------------------------------------------------------------------
|  warmup  |      0  |     0.1004  |   0.1000  |               |       41.0312  |
|          |   eval  |     0.1004  |   0.1000  |       0.1000  |       55.5016  |
---------------------------------------------------------------------------------
|       0  |      0  |     0.5123  |   0.7004  |               |        0.3012  |
|          |      1  |     0.9125  |   0.9331  |               |        2.1012  |
|          |   eval  |     0.9125  |   0.9331  |       0.9402  |        2.1987  |
---------------------------------------------------------------------------------
"""
# a script that, like airbench's, finds its images in its folder and prints a table; its accuracies and seconds count up
SCRIPT = """\
import os
assert os.listdir("cifar10") == ["cifar-10-batches-py"] and os.listdir("cifar10/cifar-10-batches-py") == ["a batch"]
open("cifar10/train.pt", "w").close()
print("|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")
count = 0
for run in ["warmup", *range({runs})]:
    for epoch in range(8):
        print(f"|  {{run:>6}}  |  {{epoch:>5}}  |     0.5000  |   0.8000  |               |        1.0000  |")
        run = ""
    count += 1
    print(f"|          |   eval  |     0.5000  |   0.900{{count}}  |       0.940{{count}}  |        {{count}}.0000  |")
{end}
"""
HANG = "import time; time.sleep(600)"  # in place of the runs that nobody waits for


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Arguments with which the peer runs SCRIPT, in a git repository of its own."""

    def make(runs: int, end: str) -> list[str]:
        monkeypatch.setattr(airbench, "find_device", lambda config: torch.device("cuda"))
        monkeypatch.setattr(peers, "load", lambda config: load(data_config("digits")))
        folder, data = tmp_path / "cifar10-airbench", tmp_path / "data/cifar-10-batches-py"
        for path in (folder, data):
            path.mkdir(parents=True)
        (data / "a batch").touch()
        (folder / "airbench94_muon.py").write_text(SCRIPT.format(runs=runs, end=end))
        git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "."]):
            subprocess.run([*git, *command], check=True)
        return ["suite=peers", "data=cifar10", f"data.root={tmp_path / 'data'}", f"airbench={folder}", "trainer=cpu",
                f"output={tmp_path}"]  # fmt: skip

    return make


def test_printed_table() -> None:
    lines = TABLE.splitlines(keepends=True)
    rows = [tuple(figures.values()) for figures in airbench.parse(lines)]
    assert rows == [(1, 55.5016, 0.1, 0.1), (2, 2.1987, 0.9331, 0.9402)]
    assert len(list(airbench.parse(lines[:-2]))) == 1


@pytest.mark.parametrize(
    "change", [("time_seconds", "hours"), ("tta_val_acc", "acc"), ("0.9402", "much"), ("0.9402  |", "")]
)
def test_another_table_is_refused(change: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="does not fit its table"):
        list(airbench.parse(TABLE.replace(*change).splitlines()))


def test_airbench_beside_ours(
    command: Callable[..., Outcome], checkout: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its trainings come halfway, the first left out; once there are enough of them, its process is ended."""
    accuracies = {"test_accuracy": 0.93, "test_accuracy_tta": 0.95}

    def train_quietly(training: Any, dataset: Any) -> SimpleNamespace:
        figures = dict.fromkeys(("parameters", "macs", "batch_size", "precision"))
        return SimpleNamespace(**figures, **accuracies, val_accuracy=0.9, epochs=2, fit_seconds=1.0, test_seconds=0.75)

    monkeypatch.setattr(time_to_accuracy, "train_quietly", train_quietly)
    monkeypatch.setattr(peers, "train_quietly", train_quietly)
    arguments = checkout(4, HANG)
    outcome = command("benchmark", *arguments, "peers=[airbench,ours]", "rounds=4", "target=0.94")
    assert outcome.status == 0, outcome.err
    order = [line.split(":")[0] for line in outcome.out.splitlines() if "with test-time augmentation" in line]
    assert order == ["ours"] * 2 + ["airbench"] * 4 + ["ours"] * 2
    record = json.loads((tmp_path / "peers-cifar10-cpu.json").read_text())
    rows, script = record["trainings"], tmp_path / "cifar10-airbench/airbench94_muon.py"
    row = rows["airbench"]
    assert row["fit_seconds"]["turns"] == [2, 3, 4, 5]
    assert row["test_accuracy"]["turns"] == [0.9002, 0.9003, 0.9004, 0.9005]
    assert row["test_accuracy_tta"]["turns"] == [0.9402, 0.9403, 0.9404, 0.9405]
    assert (row["test_accuracy"]["mean_reaches_target"], row["test_accuracy_tta"]["mean_reaches_target"]) == (0, 1)
    assert row["turns"][0]["images"] == 8 * 50_000
    assert rows["ours"]["times_as_fast_as_airbench"] == 2  # with the seconds of the test
    assert rows["ours"]["test_accuracy_tta"]["mean"] == 0.95
    assert "with test-time views" in outcome.out
    assert "as airbench" in outcome.out
    made = record["airbench"]
    assert made["sha256"] == sha256(script.read_bytes()).hexdigest()
    sha = subprocess.run(["git", "-C", str(script.parent), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert made["git"] == {"sha": sha.strip(), "dirty": False}
    assert not list((tmp_path / "data").rglob("*.pt"))

    accuracies["test_accuracy_tta"] = None  # a training that does not test so
    script.write_text(script.read_text() + "# changed\n")
    outcome = command("benchmark", *arguments, "peers=[airbench,ours]", "rounds=1")
    record = json.loads((tmp_path / "peers-cifar10-cpu.json").read_text())
    assert record["airbench"]["git"] == {"sha": sha.strip(), "dirty": True}
    assert "test_accuracy_tta" not in record["trainings"]["ours"]


def train_bare(config: Any, dataset: Any, seed: int) -> Any:
    """In place of the bare loop's training."""
    time.sleep(0.3)
    figures = dict.fromkeys(("parameters", "batch_size", "precision"))
    yield {**figures, "fit_seconds": 1.0, "test_accuracy": 0.9, "images": 9, "epochs": 1}


def test_turns_end_in_time(
    command: Callable[..., Outcome], checkout: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each training has one turn at least; airbench's block is cut short."""
    monkeypatch.setitem(peers.PEERS, "bare", train_bare)
    arguments = [*checkout(6, HANG), "peers=[airbench,bare]", "rounds=6", "seconds=0.1"]
    outcome = command("benchmark", *arguments)
    assert outcome.status == 0, outcome.err
    rows = json.loads((tmp_path / "peers-cifar10-cpu.json").read_text())["trainings"]
    assert {name: len(row["turns"]) for name, row in rows.items()} == {"airbench": 1, "bare": 1}
    refused(command("benchmark", *arguments, "seconds=0"), "seconds=0", "above 0")


@pytest.mark.parametrize(
    ("end", "reason"),
    [("raise SystemExit('warning: x\\nno kernel image')", "no kernel image"), ("raise SystemExit(0)", "status 0")],
)
def test_a_script_that_ends_before(
    command: Callable[..., Outcome], checkout: Callable[..., list[str]], end: str, reason: str,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """The command fails, in a line, but what was measured until then is recorded, and the others' turns go on."""
    monkeypatch.setitem(peers.PEERS, "bare", train_bare)
    outcome = command("benchmark", *checkout(2, end), "peers=[airbench,bare]", "rounds=3")
    refused(outcome, "airbench94_muon.py ended after 2 of 3 trainings", reason)
    record = json.loads((tmp_path / "peers-cifar10-cpu.json").read_text())
    assert {name: len(row["turns"]) for name, row in record["trainings"].items()} == {"airbench": 2, "bare": 3}
    assert reason in record["failed"]["airbench"]


def test_bad_input(
    command: Callable[..., Outcome], checkout: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    suite = ["suite=peers", "peers=[airbench,ours]", "trainer=cpu"]
    clone = "git clone https://github.com/KellerJordan/cifar10-airbench and give airbench=PATH"
    refused(command("benchmark", *suite), "airbench is not set", clone)
    refused(command("benchmark", *suite, f"airbench={tmp_path}"), f"{tmp_path}/airbench94_muon.py does not", clone)
    real = airbench.find_device
    suite += checkout(1, HANG)
    refused(command("benchmark", *suite, "data=digits"), "data=cifar10")
    refused(command("benchmark", *suite, "data.train=100"), "data.train")
    monkeypatch.setattr(airbench, "find_device", real)
    refused(command("benchmark", *suite), "needs CUDA")
