"""Defines the typed outcome of an event: which check failed, the ranks it names, the field. Made where the check fails.

Programs decide by `code`, `ranks`, `field` and `differences`; `text` is for people alone. Left out: the checks
themselves, and the codes, which errors carry too (`errors`).
"""

from __future__ import annotations

import msgspec

from ..errors import Code, ContractViolation, Difference, GenlockError, PeerLost, Refused

__all__ = ["Code", "Difference", "Outcome", "first_line", "outcome_of"]


class Outcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Says what a check found. Absent from an event that went as it should."""

    code: Code
    ranks: tuple[int, ...] = ()
    """Global ranks that the check names; empty where it names none."""
    field: str = ""
    """Field, tensor or index that the check looked at; of several, the first that is wrong."""
    text: str = ""
    """One line for people. Nothing decides by it."""
    differences: tuple[Difference, ...] = ()
    """Lists, for a comparison of ranks, each field that is wrong, as `[field, ranks, values, usual, alike]`."""


def outcome_of(error: BaseException) -> Outcome:
    """Return what an exception says of itself by its type and fields."""
    text = str(error) if isinstance(error, GenlockError) else first_line(error)
    if isinstance(error, ContractViolation):
        return Outcome(error.code, error.ranks, error.field, text, error.differences)
    if isinstance(error, Refused):
        return Outcome(Code.PREFLIGHT, (), error.field, text)
    return Outcome(Code.PEER if isinstance(error, PeerLost) else Code.EXCEPTION, text=text)


def first_line(error: BaseException) -> str:
    """Return type and first line of an exception, at most some 300 characters."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
