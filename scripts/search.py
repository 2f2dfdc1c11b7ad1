"""Searches for a network within a budget: python scripts/search.py data=mnist parameters=5000"""

from sepconv.cli import command
from sepconv.config.keys import SearchConfig


@command("search")
def main(config: SearchConfig, overrides: list[str], started: float) -> None:
    from sepconv.study.search import search

    search(config, overrides)


if __name__ == "__main__":
    main()
