"""A run, from its configuration to its recorded figures."""

import copy
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sepconv import InputError, terminal
from sepconv.config.keys import RecipeConfig, TrainConfig, TrainerConfig
from sepconv.config.read import flatten
from sepconv.costs import counting
from sepconv.costs.closed_forms import Cost
from sepconv.data.datasets import Dataset, load
from sepconv.data.module import ImageData
from sepconv.devices import check_devices, check_memory, describe_device, find_device, resolve_precision
from sepconv.training import checkpoints, processes, runs, summary
from sepconv.training.callbacks import Monitor, Stopwatch
from sepconv.training.checkpoints import make_checkpoints
from sepconv.training.classifier import ImageClassifier, describe_images, explain_difference, name_kind
from sepconv.training.dashboard import Dashboard
from sepconv.training.recipe import build_optimizer
from sepconv.training.recorded import check_same_images, load_classifier
from sepconv.training.runs import Result
from sepconv.training.step import resolve_step
from sepconv.training.trainer import make_trainer, stoppable
from sepconv.training.whitening import Whitening, find_stem

log = logging.getLogger(__name__)

# a run in TensorBoard's HPARAMS: the same columns for all, few enough for its parallel coordinates
CHOICES = ("epochs", "batch_size", "optimizer.name", "optimizer.lr", "optimizer.weight_decay", "label_smoothing")
HPARAMS = ("test_accuracy", "val_accuracy", "parameters", "macs", "train_images_per_second", "fit_seconds")


@dataclass
class Beginning:
    """What a training starts from."""

    config: TrainConfig
    overrides: list[str]
    dataset: Dataset
    classifier: ImageClassifier
    fresh: bool = False  # with new weights
    run: Path | None = None  # the directory of a run that is resumed
    checkpoint: Path | None = None  # and the state that it goes on from
    notes: list[str] = field(default_factory=list)  # what its reader must know

    @property
    def goes_on(self) -> str:
        """How its run, which has a directory, goes on when it was stopped."""
        return f"resume={self.run} continues"


def train(
    config: TrainConfig, overrides: list[str], started: float, dataset: Dataset | None = None
) -> tuple[Path, Result]:
    """Trains, validates and tests one network, and records the run in its directory.

    Args:
        overrides: the command's arguments, for the record.
        started: when the job began, in seconds since the epoch.
        dataset: what `config.data` describes, where it is loaded already.

    Returns:
        The run's directory and figures.

    Raises:
        InputError: for a configuration or data that cannot be used, or a loss that diverges.
    """
    code = runs.current_code()  # before what may take hours
    if config.resume == "true":
        overrides = [o for o in overrides if not o.startswith("resume=")]
        if config.weights is not None:
            config = take_network(config, overrides)
        found = runs.find_run(config, code)
        if found is not None and (found / "result.json").exists():
            terminal.CONSOLE.print(f"{found} is complete, and kept", soft_wrap=True)
            return found, runs.read_result(found)
        config = replace(config, resume=None if found is None else str(found))
        if found is not None:  # of the same settings, but for these
            overrides = [o for o in overrides if o.startswith(("data.root=", "trainer.checkpoint_seconds="))]
    trainer = find_trainer(config, overrides)
    group = processes.join_started(trainer)
    if group is not None and group.ranks.rank > 0:
        return work_together(group, *group.learn())
    with ExitStack() as held:
        if group is not None:
            held.enter_context(group.leading())
        elif trainer.devices > 1:
            check_devices(trainer)
        if config.resume is not None:
            held.enter_context(runs.lock(config.resume))
            beginning = resume(config, overrides, dataset)
        elif config.weights is not None:
            beginning = start_from_weights(config, overrides, dataset)
        else:
            beginning = start_afresh(config, overrides, dataset)
        config, overrides = beginning.config, beginning.overrides
        classifier = beginning.classifier
        device = find_device(config.trainer)
        precision = resolve_precision(config.recipe.precision, device)
        data = ImageData(beginning.dataset, config.recipe, device, config.seed, config.trainer.limit_batches)
        # before there is a directory: what cannot be trained leaves none behind
        check_trainable(classifier, data, config.trainer.devices)
        check_step(classifier, data, "bf16" if precision == "bf16-mixed" else "fp32")
        classifier.form = resolve_step(config.trainer, device, build_optimizer(classifier.net, config.recipe.optimizer))
        held.enter_context(resumable(beginning))
        if beginning.run is None:
            root = str(Path(config.data.root).resolve())
            beginning.config = replace(config, data=replace(config.data, root=root))
            beginning.run = runs.create(beginning.config, overrides, code)
            held.enter_context(runs.lock(beginning.run))
        elif beginning.checkpoint is None:
            runs.write_code(beginning.run, [code])
        else:
            runs.add_code(beginning.run, code)
        held.enter_context(terminal.logged(beginning.run))
        for note in beginning.notes:
            log.warning(note)
        if trainer.devices == 1:
            return beginning.run, work(beginning, data, precision, started)
        del data
        torch.cuda.empty_cache()
        common = beginning, started, torch.get_rng_state()
        if group is None:
            return processes.launch(trainer, beginning.goes_on, work_together, *common)
        group.tell(*common)
        return work_together(group, *common)


