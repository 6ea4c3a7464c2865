"""Which versions of torch this was tried with, and a clear word where another one lacks what the code relies on.

Support is claimed for TRIED alone; `make smoke-torch VERSION=...` tries another one. Left out: the operators of
c10d (`intercept` checks those that it overrides).
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UsageError

TRIED = ("2.13.0", "2.11.0")
"""Versions of torch with which the tests of the control plane have passed."""


def named(names: tuple[str, ...], owner: Any = torch) -> dict[str, Any]:
    """Attributes of torch, or of one of its modules, by name. Raises UsageError for one that this version lacks."""
    for name in names:
        if not hasattr(owner, name):
            raise UsageError(
                f"torch {torch.__version__} has no {owner.__name__}.{name}",
                do=f"use torch {' or '.join(TRIED)}, with which this was tried",
            )
    return {name: getattr(owner, name) for name in names}
