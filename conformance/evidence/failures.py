"""Finds ranks that failed by themselves: an exception of their own, a crash, an end from outside.

An exception of the process group, the store or a signal tells of somebody else's failure, and so do the ends by which
torch and launchers take a waiting rank down (SIGABRT, SIGTERM). The first to end on a host is no culprit for that.

Left out: ranks that stand still (`waits`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ...traces import evidence as facts
from ..diagnosis import Wanted
from .finding import Finding, Kind, Missing, ranks_text, verb
from .picture import FATAL_SIGNALS, Picture

SIGNALS = {-9: "SIGKILL", -7: "SIGBUS", -11: "SIGSEGV", -4: "SIGILL", -8: "SIGFPE"}


def ended_before(picture: Picture) -> dict[int, str]:
    """Return the ranks that ended before anybody gave up on them, and how, as launchers and they themselves said."""
    found = {rank: f"ended by {SIGNALS[fact.code]}" for rank, fact in picture.gone.items()}
    exits = {f.rank: f for f in picture.evidence.of(facts.Exited)}
    for raised in picture.evidence.of(facts.Raised):
        rank = picture.rank_of(raised)
        if rank is not None and not raised.follows and _ended(rank, [raised], exits, picture):
            found.setdefault(rank, f"raised {raised.type}")
    return found


def failures(picture: Picture) -> Iterator[Finding]:
    """Yield the ranks that raised, crashed or were killed, with how sure that is."""
    yield from _raised(picture)
    yield from _killed(picture)
    yield from _died(picture)
    yield from _local(picture)


def _raised(picture: Picture) -> Iterator[Finding]:
    own: dict[int, list[facts.Raised]] = defaultdict(list)
    for fact in picture.evidence.of(facts.Raised):
        rank = picture.rank_of(fact)
        if rank is not None and not fact.follows:
            own[rank].append(fact)
    exits = {f.rank: f for f in picture.evidence.of(facts.Exited)}
    sure = {r: f for r, f in own.items() if _ended(r, f, exits, picture)}
    first = {rank for rank in sure if rank in exits and exits[rank].first}
    chosen = {rank: sure[rank] for rank in sorted(first or sure)}
    alike = len({(f[-1].type, f[-1].place) for f in chosen.values()}) == 1
    for rank, found in sorted(own.items()):
        if rank not in chosen:
            continue
        culprits = tuple(chosen) if alike else ()
        yield _exception(rank, found[-1], culprits, () if culprits else tuple(chosen))
        return
    if own:
        rank = min(own)
        finding = _exception(rank, own[rank][-1], (), tuple(sorted(own)))
        missing = (Missing(Wanted.LOG, tuple(sorted(own))),)
        unsure = "that it ended the process" if picture.certain(own[rank][-1]) else "which rank that process is"
        why = f"{finding.why}; {unsure} is not in the log"
        yield Finding(
            Kind.ERROR, why, suspects=finding.suspects, missing=missing, place=finding.place, source=finding.source
        )


def _ended(rank: int, raised: list[facts.Raised], exits: dict[int, facts.Exited], picture: Picture) -> bool:
    """Tell whether the exception ended the process, and the rank did not wait for others before."""
    if rank in picture.waits or not picture.certain(raised[-1]):
        return False
    died = any(f.rank == rank for f in picture.evidence.of(facts.WorkerDied))
    return raised[-1].fatal or died or (rank in exits and exits[rank].code > 0)


def _exception(rank: int, fact: facts.Raised, culprits: tuple[int, ...], suspects: tuple[int, ...]) -> Finding:
    message = f"{fact.type}: {fact.message}" if fact.message else fact.type
    where = f" at {fact.place}" if fact.place else ""
    others = [r for r in culprits or suspects if r != rank]
    also = f"; {ranks_text(others)} {'did likewise' if culprits else 'raised too'}" if others else ""
    return Finding(
        Kind.RAISED,
        f"rank{rank} raised {message}{where}{also}",
        culprits=culprits,
        suspects=suspects,
        at="where it raised",
        observed=message,
        expected=("the program's next operation",),
        source=fact.source,
        place=fact.place,
        library=fact.library,
    )


def _killed(picture: Picture) -> Iterator[Finding]:
    """Yield the ranks that a signal ended which is none of torch's or the launcher's."""
    exits = [f for f in picture.evidence.of(facts.Exited) if f.code in FATAL_SIGNALS and f.rank not in picture.waits]
    if not exits:
        exits = [f for f in picture.evidence.of(facts.Exited) if f.code > 0 and f.first and f.rank not in picture.waits]
        raised = {picture.rank_of(f) for f in picture.evidence.of(facts.Raised)}
        for fact in exits:
            if fact.rank not in raised:
                yield _table_row(fact, picture)
        return
    first = [f for f in exits if f.first] or exits
    ranks = tuple(sorted({f.rank for f in first}))
    how = SIGNALS[first[0].code]
    why = f"{ranks_text(ranks)} {verb(ranks, 'was', 'were')} ended by {how}"
    why += ", from outside (out of memory, a scheduler)" if first[0].code == -9 else ", which is a crash"
    # whoever waited before it ended may have been left by somebody else
    sure = not picture.waits and any(f.first for f in first) and len(ranks) == 1
    missing = () if sure else (Missing(Wanted.LOG, ranks),)
    yield Finding(
        Kind.KILLED,
        why,
        culprits=ranks if sure else (),
        suspects=() if sure else ranks,
        at="where it ended",
        observed=how,
        expected=("the program's next operation",),
        source=first[0].source,
        missing=missing,
    )


def _local(picture: Picture) -> Iterator[Finding]:
    """Yield what a launcher's own line says of the first process to end on its host, where no table names its rank."""
    if picture.evidence.of(facts.Exited):
        return
    for fact in picture.evidence.of(facts.LocalExit):
        rank = picture.rank_of(fact) if picture.certain(fact) else None
        who = f"rank{rank}, " if rank is not None else ""
        how = f"by {SIGNALS[fact.code]}" if fact.code in SIGNALS else f"with exit status {fact.code}"
        why = f"{who}the process with number {fact.writer.local} on its host (pid {fact.writer.pid}) ended {how}"
        why += ", the first that its launcher saw"
        why += "" if rank is not None else "; which rank that is, is told by its number on one host alone"
        suspects = () if rank is None or rank in picture.waits or fact.code in FOLLOWING else (rank,)
        missing = Missing(Wanted.RANK_NUMBERS) if rank is None else Missing(Wanted.LOG, (rank,))
        at = "where it ended"
        yield Finding(Kind.ERROR, why, suspects=suspects, at=at, source=fact.source, missing=(missing,))


