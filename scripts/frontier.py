"""Studies accuracy against cost, separable and dense: python scripts/frontier.py data=cifar10"""

from sepconv.cli import command
from sepconv.config.keys import FrontierConfig


@command("frontier")
def main(config: FrontierConfig, overrides: list[str], started: float) -> None:
    from sepconv.study.frontier import study

    study(config, overrides)


if __name__ == "__main__":
    main()