def find_trainer(config: TrainConfig, overrides: list[str]) -> TrainerConfig:
    """What the training runs on: for a run that is resumed what it ran on, but for what the command says.

    That is all of a `trainer=` choice, else the keys that are given; never how many batches, which change the result.
    """
    if config.resume is None:
        return config.trainer
    _, recorded, _ = runs.read_config(config.resume)
    if any(o.startswith("trainer=") for o in overrides):
        return replace(config.trainer, limit_batches=recorded.trainer.limit_batches)
    keys = {o.partition("=")[0].removeprefix("trainer.") for o in overrides if o.startswith("trainer.")}
    return replace(recorded.trainer, **{key: getattr(config.trainer, key) for key in keys - {"limit_batches"}})


def work_together(
    group: processes.Group, beginning: Beginning, started: float, random_state: Tensor
) -> tuple[Path, Result]:
    """`work` in one of the processes of `group`, as one process would go on from `random_state`."""
    run, config = beginning.run, beginning.config
    assert run is not None
    with ExitStack() as held:
        held.enter_context(group.working(beginning.goes_on))
        if group.ranks.rank == 0:
            held.enter_context(terminal.logged(run))
        # the weights came in memory that all processes have
        beginning = replace(beginning, classifier=copy.deepcopy(beginning.classifier))
        os.environ.pop("PL_GLOBAL_SEED", None)  # by which Lightning would begin anew
        torch.set_rng_state(random_state)
        device = find_device(config.trainer)
        precision = resolve_precision(config.recipe.precision, device)
        limit = config.trainer.limit_batches
        data = ImageData(beginning.dataset, config.recipe, device, config.seed, limit, group.ranks)
        return run, work(beginning, data, precision, started, group)


def work(
    beginning: Beginning, data: ImageData, precision: str, started: float, group: processes.Group | None = None
) -> Result:
    """Fits, tests and records the run of `beginning`, whose directory is there; by one of the processes of `group`."""
    config, classifier, run = beginning.config, beginning.classifier, beginning.run
    assert run is not None
    provenance = runs.provenance(run)  # now: what is wrong with its files must not cost a training
    cost = Cost(counting.parameters(classifier.net), counting.macs(classifier.net, data.dataset.shape))
    logger = TensorBoardLogger(run, name="", version="", default_hp_metric=False)
    stopwatch, dashboard = Stopwatch(started), Dashboard(logger.experiment, beginning.dataset)
    best, last = make_checkpoints(run / "checkpoints", config.trainer.checkpoint_seconds)
    whitening = [Whitening(beginning.fresh)] if config.recipe.whiten else []
    callbacks = [stopwatch, *whitening, Monitor(), best, last, dashboard]
    trainer = make_trainer(config.trainer, precision, callbacks, logger, config.recipe.epochs, group)
    summary.introduce(config, data, cost, precision, run)
    log_cost(logger, cost)
    trainer.fit(classifier, data, ckpt_path=beginning.checkpoint, weights_only=True)
    fit_seconds = stopwatch.fit_seconds  # before the test: it runs on
    tested = trainer.test(classifier, data, ckpt_path=best.best_model_path, weights_only=True, verbose=False)[0]
    assert best.best_model_score is not None
    result = make_result(
        config,
        data,
        classifier,
        cost,
        stopwatch,
        tested,
        val_accuracy=round(float(best.best_model_score), 6),
        epochs=config.recipe.epochs,
        fit_seconds=fit_seconds,
        history=stopwatch.history,
        dashboard_seconds=dashboard.seconds,
        train_images_per_second=stopwatch.images_per_second("train"),
        precision=precision,
        step=classifier.form,
        **provenance,
    )
    if trainer.is_global_zero:
        record(run, config, classifier, result, logger)
        with terminal.kept("what the test shows"):
            dashboard.show_test(trainer, classifier)
            logger.finalize("success")  # nothing is written any more, to a folder that may be a temporary one
        summary.conclude(result, run)
    return result


