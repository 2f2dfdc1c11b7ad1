"""A configuration is read into its dataclass of `sepconv.config.keys`, and a mistake in it becomes one line."""

import difflib
import os
import re
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sepconv import InputError
from sepconv.config import CONFIGS, MODEL
from sepconv.config.keys import SUITES
from sepconv.config.rules import check_model, check_numbers

T = TypeVar("T")


@cache
def defaults(name: str) -> dict[str, Any]:
    """What configs/model/ has of the network `name`; nothing of one that is not there."""
    files = {path.stem: path for path in (CONFIGS / "model").glob("*.yaml")}
    if name not in files:
        return {}
    options: Any = OmegaConf.to_container(OmegaConf.load(files[name]))
    return dict(options)


def complete(model: dict[str, Any]) -> dict[str, Any]:
    """`model` (name and options) with the defaults of what it leaves out, as runs leave out options that came later.

    Raises InputError for what names no network.
    """
    check_model("model", model)
    if model["name"] == "separated":
        return {"name": model["name"]} | MODEL | model | {"base": complete(model.get("base", {}))}
    return {"name": model["name"]} | MODEL | defaults(model["name"]) | model


def read(schema: type[T], config: DictConfig | dict[str, Any], prefix: str = "") -> T:
    """`config` as an instance of the dataclass `schema`, types and ranges checked; `prefix` leads its keys' names.

    A dict is one that was recorded: it has plain values, as it may be another's, whose interpolations would read this
    machine's environment.

    Raises InputError, in one line, for an unknown key, a wrong type, a missing value or one out of range.
    """
    if isinstance(config, dict):
        check_plain(config, prefix)
    plain: Any = None
    try:
        plain = OmegaConf.to_container(OmegaConf.create(config))  # untyped: else merge would take unknown keys over
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
        check_values(schema, values, prefix)
        instance = OmegaConf.to_object(OmegaConf.merge(merged, values))
    except OmegaConfBaseException as error:
        named = isinstance(error.full_key, str) and error.full_key
        raise InputError(explain(error, prefix if named else prefix + find_misfit(schema, plain))) from error
    assert isinstance(instance, schema)
    return instance


def check_plain(values: Any, prefix: str = "") -> None:
    """Raises InputError where there is an interpolation among `values`, dicts and lists in one another."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in pairs:
        if "${" in str(key) or (isinstance(value, str) and "${" in value):
            raise InputError(f"{prefix}{key}={value} is an interpolation: a record has plain values only")
        if isinstance(value, dict | list | tuple):
            check_plain(value, f"{prefix}{key}.")


def check_values(schema: type, values: Any, prefix: str) -> None:
    """Checks the `values` of the dataclass `schema`, and of those in it, by their fields' rules; `~` becomes a home."""
    for each in fields(schema):
        key, value = prefix + each.name, values[each.name]
        if isinstance(each.type, type) and is_dataclass(each.type):
            check_values(each.type, value, f"{key}.")
        elif value is not None:
            if not nests_as(value, each.type):
                raise InputError(f"{key}={value} has a list or a mapping where there can be none")
            check_numbers(key, value)
            if "path" in each.metadata:
                value = values[each.name] = expand(key, value)
            if "rule" in each.metadata:
                each.metadata["rule"](key, value)


def nests_as(value: Any, kind: Any) -> bool:
    """Whether lists and dicts are where the type `kind` has them: OmegaConf takes a list in a list of numbers, too."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(nests_as(value, part) for part in parts)
    if isinstance(value, list):
        return kind is Any or (origin is list and all(nests_as(each, parts[0]) for each in value))
    if isinstance(value, dict):
        return kind is Any or (origin is dict and all(nests_as(each, parts[1]) for each in value.values()))
    return True


def expand(key: str, path: Any) -> Any:
    """`path`, or a list of paths, with one's home for `~`. Raises InputError for what is no path, or no home."""
    if isinstance(path, list):
        return [expand(key, each) for each in path]
    if not path.isascii() and any("\ud800" <= character <= "\udfff" for character in path):  # bytes, to Python
        raise InputError(f"{key}={path} is not UTF-8, as it would be recorded: rename it (or set PYTHONUTF8=1)")
    if "\0" in path:
        raise InputError(f"{key}={path} is no path")
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise InputError(f"{key}={path}: there is no such user; a folder of this name here is ./{path}")
    return found


def find_misfit(schema: type, values: Any) -> str:
    """The first key of `values` that `schema` does not take by itself, or nothing: errors on lists name no key."""
    for key, value in values.items() if isinstance(values, dict) else ():
        try:
            OmegaConf.merge(OmegaConf.structured(schema), {key: value})
        except OmegaConfBaseException:
            return str(key)
    return ""


def find_paths(schema: type, prefix: str = "") -> dict[str, bool]:
    """The dotted keys of `schema` that are paths, and whether each takes a list of them."""
    keys: dict[str, bool] = {}
    for each in fields(schema):
        if isinstance(each.type, type) and is_dataclass(each.type):
            keys |= find_paths(each.type, f"{prefix}{each.name}.")
        elif "path" in each.metadata:
            keys[prefix + each.name] = get_origin(each.type) is list
    return keys


def explain(error: OmegaConfBaseException, prefix: str = "") -> str:
    """One line for an error of OmegaConf: the key, what is wrong, what would be right."""
    name = error.full_key  # of an element of a list it is the place
    key = prefix + (f"[{name}]" if isinstance(name, int) else str(name or error.key or ""))
    message = str(error).splitlines()[0]
    if re.search(r"Key '.*' (not in|is not in struct)", message):
        return f"unknown key {key}: {suggest(key, [name for name in error.parent_node if name != 'hydra'])}"
    if "mandatory value" in message:
        return f"{key} is missing: give {key}=..."
    if "is not a ListConfig" in message or message == "Cannot merge DictConfig with ListConfig":
        return f"{key} takes a list: {key}=[...]"
    if "does not support deletion" in message:
        return f"{key} cannot be left out"
    return f"{key}: {message}" if key else message


def suggest(key: str, names: list[str]) -> str:
    """What would be right in place of `key`, where there are `names`."""
    *path, name = key.split(".")
    suites = [suite for suite, schema in SUITES.items() if name in schema.__dataclass_fields__]
    if suites and "suite" in names:
        return f"it is one of suite={' and suite='.join(suites)}"
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.7):
        return f"did you mean {'.'.join([*path, near[0]])}?"
    more = f"; +{key}=... adds an argument" if "optimizer" in path else ""
    return f"choose from {', '.join(names)}{more}"


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted keys and plain values; what is not set is left out."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value not in (None, ""):
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
