"""What a run says on the terminal: what it trains on what, and its figures."""

from pathlib import Path

from rich.text import Text

from sepconv.config.keys import TrainConfig
from sepconv.costs.closed_forms import Cost
from sepconv.data.module import ImageData
from sepconv.devices import describe_device
from sepconv.terminal import CONSOLE, epochs
from sepconv.training.runs import Result


def introduce(config: TrainConfig, data: ImageData, cost: Cost, precision: str, run: Path) -> None:
    """Prints what is trained on what."""
    dataset, recipe = data.dataset, config.recipe
    channels, height, width = dataset.shape
    sizes = f"{len(dataset.train):,} train, {len(dataset.validation):,} validation, {len(dataset.test):,} test"
    show({
        "network": f"{config.model['name']}: {cost.parameters:,} parameters, {cost.macs:,} MACs an image",
        "data": f"{dataset.name}: {sizes}; {height} x {width} x {channels}, {len(dataset.classes)} classes",
        "recipe": f"{recipe.optimizer['name']}, {recipe.schedule}, {epochs(recipe.epochs)} of {data.steps} batches of "
        f"{recipe.batch_size}, {precision}, seed {config.seed}",
        "device": (f"{devices} x " if (devices := config.trainer.devices) > 1 else "")
        + ", ".join(str(value) for value in describe_device(dataset.pixels.device).values()),
        "run": str(run),
    })  # fmt: skip


def conclude(result: Result, run: Path) -> None:
    """Prints the figures."""

    def rate(images_per_second: float | None) -> str:
        return "too short to measure" if images_per_second is None else f"{images_per_second:,.0f} images/s"

    first = result.seconds_to_first_step
    CONSOLE.print()
    show({
        "test accuracy": f"{result.test_accuracy:.2%} of {result.images['test']:,} images",
        **({} if result.test_accuracy_tta is None else {"several views": f"{result.test_accuracy_tta:.2%}"}),
        "validation": f"{result.val_accuracy:.2%} of {result.images['validation']:,}, the best of the epochs",
        "training": rate(result.train_images_per_second),
        "evaluation": rate(result.eval_images_per_second),
        "fit": f"{result.fit_seconds:.1f} s, {epochs(result.epochs)}",
        "first step": "none was left to do" if first is None else f"{first:.1f} s after the start",
        "recorded in": str(run),
    })  # fmt: skip


def show(facts: dict[str, str]) -> None:
    for name, value in facts.items():
        CONSOLE.print(Text(f"{name:<14}", "bold"), value, soft_wrap=True)
