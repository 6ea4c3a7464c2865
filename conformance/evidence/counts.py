"""Judges counts that tools took from all ranks at once: launches (RAS), and what completed (Inspector).

A job that runs shows unlike launches too. Only what stood still between two answers counts, or what other evidence
shows to hang. Ranks with fewer launches than most stand still, or wait elsewhere; ranks with more have gone on. Ranks
with fewer of one kind and more of another have left the program of the others.

Left out: reading the answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...traces.evidence import Counted, Finished, GroupName
from ..diagnosis import Wanted
from .finding import Finding, Kind, Missing, ranks_text, verb
from .picture import Picture

Vector = tuple[int, ...]


def counts(picture: Picture) -> Iterator[Finding]:
    """Yield what the counts of each communicator show."""
    answers: dict[GroupName, list[Counted]] = defaultdict(list)
    for fact in picture.evidence.of(Counted):
        answers[fact.group].append(fact)
    for group, found in sorted(answers.items()):
        shown = [*_silent(found[-1]), *_launches(group, found, picture)]
        if not shown and not picture.waits:
            yield _alike(group, found)
        if found[-1].whole:
            yield from shown
        else:  # ranks of a smaller communicator are not the job's
            told = f"of the {found[-1].size} ranks of communicator {group.name}, by their numbers in it: "
            for finding in shown:
                wanted = (Missing(Wanted.RANK_NUMBERS),)
                yield replace(finding, why=told + finding.why, culprits=(), suspects=(), missing=wanted)
    yield from _completed(picture)


def _silent(last: Counted) -> Iterator[Finding]:
    """Yield the ranks that did not answer: stopped, swapped out, or dead."""
    if not last.missing:
        return
    dead = last.dead
    why = f"{ranks_text(last.missing)} {verb(last.missing, 'does', 'do')} not answer to RAS: stopped, or dead"
    if dead:
        why = f"{ranks_text(dead)} {verb(dead, 'is', 'are')} dead, as RAS has it"
    yield Finding(
        Kind.NEVER_CAME,
        why,
        suspects=dead or last.missing,
        at="in RAS",
        source=last.source,
        missing=(Missing(Wanted.SECOND_ANSWER), Missing(Wanted.LOG, last.missing)),
    )


def _launches(group: GroupName, found: Sequence[Counted], picture: Picture) -> Iterator[Finding]:
    last = found[-1]
    kinds = sorted({kind for fact in found for kind, by_rank in fact.counts.items() if by_rank})
    still = _stood_still(found) or bool(picture.waits)
    vectors = _vectors(last, kinds) or _vectors(found[0], kinds)
    classes: dict[Vector, list[int]] = defaultdict(list)
    for rank, vector in vectors.items():
        classes[vector].append(rank)
    if len(classes) < 2:
        yield from _unnamed(last, kinds)
        return
    ordered = sorted(classes.items(), key=lambda item: (-len(item[1]), item[0]))
    (usual, most), others = ordered[0], ordered[1:]
    kind = next(k for i, k in enumerate(kinds) if any(v[i] != usual[i] for v, _ in others))
    at = kinds.index(kind)
    told = "; ".join(
        f"{ranks_text(ranks)}: {vector[at]:,}" for vector, ranks in sorted(ordered[:6], key=lambda item: item[0][at])
    )
    what = kind.replace("_", " ") if kind else "collective"
    why = f"ranks of communicator {group.name} have launched unlike numbers of {what} operations ({told})"
    behind = tuple(
        sorted(r for v, ranks in ordered if any(v[i] < w for i, w in enumerate(_top(classes))) for r in ranks)
    )
    yield _verdict(why, kind, at, usual, most, others, behind, last, vectors, still)


def _alike(group: GroupName, found: Sequence[Counted]) -> Finding:
    """Return what it says that all ranks have launched alike: if they hang, then not for want of a launch."""
    last = found[-1]
    every = tuple(range(last.size)) if last.whole and last.size < MAX_LISTED else ()
    again = () if _stood_still(found) else (Missing(Wanted.SECOND_ANSWER),)
    why = (
        f"all {last.size:,} ranks of communicator {group.name} answer to RAS, and none has launched more operations "
        "than others: if the job stands still, it waits on the device, the network or the host, or in what RAS does "
        "not count (sends, receives, captured graphs)"
    )
    return Finding(Kind.COUNTS, why, source=last.source, missing=(*again, Missing(Wanted.STACK, every)))


def _verdict(
    why: str,
    kind: str,
    at: int,
    usual: Vector,
    most: Sequence[int],
    others: Sequence[tuple[Vector, list[int]]],
    behind: tuple[int, ...],
    last: Counted,
    vectors: Mapping[int, Vector],
    still: bool,
) -> Finding:
    odd = tuple(sorted(rank for _, ranks in others for rank in ranks))
    ahead = all(all(a >= b for a, b in zip(vector, usual, strict=True)) for vector, _ in others)
    majority = 2 * len(most) > last.size and len(vectors) == last.size
    number = max(vector[at] for vector in vectors.values())
    place = f"{kind or 'collective'} #{number}"
    if not still:
        suspects = (behind if ahead else odd) if majority else tuple(sorted(vectors))
        why += f"; one answer does not show that {ranks_text(behind)} {verb(behind, 'stands', 'stand')} still"
        why += f", nor that {ranks_text(odd)} did not do one too many" if ahead else ""
        missing = (Missing(Wanted.SECOND_ANSWER), Missing(Wanted.STACK, behind))
        return Finding(
            Kind.COUNTS, why, suspects=suspects, at=place, number=number, source=last.source, missing=missing
        )
    if majority and not ahead:
        return Finding(
            Kind.COUNTS,
            f"{why}, and none of them moves",
            culprits=odd,
            at=f"before {place}",
            observed=f"{vectors[odd[0]][at]:,} launched",
            expected=(f"{usual[at]:,} launched",),
            number=number,
            source=last.source,
        )
    why += "; those behind stand still, or those ahead did one operation too many"
    return Finding(
        Kind.COUNTS,
        why,
        suspects=tuple(sorted(vectors)),
        at=place,
        number=number,
        source=last.source,
        missing=(Missing(Wanted.STACK, behind),),
    )


def _top(classes: Mapping[Vector, object]) -> Vector:
    return tuple(map(max, zip(*classes, strict=True)))


def _vectors(fact: Counted, kinds: Sequence[str]) -> dict[int, Vector]:
    """Return each rank's launches by kind; a rank is left out where one of its counts is not stated."""
    told = [fact.counts[kind] for kind in kinds if fact.counts.get(kind)]
    ranks = set.intersection(*(set(by_rank) for by_rank in told)) if told else set()
    return {r: tuple(fact.counts[k].get(r, 0) if fact.counts.get(k) else 0 for k in kinds) for r in sorted(ranks)}


