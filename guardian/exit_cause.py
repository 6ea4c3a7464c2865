"""Reads a rank's end: which of several failures is the cause, and which exit status each rank gets for it."""

from __future__ import annotations

from .child import how_it_ended
from .deadlines import COLLECTIVE, Failure

USAGE, CONTRACT, PEER_VIOLATED, PEER_DIED, DEADLINE, PARITY = 2, 10, 11, 12, 13, 14
"""Exit statuses, as `errors.Exit` has them."""

OWN_WORD = {CONTRACT: "contract", PARITY: "parity", DEADLINE: "deadline"}
"""Statuses by which a rank says itself that it is to blame, and of what."""
WEIGHT = {
    "launcher": -1,
    "died": 0,
    "deadline": 0,
    COLLECTIVE: 0,
    "parity": 0,
    "contract": 1,
    "guardian": 1,
    "exit": 2,
}
"""Weighs failures: of several at once the lightest is the cause, the others are consequences. Of nothing that a rank
does its launcher dies, and of its launcher's death any rank may.
"""
LAST = 3


def by_itself(rank: int, status: int, where: str, *, asked: bool, how: str = "") -> Failure:
    """Return the failure that a program's exit status, not 0, stands for. `asked`: its launcher had signalled it. `how`
    says it in words, where more is known than the status.
    """
    what = f"rank{rank} {how or how_it_ended(status)} {where}"
    if status in (PEER_VIOLATED, PEER_DIED):
        return Failure("lost", -1, f"rank{rank} lost a peer {where}")
    if asked and status < 0:
        return Failure("asked", -1, f"{what}, which its launcher had sent")
    return Failure(OWN_WORD.get(status, "died" if status < 0 else "exit"), rank, what)


def weight_of(found: Failure) -> int:
    return WEIGHT.get(found.cause, LAST)


def status_of(found: Failure, rank: int, own: int) -> int:
    """Return a rank's exit status: its own where that names a cause, else by what ended the run."""
    if own in OWN_WORD:
        return own
    if found.cause == "asked" or (found.culprit == rank and found.cause in ("died", "exit")):
        return own if own > 0 else 128 - own
    if found.cause == "parity":
        return PARITY
    if found.cause == COLLECTIVE or (found.culprit == rank and found.cause == "deadline"):
        return DEADLINE
    return PEER_VIOLATED if found.cause in ("contract", "exit") else PEER_DIED


def cause_of(found: Failure, rank: int) -> str:
    """Return the cause in the terms of a trace's end marker (`traces.format.Cause`)."""
    if found.cause == COLLECTIVE:
        return "deadline"
    if found.culprit == rank:
        return {"deadline": "deadline", "parity": "parity", "contract": "violation"}.get(found.cause, "exception")
    return "parity" if found.cause == "parity" else "peer_lost"
