"""What a search found: a page, a table of all that was trained, and an experiment for each winner."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import OmegaConf

from sepconv import files
from sepconv.config import COSTS, MODEL
from sepconv.config.keys import SearchConfig
from sepconv.reading import write_yaml
from sepconv.study.page import render_page
from sepconv.study.plots import SETTINGS, STYLE, WORST, accuracy_by_error, as_svg, plain_log
from sepconv.study.search.budget import MEASURED, WORDS, Budget
from sepconv.study.search.trials import Trained, betters, rank
from sepconv.study.statistics import Estimate
from sepconv.tables import Column, Table, as_csv
from sepconv.terminal import epochs, kept
from sepconv.training.runs import name_code

LOOKS = {"separable": ("#0072B2", "o"), "dense": ("#D55E00", "s"), "spatial": ("#009E73", "^")}  # Okabe and Ito
PLACED = ("data.root", "data.download")  # what an experiment leaves to the machine
FIRST = 20  # networks of the page's last table


@dataclass
class Winner:
    """A network that was trained in full."""

    name: str  # of its experiment
    trained: list[Trained]  # a training for each seed
    right: list[NDArray[np.bool_]] = field(default_factory=list)  # of each seed, about which test images: the best's

    @property
    def model(self) -> dict[str, Any]:
        return self.trained[0].model

    @property
    def costs(self) -> dict[str, float]:
        return self.trained[0].costs

    @property
    def validation(self) -> Estimate:
        """Of the validation images, over seeds."""
        return Estimate.of([each.accuracy for each in self.trained]).within(0.0, 1.0)

    @property
    def test(self) -> Estimate | None:
        """Of the test images, over seeds and images; None where it was not tested."""
        return Estimate.crossed(np.array(self.right)) if self.right else None


@dataclass
class Findings:
    """What a search has found until now.

    Args:
        folder: where to write it.
        arguments: that make scripts/train.py train on the search's images with its recipe.
    """

    config: SearchConfig
    budget: Budget
    folder: Path
    command: str
    code: dict[str, Any]
    arguments: list[str]
    trained: list[list[Trained]] = field(default_factory=list)  # at each length of training; at last of the winners
    right: list[NDArray[np.bool_]] = field(default_factory=list)  # of the best winner's seeds, about which test images

    @property
    def configs(self) -> Path:
        """Where train.py finds the winners: a folder of experiments alone, as others would be choices to Hydra."""
        return self.folder / "configs"

    @property
    def costs(self) -> list[str]:
        """The costs that are known of each network."""
        return [name for name in COSTS if name != MEASURED or name in (*self.budget.limits, *self.config.minimize)]

    @property
    def longest(self) -> list[Trained]:
        """Of each network its longest training with the search's own seed."""
        seed = self.config.seed
        every = [each for rung in self.trained[: len(self.config.rungs)] for each in rung if each.seed == seed]
        return list({each.number: each for each in every}.values())

    def winners(self) -> list[Winner]:
        """The networks that were trained in full, from the best; those of which a seed lacks are left out."""
        seeds = self.config.seeds  # an earlier call may have had others
        finished = [each for rung in self.trained[len(self.config.rungs) :] for each in rung if each.seed in seeds]
        by_number = groupby(sorted(finished, key=lambda each: each.number), key=lambda each: each.number)
        groups = [group for _, each in by_number if len(group := list(each)) == len(seeds)]
        groups.sort(key=lambda group: -fmean(each.accuracy for each in group))
        data = self.config.data.name
        return [Winner(f"{data}_{place}", group, self.right if place == 1 else [])
                for place, group in enumerate(groups, 1)]  # fmt: skip

    def describe_best(self) -> str:
        """The best of those trained at the length that is under way."""
        if not self.trained or not self.trained[-1]:
            return ""
        best = max(self.trained[-1], key=lambda each: each.accuracy)
        return f"best {best.accuracy:.2%} ({describe(best.model)}, {best.costs['parameters']:,} parameters)"

    def write(self) -> None:
        """Writes it. Raises InputError where the folder cannot be written."""
        winners = self.winners()
        files.make_folder(self.configs / "experiment")
        for winner in winners:
            files.write(self.configs / "experiment" / f"{winner.name}.yaml", self.experiment(winner))
        if records := self.records():
            files.write(self.folder / "trials.csv", as_csv(records))
        pictures: list[str] = []
        with kept("the picture of the search"), style.context([STYLE, SETTINGS]):
            pictures = [as_svg(self.draw())]
        files.write(self.folder / "search.html", self.page(winners, pictures))

    def records(self) -> list[dict[str, Any]]:
        """A record a training."""
        return [
            {"network": each.number, "epochs": each.epochs, "seed": each.seed, "validation": each.accuracy,
             **{name: each.costs[name] for name in self.costs}, "model": json.dumps(each.model)}
            for rung in self.trained for each in rung
        ]  # fmt: skip

    def experiment(self, winner: Winner) -> str:
        """A configuration that trains the winner: `train.py experiment=` takes it."""
        choices, settings, places = list[dict[str, str]](), list[str](), ""
        for argument in self.arguments:
            name, _, value = argument.lstrip("+").partition("=")
            if name in PLACED:
                places = f"{places} {name}=PATH" if name == "data.root" else places
            elif name.partition(".")[0] != "trainer":
                choices += [{f"override /{name}": value}] * ("." not in name)
                settings += [f"{name}={value}"] * ("." in name)
        body: Any = OmegaConf.to_container(OmegaConf.from_dotlist(settings))
        body["model"] = options(winner.model)
        content = {"defaults": [*choices, {"override /model": winner.model["name"]}], **body}
        costs = ", ".join(f"{write_cost(winner, name)} {WORDS[name]}" for name in self.costs)
        lines = [
            "# @package _global_",
            f"# python scripts/train.py --config-dir {self.configs} experiment={winner.name}{places}",
            f"# Found by {self.command}, {time.strftime('%Y-%m-%d')}, commit {name_code(self.code, 7)}.",
            f"# {costs}.",
            f"# {self.describe_accuracy(winner)}.",
        ]
        return "\n".join([*lines, write_yaml(content)])

    def describe_accuracy(self, winner: Winner) -> str:
        """What a winner reaches, in words."""
        seeds = f"seeds {', '.join(map(str, self.config.seeds))}"
        text = f"Validation accuracy {winner.validation.percent()}, n = {winner.validation.n} ({seeds})"
        length = epochs(winner.trained[0].epochs)
        test = "" if winner.test is None else f"; test accuracy {winner.test.percent()}"
        return f"{text}, {length}{test}"

    def sentences(self) -> list[str]:
        """What is known by now of each kind of network, and which is the best."""
        lines = []
        for kind in LOOKS:
            of_kind = [each for each in self.longest if each.kind == kind]
            if of_kind:
                best = rank(of_kind, [])[0]
                lines.append(
                    f"{len(of_kind)} {kind} networks were trained; the best has a validation accuracy of "
                    f"{best.accuracy:.2%} after {epochs(best.epochs)}, with {best.costs['parameters']:,} parameters "
                    f"and {best.costs['macs']:,} MACs."
                )
        if winners := self.winners():
            lines.append(f"The winner is {describe(winners[0].model)}. {self.describe_accuracy(winners[0])}.")
        return lines

    def draw(self) -> Figure:
        """Validation accuracy against each cost, of each network's longest training, with the front of each kind."""
        figure = Figure(figsize=(5 * len(self.costs), 4.5), layout="constrained")
        panels = figure.subplots(1, len(self.costs), sharey=True, squeeze=False)[0]
        for axes, cost in zip(panels, self.costs, strict=True):
            for kind, (color, marker) in LOOKS.items():
                if not (points := [each for each in self.longest if each.kind == kind]):
                    continue
                front = sorted((each for each in points if not any(betters(other, each, [cost]) for other in points)),
                               key=lambda each: each.costs[cost])  # fmt: skip
                axes.scatter([each.costs[cost] for each in points], errors(points),
                             [12.0 * (1 + self.config.rungs.index(each.epochs)) for each in points], color=color,
                             marker=marker, alpha=0.6, linewidths=0)  # fmt: skip
                axes.plot([each.costs[cost] for each in front], errors(front), color=color, linewidth=1, label=kind)
            if cost in self.budget.limits:
                axes.axvline(self.budget.limits[cost], color="black", linewidth=1, linestyle=":")
            plain_log(axes)
            axes.set(xlabel=WORDS[cost])
            axes.grid(alpha=0.3)
        accuracy_by_error(panels[0])
        panels[0].set_ylabel("validation accuracy (%)")
        panels[0].legend(frameon=False)
        return figure

    def page(self, winners: Sequence[Winner], pictures: Sequence[str]) -> str:
        """The page."""
        limits = [f"at most {limit:,.6g} {WORDS[name]}" for name, limit in self.budget.limits.items()]
        best = rank(self.longest, self.config.minimize)[:FIRST]
        tables = [(winner_table(winners, self.costs), "winners, each trained in full"),
                  (trained_table(best, self.costs), f"the first {len(best)} of {len(self.longest)}")]  # fmt: skip
        return render_page(
            "search/search.html", data=self.config.data.name, command=self.command,
            date=time.strftime("%Y-%m-%d"), limits=limits,
            sentences=self.sentences(), pictures=list(map(Markup, pictures)),
            tables=[(title, table) for table, title in tables if table.records], configs=self.configs,
            commit=name_code(self.code, 7), rungs=self.config.rungs,
        )  # fmt: skip


