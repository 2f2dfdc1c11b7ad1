"""Trainings on several devices: a process for each, on this CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import REPOSITORY, Outcome, refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from sepconv import InputError
from sepconv.config.keys import TrainerConfig
from sepconv.devices import check_devices, describe_device
from sepconv.networks import fused
from sepconv.ranks import Ranks
from sepconv.study.compare import name_hardware
from sepconv.training.norms import CpuBatchNorms

Train = Callable[..., Path]
SCRIPT = [sys.executable, str(REPOSITORY / "scripts/train.py"), "trainer=cpu"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def losses(run: Path) -> list[float]:
    """The training loss of each step, as TensorBoard has it."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars("loss/train")]


@pytest.fixture
def alone(train: Train, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains in one process, whatever this one was started by."""
    for name in ("WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "steps", "tolerance"),
    [
        # small steps: with larger ones, what a sum's order rounds off grows from step to step
        (["model=separable", "recipe.optimizer={name: SGD, lr: 0.002}"], 26, 1e-5),
        (["model.conv=dense", "recipe.optimizer={name: SGD, lr: 0.002}"], 26, 1e-5),
        (["recipe=muon", "trainer.limit_batches=3"], 6, 5e-3),
    ],
)
def test_two_devices_train_as_one(alone: Train, arguments: list[str], steps: int, tolerance: float) -> None:
    """The same losses step by step, test and predictions; batches are shares of 50 and 51 images, the last is small."""
    arguments = [*arguments, "recipe.batch_size=101", "recipe.drop_last=false", "recipe.precision=fp32",
                 "recipe.epochs=2", "model.kernels=torch"]  # fmt: skip
    one, two = alone(*arguments), alone(*arguments, "trainer.devices=2")
    assert len(losses(one)) == steps
    assert losses(two) == pytest.approx(losses(one), rel=tolerance)
    ours, theirs = result(two), result(one)
    assert (ours["device"]["count"], "count" in theirs["device"]) == (2, False)
    assert ours["images"] == theirs["images"]
    for key in ("test_loss", "test_accuracy", "val_accuracy"):
        assert ours[key] == pytest.approx(theirs[key], rel=10 * tolerance, abs=0.006)  # two images
    predictions = [np.load(run / "predictions.npy") for run in (one, two)]
    assert np.array_equal(predictions[0][1], predictions[1][1])
    assert (predictions[0][0] == predictions[1][0]).mean() > 0.98
    assert len(list(two.glob("events.*"))) == len(list(one.glob("events.*")))
    assert [(run / "train.log").read_text().count("train loss") for run in (one, two)] == [2, 2]


def start(tmp_path: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Starts a training on two devices that takes minutes, and waits for its first checkpoint."""
    command = [*SCRIPT, f"runs={tmp_path}", "trainer.devices=2", "recipe.epochs=20", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ONE_THREAD, start_new_session=True
    )
    while not list(tmp_path.glob("*/*/*/checkpoints/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    return process


def ranks_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if any("spawn_main" in word for word in child.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_others(tmp_path: Path, rank: int) -> None:
    """With one line, within a minute; the run goes on."""
    process = start(tmp_path)
    members = ranks_of(process)
    assert len(members) == 2
    members[rank].kill()
    _, errors = process.communicate(timeout=60)
    (run,) = tmp_path.glob("*/*/*/")
    assert process.returncode == 2
    assert (
        errors.splitlines()[-1]
        == f"error: process {rank} of this training was ended by SIGKILL: resume={run} continues"
    )
    assert "Traceback" not in errors
    assert not any(member.is_running() for member in members)
    done = subprocess.run(
        [*SCRIPT, f"resume={run}", "trainer.devices=2"], capture_output=True, text=True, env=ONE_THREAD
    )
    assert done.returncode == 0, done.stderr
    assert result(run)["epochs"] == 20
    assert len(result(run)["history"]) == 20


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_all_processes(tmp_path: Path, number: int, status: int) -> None:
    process = start(tmp_path)
    members = ranks_of(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    (run,) = tmp_path.glob("*/*/*/")
    assert process.returncode == status
    assert errors.splitlines()[-1] == f"stopped: resume={run} continues"
    assert "Traceback" not in errors
    assert not any(member.is_running() for member in members)


@pytest.mark.slow
def test_a_loss_that_diverges_on_two_devices(command: Callable[..., Outcome], tmp_path: Path) -> None:
    """Is told once, as on one."""
    outcome = command("train", "trainer=cpu", "trainer.devices=2", f"runs={tmp_path}", "recipe.epochs=1",
                      "recipe.optimizer={name: SGD, lr: 1e30}")  # fmt: skip
    refused(outcome, "the loss became", "lower recipe.optimizer.lr")


@pytest.mark.slow
def test_processes_that_torchrun_starts(tmp_path: Path) -> None:
    arguments = [f"runs={tmp_path}", "trainer.devices=2", "recipe.epochs=1", "trainer.limit_batches=2"]
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *SCRIPT[1:]]
    done = subprocess.run([*starter, *arguments], capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("*/*/*")
    assert result(run)["device"]["count"] == 2
    assert done.stdout.count("test accuracy") == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", [[], ["recipe.batch_size=1"]])
def test_processes_that_slurm_starts(tmp_path: Path, fault: list[str]) -> None:
    """They share one run; where there is none to train, one of them says why."""
    arguments = [f"runs={tmp_path}", "trainer.devices=2", "recipe.epochs=1", "trainer.limit_batches=2", *fault]
    given = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0",
             "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": "29617"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [*SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=ONE_THREAD | given | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [2 * bool(fault)] * 2, outputs
    if fault:
        assert [errors.count("error: ") for _, errors in outputs] == [1, 0]
        assert not list(tmp_path.glob("*/*/*"))
    else:
        (run,) = tmp_path.glob("*/*/*")
        assert result(run)["device"]["count"] == 2
        assert [output.count("test accuracy") for output, _ in outputs] == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trainer.devices=0"], ["trainer.devices=0", "1 or more"]),
        (["trainer.devices=9"], ["trainer.devices=9", "4 cores"]),
        (["trainer.devices=2", "trainer.step=graph"], ["trainer.step=graph needs one device", "trainer.step=eager"]),
        (["trainer.devices=2", "trainer.step=compile"], ["trainer.step=compile needs one device"]),
        (["trainer.devices=2", "recipe.batch_size=1"], ["recipe.batch_size=1", "fewer than trainer.devices=2"]),
        (["trainer.devices=4", "recipe.batch_size=1291", "recipe.drop_last=false"], ["a batch of 3, fewer than"]),
    ],
)
def test_devices_that_cannot_be_used(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    words: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    refused(command("train", "trainer=cpu", f"runs={tmp_path}", *arguments), *words)
    assert not list(tmp_path.iterdir())


def test_more_gpus_than_there_are(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    outcome = command("train", "trainer=gpu", "trainer.devices=2", f"runs={tmp_path}")
    refused(outcome, "trainer.devices=2 is more than this machine has: 1 GPU")


def test_too_few_gpus_on_each_of_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(TrainerConfig(accelerator="gpu", devices=4), machines=2)
    with pytest.raises(InputError, match=r"trainer\.devices=6 is more than there are on 2 machines .* with: 2 GPUs"):
        check_devices(TrainerConfig(accelerator="gpu", devices=6), machines=2)


@pytest.mark.parametrize("devices", [1, 2])
def test_as_many_devices_as_processes_were_started(
    command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    """Else each would train the same network, or some none."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    outcome = command("train", "trainer=cpu", f"trainer.devices={devices}", f"runs={tmp_path}")
    refused(outcome, f"trainer.devices={devices}", "3, as many as processes were started")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["evaluate", "separate"])
def test_commands_for_one_device(command: Callable[..., Outcome], name: str) -> None:
    more = ["method=spatial", "rank=1"] * (name == "separate")
    refused(command(name, "run=RUN", "trainer.devices=2", *more), "trainer.devices=2", "only a training")


def test_times_on_several_devices_are_not_compared_with_those_on_one() -> None:
    device = describe_device(torch.device("cpu"))
    assert name_hardware(describe_device(torch.device("cpu"), 2)) == f"2 x {name_hardware(device)}"


def test_shares_are_all_rows_in_order() -> None:
    rows = torch.arange(103)
    shares = [rows[Ranks(rank, 4).share(103)] for rank in range(4)]
    assert torch.equal(torch.cat(shares), rows)
    assert {len(share) for share in shares} == {25, 26}


@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_of_several_processes(affine: bool) -> None:
    """In one process it is torch's: outputs, gradients, statistics, and evaluation by them; and torch's comes back."""
    torch.manual_seed(0)
    plain, synchronised = (nn.Sequential(nn.BatchNorm2d(3, momentum=0.3, affine=affine)) for _ in range(2))
    layers = CpuBatchNorms(Ranks())
    layers.apply(synchronised)
    assert not fused.find_chain(list(synchronised))
    for net in (plain, synchronised):
        images = torch.randn(7, 3, 5, 4, generator=torch.Generator().manual_seed(1)).mul_(3).add_(1).requires_grad_()
        (net(images) ** 3).sum().backward()
        net.images = images.grad  # type: ignore[assignment]
    torch.testing.assert_close(synchronised.images, plain.images, rtol=1e-4, atol=1e-3)
    for one, other in zip(synchronised.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-3)
    layers.revert(synchronised)
    assert isinstance(synchronised[0], nn.BatchNorm2d)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(synchronised.state_dict()[name], value)
    assert torch.allclose(synchronised.eval()(images), plain.eval()(images), atol=1e-5)
