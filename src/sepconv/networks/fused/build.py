"""The fused kernels' library: compiled by the machine's C compiler at first use, kept, and loaded."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

from sepconv.devices import name_processor, read_processor

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = [FOLDER / name for name in ("norm.c", "depthwise.c", "pointwise.c", "pool.c")]
HEADERS = [FOLDER / name for name in ("vectors.h", "products.h", "maps.h")]
FLAGS = ["-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for maps of `dtype` (float32, bfloat16); None, and a line in the log, where they cannot be built."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        log.info("no C compiler here: networks train by torch's own kernels")
        return None
    flags = FLAGS + ["-DBF16"] * (dtype == torch.bfloat16)
    path = cached(compiler, flags)
    try:
        if not path.exists():
            build(compiler, flags, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("the fused kernels cannot be built (%s): networks train by torch's own", error)
        return None


def cached(compiler: str, flags: list[str]) -> Path:
    """Where the library of these sources, compiler and processor is kept."""
    processor = name_processor() + read_processor().get("flags", "")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    parts = [*(path.read_text() for path in SOURCES + HEADERS), version, " ".join(flags), processor, sys.platform]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sepconv" / f"fused-{name}.so"


def build(compiler: str, flags: list[str], path: Path) -> None:
    """Compiles the library, aside at first: other processes may do the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        target = Path(folder) / path.name
        subprocess.run(
            [compiler, *flags, "-o", str(target), *map(str, SOURCES), "-lm"],
            check=True,
            capture_output=True,
            timeout=120,
        )
        os.replace(target, path)
