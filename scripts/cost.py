"""Counts what a network costs, layer by layer: python scripts/cost.py model=separable data=cifar10"""

from sepconv.cli import command
from sepconv.config.keys import CostConfig


@command("cost")
def main(config: CostConfig, overrides: list[str], started: float) -> None:
    from sepconv.costs.report import report_costs  # torch loads only here, so that --help does not wait for it

    if config.run is not None:
        from sepconv.training.recorded import take_network

        config = take_network(config, overrides)
    report_costs(config)


if __name__ == "__main__":
    main()
