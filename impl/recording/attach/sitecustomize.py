"""Attaches the recorder: Python runs this at its start where `genlock record` has put this folder on PYTHONPATH.

Once the program has imported torch, the recorder is attached to it. Until then nothing is imported, and nothing
that goes wrong here may stop the program: it says so in one line, and the process goes unrecorded.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from typing import Any


class _AfterTorch:
    """Finds torch as it would have been found, and attaches the recorder when torch has been imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec.loader if spec else None
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _attach()

            loader.exec_module = exec_module
        return spec


def _attach() -> None:
    try:
        from genlock.impl.recording.session import attach

        attach()
    except Exception as error:
        print(f"genlock: this process is not recorded: {error}", file=sys.stderr)


def _run_the_one_that_this_shadows() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec(__name__, sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[__name__] = module
        spec.loader.exec_module(module)


if "GENLOCK_RECORD" in os.environ:
    sys.meta_path.insert(0, _AfterTorch())
_run_the_one_that_this_shadows()
