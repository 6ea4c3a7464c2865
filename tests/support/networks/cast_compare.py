"""Holds every way of searching a random network of a cast against the others: `fuzz.py` draws these too.

Held against each other are an oracle that is written from the specification (`cast_oracle.py`), the reference, numpy
and numba where they take what the protocol uses, and Spin. What cannot search it must refuse it by name.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cast_oracle import CastOracle, search_cast
from casts import CastMaker
from genlock.errors import ModelError, UsageError
from genlock.model.checker.engine import check
from genlock.model.checker.parametric.prove import prove
from genlock.model.checker.reference import Result
from genlock.model.claims import Fair, Invariant, LeadsTo
from genlock.model.promela.export import export
from genlock.model.semantics.network import Network
from genlock.model.semantics.properties import GENERIC, NO_FALSE_ABORT, NO_MISPAIRING, NO_STRANDING, own_properties
from genlock.model.semantics.query import Query
from oracle import Refused, Searched

LIMIT = 300


def compare_cast(seed: int, ways: Counter[str], *, spin: bool = False) -> str | None:
    """Search one network in every way; return the first disagreement, in words.

    `ways` counts what was compared, and under `networks` the networks.
    """
    network = CastMaker(seed).network()
    try:
        found = search_cast(network, LIMIT)
    except Refused as refused:
        ways["cast: refused"] += 1
        return _refuses(network, str(refused))
    if found is None:
        return None
    ways["networks"] += 1
    properties = (*GENERIC, *own_properties(network.protocol))
    expected = check(network, properties, engine="reference", judge_all=not network.detection)
    return next(_disagreements(network, found, expected, ways, spin), None)


def _refuses(network: Network, why: str) -> str | None:
    try:
        check(network, GENERIC, engine="reference")
    except ModelError as error:
        return None if why in str(error) else f"the reference refuses: {error}; and the oracle: {why}"
    return f"the reference does not refuse: {why}"


def _disagreements(
    network: Network, found: Searched, expected: Result, ways: Counter[str], spin: bool
) -> Iterator[str]:
    holds = {v.property.name: v.holds for v in expected.verdicts}
    ways["cast: oracle"] += 1
    here = {
        "states": (len(found.states), expected.graph.counts[0]),
        "transitions": (found.transitions, expected.graph.counts[1]),
        "deadlocks": (found.deadlocks, expected.deadlocks),
        NO_FALSE_ABORT.name: (not found.false_abort, holds[NO_FALSE_ABORT.name]),
        NO_MISPAIRING.name: (not found.mispaired, holds[NO_MISPAIRING.name]),
        **({NO_STRANDING.name: (False, holds[NO_STRANDING.name])} if found.stranded else {}),
    }
    yield from (f"{what}: oracle {one}, reference {other}" for what, (one, other) in here.items() if one != other)
    yield from _claims(network, found, holds, ways)
    for engine in ("numba", "numpy"):
        yield from _engine(network, expected, engine, ways)
    for how in ("symmetry", "reduction"):
        yield from _smaller(network, holds, how, ways)
    yield from _any_size(network, ways)
    if spin:
        yield from _spin(network, holds, ways)


# ── claims ──────────────────────────────────────────────────────────────────────────────────────────────


class OracleWhole:
    """A state of the oracle's, as a predicate may ask about it."""

    def __init__(self, oracle: CastOracle, world: Any) -> None:
        self.oracle, self.world = oracle, world
        self.ranks = range(oracle.count)
        self.states = tuple("CRASHED" if r.state == "dead" else r.state for r in world.ranks)

    def state(self, rank: int) -> str:
        return self.states[rank]

    def vars(self, rank: int) -> Any:
        if self.world.ranks[rank].vars is None:
            raise ModelError("gone")
        return self.world.ranks[rank].vars

    def failed(self, rank: int) -> bool:
        return self.oracle.about(self.world, rank).failed

    def ended(self, rank: int) -> bool:
        return self.oracle.about(self.world, rank).terminal

    def held(self, shared: Any, key: Any = None) -> Any:
        return self.world.shared[self.oracle.keys.index((shared, key))]


def _claims(network: Network, found: Searched, holds: dict[str, bool], ways: Counter[str]) -> Iterator[str]:
    """Yield the claims that are judged otherwise than on the oracle's states."""
    oracle = CastOracle(network)
    for claim in network.protocol.claims:
        ways["cast: claim"] += 1
        wholes = [OracleWhole(oracle, world) for world in found.states]
        if isinstance(claim, LeadsTo):
            good = not _unfair(
                oracle, found, [claim.when(w) for w in wholes], [claim.then(w) for w in wholes], claim.fair
            )
        elif isinstance(claim, Invariant):
            good = all(map(claim.holds, wholes))
        else:
            good = any(map(claim.seen, wholes))
        if good is not holds[claim.name]:
            yield f"claim {claim.name} {'holds' if good else 'fails'} by the oracle"


