"""Reads the lines of torch's NCCL watchdog and heartbeat monitor, torch 1.13 to 2.14.

Traps of the form, handled here alone:

- `[Rank 3] Watchdog` and `PG … Rank 3` are ranks in the group; the global rank is in `[rank3]:` (2.2 and later);
- a group is known across ranks by its GUID; `PG ID 1` is another group on another rank, and so is 2.3's `PG 1`;
- counters stand in a line of their own, after the one that has the operation;
- the line about a dump signal always speaks of the default group, whichever group timed out.

Left out: reports over several lines (`torch_desync`).
"""

from __future__ import annotations

import re

from ...evidence import Called, Complained, Counters, GroupName, Heard, Membership, Operation, Stuck, Waits
from ..places import place_of
from .lines import Family, Line, Sink

OPERATIONS = {
    "ALLREDUCE": "all_reduce",
    "ALLREDUCE_COALESCED": "all_reduce",
    "ALLREDUCE_SPARSE": "all_reduce",
    "BROADCAST": "broadcast",
    "_BROADCAST_OOP": "broadcast",
    "ALLGATHER": "all_gather",
    "_ALLGATHER_BASE": "all_gather",
    "ALLGATHER_COALESCED": "all_gather",
    "REDUCE": "reduce",
    "_REDUCE_OOP": "reduce",
    "REDUCE_SCATTER": "reduce_scatter",
    "_REDUCE_SCATTER_BASE": "reduce_scatter",
    "ALLTOALL": "all_to_all",
    "ALLTOALL_BASE": "all_to_all",
    "GATHER": "gather",
    "SCATTER": "scatter",
    "SEND": "send",
    "RECV": "recv",
    "RECVANYSOURCE": "recv",
    "BARRIER": "barrier",
    "COALESCED": "coalesced",
}
"""torch's names of operations, to the one on the wire."""

_GROUP = (
    r"\[PG (?:ID (?P<id>\d{1,9}) PG GUID (?P<guid>[^\s(\]]{1,120}) ?(?:\((?P<desc>[^)\]]{0,120})\))?"
    r"|(?P<old>[^\s(\]]{1,120})(?: ?\((?P<olddesc>[^)\]]{0,120})\))?) Rank (?P<place>\d{1,7})\]"
)
_TIMEOUT = re.compile(
    rf"(?:{_GROUP}\s*)?(?:\[Rank (?P<in_group>\d{{1,7}})\] )?Watchdog caught collective operation timeout: "
    r"WorkNCCL\(SeqNum=(?P<number>-?\d{1,18}), OpType=(?P<op>\w{1,40})(?P<sizes>[^)]{0,400}?)"
    r"Timeout\(ms\)=(?P<limit>\d{1,18})\)"
)
_STATUS = re.compile(
    rf"{_GROUP}\s+(?:Timeout at NCCL work|Exception \(either an error or timeout\) detected by watchdog at work"
    r"|failure detected by watchdog at work sequence id): (?P<number>-?\d{1,18})(?:,| PG status:) "
    r"last enqueued (?:NCCL )?work: (?P<enqueued>-?\d{1,18}), last completed (?:NCCL )?work: (?P<completed>-?\d{1,18})"
)
_SIGNAL = re.compile(
    rf"{_GROUP} Received a (?:global )?(?:dump signal|timeout signal|timeout)(?: due to a collective timeout)? from\s+"
    r"(?:(?P<local>this local rank)|(?:another )?rank(?: (?P<by>\d{1,7}))?)"
    r"(?:.{0,300}?Last enqueued NCCL work: (?P<enqueued>-?\d{1,18}), "
    r"last completed NCCL work: (?P<completed>-?\d{1,18}))?"
)
_FIRST = re.compile(rf"{_GROUP} First PG on this rank to signal dumping")
_OBSERVED = re.compile(rf"{_GROUP} Observed flight recorder dump signal from another rank")
_OPTIONS = re.compile(
    rf"(?:{_GROUP} |\[Rank \d{{1,7}}\] )?ProcessGroupNCCL initialization options:\s*"
    r"size: (?P<size>\d{1,7}), global rank: (?P<rank>\d{1,7})"
)
_REMOTE = re.compile(r"remote error detected from rank: (\d{1,7})")
_BLOCKING = re.compile(
    rf"(?:{_GROUP} |\[Rank (?P<in_group>\d{{1,7}})\] )?Work WorkNCCL\(SeqNum=(?P<number>\d{{1,18}}), "
    r"OpType=(?P<op>\w{1,40})(?P<sizes>[^)]{0,400}?)(?:Timeout\(ms\)=\d{1,18})?\) timed out in blocking wait"
)
_STUCK = re.compile(
    r"ProcessGroupNCCL's watchdog got stuck for (?P<for>\d{1,9}) ?seconds"
    r"|monitoring thread detects no heartbeat|Heartbeat monitor timed out!"
    r"|Could not acquire GIL within (?P<gil>\d{1,9}) ?ms on exit"
)
_FRAME = re.compile(r"#(\d{1,4}) (\S.{0,200}?) from (\S.{0,1000}):(\d{1,9})$")
_SIZES = re.compile(r"Numel(In|Out)=(\d{1,18})(?!\d)")
_SHAPE = re.compile(r"TensorShape=\[([\d, ]{0,200})\]")
DEFAULT = ("0", "default_pg")


