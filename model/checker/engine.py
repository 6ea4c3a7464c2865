"""Which search answers a check: the reference, or the fast one, by numba or on NumPy alone. All answer the same.

Left out: the searches themselves, and how their answer is shown (`report.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from ...errors import UsageError
from ..semantics.network import Network
from ..semantics.properties import Property
from . import reference
from .fast.partial_order_reduction import Reduction, Unfit, unfit
from .reference import Progress, Result

AUTO, REFERENCE, NUMPY, NUMBA = "auto", "reference", "numpy", "numba"
ENGINES = (AUTO, REFERENCE, NUMPY, NUMBA)
SYMMETRIES = (AUTO, "on", "off")
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
) -> Result:
    """Search the whole state space and judge each property, as `reference.check` does.

    `symmetry`: states that differ only in which worker is where are searched once. `auto` does so where it is sound
    and the engine can, `on` insists. `reduction`: moves that show nothing new are left out (see `reduction.py`); `auto`
    does so from REDUCED_FROM ranks on, where workers are interchangeable and the tables allow it. A search that Ctrl-C
    or a lack of memory ends early leaves a result that says so (`Result.stopped`), in which only what was seen violated
    is judged. Raises UsageError for what cannot be had.
    """
    chosen = _engine(engine)
    symmetric = _symmetric(network, chosen, symmetry)
    if chosen == REFERENCE:
        if reduction == "on":
            raise unfit("the reference engine leaves nothing out")
        return reference.check(network, properties, judge_all=judge_all, progress=progress)
    from .fast import search
    from .fast.properties import Judge

    loops, sweeps = _loops(chosen)
    begin = time.perf_counter()
    graph = None
    if reduction == "on" or (reduction == AUTO and symmetric and network.ranks >= REDUCED_FROM and not judge_all):
        try:
            graph = search.explore(network, loops, symmetric=symmetric, reduction=Reduction(network), progress=progress)
        except Unfit:
            if reduction == "on":
                raise
    if graph is None:
        graph = search.explore(network, loops, symmetric=symmetric, progress=progress)
    if graph.stopped:
        verdicts = tuple(reference.seen_on_an_edge(graph.seen, p) for p in properties)
        verdicts = tuple(v for v in verdicts if v.property.kind == "always" and not v.holds)
        seconds = time.perf_counter() - begin
        return Result(
            network,
            graph,
            verdicts,
            0,
            seconds,
            engine=chosen,
            symmetric=symmetric,
            reduced=graph.reduced,
            stopped=graph.stopped,
        )
    judged = Judge(graph, sweeps, judge_all=judge_all)
    verdicts = tuple(judged.verdict(p) for p in properties)
    return Result(
        network,
        graph,
        verdicts,
        judged.deadlocks,
        time.perf_counter() - begin,
        worst_steps=judged.worst_steps_to_end(),
        engine=chosen,
        symmetric=symmetric,
        reduced=graph.reduced,
        search_seconds=graph.seconds,
    )


def _engine(asked: str) -> str:
    if asked == NUMBA and find_spec("numba") is None:
        raise UsageError("the numba engine needs numba", where="--engine numba", do="install `genlock[fast]`")
    return fast() if asked == AUTO else asked


def fast() -> str:
    """The fastest engine that can be had."""
    return NUMPY if find_spec("numba") is None else NUMBA


def _loops(engine: str) -> tuple[Any, Any]:
    """The modules that search, and that sweep over what was found."""
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
