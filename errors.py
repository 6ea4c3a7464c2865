"""The errors that a user can meet, and the exit statuses that they map to. Nothing is raised from here.

Each error says what is wrong, where, and what to do; `str(error)` is the one line that a command prints.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses of a command (0-3) and of a rank (0, 10-14)."""

    OK = 0
    """The property holds, the trace conforms, the rank stopped."""
    VIOLATED = 1
    """A property is violated, or a trace diverges."""
    USAGE = 2
    """Wrong use, or input that cannot be read."""
    UNKNOWN = 3
    """The evidence does not suffice for a verdict."""
    BUG = 70
    """A bug of Genlock's own, with a traceback."""
    CONTRACT = 10
    """This rank violated the contract."""
    PEER_VIOLATED = 11
    """A peer said that it violated the contract."""
    PEER_DIED = 12
    """A peer died."""
    DEADLINE = 13
    """A deadline of this rank passed."""
    PARITY = 14
    """The ranks disagreed at start-up."""


class GenlockError(Exception):
    """Base of all errors that Genlock raises on purpose: what, where, what to do."""

    exit = Exit.USAGE

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        self.what, self.where, self.do = what, where, do
        super().__init__((f"{where}: " if where else "") + what + (f"; {do}" if do else ""))


class UsageError(GenlockError):
    """The command or call was used wrongly."""


class UnreadableInput(GenlockError):
    """A file is missing, malformed, or of an unknown format or version."""


class CutFile(UnreadableInput):
    """The file ends in the middle: whoever wrote it was stopped."""


class ModelError(GenlockError):
    """A protocol's tables do not make sense (unknown target, unreachable state, guard that raises)."""


class Unfinished(GenlockError):
    """What was asked has no answer yet: the work was interrupted, or there was no room for it."""

    exit = Exit.UNKNOWN


class ContractViolation(GenlockError):
    """A rank did, or was about to do, what the contract forbids: the run is poisoned."""

    exit = Exit.CONTRACT


class ParityMismatch(ContractViolation):
    """Ranks that must agree at start-up do not."""

    exit = Exit.PARITY


class Refused(GenlockError):
    """Preflight refused a chunk. Nothing was sent and nothing changed, on any rank; the run goes on.

    `field` is the path of the offending key, `value` a short rendering of what stood there, `step` the
    preflight step (1-5) that refused.
    """

    def __init__(
        self, what: str, *, field: str, value: object, step: int, call_id: int, chunk_index: int, do: str = ""
    ) -> None:
        self.field, self.step, self.call_id, self.chunk_index = field, step, call_id, chunk_index
        self.value = repr(value)[:80]
        super().__init__(
            f"preflight step {step} refused `{field}` = {self.value}: {what}",
            where=f"call_id={call_id} chunk_index={chunk_index}",
            do=do,
        )
