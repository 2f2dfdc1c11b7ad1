"""What a shell hands over: paths as they were typed, grids, signals; and an output that fails."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, Outcome, refused
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from sepconv import Stopped
from sepconv.arguments import gather, take_path, write_value
from sepconv.cli import heed_signals
from sepconv.config.keys import TrainConfig

Command = Callable[..., Outcome]

QUICK = ["trainer=cpu", "recipe.epochs=1", "trainer.limit_batches=1"]
# of folders, as a shell hands them over
NAMES = ["Käfer (1)", "x=y", "a b", "{a}", "[b]", "it's", 'say "x"', "#;!&", "100%", "back\\slash", "end\\", "$HOME",
         "a,b", "1e3", "null", "1_000", "'quoted'", "😀", "~tilde", "a:b", "choice(a,b)"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_was_typed(tmp_path: Path, name: str) -> None:
    """In a key that is a path, one of several paths, and in a grid beside others."""
    path = f"{tmp_path}/{name}"
    Path(path).mkdir()
    for grid in (False, True):
        (value,) = read([take_path(f"runs={path}", "runs", listed=False, grid=grid)])
        assert value == path
    (value,) = read([take_path(f"runs={name}", "runs", listed=False, grid=False)])
    assert str(value) == name or (name, value) == ("null", None) or name == "'quoted'"
    assert read(gather([path, "output=x"], "runs", ["output"])) == ["x", [path]]


def read(overrides: list[str]) -> list[object]:
    """The values of overrides, as Hydra reads them."""
    return [override.value() for override in OverridesParser.create().parse_overrides(overrides)]


def test_what_is_hydras_stays_hydras() -> None:
    for argument in ("runs=null", "runs=", "seed=~", "runs='a b'", "~runs"):
        assert take_path(argument, "runs", listed=False, grid=False) == argument
    assert take_path("runs=a,~/b", "runs", listed=False, grid=True) == "runs=a,'~/b'"
    assert take_path("runs=a b=c", "runs", listed=True, grid=False) == "runs=['a b=c']"
    assert take_path("runs=[a,b]", "runs", listed=True, grid=False) == "runs=[a,b]"
    assert gather(["~/runs", "a/x=y", "refrence=x"], "runs", ["runs"]) == ["refrence=x", "runs=['~/runs','a/x=y']"]


@pytest.mark.parametrize(
    "value",
    [
        3,
        2.5,
        1e-7,
        True,
        None,
        "relu",
        "it's",
        "a, b",
        [{"channels": 8, "squeeze": False}, {"expansion": 2.5}],
        {"a": []},
    ],
)
def test_values_are_read_as_they_were_written(value: object) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"model.key={write_value(value)}"])
    assert override.value() == value


def test_paths_from_the_command_line(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is one's home; the environment and other keys may stand in a path; backslashes are characters."""
    given: list[TrainConfig] = []

    def train(config: TrainConfig, *_: object) -> tuple[Path, None]:
        given.append(config)
        return Path(config.runs), None

    monkeypatch.setattr("sepconv.training.train.train", train)
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed, path in {
        "~/Käfer (1)/x=y": f"{tmp_path}/Käfer (1)/x=y",
        "${oc.env:HOME}/Ä": f"{tmp_path}/Ä",
        "${data.root}/$HOME": "/data root/$HOME",
        "a\\=b": "a\\=b",
    }.items():
        outcome = command("train", f"runs={typed}", "data.root=/data root")
        assert outcome.status == 0, outcome.err
        assert given.pop().runs == path
    monkeypatch.chdir(tmp_path)
    assert command("train", "-m", "weights=~/a b,c=d", "runs=a b").status == 0
    assert [(config.weights, config.runs) for config in given] == [(f"{tmp_path}/a b", "a b"), ("c=d", "a b")]
    refused(command("train", "runs=~no-such-user/x"), "no such user", "./~no-such-user/x")
    refused(command("train", "runs=/tmp/\udcff"), "runs=/tmp/\\udcff is not UTF-8")