def _unfair(oracle: CastOracle, found: Searched, when: Sequence[bool], then: Sequence[bool], fair: Fair) -> bool:
    """Whether some fair run from `when` stays out of `then`: a greatest fixpoint, as Emerson and Lei have it.

    A run may stay where it is, which takes no action. It is fair if, again and again, each action is taken or not owed.
    """
    index, worlds = found.states, list(found.states)
    steps: list[list[tuple[Any, int]]] = []
    for world in worlds:
        here: list[tuple[Any, int]] = [(None, index[world])]
        for move in oracle.moves(world):
            action = None if not move.owed else 0 if fair is Fair.PROGRESS else (move.rank, move.by_device)
            here.append((action, index[move.after]))
        steps.append(here)
    inside = {n for n, is_then in enumerate(then) if not is_then}
    actions = {action for here in steps for action, _ in here if action is not None}
    owed = [{action for action, _ in here} for here in steps]

    def reaching(goal: set[int], among: set[int]) -> set[int]:
        known, grew = set(goal), True
        while grew:
            fresh = {n for n in among - known if any(to in known for _, to in steps[n])}
            known, grew = known | fresh, bool(fresh)
        return known

    stays = set(inside)
    while True:
        before = set(stays)
        for one in actions:
            done = {
                n for n in stays
                if any(to in stays and (action == one or one not in owed[n]) for action, to in steps[n])
            }  # fmt: skip
            stays &= reaching(done, stays)
        if not actions:
            stays = {n for n in stays if any(to in stays for _, to in steps[n])}
        if stays == before:
            break
    return any(is_when and n in reaching(stays, inside) for n, is_when in enumerate(when) if is_when and n in inside)


# ── the other ways ──────────────────────────────────────────────────────────────────────────────────────


def _engine(network: Network, expected: Result, engine: str, ways: Counter[str]) -> Iterator[str]:
    properties = [v.property for v in expected.verdicts]
    try:
        found = check(
            network, properties, engine=engine, symmetry="off", reduction="off", judge_all=not network.detection
        )
    except UsageError as refusal:
        ways[f"cast: refused by {engine}"] += 1
        if "only the reference engine has" not in str(refusal):
            yield f"{engine} refuses: {refusal}"
        return
    ways[f"cast: {engine}"] += 1
    for what in ("states", "edges", "parent", "depth"):
        if list(getattr(found.graph, what)) != list(getattr(expected.graph, what)):
            yield f"{engine}: other {what} than the reference"
    if found.graph.taken != expected.graph.taken or found.verdicts != expected.verdicts:
        yield f"{engine}: other rows taken, or verdicts"
    if (found.deadlocks, found.worst_steps) != (expected.deadlocks, expected.worst_steps):
        yield f"{engine}: other deadlocks or steps to the end"


def _smaller(network: Network, holds: dict[str, bool], how: str, ways: Counter[str]) -> Iterator[str]:
    """Yield how a search that leaves states out is wrong, if it is not refused."""
    options: dict[str, Any] = {"symmetry": "off", "reduction": "off", how: "on"}
    try:
        found = check(network, GENERIC, judge_all=not network.detection and how == "symmetry", **options)
    except UsageError:
        ways[f"cast: {how} refused"] += 1
        return
    ways[f"cast: {how}"] += 1
    if any(v.holds is not holds[v.property.name] for v in found.verdicts):
        yield f"{how}: other verdicts"


def _any_size(network: Network, ways: Counter[str]) -> Iterator[str]:
    try:
        prove(Query("cast", network.scope, given=network.protocol))
    except (ModelError, UsageError):
        ways["cast: every world size refused"] += 1
    else:
        yield "every world size is searched of a cast, and nothing is held against it"


def _spin(network: Network, holds: dict[str, bool], ways: Counter[str]) -> Iterator[str]:
    from spin_search import agree, fair_run

    try:
        written = export(network)
    except ModelError as refusal:
        ways["cast: refused by spin"] += 1
        known = ("another slot", "at the start", "asks what is on link")
        if not any(words in str(refusal) for words in known):
            yield f"spin: {refusal}"
        return
    ways["cast: spin"] += 1
    with tempfile.TemporaryDirectory() as folder:
        try:
            agree(network, Path(folder))
            wrong = [claim for claim in written.leads_to if fair_run(written, claim, Path(folder)) is holds[claim]]
        except AssertionError as error:
            yield f"spin: {' '.join(str(error).split())[:300]}"
            return
    if wrong:
        yield f"spin: claim {wrong[0]} is judged otherwise"
