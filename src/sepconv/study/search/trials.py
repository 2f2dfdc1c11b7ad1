"""The trials of a search: what is trained, for how long, and what it came to, kept by Optuna.

Each length of training is a study of Optuna's in one storage, so that a search that was stopped goes on, and several
processes, on several machines, share one. The first study draws networks by its sampler; the others, whose trials are
the best of the one before, and of the winners with each seed, are queues.
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from sepconv import InputError

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

UNNAMED = timedelta(minutes=1)  # after which a trial that has begun has a process
# settings that nobody gives as they are kept, in the words of a refusal
KEPT = {"images": "other images", "training": "another recipe or trainer"}
MISSING = "a search needs Optuna: python -m pip install 'sepconv[search]'"


@dataclass(frozen=True)
class Trained:
    """A network that was trained, and what it came to."""

    number: int  # of its trial in the first study
    model: dict[str, Any]
    costs: dict[str, float]
    epochs: int
    seed: int
    accuracy: float  # of validation, a share of 1

    @property
    def kind(self) -> str:
        """The kind of its convolutions: separable, dense or spatial."""
        kind: str = self.model["conv"]
        return kind


class Storage:
    """Where a search's trials are kept.

    Args:
        url: of a database that Optuna knows.
        settings: of the search; one of others may not be continued.
        code: that runs: its hash and its name. A search is by one code alone.

    Raises InputError where there is no Optuna, no such database, or a search of other settings or code in it.
    """

    def __init__(self, url: str, settings: dict[str, Any], code: tuple[str | None, str]) -> None:
        try:
            import optuna
        except ImportError as error:
            raise InputError(MISSING) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.create = optuna.create_study
        try:
            self.storage = optuna.storages.RDBStorage(url)
        except Exception as error:  # of SQLAlchemy, of the database's driver
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"storage={url} cannot be used ({type(error).__name__}: {reason})") from error
        study = self.open("settings")
        known = study.user_attrs.get("settings")
        hashed, name = code
        if known is None:
            study.set_user_attr("settings", settings | {"code": hashed, "commit": name})
        elif known.get("code") != hashed:
            raise InputError(
                f"the search there is by other code, commit {known.get('commit', 'unknown')}: go back to it, or give "
                "another output= or storage="
            )
        elif changed := [key for key in settings if known.get(key) != settings[key]]:
            there = ", ".join(KEPT.get(key, f"{key}={known.get(key)}") for key in changed)
            raise InputError(f"the search there has {there}: give the same, or another output= or storage=")

    def open(self, name: str, minimize: Sequence[str] = ()) -> "optuna.Study":
        """The study `name`, which maximizes an accuracy and minimizes these costs, made where it is not there."""
        directions: Any = ["maximize", *["minimize"] * len(minimize)]
        return self.create(storage=self.storage, study_name=name, load_if_exists=True, directions=directions)


def make_sampler(*seeds: int) -> "optuna.samplers.BaseSampler":
    """What draws networks: a multivariate tree-structured Parzen estimator (Watanabe, arXiv 2304.11127)."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=int(np.random.default_rng(seeds).integers(2**32)), multivariate=True)