@contextmanager
def resumable(beginning: Beginning) -> Iterator[None]:
    """Says how the run goes on, if it has a directory, where a signal or the disk ends its training or its test."""

    def kept() -> str:
        run = beginning.run
        if run is None:
            return ""
        return f"{run} is complete" if (run / "result.json").exists() else beginning.goes_on

    try:
        with stoppable(kept):
            yield
    except InputError as error:
        if beginning.run is None or beginning.run.is_dir():
            raise
        raise InputError(f"{beginning.run} was removed while its training ran") from error


def start_afresh(config: TrainConfig, overrides: list[str], dataset: Dataset | None) -> Beginning:
    """A new run with new weights."""
    L.seed_everything(config.seed, verbose=False)
    dataset = dataset or load(config.data)
    classifier = make_classifier(config.model, config.recipe, dataset)
    return Beginning(config, overrides, dataset, classifier, fresh=True)


def take_network(config: TrainConfig, overrides: list[str]) -> TrainConfig:
    """`config` with the network of the run `config.weights`, and the normalisation that its weights were trained on.

    Raises InputError for a path that is no run, and overrides that ask for another network or normalisation.
    """
    assert config.weights is not None
    run, source, _ = runs.read_config(config.weights)
    fixed = {"model": source.model, "recipe.normalize": source.recipe.normalize}
    for key, value in {"model": config.model, "recipe.normalize": config.recipe.normalize}.items():
        changes = [o for o in overrides if re.match(rf"[+~]*({re.escape(key)}[=.]|experiment=)", o)]
        if changes and value != fixed[key]:
            raise InputError(f"weights={run} comes with {key}={fixed[key]}: drop {' '.join(changes)}")
    recipe = replace(config.recipe, normalize=source.recipe.normalize)
    return replace(config, model=source.model, recipe=recipe, weights=str(run))


def start_from_weights(config: TrainConfig, overrides: list[str], dataset: Dataset | None) -> Beginning:
    """A new run with the network and weights of the run `config.weights`, from its best checkpoint.

    Raises InputError as `take_network` does, and for images that do not fit the network.
    """
    config = take_network(config, overrides)
    assert config.weights is not None
    run, source, _ = runs.read_config(config.weights)
    trained = load_classifier(run, "best", source)
    if config.recipe.whiten and not source.recipe.whiten:
        raise InputError(f"weights={run} comes with a trained first convolution: give recipe.whiten=0")
    L.seed_everything(config.seed, verbose=False)
    dataset = dataset or load(config.data)
    images: dict[str, Any] = trained.hparams["images"]
    here = describe_images(dataset)
    needed, given = name_kind(images), name_kind(here)
    if needed != given:
        raise InputError(f"weights={run} takes {needed}; data={config.data.name} has {given}")
    difference = explain_difference(images, here) if source.data.name == config.data.name else ""
    notes = [f"weights={run} were trained on other images, perhaps on some of this test: {difference}"]
    seen = {key: images[key] for key in ("mean", "deviation")}
    classifier = make_classifier(config.model, config.recipe, dataset, here | seen)
    classifier.net.load_state_dict(trained.net.state_dict())
    return Beginning(config, overrides, dataset, classifier, notes=notes if difference else [])


def resume(config: TrainConfig, overrides: list[str], dataset: Dataset | None) -> Beginning:
    """The run `config.resume` from its last checkpoint, on what `find_trainer` gives, with this command's data root.

    Raises InputError for a path that is no run, a run that is complete, and overrides that would change it.
    """
    assert config.resume is not None
    allowed = ("resume=", "data.root=", "trainer=", "trainer.")
    changes = [o for o in overrides if not o.startswith(allowed) or o.startswith("trainer.limit_batches=")]
    if changes:
        raise InputError(f"resume= continues a run as it was configured: drop {' '.join(changes)}")
    run, recorded, first_overrides = runs.read_config(config.resume)
    if (run / "result.json").exists():
        raise InputError(f"{run} is complete: there is nothing to resume")
    recorded = replace(recorded, trainer=find_trainer(config, overrides))
    if any(o.startswith("data.root=") for o in overrides):
        recorded = replace(recorded, data=replace(recorded.data, root=config.data.root))
    best, checkpoint = run / "checkpoints/best.ckpt", run / "checkpoints/last.ckpt"
    # the first epoch's best is written before its last
    if not checkpoint.exists() and not (best.exists() and checkpoints.load(best).get("epoch")):
        begin = start_from_weights if recorded.weights else start_afresh
        beginning = begin(recorded, first_overrides, dataset)
        notes = [*beginning.notes, f"{run} stopped before its first checkpoint: it begins again"]
        return replace(beginning, run=run, notes=notes)
    L.seed_everything(recorded.seed, verbose=False)
    # not made anew: it may know its images from the run that its weights came from
    classifier = load_classifier(run, "last", recorded)
    dataset = dataset or load(recorded.data)
    check_same_images(run, classifier.hparams["images"], dataset, recorded.data.root)
    return Beginning(recorded, first_overrides, dataset, classifier, run=run, checkpoint=checkpoint)


