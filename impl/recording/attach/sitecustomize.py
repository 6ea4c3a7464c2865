"""Attaches the recorder: Python runs this at its start where `genlock record` has put this folder on PYTHONPATH.

Once the program has imported torch, the recorder is attached to it. Until then nothing is imported, and nothing
that goes wrong here may stop the program: it says so in one line, leaves a mark in the recording, and the process goes
unrecorded. Where this Python has no genlock, the one that records is taken, if its few needs are met.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import mmap
import os
import sys
from typing import Any

RECORDED, GUARDED = "GENLOCK_RECORD" in os.environ, "GENLOCK_PAGE" in os.environ
HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))


ADAPTED = {
    "vllm.v1.executor.multiproc_executor": "vllm",
    "vllm.distributed.device_communicators.cpu_communicator": "vllm",
}
"""Maps modules of engines to the adapter that records what they do past torch."""


class _AfterImport:
    """Finds torch as it would have been found, and attaches the recorder when torch has been imported; engines alike.

    It stays: a program may ask where torch is as often as it likes, and import it later, or never.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch" and name not in ADAPTED:
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        loader: Any = spec.loader if spec else None
        if loader is not None and hasattr(loader, "exec_module"):
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                if name == "torch":
                    _attach()
                else:
                    _adapt(name, module)

            loader.exec_module = exec_module
        return spec


def _show() -> mmap.mmap | None:
    """Show that the hook is here, to whoever looks for processes without it (`unseen`).

    The file stays open until the process is gone; a program that closes all files leaves the region.
    """
    try:
        file = os.memfd_create("genlock-recorder", os.MFD_CLOEXEC)
        os.ftruncate(file, mmap.PAGESIZE)
        return mmap.mmap(file, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    except (AttributeError, OSError):  # it is no Linux
        return None


_attached = False


def _attach() -> None:
    global _attached
    if _attached:  # torch was loaded anew
        return
    _attached = True
    if RECORDED:
        try:
            _find_genlock()
            from genlock.impl.recording.session import attach

            attach()
        except Exception as error:
            print(f"genlock: this process is not recorded: {error}", file=sys.stderr)
            _mark(f"{' '.join(sys.orig_argv)[:200]}: {error}")
    if GUARDED:
        try:
            _find_genlock()
            from genlock.impl.rank.operation_beats import attach as beat

            beat()
        except Exception as error:
            print(f"genlock: this process does not beat, and may stall unseen: {error}", file=sys.stderr)


def _adapt(name: str, module: Any) -> None:
    try:
        from genlock.impl.recording import adapters

        importlib.import_module(f"{adapters.__name__}.{ADAPTED[name]}").adapt(module)
    except Exception as error:
        print(f"genlock: what {name} does is not recorded: {error}", file=sys.stderr)
        _mark(f"{name}: {error}")


def _find_genlock() -> None:
    """Make `genlock` the package that this file is part of, where there is none."""
    if importlib.util.find_spec("genlock") is None:
        file = os.path.join(PACKAGE, "__init__.py")
        spec = importlib.util.spec_from_file_location("genlock", file, submodule_search_locations=[PACKAGE])
        if spec is not None and spec.loader is not None:
            sys.modules["genlock"] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)


def _mark(what: str) -> None:
    """Say so in the recording's journal, without genlock, which may be what is missing."""
    try:
        line = {"kind": "unrecorded", "process": os.getpid(), "what": what}
        path = os.path.join(json.loads(os.environ["GENLOCK_RECORD"])["out"], "recording.jsonl")
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(file, (json.dumps(line) + "\n").encode())
        os.close(file)
    except Exception as error:
        print(f"genlock: that cannot be noted in the recording: {error}", file=sys.stderr)


def _run_the_one_that_this_shadows() -> None:
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec(__name__, sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[__name__] = module
        spec.loader.exec_module(module)


if RECORDED or GUARDED:
    _region = _show() if RECORDED else None
    if "torch" in sys.modules:  # a .pth file has imported it
        _attach()
    else:
        sys.meta_path.insert(0, _AfterImport())
_run_the_one_that_this_shadows()