class Rung:
    """The trials of one length of training.

    Args:
        minimize: the costs that `study` minimizes.
        worker: who runs here; what its last process left unfinished is put back.
    """

    def __init__(self, study: "optuna.Study", worker: str, epochs: int, minimize: Sequence[str]) -> None:
        self.study, self.worker, self.epochs, self.minimize = study, worker, epochs, minimize
        for trial in self.states("RUNNING"):
            if trial.user_attrs.get("worker") == worker or self.is_lost(trial):
                self.put_back(trial)

    @staticmethod
    def is_lost(trial: "FrozenTrial") -> bool:
        """Whether a process ended before it said that the trial is its own."""
        begun = trial.datetime_start
        return "worker" not in trial.user_attrs and begun is not None and datetime.now() - begun > UNNAMED

    def states(self, *names: str) -> "list[FrozenTrial]":
        """The trials that are in any of these states."""
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=[TrialState[name] for name in names])

    def trained(self) -> list[Trained]:
        """What was trained, each network once for each seed."""
        found: dict[tuple[str, int], Trained] = {}
        for trial in self.states("COMPLETE"):
            facts = trial.user_attrs
            if "model" in facts:
                found.setdefault((facts["model"], facts["seed"]), Trained(
                    number=facts.get("of", trial.number), model=json.loads(facts["model"]), costs=facts["costs"],
                    epochs=self.epochs, seed=facts["seed"], accuracy=trial.values[0],
                ))  # fmt: skip
        return list(found.values())

    def begun(self) -> int:
        """How many networks were trained or are, by whichever process."""
        return len(self.trained()) + len(self.states("RUNNING"))

    def unfinished(self) -> int:
        """How many trials are still to be waited for: one that was put back is drawn again where it is wanted."""
        return len(self.states("RUNNING"))

    def ask(self) -> "optuna.Trial":
        """A trial: one that was put back, or the sampler's."""
        trial = self.study.ask()
        trial.set_user_attr("worker", self.worker)
        return trial

    def note(self, trial: "optuna.Trial", model: dict[str, Any], costs: dict[str, float], seed: int) -> None:
        """Says what a trial trains."""
        for name, value in make_facts(model, costs, seed).items():
            trial.set_user_attr(name, value)

    def read(self, trial: "optuna.Trial") -> tuple[dict[str, Any], int]:
        """The network and the seed of a trial."""
        return json.loads(trial.user_attrs["model"]), trial.user_attrs["seed"]

    def tell(self, trial: "optuna.Trial", accuracy: float) -> None:
        """Ends a trial."""
        costs = trial.user_attrs["costs"]
        self.study.tell(trial, [accuracy, *(costs[name] for name in self.minimize)])

    def refuse(self, trial: "optuna.Trial", costs: dict[str, float], excess: dict[str, float]) -> None:
        """Ends a trial whose network breaks the budget; the sampler learns from it where not to draw."""
        for name, part in excess.items():
            trial.set_constraint(name, part)
        self.study.tell(trial, [0.0, *(costs.get(name, 0.0) for name in self.minimize)])

    def drop(self, trial: "optuna.Trial | FrozenTrial") -> None:
        """Ends a trial that came to nothing."""
        from optuna.trial import TrialState

        self.study.tell(trial.number, state=TrialState.FAIL)

    def put_back(self, trial: "optuna.Trial | FrozenTrial") -> None:
        """Ends a trial, and has it begun again."""
        self.drop(trial)
        facts = {name: value for name, value in trial.user_attrs.items() if name != "worker"}
        self.study.enqueue_trial(trial.params, user_attrs=facts)


class Queue(Rung):
    """The trials of networks that others chose."""

    def fill(self, networks: Iterable[Trained], seeds: Sequence[int]) -> None:
        """Puts networks into the queue, with each seed, but for those that were put there before."""
        there = {(trial.user_attrs.get("of"), trial.user_attrs.get("seed"))
                 for trial in self.states("COMPLETE", "RUNNING", "WAITING")}  # fmt: skip
        for network in networks:
            for seed in seeds:
                if (network.number, seed) not in there:
                    facts = make_facts(network.model, network.costs, seed) | {"of": network.number}
                    self.study.enqueue_trial({}, user_attrs=facts)

    def unfinished(self) -> int:
        """How many trials are still to be waited for: all of the queue are wanted."""
        return len(self.states("RUNNING", "WAITING"))

    def next(self) -> "optuna.Trial | None":
        """A trial that nobody has begun; None where there is none."""
        while self.states("WAITING"):
            trial = self.ask()
            if "model" in trial.user_attrs:
                return trial
            self.drop(trial)  # another process took the last one: this is the sampler's
        return None


def make_facts(model: dict[str, Any], costs: dict[str, float], seed: int) -> dict[str, Any]:
    """What is kept with a trial."""
    return {"model": json.dumps(model), "costs": costs, "seed": seed}


def rank(networks: Sequence[Trained], minimize: Sequence[str]) -> list[Trained]:
    """From the best: first those that no other one betters in accuracy and the costs to minimize, by accuracy, and so
    on with the others.
    """
    left, order = list(networks), list[Trained]()
    while left:
        front = [each for each in left if not any(betters(other, each, minimize) for other in left)]
        order += sorted(front, key=lambda each: -each.accuracy)
        left = [each for each in left if each not in front]
    return order


def betters(one: Trained, other: Trained, costs: Iterable[str]) -> bool:
    """Whether `one` is at least as good in accuracy and these costs, and better in one of them."""

    def figures(each: Trained) -> list[float]:
        return [-each.accuracy, *(each.costs[name] for name in costs)]

    pairs = list(zip(figures(one), figures(other), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
