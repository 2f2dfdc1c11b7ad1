"""Records are read back, which others may have written: as plain values, checked, whatever is in them."""

import csv
import json
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import yaml

from sepconv import InputError
from sepconv.text import shorten

MOST_YAML, MOST_JSON = 10**5, 2**25  # bytes
DEPTH = 20  # of lists and mappings within one another, in YAML
LIMIT = 2**63  # of a whole number: what is larger is no count
TYPES = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null",
    list: "a list", dict: "keys and values", Any: "a plain value",
}  # fmt: skip
PLAIN = str | int | float | bool | None  # what a value of any type may be


class Loader(yaml.SafeLoader):  # not the one in C, which takes no names of files that are not UTF-8
    """Plain values, each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if counts and counts.most_common(1)[0][1] > 1:
            raise ValueError(f"the key {counts.most_common(1)[0][0]} stands there twice")
        return super().construct_mapping(node, deep=deep)


def read_text(path: Path, most: int) -> str:
    """The text of a file of `most` bytes at most.

    Raises InputError for what is not there, is no file, is too large, cannot be read or is not text.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} cannot be read: it is no file")
        if status.st_size > most:
            raise InputError(f"{path} cannot be read: it has {status.st_size:,} bytes, more than the {most:,} expected")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: it is not text in UTF-8") from error


def read_json(path: Path) -> Any:
    """What a JSON file has. Raises InputError where it cannot be read, or an object has a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a key stands there twice")
        return values

    try:
        return json.loads(read_text(path, MOST_JSON), object_pairs_hook=once)
    except RecursionError as error:
        raise InputError(f"{path} is not a record: it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    except InputError:
        raise
    except ValueError as error:  # a number of thousands of digits, too
        raise InputError(f"{path} is not a record: {shorten(str(error), 80)}") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file has, interpolations as they stand there.

    Raises InputError where it cannot be read, and for what a record has no use for: aliases, which a few lines of them
    make larger than any memory, tags, nesting beyond DEPTH, and a key that stands there twice.
    """
    text = read_text(path, MOST_YAML)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ValueError(f"it is nested more than {DEPTH} deep")
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise ValueError("it has an alias or a tag")
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path} is not a record: {shorten(' '.join(str(error).split()), 200)}") from error


@contextmanager
def of_its_kind(path: Path) -> Iterator[None]:
    """Raises InputError where what is made of a record shows that it is not one."""
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{path} is not a record of its kind: it has no {error}") from error
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, csv.Error) as error:
        raise InputError(f"{path} is not a record of its kind: {error}") from error


def write_yaml(values: Any) -> str:
    """Plain values as YAML that `read_yaml` gives them back from."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def check_fields(schema: type, key: str, values: Any) -> None:
    """Checks that `values` are those of the dataclass `schema`: the types of its fields, and their rules.

    `key` leads the fields' names in an error's line. There may be other values beside them.

    Raises InputError: which field, what it is, and what would be right.
    """
    prefix = f"{key}." if key else ""
    if not isinstance(values, dict):
        raise InputError(f"{key or 'it'} is {show(values)}, not {TYPES[dict]}")
    needed = [each.name for each in fields(schema) if each.default is MISSING and each.default_factory is MISSING]
    if lacking := [name for name in needed if name not in values]:
        raise InputError(f"it lacks {', '.join(prefix + name for name in lacking)}")
    for each in fields(schema):
        if each.name in values:
            name, value = prefix + each.name, values[each.name]
            if not fits(value, each.type):
                raise InputError(f"{name} is {show(value)}, not {describe(each.type)}")
            if value is not None and "rule" in each.metadata:
                each.metadata["rule"](name, value)


def check_each(schema: type, key: str, records: list[Any]) -> None:
    """Checks that each of `records` is one of the dataclass `schema`, as check_fields does."""
    for place, values in enumerate(records):
        check_fields(schema, f"{key}[{place}]", values)


def fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is of a type, as annotations name it; whole numbers are numbers too."""
    if kind is Any:
        return fits(value, PLAIN)
    if get_origin(kind) is UnionType:
        return any(fits(value, each) for each in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(each, *get_args(kind)) for each in value)
    if get_origin(kind) is dict:
        _, inner = get_args(kind)
        return isinstance(value, dict) and all(fits(each, inner) for each in value.values())
    if kind in (int, float) and isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < LIMIT
    return isinstance(value, kind)


def describe(kind: Any) -> str:
    """A type, as annotations name it, in words."""
    if get_origin(kind) is UnionType:
        return " or ".join(map(describe, get_args(kind)))
    if get_origin(kind) is list:
        return f"a list of {describe(*get_args(kind)).removeprefix('a ')}"
    return TYPES[get_origin(kind) or kind]


def show(value: Any) -> str:
    """A plain value in a few characters, as JSON has it."""
    if isinstance(value, list | dict):
        return TYPES[type(value)]
    return shorten("a very long number" if isinstance(value, int) and abs(value) >= LIMIT else json.dumps(value), 60)
