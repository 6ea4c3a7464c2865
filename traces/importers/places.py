"""Tells the program's lines from those of libraries, in stacks and tracebacks.

The place of an operation is the innermost line of the program: outside of Python's own library and of the installed
packages. Where there is none, a package that no training library is a part of counts as the program.

A folder's name alone makes no library: `examples/pytorch/train.py` and `/home/me/torch/train.py` are the user's.

Left out: reading stacks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from ..evidence import Place
from ..format import Site

LIBRARIES = frozenset(
    """
    torch torchvision torchaudio torchdata torchtext torchelastic torch_xla torch_npu torchft torchcomms functorch
    triton accelerate transformers lightning lightning_fabric pytorch_lightning megatron deepspeed apex ray peft trl
    transformer_engine fairscale colossalai horovod composer datasets diffusers vllm sglang tensorrt_llm flash_attn
    xformers bitsandbytes numpy nvidia cupy genlock py_spy pyspy uvloop joblib tqdm fsspec
    """.split()  # noqa: SIM905 (a list of names is read as one)
)
"""Packages whose lines are not the program's."""
_PARTS = {
    "torch": "distributed nn utils autograd optim cuda multiprocessing fx jit ao amp backends onnx profiler export "
    "functional.py _dynamo _inductor _functorch _higher_order_ops _C _ops.py _tensor.py _utils.py _compile.py "
    "_prims_common _decomp _subclasses serialization.py random.py library.py storage.py __init__.py",
    "accelerate": "accelerator.py utils state.py data_loader.py optimizer.py scheduler.py launchers.py hooks.py "
    "big_modeling.py commands tracking.py checkpointing.py parallelism_config.py",
    "transformers": "trainer.py trainer_utils.py trainer_pt_utils.py trainer_callback.py modeling_utils.py models "
    "generation utils integrations data pipelines training_args.py optimization.py",
    "lightning": "pytorch fabric",
    "pytorch_lightning": "trainer strategies loops callbacks core utilities plugins accelerators loggers",
    "lightning_fabric": "strategies utilities plugins accelerators fabric.py wrappers.py",
    "megatron": "core training legacy model mpu data optimizer",
    "deepspeed": "runtime comm ops pipe utils moe inference checkpoint launcher __init__.py sequence module_inject",
    "vllm": "v1 distributed executor worker engine entrypoints model_executor utils",
    "sglang": "srt",
    "tensorrt_llm": "_torch executor runtime llmapi",
    "concurrent": "futures",
}
_OWN_PARTS = {package: frozenset(parts.split()) for package, parts in _PARTS.items()}
"""Names beneath a library's folder where it is run from a checkout, without `site-packages`."""

_INSTALLED = re.compile(r"(?:^|/)(?:site|dist)-packages/([\w.\-]+)")
_PYTHON = re.compile(r"(?:^|/)lib(?:64)?/python3(?:\.\d{1,2})?t?/(?!site-packages|dist-packages)")
_MADE = re.compile(r"(?:^|/)(?:torchinductor_|torchinductor/|torch_compile_debug|\.triton/|triton_cache)|^<")
"""Code that was generated, or has no file."""
_OWN = re.compile(r"(?:^|/)genlock/(?:impl|traces|guardian|cli)/")
_HERE = str(Path(__file__).resolve().parents[2]) + "/"

PROGRAM, PACKAGE, LIBRARY = range(3)


@lru_cache(maxsize=65_536)
def layer(file: str) -> int:
    """Return whose line it is: PROGRAM, PACKAGE (installed, and no library that is known here) or LIBRARY."""
    path = file.replace("\\", "/")
    if _MADE.search(path) or _OWN.search(path) or (path.startswith(_HERE) and _own_module(path)):
        return LIBRARY
    installed = _INSTALLED.findall(path)
    if installed:
        package = installed[-1].removesuffix(".py")
        return LIBRARY if package in LIBRARIES else PACKAGE
    if _PYTHON.search(path):
        return LIBRARY
    parts = path.split("/")
    if not path.startswith(("/", "./", "../")) and _from_path(parts):
        return LIBRARY
    for folder, below in pairwise(parts):
        if below in _OWN_PARTS.get(folder, ()):
            return LIBRARY
    return PROGRAM


def _from_path(parts: Sequence[str]) -> bool:
    """Tell whether it is a library's line as tools print it that leave out the folders of `sys.path`."""
    first = parts[0].removesuffix(".py")
    if first in sys.stdlib_module_names:
        return True
    return len(parts) > 1 and first in LIBRARIES and first not in _OWN_PARTS


def _own_module(path: str) -> bool:
    below = path[len(_HERE) :]
    return not below.startswith(("examples/", "bench/", "tests/")) and "-packages/" not in below


def place_of(frames: Sequence[tuple[str, int, str]]) -> tuple[Place | None, Place | None]:
    """Return the program's line, and the innermost line of a library that is more than a way to issue something.

    `frames` are (file, line, function), innermost first.
    """
    layers = [layer(file) for file, _, _ in frames]
    at = next((i for wanted in (PROGRAM, PACKAGE) for i, found in enumerate(layers) if found == wanted), None)
    inner = next((i for i, frame in enumerate(frames) if not _is_plumbing(frame[0])), None)
    if at is None and inner is None:
        inner = next((i for i, frame in enumerate(frames) if not frame[0].startswith("<")), None)
    library = None if inner is None or layers[inner] != LIBRARY else Place(*frames[inner])
    if at is not None and inner is not None and inner > at:
        library = None  # what called the program says nothing of the place
    return (None if at is None else Place(*frames[at])), library


def _is_plumbing(file: str) -> bool:
    return _PLUMBING.search(file) is not None or (file.startswith(_HERE) and _own_module(file))


_PLUMBING = re.compile(
    r"(?:^|/)torch/distributed/(?:distributed_c10d|c10d_logger)\.py$|(?:^|/)torch/(?:utils/_contextlib|_ops)\.py$"
    r"|(?:^|/)contextlib\.py$|^<|(?:^|/)genlock/impl/"
)
"""Files through which every operation passes."""


def recorded_place(frames: Sequence[Site]) -> tuple[str, str]:
    """Return the program's `file:line` of a recorded short stack, and as half a sentence the library's place beside it.

    Where no line of the program is known, the first is empty.
    """
    if len(frames) == 1 and not frames[0].function:  # as former formats have them
        return frames[0].place, ""
    split = [(frame.place.rpartition(":"), frame.function) for frame in frames]
    place, library = place_of([(file, int(line), name) for (file, _, line), name in split if line.isdecimal()])
    beside = "" if library is None else place_text(None, library)
    return "" if place is None else f"{place.file}:{place.line}", beside


def place_text(place: Place | None, library: Place | None) -> str:
    """Return the program's line, with the library's beside it; a library's with its path in the library."""
    if library is None:
        return str(place or "")
    path = re.split(r"(?:^|/)(?:site|dist)-packages/", library.file)
    beside = str(library)
    if len(path) > 1:
        beside = f"{path[-1].rpartition('/')[0]}/{library}".lstrip("/")
    return f"{place}, in {beside}" if place is not None else f"in {beside}"