def errors(trained: Sequence[Trained]) -> list[float]:
    """Validation errors in percent, for an axis that is logarithmic in them."""
    return [100 * max(WORST, 1 - each.accuracy) for each in trained]


def cost_columns(costs: Sequence[str]) -> list[Column]:
    return [Column(WORDS[name], partial(write_cost, name=name)) for name in costs]


def write_cost(network: Trained | Winner, name: str) -> str:
    """A cost in a few characters."""
    return f"{network.costs[name]:,.4g}" if name == MEASURED else f"{network.costs[name]:,}"


def winner_table(winners: Sequence[Winner], costs: Sequence[str]) -> Table:
    """A row a winner."""
    columns = [
        Column("experiment", lambda winner: winner.name),
        Column("validation", lambda winner: winner.validation.percent()),
        Column("test", lambda winner: winner.test.percent() if winner.test else ""),
        *cost_columns(costs),
        Column("network", lambda winner: describe(winner.model), left=True),
    ]
    return Table("", columns, list(winners))


def trained_table(trained: Sequence[Trained], costs: Sequence[str]) -> Table:
    """A row a network."""
    columns = [
        Column("number", lambda each: str(each.number)),
        Column("epochs", lambda each: str(each.epochs)),
        Column("validation", lambda each: f"{each.accuracy:.2%}"),
        *cost_columns(costs),
        Column("network", lambda each: describe(each.model), left=True),
    ]
    return Table("", columns, list(trained))


def options(model: dict[str, Any]) -> dict[str, Any]:
    """What a network's configuration says of it, but for its name."""
    return {key: value for key, value in model.items() if key not in MODEL | {"name": None}}


def describe(model: dict[str, Any]) -> str:
    """A network in a line: its kind, the first layer's channels, then each stage's blocks."""
    parts = [f"{model['conv']} {model['stem']}" + "/2" * (model["stem_stride"] > 1)]
    for row in model["stages"]:
        text = f"{row['channels']}" + (f" x {row['blocks']}" if row.get("blocks", 1) > 1 else "")
        text += "/2" * (row.get("stride", 1) > 1) + f" k{row['kernel_size']}" * (row.get("kernel_size", 3) != 3)
        text += f" e{row['expansion']:g}" if row.get("expansion") else ""
        parts.append(text + " df" * bool(row.get("depthwise_first")) + " se" * bool(row.get("squeeze")))
    return ", ".join(parts)
