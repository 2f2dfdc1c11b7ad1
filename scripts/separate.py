"""Separates a trained network's convolutions: python scripts/separate.py run=RUN method=depthwise rank=4"""

from sepconv.cli import command
from sepconv.config.keys import SeparateConfig


@command("separate")
def main(config: SeparateConfig, overrides: list[str], started: float) -> None:
    from sepconv.study.separate import separate

    separate(config, overrides, started)


if __name__ == "__main__":
    main()
