"""A program that says which descriptors it was started with."""

from __future__ import annotations

import os


def is_open(number: int) -> bool:
    """Whether it is a descriptor of this process."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def main() -> None:
    """All that are open."""
    print(*filter(is_open, range(4096)))
