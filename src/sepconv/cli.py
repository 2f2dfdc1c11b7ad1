"""The commands' common frame: Hydra reads the configuration, and a user's mistake becomes one line."""

import copyreg
import functools
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
import psutil
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sepconv import InputError, Stopped
from sepconv.config import MADE, REPOSITORY, SCHEMAS, Augment, explain, read
from sepconv.text import printable

CONFIGS = REPOSITORY / "configs"

Main = Callable[[Any, list[str], float], Path | None]  # the directory of the run that it made, where it makes one


def register() -> None:
    """Makes the schemas known to Hydra by their names, and what the configurations in `configs/` refer to."""
    store = ConfigStore.instance()
    for schema in SCHEMAS:
        store.store(schema.__name__, structured(schema))
    # as each is interpolated alone, a recipe can change one
    store.store("data_augment", {field.name: f"${{data.augment.{field.name}}}" for field in fields(Augment)})
    # its one instance is its copy: Hydra copies it for each group that a help could list, which takes seconds
    copyreg.pickle(ConfigStore, lambda _: (ConfigStore.instance, ()))
    OmegaConf.register_new_resolver("choices", choices, replace=True)


@cache
def structured(schema: type) -> DictConfig:
    """`schema` for OmegaConf, which, while Hydra merges, could not itself fill in a dataclass that has a union."""
    node = OmegaConf.structured(schema)
    for field in fields(schema):
        if isinstance(field.type, type) and is_dataclass(field.type) and OmegaConf.is_missing(node, field.name):
            node[field.name] = structured(field.type)
    return node


def choices() -> str:
    """The groups of this command and their choices, for its help; nothing where it has none."""
    groups = [group for group in sorted(HydraConfig.get().runtime.choices) if not group.startswith("hydra/")]
    names = {group: sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")) for group in groups}
    lines = "\n".join(f"{group}: {', '.join(names[group])}" for group in groups)
    return f"Choices (group=choice):\n\n{lines}\n\n" if groups else ""


def command(name: str, positional: str | None = None) -> Callable[[Main], Callable[[], None]]:
    """Makes `main(config, overrides, started)` a command that reads `configs/<name>.yaml`, overridden by its arguments.

    `config` is an instance of the schema that the file names; `overrides` are the arguments as given; `started` is when
    this process began, or the job where it is a later one of a grid, in seconds since the epoch. Arguments that are no
    key=value are the key `positional`, a list, where there is one. Hydra's own options (`--help`, `--cfg job`, `-m`)
    work. A mistake of the user's ends the command with status 2 and one line on standard error; an error of ours keeps
    its traceback.
    """

    def decorate(main: Main) -> Callable[[], None]:
        starts = chain([psutil.Process().create_time()], iter(time.time, None))
        begun = False

        def task(composed: DictConfig) -> None:
            nonlocal begun
            begun, started = True, next(starts)
            hydra_config, schema = HydraConfig.get(), OmegaConf.get_type(composed)
            assert schema is not None
            try:
                run = main(read(schema, composed), list(hydra_config.overrides.task), started)
            except KeyboardInterrupt as stop:
                sys.stderr.write(f"stopped: {stop}\n")
                raise SystemExit(stop.status if isinstance(stop, Stopped) else 130) from None
            except InputError as error:
                fail(error)  # here, inside the task: else Hydra would first print a line of its own
            if run is not None and hydra_config.mode == RunMode.MULTIRUN:
                folder = Path(hydra_config.sweep.dir)
                with (folder / MADE).open("a") as file:
                    file.write(f"{os.path.relpath(run, folder.resolve())}\n")

        @functools.wraps(main)
        def entry() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and does not print
            signal.signal(signal.SIGTERM, stop)
            if positional:
                sys.argv[1:] = gather(sys.argv[1:], positional)
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(task)()
            except (HydraException, OmegaConfBaseException) as error:
                fail(explain_composition(error))
            except (OSError, ValueError, YAMLError) as error:
                if begun:
                    raise
                if isinstance(error, OSError):  # of Hydra's own folder
                    fail(f"cannot write to {error.filename} ({error.strerror}): choose another folder with runs=")
                fail(" ".join(str(error).split()))

        return entry

    return decorate


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """The answer to SIGTERM: what Ctrl-C does, with its own exit status."""
    raise Stopped(status=128 + number)


def gather(arguments: list[str], key: str) -> list[str]:
    """`arguments` with those that are neither options nor key=value as one override of the list `key`."""
    valued = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
    others: list[str] = []
    gathered: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        hydras = argument.startswith(("-", "+", "~")) or "=" in argument or before in valued
        (others if hydras else gathered).append(argument)
    quoted = ("'" + argument.replace("\\", "\\\\").replace("'", "\\'") + "'" for argument in gathered)
    return [*others, f"{key}=[{','.join(quoted)}]"] if gathered else others


def explain_composition(error: Exception) -> str:
    """One line for what Hydra says of a bad command line or experiment: choices, keys, values, syntax."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"unknown {group}={choice}: choose from {', '.join(sorted(error.options))}"
    message = " ".join(str(error).split())
    file = re.match(r"In '([^']+)'", message)
    where = f" (in {file[1]})" if file else ""
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OmegaConfBaseException):
            return explain(cause) + where
    if match := re.search(r"Could not override '([^']+)'. No match in the defaults list", message):
        return f"{match[1]} is no choice of this command: --help lists them{where}"
    return message


def fail(message: Any) -> NoReturn:
    """Ends the program with status 2 and one line."""
    sys.stderr.write(f"error: {printable(str(message))}\n")
    raise SystemExit(2)


register()