def make_classifier(
    model: dict[str, Any], recipe: RecipeConfig, dataset: Dataset, images: dict[str, Any] | None = None
) -> ImageClassifier:
    """A new classifier of the images of `dataset`, on the CPU.

    Args:
        images: what it knows of them, if not what `describe_images` says.

    Raises InputError for a network that cannot be built.
    """
    return ImageClassifier(model, asdict(recipe), images or describe_images(dataset))


def check_trainable(classifier: ImageClassifier, data: ImageData, devices: int) -> None:
    """Raises InputError for a first convolution that cannot be whitened, and batches of one image for batch norms.

    Args:
        devices: that share a batch, and the images of evaluation, of which each needs one.
    """
    if classifier.recipe.whiten:
        find_stem(classifier.net)
    smallest = data.count % data.batch_size or data.batch_size
    if smallest < devices:
        raise InputError(
            f"recipe.batch_size={data.batch_size} makes a batch of {smallest}, fewer than trainer.devices={devices}: "
            "give a larger one, or recipe.drop_last=true where it is the last one"
        )
    for part in ("validation", "test"):
        if (count := data.images[part]) < devices:
            raise InputError(f"trainer.devices={devices} is more than the {count} images of {part}")
    if smallest < 2 and any(isinstance(layer, _BatchNorm) for layer in classifier.net.modules()):
        raise InputError(
            f"recipe.batch_size={data.batch_size} makes a batch of one image, from which batch norms learn nothing: "
            "give 2 or more, or recipe.drop_last=true where it is the last one"
        )


def check_step(classifier: ImageClassifier, data: ImageData, dtype: str) -> None:
    """Raises InputError where a training step, with maps in `dtype`, cannot fit in the memory of the device."""
    images, shape = min(data.batch_size, data.count), data.dataset.shape
    check_memory(
        counting.training_bytes(classifier.net, shape, images, dtype),
        data.dataset.pixels.device,
        f"a step of recipe.batch_size={images} images of {shape[1]} x {shape[2]}",
        "choose a smaller batch, network (model.width) or data.image_size",
    )


def log_cost(logger: TensorBoardLogger, cost: Cost) -> None:
    """What the network costs, beside its curves in TensorBoard."""
    logger.log_metrics({"cost/parameters": cost.parameters, "cost/macs": cost.macs}, step=0)


def make_result(
    config: TrainConfig,
    data: ImageData,
    classifier: ImageClassifier,
    cost: Cost,
    stopwatch: Stopwatch,
    tested: Mapping[str, float],
    **figures: Any,
) -> Result:
    """A run's figures.

    Args:
        tested: the trainer's metrics of the test, `accuracy/test` and so on.
        figures: those that depend on how the weights came about.
    """
    device = find_device(config.trainer)
    test_figures: dict[str, Any] = {f"test_{name.removesuffix('/test')}": value for name, value in tested.items()}
    for name in test_figures:
        if "accuracy" in name:
            test_figures[name] = round(test_figures[name], 6)  # Lightning keeps it in float32
    images: dict[str, Any] = classifier.hparams["images"]
    return Result(
        model=config.model["name"],
        data=config.data.name,
        seed=config.seed,
        parameters=cost.parameters,
        macs=cost.macs,
        classes=images["classes"],
        images=data.images,
        digests=images["digests"],
        batch_size=config.recipe.batch_size,
        seconds_to_first_step=stopwatch.seconds_to_first_step,
        eval_images_per_second=stopwatch.images_per_second("eval"),
        test_seconds=stopwatch.test_seconds,
        device=describe_device(device, config.trainer.devices),
        versions=runs.versions(),
        **test_figures,
        **figures,
    )


def record(
    run: Path, config: TrainConfig, classifier: ImageClassifier, result: Result, logger: TensorBoardLogger
) -> None:
    """Writes what `classifier` predicted in its test, then the run's figures: to `result.json` and HPARAMS."""
    runs.write_predictions(run, classifier.predictions.numpy(), len(result.classes))
    runs.write_result(run, result)
    metrics = {f"result/{name}": value for name in HPARAMS if (value := getattr(result, name)) is not None}
    recipe = flatten(asdict(config.recipe))
    options = ", ".join(f"{key}={value}" for key, value in config.model.items() if key != "name")
    identity = {"data": config.data.name, "model": config.model["name"], "options": options, "seed": config.seed}
    with terminal.kept("the run's line in TensorBoard's HPARAMS"):
        logger.log_hyperparams(identity | {name: recipe.get(name, 0.0) for name in CHOICES}, metrics)
        logger.finalize("success")
