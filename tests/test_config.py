"""Each key of the configuration stands in one place, and is read."""

import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Outcome
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sepconv.config.keys import SCHEMAS, Augment, ClaimsConfig, TrainConfig
from sepconv.config.read import read

CONFIGS = REPOSITORY / "configs"
COMMANDS = sorted(path.stem for path in (REPOSITORY / "scripts").glob("*.py"))
SECTIONS = {each.name: each.type for each in fields(TrainConfig) if is_dataclass(each.type)}  # data, recipe, trainer
FILES = {
    **{path: SECTIONS[group] for group in SECTIONS for path in sorted((CONFIGS / group).glob("*.yaml"))},
    **dict.fromkeys(sorted((CONFIGS / "scale").glob("*.yaml")), ClaimsConfig),
}
OVERRIDES = [path for group in ("experiment", "scale") for path in sorted((CONFIGS / group).glob("*.yaml"))]


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of a file, but its defaults list."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield prefix + key, value


def default(schema: type, key: str) -> Any:
    """The default of a key that may lie in a dataclass within; MISSING where it has none."""
    name, _, rest = key.partition(".")
    field = {each.name: each for each in fields(schema)}[name]
    if rest:
        return default(field.type, rest) if is_dataclass(field.type) else MISSING
    return field.default_factory() if field.default_factory is not MISSING else field.default


def test_every_group_has_files() -> None:
    assert len(FILES) > 10
    assert len(OVERRIDES) > 5
    assert {path.parent.name for path in FILES} == {*SECTIONS, "scale"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_file_repeats_a_default(path: Path) -> None:
    values = OmegaConf.to_container(OmegaConf.load(path))
    for key, value in leaves(values or {}):
        assert value != default(FILES[path], key), key


@pytest.mark.parametrize("path", OVERRIDES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_experiment_repeats_what_it_begins_from(path: Path) -> None:
    """Each of its values differs from what its defaults list gives without it."""
    command, group = {"experiment": ("train", "experiment"), "scale": ("claims", "scale")}[path.parent.name]
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    overrides = []
    for entry in values.get("defaults", []):
        if isinstance(entry, str):
            overrides.append(f"{group}={entry}")
        else:
            ((choice, name),) = entry.items()
            overrides.append(f"{choice.removeprefix('override /')}={name}")
    if group == "scale":
        overrides.append("~scale")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        beginning = compose(command, overrides)
    for key, value in leaves(values):
        assert OmegaConf.select(beginning, key, default=MISSING) != value, key


@pytest.mark.parametrize(
    ("overrides", "data", "recipe"),
    [
        (["recipe.augment.crop=2"], {"crop": 4, "flip": True}, {"crop": 2, "flip": True}),
        (["data.augment.crop=8"], {"crop": 8, "flip": True}, {"crop": 8, "flip": True}),
        (["data.augment.crop=8", "recipe.augment.crop=2"], {"crop": 8, "flip": True}, {"crop": 2, "flip": True}),
        (["recipe.augment.crop=2", "data.augment.crop=8"], {"crop": 8, "flip": True}, {"crop": 2, "flip": True}),
        (["recipe.augment={rotate: 5}"], {"crop": 4, "flip": True}, {"crop": 4, "flip": True, "rotate": 5.0}),
        (["recipe=keras", "data.augment.crop=8"], {"crop": 8, "flip": True}, {}),
        (
            ["experiment=sprint_cifar10", "data.augment.rotate=5"],
            {"crop": 4, "flip": True, "rotate": 5.0},
            {"crop": 2, "flip": True, "reflect": True, "alternate": True, "rotate": 5.0},
        ),
    ],
)
def test_a_recipe_augments_as_its_data_say(overrides: list[str], data: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Each augmentation is the data's, unless the recipe changes it, which changes no other."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = read(TrainConfig, compose("train", ["data=cifar10", *overrides]))
    assert config.data.augment == Augment(**data)
    assert config.recipe.augment == Augment(**recipe)


def test_every_key_is_read() -> None:
    """By its name, as an attribute, somewhere but in `sepconv.config`."""
    code = "\n".join(path.read_text() for path in (REPOSITORY / "src").rglob("*.py") if path.parent.name != "config")
    schemas = {*SCHEMAS, *SECTIONS.values(), Augment}
    unread = {f"{schema.__name__}.{each.name}" for schema in schemas for each in fields(schema)
              if not re.search(rf"\.{each.name}\b", code)}  # fmt: skip
    assert not unread


@pytest.mark.parametrize("name", COMMANDS)
def test_help(command: Callable[..., Outcome], name: str) -> None:
    """It lists this command's groups, each with every choice, and every key."""
    outcome = command(name, "--help")
    assert outcome.status == 0, outcome.err
    assert not outcome.err
    assert f"python scripts/{name}.py" in outcome.out
    groups = dict(re.findall(r"^([\w/]+): ((?:\w+, )*\w+)$", outcome.out.partition("Keys (")[0], re.MULTILINE))
    for group, choices in groups.items():
        assert choices.split(", ") == sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    primary = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert {key for entry in primary.defaults if OmegaConf.is_dict(entry) for key in entry} <= groups.keys()
    assert "Config" not in outcome.out
    if name == "train":
        assert set(groups) == {"data", "model", "recipe", "recipe/optimizer", "trainer", "experiment"}
        for schema in (TrainConfig, *SECTIONS.values(), Augment):
            for each in fields(schema):
                assert re.search(rf"^ *{each.name}:", outcome.out, re.MULTILINE), each.name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_comes_at_once(name: str) -> None:
    """It does not wait for torch, nor does the configuration: about a second of a processor at most."""
    script = str(REPOSITORY / "scripts" / f"{name}.py")
    for arguments in (["--help"], ["--cfg", "job"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.run(
            [sys.executable, "-X", "importtime", script, *arguments], capture_output=True, text=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process.returncode == 0, process.stderr
        assert not re.search(r"\| +(torch|torchvision|lightning|matplotlib|scipy)$", process.stderr, re.MULTILINE)
        assert after.ru_utime - before.ru_utime < 1.5