def test_a_folder_whose_name_begins_as_a_home(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given as the refusal of `~no-such-user` says, to every command."""
    monkeypatch.chdir(tmp_path)
    place, short = "./~no-such-user", ["trainer=cpu", "recipe.epochs=1", "trainer.limit_batches=1"]
    for arguments in (["train", f"runs={place}", *short], ["compare", place, f"output={place}/out"]):
        outcome = command(*arguments)
        assert outcome.status == 0, outcome.err
    (run,) = (tmp_path / place).glob("digits/separable/*")
    assert command("evaluate", f"run={place}/{run.relative_to(tmp_path / place)}", "trainer=cpu").status == 0
    assert (tmp_path / place / "out/report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "optimizer", "model"),
    [
        (["recipe.optimizer={name: SGD, lr: 0.1, momentum: 0.9}"], {"name": "SGD", "lr": 0.1, "momentum": 0.9}, None),
        (["recipe.optimizer.name=SGD", "recipe.optimizer.momentum=0.9"], {"name": "SGD", "momentum": 0.9}, None),
        (["recipe.optimizer.name=SGD", "~recipe.optimizer.betas"], {"name": "SGD"}, None),
        (["experiment=smallest_mnist", "recipe.optimizer.name=Adam"], {"name": "Adam"}, None),
        (["recipe.optimizer={name: AdamW, lr: 0.1}"],
         {"name": "AdamW", "lr": 0.1, "fused": True, "betas": [0.9, 0.99], "weight_decay": 0.05}, None),
        (["recipe=muon", "recipe.optimizer.others.name=SGD"], None, None),
        (["model={name: tiny, stem: 4}"], None, {"name": "tiny", "stem": 4}),
        (["model.name=tiny"], None, {"name": "tiny"}),
    ],
)  # fmt: skip
def test_another_optimizer_or_network_inherits_nothing(
    command: Command, tmp_path: Path, arguments: list[str], optimizer: object, model: object
) -> None:
    outcome = command("train", *arguments, "--cfg", "job")
    assert outcome.status == 0, outcome.err
    config = OmegaConf.to_container(OmegaConf.create(outcome.out))
    assert isinstance(config, dict)
    if optimizer is not None:
        assert config["recipe"]["optimizer"] == optimizer
    if model is not None:
        assert config["model"] == model
    if arguments[0] == "recipe=muon":
        assert config["recipe"]["optimizer"]["others"] == {"name": "SGD"}


def test_a_grid_goes_on_past_what_fails(command: Command, tmp_path: Path) -> None:
    """Past a choice that there is not, and a value out of range; they are listed at the end."""
    outcome = command(
        "train", "-m", *QUICK, f"runs={tmp_path}", "model=baseline,nonsense", "recipe.optimizer.lr=1e-3,-1"
    )
    assert outcome.status == 2
    *_, heading, first, second, third = outcome.err.splitlines()
    assert heading == "3 of 4 jobs failed:"
    assert "recipe.optimizer.lr=-1 is out of range" in first
    assert "unknown model=nonsense" in second
    assert "model=nonsense recipe.optimizer.lr=-1:" in third
    assert "Traceback" not in outcome.err
    (list_,) = tmp_path.glob("multirun/*/runs.txt")
    (line,) = list_.read_text().splitlines()
    assert json.loads((list_.parent / line / "result.json").read_text())["model"] == "baseline"
    assert not Path(line).is_absolute()


def test_an_error_of_ours_in_a_grid(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: object, overrides: list[str], started: float) -> tuple[Path, None]:
        if "seed=1" in overrides:
            raise RuntimeError("a slip of ours")
        return tmp_path / overrides[0], None

    monkeypatch.setattr("sepconv.training.train.train", fail)
    outcome = command("train", "-m", "seed=0,1,2", f"runs={tmp_path}")
    assert outcome.status == 1
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-2:] == ["1 of 3 jobs failed:", f"  seed=1 runs={tmp_path}: a slip of ours"]
    (list_,) = tmp_path.glob("multirun/*/runs.txt")
    assert len(list_.read_text().splitlines()) == 2


def test_grids_of_one_second_have_a_folder_each(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepconv.training.train.train", lambda _, overrides, __: (tmp_path / overrides[0], None))
    for seeds in ("0,1", "2,3", "4"):
        assert command("train", "-m", f"seed={seeds}", f"hydra.sweep.dir={tmp_path}/grid").status == 0
    found = [(path.parent.name, path.read_text().split()) for path in sorted(tmp_path.glob("grid*/runs.txt"))]
    lists = {"grid": ["../seed=0", "../seed=1"], "grid-2": ["../seed=2", "../seed=3"], "grid-3": ["../seed=4"]}
    assert found == list(lists.items())


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt("resume=X continues"), 130), (Stopped("Y", 143), 143)])
def test_a_signal_ends_a_grid(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, status: int
) -> None:
    """At once, with what continues the run and which jobs are left."""

    def train(*_: object) -> None:
        raise stop

    monkeypatch.setattr("sepconv.training.train.train", train)
    outcome = command("train", "-m", "seed=0,1", "runs=a b")
    assert outcome.status == status
    first, heading, left = outcome.err.splitlines()
    assert (first, heading) == (f"stopped: {stop}", "jobs that were not begun:")
    assert shlex.split(left) == ["python", "scripts/train.py", "seed=1", "runs='a b'"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int) -> None:
    """It is heeded after that: torch's would abort the process."""
    code = f"import os, time\nos.kill(os.getpid(), {number})\ntime.sleep(0.1)\n"
    (tmp_path / "interrupted.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "interrupted", raising=False)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        signal.signal(number, signal.SIG_DFL)  # a shell has what it starts in the background ignore SIGINT
        heed_signals()
        importlib.import_module("interrupted")
        with pytest.raises(Stopped) as stopped:
            time.sleep(2)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert stopped.value.status == status


@pytest.mark.parametrize("kind", ["reader gone", "closed", "disk full", "ASCII"])
def test_output_that_fails(kind: str) -> None:
    """Neither a traceback nor another status, but for a full disk: a line, and status 2."""
    script = str(REPOSITORY / "scripts/train.py")
    arguments = [sys.executable, script, "--cfg", "job", "runs=/tmp/Käfer"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    if kind == "disk full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    shell = {
        "reader gone": '"$@" | head -1; exit ${PIPESTATUS[0]}',
        "closed": '"$@" >&-',
        "disk full": '"$@" > /dev/full',
        "ASCII": '"$@"',
    }[kind]
    done = subprocess.run(["bash", "-c", shell, "_", *arguments], env=environment, capture_output=True, text=True)
    if kind == "disk full":
        assert done.returncode == 2
        assert done.stderr.startswith("error: standard output took no more (No space left on device)")
        assert done.stderr.count("\n") == 1
    else:
        assert (done.returncode, done.stderr) == (0, "")
