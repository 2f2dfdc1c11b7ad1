"""The commands' common frame: Hydra reads the configuration, and a user's mistake becomes one line."""

import functools
import os
import re
import sys
import time
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sepconv import InputError
from sepconv.config import MADE, REPOSITORY, explain, read, unknown_key

T = TypeVar("T")
Main = Callable[[T, list[str], float], Path | None]  # the directory of the run that it made, where it makes one

OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)


def command(name: str, schema: type[T], positional: str | None = None) -> Callable[[Main[T]], Callable[[], None]]:
    """Makes `main(config, overrides, started)` a command that reads `configs/<name>.yaml`, overridden by its arguments.

    `config` is an instance of `schema`; `overrides` are the arguments as given; `started` is when this process
    began, or the job where it is a later one of a grid, in seconds since the epoch. Arguments that are no key=value
    are the key `positional`, a list, where there is one. Hydra's own options (`--help`, `--cfg job`, `-m`) work. A
    mistake of the user's ends the command with status 2 and one line on standard error; an error of ours keeps its
    traceback.
    """

    def decorate(main: Main[T]) -> Callable[[], None]:
        starts = chain([psutil.Process().create_time()], iter(time.time, None))

        begun = False

        def task(raw: DictConfig) -> None:
            nonlocal begun
            begun, started = True, next(starts)
            try:
                made = main(read(schema, raw), list(HydraConfig.get().overrides.task), started)
            except KeyboardInterrupt as stop:
                sys.stderr.write(f"stopped: {stop}\n")
                raise SystemExit(130) from None
            except InputError as error:
                fail(error)  # here, inside the task: else Hydra would first print a line of its own
            if made is not None and HydraConfig.get().mode == RunMode.MULTIRUN:
                with (Path(HydraConfig.get().sweep.dir) / MADE).open("a") as file:
                    file.write(f"{made}\n")

        @functools.wraps(main)
        def entry() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and does not print
            if positional:
                sys.argv[1:] = gather(sys.argv[1:], positional)
            try:
                hydra.main(version_base="1.3", config_path=str(REPOSITORY / "configs"), config_name=name)(task)()
            except HydraException as error:
                fail(explain_hydra(error, schema))
            except OmegaConfBaseException as error:
                fail(explain(error, schema))
            except OSError as error:  # of Hydra's own folder
                if begun:
                    raise
                fail(f"cannot write to {error.filename} ({error.strerror}): choose another folder with runs=")

        return entry

    return decorate


def gather(arguments: list[str], key: str) -> list[str]:
    """`arguments` with those that are neither options nor key=value as one override of the list `key`."""
    values = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
    others: list[str] = []
    gathered: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        own = argument.startswith(("-", "+", "~")) or "=" in argument or before in values
        (others if own else gathered).append(argument)
    quoted = ("'" + argument.replace("\\", "\\\\").replace("'", "\\'") + "'" for argument in gathered)
    return [*others, f"{key}=[{','.join(quoted)}]"] if gathered else others


def explain_hydra(error: Exception, schema: type) -> str:
    """One line for what Hydra says of a bad command line: unknown choices, unknown keys, bad syntax."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"unknown {group}={choice}: choose from {', '.join(sorted(error.options))}"
    message = str(error)
    if match := re.search(r"Could not (?:override|delete from config)[^']*'([^']+)'", message):
        if isinstance(error.__cause__, OmegaConfBaseException) and "not in struct" not in str(error.__cause__):
            return explain(error.__cause__, schema)
        return unknown_key(match[1].partition("=")[0], schema)
    return " ".join(message.split())


def fail(message: Any) -> NoReturn:
    """Ends the program with status 2 and one line."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)
