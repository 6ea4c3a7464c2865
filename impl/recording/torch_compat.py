"""Looks up what torch keeps private, says in one line where a version lacks it, and puts wrappers into its modules.

Support is claimed for TRIED alone; `make smoke-torch VERSION=...` tries another one. Left out: the operators of
c10d (`c10d_intercept` checks those that it overrides).
"""

from __future__ import annotations

import sys
from functools import reduce
from typing import Any

import torch

from ...errors import UsageError

TRIED = ("2.13.0", "2.12.0", "2.11.0")
"""Lists the versions of torch with which the tests of the control plane have passed."""


def lookup(name: str) -> Any:
    """Return an object of torch by its dotted name below `torch`. Raises UsageError where this version has none."""
    try:
        return reduce(getattr, name.split("."), torch)
    except AttributeError:
        do = f"use torch {' or '.join(TRIED)}, with which this was tried"
        raise UsageError(f"torch {torch.__version__} has no torch.{name}", do=do) from None


def put_in_place_of(original: Any, wrapper: Any) -> None:
    """Put a wrapper wherever a module has the original by its name."""
    name = original.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is original:
            module.__dict__[name] = wrapper
