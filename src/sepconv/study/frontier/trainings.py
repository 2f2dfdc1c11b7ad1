"""The trainings of a frontier: found among the runs of before, or made."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sepconv import InputError
from sepconv.config.keys import FrontierConfig, TrainConfig
from sepconv.config.read import complete
from sepconv.packing import pack
from sepconv.study.compare import name_hardware
from sepconv.study.frontier.networks import options
from sepconv.study.frontier.record import Diverged, Network, Record, Row, Training
from sepconv.study.trainings import DIVERGED, POLL, Process, Trainings, stop
from sepconv.terminal import CONSOLE, Progress, duration
from sepconv.training import runs

GROWTH = 0.6  # of a training's time with its MACs, as a power, for an estimate


class FrontierTrainings:
    """Finds the trainings of a record in `config.runs`, and makes those that are not there.

    Args:
        digests: of the images.
        arguments: of this command, for scripts/train.py.
        keep: is called when the record has grown.

    Raises InputError for code that is not committed, and a record of other code or settings.
    """

    def __init__(self, config: FrontierConfig, record: Record, digests: dict[str, str], arguments: list[str],
                 keep: Callable[[], None]) -> None:  # fmt: skip
        self.config, self.record, self.arguments, self.keep = config, record, arguments, keep
        code = runs.current_code()
        self.commit, self.code = code["sha"], runs.hash_code(code)
        if self.code is None and not config.uncommitted:
            raise InputError("the code has changes that are not committed: commit them, or give uncommitted=true")
        self.configurations: dict[tuple[Network, float], str] = {}
        self.networks = {(each.kind, each.size, each.epochs): each for each in record.networks}
        ended: list[Row | Diverged] = [*record.rows.values(), *record.diverged.values()]
        for row in ended:
            asked = (row.kind, row.size, row.epochs) in self.networks
            if row.code != self.code or (asked and row.configuration != self.configuration(row)):
                raise InputError(
                    f"the record has a run of other code or settings ({row}; commit {row.commit}): give another "
                    "output=, train at that commit, or give jobs=0, which writes its page alone"
                )
        # a folder for each code; what is not committed shares one
        folder = Path(config.runs) / (self.code or "uncommitted")
        self.trainings = Trainings(folder, self.code, digests)
        self.failed: dict[Training, str] = {}  # and why

    def configuration(self, training: Training) -> str:
        """The hash of a training's configuration."""
        key = self.network(training), training.rate
        if key not in self.configurations:
            self.configurations[key] = runs.fingerprint(self.configure(training))
        return self.configurations[key]

    def configure(self, training: Training) -> TrainConfig:
        """The configuration of a training."""
        config = self.config
        optimizer = config.recipe.optimizer | {"lr": training.rate}
        recipe = replace(config.recipe, epochs=training.epochs, optimizer=optimizer)
        model = complete({"name": "separable", **options(self.network(training))})
        return TrainConfig(data=config.data, model=model, recipe=recipe, trainer=config.trainer, seed=training.seed,
                           runs=config.runs)  # fmt: skip

    def describe(self, training: Training) -> list[str]:
        """The arguments that make scripts/train.py train it."""
        model = (f"model.{key}={value}" for key, value in options(self.network(training)).items())
        return [*self.arguments, "model=separable", *model, f"recipe.epochs={training.epochs}",
                f"recipe.optimizer.lr={training.rate}", f"seed={training.seed}"]  # fmt: skip

    def network(self, training: Training) -> Network:
        return self.networks[training.kind, training.size, training.epochs]

    def take(self, training: Training) -> bool:
        """Adds a training to the record, where there is a finished run of it."""
        run = self.trainings.find(self.configure(training))
        if run is None:
            return False
        result, chooses = run.result, training.seed == self.config.tuning_seed
        self.record.rows[training] = Row(
            **vars(training),
            val_accuracy=result.val_accuracy,
            test_accuracy=None if chooses else result.test_accuracy,
            images=result.images["test"],
            right=None if chooses else pack(run.right()),
            parameters=result.parameters,
            macs=result.macs,
            seconds=result.fit_seconds,
            device=name_hardware(result.device),
            torch=result.versions["torch"] or "",
            precision=result.precision,
            commit=result.git["sha"],
            dirty=result.git["dirty"],
            code=self.code,
            configuration=self.configuration(training),
        )
        return True

    def find(self) -> None:
        """Takes what is finished."""
        self.trainings.scan()
        while sum(map(self.take, list(self.record.missing()))):
            pass  # the seeds of a learning rate that is known now
        self.keep()

    def make(self) -> None:
        """Trains what is missing, `config.jobs` at a time.

        Raises InputError, at the end, where some failed.
        """
        under_way: dict[Training, Process] = {}
        try:
            with Remaining(self.record) as progress:
                while True:
                    for training in self.record.missing():
                        if len(under_way) < self.config.jobs and training not in under_way | self.failed:
                            begin = self.trainings.begin
                            under_way[training] = begin(self.configure(training), self.describe(training))
                    if not under_way:
                        break
                    time.sleep(POLL)
                    for training in [each for each, process in under_way.items() if process.ended]:
                        self.end(training, under_way.pop(training))
                        progress.update()
        finally:
            stop(under_way.values())
        if self.failed:
            training, reason = next(iter(self.failed.items()))
            raise InputError(f"{len(self.failed)} trainings failed, the first ({training}): {reason}")

    def end(self, training: Training, process: Process) -> None:
        """Takes a training that has ended."""
        self.find()
        if training in self.record.rows:
            row = self.record.rows[training]
            test = row.test_accuracy is not None
            accuracy = f"{'test' if test else 'validation'} {row.test_accuracy if test else row.val_accuracy:.2%}"
            CONSOLE.print(f"{training}: {accuracy}, {duration(row.seconds)}", soft_wrap=True)
        elif DIVERGED in (reason := process.failure()):
            self.record.diverged[training] = Diverged(
                **vars(training), commit=self.commit, code=self.code, configuration=self.configuration(training)
            )
            self.keep()
            CONSOLE.print(f"{training}: diverged", soft_wrap=True)
        else:
            self.failed[training] = reason
            CONSOLE.print(f"{training}: failed", soft_wrap=True)


class Remaining(Progress):
    """How far a study is, and how long it takes by what its trainings took until now and by what is to be computed.

    Their pace is the median, which a training that was paused does not change.
    """

    def __init__(self, record: Record) -> None:
        super().__init__("frontier: training", record.planned, record.planned - len(record.left()))
        self.record = record
        self.update()

    def update(self) -> None:
        """To be called when the record has grown."""
        rows, left = self.record.rows.values(), self.record.left()
        self.until: float | None = None
        if rows:
            pace = statistics.median(row.seconds / work(row.epochs, row.macs) for row in rows)
            seconds = pace * sum(work(network.epochs, network.macs) for network in left)
            self.until = time.monotonic() + seconds / self.record.settings.jobs
        self.reach(self.record.planned - len(left))

    def left(self) -> str:
        return "" if self.until is None else f"{duration(max(0.0, self.until - time.monotonic()))} left"


def work(epochs: int, macs: int) -> float:
    """What a training takes, in some unit, to tell others' time by it."""
    return float(epochs * macs**GROWTH)
