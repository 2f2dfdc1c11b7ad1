"""The Keras MNIST example as Keras trains it, on images that are handed over.

A plain script for the Python of `.venv-peers`; it imports nothing of sepconv:

    python scripts/peers/keras_example.py IMAGES.npz EPOCHS THREADS SEED

IMAGES.npz has `train_pixels`, uint8 (N, H, W, C), `train_labels`, int64 (N,), and the same of validation and test. It
prints one line of JSON; the seconds of the fit are of `model.fit` alone, validation after each epoch included.

Source: keras.io/examples/vision/mnist_convnet, in the form with one hidden dense layer and no dropout.
"""

import json
import os
import sys
import time

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
from keras import layers


class EpochSeconds(keras.callbacks.Callback):
    """Seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def main(path: str, epochs: int, threads: int, seed: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    keras.utils.set_random_seed(seed)
    images = np.load(path)
    classes = int(images["train_labels"].max()) + 1

    def part(name: str) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = images[f"{name}_pixels"], images[f"{name}_labels"]
        return pixels.astype("float32") / 255, keras.utils.to_categorical(labels, classes)

    (x_train, y_train), validation, (x_test, y_test) = part("train"), part("validation"), part("test")
    model = keras.Sequential(
        [
            keras.Input(shape=x_train.shape[1:]),
            layers.Conv2D(32, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Conv2D(64, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(classes, activation="softmax"),
        ]
    )
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    epoch_seconds = EpochSeconds()
    started = time.perf_counter()
    model.fit(
        x_train, y_train, batch_size=32, epochs=epochs, validation_data=validation, callbacks=[epoch_seconds], verbose=0
    )
    fit_seconds = time.perf_counter() - started
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    figures = {
        "fit_seconds": fit_seconds,
        "epoch_seconds": epoch_seconds.seconds,
        "test_accuracy": round(float(accuracy), 6),  # a float32
        "parameters": model.count_params(),
        "batch_size": 32,
        "precision": keras.config.dtype_policy().name,
        "threads": threads,
        "versions": {"python": sys.version.split()[0], "keras": keras.__version__, "tensorflow": tf.__version__},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
