"""Finds another explanation of what a rank that is gone has left: the same dumps, byte for byte, and nobody is gone.

    python tests/support/simulated_hangs/other_explanations.py 3000 3029     # how many of the hangs have one, by form

The rank without a dump goes on instead, and waits as the others do. What it did not issue is issued, and does not end,
because of another member's device that does not start it, or of the network between its members. Where the others'
dumps are the same, they do not say that the rank is gone: a culprit in them would be a guess.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from graded import FORMS
from hangs import P2P, Hang, Key, Rank, Severed, Step, dumps, hang, key_of, run

Dumps = dict[int, dict[str, Any]]


class Explanation(NamedTuple):
    """Says whose doing it is instead."""

    what: str
    """`device` of other ranks, or `network`."""
    culprits: tuple[int, ...]
    job: Hang


def other_explanation(job: Hang, form: str) -> Explanation | None:
    """Return an explanation of the dumps of all ranks but those that are gone, in which none of these is to blame."""
    version, how = FORMS[form]
    shown = dumps(job, version, **how)  # type: ignore[arg-type]
    for other in (*_devices(job), *_networks(job)):
        left = dumps(other.job, version, **how)  # type: ignore[arg-type]
        if {rank: dump for rank, dump in left.items() if rank not in job.crashed} == shown:
            return other
    return None


def _first_undone(job: Hang) -> list[tuple[int, Step, int]]:
    """Return, of each rank that is gone, the operation that it did not issue, and which of its group it would be."""
    found = []
    for gone in job.crashed:
        rank = job.ranks[gone]
        step = rank.program[rank.stop]
        same = [op for op in rank.issued if _alike(op.step, step)]
        found.append((gone, step, len(same) + 1))
    return found


def _alike(one: Step, other: Step) -> bool:
    if (one.kind in P2P) != (other.kind in P2P) or one.group != other.group:
        return False
    return one.kind not in P2P or (one.kind, one.peer) == (other.kind, other.peer)


def _alive(job: Hang) -> list[Rank]:
    return [Rank(r.rank, list(r.program)) for r in job.ranks]


def _devices(job: Hang) -> Iterator[Explanation]:
    """Yield the jobs in which another member's device does not start what the rank that is gone did not issue."""
    choices = []
    for gone, step, number in _first_undone(job):
        members = job.groups[step.group][1] if step.kind not in P2P else (gone, step.peer)
        choices.append([(m, gone, step, number) for m in members if m not in job.crashed])
    for chosen in product(*choices):
        ranks = _alive(job)
        for member, gone, step, number in chosen:
            ranks[member].broken = min(ranks[member].broken, _step_of(ranks[member], gone, step, number))
        run(ranks, job.groups)
        culprits = tuple(sorted({member for member, *_ in chosen}))
        yield Explanation("device", culprits, Hang("device_before", culprits, ranks, job.groups))


def _step_of(rank: Rank, gone: int, step: Step, number: int) -> int:
    """Return the step at which a member issues its part of an operation of the rank that is gone."""
    mirrored = {"send": "recv", "recv": "send"}
    due = step if step.kind not in P2P else Step(mirrored[step.kind], step.group, peer=gone)
    places = [at for at, own in enumerate(rank.program) if own.kind not in ("sync", "wait") and _alike(own, due)]
    return places[number - 1] if number <= len(places) else 1 << 30


def _networks(job: Hang) -> Iterator[Explanation]:
    """Yield the job in which what the ranks that are gone did not issue starts, and never ends."""
    ranks = _alive(job)
    severed: Severed = {}
    for gone, step, number in _first_undone(job):
        if step.kind in P2P:  # nothing passes between the two any more
            severed |= dict.fromkeys(_between(job, gone, step.peer), (gone, step.peer))
        else:
            members = job.groups[step.group][1]
            # what the root sends may have come to all others
            severed[key_of(gone, step, number)] = (members[0], gone) if step.kind == "broadcast" else members
    run(ranks, job.groups, severed)
    yield Explanation("network", (), Hang("network", (), ranks, job.groups))


def _between(job: Hang, gone: int, peer: int) -> Iterator[Key]:
    """Yield the keys of what the two would send each other after what the one that is gone has issued."""
    for kind in P2P:
        for step in {s for s in job.ranks[gone].program if (s.kind, s.peer) == (kind, peer)}:
            done = sum(_alike(op.step, step) for op in job.ranks[gone].issued)
            every = sum(_alike(s, step) for s in job.ranks[gone].program)
            yield from (key_of(gone, step, number) for number in range(done + 1, every + 1))


def main() -> None:
    """Print, by form, how many hangs of ranks that are gone have another explanation."""
    first, last = map(int, sys.argv[1:3])
    for form in FORMS:
        found: Counter[str] = Counter()
        for seed in range(first, last + 1):
            job = hang(seed, "crash")
            if job is not None:
                other = other_explanation(job, form)
                found[other.what if other else "none"] += 1
                if other is None:
                    print(f"{form}, seed {seed}: {job.crashed} alone explains it: {job.broken}")
        print(form, dict(found))


if __name__ == "__main__":
    main()
