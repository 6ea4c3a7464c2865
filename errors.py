"""Defines the errors that a user can meet, what their checks found, and the exit statuses.

Nothing is raised from here.
Each error says what is wrong, where, and what to do; `str(error)` is the one line that a command prints. Programs go
by its typed fields, `Code` and `Difference`, never by that line. Left out: how a finding is written (`traces.outcome`).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import NamedTuple


class Exit(IntEnum):
    """Exit statuses of a command (0-3, 70) and of a rank (0, 10-14)."""

    OK = 0
    """The property holds, the trace conforms, the rank stopped."""
    VIOLATED = 1
    """A property is violated, a trace diverges, or an audit says not to ship; nothing else."""
    USAGE = 2
    """Wrong use, or input that cannot be read."""
    UNKNOWN = 3
    """The evidence does not suffice for a verdict, or the work was ended early."""
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
    BUG = 70
    """Genlock itself is at fault."""


class Code(StrEnum):
    """Names the check that failed: the closed set that traces, replay and the break-it matrix decide by."""

    PARITY = "parity_differs"
    """Ranks gave unlike facts at start-up, or like marks."""
    ACKS = "acks_differ"
    """Ranks said unlike things at the end of a chunk."""
    MESSAGE = "message_unsound"
    """A received message has another size, magic, version, digest or bound than it must."""
    RULE = "rule_broken"
    """An envelope breaks a rule of its schema."""
    MOVE = "move_not_allowed"
    """The table has no such move here."""
    THREAD = "wrong_thread"
    """Another thread than the protocol's owner asked for a collective."""
    COLLECTIVE = "collective_not_due"
    """A collective was issued that the table or the plan does not have here, or too few were."""
    CALLS = "calls_miscounted"
    """More or fewer generator calls than the plan has, or out of turn."""
    OVERRIDE = "override_misused"
    """The override is there when it must not be, or missing when it must be there."""
    CONDITIONING = "conditioning_changed"
    """The conditioning that is held is not what was received, or of another epoch."""
    WEIGHTS = "weights_changed"
    """A weight is not what it was at start-up."""
    RESET = "cache_reset"
    """A cache was emptied out of turn."""
    CACHE = "cache_index"
    """A cache stands elsewhere than the envelope says; `field` names the index."""
    CONTRACT = "contract"
    """Another clause of the contract is broken."""
    PREFLIGHT = "preflight_refused"
    """Preflight refused a chunk; the run goes on."""
    BACKEND = "backend_failed"
    """The backend could not complete an operation."""
    PEER = "peer_lost"
    """The backend reports that a peer is gone."""
    EXCEPTION = "exception"
    """Code raised an error that no check of Genlock makes."""
    UNTYPED = "untyped"
    """A trace of format 1 holds the finding as text alone."""


class Difference(NamedTuple):
    """Names one field in which ranks are unlike, or alike where they must not be.

    `ranks` are those that differ from most others, in order, and `values` what each of them has; `usual` is what
    the others have. With `alike`, `ranks` share a value that no two ranks may share.
    """

    field: str
    ranks: tuple[int, ...]
    values: tuple[str, ...] = ()
    usual: str = ""
    alike: bool = False


class GenlockError(Exception):
    """Base of all errors that Genlock raises on purpose: what, where, what to do."""

    exit = Exit.USAGE
    longest = 4000
    """Characters that are told of what is wrong, which may quote what was read."""

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        self.what, self.where, self.do = _one_line(what, self.longest), where, do
        super().__init__((f"{_one_line(where, 4000)}: " if where else "") + self.what + (f"; {do}" if do else ""))


def _one_line(text: str, longest: int) -> str:
    """Return a text without line breaks and control characters, of a bearable length."""
    cut = len(text) > longest
    text = " ".join(text.splitlines()) if "\n" in text else text
    text = text[:longest]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"{text} …" if cut else text


class UsageError(GenlockError):
    """Signals that the command or call was used wrongly."""


class UnreadableInput(GenlockError):
    """Signals a file that is missing, malformed, or of an unknown format or version."""

    longest = 600


class CutFile(UnreadableInput):
    """Signals a file that ends in the middle: whoever wrote it was stopped."""


class ModelError(GenlockError):
    """Signals tables of a protocol that do not make sense (unknown target, unreachable state, guard that raises)."""


class Unfinished(GenlockError):
    """Signals that there is no answer yet: the work was interrupted, or there was no room for it."""

    exit = Exit.UNKNOWN


class ContractViolation(GenlockError):
    """Signals that a rank did, or was about to do, what the contract forbids: the run is poisoned.

    `code` is the check that failed, `field` what it looked at, `ranks` whom it names, `differences` all fields in
    which it found ranks unlike. Empty where the check has none of it.
    """

    exit = Exit.CONTRACT

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        do: str = "",
        code: Code = Code.CONTRACT,
        field: str = "",
        ranks: Sequence[int] = (),
        differences: Sequence[Difference] = (),
    ) -> None:
        self.code, self.field, self.ranks, self.differences = code, field, tuple(ranks), tuple(differences)
        super().__init__(what, where=where, do=do)


class ParityMismatch(ContractViolation):
    """Ranks that must agree at start-up do not."""

    exit = Exit.PARITY


class PeerLost(GenlockError):
    """Signals that the backend reports a peer to be gone."""

    exit = Exit.PEER_DIED


class Refused(GenlockError):
    """Preflight refused a chunk. Nothing was sent and nothing changed, on any rank; the run goes on.

    `field` is the path of the offending key, `value` a short rendering of what stood there, `step` the
    preflight step (1-5) that refused, `code` the kind of check: `Code.EXCEPTION` where the value itself raised.
    """

    def __init__(
        self,
        what: str,
        *,
        field: str,
        value: object,
        step: int,
        call_id: int,
        chunk_index: int,
        do: str = "",
        code: Code = Code.RULE,
    ) -> None:
        self.field, self.step, self.call_id, self.chunk_index = field, step, call_id, chunk_index
        self.code = code
        self.value = repr(value)[:80]
        super().__init__(
            f"preflight step {step} refused `{field}` = {self.value}: {what}",
            where=f"call_id={call_id} chunk_index={chunk_index}",
            do=do,
        )
