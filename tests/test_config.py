"""Each key of the configuration stands in one place, and is read."""

import ast
import re
import resource
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Outcome
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sepconv.config import keys
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


def find_reads() -> set[tuple[type, str]]:
    """Schemas and attributes of theirs that are read: of a name that code beside annotates as one, or of a section.

    Interpolations in `configs/` read too: `${data.epochs}` of a section, `${epochs}` of what is composed.
    """
    schemas = {name: each for name, each in vars(keys).items() if isinstance(each, type) and is_dataclass(each)}
    sections: dict[str, set[type]] = defaultdict(set)  # by their names in the schemas
    for schema in schemas.values():
        for each in fields(schema):
            sections[each.name] |= {each.type} & set(schemas.values())
    reads: set[tuple[type, str]] = set()
    for folder in {path.parent for path in (REPOSITORY / "src").rglob("*.py")} - {Path(keys.__file__).parent}:
        nodes = [node for path in folder.glob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
        owners = {name: set(types) for name, types in sections.items()}
        for node in nodes:
            if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
                name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target).rpartition(".")[2]
                words = re.findall(r"\w+", ast.unparse(node.annotation))
                owners.setdefault(name, set()).update(schemas[word] for word in words if word in schemas)
        for node in nodes:
            if isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value).rpartition(".")[2]
                reads |= {(schema, node.attr) for schema in owners.get(owner, ())}
    for path in CONFIGS.rglob("*.yaml"):
        for owner, name in re.findall(r"\$\{(?:oc\.select:)?(?:(\w+)\.)?(\w+)", path.read_text()):
            reads |= {(schema, name) for schema in (sections[owner] if owner else SCHEMAS)}
    return reads


def test_every_key_is_read() -> None:
    """Somewhere but in `sepconv.config`; one that is not is found, whatever other attributes have its name."""
    reads = find_reads()

    def find_unread(schemas: Iterable[type]) -> set[str]:
        return {f"{schema.__name__}.{each.name}" for schema in schemas for each in fields(schema)
                if not any(each.name == name and (issubclass(schema, owner) or issubclass(owner, schema))
                           for owner, name in reads)}  # fmt: skip

    assert not find_unread({*SCHEMAS, *SECTIONS.values(), Augment})
    more = [(name, int, 0) for name in ("name", "count", "labels", "test")]
    assert find_unread([make_dataclass("More", more, bases=(TrainConfig,), kw_only=True)]) == {
        "More.name", "More.count", "More.labels", "More.test"
    }  # fmt: skip


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