FOLLOWING = (-6, -15)
"""Ends by which torch and launchers take a waiting rank down."""


def _table_row(fact: facts.Exited, picture: Picture) -> Finding:
    """Return the finding of a rank that the launcher's table alone shows to have failed."""
    from ...traces.importers.logs.tracebacks import follows

    type_name, _, message = fact.message.partition(": ")
    sure = bool(fact.message) and not follows(type_name, message or type_name) and not picture.waits
    told = f": {fact.message}" if fact.message else ""
    why = f"rank{fact.rank} ended with exit status {fact.code}, the first on its host{told}"
    return Finding(
        Kind.RAISED if sure else Kind.ERROR,
        why,
        culprits=(fact.rank,) if sure else (),
        suspects=() if sure else (fact.rank,),
        at="where it ended",
        observed=fact.message or f"exit status {fact.code}",
        expected=("the program's next operation",),
        source=fact.source,
        missing=() if sure else (Missing(Wanted.LOG, (fact.rank,)),),
    )


def _died(picture: Picture) -> Iterator[Finding]:
    """Yield the workers that an engine saw end, of which nothing else is known."""
    raised = {picture.rank_of(f) for f in picture.evidence.of(facts.Raised)}
    died = [f for f in picture.evidence.of(facts.WorkerDied) if f.rank not in raised]
    if not died:
        return
    ranks = tuple(sorted({f.rank for f in died}))
    why = f"the engine saw {ranks_text(ranks)} end ({died[0].what})"
    sure = len(ranks) == 1 and not picture.waits
    yield Finding(
        Kind.KILLED,
        why,
        culprits=ranks if sure else (),
        suspects=() if sure else ranks,
        at="where it ended",
        observed=died[0].what,
        expected=("an answer",),
        source=died[0].source,
        missing=(Missing(Wanted.LOG, ranks),),
    )
