"""What a run computes on: the device, its precision and its memory."""

import ctypes
import mmap
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from sepconv import InputError
from sepconv.config.keys import TrainerConfig

ROOM = 2**29  # bytes for maps and data, asked for in large pages


def find_device(config: TrainerConfig) -> torch.device:
    """The device that `config.accelerator` means here. Raises InputError for a GPU where there is none."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if config.accelerator == "gpu":
        kinds.pop("cpu")
    elif config.accelerator == "cpu":
        kinds = {"cpu": True}
    for kind, there in kinds.items():
        if there:
            return torch.device(kind)
    raise InputError("trainer=gpu: torch finds no GPU here; choose trainer=cpu or trainer=auto")


def name_accelerator(config: TrainerConfig) -> str:
    """Lightning's name for what `find_device` finds."""
    kind = find_device(config).type
    return "gpu" if kind == "cuda" else kind


def check_devices(config: TrainerConfig, machines: int = 1) -> None:
    """Raises InputError unless `machines` like this one have `config.devices`: GPUs, or cores of a CPU."""
    kind = find_device(config).type
    there = {"cuda": torch.cuda.device_count(), "mps": 1, "cpu": os.cpu_count() or 1}[kind]
    if config.devices > there * machines:
        units = ("core" if kind == "cpu" else "GPU") + "s" * (there != 1)
        where = "this machine has" if machines == 1 else f"there are on {machines} machines like this one, each with"
        raise InputError(f"trainer.devices={config.devices} is more than {where}: {there} {units}")


def resolve_precision(wanted: str, device: torch.device) -> str:
    """Lightning's name for the precision `wanted` on `device`; `auto` is bf16 where the hardware computes in it."""
    if wanted == "auto":
        native = {
            "cuda": torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
        }
        wanted = "bf16" if native.get(device.type) else "fp32"
    return {"bf16": "bf16-mixed", "fp32": "32-true"}[wanted]


def synchronize(device: torch.device) -> None:
    """Waits for `device` to finish its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@cache
def prepare_memory() -> None:
    """Has glibc, where the process runs on it, keep large blocks that are freed, and take ROOM bytes in large pages.

    Why: by default it gives large blocks back to the system, which hands them out again a page at a time and zeroed, in
    each step. Where Linux on x86 may, it makes pages of 2 MB instead of 4 KB when asked: fewer addresses are looked up.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_threshold, 2**30)
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.madvise.argtypes, libc.free.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), (ctypes.c_void_p,)
    if block := libc.malloc(ROOM + mmap.PAGESIZE):  # addresses alone: a page is made when it is first written
        libc.madvise(-(-block // mmap.PAGESIZE) * mmap.PAGESIZE, ROOM, mmap.MADV_HUGEPAGE)
        libc.free(block)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on `device`."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def check_memory(
    size: int,
    device: torch.device,
    what: str = "the data set",
    remedy: str = "choose a smaller data.image_size or another data set",
) -> None:
    """Raises InputError unless `size` more bytes, which `what` takes, fit on `device`; `remedy` says what would."""
    free = free_memory(device)
    if size > free:
        mebibytes = f"{size / 2**20:,.0f} MiB and {device} has {free / 2**20:,.0f} MiB free"
        raise InputError(f"{what} takes {mebibytes}: {remedy}")


def describe_device(device: torch.device, count: int = 1) -> dict[str, Any]:
    """The kind (cuda, mps, cpu), name and, for a CPU, number of threads of `device`; how many, where they are several.

    A CPU counts as a device for each process that trains on it.
    """
    if count > 1:
        return describe_device(device) | {"count": count}
    if device.type == "cuda":
        return {"kind": "cuda", "name": torch.cuda.get_device_name(device)}
    if device.type == "cpu":
        return {"kind": "cpu", "name": name_processor(), "threads": torch.get_num_threads()}
    return {"kind": device.type, "name": name_processor()}


def name_processor() -> str:
    """The processor's name; on Linux with its family and model, for some names stand for several designs."""
    facts = read_processor()
    name = facts.get("model name") or platform.processor() or platform.machine()
    family, model = facts.get("cpu family"), facts.get("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def read_processor() -> dict[str, str]:
    """What Linux says of the first core, such as its `model name`, and its `flags` of instructions; else nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().partition("\n\n")[0].splitlines() if cpuinfo.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