def group_of(match: re.Match[str]) -> GroupName | None:
    """Return the group that a line's prefix names; None where it has none."""
    given = match.groupdict()
    if given.get("guid") is not None:
        return GroupName("torch", given["guid"], _described(given["desc"]))
    if given.get("old") is None:
        return None
    description = _described(given["olddesc"])
    # 2.3 has a number of the rank's own and no description; the number 0 is the default group's everywhere
    shared = bool(description) or given["old"] == "0" or not given["old"].isdecimal()
    return GroupName("torch", given["old"], description, shared)


def _described(text: str | None) -> str:
    return "" if text in (None, "undefined", "") else str(text)


def _rank(line: Line, match: re.Match[str]) -> int | None:
    """Return the global rank; a rank in the group is it where no other is stated, in the default group alone."""
    rank = line.rank_at(match.start())
    if rank is None and (group := group_of(match)) is not None and group.name == "0":
        rank = int(match["place"])
    return rank


def operation_of(name: str, sizes: str) -> Operation:
    """Return the operation of `OpType` and the fields behind it."""
    kind = OPERATIONS.get(name, name.lower())
    found = {which: int(number) for which, number in _SIZES.findall(sizes)}
    if found:
        return Operation(kind, found.get("In", -1), found.get("Out", -1))
    shape = _SHAPE.search(sizes)
    if shape is None:
        return Operation(kind)
    elements = 1
    for extent in re.findall(r"\d{1,18}", shape[1]):
        elements *= int(extent)
    return Operation(kind, min(elements, 1 << 62))


def _timeout(line: Line, sink: Sink) -> None:
    for match in _TIMEOUT.finditer(line.text):
        rank = _rank(line, match)
        operation = operation_of(match["op"], match["sizes"])
        number = int(match["number"])
        if rank is not None:
            sink.wait(Waits(line.source, rank, group_of(match), number, operation))
        elif group_of(match) is None:  # before 2.2 there is neither a global rank nor a group in the line
            task = line.writer.task
            given = task if task is not None else match["in_group"]
            if given is not None:
                what = "group" if task is None else "task"
                sink.assumed.append((Waits(line.source, int(given), None, number, operation), what))


def _status(line: Line, sink: Sink) -> None:
    for match in _STATUS.finditer(line.text):
        rank, group = _rank(line, match), group_of(match)
        if rank is None or group is None:
            continue
        _member(line, sink, rank, group, match)
        sink.tie(line.source, rank, group, int(match["number"]))
        sink.add(Counters(line.source, rank, group, int(match["enqueued"]), int(match["completed"])))


def _member(line: Line, sink: Sink, rank: int, group: GroupName, match: re.Match[str]) -> None:
    position = int(match["place"])
    sink.add(Membership(line.source, group, rank, position, 0), (group, rank, position))


