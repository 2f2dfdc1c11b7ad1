"""What a shell hands over, as Hydra reads it: paths as they were typed, the jobs of a grid, one line for a mistake."""

import os
import re
import shlex
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sepconv import InputError
from sepconv.config import CONFIGS
from sepconv.config.rules import check_choice

# options of Hydra's that take the argument after them
VALUED = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
          "--info", "-i", "--experimental-rerun"}  # fmt: skip
# groups of keys whose `name` says which others there are
NAMED = ("model", "recipe.optimizer", "recipe.optimizer.others")


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's options (`-m`, `--cfg job`), and the other arguments. Raises InputError for an unknown option."""
    options: list[str] = []
    others: list[str] = []
    for argument in arguments:
        valued = options and options[-1] in VALUED and "=" not in argument
        (options if valued or argument.startswith("-") else others).append(argument)
    parser = get_args_parser()
    parser.error = refuse_option  # type: ignore[method-assign]
    parser.parse_args(options)
    return options, others


def refuse_option(message: str) -> NoReturn:
    raise InputError(f"{message}: --help shows what this command takes, --hydra-help its options")


def gather(arguments: list[str], key: str, keys: Iterable[str]) -> list[str]:
    """`arguments` with those that are paths, not key=value, as one override of the list `key`.

    Args:
        keys: those of the command. What begins with another name and is there, such as a folder `a=b`, is a path too.
    """
    others: list[str] = []
    paths: list[str] = []
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        named = equals and re.fullmatch(r"[+~]*[\w.@/:-]+", name)
        known = name.lstrip("+~").partition(".")[0] in (*keys, "hydra")
        is_path = not named or (not known and ("/" in name or os.path.exists(argument)))
        (paths if is_path else others).append(argument)
    return [*others, f"{key}=[{','.join(map(quote, paths))}]"] if paths else others


def take_path(argument: str, key: str, listed: bool, grid: bool) -> str:
    """The override `argument`, if it is one of the path `key`, with its value quoted where Hydra would misread it.

    Args:
        listed: the key takes a list of paths.
        grid: commas separate the values of a grid, unless the whole is a path that exists.
    """
    name, equals, value = argument.partition("=")
    if name.lstrip("+") != key or not equals or value in ("", "null") or (listed and value.startswith("[")):
        return argument
    exists = os.path.exists(os.path.expanduser(value))
    if not exists and is_quoted(value):
        return argument
    parts = value.split(",") if grid and not exists else [value]
    taken = ",".join(part if reads_as_typed(part) else quote(part) for part in parts)
    return f"{name}=[{taken}]" if listed else f"{name}={taken}"


def quote(text: str, mark: Quote = Quote.single) -> str:
    """`text` as a string of Hydra's."""
    return QuotedString(text, mark).with_quotes()


def write_value(value: Any) -> str:
    """A plain value as Hydra reads it in an override: a list, a dict, a number, a truth value, null or a string."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{write_value(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(write_value, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return quote(value) if isinstance(value, str) else str(value)


def is_quoted(value: str) -> bool:
    """Whether `value` is one string of Hydra's, quotes and all."""
    return value[0] in "'\"" and isinstance(read_value(value), QuotedString)


def reads_as_typed(value: str) -> bool:
    """Whether `value` is a path to Hydra too, and not a number, say; one with special characters is not asked about."""
    return re.fullmatch(r"[A-Za-z0-9_./:@%+-]+", value) is not None and read_value(value) == value


def read_value(value: str) -> Any:
    """What Hydra makes of `value`; None where it cannot be read."""
    try:
        return OverridesParser.create().parse_rule(value, "value")
    except (HydraException, RecursionError):
        return None


def parse(overrides: list[str], grid: bool = False) -> list[Override]:
    """The arguments as Hydra reads them. Raises InputError for one that it cannot, and for a choice that is no name."""
    parser = OverridesParser.create()
    parsed = []
    for argument in overrides:
        try:
            override = parser.parse_override(argument)
        except (HydraException, RecursionError, ValueError) as error:
            raise InputError(explain_argument(argument)) from error
        if not override.key_or_group:
            raise InputError(explain_argument(argument))
        if override.is_sweep_override():
            if not grid:
                raise InputError(f"{argument}: several values are a grid, which takes -m; a list stands in [ ]")
        else:
            check_choice_of_group(override)
        parsed.append(override)
    return parsed


