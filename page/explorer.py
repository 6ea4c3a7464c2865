"""Works out beforehand every state that a hand can walk to from a run, so that the page asks no program.

Left out: verdicts. The checker says what a state means for a property; this module says what may happen next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from ..model.semantics.lts import Interner
from ..model.semantics.network import Move, Network, NetworkState
from ..model.semantics.run import Counterexample
from ..model.tables import By

BOUND = 20_000
"""States that a page carries unless it is asked for more; some 50 bytes each."""


Taken = tuple[int, str, str, str]
"""A move that was taken: rank, event, edge (as in `Move`), and the rank's state afterwards."""


def along(network: Network, taken: Iterable[Taken | None]) -> list[NetworkState]:
    """Return the states of a run, the initial one first, as far as the network has its moves. None: nothing moves."""
    layers: list[dict[NetworkState, NetworkState | None]] = [{network.initial(): None}]
    for wanted in taken:
        ahead: dict[NetworkState, NetworkState | None] = {}
        for state in layers[-1]:
            if wanted is None:
                ahead[state] = state
                continue
            for move, target in network.successors(state):
                if (move.rank, move.event, move.edge, network.state_name(target, move.rank)) == wanted:
                    ahead.setdefault(target, state)
        if not ahead:
            break
        layers.append(ahead)
    path = [next(iter(layers[-1]))]
    for layer in reversed(layers[1:]):
        before = layer[path[-1]]
        assert before is not None
        path.append(before)
    return path[::-1]


def steps(run: Counterexample) -> list[Taken]:
    """Return the moves of a run, for `along`."""
    return [(step.rank, step.event, step.edge, step.states[step.rank]) for step in run.steps]


def walk(network: Network, spine: Sequence[NetworkState], bound: int = BOUND) -> dict[str, Any]:
    """Collect states and moves, breadth first from every state of `spine`, until there are `bound` states.

    `spine` are numbers of states; `views` say where one rank is, `locals` has one of them per rank and state; state s
    has the moves `starts[s]` to `starts[s + 1]`, each a label and the state it leads to. The last states have none,
    where `complete` is False: they were not gone through. `waiting` has per state who waits for whom, one of
    `waits`; `roots` has the root of each collective.
    """
    numbers: dict[NetworkState, int] = {}
    queue: deque[NetworkState] = deque()

    def number(state: NetworkState) -> int:
        if state not in numbers:
            numbers[state] = len(numbers)
            queue.append(state)
        return numbers[state]

    path = [number(state) for state in spine]
    views: Interner[tuple[str, str, str]] = Interner()
    labels: Interner[tuple[Any, ...]] = Interner()
    waits: Interner[str] = Interner()
    locals_: list[int] = []
    waiting: list[int] = []
    starts, moves = [0], []
    while queue:
        state = queue.popleft()
        for rank in range(network.ranks):
            locals_.append(views(_view(network, state, rank)))
        waiting.append(waits(_waits(network, state)))
        if len(numbers) < bound:
            for move, target in network.successors(state):
                moves += [labels(_label(network, move)), number(target)]
        starts.append(len(moves) // 2)
    return {
        "spine": path,
        "views": views.items,
        "locals": locals_,
        "labels": labels.items,
        "starts": starts,
        "moves": moves,
        "waits": waits.items,
        "waiting": waiting,
        "complete": len(numbers) < bound,
        "roots": {op.name: op.root for op in network.protocol.schedule},
    }


def _view(network: Network, state: NetworkState, rank: int) -> tuple[str, str, str]:
    """Return a rank's state, the collective that it waits in, and its variables."""
    info = network.info(state, rank)
    local = network.lts[rank].locals.items[state.locals[rank]]
    name = f"{info.state} (stalled)" if info.stalled else info.state
    return name, info.op.name if info.op else "", _shown(local.vars)


def _shown(vars: object) -> str:
    """Return the numbers and flags that are not zero, as in `call_id=1 observed=2`."""
    names = [field.name for field in fields(vars)] if is_dataclass(vars) else getattr(vars, "__struct_fields__", ())
    values = ((name, getattr(vars, name)) for name in names)
    return " ".join(f"{name}={int(value)}" for name, value in values if isinstance(value, int) and value)


def _label(network: Network, move: Move) -> tuple[Any, ...]:
    """Return a move for the page: rank, event, edge, collective, if it commits, whose it is, what was decided."""
    data = move.data if move.edge == "step" and (is_dataclass(move.data) or isinstance(move.data, int)) else None
    return (move.rank, move.event, move.edge, move.op, int(move.commits), _whose(network, move), _decided(data))


def _whose(network: Network, move: Move) -> str:
    """Return who causes a move: `own`, `world` (the environment asks for it), `fault` or `detection`."""
    if move.edge in ("crash", "stall", "resume"):
        return "fault"
    if move.detects:
        return "detection"
    causes = {row.by for row in network.lts[move.rank].role.rows if row.event == move.event}
    return "fault" if causes == {By.FAULT} else "world" if causes == {By.ENVIRONMENT} else "own"


def _decided(data: object) -> str:
    if not is_dataclass(data):
        return "" if data is None else str(data)
    values = ((field.name, getattr(data, field.name)) for field in fields(data))
    shown = ((name, value.name if isinstance(value, Enum) else value) for name, value in values)
    return " ".join(f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in shown)


def _waits(network: Network, state: NetworkState) -> str:
    """Return a line for each rank that waits, as in `rank1 waits in payload for rank0`."""
    found = (network.waiting(state, rank) for rank in range(network.ranks))
    return "\n".join(
        f"rank{w.rank} waits in {w.operation} for {' and '.join(f'rank{r}' for r in w.waiting_for)}"
        for w in found
        if w is not None and w.waiting_for
    )
