"""Many processes at once on the same folders."""

import signal
from pathlib import Path
from typing import Any

import pytest
from trials import ARGUMENTS, Script, describe, find_run, train, trials

pytestmark = pytest.mark.timeout(1800)


def test_many_trainings_in_one_folder(tmp_path: Path, figures: dict[str, Any]) -> None:
    """Trainings that begin at the same moment, in one runs folder, each have a directory and the result that they would have alone."""  # noqa: E501
    whole, _ = train(tmp_path)
    count = trials(20)
    arguments = [*ARGUMENTS, f"runs={tmp_path / 'runs'}"]
    scripts = [Script("train", arguments, tmp_path / f"{number}.log") for number in range(count)]
    assert [script.wait(600) for script in scripts] == [0] * count, scripts[0].output
    made = [path.parent for path in tmp_path.glob("runs/*/*/*/result.json")]
    assert len(made) == count
    expected = describe(whole)
    assert all(describe(run) == expected for run in made)
    figures.update({"processes": count, "results": len(made), "identical": len(made)})


def test_one_of_two_resumes(tmp_path: Path, figures: dict[str, Any]) -> None:
    """Of processes that resume one run at the same moment, one goes on with it, to the right end, and the others say so and end."""  # noqa: E501
    whole, seconds = train(tmp_path)
    refused = 0
    count = trials(5)
    for trial in range(count):
        folder = tmp_path / str(trial)
        folder.mkdir()
        begun = Script("train", [*ARGUMENTS, f"runs={folder / 'runs'}"], folder / "begun.log")
        begun.stop(seconds * 0.7, signal.SIGKILL)
        begun.wait()
        run = find_run(folder / "runs")
        if run is None or (run / "result.json").exists():
            continue
        scripts = [Script("train", [f"resume={run}"], folder / f"{number}.log") for number in range(4)]
        statuses = [script.wait() for script in scripts]
        assert statuses.count(0) == 1, [script.output for script in scripts]
        for status, script in zip(statuses, scripts, strict=True):
            if status:
                words = ("is being trained by another process", "is complete")
                line = script.output.strip().splitlines()[-1]
                assert line.startswith("error: "), script.output
                assert any(word in line for word in words), script.output
                refused += 1
        assert describe(run) == describe(whole)
    figures.update({"runs": count, "processes for each": 4, "refused with a line": refused})
