"""Chooses the search that answers a check: the reference, or the fast one, by numba or on NumPy alone.

All answer the same.

Left out: the searches themselves, and how their answer is shown (`report.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

from ...errors import UsageError
from ..semantics.network import Network
from ..semantics.properties import Property
from ..tables import beyond
from . import claims, reference
from .fast.partial_order_reduction import Reduction, Unfit, unfit
from .limits import limit
from .reference import INTERRUPTED, Progress, Result, known_early

AUTO, REFERENCE, NUMPY, NUMBA = "auto", "reference", "numpy", "numba"
ENGINES = (AUTO, REFERENCE, NUMPY, NUMBA)
SYMMETRIES = (AUTO, "on", "off")
SMALL = 2_000
"""States up to which `auto` searches a protocol whose ranks all differ by the reference engine: before the compiled
one is loaded, or compiled when it is first used, that is done."""
REDUCED_FROM = 4
"""Ranks from which on a search is reduced by itself. Below it takes no time, and the whole graph is of use."""


def check(
    network: Network,
    properties: Sequence[Property],
    *,
    engine: str = AUTO,
    symmetry: str = AUTO,
    reduction: str = AUTO,
    judge_all: bool = False,
    progress: Progress | None = None,
    max_states: int | None = None,
    timeout: float | None = None,
) -> Result:
    """Search the whole state space and judge each property, as `reference.check` does.

    `symmetry`: states that differ only in which worker is where are searched once. `auto` does so where it is sound
    and the engine can, `on` insists. `reduction`: moves that show nothing new are left out (see
    `partial_order_reduction`); `auto` does so from REDUCED_FROM ranks on, where workers are interchangeable and the
    tables allow it. A search that Ctrl-C, a lack of memory, `max_states` or `timeout` (seconds) ends early leaves a
    result that says so (`Result.stopped`), in which only what was seen violated is judged. Raise UsageError for what
    cannot be had.
    """
    mine = claims.own(network, properties)
    if mine:
        symmetry = _every_state(mine[0], "--symmetry", symmetry)
        reduction = _every_state(mine[0], "--reduction", reduction)
    search = partial(
        _check,
        network,
        [p for p in properties if p not in mine],
        symmetry=symmetry,
        reduction=reduction,
        judge_all=judge_all,
        progress=progress,
        timeout=timeout,
    )
    found = None
    if engine == AUTO and beyond(network.protocol) is not None and "on" not in (symmetry, reduction):
        found = search(REFERENCE, max_states=SMALL if max_states is None else min(SMALL, max_states))
        if found.stopped and found.stopped != INTERRUPTED and found.graph.counts[0] >= SMALL:
            found = None
    if found is None:
        found = search(_engine(engine), max_states=max_states)
    return _with_claims(found, properties, mine)


def _every_state(prop: Property, flag: str, asked: str) -> str:
    """Return `off`, for a claim of the protocol's own is about states that none may stand for."""
    if asked == "on":
        what = f"`{prop.name}` is a claim of the protocol's own, about every state by itself"
        raise UsageError(what, where=f"{flag} on", do="leave it out, or name other properties by --property")
    return "off"


def _with_claims(found: Result, properties: Sequence[Property], mine: Sequence[Property]) -> Result:
    """Return the result with verdicts on the protocol's own claims too, in the order in which they were asked for."""
    if not mine:
        return found
    begin = time.perf_counter()
    stopped = found.stopped
    verdicts = {v.property: v for v in found.verdicts}
    judged_by = claims.Judge(found.network, found.graph, _asks(found.engine))
    try:
        if stopped:
            verdicts.update((v.property, v) for v in judged_by.known_early(mine))
        else:
            verdicts.update((p, judged_by.verdict(p)) for p in mine)
    except KeyboardInterrupt:
        stopped = f"{INTERRUPTED} while the properties were judged"
        verdicts = {p: v for p, v in verdicts.items() if not v.holds and p.kind != "sometimes"}
    judged = tuple(verdicts[p] for p in properties if p in verdicts)
    seconds = found.seconds + time.perf_counter() - begin
    return replace(found, verdicts=judged, stopped=stopped, seconds=seconds)


