"""Reads torch's reports on who differs: desync, the DETAIL wrapper's fingerprints, and monitored barriers.

All of their ranks are ranks in the group that was checked. Reports go over several lines, between which those of
other ranks may stand, so that each line is read by itself and what came before it is kept by writer.

Left out: the watchdog's own lines (`torch_watchdog`).
"""

from __future__ import annotations

import re

from ...evidence import GroupName as Name
from ...evidence import Issued, Membership, NeverCame, Operation, PeerSilent, Source, Unlike
from .lines import Family, Line, Sink, ranks_in
from .torch_watchdog import OPERATIONS

_NEVER = re.compile(r"ranks \[([\d, ]{1,100000})\] are the lagging ranks that caused this timeout")
_JOINED = re.compile(r"\[([\d, ]{1,100000})\] joined but didn't finish collective #(\d{1,18})")
_DONE = re.compile(r"\[([\d, ]{1,100000})\] finished collective #(\d{1,18}), but didn't join collective #(\d{1,18})")
_HEAD = re.compile(r"#(\d{1,18}) (started|finished) ranks:")
_STATE = re.compile(r"\[([\d, ]{1,100000})\] (started|finished) (\w{1,40})")
_AT = re.compile(r"- \[(\d{1,7})\] Timeout at collective: (\w{1,40}), #(\d{1,18})")
_UNLIKE = re.compile(
    r"Detected mismatch between collectives on ranks\. Rank (\d{1,7}) is running (?:inconsistent )?collective: "
    r"CollectiveFingerPrint\("
)
_PEER = re.compile(r"but Rank (\d{1,7}) is running (?:inconsistent )?collective: CollectiveFingerPrint\(")
_BARRIER = re.compile(r"(?<!\w)Rank\(?s?\)? ([\d, \[\]]{1,100000}) failed to pass monitoredBarrier")
_LEFT = re.compile(r"Rank (\d{1,7}) successfully reached monitoredBarrier, but received errors while waiting")
_WRAPPED = re.compile(r"ProcessGroupWrapper: Monitored Barrier encountered error running collective")

DESYNC = Name("desync", "desync")
WRAPPER = Name("wrapper", "DETAIL")


class _Snapshot:
    """Reads a desync report of one writer, of which the heads of lists stand on lines of their own."""

    def __init__(self) -> None:
        self.number, self.edge = -1, ""
        self.lines = 0

    def feed(self, line: Line, sink: Sink) -> bool:
        """Take a line of the report."""
        self.lines += 1
        if self.lines > MAX_LINES or not (line.rest.strip().startswith(("-", "[", "#")) or not line.rest.strip()):
            return False
        head = _HEAD.search(line.text)
        if head is not None:
            self.number, self.edge = int(head[1]), head[2]
            return True
        for state in _STATE.finditer(line.text):
            if state[2] == self.edge:
                _issued(sink, line.source, state[1], self.number, state[3], self.edge == "finished")
        _desync(line, sink)
        return True

    def close(self, sink: Sink) -> None:
        """Do nothing: nothing is held back."""


MAX_LINES = 20_000


def _issued(sink: Sink, source: Source, ranks: str, number: int, op: str, finished: bool) -> None:
    kind = OPERATIONS.get(op, op.lower())
    sink.add(Issued(source, ranks_in(ranks), DESYNC, number, Operation(kind), finished))


def _desync(line: Line, sink: Sink) -> None:
    for match in _AT.finditer(line.text):
        writer = line.rank_at(match.start())
        if writer is not None:
            sink.add(Membership(line.source, DESYNC, writer, int(match[1]), 0), (DESYNC, writer, match[1]))
        _issued(sink, line.source, match[1], int(match[3]), match[2], False)
    for match in _NEVER.finditer(line.text):
        sink.add(Issued(line.source, ranks_in(match[1]), DESYNC, 0, Operation(""), True))
    for match in _JOINED.finditer(line.text):
        sink.add(Issued(line.source, ranks_in(match[1]), DESYNC, int(match[2]), Operation(""), False))
    for match in _DONE.finditer(line.text):
        sink.add(Issued(line.source, ranks_in(match[1]), DESYNC, int(match[2]), Operation(""), True))


def _begin(line: Line, sink: Sink) -> None:
    _desync(line, sink)
    if "Snapshot of ranks' latest states" in line.text or "Timeout at collective" in line.text:
        sink.open(line, _Snapshot())


def _unlike(line: Line, sink: Sink) -> None:
    for match in _UNLIKE.finditer(line.text):
        rest = line.text[match.end() : match.end() + 4000]
        other = _PEER.search(rest)
        mine = rest[: other.start()] if other else rest
        number, operation = _fingerprint(mine.split(".Collectives differ")[0])
        peer, there, theirs_number = None, None, -1
        if other is not None:
            peer = int(other[1])
            theirs_number, there = _fingerprint(rest[other.end() :].split(".Collectives differ")[0])
        writer = line.rank_at(match.start())
        fact = Unlike(line.source, int(match[1]), operation, number, peer, there, theirs_number, writer)
        sink.add(fact, (fact.rank, number, operation, peer, there))


def _fingerprint(text: str) -> tuple[int, Operation]:
    number = re.search(r"SequenceNumber=(\d{1,18})", text)
    op = re.search(r"OpType=(\w{1,40})", text)
    shape = re.search(r"TensorShape=\[([\d, \[\]]{0,2000})\]", text)
    dtype = re.search(r"TensorDtypes=([A-Za-z0-9]{1,40}(?:, ?[A-Za-z0-9]{1,40}){0,50}?)(?=,? TensorDevice|\)|$)", text)
    name = op[1] if op else ""
    said = [f"shape [{shape[1]}]"] if shape else []
    said += [dtype[1]] if dtype else []
    return (int(number[1]) if number else -1), Operation(OPERATIONS.get(name, name.lower()), detail=", ".join(said))


def _barrier(line: Line, sink: Sink) -> None:
    for match in _BARRIER.finditer(line.text):
        writer = line.rank_at(match.start())
        # it is rank 0 of the group alone that waits for the others, and some versions do not say so
        sink.add(NeverCame(line.source, 0, ranks_in(match[1]), "monitored_barrier", writer))
    if _LEFT.search(line.text):
        sink.add(PeerSilent(line.source, line.writer, "rank 0 of a monitored barrier"))
    if _WRAPPED.search(line.text):
        sink.add(PeerSilent(line.source, line.writer, "the wrapper's barrier"))


NEAR = b"ollective"
FAMILIES = (
    Family((b"Timeout at collective: ", b"To our best knowledge", b"Snapshot of ranks' latest states"), _begin, NEAR),
    Family((b"didn't finish collective #", b"but didn't join collective #"), _desync, NEAR),
    Family((b"Detected mismatch between collectives on ranks",), _unlike, NEAR),
    Family(
        (b"failed to pass monitoredBarrier", b"reached monitoredBarrier", b"Monitored Barrier encountered error"),
        _barrier,
        b"onitored",
    ),
)
