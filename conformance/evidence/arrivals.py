"""Judges who did not come: to a barrier, to the store, into a communicator; and whose connection was lost.

Left out: operations that have numbers (`waits`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from ...traces import evidence as facts
from ...traces.evidence import Place
from ...traces.importers.places import place_text
from ..diagnosis import Wanted
from .finding import Finding, Kind, Missing, ranks_text, verb
from .picture import Picture, stated
from .stack_state import At, stands_at


def arrivals(picture: Picture) -> Iterator[Finding]:
    """Yield the ranks that others waited for, by barriers, the store and connections."""
    yield from _barrier(picture)
    yield from _clients(picture)
    yield from _keys(picture)
    yield from _peers(picture)


def _barrier(picture: Picture) -> Iterator[Finding]:
    found = picture.evidence.of(facts.NeverCame)
    if not found:
        return
    missing = tuple(sorted({rank for fact in found for rank in fact.ranks}))
    by = tuple(sorted({fact.by for fact in found} - set(missing)))
    waits = f"{ranks_text(by)} {verb(by, 'waits', 'wait')}"
    why = f"{ranks_text(missing)} did not come to the {found[0].where} in which {waits}"
    few = 2 * len(missing) < picture.world
    suspects = missing if few else tuple(sorted({*missing, *by}))
    if not few:
        why += "; or the others came to one barrier too many"
    yield Finding(
        Kind.NEVER_CAME,
        why,
        suspects=suspects,
        at=found[0].where,
        source=found[0].source,
        missing=(Missing(Wanted.STACK, missing), Missing(Wanted.LOG, missing)),
    )


def _clients(picture: Picture) -> Iterator[Finding]:
    """Yield what the store's count of those who came shows; who they are follows where all of them complain."""
    found = picture.evidence.of(facts.Joined)
    short_ = [f for f in found if f.came < f.of]
    if not short_:
        return
    last = max(short_, key=lambda f: f.came)
    came = stated(picture.rank_of(f) for f in short_)
    rest = tuple(rank for rank in range(last.of) if rank not in came) if last.of < 1 << 16 else ()
    why = f"{last.came} of {last.of} clients reached the store"
    if came:
        why += f"; {ranks_text(came)} {verb(came, 'waits', 'wait')} there"
    at = "init_process_group"
    # the ranks that came are those that wait; with all of them known, so are those that did not
    if len(came) == last.came and rest and len(rest) < len(came) + 1:
        yield Finding(
            Kind.NEVER_CAME,
            f"{why}: {ranks_text(rest)} never came",
            culprits=rest,
            at=f"before {at}",
            observed="nothing",
            expected=(at,),
            source=last.source,
        )
        return
    left = rest if came else ()
    yield Finding(
        Kind.NEVER_CAME,
        why,
        suspects=left,
        at=at,
        source=last.source,
        missing=(Missing(Wanted.LOG, left), Missing(Wanted.STACK, left)),
    )


def _keys(picture: Picture) -> Iterator[Finding]:
    found = picture.evidence.of(facts.KeyWait)
    if not found:
        return
    waiting = stated(picture.rank_of(f) for f in found)
    keys = sorted({f.key for f in found})
    unique = any(k.isdecimal() or "cuda" in k or "nccl" in k.lower() for k in keys)
    why = f"{ranks_text(waiting)} {verb(waiting, 'waits', 'wait')} for the key {keys[0][:80]} that another rank sets"
    suspects: tuple[int, ...] = ()
    if unique and 0 not in waiting and (keys[0].startswith(("0", "/default_pg/0")) or "default_pg" in keys[0]):
        suspects = (0,)
        why += "; rank0 of the group sets it"
    yield Finding(
        Kind.NEVER_CAME,
        why,
        suspects=suspects,
        at="the store",
        source=found[0].source,
        missing=(Missing(Wanted.LOG, suspects),),
    )


