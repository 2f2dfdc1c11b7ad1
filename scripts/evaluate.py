"""Evaluates a recorded run's checkpoint again: python scripts/evaluate.py run=runs/digits/separable/..."""

from sepconv.cli import command
from sepconv.config.keys import EvaluateConfig


@command("evaluate")
def main(config: EvaluateConfig, overrides: list[str], started: float) -> None:
    from sepconv.study.evaluate import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
