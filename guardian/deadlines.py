"""Decides whose clock runs: from where each rank stands to who is to blame. No I/O, no clock of its own.

Only local work is charged. A waiting rank is never charged while one that it waits for, directly or not, does work of
its own: that one's clock runs. Three cases are left, which only rank0's guardian can see: a rank that has not left a
collective which everybody entered and somebody has left (*lagging*: it is charged like local work); ranks that wait for
each other alone (*stuck*: the collective deadline); and a rank of a program that does not beat itself, which does work
of its own while another waits (*holding up*). docs/guardian.md.
"""

from __future__ import annotations

from .status_page import EVERYONE, HAS_FAILED, NOBODY, SOMEONE, Page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNAWARE = ("operations", "aside")
"""Phases of a program that does not beat itself. Nobody knows what it does between two operations, or if it waits for
work: it is charged for that only while others wait for it, which rank0's guardian alone can see.
"""
COLLECTIVE = "collective"
STEADY = "steady"


class Failure:
    """Names what ends the run. `culprit` is a rank, or -1 where nobody can be named."""

    __slots__ = ("cause", "culprit", "what")

    def __init__(self, cause: str, culprit: int, what: str) -> None:
        self.cause, self.culprit, self.what = cause, culprit, what


def limit_of(page: Page, deadlines: Mapping[str, float]) -> float:
    """Return the seconds that local work may take where the page says that the rank is."""
    return page.deadline or deadlines.get(page.phase) or deadlines[STEADY]


def where(page: Page) -> str:
    """Return in words where a rank stands, as in `in phase ack, since call_id=3`."""
    phase = f"in phase {page.phase}" if page.phase else "before its first beat"
    return f"{phase}, since {page.commit}" if page.commit and not page.flags & HAS_FAILED else phase


class WorkClock:
    """Times one rank's own work. Only progress, a counter that grows, sets the clock back."""

    def __init__(self, rank: int, deadlines: Mapping[str, float], now: float) -> None:
        self._rank, self._deadlines = rank, deadlines
        self._counter, self._charged = -1, False
        self.since = now

    def look(self, page: Page, *, stopped: bool, paused: bool, now: float) -> Failure | None:
        """Return a failure if the deadline has passed. `stopped`: by a signal, so that the rank cannot even wait. Nor
        does a rank wait whose last write of the page has not ended.
        """
        working = page.waiting == NOBODY and page.phase not in UNAWARE
        charged = (working or stopped or page.torn) and not paused
        if page.counter != self._counter or charged != self._charged or not charged:
            self._counter, self._charged, self.since = page.counter, charged, now
            return None
        limit = limit_of(page, self._deadlines)
        if now - self.since <= limit:
            return None
        how = "is stopped" if stopped else "made no progress"
        what = f"rank{self._rank} {how} for {now - self.since:.1f} s {where(page)} (deadline {limit:g} s)"
        return Failure("deadline", self._rank, what)


class RankState:
    """Holds the state of a rank. A rank counts as working until it is `quiet`: nothing has moved lately."""

    __slots__ = ("done", "page", "paused", "quiet", "stopped")

    def __init__(self) -> None:
        self.page = Page()
        self.quiet = self.paused = self.stopped = self.done = False


def is_waiting(one: RankState) -> bool:
    return one.quiet and not one.paused and not one.done and one.page.waiting != NOBODY


def waits_for(rank: int, ranks: Sequence[RankState]) -> set[int]:
    """Return the ranks that a rank waits for: those that have not issued its collective, or the one that it names.

    Of one that waits for SOMEONE, none is known.
    """
    one = ranks[rank]
    if not is_waiting(one):
        return set()
    if one.page.waiting != EVERYONE:
        return {one.page.waiting} if 0 <= one.page.waiting < len(ranks) else set()
    return {n for n, other in enumerate(ranks) if n != rank and other.page.position < one.page.position}