def _peers(picture: Picture) -> Iterator[Finding]:
    lost: dict[str, list[facts.PeerLost]] = defaultdict(list)
    for fact in picture.evidence.of(facts.PeerLost):
        lost[fact.address].append(fact)
    if not lost:
        return
    address = max((a for a in lost if a), key=lambda a: len(lost[a]), default="")
    found = lost[address]
    victims = stated(picture.rank_of(f) for f in found)
    there = stated(f.rank for f in picture.evidence.of(facts.Process) if f.host == address and address)
    suspects = tuple(r for r in there if r not in victims) or tuple(
        r for r in picture.absent() if address and len(victims) > 1 and r not in victims
    )
    where = f"the host at {address}" if address else "a peer"
    why = f"{ranks_text(victims)} lost the connection to {where} ({found[0].what}): that host, or the way to it"
    if not suspects:
        highest = picture.world - 1
        why += f"; no rank above {highest} is in what was given" if highest >= 0 else ""
    missing = [Missing(Wanted.LOG, suspects), Missing(Wanted.DEVICE_HEALTH, suspects or victims)]
    missing += [] if picture.world_stated else [Missing(Wanted.WORLD_SIZE)]
    yield Finding(Kind.PEER, why, suspects=suspects, at=where, source=found[0].source, missing=tuple(missing))


def stacks(picture: Picture) -> Iterator[Finding]:
    """Yield the ranks whose stack is elsewhere while those of the others wait, or may wait in the backward pass."""
    of: dict[At | None, list[int]] = defaultdict(list)
    for rank in sorted(picture.stacks):
        of[picture.at(rank)].append(rank)
    waiting, may_wait = of[At.WAITING], of[At.BACKWARD]
    elsewhere = of[At.ELSEWHERE]
    odd = tuple(elsewhere or of[At.UNSURE] or (may_wait if waiting else ()))
    if not odd and waiting:
        yield _all_wait(picture, waiting)
        return
    if not odd or not (waiting or may_wait):
        yield from _without_rank(picture)
        return
    stack = picture.stacks[odd[0]][-1]
    place, library = stands_at(stack)
    at = str(place or library or "its own code")
    others = []
    if waiting:
        others.append(f"{ranks_text(waiting)} {verb(waiting, 'waits', 'wait')} in a collective{_at(picture, waiting)}")
    if may_wait and odd[0] not in may_wait:
        others.append(f"{ranks_text(may_wait)} {verb(may_wait, 'is', 'are')} blocked in the backward pass")
    why = f"{ranks_text(odd)} {verb(odd, 'stands', 'stand')} at {at}, while {' and '.join(others)}"
    absent = tuple(picture.absent())
    sure = bool(elsewhere) and not (absent or of[At.UNSURE] or may_wait) and len(odd) < len(waiting)
    sure &= _twice(picture, (*elsewhere, *waiting))
    # whoever is blocked in the backward pass may be the one as well, unless more are there than anywhere else
    suspects = {*odd, *absent, *(may_wait if len(may_wait) <= len(waiting) else ())}
    yield Finding(
        Kind.STACKS,
        why + (", in two stacks each" if sure else ""),
        culprits=odd if sure else (),
        suspects=() if sure else tuple(sorted(suspects)),
        at=at,
        observed=stack.frames[0].function,
        expected=("the collective in which the others wait",),
        source=stack.source,
        missing=(Missing(Wanted.STACK, tuple(sorted({*odd, *absent}))),),
        place=place,
        library=library,
    )


