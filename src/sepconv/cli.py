"""The commands' common frame: Hydra reads the configuration, and a user's mistake becomes one line."""

import copyreg
import functools
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_type_hints

import hydra
import psutil
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sepconv import InputError, Stopped
from sepconv.arguments import begin_anew, gather, group_choices, list_jobs, parse, split, take_path
from sepconv.config import CONFIGS, MADE
from sepconv.config.keys import SCHEMAS, Augment
from sepconv.config.read import explain, find_paths, read
from sepconv.streams import lasting_output
from sepconv.text import printable

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
    lines = "\n".join(f"{group}: {', '.join(group_choices(group))}" for group in groups)
    return f"Choices (group=choice):\n\n{lines}\n\n" if groups else ""


def command(name: str, positional: str | None = None) -> Callable[[Main], Callable[[], None]]:
    """Makes `main(config, overrides, started)` a command that reads `configs/<name>.yaml`, overridden by its arguments.

    `config` is an instance of the schema that `main` names; `overrides` are the arguments as Hydra reads them;
    `started` is when this process began, or the job where it is a later one of a grid, in seconds since the epoch.
    Arguments that are no key=value are the key `positional`, a list of paths, where there is one. Hydra's own options
    (`--help`, `--cfg job`, `-m`) work. A mistake of the user's ends the command with status 2 and one line on standard
    error, Ctrl-C with 130 and SIGTERM with 143; an error of ours keeps its traceback.
    """

    def decorate(main: Main) -> Callable[[], None]:
        @functools.wraps(main)
        def entry() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, and does not print
            heed_signals()
            with lasting_output():
                try:
                    Command(name, main, positional).run(sys.argv[1:])
                except KeyboardInterrupt as stopped:
                    clear_bars()
                    lines = [printable(line) for line in str(stopped).splitlines()]
                    sys.stderr.write("\n".join([f"stopped: {lines[0]}", *lines[1:]] if lines else ["stopped"]) + "\n")
                    raise SystemExit(stopped.status if isinstance(stopped, Stopped) else 130) from None
                except InputError as error:
                    fail(error)

        return entry

    return decorate


