"""A network after the Keras MNIST example, as Keras trains it, on images that are handed over.

A plain script for a Python that has Keras and its backend; it imports nothing of sepconv:

    KERAS_BACKEND=tensorflow python scripts/peers/keras_example.py IMAGES.npz \\
        '{"epochs": 5, "batch_size": 32, "precision": "float32", "rate": null, "threads": 2, "seed": 0}'

IMAGES.npz has `train_pixels`, uint8 (N, H, W, C), `train_labels`, int64 (N,), and the same of validation and test. A
rate falls from there to zero by a cosine, step by step; null is Adam's own, constant. It prints one line of JSON; the
seconds of the fit are of `model.fit` alone, validation after each epoch included, after a fit that is undone, of two
batches and one as small as an epoch's last, where that is smaller, so that what is compiled at first use is.

Source: keras.io/examples/vision/mnist_convnet; here with a hidden layer of 64 units and without dropout, where the
example has a dropout of a half and no hidden layer, batches of 128 and 15 epochs.
"""

import json
import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
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


def limit_threads(threads: int) -> str:
    """Has the backend compute on so many threads; gives its version."""
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(threads)
        return str(torch.__version__)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    return str(tf.__version__)


def main(path: str, epochs: int, batch_size: int, precision: str, rate: float | None, threads: int, seed: int) -> None:
    version = limit_threads(threads)
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)
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
            layers.Dense(classes, activation="softmax", dtype="float32"),
        ]
    )
    steps = epochs * -(-len(x_train) // batch_size)
    falling = None if rate is None else keras.optimizers.schedules.CosineDecay(rate, steps)
    optimizer = keras.optimizers.Adam() if falling is None else keras.optimizers.Adam(falling)
    model.compile(loss="categorical_crossentropy", optimizer=optimizer, metrics=["accuracy"])
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    initial = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    few = 2 * batch_size + len(x_train) % batch_size
    model.fit(x_train[:few], y_train[:few], batch_size, validation_data=validation, verbose=0)
    for variable, value in zip(variables, initial, strict=True):
        variable.assign(value)
    epoch_seconds = EpochSeconds()
    started = time.perf_counter()
    history = model.fit(
        x_train, y_train, batch_size, epochs=epochs, validation_data=validation, callbacks=[epoch_seconds], verbose=0
    )
    fit_seconds = time.perf_counter() - started
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    figures = {
        "fit_seconds": fit_seconds,
        "epoch_seconds": epoch_seconds.seconds,
        "val_accuracy": round(float(history.history["val_accuracy"][-1]), 6),  # a float32
        "test_accuracy": round(float(accuracy), 6),
        "parameters": model.count_params(),
        "batch_size": batch_size,
        "epochs": epochs,
        "precision": keras.config.dtype_policy().name,
        "threads": threads,
        "versions": {"python": sys.version.split()[0], "keras": keras.__version__, keras.backend.backend(): version},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
