"""A training on several devices: a process for each, which train one network together by Lightning's DDP.

torchrun and SLURM start the processes themselves. Without them this one does, by what torchrun is made of, and watches
them: where one ends, the others do. One process makes a run's directory: the first, or the one that starts them.
"""

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from sepconv import InputError, Stopped, terminal
from sepconv.config.keys import TrainerConfig
from sepconv.config.rules import check
from sepconv.devices import check_devices, name_accelerator
from sepconv.ranks import Ranks
from sepconv.text import printable

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 10.0  # seconds in which whoever started a process can end it, and say why, before it says so itself


class Group:
    """The processes of a training, to which this one belongs as soon as it is made.

    Args:
        environment: says which of them this one is, and where the first is.
        config: of all of them.
    """

    def __init__(self, environment: ClusterEnvironment, config: TrainerConfig) -> None:
        terminal.quiet()
        machines = count_machines(environment)
        check_devices(config, machines)
        self.environment = environment
        self.options: dict[str, Any] = {
            "accelerator": name_accelerator(config),
            "devices": config.devices // machines,
            "num_nodes": machines,
            "strategy": "ddp",
        }
        self.fabric = L.Fabric(**self.options, plugins=[environment])
        self.fabric.launch()
        self.ranks = Ranks(self.fabric.global_rank, self.fabric.world_size)
        self.told = False

    def tell(self, *work: Any) -> None:
        """Gives all other processes their work; none where there is none to do."""
        self.told = True
        self.fabric.broadcast(work)

    def learn(self) -> tuple[Any, ...]:
        """The work that the first process tells of. Ends this one where there is none, as the first has said why."""
        work: tuple[Any, ...] = self.fabric.broadcast(())
        if not work:
            raise SystemExit(2)
        return work

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Within it, for the first process: where it fails before it tells of any work, the others end too."""
        try:
            yield
        except BaseException:
            if not self.told:
                self.tell()
            raise

    @contextmanager
    def working(self, kept: str) -> Iterator[None]:
        """Within it, processes but the first say nothing.

        Raises InputError, with what is `kept`, where another process is gone.
        """
        if self.ranks.rank > 0:
            terminal.CONSOLE.quiet = True
            logging.captureWarnings(True)
            logging.getLogger().addHandler(logging.NullHandler())
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
                raise
            time.sleep(PATIENCE)
            raise InputError(f"another process of this training ended: {kept}") from error


class EndAtOnce(Callback):
    """Has SIGTERM end the process, as it does any.

    Lightning's own handler exchanges messages with the other processes, which never ends where one of them is gone.
    """

    def on_train_start(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_test_start(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def join_started(config: TrainerConfig) -> Group | None:
    """The processes that torchrun or SLURM has started this one with, to train together; None without them.

    SLURM also starts processes to train a network each, on one device.

    Raises InputError where there are not as many as `config.devices`.
    """
    if TorchElasticEnvironment.detect():
        environment: ClusterEnvironment = TorchElasticEnvironment()
    elif config.devices > 1 and SLURMEnvironment.detect():
        try:
            environment = SLURMEnvironment(auto_requeue=False)  # a run has its own checkpoints
        except RuntimeError as error:  # a way of starting that Lightning does not take
            raise InputError(printable(str(error))) from error
    else:
        return None
    if (count := environment.world_size()) == 1:
        return None
    check(config.devices == count, "trainer.devices", config.devices, f"{count}, as many as processes were started")
    return Group(environment, config)


def count_machines(environment: ClusterEnvironment) -> int:
    """Machines that the processes are on, each with as many."""
    if isinstance(environment, SLURMEnvironment):
        return int(os.environ.get("SLURM_NNODES", 1))
    return environment.world_size() // int(os.environ["LOCAL_WORLD_SIZE"])


def launch(config: TrainerConfig, kept: str, work: Callable[..., T], *arguments: Any) -> T:
    """What `work(group, *arguments)` gives in the first of `config.devices` processes, each started for a device.

    Args:
        kept: what is kept where one of them ends before its work is done, and how to go on.

    Raises InputError as the processes do, where one is killed, and for too few devices; Stopped for a signal.
    """
    # here: a training on one device does not wait for them
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    heeded = [number.name for number in SIGNALS if handlers[number] is not signal.SIG_IGN]
    logging.disable()  # what the starter says of processes that end
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings = LaunchConfig(
                min_nodes=1, max_nodes=1, nproc_per_node=config.devices, max_restarts=0, run_id="training",
                rdzv_backend="c10d", rdzv_endpoint="localhost:0", signals_to_handle=",".join(heeded),
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )  # fmt: skip
            made: dict[int, T] = elastic_launch(settings, run)(config, work, *arguments)
        return made[0]
    except SignalException as stop:
        raise Stopped(status=128 + stop.sigval) from None
    except ChildFailedError as error:
        raise explain(*error.get_first_failure(), kept) from None
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(config: TrainerConfig, work: Callable[..., T], *arguments: Any) -> T:
    """`work` in a process that `launch` has started."""
    tqdm.set_lock(
        threading.RLock()
    )  # its own is one among processes, and is missed, with a warning, where one is killed
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        return work(Group(TorchElasticEnvironment(), config), *arguments)
    except InputError as error:
        raise InputError(str(error)) from error  # by this name, which `explain` looks for


def explain(rank: int, failure: "ProcessFailure", kept: str) -> Exception:
    """The error for a process that ended: its own, or that it was killed."""
    if failure.exitcode < 0:
        return InputError(f"process {rank} of this training was ended by {failure.signal_name()}: {kept}")
    if not isinstance(failure.message, dict):
        return InputError(f"process {rank} of this training ended with status {failure.exitcode}: {kept}")
    message: str = failure.message["message"]
    name = f"{InputError.__name__}: "
    if message.startswith(name):
        return InputError(message.removeprefix(name))
    return RuntimeError(f"process {rank} of this training failed: {failure.message['extraInfo']['py_callstack']}")
