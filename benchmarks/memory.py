"""The peak memory of this process, from a moment on. Imports nothing that is large."""

import resource
import sys


def reset_peak() -> None:
    """Begin to count anew: what was in use before and is free now does not count."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:  # not Linux, or not allowed: the peak is the process's from its start
        pass


def peak_mib() -> float:
    """MiB: of the GPU's memory where the process uses one, else of the process's.

    Linux counts the memory of a process that started another one as the other's, in what
    `getrusage` says, but not in `/proc`.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        with open("/proc/self/status") as file:
            kib = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except OSError:
        unit = 1024 if sys.platform == "darwin" else 1
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
    return kib / 1024
