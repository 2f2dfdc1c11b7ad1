"""A search for networks that suit one's images and one's budget."""

import math
import re
import signal
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepconv import InputError, files
from sepconv.arguments import training_arguments, write_value
from sepconv.config import COSTS
from sepconv.config.keys import SearchConfig, TrainConfig
from sepconv.config.read import complete
from sepconv.config.rules import check_choice
from sepconv.data.datasets import Dataset, load
from sepconv.networks.blocks import KINDS
from sepconv.study.search import space
from sepconv.study.search.budget import MEASURED, Budget, count, measure_latency
from sepconv.study.search.report import Findings, describe, options
from sepconv.study.search.trials import Queue, Rung, Storage, make_sampler, rank
from sepconv.study.trainings import DIVERGED, POLL, Process, Trainings, stop
from sepconv.terminal import CONSOLE, Progress, epochs
from sepconv.training import runs
from sepconv.training.train import make_classifier
from sepconv.training.trainer import stoppable

if TYPE_CHECKING:
    import optuna

REFUSED = 300  # networks in a row that break the budget, after which there is none
# an argument that has its group begin without the keys of another choice
LEAVES_OUT = r"~|\+*recipe\.optimizer(\.others)?(\.name)?="
WRITTEN = 60  # seconds between two writings of the page, at least, while trainings are under way
FAILED = 3  # trainings that failed, after which the search ends


def search(config: SearchConfig, overrides: list[str]) -> None:
    """Searches as `config` says, and writes what it finds into its folder.

    Raises InputError for data that are not there, no budget or one that no network keeps, a search of other settings or
    code, a folder that cannot be written, and trainings that fail or all diverge.
    """
    budget = Budget.of(config)
    dataset = load(config.data)
    folder = Path(config.output).resolve()
    files.make_folder(folder)
    with ExitStack() as stack:
        stack.enter_context(files.lock(folder, "searched"))
        stack.enter_context(stoppable(lambda: "what is finished is kept, and the same command goes on from there"))
        told = [override for override in overrides if not override.startswith(("storage=", "output=", *runs.PLACES))]
        Search(config, budget, dataset, folder, runs.command_line("search", told)).run()
    CONSOLE.print(f"page in {folder}/search.html", soft_wrap=True)


@dataclass
class UnderWay:
    """A trial that is trained."""

    trial: "optuna.Trial"
    config: TrainConfig
    process: Process


