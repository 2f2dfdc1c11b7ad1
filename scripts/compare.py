"""Compares recorded runs, and writes a report: python scripts/compare.py runs/mnist"""

from sepconv.cli import command
from sepconv.config.keys import CompareConfig


@command("compare", positional="runs")
def main(config: CompareConfig, overrides: list[str], started: float) -> None:
    from sepconv.study.compare import compare
    from sepconv.study.report import report_comparison

    report_comparison(compare(config), config, overrides)


if __name__ == "__main__":
    main()