def _signal(line: Line, sink: Sink) -> None:
    for match in _SIGNAL.finditer(line.text):
        rank, group = _rank(line, match), group_of(match)
        if match["by"] is not None:
            sink.add(Complained(line.source, int(match["by"])))
        if rank is None or group is None:
            continue
        _member(line, sink, rank, group, match)
        sink.add((Complained if match["local"] else Heard)(line.source, rank))
        if match["enqueued"] is not None:
            sink.add(Counters(line.source, rank, group, int(match["enqueued"]), int(match["completed"])))
    for pattern, kind in ((_FIRST, Complained), (_OBSERVED, Heard)):
        for match in pattern.finditer(line.text):
            rank = _rank(line, match)
            if rank is not None:
                sink.add(kind(line.source, rank))


def _options(line: Line, sink: Sink) -> None:
    for match in _OPTIONS.finditer(line.text):
        group = group_of(match)
        if group is not None:
            rank, position = int(match["rank"]), int(match["place"])
            size = int(match["size"])
            sink.add(Membership(line.source, group, rank, position, size), (group, rank, position, size))


def _stuck(line: Line, sink: Sink) -> None:
    for match in _STUCK.finditer(line.text):
        rank = line.rank_at(match.start())
        if rank is not None:
            sink.add(Stuck(line.source, rank, "interpreter lock" if match["gil"] else "watchdog"))


def _remote(line: Line, sink: Sink) -> None:
    for match in _REMOTE.finditer(line.text):
        sink.add(Complained(line.source, int(match[1])))


def _blocking(line: Line, sink: Sink) -> None:
    for match in _BLOCKING.finditer(line.text):
        rank = _rank(line, match)
        if rank is None and match["in_group"] is not None:
            rank = int(match["in_group"])
        if rank is not None:
            operation = operation_of(match["op"], match["sizes"])
            sink.wait(Waits(line.source, rank, group_of(match), int(match["number"]), operation))


class _Trace:
    """Reads the stack of an operation that failed, as torch's recorder kept it: frames from #0 on, without a gap."""

    def __init__(self, line: Line, rank: int) -> None:
        self.source, self.rank = line.source, rank
        self.frames: list[tuple[str, int, str]] = []

    def feed(self, line: Line, sink: Sink) -> bool:
        """Take a frame."""
        match = _FRAME.match(line.rest.strip())
        if match is None or int(match[1]) != len(self.frames) or len(self.frames) >= MAX_FRAMES:
            return False
        self.frames.append((match[3], int(match[4]), match[2]))
        return True

    def close(self, sink: Sink) -> None:
        """Keep the program's line."""
        if self.frames:
            place, library = place_of(self.frames)
            sink.add(Called(self.source, self.rank, place, library), self.rank)
            self.frames.clear()


def _trace(line: Line, sink: Sink) -> None:
    rank = line.rank_at(line.text.find(TRACE))
    if rank is None or not line.text.rstrip().endswith(TRACE):
        return
    trace = _Trace(line, rank)
    sink.open(line, trace)
    if line.writer.rank is not None:  # the next lines of the message say it no more
        sink.open(line._replace(writer=line.writer._replace(rank=None)), trace)


TRACE = "Stack trace of the failed collective:"
MAX_FRAMES = 1000
NEAR = b"NCCL"
FAMILIES = (
    Family((b"Watchdog caught collective operation timeout",), _timeout, NEAR),
    Family((b"last enqueued work: ", b"last enqueued NCCL work: "), _status, NEAR),
    Family((b"Received a ", b"dump signal from another rank", b"to signal dumping"), _signal, NEAR),
    Family((b"ProcessGroupNCCL initialization options",), _options, NEAR),
    Family((b"watchdog got stuck for", b"eartbeat monitor timed out"), _stuck, NEAR),
    Family((b"detects no heartbeat", b"acquire GIL within"), _stuck, NEAR),
    Family((b"remote error detected from rank: ",), _remote, NEAR),
    Family((b"timed out in blocking wait",), _blocking, NEAR),
    Family((b"Stack trace of the failed collective:",), _trace),
)