def explain_argument(argument: str) -> str:
    """What is wrong with an argument that Hydra cannot read, and the form that it can."""
    key, equals, value = argument.partition("=")
    if not equals:
        return f"{argument or 'an empty argument'} is no key=value: --help shows all keys"
    if not re.fullmatch(r"[+~]*[A-Za-z_$][\w.@/:$-]*", key):
        return f"{argument}: {key or 'nothing'} is no name of a key: --help shows all keys"
    reason, form = "what has special characters stands in quotes, within those of the shell", quote(value, Quote.double)
    if "${" in value:
        reason, form = "the value of another key is ${key}", "${key}"
    elif value.startswith("["):
        reason, form = "a list ends with its bracket, and is one argument", '[1,two,"3 and 4"]'
    elif value.startswith("{"):
        reason, form = "a group of keys ends with its bracket, and is one argument", "{name: value, other: 2}"
    return f"{argument} cannot be read: {reason}, such as {shlex.quote(f'{key}={form}')}"


def check_choice_of_group(override: Override) -> None:
    """Raises InputError where a group of files, such as `model`, is given what is neither a name nor keys of it."""
    group, value = override.key_or_group, override.value()
    if override.is_delete() or "." in group or not group or not (CONFIGS / group).is_dir():
        return
    if isinstance(value, dict) or (isinstance(value, str) and value):
        return
    check_choice(group, override.get_value_element_as_str(), *group_choices(group))


def group_choices(group: str) -> list[str]:
    """The names of the files of `group`."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def list_jobs(parsed: list[Override]) -> list[list[str]]:
    """The overrides of each job of a grid. Raises InputError for what is no list of values."""
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            for override in parsed:
                override.config_loader = GlobalHydra.instance().config_loader()  # for model=glob(*)
            return BasicSweeper.split_arguments(parsed, None)[0]
    except (HydraException, ValueError, TypeError) as error:
        raise InputError(f"this grid cannot be made: {' '.join(str(error).split())}") from error


def begin_anew(command: str, overrides: list[str], options: list[str]) -> list[str]:
    """`overrides`, in which another network or optimizer does not inherit the arguments of the one that it replaces.

    `recipe.optimizer={name: SGD, lr: 0.1}` and `recipe.optimizer.name=SGD recipe.optimizer.lr=0.1` would otherwise
    leave it AdamW's `betas`. Whoever names what is there already changes the arguments given, and no others.
    """
    parsed = parse(overrides)
    given = {key: find_given(parsed, key) for key in NAMED}
    if not any("name" in arguments for arguments in given.values()):
        return overrides
    before = compose_without(command, parsed, options)
    removed = {override.key_or_group for override in parsed if override.is_delete()}
    dropped = []
    for key, arguments in given.items():
        there = OmegaConf.select(before, key)
        if not isinstance(there, DictConfig) or arguments.get("name", there.get("name")) == there.get("name"):
            continue
        left = {str(name) for name in there} - arguments.keys()
        dropped += [f"~{key}.{name}" for name in sorted(left) if f"{key}.{name}" not in removed]
        # `+`: arguments that the one replaced did not have
        overrides = [re.sub(rf"^(?={re.escape(key)}(\.\w+=|=\{{))", "++", override) for override in overrides]
    return [*overrides, *dropped]


def find_given(parsed: list[Override], key: str) -> dict[str, Any]:
    """The arguments that overrides set of the group of keys `key`."""
    given: dict[str, Any] = {}
    for override in parsed:
        value = override.value()
        if override.is_delete():
            continue
        if override.key_or_group == key and isinstance(value, dict):
            given |= value
        elif override.key_or_group.startswith(f"{key}."):
            given[override.key_or_group.removeprefix(f"{key}.").partition(".")[0]] = value
    return given


def compose_without(command: str, parsed: list[Override], options: list[str]) -> DictConfig:
    """The configuration that there would be but for the overrides of NAMED groups of keys."""
    kept = []
    for override in parsed:
        key, whole = override.key_or_group, isinstance(override.value(), dict)
        if not any(key.startswith(f"{named}.") or (key == named and whole) for named in NAMED):
            kept.append(override.input_line or "")
    for option, value in zip_longest(options, options[1:], fillvalue=""):
        folder = value if option in ("--config-dir", "-cd") else option.removeprefix("--config-dir=")
        if folder != option:
            kept.append(f"hydra.searchpath=[{quote(f'file://{Path(folder).absolute()}')}]")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(command, kept)


def training_arguments() -> list[str]:
    """Arguments that make scripts/train.py train what this command's configuration describes, with any seed."""
    command = HydraConfig.get()
    groups = ("data", "model", "recipe", "trainer", "experiment")
    choices = [f"{group}={choice}" for group in groups if (choice := command.runtime.choices.get(group))]
    return choices + [o for o in command.overrides.task if re.match(r"[+~]*(data|model|recipe|trainer)[./]", o)]
