"""How a command is configured: its keys, their rules, and how they are read. Here: folders, and names of choices.

Light to import, so that a mistake in a key is answered before torch is loaded.
"""

from pathlib import Path

PACKAGED = Path(__file__).parents[1] / "configs"  # where the package was installed from its repository, a copy
CHECKOUT = None if PACKAGED.is_dir() else Path(__file__).parents[3]
# what is read and written by default lies in its data/, runs/ and so on
REPOSITORY = CHECKOUT or Path.cwd()
CONFIGS = CHECKOUT / "configs" if CHECKOUT else PACKAGED
MADE = "runs.txt"  # in a multirun's folder: the runs that it made, relative to it, a line each
MOST = 10**6  # classes, units of a layer, pixels of a side: more is a slip of the finger
PICTURES = (".png", ".pdf", ".svg")
PARTS = ("train", "validation", "test")  # of a data set
EXPORTED = {"onnx": ".onnx", "torch_export": ".pt2"}  # formats of exported networks, and how their files' names end
CALIBRATION_IMAGES = 500
COSTS = ("parameters", "macs", "peak_bytes", "latency_ms")  # that scripts/search.py has budgets for

# what a CPU trains networks by: auto (the fused kernels, where they can be compiled), torch's own, or fused (as auto,
# and an error where they cannot)
KERNELS = ("auto", "torch", "fused")
MODEL = {"kernels": "auto"}  # an option of every network
