"""The fused kernels' library: compiled by the machine's C compiler at first use, kept, and loaded."""

import ctypes
import hashlib
import logging
import os
import shlex
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
    flags = FLAGS + ["-DBF16"] * (dtype == torch.bfloat16)
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))
        if not compiler or shutil.which(compiler[0]) is None:
            log.info("no C compiler here: networks train by torch's own kernels")
            return None
        path = cached(compiler, flags)
        if not path.exists():
            build(compiler, flags, path)
        return ctypes.CDLL(str(path))
    # the last two: a CC that is no command line, and no home
    except (OSError, subprocess.SubprocessError, ValueError, RuntimeError) as error:
        log.info("the fused kernels cannot be built (%s): networks train by torch's own", error)
        return None


def cached(compiler: list[str], flags: list[str]) -> Path:
    """Where the library of these sources, compiler (a command and its arguments) and processor is kept."""
    processor = name_processor() + read_processor().get("flags", "")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    arguments = " ".join([*compiler[1:], *flags])
    parts = [*(path.read_text() for path in SOURCES + HEADERS), version, arguments, processor, sys.platform]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sepconv" / f"fused-{name}.so"


def build(compiler: list[str], flags: list[str], path: Path) -> None:
    """Compiles the library, aside at first: other processes may do the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        target = Path(folder) / path.name
        subprocess.run(
            [*compiler, *flags, "-o", str(target), *map(str, SOURCES), "-lm"],
            check=True,
            capture_output=True,
            timeout=120,
        )
        os.replace(target, path)
