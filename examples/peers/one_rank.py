"""Systems that other checkers have counted, each as the variables of one rank: `README.md` has the numbers.

    genlock check examples/peers/one_rank.py:two_phase_commit --param managers=5

Left out: what Genlock is for. There is one rank that moves, and nobody whom it could leave waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

from genlock.model.tables import By, Protocol, Role, Row, Scope, State

System = tuple[Iterable[Any], Callable[[Any], Iterable[Any]], Callable[[Any], bool]]
"""The initial states, the next states of one, and the invariant."""


def one_rank(name: str, system: System) -> Protocol:
    """Return a protocol whose rank0 is the system, and whose worker has ended."""
    initial, successors, invariant = system

    def first(v: Any, scope: Scope) -> list[Any]:
        return list(initial)

    def after(v: Any, scope: Scope) -> list[Any]:
        return list(successors(v))

    def become(v: Any, chosen: Any) -> Any:
        return chosen

    def is_broken(v: Any, data: object) -> bool:
        """the invariant is broken"""
        return not invariant(v)

    def is_over(v: Any, data: object) -> bool:
        """nothing else can happen any more"""
        return all(after == v for after in successors(v))

    done, bad = State("DONE", "", terminal=True), State("BAD", "", terminal=True, failed=True)
    states = (State("INIT", ""), State("RUNS", ""), done, bad)
    rows = (
        Row("INIT", "begin", "RUNS", By.ENVIRONMENT, choices=first, effect=become),
        Row("RUNS", "next", "RUNS", By.ENVIRONMENT, choices=after, effect=become),
        Row("RUNS", "stops", "DONE", guards=(is_over,)),
        Row("RUNS", "breaks", "BAD", guards=(is_broken,)),
    )
    idle = Role("worker", "END", (State("END", "", terminal=True),), (), lambda finite: None)
    return Protocol(
        name,
        "1",
        Role("rank0", "INIT", states, rows, lambda finite: None),
        idle,
        (),
        ranks=2,
        may_be_unreached=("RUNS.stops", "RUNS.breaks"),
    )


def put(items: tuple[Any, ...], at: int, item: Any) -> tuple[Any, ...]:
    """Return the items with one replaced."""
    return (*items[:at], item, *items[at + 1 :])


def die_hard() -> Protocol:
    """Two jugs, of 5 and 3 gallons."""

    def after(v: tuple[int, int]) -> Iterator[tuple[int, int]]:
        big, small = v
        yield from ((5, small), (big, 3), (0, small), (big, 0))
        poured = min(small, 5 - big)
        yield (big + poured, small - poured)
        poured = min(big, 3 - small)
        yield (big - poured, small + poured)

    return one_rank("die_hard", ([(0, 0)], after, lambda v: True))


def peterson() -> Protocol:
    """Peterson's mutual exclusion of two processes."""

    def after(v: Any) -> Iterator[Any]:
        at, wants, turn = v
        for me, other in ((0, 1), (1, 0)):
            if at[me] == 0:
                yield put(at, me, 1), wants, turn
            elif at[me] == 1:
                yield put(at, me, 2), put(wants, me, True), turn
            elif at[me] == 2:
                yield put(at, me, 3), wants, other
            elif at[me] == 3 and (not wants[other] or turn == me):
                yield put(at, me, 4), wants, turn
            elif at[me] == 4:
                yield put(at, me, 5), wants, turn
            elif at[me] == 5:
                yield put(at, me, 0), put(wants, me, False), turn

    start = ((0, 0), (False, False), 0)
    return one_rank("peterson", ([start], after, lambda v: not all(pc in (4, 5) for pc in v[0])))


WORKING, PREPARED, COMMITTED, ABORTED = range(4)


def two_phase_commit(managers: int = 3) -> Protocol:
    """A transaction manager, and resource managers that prepare, commit or abort."""

    def after(v: Any) -> Iterator[Any]:
        rms, tm, heard, sent, commit, abort = v
        if tm == "init":
            yield rms, "aborted", heard, sent, commit, True
            if all(heard):
                yield rms, "committed", heard, sent, True, abort
        for r in range(managers):
            if tm == "init" and sent[r]:
                yield rms, tm, put(heard, r, True), sent, commit, abort
            if rms[r] == WORKING:
                yield put(rms, r, PREPARED), tm, heard, put(sent, r, True), commit, abort
                yield put(rms, r, ABORTED), tm, heard, sent, commit, abort
            if commit:
                yield put(rms, r, COMMITTED), tm, heard, sent, commit, abort
            if abort:
                yield put(rms, r, ABORTED), tm, heard, sent, commit, abort

    nobody = (False,) * managers
    start = ((WORKING,) * managers, "init", nobody, nobody, False, False)
    return one_rank("two_phase_commit", ([start], after, lambda v: not {COMMITTED, ABORTED} <= set(v[0])))


