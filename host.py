"""Asks the machine for what the model needs of it: memory that is left, and the file of a user's own protocol.

The model itself does no I/O. Left out: what other processes will want meanwhile.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path, PurePath
from types import ModuleType

from .errors import UsageError

CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Return the bytes that can still be had without swapping, within the container's limit; None where unknown."""
    found = [free for free in (_free(), _container()) if free is not None]
    return min(found, default=None)


def _free() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _container() -> int | None:
    """Return what the control group of this process leaves, page cache not counted."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines()).get(
            "inactive_file", 0
        )
        return None if limit == "max" else int(limit) - int(used) + int(cached)
    except (OSError, ValueError):
        return None


def run_file(path: PurePath) -> ModuleType:
    """Run a user's Python file and return it as a module. Raises UsageError where there is none, and what it raises."""
    if not Path(path).is_file():
        raise UsageError("no such file", where=str(path), do="check the path")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError("this is no Python file", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
