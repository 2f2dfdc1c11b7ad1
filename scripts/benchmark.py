"""Measures speed: python scripts/benchmark.py suite=loop data=mnist model=baseline data.root=PATH"""

from sepconv.cli import command
from sepconv.config.keys import BenchmarkConfig


@command("benchmark")
def main(config: BenchmarkConfig, overrides: list[str], started: float) -> None:
    from sepconv.benchmark import benchmark

    benchmark(config, overrides)


if __name__ == "__main__":
    main()
