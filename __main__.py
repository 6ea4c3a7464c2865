"""Starts `genlock` and `python -m genlock`.

The version is answered here, before anything slow is imported; the rest is in `cli`.
"""

from __future__ import annotations

import sys

from . import __version__


def main() -> None:
    """Run the command that `sys.argv` names, and end the process with its exit status."""
    if sys.argv[1:2] in (["--version"], ["-V"]):
        print(f"genlock {__version__}")
        return
    from .cli.app import app

    app(prog_name="genlock")


if __name__ == "__main__":
    main()
