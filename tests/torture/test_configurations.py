"""Configurations drawn at random: every key of `scripts/train.py`, every kind of value."""

import math
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from trials import trials

from sepconv import devices
from sepconv.config import CONFIGS
from sepconv.config.keys import TrainConfig
from sepconv.costs import counting
from sepconv.training import train as training
from sepconv.training.dashboard import Dashboard

SECONDS = 60  # that one configuration may take
MEMORY = 2**30  # bytes that the machine is said to have free, so that what is not refused is quick
MACS = 2 * 10**8  # of a batch, up to which a training is really made
TRAININGS = 200  # at most
BEGINNING = ["trainer=cpu", "recipe.epochs=1", "trainer.limit_batches=1"]

GROUPS = {
    path.relative_to(CONFIGS).as_posix(): sorted(file.stem for file in path.glob("*.yaml"))
    for path in [*(CONFIGS / name for name in ("data", "model", "recipe", "trainer", "experiment")),
                 CONFIGS / "recipe/optimizer"]
}  # fmt: skip


def leaves(schema: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a schema, those of groups of keys too."""
    for each in fields(schema):
        yield prefix + each.name
        if isinstance(each.type, type) and is_dataclass(each.type):
            yield from leaves(each.type, f"{prefix}{each.name}.")


OPTIONS = sorted({f"model.{key}" for file in (CONFIGS / "model").glob("*.yaml") for key in OmegaConf.load(file)})
OPTIMIZER = [f"recipe.optimizer.{name}" for name in ("name", "lr", "betas", "weight_decay", "eps", "fused", "foreach",
             "amsgrad", "maximize", "capturable", "momentum", "nesterov", "others", "biases", "ns_steps", "depthwise",
             "others.name", "nonsense")]  # fmt: skip
KEYS = [*leaves(TrainConfig), *OPTIONS, *OPTIMIZER, "nonsense", "data.nonsense", "hydra.run.dir", "hydra"]

words = st.sampled_from(
    ["cpu", "gpu", "auto", "fp32", "bf16", "separable", "dense", "spatial", "small", "imagenet", "mlperf_tiny", "torch",
     "dirac", "unit", "moments", "constant", "linear", "one_cycle", "mirror", "translate", "none", "eager", "compile",
     "graph", "SGD", "Adam", "AdamW", "Muon", "LBFGS", "SparseAdam", "RMSprop", "muon", "standard", "padded",
     "unpadded", "94"]
)  # fmt: skip
numbers = st.one_of(
    st.integers(-3, 40).map(str),
    st.sampled_from(["0.5", "1e-3", "0.0", "-0.1", "1.5", "inf", "-inf", "nan", "1e400", "1e308", "1e-320", "true"]),
    st.sampled_from([str(10**n) for n in (3, 6, 9, 12, 18, 19, 40, 400)] + [str(-(2**63) - 1), str(2**63)]),
)
odd = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["~", "~/x", "=", "(", ")", "[", "]", "{", "}", "'", '"', "#", ";", "!", "&", "%d", "\\", "$", "${", "${}", "${x}",
     "${data.epochs}", "${oc.env:HOME}", "${oc.env:NO}", "${recipe.epochs}", "???", "Käfer", "\udcff", "\x1b[31m",
     "a\nb", "../..", "a,b", "null", "", " ", "1_000", "0x10", "!!python/object:os.system", "*", "&a", "|", "[" * 200]
)  # fmt: skip
scalars = st.one_of(words, numbers, odd)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=3).map(lambda each: f"[{','.join(each)}]"),
    st.dictionaries(st.sampled_from(["name", "lr", "width", "epochs", "x"]), scalars, max_size=3).map(
        lambda each: "{" + ",".join(f"{key}: {value}" for key, value in each.items()) + "}"
    ),
)
assignments = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "", "+", "++"]), st.sampled_from(KEYS), values)
choices = st.sampled_from(list(GROUPS)).flatmap(
    lambda group: st.builds("{}={}".format, st.just(group), st.sampled_from(GROUPS[group]) | values)
)
right = st.sampled_from(
    ["model=tiny", "model=baseline", "model=airbench", "model=resnet", "model={name: tiny, stem: 4}", "model.width=0.5",
     "model.conv=dense", "model.residual=true", "model.depth=2", "recipe=keras", "recipe=muon", "recipe/optimizer=adam",
     "recipe.batch_size=7", "recipe.batch_size=1294", "recipe.drop_last=false", "recipe.warmup=0", "recipe.whiten=1",
     "recipe.schedule=linear", "recipe.label_smoothing=0.5", "recipe.initialization=dirac", "recipe.normalize=moments",
     "recipe.precision=fp32", "recipe.channels_last=false", "recipe.augment={crop: 2, flip: true, alternate: true}",
     "recipe.augment.crop=30", "recipe.augment.reflect=true", "recipe.augment.cutout=99", "recipe.augment.rotate=360",
     "recipe.tta=translate", "recipe.epoch_images=3000", "recipe.optimizer={name: SGD, lr: 0.1}", "data.image_size=9",
     "recipe.optimizer={name: RMSprop}", "recipe.optimizer.name=Adafactor", "recipe.optimizer.lr=1e3", "data.test=0.9",
     "+recipe.optimizer.biases={lr: 1}", "data.image_size=null", "data.validation=1", "data.train=150", "data.train=2",
     "data.split_seed=-5", "trainer.deterministic=true", "trainer=debug", "seed=4294967295", "trainer.step=eager",
     "runs=Käfer (1)/x=y", "runs=a b"]
)  # fmt: skip
deletions = st.sampled_from(KEYS).map("~{}".format)
options = st.sampled_from(["--resolve", "--cfg", "--cfg=job", "-m", "--nonsense", "-c", "job", "--config-dir=/nowhere"])
wrong = st.one_of(assignments, assignments, assignments, choices, deletions, options, odd)
several = st.lists(wrong, max_size=3)
arguments = st.one_of(st.lists(right, max_size=5), st.tuples(right, right, wrong).map(list), several, several, several)


def overdue(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def test_configurations(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: dict[str, Any]
) -> None:
    """Any configuration ends in a result or in one line that says what is wrong, whatever its keys and values are."""
    counts: Counter[str] = Counter()
    work = training.work

    def work_if_small(beginning: Any, *others: Any) -> Any:
        """A training of a batch is made; of one that would take long, what comes before it has been seen."""
        config = beginning.config
        macs = counting.macs(beginning.classifier.net, beginning.dataset.shape) * min(config.recipe.batch_size, 2000)
        once = config.recipe.epochs == config.trainer.limit_batches == 1 and config.trainer.step != "compile"
        short = once and macs <= MACS and counts["trained"] < TRAININGS
        counts["trained" if short else "ready to train"] += 1
        return work(beginning, *others) if short else None

    monkeypatch.setattr(training, "work", work_if_small)
    monkeypatch.setattr(devices, "free_memory", lambda device: MEMORY)
    monkeypatch.setattr(Dashboard, "show_test", lambda *_: None)  # most of the time of so short a training
    monkeypatch.chdir(tmp_path)
    signal.signal(signal.SIGALRM, overdue)

    @settings(
        max_examples=trials(2000),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(arguments)
    def check(given: list[str]) -> None:
        runs = [] if any(each.lstrip("+").startswith("runs=") for each in given) else [f"runs={tmp_path / 'runs'}"]
        signal.alarm(SECONDS)
        outcome = command("train", *BEGINNING, *runs, "data.download=false", *given)
        signal.alarm(0)
        lines = outcome.err.splitlines()
        assert "Traceback" not in outcome.err, (given, outcome.err)
        assert outcome.status in (0, 2), (given, outcome)
        if outcome.status == 2 and "-m" not in given:
            assert len(lines) == 1, (given, lines)
            assert lines[0].startswith("error: "), (given, lines)
            assert lines[0].isprintable(), (given, lines)
        counts["configurations"] += 1
        counts["refused with a line"] += outcome.status == 2

    check()
    figures.update(counts)
    assert counts["refused with a line"] < counts["configurations"]
    assert math.isclose(counts["configurations"], trials(2000), rel_tol=0.05)
