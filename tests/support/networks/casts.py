"""Draws networks of a cast: roles, groups, collectives, results, channels, cells, links, posts, interrupts, claims."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from genlock.model.claims import Claim, Fair, Invariant, LeadsTo, Sometimes
from genlock.model.semantics.network import Network, Point
from genlock.model.semantics.whole import Whole
from genlock.model.tables import (
    EMPTY,
    By,
    Cell,
    Collective,
    Fifo,
    Group,
    Kind,
    Link,
    Meet,
    Poll,
    Post,
    Protocol,
    Put,
    Receive,
    Role,
    Row,
    Scope,
    See,
    Send,
    Sent,
    Set,
    State,
    Take,
    everyone,
    is_empty,
    is_there,
)

LIVE, FAILED = ("A", "B", "C"), ("P", "Q")


class V(NamedTuple):
    """`me`: its own number. `x`: 0 to 2."""

    me: int
    x: int


def weigh(data: Any) -> int:
    """Return a small number for anything that a row may be given."""
    if isinstance(data, tuple | frozenset):
        return (
            sum(
                (n + 1 if isinstance(data, tuple) else 1) * weigh(d)
                for n, d in enumerate(sorted(data, key=repr) if isinstance(data, frozenset) else data)
            )
            % 3
        )
    return {None: 0, EMPTY: 2}.get(data, data if isinstance(data, int) else 1) % 3


# ── what rows are made of ───────────────────────────────────────────────────────────────────────────────


def sends(v: V) -> int:
    return v.x


def number(v: V) -> int:
    return v.me + 1


def nothing(v: V) -> None:
    return None


def three(v: V) -> tuple[int, ...]:
    return (v.x, 1, 2 * v.x % 3, 0)


def is_zero(v: V, data: Any) -> bool:
    return v.x == 0


def is_not_zero(v: V, data: Any) -> bool:
    return v.x != 0


def light(v: V, data: Any) -> bool:
    return weigh(data) == 0


def heavy(v: V, data: Any) -> bool:
    return weigh(data) != 0


def flip(v: V, data: Any) -> V:
    return v._replace(x=1 - v.x if v.x < 2 else 0)


def on(v: V, data: Any) -> V:
    return v._replace(x=(v.x + 1) % 3)


def keep(v: V, data: Any) -> V:
    return v._replace(x=weigh(data))


def two(v: V, scope: Scope) -> tuple[int, int]:
    return (0, 1)


def summed(values: tuple[Any, ...]) -> int:
    return sum(map(weigh, values)) % 3


def in_order(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return values


def some(values: tuple[Any, ...]) -> bool:
    return any(map(weigh, values))


def counter(v: V) -> int:
    return v.x


class CastMaker:
    """Draws a network from one seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(f"cast {seed}")
        self.ranks = self.pick(2, 2, 3, 3, 3, 4)
        self.flavour = self.pick("collectives", "groups", "channels", "cells", "links", "posts", "interrupts", "any")
        self.watched = self.maybe(0.4)
        ranks, right = self.ranks, lambda v: (v.me + 1) % self.ranks
        self.peers: list[Callable[[V], int]] = [right, lambda v: (v.me - 1) % ranks]
        self.shared: list[Fifo | Cell | Link] = [
            Fifo("one", self.pick(1, 2, 3)), Fifo("own", 1, everyone), Cell("flag", 0),
            Cell("flags", self.pick(0, 1), everyone),
            Link("p2p", self.pick(0, 0, 1)),
        ]  # fmt: skip
        self.groups, self.ops = self.teams(), list[Collective]()
        for name in [group.name for group in self.groups] + ["world"]:
            self.ops += self.collectives(name)

    def maybe(self, chance: float) -> bool:
        return self.draw.random() < chance

    def pick(self, *choices: Any) -> Any:
        return self.draw.choice(choices)

    def teams(self) -> list[Group]:
        """Return groups of some ranks."""
        ranks = self.ranks
        if self.flavour != "groups" and self.maybe(0.7):
            return []
        lists: dict[str, list[list[int]]] = {
            "pair": [[0, 1]] if ranks < 4 else [[0, 1], [3, 2]],
            "ends": [[0, ranks - 1]] if ranks < 4 else [[0, 2], [1, 3]],
        }

        def group(name: str) -> Group:
            return Group(name, lambda scope: lists[name])

        return [group(name) for name in lists]

    def collectives(self, group: str) -> list[Collective]:
        def op(name: str, kind: Kind, root: int | None = None, result: Any = None, size: str = "8") -> Collective:
            return Collective(f"{name}_{group}", kind, group, root, "int64", size, "", result)

        root = self.pick(0, 1)
        return [
            op("tell", Kind.BROADCAST, root), op("twin", Kind.BROADCAST, root), op("report", Kind.GATHER, root),
            op("told", Kind.GATHER, root, in_order, "7"), op("sum", Kind.ALL_REDUCE),
            op("total", Kind.ALL_REDUCE, None, summed, "9"),
            op("any", Kind.ALL_REDUCE, None, some, "10"), op("all", Kind.ALL_GATHER),
            op("each", Kind.ALL_GATHER, None, in_order, "11"),
            op("barrier", Kind.BARRIER), op("reduce", Kind.REDUCE, root),
            op("reduced", Kind.REDUCE, root, summed, "12"),
            op("part", Kind.REDUCE_SCATTER, None, summed), op("parts", Kind.REDUCE_SCATTER, None, None, "13"),
            op("deal", Kind.SCATTER, root), op("swap", Kind.ALL_TO_ALL),
            op("swapped", Kind.ALL_TO_ALL, None, in_order, "14"),
        ]  # fmt: skip

    def network(self) -> Network:
        """Return the network."""
        cast = self.cast()
        used = {row.op for role in cast for row in role.rows if row.op is not None}
        at = {
            row.gate.slot
            for role in cast
            for row in role.rows
            if row.gate is not None and not isinstance(row.gate, Meet)
        }
        schedule = tuple(op for op in self.ops if op in used)
        protocol = Protocol(
            "cast", "1", cast=cast, ranks=self.ranks, schedule=schedule, counter=counter, keeps=self.maybe(0.3),
            groups=tuple(group for group in self.groups if group.name in {op.group for op in schedule}),
            shared=tuple(thing for thing in self.shared if thing in at or self.maybe(0.2)),
            claims=self.claims(at) if self.maybe(0.5) else (),
        )  # fmt: skip
        points = self.pick(None, None, None, frozenset({Point("A")}), frozenset({Point("B", self.ranks - 1)}))
        kinds = {kind: points for kind in ("crash", "stall", "exception") if self.maybe(0.5)}
        return Network(
            protocol,
            Scope(self.ranks, 1, 1),
            faults=self.pick(0, 0, 1, 1, 2),
            kinds=kinds,
            detection=self.watched or self.maybe(0.6),
        )

    def cast(self) -> tuple[Role, ...]:
        """Return one role for all, or one for some ranks and another for the others, which may lie between."""
        if self.maybe(0.3):
            parts = [list(range(self.ranks))]
        else:
            first = self.pick([0], [0], [self.ranks - 1], [0, self.ranks - 1])
            rest = [rank for rank in range(self.ranks) if rank not in first]
            parts = [first, rest] if rest else [first]
        return tuple(self.role(f"role{n}", ranks) for n, ranks in enumerate(parts))

    def role(self, name: str, ranks: list[int]) -> Role:
        mine = set(ranks)
        table = self.table(mine)
        names = dict.fromkeys(("A", *(name for row in table for name in (row.state, row.target))))
        leaving = {row.state for row in table}
        states = tuple(State(n, "", terminal=n not in leaving, failed=n in (*FAILED, "DEAD")) for n in names)
        start = self.pick(0, 0, 1)

        def by_rank(rank: int, scope: Scope) -> V:
            return V(rank, start)

        def spread(rank: int, scope: Scope) -> V:
            return V(rank, rank % 2)

        return Role(name, "A", states, tuple(table), ranks=lambda scope: ranks, start_at=self.pick(by_rank, spread))

    # ── rows ────────────────────────────────────────────────────────────────────────────────────────

    def table(self, mine: set[int]) -> list[Row]:
        found: dict[tuple[str, str], Row] = {}
        for n in range(self.draw.randint(2, 6)):
            row = Row(
                self.pick(*LIVE),
                f"e{n}",
                self.pick("A", "B", "B", "C", "C", "END", "END", "P" if self.maybe(0.3) else "END"),
            )
            row = replace(row, effect=self.pick(None, flip, keep, keep, on), syncs=self.maybe(0.15), **self.way(mine))
            if isinstance(row.gate, Send | Receive) or row.by is By.FAULT:
                row = replace(row, syncs=False)
            found[row.key] = row
        for state in LIVE:
            if self.maybe(0.9 if self.watched else 0.3):
                found[state, "lost"] = Row(state, "lost", self.pick("P", "DEAD", "DEAD", "END"), By.DETECTION)
        for state, onward in (("P", ("Q", "DEAD")), ("Q", ("DEAD",))):
            found[state, "abort"] = Row(state, "abort", self.pick(*onward))
        return self.sensible(reachable(found.values()))

    def sensible(self, table: list[Row]) -> list[Row]:
        """Return the rows without what the language refuses beside each other."""
        two_ended = {row.state for row in table if isinstance(row.gate, Send | Receive)}
        unjudged = {row.state for row in table if isinstance(row.gate, Poll | See | Sent | Receive | Send)}
        table = [replace(row, interrupts=row.interrupts and row.state not in two_ended) for row in table]
        return reachable(row for row in table if row.by is not By.VIOLATION or row.state not in unjudged)

    def way(self, mine: set[int]) -> dict[str, Any]:
        """Return what the row waits for, and who causes it."""
        usual = {
            "collectives": "op", "groups": "op", "channels": "channel", "cells": "cell", "links": "link",
            "posts": "post", "interrupts": "interrupt", "any": "op",
        }[self.flavour]  # fmt: skip
        kind = usual if self.maybe(0.55) else self.pick(
            "op", "channel", "cell", "link", "post", "interrupt", "plain", "plain", "meet", "fault", "choices",
            "violation",
        )  # fmt: skip
        return getattr(self, f"by_{kind}")(mine)  # type: ignore[no-any-return]

    def by_op(self, mine: set[int], posts: bool = False) -> dict[str, Any]:
        within = [op for op in self.ops if self.has(op.group, mine) and (op.result is None or not posts)]
        kinds = self.pick(*Kind)
        op = self.pick(*([op for op in within if op.kind is kinds] or within))
        shares = op.kind in (Kind.SCATTER, Kind.ALL_TO_ALL)
        send = self.share(op) if shares else self.pick(sends, sends, nothing)
        return {"op": op, "send": send, "posts": posts}

    def has(self, group: str, mine: set[int]) -> bool:
        found = [set(one) for g in self.groups if g.name == group for one in g.members(Scope(self.ranks))]
        return group == "world" or mine <= set().union(*found)

    def share(self, op: Collective) -> Callable[[V], tuple[int, ...]]:
        lists = [list(one) for g in self.groups if g.name == op.group for one in g.members(Scope(self.ranks))]
        size = len(lists[0]) if lists else self.ranks
        return lambda v: three(v)[:size]

    def by_post(self, mine: set[int]) -> dict[str, Any]:
        return self.by_op(mine, posts=self.maybe(0.7))

    def by_channel(self, mine: set[int]) -> dict[str, Any]:
        fifo = self.pick(*(thing for thing in self.shared if isinstance(thing, Fifo)), self.shared[0])
        whose = self.pick(None, *self.peers) if fifo.keys else None
        kind = self.pick(Put, Put, Take, Take, Poll)
        if kind is Put:
            return {"gate": Put(fifo, whose), "send": self.pick(sends, number, number, nothing)}
        guards = ((), (), (light,), (heavy,)) if kind is Take else ((), (is_there,), (is_empty,), (light,))
        return {"gate": kind(fifo, whose), "guards": self.pick(*guards)}

    def by_cell(self, mine: set[int]) -> dict[str, Any]:
        cell = self.pick(*(thing for thing in self.shared if isinstance(thing, Cell)))
        whose = self.pick(None, *self.peers) if cell.keys else None
        if self.maybe(0.5):
            return {"gate": Set(cell, whose), "send": sends}
        return {"gate": See(cell, whose), "guards": self.pick((), (light,), (heavy,), (heavy,))}

    def by_link(self, mine: set[int]) -> dict[str, Any]:
        link = next(thing for thing in self.shared if isinstance(thing, Link))
        kind = self.pick(Send, Send, Receive, Receive, Receive, Post, Sent)
        found: dict[str, Any] = {"gate": kind(link, self.pick(*self.peers))}
        return found | ({"send": self.pick(sends, number)} if kind in (Send, Post) else {})

    def by_interrupt(self, mine: set[int]) -> dict[str, Any]:
        if self.maybe(0.5):
            return self.by_op(mine)
        found = self.by_cell(mine) if self.maybe(0.6) else {"by": self.pick(By.PROTOCOL, By.ENVIRONMENT)}
        return found | {"interrupts": True}

    def by_plain(self, mine: set[int]) -> dict[str, Any]:
        return {
            "guards": self.pick((), (is_zero,), (is_not_zero,)),
            "by": self.pick(By.PROTOCOL, By.PROTOCOL, By.ENVIRONMENT),
        }

    def by_meet(self, mine: set[int]) -> dict[str, Any]:
        return {"gate": Meet()}

    def by_fault(self, mine: set[int]) -> dict[str, Any]:
        return {"by": By.FAULT, "fault": "exception"}

    def by_choices(self, mine: set[int]) -> dict[str, Any]:
        return {"choices": two, "guards": self.pick((), (light,), (heavy,))}

    def by_violation(self, mine: set[int]) -> dict[str, Any]:
        found = self.by_channel(mine)
        return {"by": By.VIOLATION, **(found if isinstance(found["gate"], Take) else {})}

    # ── claims ──────────────────────────────────────────────────────────────────────────────────────

    def claims(self, at: set[Any]) -> tuple[Claim, ...]:
        """Return claims of states, variables, and what is shared."""
        made = (
            Invariant("never", "", self.negated(self.predicate(at))),
            Sometimes("once", "", self.predicate(at)),
            LeadsTo("in_the_end", "", self.predicate(at), self.predicate(at), self.pick(*Fair)),
        )
        return tuple(claim for claim in made if self.maybe(0.7))

    def negated(self, predicate: Callable[[Whole], bool]) -> Callable[[Whole], bool]:
        return lambda whole: not predicate(whole)

    def predicate(self, at: set[Any]) -> Callable[[Whole], bool]:
        rank, other, name = self.draw.randrange(self.ranks), self.draw.randrange(self.ranks), self.pick(*LIVE, "END")
        known: Iterable[Any] = [thing for thing in self.shared if thing in at and not isinstance(thing, Link)]
        thing = self.pick(None, *known)

        def is_there_now(whole: Whole) -> bool:
            if whole.state(rank) != name:
                return False
            if thing is not None:
                return bool(weigh(whole.held(thing, rank if thing.keys else None)) != 0)
            return whole.ended(other) or whole.failed(other) or bool(whole.vars(other).x != 1)

        def all_over(whole: Whole) -> bool:
            return all(whole.ended(r) for r in whole.ranks)

        def one_failed(whole: Whole) -> bool:
            return whole.failed(rank) and not whole.failed(other)

        def at_it(whole: Whole) -> bool:
            return bool(whole.states[rank] == name)

        return self.pick(is_there_now, is_there_now, at_it, at_it, all_over, one_failed)  # type: ignore[no-any-return]


def reachable(table: Iterable[Row]) -> list[Row]:
    """Return the rows that can be taken, if nothing else stops them."""
    reached, table = {"A"}, list(table)
    while new := {row.target for row in table if row.state in reached} - reached:
        reached |= new
    return [row for row in table if row.state in reached]
