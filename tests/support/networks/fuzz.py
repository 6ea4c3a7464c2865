"""Holds every way of searching a random network against the others: `make fuzz`, and a share in the tests.

    fuzz.py --networks 20000 --first 0 [--spin 500] [--out docs/results]
    fuzz.py --break 3          takes the mend of a soundness fault out again: it must be found; without, each in turn

A network is a function of its seed: of each one with rank0, workers and slots, and one of a cast (`cast_compare.py`).
Held against each other are an oracle that reads the tables itself (`oracle.py`), the reference, numba and numpy state
for state, symmetry, reduction, the search of every world size, and Spin where installed.

Left out: TP v1.1, whose own tests do the same; ghosts; frames of ids.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from cast_compare import compare_cast
from genlock.errors import ModelError, UsageError
from genlock.model.checker import claims
from genlock.model.checker.coverage import ORDINARY
from genlock.model.checker.engine import check
from genlock.model.checker.fast import partial_order_reduction, state_encoding
from genlock.model.checker.parametric import local_steps
from genlock.model.checker.parametric.abstract_network import AbstractNetwork
from genlock.model.checker.parametric.prove import NO_DEADLOCK, stands_still
from genlock.model.checker.parametric.prove import explore as explore_any_size
from genlock.model.checker.reference import Result
from genlock.model.semantics import lts as lts_module
from genlock.model.semantics import network as network_module
from genlock.model.semantics import places, transport
from genlock.model.semantics.groups import Groups
from genlock.model.semantics.network import Network, Point
from genlock.model.semantics.properties import (
    GENERIC,
    NO_FALSE_ABORT,
    NO_MISPAIRING,
    NO_STRANDING,
)
from genlock.model.tables import By, Collective, Kind, Meet, Protocol, Put, Role, Row, Scope, Send, Slot, State, Take
from oracle import Refused, refusal_ahead, search

LIMIT = 300
"""States of a network, at most: more are skipped."""
NUMPY_EACH = 4
"""numpy, the slowest on networks so small, is asked about every so many networks."""
SLOTS = (Slot("x"), Slot("y"))
OPS = (
    Collective("tell", Kind.BROADCAST, "g", 0, "int64", "8", ""),
    Collective("twin", Kind.BROADCAST, "g", 0, "int64", "8", ""),
    Collective("back", Kind.BROADCAST, "g", 1, "int64", "8", ""),
    Collective("report", Kind.GATHER, "g", 0, "int64", "8", ""),
    Collective("sum", Kind.ALL_REDUCE, "h", None, "int64", "8", ""),
    Collective("long", Kind.ALL_REDUCE, "h", None, "int64", "9", ""),
    Collective("all", Kind.ALL_GATHER, "h", None, "int64", "8", ""),
    Collective("other", Kind.ALL_REDUCE, "i", None, "int64", "8", ""),
)
LIVE, FAILED = ("A", "B", "C"), ("P", "Q")
"""P and Q are failed states on the way to DEAD."""

# ── what rows are made of ───────────────────────────────────────────────────────────────────────────────


def same(v: int) -> int:
    return v


def nothing(v: int) -> None:
    return None


def is_zero(v: int, data: object) -> bool:
    return v == 0


def is_given(v: int, data: object) -> bool:
    return bool(data)


def is_not_given(v: int, data: object) -> bool:
    return not data


def flip(v: int, data: object) -> int:
    return 1 - v


def on(v: int | None, data: object) -> int:
    return 0 if v is None else (v + 1) % 3  # a rank that has failed may have no variables left


def as_given(v: int, data: object) -> int:
    return len(data) % 2 if isinstance(data, frozenset) else int(bool(data))


def negative(v: int, data: object) -> int:
    return -1 if v >= 0 else 0


def two(v: int, scope: Scope) -> tuple[int, int]:
    return (0, 1)


def none(v: int, scope: Scope) -> tuple[int, ...]:
    return ()


def first_worker(v: int) -> int:
    return 1


def by_variable(v: int) -> int:
    return 1 + abs(v) % 2


def past_the_end(v: int) -> int:
    return v + 1


def counter(v: int) -> int:
    return v


def offset(v: int) -> int:
    return v - 1


def huge(v: int) -> int:
    return v << 31


class Maker:
    """Draws a network from one seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.alike = self.maybe(0.5)
        """Nothing tells one worker from another, but for slots of their own."""
        self.watched = self.maybe(0.5)
        """Detection can end a rank in every state, most of the time."""
        self.ranks = self.pick(2, 3, 3, 3, 4) if self.alike else self.pick(2, 2, 3)
        self.flavour = self.pick("any", "any", "any", "any", "streams", "counters", "rising", "device")
        """What it is made of, so that what seldom meets by chance meets more often. `rising`: workers count below 0,
        and who fails counts 0. `device`: one group runs on a stream, and ranks end early."""
        self.reducible = self.flavour in ("rising", "device")
        """A rank that fails comes to its end by itself, so that the search can be reduced."""
        if self.reducible:
            self.alike = self.watched = True
            self.ranks = self.pick(2, 3, 3)
        self.slotted = self.flavour == "any" and self.maybe(0.6)
        self.mixes_streams = False
        """Its rows use several groups that run on streams, which is refused. Known once the network is made."""

    def maybe(self, chance: float) -> bool:
        return self.draw.random() < chance

    def pick(self, *choices: Any) -> Any:
        return self.draw.choice(choices)

    def network(self) -> Network:
        """Return the network. Raise UsageError where it is refused as a whole."""
        tables = [self.table(driver) for driver in (True, False)]
        start = self.pick(0, -1, -1) if self.flavour == "counters" else self.pick(0, 0, 0, -1)
        starts = (self.pick(0, 0, -1), -1) if self.flavour == "rising" else (start, start)
        streams = ("h", "i") if self.flavour == "streams" else self.pick((), ("h",), ("h",), ("h", "i"))
        streams = ("h",) if self.flavour == "device" else streams
        protocol = Protocol(
            "program", "1", role("rank0", tables[0], starts[0]), role("worker", tables[1], starts[1]),
            tuple(op for op in OPS if not (self.alike and op.root)),
            slots=SLOTS, counter=self.counter(tables), streams=streams,
            keeps=self.maybe(0.1 if self.flavour == "rising" else 0.4),
        )  # fmt: skip
        points = self.pick(None, None, None, frozenset({Point("A")}), frozenset({Point("B")}))
        kinds = {kind: points for kind in ("crash", "stall", "exception") if self.maybe(0.5)}
        faults, detection = self.pick(0, 1, 1, 2), self.watched or self.maybe(0.7)
        if self.flavour == "rising":
            kinds, faults = {"crash": None}, self.pick(1, 1, 2)
        stream = self.maybe(0.9 if self.flavour in ("streams", "device") else 0.3)
        used = {row.op.group for table in tables for row in table if row.op is not None}
        self.mixes_streams = stream and len(used.intersection(streams)) > 1
        return Network(
            protocol, Scope(self.ranks, 1, 1), faults=faults, kinds=kinds, detection=detection, stream=stream
        )

    def counter(self, tables: list[list[Row]]) -> Callable[[int], int] | None:
        if self.maybe(0.02):
            return huge
        return self.pick(*(() if _meets(tables) else (None,)), counter, counter, offset)  # type: ignore[no-any-return]

    def table(self, driver: bool) -> list[Row]:
        """Return the rows of a role that can be reached."""
        found: dict[tuple[str, str], Row] = {}
        for n in range(
            self.draw.randint(1 if driver else 2, 3) if self.flavour == "device" else self.draw.randint(2, 6)
        ):
            row = self.row(n, driver)
            found[row.key] = row
        for state in LIVE:
            if self.reducible:
                found[state, "lost"] = Row(state, "lost", self.pick("P", "DEAD"), By.DETECTION)
            elif self.maybe(0.95 if self.watched else 0.4):
                target = self.pick("P", "P", "DEAD") if self.watched else self.pick("P", "DEAD", "END")
                event = "lost" if self.maybe(0.95) else "deadline"
                found[state, event] = Row(state, event, target, By.DETECTION)
        for state, onward in (("P", ("Q", "DEAD")), ("Q", ("DEAD", "DEAD", "P"))):
            for n in range(self.pick(1, 1, 1, 2)):
                target = "DEAD" if self.reducible else self.pick(*onward)
                row = Row(state, f"abort{n}", target, **self.exit_of_a_failed_state())
                found[row.key] = row
        return reachable(found.values())

    def exit_of_a_failed_state(self) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        if self.reducible or self.maybe(0.7):
            return plain
        return self.pick(  # type: ignore[no-any-return]
            {"by": By.FAULT, "fault": "exception"}, {"by": By.VIOLATION}, {"choices": none}, {"choices": two},
            {"by": By.DETECTION}, {"effect": on}, {"by": By.ENVIRONMENT},
        )  # fmt: skip

    def row(self, n: int, driver: bool) -> Row:
        target = self.pick("A", "B", "B", "C", "C", "END", "P" if self.maybe(0.4) else "END")
        row = Row(self.pick(*LIVE), f"e{n}", target, effect=self.pick(None, None, flip, as_given, on, negative))
        if self.flavour == "device":  # a worker's host waits elsewhere than its device, which waits for who has ended
            ops = OPS[:2] if driver or n else [op for op in OPS if op.name == "sum"]
            row = replace(row, state=LIVE[n % 3], target=self.pick(*LIVE[n % 3 + 1 :], "END"))
            return replace(row, op=self.pick(*ops), send=self.pick(same, nothing))
        if self.flavour == "rising":  # rank0 waits for the workers' counters, and they put in what it has not got to
            row = replace(row, state="A" if n == 0 else self.pick("B", "C", *(() if driver else "A")), effect=None)
            row = replace(row, target=self.pick("B", "C", "END"))
            if driver and n == 0:
                return replace(row, target=self.pick("B", "C"), gate=Meet())
        return replace(row, syncs=self.maybe(0.2), **self.way(driver))

    def way(self, driver: bool) -> dict[str, Any]:
        """Return what the row waits for, and who causes it."""
        ops = [op for op in OPS if not (self.alike and op.root)]
        kind = self.pick("op", "op", "op", "slot", "slot", "slot", "meet", "fault", "choices", "plain", "violation")
        if self.flavour == "streams":
            ops, kind = [op for op in ops if op.name in ("sum", "other", "tell")], self.pick("op", "op", "op", "plain")
        if self.flavour == "counters":
            ops, kind = [op for op in ops if op.name in ("tell", "twin", "sum")], self.pick("op", "op", "meet", "plain")
        if self.flavour == "rising":
            ops, kind = [op for op in ops if op.name in ("tell", "twin")], self.pick("op", "op", "op", "plain")
        if kind == "slot" and (not self.slotted or (self.alike and driver)):
            kind = "op"
        if kind == "op":
            return {"op": self.pick(*ops), "send": self.pick(same, same, nothing)}
        if kind == "slot":
            return self.gate(driver)
        if kind == "meet":
            return {"gate": Meet()}
        if kind == "fault":
            return {"by": By.FAULT, "fault": "exception"}
        if kind == "choices":
            return {"choices": self.pick(two, two, none), "guards": self.pick((), (is_zero,), (is_given,))}
        if kind == "violation":
            return self.violation(driver)
        return {"guards": self.pick((), (is_zero,)), "by": self.pick(By.PROTOCOL, By.ENVIRONMENT)}

    def violation(self, driver: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"by": By.VIOLATION}
        if self.slotted and not (self.alike and driver) and self.maybe(0.5):
            taken = self.gate(driver)
            if isinstance(taken["gate"], Take):
                return found | taken
        return found | ({"choices": two} if self.maybe(0.2) else {})

    def gate(self, driver: bool) -> dict[str, Any]:
        worker: Callable[[int], int] | None = None
        if driver or (not self.alike and self.maybe(0.2)):
            worker = first_worker
            if self.maybe(0.2):
                worker = by_variable if self.ranks > 2 else past_the_end
        slot = self.pick(*SLOTS)
        if self.maybe(0.5):
            return {"gate": Put(slot, worker), "send": self.pick(same, same, nothing)}
        return {"gate": Take(slot, worker), "guards": self.pick((), (is_given,), (is_given,), (is_not_given,))}


