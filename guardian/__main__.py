"""Starts a guardian in an isolated interpreter, which knows neither site-packages nor this package's place."""

from __future__ import annotations

import os
import sys


def start() -> int:
    """Make this package importable by its own name, run the guardian, and return its exit status."""
    sys.modules["_hashlib"] = None  # type: ignore[assignment]  # OpenSSL: 4 MB, and hashlib does without it
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from importlib import import_module

    status: int = import_module("guardian.supervisor").main(sys.argv[1:])
    return status


if __name__ == "__main__":
    status = start()
    sys.stderr.flush()
    # at once: while an interpreter winds down it no longer holds signals, and the launcher's would set the status
    os._exit(status)