class Search:
    """A search, as far as it has come."""

    def __init__(self, config: SearchConfig, budget: Budget, dataset: Dataset, folder: Path, command: str) -> None:
        self.config, self.budget, self.dataset = config, budget, dataset
        self.kinds = config.kinds or list(KINDS)
        for kind in self.kinds:
            check_choice("kinds", kind, *KINDS)
        self.arguments = training_arguments()
        for argument in filter(re.compile(LEAVES_OUT).match, self.arguments):
            raise InputError(
                f"{argument} leaves out keys, which an experiment cannot: write configs/recipe/optimizer/NAME.yaml, "
                "and give recipe/optimizer=NAME"
            )
        self.worker = f"{socket.gethostname()}:{folder}"
        code, digests = runs.current_code(), dataset.digests()
        self.trainings = Trainings(folder / "runs", runs.hash_code(code), digests)
        self.findings = Findings(config, budget, folder, command, code, self.arguments)
        training = self.configure({"name": "staged"}, config.recipe.epochs, config.seed)
        self.storage = Storage(
            config.storage or f"sqlite:///{folder}/search.db",
            {"images": digests, "training": runs.fingerprint(training), "minimize": config.minimize,
             "kinds": self.kinds, "rungs": config.rungs, "seed": config.seed,
             **{name: budget.limits.get(name) for name in COSTS}},
            (runs.hash_code(code), runs.name_code(code, 12)),
        )  # fmt: skip
        self.under_way: list[UnderWay] = []
        self.failures: list[str] = []  # why trainings failed
        self.due = 0.0  # the moment from which the page is written again

    def run(self) -> None:
        """Draws networks and trains them briefly, the best longer, and the winners in full with each seed."""
        config = self.config
        self.trainings.wake()
        first, *longer = config.rungs
        self.draw(first)
        for length in longer:
            drawn = self.findings.trained[-1]
            self.train(length, max(config.winners, math.ceil(config.keep * len(drawn))), [config.seed])
        self.train(config.recipe.epochs, config.winners, config.seeds)
        if not (winners := self.findings.winners()):
            raise InputError("of each winner a training failed: the same command trains it again")
        seeds = [self.configure(winners[0].model, config.recipe.epochs, seed) for seed in config.seeds]
        found = [run for each in seeds if (run := self.trainings.find(each))]
        if len(found) == len(seeds):  # another process has its runs elsewhere
            self.findings.right = [run.right() for run in found]
        self.findings.write()

    def draw(self, length: int) -> None:
        """Trains networks that the sampler draws, until there are enough."""
        wanted, minimize = self.config.trials, self.config.minimize
        rung = Rung(self.storage.open("drawn", minimize), self.worker, length, minimize)
        # where several search, or one again, each draws others
        shared = zlib.crc32(self.worker.encode()) if self.config.storage else 0
        rung.study.sampler = make_sampler(self.config.seed, len(rung.study.trials), shared)
        self.perform(rung, wanted, lambda: self.ask(rung) if rung.begun() < wanted else None)

    def train(self, length: int, most: int, seeds: list[int]) -> None:
        """Trains the best of those trained until now for so long, with each of the seeds."""
        place, minimize = len(self.findings.trained), self.config.minimize
        networks = rank(self.findings.trained[-1], minimize)[:most]
        queue = Queue(self.storage.open(f"queue {place}", minimize), self.worker, length, minimize)
        queue.fill(networks, seeds)
        self.perform(queue, len(queue.states("COMPLETE", "RUNNING", "WAITING")), queue.next)

    def ask(self, rung: Rung) -> "optuna.Trial":
        """A trial whose network is within the budget. Raises InputError where there seems to be none."""
        for _ in range(REFUSED):
            trial = rung.ask()
            share = self.share if self.budget.is_counted else None
            model = complete(space.draw(trial, self.dataset.shape, share, self.kinds))
            costs = self.count(model)
            excess = self.budget.excess(costs)
            if MEASURED in self.findings.costs and max(excess.values(), default=0) <= 0:
                costs[MEASURED] = self.measure(model)
                excess = self.budget.excess(costs)
            if max(excess.values()) <= 0:
                rung.note(trial, model, costs, self.config.seed)
                return trial
            rung.refuse(trial, costs, excess)
        nearest = ", ".join(f"{name}={costs[name]:,.4g}" for name in excess)
        raise InputError(f"of {REFUSED:,} networks none is within the budget; the last has {nearest}: allow for more")

    def count(self, model: dict[str, Any]) -> dict[str, float]:
        return count(model, self.dataset.shape, len(self.dataset.classes))

    def share(self, model: dict[str, Any]) -> float:
        """How much of the budget a network takes up, of what is known without measuring."""
        return 1 + max(self.budget.excess(self.count(complete(model))).values())

    def measure(self, model: dict[str, Any]) -> float:
        """A network's latency. What is under way is halted meanwhile."""
        with halted([each.process for each in self.under_way]):
            return measure_latency(make_classifier(model, self.config.recipe, self.dataset))

    def configure(self, model: dict[str, Any], length: int, seed: int) -> TrainConfig:
        """The configuration of a training."""
        recipe = replace(self.config.recipe, epochs=length)
        return TrainConfig(data=self.config.data, model=complete(model), recipe=recipe, trainer=self.config.trainer,
                           seed=seed, runs=str(self.trainings.folder))  # fmt: skip

    def describe(self, config: TrainConfig) -> list[str]:
        """The arguments that make scripts/train.py train it."""
        model = (f"model.{name}={write_value(value)}" for name, value in options(config.model).items())
        return [*self.arguments, f"model={config.model['name']}", *model, f"recipe.epochs={config.recipe.epochs}",
                f"seed={config.seed}"]  # fmt: skip

    def perform(self, rung: Rung, wanted: int, begin: Callable[[], "optuna.Trial | None"]) -> None:
        """Trains what `begin` gives, some at a time, until nothing is left here or anywhere else.

        Raises InputError where trainings fail, or all diverge.
        """
        self.findings.trained.append(rung.trained())
        self.trainings.scan()
        try:
            with Progress(f"search, {epochs(rung.epochs)}: network", wanted, len(rung.trained())) as progress:
                while True:
                    while len(self.under_way) < self.config.jobs and (trial := begin()) is not None:
                        self.start(rung, trial)
                    others = rung.unfinished() - len(self.under_way)
                    if not self.under_way and not others:
                        break
                    if not self.under_way:
                        progress.reach(len(rung.trained()), f"waiting for {others} of other processes")
                    time.sleep(POLL)
                    for each in [each for each in self.under_way if each.process.ended]:
                        self.under_way.remove(each)
                        self.end(rung, each)
                        self.findings.trained[-1] = rung.trained()
                        if time.monotonic() > self.due:
                            self.write()
                        progress.reach(len(rung.trained()), self.findings.describe_best())
        finally:
            stop([each.process for each in self.under_way])
            for each in self.under_way:
                rung.put_back(each.trial)
            self.under_way.clear()
            self.findings.trained[-1] = rung.trained()
            self.write()
        if not self.findings.trained[-1]:
            reason = self.failures[-1] if self.failures else "it was another process's"
            raise InputError(f"no training came to anything, the last: {reason}")
        if not any(each.accuracy for each in self.findings.trained[-1]):
            raise InputError("each training diverged: lower recipe.optimizer.lr, and give another output= or storage=")

    def write(self) -> None:
        """Writes what is found by now."""
        self.findings.write()
        self.due = time.monotonic() + WRITTEN

    def start(self, rung: Rung, trial: "optuna.Trial") -> None:
        """Begins a training, unless its run is there."""
        model, seed = rung.read(trial)
        config = self.configure(model, rung.epochs, seed)
        if (run := self.trainings.find(config)) is not None:
            rung.tell(trial, run.result.val_accuracy)
        else:
            self.under_way.append(UnderWay(trial, config, self.trainings.begin(config, self.describe(config))))

    def end(self, rung: Rung, ended: UnderWay) -> None:
        """Takes a training that has ended. Raises InputError where too many have failed."""
        self.trainings.scan()
        name = f"{describe(ended.config.model)}, seed {ended.config.seed}"
        if (run := self.trainings.find(ended.config)) is not None:
            rung.tell(ended.trial, run.result.val_accuracy)
            CONSOLE.print(f"{name}: validation {run.result.val_accuracy:.2%}", soft_wrap=True)
        elif DIVERGED in (reason := ended.process.failure()):
            rung.tell(ended.trial, 0.0)
            CONSOLE.print(f"{name}: diverged", soft_wrap=True)
        else:
            rung.drop(ended.trial)
            self.failures.append(reason)
            CONSOLE.print(f"{name}: failed: {reason}", soft_wrap=True)
            if len(self.failures) >= FAILED:
                raise InputError(f"{FAILED} trainings failed, the last: {reason}")


@contextmanager
def halted(processes: Sequence[Process]) -> Iterator[None]:
    """Halts processes meanwhile, where the system can: what is measured has the machine for itself."""
    can = hasattr(signal, "SIGSTOP")
    for each in processes if can else ():
        each.send(signal.SIGSTOP)
    try:
        yield
    finally:
        for each in processes if can else ():
            each.send(signal.SIGCONT)