class Command:
    """One call of the command `name`, as `command` says."""

    def __init__(self, name: str, main: Main, positional: str | None) -> None:
        self.name, self.main, self.positional = name, main, positional
        self.started: float | None = psutil.Process().create_time()  # of the first job
        self.grid = False
        self.folder: Path | None = None  # of the grid, where a job has made a run

    def run(self, arguments: list[str]) -> None:
        options, overrides = split(arguments)
        others = [option for option in options if option not in ("-m", "--multirun")]
        self.grid = others != options
        overrides = self.take_paths(overrides)
        parsed = parse(overrides, self.grid)
        if self.grid:
            jobs = list_jobs(parsed)
            elsewhere = any(override.key_or_group == "hydra/launcher" for override in parsed)
            common = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
            self.run_grid(
                jobs, self.submit(jobs, common, others) if elsewhere else partial(self.perform, options=others)
            )
        else:
            self.perform(overrides, options)

    def take_paths(self, overrides: list[str]) -> list[str]:
        """`overrides` with paths as they were typed."""
        config = get_type_hints(self.main)["config"]
        schemas = [schema for schema in SCHEMAS if issubclass(schema, config)]
        if self.positional:
            keys = [each.name for schema in schemas for each in fields(schema)]
            overrides = gather(overrides, self.positional, keys)
        for schema in schemas:
            for key, listed in find_paths(schema).items():
                overrides = [take_path(override, key, listed, self.grid) for override in overrides]
        return overrides

    def run_grid(self, jobs: list[list[str]], perform: Callable[[list[str]], None]) -> None:
        """Has `perform` do every job, whatever becomes of those before it. Raises SystemExit where some failed."""
        failed: list[str] = []
        status = 2
        for number, job in enumerate(jobs, 1):
            print(f"job {number} of {len(jobs)}: {printable(' '.join(job))}", flush=True)
            try:
                perform(job)
            except KeyboardInterrupt as stopped:
                left = jobs[number if str(stopped) else number - 1 :]
                lines = [shlex.join(["python", f"scripts/{self.name}.py", *each]) for each in left]
                message = "\n".join([str(stopped), "jobs that were not begun:" * bool(left), *lines]).strip()
                raise Stopped(message, stopped.status if isinstance(stopped, Stopped) else 130) from None
            except Exception as error:
                # not the error itself, whose traceback holds the network and the images
                failed.append(printable(f"{' '.join(job)}: {error or type(error).__name__}"))
                if isinstance(error, InputError):
                    sys.stderr.write(f"error: {printable(str(error))}\n")
                else:
                    traceback.print_exc()
                    status = 1
        if failed:
            sys.stderr.write("\n  ".join([f"{len(failed)} of {len(jobs)} jobs failed:", *failed]) + "\n")
            raise SystemExit(status)

    def submit(self, jobs: list[list[str]], common: list[str], options: list[str]) -> Callable[[list[str]], None]:
        """Has the launcher of Hydra's that the overrides `common` to all jobs name do them, such as a cluster's.

        Gives what takes the outcome of one job after the other. Raises InputError for what the user gave, and where the
        launcher loses a job.
        """
        arguments = [begin_anew(self.name, job, options) for job in jobs]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            try:
                loader = GlobalHydra.instance().config_loader()
                config = loader.load_configuration(self.name, common, RunMode.MULTIRUN)
                HydraConfig.instance().set_config(config)
                launcher = Plugins.instance().instantiate_launcher(
                    hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
                    task_function=Job(self.main),
                    config=config,
                )
            except Exception as error:
                raise InputError(explain_composition(error)) from error
            try:
                outcomes = iter(launcher.launch(arguments, initial_job_idx=0))
            except Exception as error:
                reason = printable(str(error).partition("\n")[0])
                raise InputError(f"hydra/launcher lost a job: {reason}; resume=true goes on with the others") from error

        def take(job: list[str]) -> None:
            made = next(outcomes).return_value
            if made is not None:
                self.list_run(made)

        return take

    def perform(self, overrides: list[str], options: list[str]) -> None:
        """One job, or what `options` ask for instead. Raises InputError for what the user gave."""
        failure: Exception | None = None

        def task(composed: DictConfig) -> None:
            nonlocal failure
            started, self.started = self.started or time.time(), None
            schema = OmegaConf.get_type(composed)
            assert schema is not None
            try:
                made = self.main(read(schema, composed), list(HydraConfig.get().overrides.task), started)
                if made is not None and self.grid:
                    self.list_run(made)
            except Exception as error:  # kept: Hydra would print a line of its own
                failure = error

        try:
            sys.argv[1:] = [*begin_anew(self.name, overrides, options), *options]
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=self.name)(task)()
        except InputError:
            raise
        except Exception as error:  # the arguments and files that Hydra reads
            raise InputError(explain_composition(error)) from error
        if failure is not None:
            raise failure

    def list_run(self, run: Path) -> None:
        """Adds the directory `run` to those that the grid has made, as it is seen from the list."""
        if self.folder is None:
            wanted = Path(os.path.expanduser(HydraConfig.get().sweep.dir))
            names = (f"{wanted.name}-{number}" if number > 1 else wanted.name for number in count(1))
            # another grid of this second has one of its own
            self.folder = next(wanted.with_name(name) for name in names if not (wanted.with_name(name) / MADE).exists())
            self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / MADE).open("a") as file:
            file.write(f"{os.path.relpath(run, self.folder.resolve())}\n")


class Job:
    """A job of a grid that a launcher does, in a process of its own."""

    def __init__(self, main: Main) -> None:
        self.main = main

    def __call__(self, composed: DictConfig) -> Path | None:
        schema = OmegaConf.get_type(composed)
        assert schema is not None
        return self.main(read(schema, composed), list(HydraConfig.get().overrides.task), time.time())


def heed_signals() -> None:
    """Has SIGTERM and Ctrl-C raise Stopped, unless the process was started to ignore them, as by nohup."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def stop(number: int, frame: FrameType | None) -> None:
    """Raises Stopped, with the exit status of the signal `number`; while a module is imported, once that is done.

    An error in the middle of its import ends torch, and the process with it.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            again = threading.Timer(0.05, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise Stopped(status=128 + number)


def explain_composition(error: Exception) -> str:
    """One line for what Hydra says of a bad command line or experiment: choices, keys, values, syntax."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"unknown {group}={choice}: choose from {', '.join(sorted(error.options))}"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot use {error.filename or 'the working directory'} ({error.strerror})"
    message = " ".join(str(error).split())
    file = re.match(r"In '([^']+)'", message)
    where = f" (in {file[1]})" if file else ""
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OmegaConfBaseException):
            return explain(cause) + where
    if match := re.search(r"Could not override '([^']+)'. No match in the defaults list", message):
        return f"{match[1]} is no choice of this command: --help lists them{where}"
    if isinstance(error, HydraException | OSError | ValueError | YAMLError):
        return message
    return f"these arguments cannot be read ({type(error).__name__}: {message})"


def clear_bars() -> None:
    """Takes bars off the terminal, where the module that draws them has been imported."""
    if terminal := sys.modules.get("sepconv.terminal"):
        terminal.clear()


def fail(message: Any) -> NoReturn:
    """Ends the program with status 2 and one line."""
    clear_bars()
    sys.stderr.write(f"error: {printable(str(message))}\n")
    raise SystemExit(2)


register()