def transaction_commit(managers: int = 3) -> Protocol:
    """Builds what two-phase commit refines: resource managers alone."""

    def after(v: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        for r in range(managers):
            if v[r] == WORKING:
                yield put(v, r, PREPARED)
            if v[r] == PREPARED and set(v) <= {PREPARED, COMMITTED}:
                yield put(v, r, COMMITTED)
            if v[r] in (WORKING, PREPARED) and COMMITTED not in v:
                yield put(v, r, ABORTED)

    start = (WORKING,) * managers
    return one_rank("transaction_commit", ([start], after, lambda v: not {COMMITTED, ABORTED} <= set(v)))


def ewd840(nodes: int = 3) -> Protocol:
    """Dijkstra's termination detection in a ring: a token goes round, and is black where somebody was active."""

    def after(v: Any) -> Iterator[Any]:
        active, black, at, black_token = v
        if at == 0 and (black_token or black[0]):
            yield active, put(black, 0, False), nodes - 1, False
        for i in range(1, nodes):
            if at == i and (not active[i] or black[i] or black_token):
                yield active, put(black, i, False), i - 1, black[i] or black_token
        for i in range(nodes):
            if active[i]:
                yield put(active, i, False), black, at, black_token
                for j in range(nodes):
                    if j != i:
                        yield put(active, j, True), put(black, i, True) if j > i else black, at, black_token

    def sound(v: Any) -> bool:
        active, black, at, black_token = v
        detected = at == 0 and not black_token and not black[0] and not active[0]
        return not detected or not any(active)

    either = (False, True)
    start = (
        (a, c, t, True)
        for a in product(either, repeat=nodes)
        for c in product(either, repeat=nodes)
        for t in range(nodes)
    )
    return one_rank("ewd840", (list(start), after, sound))


def chang_roberts(nodes: int = 3) -> Protocol:
    """Leader election in a ring: the least id among those that stand for election wins."""

    def sends(boxes: Any, to: int, what: int) -> Any:
        return put(boxes, to, boxes[to] | {what})

    def after(v: Any) -> Iterator[Any]:
        boxes, begun, stands, status = v
        for n in range(nodes):
            me, onward = n + 1, (n + 1) % nodes
            if not begun[n]:
                yield sends(boxes, onward, me) if stands[n] else boxes, put(begun, n, True), stands, status
                continue
            for given in boxes[n]:
                rest = put(boxes, n, boxes[n] - {given})
                if status[n] == "lost":
                    yield sends(rest, onward, given), begun, stands, status
                elif given < me:
                    yield sends(rest, onward, given), begun, stands, put(status, n, "lost")
                else:
                    yield rest, begun, stands, put(status, n, "won") if given == me else status

    def sound(v: Any) -> bool:
        _, _, stands, status = v
        return all(
            status[n] != "won"
            or (stands[n] and all(status[k] == "lost" and (not stands[k] or k > n) for k in range(nodes) if k != n))
            for n in range(nodes)
        )

    empty: frozenset[int] = frozenset()
    start = (
        ((empty,) * nodes, (False,) * nodes, stands, tuple("cand" if s else "lost" for s in stands))
        for stands in product((False, True), repeat=nodes)
    )
    return one_rank("chang_roberts", (list(start), after, sound))


def alternating_bit(longest: int = 2) -> Protocol:
    """Messages and acknowledgements over queues that lose what is in them; two values are sent."""

    def without(queue: Any, at: int) -> Any:
        return (*queue[:at], *queue[at + 1 :])

    def moves(v: Any) -> Iterator[Any]:
        messages, acks, bit, acked, seen, sent, received = v
        if bit == acked:
            for value in (0, 1):
                yield (*messages, (1 - bit, value)), acks, 1 - bit, acked, seen, value, received
        else:
            yield (*messages, (bit, sent)), acks, bit, acked, seen, sent, received
        if messages:
            yield messages[1:], acks, bit, acked, messages[0][0], sent, messages[0][1]
        yield messages, (*acks, seen), bit, acked, seen, sent, received
        if acks:
            yield messages, acks[1:], bit, acks[0], seen, sent, received
        for at in range(len(messages)):
            yield without(messages, at), acks, bit, acked, seen, sent, received
        for at in range(len(acks)):
            yield messages, without(acks, at), bit, acked, seen, sent, received

    def after(v: Any) -> Iterator[Any]:
        return (x for x in moves(v) if len(x[0]) <= longest and len(x[1]) <= longest)

    start = (((), (), bit, bit, bit, sent, received) for bit in (0, 1) for sent in (0, 1) for received in (0, 1))
    return one_rank("alternating_bit", (list(start), after, lambda v: True))


def readers_writers(actors: int = 3) -> Protocol:
    """Who waits to read or to write is served in order; many read, one writes."""

    def after(v: Any) -> Iterator[Any]:
        reading, writing, queue = v
        for actor in range(actors):
            for kind in ("read", "write"):
                if (kind, actor) not in queue:
                    yield reading, writing, (*queue, (kind, actor))
        if queue and not writing:
            kind, actor = queue[0]
            if kind == "read":
                yield reading | {actor}, writing, queue[1:]
            elif not reading:
                yield reading, writing | {actor}, queue[1:]
        for actor in reading | writing:
            if actor in reading:
                yield reading - {actor}, writing, queue
            else:
                yield reading, writing - {actor}, queue

    nobody: frozenset[int] = frozenset()
    return one_rank(
        "readers_writers", ([(nobody, nobody, ())], after, lambda v: not (v[0] and v[1]) and len(v[1]) <= 1)
    )