def _all_wait(picture: Picture, waiting: Sequence[int]) -> Finding:
    """Return where ranks wait, all of them: whoever waits at another line than more than half of all is a suspect."""
    groups = _places(picture, waiting)
    told = "; ".join(
        f"{ranks_text(ranks)} {verb(ranks, 'waits', 'wait')} at {place_text(*place)}" for place, ranks in groups[:6]
    )
    most = groups[0][1]
    absent = tuple(picture.absent())
    # ranks that lost a connection at the same time may well be at different lines; after a time-out they stood there
    stood = picture.evidence.of(facts.PeerSilent) or not all(picture.stacks[rank][-1].waited for rank in waiting)
    odd = [rank for _, ranks in groups[1:] for rank in ranks] if stood and 2 * len(most) > picture.world else []
    suspects = tuple(sorted({*odd, *absent}))
    place, library = stands_at(picture.stacks[(odd or most)[0]][-1])
    return Finding(
        Kind.STACKS,
        f"all whose stack is there wait in a collective: {told}; in which one, stacks do not say",
        suspects=suspects,
        at=str(place or library or "a collective"),
        source=picture.stacks[most[0]][-1].source,
        missing=(Missing(Wanted.RECORDING, suspects or tuple(waiting)), Missing(Wanted.STACK, absent)),
        place=place,
        library=library,
    )


Places = list[tuple[tuple[Place | None, Place | None], list[int]]]


def _places(picture: Picture, ranks: Sequence[int]) -> Places:
    """Return which ranks stand at which line of the program, and the library's beside it: where most do first."""
    places: dict[tuple[Place | None, Place | None], list[int]] = defaultdict(list)
    for rank in ranks:
        places[stands_at(picture.stacks[rank][-1])].append(rank)
    return sorted(places.items(), key=lambda item: (-len(item[1]), item[1]))


def _at(picture: Picture, ranks: Sequence[int]) -> str:
    """Say at which line they wait, if it is one."""
    groups = _places(picture, ranks)
    return f" at {place_text(*groups[0][0])}" if len(groups) == 1 and any(groups[0][0]) else ""


def _twice(picture: Picture, ranks: tuple[int, ...]) -> bool:
    """Tell whether each rank's last two stacks are the same."""
    own = [picture.stacks[rank] for rank in ranks]
    return all(len(found) > 1 and found[-1].frames == found[-2].frames for found in own)


def _without_rank(picture: Picture) -> Iterator[Finding]:
    """Yield the processes whose rank nothing tells."""
    unnamed = [s for s in picture.evidence.of(facts.Stack) if picture.rank_of(s) is None]
    if not unnamed:
        return
    places = []
    for stack in unnamed[:8]:
        place, library = stands_at(stack)
        places.append(f"{stack.writer}: {place or library or stack.frames[0].function}")
    why = "stacks of processes whose rank is not stated (" + "; ".join(places) + ")"
    yield Finding(Kind.STACKS, why, at="stacks", source=unnamed[0].source, missing=(Missing(Wanted.RANK_NUMBERS),))


def monitors(picture: Picture) -> Iterator[Finding]:
    """Yield the ranks whose own monitor saw them stand still, and engines that wait for somebody."""
    stuck = picture.evidence.of(facts.Stuck)
    if stuck:
        ranks = tuple(sorted({f.rank for f in stuck} - set(picture.waits))) or tuple(sorted({f.rank for f in stuck}))
        why = f"the monitor of {ranks_text(ranks)} saw its {stuck[0].what} stand still: the host there, or its driver"
        yield Finding(
            Kind.MONITOR,
            why,
            suspects=ranks,
            at="the monitor",
            source=stuck[0].source,
            missing=(Missing(Wanted.STACK, ranks),),
        )
    hangs = picture.evidence.of(facts.Hang)
    if hangs:
        names = "; ".join(sorted({f.what for f in hangs}))
        noticed = stated(picture.rank_of(f) for f in hangs)
        by = f", noticed by {ranks_text(noticed)}" if noticed else ""
        why = f"{names}{by}; the one that says so waits itself"
        without = tuple(rank for rank in range(picture.world) if rank not in picture.stacks)
        missing = (Missing(Wanted.STACK, without),) if without or not picture.world else ()
        yield Finding(Kind.MONITOR, why, at="the engine", source=hangs[0].source, missing=missing)
