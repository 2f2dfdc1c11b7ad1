"""Writes docs/records.md from the records in benchmarks/: python scripts/records.py"""

from sepconv.cli import command
from sepconv.config.keys import RecordsConfig


@command("records")
def main(config: RecordsConfig, overrides: list[str], started: float) -> None:
    from sepconv.benchmark.records import write

    write(config)


if __name__ == "__main__":
    main()
