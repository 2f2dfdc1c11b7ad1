"""The page of records: every figure of the files, with its source, and nothing else."""

import csv
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Outcome, refused

from sepconv import InputError
from sepconv.benchmark.records import write
from sepconv.config.keys import RecordsConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ORIGIN = {
    "data": "mnist",
    "precision": "bf16-mixed",
    "device": {"kind": "cpu", "name": "AMD EPYC", "threads": 2},
    "date": "2026-01-02",
    "command": "python scripts/benchmark.py suite=loop",
    "git": {"sha": COMMIT, "dirty": False},
    "versions": {"torch": "2.15.0"},
}
LOOP = {
    "suite": "loop", "model": {"name": "separable"}, "batch_size": 128,
    "ratio": {"turns": [0.97, 0.99, 1.01], "median": 0.99, "quartiles": [0.98, 1.0]},
    "images_per_second": {"bare": [100.0], "ours": [99.0]}, **ORIGIN,
}  # fmt: skip


def save_runs(path: Path, networks: dict[str, list[float]], **changes: Any) -> None:
    """Writes a file of runs: the accuracies of each network, by seed."""
    rows = [
        {
            "data": "mnist", "network": label, "seed": seed,
            "run": f"runs/mnist/separable/2026010{seed + 1}-120000-seed{seed}", "val_accuracy": 0.5,
            "test_accuracy": accuracy, "parameters": 1000 * (index + 1), "macs": 40_000 * (index + 1),
            "fit_seconds": 77.125, "precision": "32-true", "device": "AMD EPYC, 2 threads", "torch": "2.15.0",
            "commit": COMMIT, **changes,
        }
        for index, (label, accuracies) in enumerate(networks.items())
        for seed, accuracy in enumerate(accuracies)
    ]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def page(records: Path, folder: Path) -> str:
    write(RecordsConfig(records=str(records), output=str(folder)))
    return (folder / "records.md").read_text()


