"""Genlock traces of programs without a protocol, written line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genlock.traces.format import FORMAT_VERSION, Clock, End, Event, Site, TraceHeader, encode, name_of
from genlock.traces.outcome import Code, Outcome

RANKS = 3


def failed(text: str) -> Outcome:
    """An operation that the backend could not complete."""
    return Outcome(Code.BACKEND, text=text)


def header(rank: int, run: str = "r") -> TraceHeader:
    groups = {"default_pg": tuple(range(RANKS))}
    return TraceHeader(FORMAT_VERSION, run, rank, RANKS, "", "gloo", "", "", groups, Clock(1_000_000, 0))


def operations(count: int, **last: Any) -> list[Event]:
    """`count` all_reduces, each issued and completed; `last` changes the last one's issue, whose exit is left out."""
    found: list[Event] = []
    for number in range(count):
        facts: dict[str, Any] = {"group": "default_pg", "sequence": number + 1, "op": "all_reduce", "numel": 8}
        at = len(found)
        entered = Event(at, at * 10, "", "enter", "", "", dtype="float32", site=7, **facts)
        found.append(entered)
        found.append(Event(at + 1, at * 10 + 5, "", "exit", "", "", entered=at, **facts))
    if last:
        found.pop()
        fields = {name: getattr(found[-1], name) for name in Event.__struct_fields__}
        found[-1] = Event(**{**fields, **last})
    return found


def sites_of(lines: list[Any]) -> list[Site]:
    """Site N is line N of job.py."""
    used = {line.site for line in lines if isinstance(line, Event) and line.site is not None}
    return [Site(number, f"job.py:{number}") for number in sorted(used)]


def write(folder: Path, ranks: dict[int, list[Any]], run: str = "r", **ends: End | None) -> None:
    """Each rank's lines, and that it came to its end; `rank1=None` leaves that out."""
    for rank, lines in ranks.items():
        end = ends.get(f"rank{rank}", End(len(lines), 0, "stopped", -1))
        given = [header(rank, run), *sites_of(lines), *lines, *([end] if end else [])]
        (folder / name_of(rank)).write_bytes(b"".join(map(encode, given)))


class Writer:
    """The lines of one rank, made as a recorder makes them."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def do(self, op: str, sequence: int, *, left: bool = True, failure: str | None = None, **facts: Any) -> None:
        """Issue an operation and, unless it is left open, complete it."""
        at = len(self.lines)
        known: dict[str, Any] = {"group": "default_pg", "sequence": sequence, "op": op}
        facts = {"dtype": "float32", "numel": 8, "site": 9, "asynchronous": "peer" in facts, **facts}
        self.lines.append(Event(at, at * 10, "", "enter", "", "", **known, **facts))
        if left:
            self.lines.append(
                Event(
                    at + 1,
                    at * 10 + 5,
                    "",
                    "exit",
                    "",
                    "",
                    entered=at,
                    outcome=None if failure is None else failed(failure),
                    **known,
                )
            )


def pipeline(steps: int = 3) -> dict[int, Writer]:
    """Rank 0 sends to 1, and 1 to 2, with tags that alternate; then all reduce, and the last broadcasts."""
    ranks = {rank: Writer() for rank in range(RANKS)}
    for step in range(steps):
        tagged: dict[str, Any] = {"tag": step % 2}
        number = 1 + step // 2
        for rank, own in ranks.items():
            if rank > 0:
                own.do("recv", number, peer=rank - 1, **tagged)
            if rank < RANKS - 1:
                own.do("send", number, peer=rank + 1, **tagged)
            own.do("all_reduce", 2 * step + 1)
            own.do("broadcast", 2 * step + 2, root=2)
    return ranks


def lines_of(ranks: dict[int, Writer]) -> dict[int, list[Any]]:
    return {rank: own.lines for rank, own in ranks.items()}
