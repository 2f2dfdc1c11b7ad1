"""Writes a run's network as a file that runs elsewhere: python scripts/export.py run=runs/digits/separable/..."""

from sepconv.cli import command
from sepconv.config.keys import ExportConfig


@command("export")
def main(config: ExportConfig, overrides: list[str], started: float) -> None:
    from sepconv.deployment.export import export

    export(config, overrides)


if __name__ == "__main__":
    main()
