"""The frontier: what accuracy separable and dense networks reach at what cost, in one study."""

from contextlib import ExitStack
from pathlib import Path

from sepconv import InputError, files
from sepconv.arguments import training_arguments
from sepconv.config.keys import FrontierConfig
from sepconv.data.datasets import load
from sepconv.study.frontier.networks import plan
from sepconv.study.frontier.record import Record, Settings, Training
from sepconv.study.frontier.report import write_page
from sepconv.study.frontier.speeds import measure
from sepconv.study.frontier.trainings import FrontierTrainings
from sepconv.terminal import CONSOLE
from sepconv.training import runs
from sepconv.training.trainer import stoppable


def study(config: FrontierConfig, overrides: list[str]) -> None:
    """Trains what lacks of the study that `config` describes, and writes its record, page and picture.

    Raises InputError for data that are not there, code that is not committed, a record of other images, code or
    settings, a folder that cannot be written, and, once all others are made, for trainings that failed or diverged.
    """
    folder = Path(config.output)
    path = folder / f"{config.data.name}.json"
    before = Record.read(path) if path.exists() else None
    lost: list[Training] = []
    if config.jobs:
        lost = go_on(config, overrides, path, before).lost()
    elif before is None:
        raise InputError(f"jobs=0 writes the page of a record, and {path} is not there: give jobs=1 or more")
    else:
        write_page(before, folder)
    CONSOLE.print(f"page in {folder.resolve()}/{config.data.name}.md", soft_wrap=True)
    if lost:
        raise InputError(f"there is no verdict on what diverged ({'; '.join(map(str, lost))}): give lower rates=")


def go_on(config: FrontierConfig, overrides: list[str], path: Path, before: Record | None) -> Record:
    """Makes the trainings that lack, and writes the record in `path` and its page as they come."""
    dataset = load(config.data)
    digests = dataset.digests()
    if before is not None and before.settings.digests not in (None, digests):
        raise InputError(f"{path} is of other images: give the data.root= that it was made with, or another output=")
    settings = Settings(
        data=config.data.name, rates=config.rates, tuning_seed=config.tuning_seed, seeds=config.seeds, jobs=config.jobs,
        command=runs.command_line("frontier", overrides), digests=digests,
    )  # fmt: skip
    networks = plan(config, dataset.shape, len(dataset.classes))
    record = Record(settings, networks)
    if before is not None:
        record = Record(settings, networks, before.diverged.values(), list(before.rows.values()), before.speeds)

    def keep() -> None:
        record.write(path)
        write_page(record, path.parent)

    trainings = FrontierTrainings(config, record, digests, training_arguments(), keep)
    held = Path(config.runs) / config.data.name
    for folder in (path.parent, held):
        files.make_folder(folder, "output= or runs=")
    with ExitStack() as stack:
        stack.enter_context(files.lock(held, "studied"))
        stack.enter_context(stoppable(lambda: "what is finished is kept, and the same command goes on from there"))
        trainings.find()
        trainings.make()
        if any(record.speed(network) is None for network in networks):
            record.speeds = measure(config, record.networks, dataset)
            keep()
    return record
