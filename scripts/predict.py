"""Classifies your own pictures with a run's network: python scripts/predict.py run=runs/mnist/separable/... pictures"""

from sepconv.cli import command
from sepconv.config.keys import PredictConfig


@command("predict", positional="images")
def main(config: PredictConfig, overrides: list[str], started: float) -> None:
    from sepconv.deployment.predict import predict

    predict(config)


if __name__ == "__main__":
    main()
