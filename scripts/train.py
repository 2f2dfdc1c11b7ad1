"""Trains one network and records the run: python scripts/train.py data=mnist model=separable"""

from pathlib import Path

from sepconv.cli import command
from sepconv.config.keys import TrainConfig


@command("train")
def main(config: TrainConfig, overrides: list[str], started: float) -> Path:
    # torch and Lightning load only here, so that --help does not wait for them
    from sepconv.training.train import train

    run, _ = train(config, overrides, started)
    return run


if __name__ == "__main__":
    main()
