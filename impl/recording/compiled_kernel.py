"""Builds and finds the kernel in C++ (`_c10d_kernel.cpp`), which costs an operation less than those in Python.

It fits the torch that it was built against alone, so that it is built where torch is, which takes a C++ compiler and
half a minute: `python -m genlock.impl.recording.compiled_kernel`. Its file bears the version of torch and a digest of
the source: another torch, and another source, do not find it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...errors import UsageError

NAME = "_c10d_kernel"
SOURCE = Path(__file__).with_name(f"{NAME}.cpp")
HEADER = Path(__file__).parents[2] / "traces" / "fast_recorder.h"


def path() -> Path:
    """Return where the kernel lies that fits this torch and this Python."""
    digest = hashlib.sha256(SOURCE.read_bytes() + HEADER.read_bytes()).hexdigest()[:12]
    version = "".join(c if c.isalnum() or c in ".+" else "_" for c in str(torch.__version__))
    return SOURCE.with_name(f"{NAME}-{version}-{digest}{sysconfig.get_config_var('EXT_SUFFIX')}")


def load() -> ModuleType | None:
    """Return the kernel; None where none was built for this torch from this source."""
    try:
        spec: Any = importlib.util.spec_from_file_location(NAME, path())
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (OSError, ImportError):
        return None
    return module


def build() -> Path:
    """Build the kernel for the torch that is here, unless it is there. Raises UsageError where that cannot be done."""
    from torch.utils import cpp_extension

    if path().exists():
        return path()
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    include = [sysconfig.get_path("include"), *cpp_extension.include_paths()]
    libraries = cpp_extension.library_paths()
    file = path()
    scratch = file.with_name(f"{file.name}.{os.getpid()}")
    command = [*compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-w", "-DUSE_DISTRIBUTED", str(SOURCE)]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-I{folder}" for folder in include] + [f"-L{folder}" for folder in libraries]
    command += ["-ltorch_python", "-ltorch_cpu", "-lc10", "-o", str(scratch)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise UsageError(f"no C++ compiler: {error}", do="set CXX to one") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no word of why"]
        raise UsageError(f"{SOURCE.name} cannot be built: {lines[0][:300]}", do="set CXX to a compiler of C++20")
    os.replace(scratch, file)
    return file


if __name__ == "__main__":
    try:
        print(f"built {build()}")
    except UsageError as error:
        sys.exit(str(error))
