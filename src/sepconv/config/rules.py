"""What values a key may have: fields of a dataclass that carry a rule, which `sepconv.config.read` applies."""

import math
import operator
import re
from collections.abc import Callable
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any

from sepconv import InputError
from sepconv.config import COSTS, MOST, PICTURES

Rule = Callable[[str, Any], None]  # takes a key and its value; raises InputError unless the value is right


def checked(rule: Rule, default: Any = MISSING, **marks: Any) -> Any:
    """A field whose value `read` checks by `rule`, unless it is null; `marks` say more of it."""
    metadata = {"rule": rule, **marks}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def path(default: Any = MISSING, rule: Rule | None = None) -> Any:
    """A field for a path, or a list of them: the command line takes it as it was typed, and `~` is one's home."""
    return checked(rule or check_given, default, path=True)


LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "least": (operator.ge, "{} or more"),
    "above": (operator.gt, "above {}"),
    "most": (operator.le, "at most {}"),
    "below": (operator.lt, "below {}"),
}


def number(default: Any = MISSING, *, unit: str = "", **limits: float) -> Any:
    """A field for a number, a list of one or more, or a dict of numbers, within these LIMITS.

    `unit` is for the error's line.
    """
    words = [unit] * bool(unit) + [LIMITS[name][1].format(limit) for name, limit in limits.items()]
    right = ", ".join(words) + (", or null" if default is None else "")

    def rule(key: str, value: Any) -> None:
        named = {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
        for name, numbers in named.items():
            check(numbers != [], name, numbers, "one or more")
            for each in numbers if isinstance(numbers, list) else [numbers]:
                check(all(LIMITS[limit][0](each, bound) for limit, bound in limits.items()), name, numbers, right)

    return checked(rule, default)


def one_of(*choices: str, default: Any = MISSING) -> Any:
    """A field for one of `choices`, by default the first, or for a list of them."""

    def rule(key: str, value: Any) -> None:
        check(value != [], key, value, "one or more")
        for choice in value if isinstance(value, list) else [value]:
            check_choice(key, choice, *choices)

    return checked(rule, choices[0] if default is MISSING else default)


def check_numbers(key: str, value: Any) -> None:
    """Raises InputError for a number in `value` that is infinite, none, or beyond 64 bits, as no key takes one."""
    if isinstance(value, dict):
        for name, each in value.items():
            check_numbers(f"{key}.{name}", each)
    elif isinstance(value, list):
        for each in value:
            check_numbers(key, each)
    elif isinstance(value, float):
        check(math.isfinite(value), key, value, "a finite number")
    elif isinstance(value, int):
        check(-(2**63) <= value < 2**63, key, value, "a whole number of 64 bits")


def check(valid: bool, key: str, value: object, right: str) -> None:
    """Raises InputError unless `valid`."""
    if not valid:
        raise InputError(f"{key}={value} is out of range: {right}")


def check_choice(key: str, value: str, *choices: str) -> None:
    """Raises InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"unknown {key}={value}: choose from {', '.join(choices)}")


def check_name(key: str, name: str) -> None:
    """Raises InputError unless `name` can be a part of a file's name."""
    check(re.fullmatch(r"\w[\w-]{0,63}", name, re.ASCII) is not None, key, name, "a name of letters, digits, _ and -")


def check_model(key: str, options: Any) -> None:
    """Raises InputError unless `options` name a network."""
    named = isinstance(options, dict) and isinstance(options.get("name"), str)
    check(named, key, options, "a network: {name: separable}, say, and its options")
    check_name(f"{key}.name", options["name"])


def check_optimizer(key: str, options: Any) -> None:
    """Raises InputError unless `options` name an optimizer and give it a learning rate above 0, if any."""
    check(isinstance(options, dict) and "name" in options, key, options, "a `name` in torch.optim, and arguments")
    biases = options.get("biases", {})
    check(isinstance(biases, dict), f"{key}.biases", biases, "arguments of the optimizer")
    for name, arguments in ((key, options), (f"{key}.biases", biases)):
        rate = arguments.get("lr", 1e-3)
        valid = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < math.inf
        check(valid, f"{name}.lr", rate, "a number above 0")
    if options["name"] == "Muon":
        check_optimizer(f"{key}.others", options.get("others"))


def check_given(key: str, path: str) -> None:
    """Raises InputError unless `path` is given."""
    if not path:
        raise InputError(f"{key} is missing: give {key}=...")


def check_picture(key: str, path: str) -> None:
    """Raises InputError unless a picture can be written to `path`, by its name and folder."""
    check(Path(path).suffix in PICTURES, key, path, f"a file name that ends in {', '.join(PICTURES)}")
    if not Path(path).resolve().parent.is_dir():
        raise InputError(f"{key}={path}: its folder does not exist; make it, or choose another")


def check_channels(key: str, channels: int) -> None:
    """Raises InputError unless images can have so many channels."""
    check(channels in (1, 3), key, channels, "1 (grey), 3 (RGB), or null")


def check_held_out(key: str, amount: int | float) -> None:
    """Raises InputError unless `amount` is a number of images or a share of them."""
    whole = isinstance(amount, int) and not isinstance(amount, bool)
    right = "a whole number of images, or a share above 0 and below 1"
    check(amount >= 1 if whole else 0 < amount < 1, key, amount, right)


def check_shape(key: str, shape: list[int]) -> None:
    """Raises InputError unless `shape` is that of an image."""
    valid = len(shape) == 3 and 0 < min(shape) <= max(shape) <= MOST
    check(valid, key, shape, f"[channels,height,width], each 1 to {MOST}, or null")


def check_once(key: str, values: list[Any], least: int = 1) -> None:
    """Raises InputError unless there are so many values (none, one or two) or more, each once."""
    right = ("", "one or more, ", "two or more, ")[least] + "each once"
    check(len(set(values)) == len(values) >= least, key, values, right)


def check_seeds(key: str, seeds: list[int]) -> None:
    """Raises InputError unless runs with these seeds give an interval."""
    check_once(key, seeds, least=2)


def check_rungs(key: str, lengths: list[int]) -> None:
    """Raises InputError unless each training is longer than the one before."""
    check(bool(lengths) and lengths[0] > 0 and lengths == sorted(set(lengths)), key, lengths, "epochs, in rising order")


def check_costs(key: str, costs: list[str]) -> None:
    """Raises InputError unless these are costs, each once."""
    for cost in costs:
        check_choice(key, cost, *COSTS)
    check_once(key, costs, least=0)


def check_runs(key: str, paths: list[str]) -> None:
    """Raises InputError unless there are runs to compare."""
    if not paths:
        raise InputError("give runs to compare: python scripts/compare.py runs/mnist")


def check_images(key: str, paths: list[str]) -> None:
    """Raises InputError unless there are images to classify."""
    if not paths:
        raise InputError("give images to classify: python scripts/predict.py run=RUN pictures")


def check_two_networks(key: str, paths: list[str]) -> None:
    """Raises InputError unless there are two."""
    check(len(paths) == 2, key, f"[{','.join(paths)}]", "two, each a run's directory or a file of scripts/export.py")


def check_one_device(devices: int) -> None:
    """Raises InputError unless the command, which trains no new network, is to compute on one device."""
    check(devices == 1, "trainer.devices", devices, "1, as only a training takes several")


def check_network(run: str | None, file: str | None) -> None:
    """Raises InputError unless there is one network: that of a run, or that of a file."""
    if (run is None) == (file is None):
        raise InputError("give run=, a run's directory, or file=, a file that scripts/export.py wrote")
