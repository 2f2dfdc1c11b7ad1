"""Records of runs that are wrong: `compare` ends with a report, or with one line that names the run."""

import copy
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from recorded import configuration, figures, write_run

from sepconv import InputError
from sepconv.config.keys import CompareConfig
from sepconv.study import report
from sepconv.study.compare import compare

TRIALS = int(os.environ.get("TRIALS", 2500))  # wrong records, of all that there are
DRAWN = 10  # of the reports, one in so many has its pictures
LONGEST = 20.0  # seconds that a record may take
SECRET = "swordfish"
HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "[x](javascript:alert(1))", "a|b`c` **d** &lt;",
    "=1+1", "@SUM(A1)", "\x1b[31mred\x1b]0;t\x07", "\u202egnp.exe", "$\\frac{1}{2$", "[red]x[/]", "_x",
    "line\nbreak\r\t", "\udcff", "../../escaped", "${oc.env:SECRET}", "${", "???", "x" * 5000,
    "\u0430b", "\x00", "%s{0}{{7*7}}",
)  # fmt: skip
WRONG = (
    None,
    True,
    -1,
    0,
    0.5,
    1.5,
    10**30,
    float("nan"),
    float("inf"),
    -0.0,
    1e308,
    "",
    "5",
    [],
    {},
    [[]],
    {"a": 1},
    [1],
)


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def good() -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and figures of a run that is as it should be."""
    return configuration("model=separable"), figures()


def leaves(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in dicts and lists in one another, those of the dicts and lists among them."""
    if path:
        yield path
    if isinstance(values, dict | list):
        for key in values if isinstance(values, dict) else range(len(values)):
            yield from leaves(values[key], (*path, key))