def lags(rank: int, ranks: Sequence[RankState]) -> bool:
    """Return True if all have entered the collective that this rank waits in, and some have left it."""
    one = ranks[rank]
    if not is_waiting(one) or one.page.waiting != EVERYONE or not one.page.position or waits_for(rank, ranks):
        return False
    others = (other for n, other in enumerate(ranks) if n != rank)
    return any(has_left(one.page.position, other.page) for other in others)


def has_left(position: int, page: Page) -> bool:
    """Return True if a rank has left the collective of this position. One that waits for SOMEONE may be in several."""
    if page.waiting in (NOBODY, SOMEONE):
        return page.waiting == NOBODY and page.position >= position
    return page.position > position


def holds_up(rank: int, ranks: Sequence[RankState]) -> bool:
    """Return True if this rank, of a program that does not beat itself, does work of its own while another may wait
    for it.
    """
    one = ranks[rank]
    if (
        not one.quiet
        or one.paused
        or one.stopped
        or one.done
        or one.page.waiting != NOBODY
        or one.page.phase not in UNAWARE
    ):
        return False
    waiting = [n for n, other in enumerate(ranks) if n != rank and is_waiting(other)]
    return any(ranks[n].page.waiting == SOMEONE or rank in waits_for(n, ranks) for n in waiting)


def stuck(rank: int, ranks: Sequence[RankState]) -> set[int]:
    """Return this rank and all that it waits for, directly or not; empty if one of them can go on by itself.

    Where all ranks have entered a collective, each of them waits for all.
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


class RankGraph:
    """Keeps who waits for whom, over all ranks, and since when that is unchanged."""

    def __init__(self, world: int, deadlines: Mapping[str, float]) -> None:
        self.ranks = [RankState() for _ in range(world)]
        self._deadlines = deadlines
        self._since: dict[int, tuple[tuple[str, int], float]] = {}

    def overdue(self, now: float) -> Failure | None:
        """Return the failure if the deadline of a waiting rank has passed."""
        for rank, one in enumerate(self.ranks):
            kind = self._kind(rank)
            mark = (kind, one.page.counter)
            if not kind:
                self._since.pop(rank, None)
                continue
            before, since = self._since.get(rank, ((), 0.0))
            if before != mark:
                self._since[rank] = (mark, now)
                continue
            limit = self._deadlines[COLLECTIVE] if kind == "stuck" else limit_of(one.page, self._deadlines)
            if now - since > limit:
                return self._found(rank, kind, now - since)
        return None

    def _kind(self, rank: int) -> str:
        if lags(rank, self.ranks):
            return "lags"
        if stuck(rank, self.ranks):
            return "stuck"
        return "holds" if holds_up(rank, self.ranks) else ""

    def _found(self, rank: int, kind: str, seconds: float) -> Failure:
        page = self.ranks[rank].page
        if kind == "holds":
            limit = limit_of(page, self._deadlines)
            what = f"rank{rank} made no progress for {seconds:.1f} s {where(page)} (deadline {limit:g} s)"
            return Failure("deadline", rank, what)
        if kind == "lags":
            what = f"rank{rank} has not left a collective for {seconds:.1f} s that others have left"
            return Failure("deadline", rank, f"{what}, {where(page)}")
        among = sorted(stuck(rank, self.ranks))
        ended = [n for n in among if self.ranks[n].done]
        names = " and ".join(f"rank{n}" for n in among if n not in ended)
        if len(ended) == 1:
            names = " and ".join(f"rank{n}" for n in range(len(self.ranks)) if ended[0] in stuck(n, self.ranks))
            what = f"rank{ended[0]} has ended, and {names} waited for it for {seconds:.1f} s, {where(page)}"
            return Failure("deadline", ended[0], what)
        what = f"{names} waited for each other for {seconds:.1f} s, {where(page)}: network, device, or a mismatch"
        return Failure(COLLECTIVE, -1, what)
