"""What this machine can do, and what a run therefore uses; decided before step 1 and kept for resume."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertune.config import TrainConfig
from bertune.errors import ConfigError

CPU_TOKENS = 4096  # enough for the matrix products to run at full speed, little enough to stay near the caches
GPU_TOKENS = 32768


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes. token_budget: tokens of one micro-batch."""

    device: str
    precision: str
    threads: int
    token_budget: int
    compile: bool
    processor: str
    kernels: str = "torch"  # or compiled: see model/kernels.py

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def use(self) -> None:
        """Make torch follow these settings in this process."""
        torch.set_num_threads(self.threads)
        if self.device == "cpu":
            keep_memory()
        if self.device == "cuda":
            # `repeatable` needs it, before the first product.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """While this lasts, the same work gives the same bits on a GPU too, where adding up in any order is the habit.

        What torch can do in no fixed order only, it does with a warning.
        """
        if self.device != "cuda":
            yield
            return
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        memory: Any = torch.utils.deterministic
        filled = memory.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False  # it costs a pass over all memory that is taken
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = filled

    def sentence(self) -> str:
        plural = "" if self.threads == 1 else "s"
        cores = f", {self.threads} thread{plural}" if self.device == "cpu" else ""
        compiled = ", compiled" if self.compile else ", compiled kernels" if self.kernels == "compiled" else ""
        how = f"{self.precision}, {self.token_budget:,} tokens at once{compiled}"
        return f"Machine: {self.device} ({self.processor}){cores}, {how}."


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor there; to a GPU it travels beside the work that is queued, and nobody waits for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def choose_machine(config: TrainConfig, *, long_run: bool, tokens: int = CPU_TOKENS) -> Machine:
    """Settle device, precision, threads and token budget; `long_run`: compiling would be paid back; tokens: what the
    budget is on a processor, where the configuration leaves it open."""
    device = check_device(config.device)
    fast = bf16_is_faster(device)
    precision = ("bf16" if fast else "fp32") if config.precision == "auto" else config.precision
    threads = config.threads or usable_cores()
    budget = config.token_budget or (GPU_TOKENS if device == "cuda" else tokens)
    if config.compile == "yes" and device != "cuda":
        raise ConfigError(
            f"train.compile: yes is for cuda; this run computes on {device}, where it does not pay. Pass auto or no."
        )
    compiled = config.compile == "yes" or (config.compile == "auto" and device == "cuda" and long_run)
    kernels = choose_kernels(config.kernels, device, precision)
    return Machine(device, precision, threads, budget, compiled, processor_name(device), kernels)


def choose_kernels(wanted: str, device: str, precision: str) -> str:
    """compiled or torch; ConfigError where compiled ones are asked for and cannot be had."""
    if wanted == "torch" or (wanted == "auto" and (device, precision) != ("cpu", "bf16")):
        return "torch"
    if (device, precision) != ("cpu", "bf16"):
        raise ConfigError(
            f"train.kernels: compiled is for bf16 on a processor; this run computes in {precision} on {device}. "
            "Pass auto or torch."
        )
    from bertune.model.kernels import library

    if library() is None and wanted == "compiled":
        raise ConfigError(
            "train.kernels: compiled kernels are not there; they are built when bertune is installed from source on "
            "Linux (x86-64) with GCC 12 or newer. Install it and bertune again, or pass auto or torch."
        )
    return "torch" if library() is None else "compiled"


def check_kernels(machine: Machine, out: Path) -> None:
    """Raise ConfigError where a run to be resumed in `out` began with kernels that are no longer there."""
    from bertune.model.kernels import library

    if machine.kernels == "compiled" and library() is None:
        raise ConfigError(
            f"--resume: the run in {out} was started with compiled kernels, and they are not there now, so it cannot "
            "end with the same weights. Install bertune again with GCC 12 or newer, or pass --overwrite to start anew."
        )


def check_device(wanted: str) -> str:
    """The device to use for `wanted` (a device or auto); ConfigError where it is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
    if not available[wanted]:
        usable = ", ".join(name for name, there in available.items() if there)
        raise ConfigError(f"--device {wanted}: not available here; available: {usable}, or auto.")
    return wanted


def bf16_is_faster(device: str) -> bool:
    """Whether matrix products run faster in bf16 than in fp32, by the features of the processor.

    Features instead of a timed probe, so that a busy machine cannot change the answer.
    """
    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    if device != "cpu":
        return False
    features = torch.cpu.get_capabilities()
    return bool(features.get("amx_bf16") or features.get("avx512_bf16"))


def usable_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def processor_name(device: str) -> str:
    """The processor in a few words, with the matrix unit that matters here."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    features = torch.cpu.get_capabilities()
    name = str(features.get("cpu_name", "")).strip() or str(features.get("architecture", "processor"))
    unit = "AMX" if features.get("amx_bf16") else "AVX-512 bf16" if features.get("avx512_bf16") else ""
    return f"{name}, {unit}" if unit else name


def keep_memory() -> None:
    """Ask glibc to keep freed memory instead of handing it back to the system after every step.

    Each step frees and takes hundreds of megabytes of activations; by default every large block is mapped anew, and
    clearing its pages takes a noticeable share of a step. Without effect where the C library is another one.
    """
    library = _c_library()
    if library is not None and hasattr(library, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        if not library.mallopt(m_mmap_threshold, 1 << 30):
            library.mallopt(m_mmap_threshold, 1 << 25)  # all that older versions take
        library.mallopt(m_trim_threshold, (1 << 31) - 1)


def release_memory() -> None:
    """Give memory that is free back to the system.

    For after work of another shape than a step's, such as measuring and saving: what it leaves in pieces would stay
    beside what steps need, and a long run would hold more and more.
    """
    library = _c_library()
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def peak_memory() -> int:
    """Most bytes of memory this process has held so far (resident on a processor, allocated on a GPU)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    if os.name == "nt":
        return _peak_windows()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _peak_windows() -> int:
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [("size", wintypes.DWORD), ("faults", wintypes.DWORD)] + [
            (name, ctypes.c_size_t) for name in ("peak", "now", "pp", "p", "np", "n", "pagefile", "peak_pagefile")
        ]

    counters = Counters()
    counters.size = ctypes.sizeof(counters)
    handle = ctypes.windll.kernel32.GetCurrentProcess()  # type: ignore[attr-defined]
    ctypes.windll.psapi.GetProcessMemoryInfo(handle, ctypes.byref(counters), counters.size)  # type: ignore[attr-defined]
    return int(counters.peak)


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of an existing folder."""
    import shutil

    return shutil.disk_usage(folder).free
