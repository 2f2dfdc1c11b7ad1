"""Claims and measurements that are stopped at any moment, then begun again by the same command."""

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from trials import Script, trials

from sepconv.training import runs

pytestmark = pytest.mark.timeout(1800)

CLAIMS = ["only=[C2,C4,C14]", "trainer=cpu", "recipe.epochs=2", "seeds=[0,1]", "data.train=400"]
LAYERS = ["suite=networks", "networks=[tiny,separable]", "batch_sizes=[8]", "rounds=1", "trainer=cpu"]


def stop_often(name: str, arguments: list[str], log: Path, stops: int, seconds: float) -> Counter[str]:
    """Gives the command again and again, stopped after up to so many `seconds`, and then lets it end."""
    draw = random.Random(stops)
    counts: Counter[str] = Counter()
    for _ in range(stops):
        number = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        script = Script(name, arguments, log)
        script.stop(draw.uniform(0, seconds), number)
        ended = script.wait()
        counts[number.name] += 1
        assert ended in (0, -number, 128 + number), script.output
    script = Script(name, arguments, log)
    assert script.wait() == 0, script.output
    return counts


def test_stopped_claims(tmp_path: Path, figures: dict[str, Any]) -> None:
    """Claims whose test is killed, or stopped by a signal, at any moment are found as they would have been: by the same command again, with no network trained twice."""  # noqa: E501
    if runs.hash_code(runs.current_code()) is None:
        pytest.skip("the code is not committed, so that claims use no run again")

    def arguments(folder: Path) -> list[str]:
        return [*CLAIMS, f"runs={folder}", f"output={folder}"]

    def found(folder: Path) -> dict[str, Any]:
        records = json.loads((folder / "claims/digits.json").read_text())
        return {name: (record["rows"], record["verdict"]) for name, record in records.items()}

    started = time.time()
    script = Script("claims", arguments(tmp_path / "whole"), tmp_path / "log")
    assert script.wait() == 0, script.output
    seconds = time.time() - started
    counts = stop_often("claims", arguments(tmp_path / "stopped"), tmp_path / "log", trials(30), seconds)
    assert found(tmp_path / "stopped") == found(tmp_path / "whole")
    results = [json.loads(path.read_text()) for path in tmp_path.glob("stopped/digits/*/*/result.json")]
    identities = {(result["macs"], result["seed"]) for result in results}
    assert len(results) == len(identities) == 4
    figures.update({**counts, "claims found as without a stop": 3, "networks trained": 4})


def test_a_stopped_benchmark(tmp_path: Path, figures: dict[str, Any]) -> None:
    """A benchmark that is killed, or stopped by a signal, at any moment keeps what it has measured, and the same command measures the rest."""  # noqa: E501
    arguments = [*LAYERS, f"output={tmp_path / 'records'}"]
    counts = stop_often("benchmark", arguments, tmp_path / "log", trials(15), 6)
    (path,) = (tmp_path / "records").glob("*.json")
    record = json.loads(path.read_text())
    assert [row["network"] for row in record["networks"]] == ["tiny", "separable"]
    figures.update({**counts, "lost": 0})
