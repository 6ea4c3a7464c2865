"""Starts `genlock` and `python -m genlock`.

The version is answered here, before anything slow is imported; the rest is in `cli`.
"""

from __future__ import annotations

import os
import signal
import sys

from . import __version__


def main() -> None:
    """Do what `sys.argv` asks for, and end the process with the exit status of it.

    Where whoever reads the output has closed it, as `head` does, there is no verdict, and the status is that of a
    program which the signal for it has ended.
    """
    if sys.argv[1:2] in (["--version"], ["-V"]):
        print(f"genlock {__version__}")
        return
    from .cli.app import app

    try:
        app(prog_name="genlock")
    except SystemExit as end:
        if not (isinstance(end.__context__, BrokenPipeError) or _closed()):
            raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left is written at the end
    raise SystemExit(128 + signal.SIGPIPE)


def _closed() -> bool:
    """Write out what has been printed; whether nobody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


if __name__ == "__main__":
    main()