def replaced(values: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value in a place."""
    changed = copy.deepcopy(values)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def without(values: Any, path: tuple[Any, ...]) -> Any:
    """A copy without the value of a place."""
    changed = copy.deepcopy(values)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


def broken(text: str) -> Iterator[bytes]:
    """Files that are no longer what `text` was."""
    data = text.encode()
    yield from (data[: len(data) * part // 20] for part in range(20))
    yield from (data[:place] + bytes([byte]) + data[place + 1 :] for place in range(0, len(data), len(data) // 20 + 1)
                for byte in (0, 0xFF))  # fmt: skip
    yield data * 2
    yield data.decode().encode("utf-16")
    yield b"\xef\xbb\xbf" + data
    yield bytes(range(256)) * 100
    yield b"[" * 10**5
    yield b'{"a":' * 10**5
    yield b"[" * 500 + b"]" * 500
    yield b"9" * 10**5
    yield b'{"seed": 1, "seed": 2}'
    yield b"null"
    yield b'"text"'
    yield b" " * 2**26


def hostile_yaml(text: str) -> Iterator[bytes]:
    """Configurations that make a reader of YAML work, or run something."""
    yield b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (new, new, b",".join([b"*%c" % old] * 9))
        for old, new in zip(range(97, 122), range(98, 123), strict=True)
    )
    yield b"a: &a [*a]\n"
    yield b"x: !!python/object/apply:os.system ['touch escaped']\n" + text.encode()
    yield b"x: !!python/object/apply:pathlib.Path ['/']\n" + text.encode()
    yield b"seed: 0\nseed: 1\n"
    yield b"? [a, b]\n: c\n"
    yield b"? {a: b}\n: c\n"
    yield b"--- 1\n--- 2\n"
    yield b"<<: {seed: 1}\n" + text.encode()
    yield b"x: 2026-99-99\n"
    yield b"x: " + b"9" * 9999
    yield b"x: 0x" + b"f" * 50000
    yield b"x: " + b"- " * 2000
    yield b"x: " + b"${" * 10000
    yield text.encode().replace(b"name: mnist", b"name: ${oc.env:SECRET}")
    yield text.encode().replace(b"name: mnist", b"name: ../escaped")
    yield text.encode().replace(b"name: mnist", b"name: /escaped")


def file_of(path: Path, kind: str) -> None:
    """What is no file, or none that can be read, in place of one."""
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link to nothing":
        path.symlink_to("nowhere")
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")


Case = tuple[str, Callable[[Path], None]]  # what is wrong, and what makes a good run so


def cases(config: dict[str, Any], result: dict[str, Any]) -> Iterator[Case]:
    """All wrong records."""

    def write(name: str, data: bytes) -> Callable[[Path], None]:
        return lambda run: (run / name).write_bytes(data) and None

    def results() -> Iterator[Case]:
        for path in leaves(result):
            for value in WRONG:
                yield (
                    f"result.json {path} {value!r}",
                    write("result.json", json.dumps(replaced(result, path, value)).encode()),
                )
            yield f"result.json without {path}", write("result.json", json.dumps(without(result, path)).encode())

    def texts() -> Iterator[Case]:
        for path in leaves(result):
            for value in HOSTILE:
                yield (
                    f"result.json {path} {value!r}",
                    write("result.json", json.dumps(replaced(result, path, value)).encode()),
                )

    def configurations() -> Iterator[Case]:
        for path in leaves(config):
            for value in (*WRONG, *HOSTILE):
                data = yaml.safe_dump(replaced(config, path, value)).encode(errors="surrogateescape")
                yield f"config.yaml {path} {value!r}", write("config.yaml", data)

    def overrides() -> Iterator[Case]:
        for value in (*WRONG, *HOSTILE):
            for values in (value, [value], [f"model.width={value}"]):
                yield f"overrides.yaml {values!r}", write("overrides.yaml", yaml.safe_dump(values).encode())

    def damaged() -> Iterator[Case]:
        text = yaml.safe_dump(config)
        for name, content in (
            ("result.json", json.dumps(result, indent=2)),
            ("config.yaml", text),
            ("overrides.yaml", "[a=1]"),
        ):
            for number, data in enumerate(broken(content)):
                yield f"{name} broken {number}", write(name, data)
            for kind in ("pipe", "directory", "link to nothing", "link to itself", "device"):
                yield f"{name} is a {kind}", lambda run, name=name, kind=kind: file_of(run / name, kind)
        for number, data in enumerate(hostile_yaml(text)):
            yield f"config.yaml hostile {number}", write("config.yaml", data)
            yield f"overrides.yaml hostile {number}", write("overrides.yaml", data)

    for kind in (damaged, overrides, texts, results, configurations):
        yield from kind()


def check_report(folder: Path) -> None:
    """A report has nothing in it that would be obeyed instead of shown."""
    for path in folder.iterdir():
        if path.suffix != ".png":
            text = path.read_text()
            assert text.replace("\n", "").isprintable(), path
            assert SECRET not in text
    tags = Tags()
    tags.feed((folder / "report.html").read_text())
    assert sum(tag == "script" for tag, _ in tags.seen) == 1
    assert not any(tag in ("img", "iframe") for tag, _ in tags.seen)
    for _, attributes in tags.seen:
        assert not any(name.startswith("on") for name in attributes)
        assert not re.match(r"\s*javascript", attributes.get("href") or "")
    markdown = (folder / "report.md").read_text()
    assert not re.search(r"(?<!\\)<[a-z/!]|(?<![\\!])\[[^\]]*(?<!\\)\]\(", markdown)
    for line in (folder / "runs.csv").read_text().splitlines():
        assert not re.search(r'(^|,)"?[=@]', line)


def test_wrong_records(
    good: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], figures: dict[str, Any],
) -> None:  # fmt: skip
    """Whatever is in a run's record, compare ends soon, with a report or with one line that names the run."""
    config, result = good
    monkeypatch.setenv("SECRET", SECRET)
    home = tmp_path / "a/b/c"
    draw = report.draw_section
    wrong = list(cases(config, result))
    wrong = random.Random(0).sample(wrong, min(TRIALS, len(wrong)))
    fine = write_run(home / "fine", config | {"seed": 1}, ["seed=1"], result | {"seed": 1})
    counts = {"wrong records": 0, "a report": 0, "refused with a line": 0}
    longest = 0.0
    for number, (what, spoil) in enumerate(wrong):
        monkeypatch.setattr(report, "draw_section", draw if counts["a report"] % DRAWN == 0 else lambda _: {})
        run, output = home / f"wrong{number}", home / f"out{number}"
        spoil(write_run(run, config, ["model=separable"], result))
        before = set(tmp_path.rglob("*"))
        started = time.monotonic()
        try:
            options = CompareConfig(runs=[str(fine), str(run)], output=str(output))
            report.report_comparison(compare(options), options, [])
        except InputError as error:
            counts["refused with a line"] += 1
            line = str(error)
            assert run.name in line, (what, line)
            assert len(line) < 2000, (what, line)
            assert SECRET not in line, what
            assert not output.exists(), what
        except BaseException as error:
            raise AssertionError(f"{what}: {error!r}") from error
        else:
            counts["a report"] += 1
            check_report(output)
        longest = max(longest, time.monotonic() - started)
        assert longest < LONGEST, what
        out, err = capfd.readouterr()
        assert SECRET not in out + err, what
        assert out.replace("\n", "").isprintable(), what
        assert "Traceback" not in err, what
        left = {path for path in tmp_path.rglob("*") if output not in (path, *path.parents)}
        assert left == before, what
        shutil.rmtree(run)
        shutil.rmtree(output, ignore_errors=True)
        counts["wrong records"] += 1
    figures |= counts | {"longest, in seconds": round(longest, 1)}
