"""How a rank's end is read, which of several findings is the cause, and what each rank's exit status says of it."""

from __future__ import annotations

from .child import how_it_ended
from .deadlines import COLLECTIVE, Finding

USAGE, CONTRACT, PEER_VIOLATED, PEER_DIED, DEADLINE, PARITY = 2, 10, 11, 12, 13, 14
"""As `errors.Exit` has them."""

OWN_WORD = {CONTRACT: "contract", PARITY: "parity", DEADLINE: "deadline"}
"""Statuses by which a rank says itself that it is to blame, and of what."""
WEIGHT = {"died": 0, "deadline": 0, COLLECTIVE: 0, "parity": 0, "contract": 1, "guardian": 1, "launcher": 2, "exit": 2}
"""Of several findings at once the lightest is the cause, and the others its consequences."""
LAST = 3


def by_itself(rank: int, status: int, where: str, *, asked: bool) -> Finding:
    """What it means that a rank's program ended with this status, not 0. `asked`: its launcher had signalled it."""
    what = f"rank{rank} {how_it_ended(status)} {where}"
    if status in (PEER_VIOLATED, PEER_DIED):
        return Finding("lost", -1, f"rank{rank} lost a peer {where}")
    if asked and status < 0:
        return Finding("asked", -1, f"{what}, which its launcher had sent")
    return Finding(OWN_WORD.get(status, "died" if status < 0 else "exit"), rank, what)


def weight_of(found: Finding) -> int:
    return WEIGHT.get(found.cause, LAST)


def status_of(found: Finding, rank: int, own: int) -> int:
    """A rank's exit status: its own word where it gave one, else by what ended the run."""
    if own in OWN_WORD:
        return own
    if found.cause == "asked" or (found.culprit == rank and found.cause in ("died", "exit")):
        return own if own > 0 else 128 - own
    if found.cause == "parity":
        return PARITY
    if found.cause == COLLECTIVE or (found.culprit == rank and found.cause == "deadline"):
        return DEADLINE
    return PEER_VIOLATED if found.cause in ("contract", "exit") else PEER_DIED


def cause_of(found: Finding, rank: int) -> str:
    """The same in the terms of a trace's end marker (`traces.format.Cause`)."""
    if found.cause == COLLECTIVE:
        return "deadline"
    if found.culprit == rank:
        return {"deadline": "deadline", "parity": "parity", "contract": "violation"}.get(found.cause, "exception")
    return "parity" if found.cause == "parity" else "peer_lost"
