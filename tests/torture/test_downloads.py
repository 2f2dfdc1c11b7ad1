"""Many processes that download into one folder."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from served import SMALL, Published
from trials import PROCESSES, trials

from sepconv import InputError
from sepconv.config.keys import DataConfig
from sepconv.data.datasets import load

pytestmark = pytest.mark.timeout(1800)

PROCESSES_AT_ONCE = 20
KILLED = 5  # of them, while they download


def read(root: Path, name: str, patches: list[tuple[type, str, Any]], result: Path) -> None:
    """Loads a set in this process, and writes what it is, or why it is refused, to the file `result`."""
    for patch in patches:
        setattr(*patch)
    try:
        dataset = load(DataConfig(name=name, root=str(root), validation=20, epochs=1))
        result.write_text(json.dumps(dataset.digests()))
    except InputError as error:
        result.write_text(str(error))


@pytest.mark.parametrize("name", SMALL)
def test_one_data_root(tmp_path: Path, name: str, figures: dict[str, Any]) -> None:
    """Processes that begin at once with an empty data root all have the same images: one of them downloads, in the end, and those that are killed meanwhile harm no other."""  # noqa: E501
    served, count = Published(pace=2**14, pause=0.02), trials(10)
    archives = [archive for archive in served.content if archive.endswith("tar.gz") == (name == "cifar10")]
    asked, killed = [], 0
    for trial in range(count):
        root, draw = tmp_path / str(trial) / "data", random.Random(trial)
        root.parent.mkdir()
        served.asked.clear()
        results = [root.parent / f"{number}.json" for number in range(PROCESSES_AT_ONCE)]
        processes = [PROCESSES.Process(target=read, args=(root, name, served.patches, result)) for result in results]
        for process in processes:
            process.start()
        for process in draw.sample(processes, KILLED):
            process.join(draw.uniform(0, 0.2))
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join(60)
        ends = [process.exitcode for process in processes]
        assert set(ends) <= {0, -signal.SIGKILL}, ends
        digests = {result.read_text() for result, end in zip(results, ends, strict=True) if end == 0}
        assert len(digests) == 1
        assert digests.pop().startswith("{")
        killed += ends.count(-signal.SIGKILL)
        for archive in archives:
            begun = [line for line in served.asked if line.startswith(archive)]
            assert 1 <= len(begun) <= 1 + ends.count(-signal.SIGKILL)
            asked.append(len(begun))
        assert not list(root.rglob("*.part"))
    served.stop()
    figures.update({
        "processes": count * PROCESSES_AT_ONCE,
        "at once": PROCESSES_AT_ONCE,
        "killed": killed,
        "downloads of an archive": f"{min(asked)} to {max(asked)}",
    })  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_one_wrong_root(tmp_path: Path, name: str, figures: dict[str, Any]) -> None:
    """Processes that begin at once with a data root that is not there, and without network, all end with a line, and leave nothing behind."""  # noqa: E501
    served, count = Published(), trials(5)
    served.stop()
    for trial in range(count):
        root, results = tmp_path / "not" / "there", [tmp_path / f"{n}.json" for n in range(PROCESSES_AT_ONCE)]
        processes = [PROCESSES.Process(target=read, args=(root, name, served.patches, result)) for result in results]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * PROCESSES_AT_ONCE
        assert all(result.read_text().startswith(f"{name} is not in {root}") for result in results)
        assert sorted(tmp_path.iterdir()) == sorted(results), trial
    figures.update({"processes": count * PROCESSES_AT_ONCE, "at once": PROCESSES_AT_ONCE})
