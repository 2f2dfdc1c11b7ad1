"""Small data sets, and a server on this machine that publishes them in the place of the real ones."""

import contextlib
import gzip
import hashlib
import http.server
import io
import pickle
import tarfile
import threading
import time
from typing import Any

import numpy as np
from torchvision import datasets as tv

SMALL = {"fashion_mnist": [180, 20, 50], "cifar10": [180, 20, 40]}  # images of the parts that are published


def idx(array: np.ndarray) -> bytes:
    """`array` in the format of MNIST's files."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def fashion() -> dict[str, bytes]:
    """A small Fashion-MNIST: its archives."""
    noise, archives = np.random.default_rng(0), {}
    for part, count in (("train", 200), ("t10k", 50)):
        images, labels = noise.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        archives[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(images), mtime=0)
        archives[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(labels), mtime=0)
    return archives


def cifar() -> dict[str, bytes]:
    """A small CIFAR-10: its files, unpacked."""
    noise, files = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = noise.integers(0, 256, (40, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(40)]})
    return files | {"batches.meta": pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Published:
    """A server on this machine that publishes small sets, and notes what it is asked for.

    `patches` put them in the place of the real ones. What `cut` names breaks off half-way, once. It gives
    `pace` bytes at a time, and pauses for so many seconds after them.
    """

    def __init__(self, pace: int = 2**20, pause: float = 0) -> None:
        self.pace, self.pause = pace, pause
        files = cifar()
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w:gz") as packed:
            for name, content in files.items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
        self.content = fashion() | {"cifar-10-python.tar.gz": tar.getvalue()}
        self.asked: list[str] = []
        self.cut: set[str] = set()
        published = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                begun = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                published.asked.append(f"{name} from {begun}" if begun else name)
                rest = published.content[name][begun:]
                self.send_response(206 if begun else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                if name in published.cut:
                    rest = rest[: len(rest) // 2]
                    published.cut.discard(name)
                with contextlib.suppress(OSError):  # whoever asked was killed
                    for begin in range(0, len(rest), published.pace):
                        self.wfile.write(rest[begin : begin + published.pace])
                        time.sleep(published.pause)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        url = f"http://127.0.0.1:{self.server.server_port}/"
        batches = [[name, md5(content)] for name, content in files.items()]
        self.patches: list[tuple[type, str, Any]] = [
            (tv.FashionMNIST, "mirrors", [url]),
            (tv.FashionMNIST, "resources", [(name, md5(content)) for name, content in fashion().items()]),
            (tv.CIFAR10, "url", f"{url}cifar-10-python.tar.gz"),
            (tv.CIFAR10, "tgz_md5", md5(self.content["cifar-10-python.tar.gz"])),
            (tv.CIFAR10, "train_list", batches[:5]),
            (tv.CIFAR10, "test_list", batches[5:6]),
            (tv.CIFAR10, "meta", tv.CIFAR10.meta | {"md5": batches[6][1]}),
        ]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
