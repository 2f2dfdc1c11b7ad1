"""Trains one network and records the run: python scripts/train.py data=mnist model=separable"""

from sepconv.cli import command
from sepconv.config import TrainConfig


@command("train", TrainConfig)
def main(config: TrainConfig, overrides: list[str], started: float) -> None:
    from sepconv.training import (
        train,
    )  # torch and Lightning load only here, so that --help does not wait for them

    train(config, overrides, started)


if __name__ == "__main__":
    main()