def _meets(tables: list[list[Row]]) -> bool:
    return any(isinstance(row.gate, Meet) for table in tables for row in table)


def reachable(table: Any) -> list[Row]:
    """Return the rows that can be taken, if nothing else stops them."""
    reached, table = {"A"}, list(table)
    while new := {row.target for row in table if row.state in reached} - reached:
        reached |= new
    return [row for row in table if row.state in reached]


def role(name: str, table: list[Row], start: int) -> Role:
    """Return a role that begins in A; a state that no row leaves is an end."""
    names = dict.fromkeys(("A", *(name for row in table for name in (row.state, row.target))))
    leaving = {row.state for row in table}
    states = tuple(State(n, "", terminal=n not in leaving, failed=n in (*FAILED, "DEAD")) for n in names)
    return Role(name, "A", states, tuple(table), lambda finite: start)


# ── holding them against each other ─────────────────────────────────────────────────────────────────────


@dataclass
class Tally:
    """What was compared."""

    networks: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    """How many networks each way of searching was compared on."""
    disagreements: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count in what another process has compared."""
        self.networks += other.networks
        self.ways += other.ways
        self.disagreements += other.disagreements


def compare(seed: int, tally: Tally, *, spin: bool = False) -> str | None:
    """Search one network in every way; return the first disagreement, in words."""
    maker = Maker(seed)
    try:
        network = maker.network()
    except UsageError as refusal:
        tally.ways["refused"] += 1
        return None if maker.mixes_streams else f"refused: {refusal}"
    tally.networks += 1
    try:
        oracle = search(network, LIMIT)
    except Refused as refused:
        tally.ways["refused"] += 1
        return _all_refuse(network, str(refused))
    if oracle is None:
        tally.networks -= 1
        return None
    try:
        expected = check(network, GENERIC, engine="reference", judge_all=not network.detection)
    except ModelError as error:
        # the oracle asks for an index or a counter only where its row is open
        tally.ways["refused"] += 1
        seen_ahead = refusal_ahead(network, oracle)
        return _all_refuse(network, seen_ahead) if seen_ahead else f"the reference refuses: {error}"
    return next(_disagreements(network, oracle, expected, tally, seed % NUMPY_EACH == 0, spin), None)


def _all_refuse(network: Network, why: str) -> str | None:
    """Return which engine does not refuse a network, for this reason; None where all do."""
    for engine in ("reference", "numba", "numpy"):
        try:
            check(network, GENERIC, engine=engine, symmetry="off", reduction="off", judge_all=not network.detection)
        except ModelError as error:
            if why not in str(error):
                return f"{engine} refuses: {error}; and the oracle: {why}"
        else:
            return f"{engine} does not refuse: {why}"
    return None


def _disagreements(
    network: Network, oracle: Any, expected: Result, tally: Tally, numpy: bool, spin: bool
) -> Iterator[str]:
    engines = ("numba", "numpy") if numpy else ("numba",)
    holds = {v.property.name: v.holds for v in expected.verdicts}
    yield from _with_oracle(oracle, expected, holds, tally)
    yield from _engines(network, expected, engines, tally)
    yield from _symmetry(network, expected, holds, engines, tally)
    yield from _reduction(network, expected, holds, engines, tally)
    yield from _any_size(network, expected, holds, tally)
    if spin:
        yield from _spin(network, tally)


def _with_oracle(oracle: Any, expected: Result, holds: dict[str, bool], tally: Tally) -> Iterator[str]:
    tally.ways["oracle"] += 1
    here = {
        "states": (len(oracle.states), expected.graph.counts[0]),
        "transitions": (oracle.transitions, expected.graph.counts[1]),
        "deadlocks": (oracle.deadlocks, expected.deadlocks),
        NO_FALSE_ABORT.name: (not oracle.false_abort, holds[NO_FALSE_ABORT.name]),
        NO_MISPAIRING.name: (not oracle.mispaired, holds[NO_MISPAIRING.name]),
    }
    if oracle.stranded:
        here[NO_STRANDING.name] = (False, holds[NO_STRANDING.name])
    for what, (theirs, ours) in here.items():
        if theirs != ours:
            yield f"{what}: oracle {theirs}, reference {ours}"


def _engines(network: Network, expected: Result, engines: Sequence[str], tally: Tally) -> Iterator[str]:
    for engine in engines:
        tally.ways[engine] += 1
        found = check(network, GENERIC, engine=engine, symmetry="off", reduction="off", judge_all=not network.detection)
        for what in ("states", "edges", "parent", "depth"):
            if list(getattr(found.graph, what)) != list(getattr(expected.graph, what)):
                yield f"{engine}: other {what} than the reference"
        for what in ("seen", "taken"):
            if getattr(found.graph, what) != getattr(expected.graph, what):
                yield f"{engine}: other {what}"
        if found.verdicts != expected.verdicts:
            yield f"{engine}: {_told(found)}, reference: {_told(expected)}"
        if (found.deadlocks, found.worst_steps) != (expected.deadlocks, expected.worst_steps):
            yield f"{engine}: other deadlocks or steps to the end"


def _symmetry(
    network: Network, expected: Result, holds: dict[str, bool], engines: Sequence[str], tally: Tally
) -> Iterator[str]:
    for engine in engines:
        try:
            found = check(
                network, GENERIC, engine=engine, symmetry="on", reduction="off", judge_all=not network.detection
            )
        except UsageError as refusal:
            if not _tells_workers_apart(network):
                yield f"symmetry is refused: {refusal}"
            return
        if not found.symmetric:
            if network.ranks > 2:
                yield f"symmetry is left off with {network.ranks} ranks"
            return
        tally.ways[f"symmetry, {engine}"] += 1
        if found.graph.counts != expected.graph.counts or found.deadlocks != expected.deadlocks:
            yield f"symmetry: {found.graph.counts}, reference {expected.graph.counts}"
        if {v.property.name: v.holds for v in found.verdicts} != holds:
            yield f"symmetry: {_told(found)}, reference: {_told(expected)}"
        if found.graph.taken != expected.graph.taken:
            yield "symmetry: other rows taken"


def _tells_workers_apart(network: Network) -> bool:
    protocol = network.protocol
    slotted = any(isinstance(row.gate, Put | Take) for role in protocol.roles for row in role.rows)
    named = any(point.rank for points in network.kinds.values() for point in points or ())
    return slotted or named or any(op.root for op in protocol.schedule)


def _reduction(
    network: Network, expected: Result, holds: dict[str, bool], engines: Sequence[str], tally: Tally
) -> Iterator[str]:
    for engine, symmetry in (*((engine, "off") for engine in engines), ("numba", "auto")):
        try:
            found = check(network, GENERIC, engine=engine, symmetry=symmetry, reduction="on")
        except UsageError:
            return
        tally.ways[f"reduction, {engine}{', symmetry' if found.symmetric else ''}"] += 1
        if {v.property.name: v.holds for v in found.verdicts} != holds:
            yield f"reduction, symmetry {symmetry}: {_told(found)}, reference: {_told(expected)}"
        if not found.graph.taken <= expected.graph.taken:
            yield "reduction: a row that the reference does not take"


def _any_size(network: Network, expected: Result, holds: dict[str, bool], tally: Tally) -> Iterator[str]:
    wanted = (NO_FALSE_ABORT, NO_MISPAIRING, NO_DEADLOCK)
    try:
        proof = explore_any_size(AbstractNetwork(network), wanted, _few)
    except (ModelError, _TooMany):
        return
    tally.ways["any world size"] += 1
    numbers = range(len(expected.graph.states))
    stuck = any(stands_still(network, expected.graph, n) for n in numbers)
    for prop, good in ((NO_FALSE_ABORT, holds[NO_FALSE_ABORT.name]), (NO_MISPAIRING, holds[NO_MISPAIRING.name]),
                       (NO_DEADLOCK, not stuck)):  # fmt: skip
        if prop.name not in proof.seen and not good:
            yield f"any world size: {prop.name} holds, not with {network.ranks} ranks"
    if not {prop.name for prop in wanted} <= proof.seen.keys():  # then it was searched to its end
        for number, state, event in expected.graph.taken - proof.taken:
            role = network.protocol.roles[number]
            if state and role.row(state, event).by in ORDINARY and not role.by_name[state].failed:
                yield f"any world size: no row {state}.{event} of {role.name}, and with {network.ranks} ranks there is"


class _TooMany(Exception):
    """The abstraction has more states than a fuzzer has time for."""


def _few(states: int, depth: int, queue: int) -> None:
    if states > LIMIT:
        raise _TooMany


def _spin(network: Network, tally: Tally) -> Iterator[str]:
    from genlock.model.promela.export import export

    try:
        exported = export(network, "program")
    except ModelError:
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{exported.name}.pml").write_text(exported.model)
        said = subprocess.run(exported.commands, shell=True, cwd=folder, capture_output=True, text=True).stdout
    tally.ways["spin"] += 1
    counted = [line.split()[0] for line in said.splitlines() if "states, stored" in line or ", transitions" in line]
    counted += [line.split()[0] for line in said.splitlines() if line.endswith("transitions (= stored+matched)")]
    if str(exported.states) not in counted or str(exported.transitions + 1) not in counted:
        yield f"spin: {counted}, and must find {exported.expected}"


def _told(result: Result) -> str:
    return ", ".join(f"{v.property.name} {'holds' if v.holds else 'fails'}" for v in result.verdicts)


# ── taking mends out again ──────────────────────────────────────────────────────────────────────────────


def _old_checks_pass(role: Role, violation: Row, v: Any, data: Any, **given: Any) -> bool:
    beside = (r for r in role.leaving[violation.state] if r.by is By.PROTOCOL)
    return any(r.allows(v, data) for r in beside)


def _unchecked_slot(lts: Any, row: Row, gate: Put | Take, v: Any) -> tuple[Any, int]:
    return gate.slot, gate.worker(v) if gate.worker else 0


_indexes_a_worker = state_encoding.indexes_a_worker


def _ignores_own_slots(network: Network) -> str | None:
    why = _indexes_a_worker(network)
    return None if why and "of its own" in why else why


def _keeps_all(link: Any, content: Any, *, sender: bool, failed: bool) -> Any:
    return content if sender else content._replace(posted=False)


_gone_for, _touch, _end_of, _depends_on = Network._gone_for, places.touch, places.end, transport.depends_on


def _peer_has_ended(network: Network, state: Any, infos: Any, rank: int) -> tuple[int, ...]:
    inside = infos[rank].inside
    if inside is None:
        return _gone_for(network, state, infos, rank)
    peer = network.peer(rank, state.locals[rank], inside)
    return (peer,) if infos[peer].terminal else ()


def _last_first(gate: Any, content: Any, value: Any) -> Any:
    turned = content[::-1] if isinstance(gate, Take) and isinstance(content, tuple) else content
    found = _touch(gate, turned, value)
    return found._replace(after=found.after[::-1]) if found and turned is not content else found


def _taken_first(gate: Any, content: Any) -> Any:
    return None if isinstance(gate, Send) and content.messages else _end_of(gate, content)


def _everybody(op: Collective, rank: int, ranks: int) -> Sequence[int]:
    return range(ranks) if op.kind is Kind.REDUCE else _depends_on(op, rank, ranks)


BREAKS: dict[int, tuple[str, tuple[tuple[Any, str, Any], ...]]] = {
    1: (
        "reduction does not look at who causes a failed rank's way out",
        ((partial_order_reduction, "_is_always_open", lambda *_: True),),
    ),
    2: ("symmetry leaves workers' own slots unsorted", ((state_encoding, "indexes_a_worker", _ignores_own_slots),)),
    3: ("a slot's index may be out of range", ((lts_module.Lts, "_slot", _unchecked_slot),)),
    4: (
        "groups on streams are taken for independent",
        ((network_module, "refuse_unordered_streams", lambda *_: None),),
    ),
    5: (
        "violations are offered beside a Take or choices that pass",
        (
            (lts_module.Lts, "_checks", lambda *_: ()),
            (Role, "checks_pass", _old_checks_pass),
        ),
    ),
    6: (
        "reduction does not look at counters that rise by a failure",
        ((partial_order_reduction.Reduction, "_fails_unseen", lambda *_: None),),
    ),
    7: ("counters may be of any size", ((lts_module.Lts, "_bounded", lambda _, what, number, v: number),)),
    8: (
        "a step is taken at once though its host then looks away from its device",
        (
            (partial_order_reduction.Reduction, "looks_away", lambda *_: False),
            (local_steps.LocalSteps, "_looks_away", lambda *_: False),
        ),
    ),
    9: ("what a rank has sent is bound to come though it has failed", ((places, "without", _keeps_all),)),
    10: ("a rank whose receive can end may notice that its peer has ended", ((Network, "_gone_for", _peer_has_ended),)),
    11: ("an interrupted collective still counts what was put in", ((Groups, "lost", lambda _, entry: -entry),)),
    12: ("a channel gives what was put in last", ((places, "touch", _last_first),)),
    13: ("a send waits until its message is taken", ((places, "end", _taken_first),)),
    14: ("a member of a reduce waits for everybody", ((transport, "depends_on", _everybody),)),
    15: (
        "each is scattered the share of the first",
        ((transport, "_share", lambda op, value, rank, members: value[0]),),
    ),
    16: ("no run goes round for ever", ((claims, "_stays", lambda *_: False),)),
}
"""Soundness faults by number, and what takes their mends out."""
OF_CASTS = range(9, 17)
"""Those that networks of a cast show."""


def broken(number: int) -> ExitStack:
    """Return a context in which the mend of a fault is out."""
    stack = ExitStack()
    for owner, name, value in BREAKS[number][1]:
        stack.enter_context(mock.patch.object(owner, name, value))
    return stack


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────

SHARD = 50
"""Seeds that a process compares at a time."""
AT_MOST = 2000
"""Networks within which a fault must be found once its mend is out."""


def shard(first: int, spin: int) -> Tally:
    """Compare the networks of `SHARD` seeds, every `spin`th by Spin too (0: none)."""
    tally = Tally()
    for seed in range(first, first + SHARD):
        asked = spin > 0 and seed % spin == 0
        for one in (partial(compare, seed, tally, spin=asked), partial(compare_cast, seed, tally.ways, spin=asked)):
            try:
                found = one()
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            if found is not None:
                tally.disagreements.append((seed, found))
    tally.networks += tally.ways.pop("networks", 0)
    return tally


def compare_both(seed: int, tally: Tally) -> str | None:
    """Search the two networks of a seed in every way but Spin; return the first disagreement, in words."""
    return compare(seed, tally) or compare_cast(seed, tally.ways)


def compared(networks: int, first: int, spin: int, jobs: int) -> tuple[Tally, int]:
    """Compare so many networks in as many processes; return the tally, and the seed after the last."""
    tally, begin = Tally(), time.monotonic()
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        starts = count(first, SHARD)
        pending = deque(pool.submit(shard, next(starts), spin) for _ in range(2 * jobs))
        while tally.networks < networks:
            found = pending.popleft().result()
            pending.append(pool.submit(shard, next(starts), spin))
            tally.add(found)
            first += SHARD
            for seed, why in found.disagreements:
                print(f"seed {seed}: {why}", flush=True)
            if first % 1000 == 0:
                spent = time.monotonic() - begin
                print(f"{tally.networks:,} networks, {spent:.0f} s", file=sys.stderr, flush=True)
        pool.shutdown(cancel_futures=True)
    return tally, first


def found_again(fault: int) -> tuple[int, str] | None:
    """Take the mend of a fault out; return how many networks it took to find it, and how, or None where it was not."""
    tally, seed = Tally(), 0
    with broken(fault):
        while tally.networks < AT_MOST:
            try:
                found = compare_cast(seed, tally.ways) if fault in OF_CASTS else compare(seed, tally)
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            tally.networks += tally.ways.pop("networks", 0)
            if found is not None:
                return tally.networks, f"seed {seed}: {found}"
            seed += 1
    return None


def main() -> int:
    """Compare so many networks; 1 where two ways of searching disagree, or a fault is not found again."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--networks", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--spin", type=int, default=0, metavar="N", help="ask Spin about every Nth network")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--break", dest="fault", type=int, choices=BREAKS, help="only take the mend of a fault out")
    parser.add_argument("--out", type=Path, help="write a dated result into this folder")
    asked = parser.parse_args()
    if asked.fault:
        found = found_again(asked.fault)
        print(f"after {found[0]:,} networks, {found[1]}" if found else f"not found by {AT_MOST:,} networks")
        return int(found is None)
    begin = time.monotonic()
    spin = asked.spin if shutil.which("spin") else 0
    tally, until = compared(asked.networks, asked.first, spin, asked.jobs)
    spent = time.monotonic() - begin
    again = {fault: found_again(fault) for fault in BREAKS}
    text = _result(tally, asked.first, until, spent, again)
    print(text)
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        (asked.out / f"fuzz-{today}.md").write_text(text)
    return int(bool(tally.disagreements) or None in again.values())


def _result(tally: Tally, first: int, until: int, seconds: float, again: Mapping[int, tuple[int, str] | None]) -> str:
    ways = "\n".join(f"| {way} | {count:,} |" for way, count in sorted(tally.ways.items(), key=lambda w: -w[1]))
    wrong = "\n".join(f"- seed {seed}: {why}" for seed, why in tally.disagreements) or "None."
    faults = "\n".join(
        f"| {fault} | {BREAKS[fault][0]} | {found[0] if found else f'not by {AT_MOST:,}'} |"
        for fault, found in again.items()
    )
    return (
        f"# Ways of searching, held against each other\n\n"
        f"{tally.networks:,} random networks of at most {LIMIT:,} states, seeds {first} to {until - 1}, "
        f"{seconds:.0f} s (`make fuzz`).\n\n| compared with the reference | networks |\n|---|---|\n{ways}\n\n"
        f"## Disagreements\n{wrong}\n\n"
        f"## Faults put back\n"
        f"Each mend taken out (`fuzz.py --break N`), and the networks that it took to find that.\n\n"
        f"| N | fault | networks |\n|---|---|---|\n{faults}\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