def _stood_still(found: Sequence[Counted]) -> bool:
    """Tell whether two answers, of different times, say the same of every rank that both name."""
    if len({fact.query for fact in found}) < 2:
        return False
    first, last = found[0], found[-1]
    common = first.counts.keys() & last.counts.keys()
    pairs = [(first.counts[k][r], last.counts[k].get(r)) for k in common for r in first.counts[k]]
    return bool(pairs) and all(one == other for one, other in pairs if other is not None)


def _unnamed(fact: Counted, kinds: Sequence[str]) -> Iterator[Finding]:
    """Yield unlike counts of ranks that the answer does not name."""
    for kind in kinds:
        classes = fact.rest.get(kind, ())
        if len(classes) > 1:
            told = "; ".join(f"{many} ranks: {last:,}" for many, last in classes)
            why = f"ranks have launched unlike numbers of {kind or 'collective'} operations ({told}), and are not named"
            yield Finding(Kind.COUNTS, why, at=kind, source=fact.source, missing=(Missing(Wanted.SECOND_ANSWER),))
            return


def _completed(picture: Picture) -> Iterator[Finding]:
    """Yield the ranks whose last completed operation is before that of the others.

    That is a lower bound, so that nobody is to blame for it.
    """
    by_kind: dict[tuple[GroupName, str], dict[int, Finished]] = defaultdict(dict)
    sizes: dict[GroupName, int] = {}
    for fact in picture.evidence.of(Finished):
        by_kind[fact.group, fact.kind][fact.rank] = fact
        sizes[fact.group] = max(sizes.get(fact.group, 0), fact.size)
    for (group, kind), by_rank in sorted(by_kind.items(), key=lambda item: (item[0][0], item[0][1])):
        top = max(fact.number for fact in by_rank.values())
        behind = tuple(sorted(r for r, fact in by_rank.items() if fact.number < top))
        whole = all(fact.whole for fact in by_rank.values()) and sizes[group] < MAX_LISTED
        absent = tuple(r for r in range(sizes[group]) if r not in by_rank) if whole else ()
        suspects = tuple(sorted({*behind, *absent}))
        if not suspects or len(suspects) == sizes[group]:
            continue
        lowest = min((fact.number for fact in by_rank.values() if fact.rank in behind), default=0)
        why = f"{kind} #{top} is the last that completed"
        why += f"; of {ranks_text(behind)} the last is #{lowest}" if behind else ""
        why += f"; of {ranks_text(absent)} there is none" if absent else ""
        yield Finding(
            Kind.COUNTS,
            f"{why} (operations that completed alone are recorded, so that this is a lower bound)",
            suspects=suspects,
            at=f"{kind} #{lowest + 1}",
            number=lowest + 1,
            source=next(iter(by_rank.values())).source,
            missing=(Missing(Wanted.STACK, suspects), Missing(Wanted.RECORDING, suspects)),
        )
        return


MAX_LISTED = 1 << 16
