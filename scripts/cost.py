"""Counts what a network costs, layer by layer: python scripts/cost.py model=separable data=cifar10"""

from sepconv.cli import command
from sepconv.config import CostConfig


@command("cost")
def main(config: CostConfig, overrides: list[str], started: float) -> None:
    from sepconv.costs.report import count_costs, show  # torch loads only here, so that --help does not wait for it

    show(count_costs(config), config.format)


if __name__ == "__main__":
    main()