def _asks(engine: str) -> claims.Where | None:
    """Return how predicates are asked about what an engine has found, if not state by state."""
    if engine == REFERENCE:
        return None
    from .fast import predicates

    return predicates.where


def _check(
    network: Network,
    properties: Sequence[Property],
    chosen: str,
    *,
    symmetry: str,
    reduction: str,
    judge_all: bool,
    progress: Progress | None,
    max_states: int | None,
    timeout: float | None,
) -> Result:
    """Search, and judge the properties that any protocol may have."""
    symmetric = _symmetric(network, chosen, symmetry)
    ends = limit(max_states, timeout)
    if chosen == REFERENCE:
        if reduction == "on":
            raise unfit("the reference engine leaves nothing out")
        return reference.check(network, properties, judge_all=judge_all, progress=progress, limit=ends)
    from .fast import search

    loops, sweeps = _loops(chosen)
    begin = time.perf_counter()
    explore = partial(
        search.explore,
        network,
        loops,
        symmetric=symmetric,
        progress=progress,
        limit=ends,
        pause=None if max_states is None else max(64, min(search.PAUSE, max_states // 8)),
    )
    graph = None
    if reduction == "on" or (reduction == AUTO and symmetric and network.ranks >= REDUCED_FROM and not judge_all):
        try:
            graph = explore(reduction=Reduction(network))
        except Unfit:
            if reduction == "on":
                raise
    if graph is None:
        graph = explore()
    return _judged(network, graph, properties, sweeps, chosen, begin, judge_all=judge_all)


def _judged(
    network: Network,
    graph: Any,
    properties: Sequence[Property],
    sweeps: Any,
    engine: str,
    begin: float,
    *,
    judge_all: bool,
) -> Result:
    """Return the verdicts on what a fast engine has found."""
    from .fast.properties import Judge

    found = partial(
        Result,
        network,
        graph,
        engine=engine,
        symmetric=graph.space.symmetric,
        reduced=graph.reduced,
        search_seconds=graph.seconds,
    )
    stopped = graph.stopped
    if not stopped:
        try:
            judged = Judge(graph, sweeps, judge_all=judge_all)
            verdicts = tuple(judged.verdict(p) for p in properties)
            deadlocks, worst = judged.deadlocks, judged.worst_steps_to_end()
            return found(verdicts, deadlocks, time.perf_counter() - begin, worst_steps=worst)
        except KeyboardInterrupt:
            stopped = f"{INTERRUPTED} while the properties were judged"
    early = known_early(graph, properties)
    return found(early, 0, time.perf_counter() - begin, stopped=stopped)


def _engine(asked: str) -> str:
    """Return the engine to search with. Raise UsageError for one that is not installed."""
    if asked == NUMBA and find_spec("numba") is None:
        raise UsageError("the numba engine needs numba", where="--engine numba", do="install `genlock[fast]`")
    return fast() if asked == AUTO else asked


def fast() -> str:
    """Return the fastest engine that is available."""
    return NUMPY if find_spec("numba") is None else NUMBA


def _loops(engine: str) -> tuple[Any, Any]:
    """Return the modules that search, and that sweep over what was found."""
    if engine == NUMPY:
        from .fast import numpy_graph, numpy_search

        return numpy_search, numpy_graph
    from .fast import numba_graph, numba_search

    return numba_search, numba_graph


def _symmetric(network: Network, engine: str, asked: str) -> bool:
    from .fast.state_encoding import MAX_SORTED, indexes_a_worker

    if asked == "off":
        return False
    why = (
        "the reference engine sorts nothing"
        if engine == REFERENCE
        else f"{network.ranks} ranks are too many to sort"
        if network.ranks > MAX_SORTED + 1
        else indexes_a_worker(network)
    )
    if asked == "on" and why:
        raise UsageError(f"workers are not interchangeable: {why}", where="--symmetry on", do="leave it at auto")
    return why is None and network.ranks > 2
