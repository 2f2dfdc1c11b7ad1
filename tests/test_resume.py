"""Nothing is lost: what a training that is stopped, or whose disk, images or pictures fail, leaves behind."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import REPOSITORY, Outcome, refused
from PIL import Image
from recorded import configuration, write_run

from sepconv import InputError, Stopped, files
from sepconv.config.keys import CompareConfig, TrainConfig
from sepconv.config.read import read
from sepconv.data.module import restore
from sepconv.study.compare import compare
from sepconv.training import checkpoints, runs
from sepconv.training import train as training
from sepconv.training.callbacks import Monitor
from sepconv.training.checkpoints import CheckpointFiles
from sepconv.training.classifier import ImageClassifier
from sepconv.training.dashboard import Dashboard

Train = Callable[..., Path]
Command = Callable[..., Outcome]


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoints.load(run / "checkpoints/last.ckpt")["state_dict"]


def identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def stopped(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains, and has `owner`'s method `hook` raise `error` at its call `number`: the run's directory."""

    def run(owner: type, hook: str, number: int, error: BaseException, status: int, *arguments: object) -> Path:
        calls = 0
        original = getattr(owner, hook)

        def stopping(self: Any, *given: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                raise error
            return original(self, *given, **options)

        before = set(tmp_path.glob("runs/*/*/*"))
        with monkeypatch.context() as patch:
            patch.setattr(owner, hook, stopping)
            outcome = command("train", "trainer=cpu", f"runs={tmp_path / 'runs'}", *arguments)
        assert outcome.status == status, outcome
        (made,) = set(tmp_path.glob("runs/*/*/*")) - before
        assert not (made / "result.json").exists()
        lines = outcome.err.splitlines()
        assert f"resume={made} continues" in lines[-1], outcome.err
        assert "Traceback" not in outcome.err
        return made

    return run


# groups of steps: in the first epoch and the second
@pytest.mark.parametrize("number", [*(pytest.param(each, marks=pytest.mark.slow) for each in (2, 14)), 21])
def test_within_an_epoch(train: Train, command: Command, stopped: Callable[..., Path], number: int) -> None:
    """The state within an epoch is enough to end with the same bits, and the same figures, as without a stop."""
    arguments = ["recipe.epochs=2", "recipe.epoch_images=3000", "recipe.batch_size=100", "trainer.checkpoint_seconds=0",
                 "recipe.augment.flip=true", "recipe.augment.alternate=true", "recipe.augment.crop=2",
                 "recipe.normalize=unit", "model=baseline"]  # fmt: skip
    whole = train(*arguments)
    run = stopped(ImageClassifier, "training_step", number, Stopped(status=143), 143, *arguments)
    state = checkpoints.load(run / "checkpoints/last.ckpt")
    assert state["global_step"] == 2 * (number - 1)
    assert command("train", f"resume={run}").status == 0
    assert identical(weights(run), weights(whole))
    same = ("test_accuracy", "test_loss", "val_accuracy", "digests", "images", "classes")
    assert {key: result(run)[key] for key in same} == {key: result(whole)[key] for key in same}
    logs = [(directory / "train.log").read_text().splitlines() for directory in (run, whole)]
    losses = [[line.partition("callbacks: ")[2] for line in log if "loss" in line] for log in logs]
    assert losses[0] == losses[1]


def test_before_the_first_checkpoint(train: Train, command: Command, stopped: Callable[..., Path]) -> None:
    arguments = ["recipe.epochs=1", "trainer.limit_batches=3"]
    run = stopped(ImageClassifier, "training_step", 1, KeyboardInterrupt(), 130, *arguments)
    assert command("train", f"resume={run}").status == 0
    assert identical(weights(run), weights(train(*arguments)))


@pytest.mark.parametrize(
    ("number", "dirty", "git", "later"),
    [
        (6, False, "aaa", ["bbb"]),
        (6, True, "aaa", ["aaa (changed)"]),
        (1, False, "bbb", []),  # before the first checkpoint: it begins again
    ],
)
def test_a_resumed_run_keeps_the_code_of_its_start(
    command: Command, stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    number: int, dirty: bool, git: str, later: list[str],
) -> None:  # fmt: skip
    """Other code that it went on by is noted beside it, once, whether it is another commit or not committed."""
    arguments = ["recipe.epochs=4", "trainer.limit_batches=3", "model.width=0.5"]
    monkeypatch.setattr(runs, "current_code", lambda: {"sha": "aaa", "dirty": False})
    run = stopped(ImageClassifier, "training_step", number, KeyboardInterrupt(), 130, *arguments)
    monkeypatch.setattr(runs, "current_code", lambda: {"sha": "aaa" if dirty else "bbb", "dirty": dirty})
    if number > 1:
        with monkeypatch.context() as patch:
            patch.setattr(ImageClassifier, "training_step", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                command("train", f"resume={run}")
    assert command("train", f"resume={run}").status == 0
    record = result(run)
    assert record["git"] == {"sha": git, "dirty": False}
    assert [runs.name_code(code) for code in record["git_later"]] == later
    assert "model.width=0.5" in record["overrides"]
    assert f"resume={run}" not in record["overrides"]


def test_a_run_of_before_its_code_was_recorded(command: Command, stopped: Callable[..., Path]) -> None:
    run = stopped(ImageClassifier, "training_step", 6, KeyboardInterrupt(), 130, "recipe.epochs=4",
                  "trainer.limit_batches=3")  # fmt: skip
    (run / "code.yaml").write_text("[]")
    refused(command("train", f"resume={run}"), f"{run}/code.yaml is not a list")
    (run / "code.yaml").unlink()
    assert command("train", f"resume={run}").status == 0
    record = result(run)
    assert record["git"] == {"sha": None, "dirty": None}
    assert record["git_later"] == [runs.current_code()]


def test_in_the_test(command: Command, stopped: Callable[..., Path]) -> None:
    arguments = ["recipe.epochs=1", "trainer.limit_batches=3"]
    run = stopped(ImageClassifier, "test_step", 1, Stopped(status=143), 143, *arguments)
    assert command("train", f"resume={run}").status == 0
    assert result(run)["test_accuracy"] > 0
    assert refused(command("train", f"resume={run}"), "is complete") is None


def test_a_checkpoint_that_cannot_be_written(train: Train, command: Command, stopped: Callable[..., Path]) -> None:
    """A training whose state cannot be kept ends, and goes on later from the state before."""
    arguments = ["recipe.epochs=3", "trainer.limit_batches=3"]
    full = OSError(28, "No space left on device")
    run = stopped(CheckpointFiles, "save_checkpoint", 4, full, 2, *arguments)
    assert checkpoints.load(run / "checkpoints/last.ckpt")["epoch"] == 0
    assert command("train", f"resume={run}").status == 0
    assert identical(weights(run), weights(train(*arguments)))


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    files.write(target, b"before")
    target.with_name("last.ckpt.part").mkdir()  # cannot be opened for writing, by root neither
    with pytest.raises(InputError, match=r"cannot write .*last.ckpt"):
        CheckpointFiles().save_checkpoint({"state_dict": {}}, target)
    assert target.read_bytes() == b"before"
    with pytest.raises(InputError, match="cannot write"):
        files.write(tmp_path / "gone" / "last.ckpt", b"after")


def test_a_directory_removed_while_it_is_written(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_train_epoch_end = Monitor.on_train_epoch_end

    def removing(self: Monitor, *given: Any) -> None:
        on_train_epoch_end(self, *given)
        (run,) = tmp_path.glob("runs/*/*/*")
        shutil.rmtree(run)

    monkeypatch.setattr(Monitor, "on_train_epoch_end", removing)
    outcome = command("train", "trainer=cpu", f"runs={tmp_path}/runs", "recipe.epochs=1", "trainer.limit_batches=2")
    assert outcome.status == 2
    assert "was removed while its training ran" in outcome.err.splitlines()[-1]


def test_a_damaged_checkpoint_is_refused(train: Train, command: Command) -> None:
    """torch itself loads other weights from a file with a changed bit."""
    run = train("recipe.epochs=1", "trainer.limit_batches=2")
    path = run / "checkpoints/best.ckpt"
    data = bytearray(path.read_bytes())
    weight = next(tensor for tensor in weights(run).values() if tensor.numel() > 100)
    data[data.index(weight.numpy().tobytes()) + 5] ^= 4
    path.write_bytes(data)
    refused(command("evaluate", f"run={run}", "trainer=cpu"), "best.ckpt is damaged", "checksum")
    path.write_bytes(data[: len(data) // 2])
    refused(command("train", f"weights={run}"), "best.ckpt is damaged")


def test_one_process_trains_a_run(command: Command, stopped: Callable[..., Path]) -> None:
    run = stopped(ImageClassifier, "training_step", 1, KeyboardInterrupt(), 130, "recipe.epochs=1")
    with files.lock(run, "trained"):
        refused(command("train", f"resume={run}"), "is being trained by another process")
    assert command("train", f"resume={run}").status == 0


def test_pictures_that_fail_do_not_cost_the_result(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Dashboard, *given: Any) -> None:
        assert next(tmp_path.glob("*/*/*/result.json")).exists()
        raise RuntimeError("no room for a picture")

    monkeypatch.setattr(Dashboard, "show_test", failing)
    outcome = command("train", "trainer=cpu", f"runs={tmp_path}", "recipe.epochs=1", "trainer.limit_batches=2")
    assert outcome.status == 0, outcome.err
    assert "what the test shows could not be written" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.fixture
def _committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that runs is that of a commit."""
    monkeypatch.setattr(runs, "current_code", lambda: {"sha": "aaa", "dirty": False})


GRID = ["-m", "model=baseline,tiny", "seed=0,1", "trainer=cpu", "recipe.epochs=2", "trainer.limit_batches=4"]


def compared(folder: Path) -> list[tuple[Any, ...]]:
    """What compare.py says of each network of a grid, but for times."""
    (section,) = compare(CompareConfig(runs=[str(folder)])).sections
    return [(network.label, list(network.runs), network.accuracy, network.difference, network.median("macs"))
            for network in section.networks]  # fmt: skip


def grids(runs: Path) -> list[Path]:
    """The folders of grids that made a run, from the first."""
    return sorted((path.parent for path in runs.glob("multirun/*/runs.txt")), key=lambda path: path.stat().st_ctime)


def test_a_stopped_grid_goes_on(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are complete are kept, the one that was stopped is continued, the others are made."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command("train", *GRID, f"runs={whole}").status == 0
    calls = 0
    training_step = ImageClassifier.training_step

    def stopping(self: ImageClassifier, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 15:  # in the second epoch of the second of four
            raise KeyboardInterrupt
        return training_step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "training_step", stopping)
        assert command("train", *GRID, f"runs={parts}").status == 130
    first, second = sorted(path.parent for path in parts.glob("digits/*/*/config.yaml"))
    before = (first / "result.json").read_text()
    assert not (second / "result.json").exists()
    outcome = command("train", *GRID, f"runs={parts}", "resume=true")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("is complete, and kept") == 1
    assert (first / "result.json").read_text() == before
    latest = grids(parts)[-1]
    listed = [(latest / line).resolve() for line in (latest / "runs.txt").read_text().split()]
    assert listed[:2] == [first, second]
    assert len(set(listed)) == 4
    assert compared(latest) == compared(grids(whole)[0])
    again = command("train", *GRID, f"runs={parts}", "resume=true")
    assert again.out.count("is complete, and kept") == 4


BRIEF = ["recipe.epochs=1", "trainer.limit_batches=2"]


@pytest.mark.usefixtures("_committed")
@pytest.mark.parametrize("change", ["code", "recipe.epochs=3", "seed=5"])
def test_runs_of_other_code_settings_or_seeds_are_not_taken(
    train: Train, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    train(*BRIEF)
    if change == "code":
        monkeypatch.setattr(runs, "current_code", lambda: {"sha": "bbb", "dirty": False})
    run = train(*BRIEF, *[change] * ("=" in change), "resume=true")  # a new one
    assert not any("resume" in override for override in result(run)["overrides"])


@pytest.mark.parametrize("code", [{"sha": "aaa", "dirty": True}, {"sha": None, "dirty": None}])
def test_code_that_was_not_committed(
    command: Command, stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, code: dict[str, Any],
) -> None:  # fmt: skip
    """It may have changed since, of which a warning tells: what it began goes on, what it completed is kept."""
    monkeypatch.setattr(runs, "current_code", lambda: code)
    run = stopped(ImageClassifier, "training_step", 2, KeyboardInterrupt(), 130, *BRIEF)
    arguments = ["trainer=cpu", f"runs={tmp_path / 'runs'}", *BRIEF, "resume=true"]
    assert command("train", *arguments).status == 0
    assert result(run)["epochs"] == 1
    outcome = command("train", *arguments)
    assert outcome.status == 0, outcome.err
    assert "is complete, and kept" in outcome.out
    assert caplog.text.count(f"{run.name}: its code was not committed, and may have changed since") == 2
    assert len(list(run.parent.iterdir())) == 1


@pytest.mark.usefixtures("_committed")
def test_runs_from_the_weights_of_another_are_found(train: Train, command: Command, tmp_path: Path) -> None:
    """By its network and normalisation, which the command need not name."""
    source = train("model=tiny", "recipe.normalize=unit", *BRIEF)
    arguments = [*BRIEF, f"weights={source}/", "recipe.epochs=2", "resume=true"]
    run = train(*arguments)
    outcome = command("train", "trainer=cpu", f"runs={tmp_path / 'runs'}", *arguments)
    assert f"{run} is complete, and kept" in outcome.out


def test_a_run_that_is_found_goes_on_as_the_command_says(
    command: Command, stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the root and the time between checkpoints that it gives, which are no part of a run's identity."""
    run = stopped(ImageClassifier, "training_step", 2, KeyboardInterrupt(), 130, *BRIEF)
    begun: list[TrainConfig] = []
    work = training.work

    def noting(beginning: training.Beginning, *given: Any) -> Any:
        begun.append(beginning.config)
        return work(beginning, *given)

    monkeypatch.setattr(training, "work", noting)
    places = [f"data.root={tmp_path}", "trainer.checkpoint_seconds=7"]
    outcome = command("train", "trainer=cpu", f"runs={tmp_path / 'runs'}", *BRIEF, *places, "resume=true")
    assert outcome.status == 0, outcome.err
    assert result(run)["epochs"] == 1
    assert [(config.data.root, config.trainer.checkpoint_seconds) for config in begun] == [(str(tmp_path), 7.0)]


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ([], {}),
        (["trainer.checkpoint_seconds=7", "data.root=/d"], {"checkpoint_seconds": 7.0}),
        (["trainer.devices=2", "trainer.deterministic=false"], {"devices": 2, "deterministic": False}),
        (["trainer=gpu"], {"accelerator": "gpu", "deterministic": False}),
        (["trainer=debug", "trainer.step=eager"], {"deterministic": False, "detect_anomaly": True, "step": "eager"}),
    ],
)
def test_what_a_run_is_resumed_on(tmp_path: Path, overrides: list[str], changes: dict[str, Any]) -> None:
    """What it ran on, but for the keys that are given, or another choice; and as many batches as before."""
    begun = configuration("trainer=cpu", "trainer.deterministic=true", "trainer.limit_batches=5")
    run = write_run(tmp_path / "run", begun, [])
    config = read(TrainConfig, configuration(f"resume={run}", *overrides))
    assert asdict(training.find_trainer(config, overrides)) == begun["trainer"] | changes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_grids_that_are_killed_go_on(command: Command, tmp_path: Path) -> None:
    """At any moment: ten grids, each killed once, end in the table of one that was not."""
    arguments = [arg.replace("epochs=2", "epochs=6") for arg in GRID]
    started = time.monotonic()
    script = [sys.executable, str(REPOSITORY / "scripts/train.py"), *arguments]
    subprocess.run([*script, f"runs={tmp_path / 'whole'}"], check=True, capture_output=True)
    seconds = time.monotonic() - started
    expected, draw, killed = compared(grids(tmp_path / "whole")[0]), random.Random(0), 0
    for trial in range(10):
        folder = tmp_path / str(trial)
        process = subprocess.Popen([*script, f"runs={folder}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.2, 1) * seconds)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        assert command("train", *arguments, f"runs={folder}", "resume=true").status == 0
        assert compared(grids(folder)[-1]) == expected
        assert len(list(folder.glob("digits/*/*/result.json"))) == 4
    assert killed >= 5


@pytest.mark.slow
def test_a_job_of_a_cluster_that_is_preempted_goes_on(tmp_path: Path) -> None:
    """Jobs that Hydra's launcher for clusters starts, on this machine; one is told to make way, and is requeued."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    arguments = ["-m", "hydra/launcher=submitit_local", "model=tiny", "seed=0,-1", "trainer=cpu", "recipe.epochs=40",
                 "trainer.limit_batches=4", f"runs={tmp_path}", "resume=true"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "scripts/train.py"), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (begun := list(tmp_path.glob("digits/tiny/*/checkpoints/last.ckpt"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (run,) = [path.parents[1] for path in begun]
    assert not (run / "result.json").exists()
    for each in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # the other's, which has ended
            if "submitit.core._submit" in each.cmdline():
                each.send_signal(signal.SIGUSR2)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 2
    heading, failure = errors.strip().splitlines()[-2:]
    assert heading == "1 of 2 jobs failed:"
    assert "seed=-1 is out of range" in failure
    logs = [path.read_text() for path in tmp_path.glob("multirun/*/.submitit/**/*_log.*")]
    assert sum(log.count("Requeued job") for log in logs) == 1
    assert (run / "train.log").read_text().count("epoch 1: ") == 1
    assert [path.parent for path in tmp_path.glob("digits/tiny/*/result.json")] == [run]
    assert [epoch["epoch"] for epoch in result(run)["history"]] == list(range(1, 41))
    (listed,) = (grids(tmp_path)[-1] / "runs.txt").read_text().split()
    assert (grids(tmp_path)[-1] / listed).resolve() == run


def test_a_launcher_that_there_is_not(command: Command, tmp_path: Path) -> None:
    outcome = command("train", "-m", "hydra/launcher=nonsense", "seed=0,1", f"runs={tmp_path}")
    refused(outcome, "unknown hydra/launcher=nonsense")


@pytest.mark.slow
def test_a_run_that_a_cluster_starts(tmp_path: Path) -> None:
    """With the rank of one process of several in its environment, a run is a run: it has its curves and its result."""
    ranks = {"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NTASKS": "8", "SLURM_JOB_NAME": "grid",
             "SLURM_JOB_ID": "1", "SLURM_NODELIST": "n", "SLURM_NODEID": "0", "RANK": "3", "LOCAL_RANK": "3",
             "WORLD_SIZE": "8", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "GROUP_RANK": "0"}  # fmt: skip
    arguments = ["trainer=cpu", f"runs={tmp_path}", "recipe.epochs=1", "trainer.limit_batches=2", "seed=3"]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/train.py", *arguments],
        capture_output=True, text=True, env=os.environ | ranks,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("*/*/*")
    assert result(run)["seed"] == 3
    assert list(run.glob("events.*"))


def make_folder(root: Path, images: int = 12, names: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(images):
            Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_a_run_is_bound_to_its_images(
    train: Train, stopped: Callable[..., Path], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other images, or other names of the same classes, are refused; the same images in another place are not."""
    monkeypatch.chdir(tmp_path)
    make_folder(Path("images"))
    arguments = ["data=folder", "data.image_size=8", "recipe.batch_size=4", "recipe.epochs=1", "data.root=images"]
    run, begun = (
        train(*arguments),
        stopped(ImageClassifier, "test_step", 1, KeyboardInterrupt(), 130, *arguments),
    )
    monkeypatch.chdir("/")  # the place of the images is recorded, not how it was typed
    assert command("evaluate", f"run={run}", "trainer=cpu").status == 0
    moved = (tmp_path / "images").rename(tmp_path / "moved")
    root = f"data.root={moved}"
    assert command("evaluate", f"run={run}", "trainer=cpu", root).status == 0

    Image.new("RGB", (8, 8)).save(moved / "cat" / "one more.png")  # moves others from one part to another
    refused(command("evaluate", f"run={run}", root), "the images of test differ")
    refused(command("separate", f"run={run}", "method=spatial", "rank=1", root), "the images of")
    refused(command("train", f"resume={begun}", root), "the images of")
    assert command("evaluate", f"run={run}", "trainer=cpu", root, "other_images=true").status == 0
    outcome = command("train", f"weights={run}", *arguments[:4], root, f"runs={tmp_path / 'tuned'}", "trainer=cpu")
    assert outcome.status == 0
    assert "were trained on other images" in outcome.err
    (moved / "cat" / "one more.png").unlink()

    (moved / "cat").rename(moved / "pig")  # now dogs come first
    for words in ([f"run={run}", "other_images=true"], [f"run={run}"]):
        refused(command("evaluate", *words, root), "class 0 was 'cat' and is 'dog'")
    refused(command("train", f"resume={begun}", root), "class 0 was 'cat' and is 'dog'")
    (moved / "pig").rename(moved / "cat")
    assert command("train", f"resume={begun}", root).status == 0


def test_counts_are_of_the_images_that_are_used(train: Train, command: Command) -> None:
    run = train("recipe.epochs=1", "trainer.limit_batches=1", "recipe.batch_size=100", "data.test=0.5")
    assert result(run)["images"]["train"] == 100
    assert result(run)["images"]["test"] == 500
    assert " 500 " in command("evaluate", f"run={run}", "trainer.limit_batches=1", "trainer=cpu").out


def test_the_state_of_another_kind_of_generator() -> None:
    """A GPU's, which is smaller, gives a CPU's draws of its own, the same each time."""
    generator = torch.Generator()
    draws = []
    for state in (torch.arange(16, dtype=torch.uint8), torch.arange(16, dtype=torch.uint8), torch.zeros(16).byte()):
        restore(generator, state)
        draws.append(torch.rand(3, generator=generator).tolist())
    assert draws[0] == draws[1] != draws[2]


def test_a_run_whose_files_are_damaged_meanwhile_is_recorded(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was begun with is known from its beginning."""
    stop = Monitor.on_train_epoch_end

    def damage(self: Monitor, trainer: Any, module: Any) -> None:
        for name in ("code.yaml", "config.yaml", "overrides.yaml"):
            (Path(trainer.loggers[0].log_dir) / name).write_text("{")
        stop(self, trainer, module)

    monkeypatch.setattr(Monitor, "on_train_epoch_end", damage)
    figures = result(train("recipe.epochs=1", "trainer.limit_batches=2"))
    assert "trainer.limit_batches=2" in figures["overrides"]
    assert figures["git"].keys() == {"sha", "dirty"}