@pytest.fixture
def records(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    return folder


def test_accuracies_with_intervals_pairs_and_source(records: Path, tmp_path: Path) -> None:
    """Mean and interval by hand: t of 2 degrees of freedom at 97.5 % is 4.303."""
    save_runs(records / "three-runs.csv", {"tiny": [0.97, 0.98, 0.985], "baseline": [0.98, 0.985, 0.995]})
    text = page(records, tmp_path / "docs")
    half = 4.3027 * statistics.stdev([97, 98, 98.5]) / 3**0.5
    assert f"| tiny | 3 | 97.83 ± {half:.2f} % | 1,000 | 40,000 | -0.83 ± " in text
    source = "mnist; 32-true; AMD EPYC, 2 threads; torch 2.15.0; 2026-01-01 to 2026-01-03; commit 0123456"
    assert f"[three-runs.csv](../benchmarks/three-runs.csv): {source}\n" in text
    assert "77.1" not in text  # a file of runs does not say what else the machine did


def test_networks_of_two_commits_are_apart_and_not_compared(records: Path, tmp_path: Path) -> None:
    save_runs(records / "a-runs.csv", {"baseline": [0.98, 0.99]})
    other = tmp_path / "other.csv"
    save_runs(other, {"tiny": [0.97, 0.96], "baseline": [0.5]}, commit="fedcba9876")
    with (records / "a-runs.csv").open("a", newline="") as file:
        file.writelines(other.read_text().splitlines(keepends=True)[1:3])
    text = page(records, tmp_path / "docs")
    assert "| baseline | 2 | 98.50 " in text
    assert "| tiny | 2 | 96.50 " in text
    assert "| fedcba9 |" in text
    assert "minus the reference" not in text


def test_one_network_in_two_ways(records: Path, tmp_path: Path) -> None:
    """The last row is the reference; equal within 0.1 point by hand: t = (0.05 - 0.1) / (0.01 / sqrt(3)), 2 degrees."""
    ways = {"tiny (model.kernels=auto)": [0.9705, 0.9806, 0.9904], "tiny (model.kernels=torch)": [0.97, 0.98, 0.99]}
    save_runs(records / "a-runs.csv", ways)
    text = page(records, tmp_path / "docs")
    assert "| +0.05 ± 0.02, p 0.0131 | 0.0065 |" in text
    assert text.count("0.0065") == 1


def test_runs_that_say_what_ran(records: Path, tmp_path: Path) -> None:
    """Their options are shown; runs of another configuration, or of changed code, are rows of their own."""
    arguments = ["experiment=small_mnist", "seed=0", "data.root=a b", "+model.x='=1'"]
    said = {"overrides": json.dumps(arguments), "configuration": "abc", "dirty": "False"}
    save_runs(records / "a-runs.csv", {"tiny": [0.97, 0.98]}, **said)
    for name, change in {"b": {"configuration": "def"}, "c": {"dirty": "True"}}.items():
        save_runs(tmp_path / name, {"tiny": [0.96]}, **said | change)
        with (records / "a-runs.csv").open("a", newline="") as file:
            file.write((tmp_path / name).read_text().splitlines(keepends=True)[1])
    text = page(records, tmp_path / "docs")
    assert "| tiny | experiment=small_mnist +model.x='=1' | 2 | 97.50 " in text
    assert text.count("| tiny | ") == 3
    assert text.count("with changes that are not committed") == 1


def test_views_are_shown_where_runs_have_them(records: Path, tmp_path: Path) -> None:
    save_runs(records / "a-runs.csv", {"airbench": [0.93]}, test_accuracy_tta="0.9407")
    assert "| airbench | 1 | 93.00 % | 94.07 % |" in page(records, tmp_path / "docs")


def test_loop_and_what_is_not_committed(records: Path, tmp_path: Path) -> None:
    (records / "loop.json").write_text(json.dumps(LOOP | {"git": {"sha": COMMIT, "dirty": True}}))
    text = page(records, tmp_path / "docs")
    assert "| separable | 128 | 99 | 100 | 0.990 (0.980 to 1.000) | 3 |" in text
    facts = "mnist; bf16-mixed; AMD EPYC, 2 threads; torch 2.15.0; 2026-01-02; commit 0123456"
    change = "with changes that are not committed"
    assert f"[loop.json](../benchmarks/loop.json): {facts}, {change}\n\n```\n{ORIGIN['command']}\n```\n" in text


def test_layers(records: Path, tmp_path: Path) -> None:
    times = {"turns": [1.0, 2.0, 3.0], "median": 2.0, "quartiles": [1.5, 2.5]}
    layer = {"layer": "depthwise, stride 2", "input": "1 x 2", "pass": "forward", "precision": "fp32",
             "milliseconds": {"layer": times, "torch": times}, "times_as_fast": times}  # fmt: skip
    (records / "cpu_layers-cpu.json").write_text(json.dumps({"suite": "cpu_layers", "layers": [layer], **ORIGIN}))
    text = page(records, tmp_path / "docs")
    assert "| 2.000 (1.500 to 2.500) | 2.000 (1.500 to 2.500) | 2.00 (1.50 to 2.50) | 3 |" in text


def test_other_files_are_named(records: Path, tmp_path: Path) -> None:
    (records / "loop.json").write_text(json.dumps(LOOP))
    (records / "notes.txt").write_text("")
    (records / "list.json").write_text("[1]")
    (records / "suite.json").write_text('{"suite": "unheard"}')
    text = page(records, tmp_path / "docs")
    others = text[text.index("## Other files") :]
    for name in ("notes.txt", "list.json", "suite.json"):
        assert f"[{name}](../benchmarks/{name})" in others
    assert "loop.json" not in others


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a-runs.csv", "network,seed\ntiny,0\n", "not a record of its kind: it has no 'commit'"),
        ("a-runs.csv", "network,seed\n", "lists no runs"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"suite": "loop", "git": 5}', "not a record of its kind"),
        ("a.json", '{"suite": "loop"}', "it has no "),
    ],
)
def test_broken_files_are_refused(records: Path, tmp_path: Path, name: str, content: str, words: str) -> None:
    (records / name).write_text(content)
    with pytest.raises(InputError, match=words) as error:
        page(records, tmp_path / "docs")
    assert name in str(error.value)


def test_folders(command: Callable[..., Outcome], records: Path, tmp_path: Path) -> None:
    refused(command("records", f"records={tmp_path}/missing"), "records=", "missing is not there")
    (tmp_path / "file").write_text("")
    refused(command("records", f"records={records}", f"output={tmp_path}/file"), "cannot write to", "output=")
    outcome = command("records", f"records={records}", f"output={tmp_path}/docs")
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "docs/records.md").read_text().startswith("# Records\n")


def test_page_of_this_repository_is_that_of_its_records(tmp_path: Path) -> None:
    """Written again from the records, the page is the same, and it names each of them."""
    shutil.copytree(REPOSITORY / "benchmarks", tmp_path / "benchmarks")
    text = page(tmp_path / "benchmarks", tmp_path / "docs")
    assert text == (REPOSITORY / "docs/records.md").read_text()
    for path in (tmp_path / "benchmarks").iterdir():
        assert f"[{path.name}](../benchmarks/{path.name})" in text
