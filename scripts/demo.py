"""Serves a page on which two networks classify what you draw: python scripts/demo.py 'networks=[RUN1,RUN2]'"""

from sepconv.cli import command
from sepconv.config.keys import DemoConfig


@command("demo")
def main(config: DemoConfig, overrides: list[str], started: float) -> None:
    from sepconv.deployment.demo import demo

    demo(config)


if __name__ == "__main__":
    main()
