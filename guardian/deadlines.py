"""Whose clock runs: from where each rank stands to who is to blame. No I/O, no clock of its own.

Only local work is charged. A rank that waits is never charged for it while somebody that it waits for, directly or
not, does work of his own: that one's clock runs. Two cases are left, which only rank0's guardian can see: a rank
that has not left a collective which everybody entered and somebody has left (*lagging*: it is charged like
local work), and ranks that wait for each other alone (*stuck*: the collective deadline). docs/guardian.md.
"""

from __future__ import annotations

from .status_page import EVERYONE, NOBODY, Page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLLECTIVE = "collective"
STEADY = "steady"


class Finding:
    """Something that ends the run. `culprit` is -1 where nobody can be named."""

    __slots__ = ("cause", "culprit", "what")

    def __init__(self, cause: str, culprit: int, what: str) -> None:
        self.cause, self.culprit, self.what = cause, culprit, what


def limit_of(page: Page, deadlines: Mapping[str, float]) -> float:
    """Seconds that local work may take where the page says that the rank is."""
    return page.deadline or deadlines.get(page.phase) or deadlines[STEADY]


def where(page: Page) -> str:
    """`in phase ack, since call_id=3`."""
    phase = f"in phase {page.phase}" if page.phase else "before its first beat"
    return f"{phase}, since {page.commit}" if page.commit else phase


class Local:
    """The clock of one rank's own work. It beats on progress: only a growing counter sets it back."""

    def __init__(self, rank: int, deadlines: Mapping[str, float], now: float) -> None:
        self._rank, self._deadlines = rank, deadlines
        self._counter, self._charged = -1, False
        self.since = now

    def look(self, page: Page, *, stopped: bool, paused: bool, now: float) -> Finding | None:
        """What comes of the page at this moment. `stopped`: by a signal, so that it cannot even wait."""
        charged = (page.waiting == NOBODY or stopped) and not paused
        if page.counter != self._counter or charged != self._charged or not charged:
            self._counter, self._charged, self.since = page.counter, charged, now
            return None
        limit = limit_of(page, self._deadlines)
        if now - self.since <= limit:
            return None
        how = "is stopped" if stopped else "made no progress"
        what = f"rank{self._rank} {how} for {now - self.since:.1f} s {where(page)} (deadline {limit:g} s)"
        return Finding("deadline", self._rank, what)


class Standing:
    """What is known of a rank. `quiet`: nothing has moved lately; until it is, the rank counts as working."""

    __slots__ = ("done", "page", "paused", "quiet")

    def __init__(self) -> None:
        self.page = Page()
        self.quiet = self.paused = self.done = False


def is_waiting(one: Standing) -> bool:
    return one.quiet and not one.paused and not one.done and one.page.waiting != NOBODY


def waits_for(rank: int, ranks: Sequence[Standing]) -> set[int]:
    """Whom a waiting rank waits for: those that have not issued its collective, or the one that it names."""
    one = ranks[rank]
    if not is_waiting(one):
        return set()
    if one.page.waiting != EVERYONE:
        return {one.page.waiting} if one.page.waiting < len(ranks) else set()
    return {n for n, other in enumerate(ranks) if n != rank and other.page.position < one.page.position}


def lags(rank: int, ranks: Sequence[Standing]) -> bool:
    """Whether everybody entered the collective that this rank waits in, and somebody has left it."""
    one = ranks[rank]
    if not is_waiting(one) or one.page.waiting != EVERYONE or not one.page.position or waits_for(rank, ranks):
        return False
    others = (other for n, other in enumerate(ranks) if n != rank)
    return any(
        other.page.position > one.page.position
        or (other.page.position == one.page.position and other.page.waiting == NOBODY)
        for other in others
    )


def stuck(rank: int, ranks: Sequence[Standing]) -> set[int]:
    """The ranks that this one waits for, directly or not, with itself; empty where one of them can go on by itself.

    Where everybody has entered a collective, each of them waits for all.
    """
    if not is_waiting(ranks[rank]):
        return set()
    found, left = {rank}, [rank]
    while left:
        n = left.pop()
        if ranks[n].done:
            continue
        if not is_waiting(ranks[n]):
            return set()
        for other in waits_for(n, ranks) or range(len(ranks)):
            if other not in found:
                found.add(other)
                left.append(other)
    return found


class Graph:
    """Who waits for whom, over all ranks, and for how long nothing has changed about it."""

    def __init__(self, world: int, deadlines: Mapping[str, float]) -> None:
        self.ranks = [Standing() for _ in range(world)]
        self._deadlines = deadlines
        self._since: dict[int, tuple[tuple[str, int], float]] = {}

    def judge(self, now: float) -> Finding | None:
        """A deadline that has passed for a waiting rank."""
        for rank, one in enumerate(self.ranks):
            kind = "lags" if lags(rank, self.ranks) else "stuck" if stuck(rank, self.ranks) else ""
            mark = (kind, one.page.counter)
            if not kind:
                self._since.pop(rank, None)
                continue
            before, since = self._since.get(rank, ((), 0.0))
            if before != mark:
                self._since[rank] = (mark, now)
            elif now - since > (limit_of(one.page, self._deadlines) if kind == "lags" else self._deadlines[COLLECTIVE]):
                return self._found(rank, kind, now - since)
        return None

    def _found(self, rank: int, kind: str, seconds: float) -> Finding:
        page = self.ranks[rank].page
        if kind == "lags":
            what = f"rank{rank} has not left a collective for {seconds:.1f} s that others have left"
            return Finding("deadline", rank, f"{what}, {where(page)}")
        among = sorted(stuck(rank, self.ranks))
        ended = [n for n in among if self.ranks[n].done]
        names = " and ".join(f"rank{n}" for n in among if n not in ended)
        if len(ended) == 1:
            names = " and ".join(f"rank{n}" for n in range(len(self.ranks)) if ended[0] in stuck(n, self.ranks))
            what = f"rank{ended[0]} has ended, and {names} waited for it for {seconds:.1f} s, {where(page)}"
            return Finding("deadline", ended[0], what)
        what = f"{names} waited for each other for {seconds:.1f} s, {where(page)}: network, device, or a mismatch"
        return Finding(COLLECTIVE, -1, what)
