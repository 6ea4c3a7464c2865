"""Writes what a protocol claims of its whole state as Promela: each predicate as a decision, asked after every move.

A predicate is a function, for which Promela has no word. But what it asks of a state, and in which order, depends on
the answers that it was given. So each is asked about every state that was met, and what it asked makes a tree: where a
rank is, what a cell holds, and so on down to its answer. Should Spin come to an answer that the tree does not have,
its assertion `known` fails.

`LeadsTo` is a never claim, in a model that is compiled with FAIR: a run from `when` that comes past no `then`, and on
which each rank that owes a move all the time makes one. `FAIRNESS` of `template.py` says what is owed.

Left out: what is asked of a link.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...errors import ModelError
from ..claims import Claim, Fair, Invariant, LeadsTo, Predicate
from ..semantics.network import Network, NetworkState
from ..semantics.properties import WHEN
from ..semantics.whole import Whole
from ..tables import EMPTY, Cell, Data, Fifo, Link, Shared, Slot, Vars
from .tables import Tables

ASKS = ("STATE_OF", "VARS_OF", "FAILED_OF", "ENDED_OF", "IN_SLOT", "FILL_OF", "IN_BOX", "ON_BOARD")
NO, YES = 1, 2
"""Answers; nodes of the trees come after them."""


class Question(NamedTuple):
    """Names what a predicate asks of a state: of ASKS one, and of which rank or place."""

    what: int
    whom: int


class Asked(Whole):
    """Is a state that keeps what it was asked, and what it answered."""

    def __init__(self, network: Network, state: NetworkState, tables: Tables) -> None:
        super().__init__(network, state)
        self._tables = tables
        self.asked: dict[Question, int] = {}

    def state(self, rank: int) -> str:
        """Return the state of a rank, as `Whole` does."""
        found = super().state(rank)
        self._keep("STATE_OF", rank, self._tables.states(found))
        return found

    def vars(self, rank: int) -> Vars:
        """Return the variables of a rank, as `Whole` does."""
        self._keep("ENDED_OF", rank, int(super().ended(rank)))
        found = super().vars(rank)
        self._keep("VARS_OF", rank, self._tables.variables(found))
        return found

    def failed(self, rank: int) -> bool:
        """Return whether a rank has failed, as `Whole` does."""
        found = super().failed(rank)
        self._keep("FAILED_OF", rank, int(found))
        return found

    def ended(self, rank: int) -> bool:
        """Return whether a rank has ended, as `Whole` does."""
        found = super().ended(rank)
        self._keep("ENDED_OF", rank, int(found))
        return found

    def held(self, shared: Shared, key: Any = None) -> Data:
        """Return what is in a slot, channel or cell, as `Whole` does. Raise ModelError for a link."""
        found, tables = super().held(shared, key), self._tables
        if isinstance(shared, Link):
            do = "export it without this claim"
            raise ModelError(f"a claim asks what is on link `{shared.name}`, which cannot be written in Promela", do=do)
        if isinstance(shared, Slot):
            at = tables.channels[shared] + key - 1
            self._keep("IN_SLOT", at, 0 if found is EMPTY else tables.items(found))
        elif isinstance(shared, Cell):
            self._keep("ON_BOARD", tables.places[shared, key], tables.items(found))
        else:
            self._keep_channel(shared, tables.places[shared, key], found)
        return found

    def _keep_channel(self, shared: Fifo, place: int, found: tuple[Data, ...]) -> None:
        self._keep("FILL_OF", place, len(found))
        begin = self._tables.box_of(place)
        for n, value in enumerate(found):
            self._keep("IN_BOX", begin + n, self._tables.items(value))

    def _keep(self, what: str, whom: int, answer: int) -> None:
        self.asked.setdefault(Question(ASKS.index(what), whom), answer)


@dataclass
class Trees:
    """Holds the trees of all predicates, equal ones once: each node a question, and for each answer the next node."""

    nodes: list[tuple[Question, dict[int, int]]] = field(default_factory=list)
    index: dict[Hashable, int] = field(default_factory=dict)

    def grown(self, runs: Sequence[tuple[list[tuple[Question, int]], bool]], depth: int = 0) -> int:
        """Return the root of a tree that says what a predicate did, of each state: what was asked, and its answer."""
        if all(len(asked) == depth for asked, _ in runs):
            return YES if runs[0][1] else NO
        question = runs[0][0][depth][0]
        parts: dict[int, list[tuple[list[tuple[Question, int]], bool]]] = {}
        for asked, answer in runs:
            parts.setdefault(asked[depth][1], []).append((asked, answer))
        branches = {value: self.grown(part, depth + 1) for value, part in sorted(parts.items())}
        key = (question, tuple(branches.items()))
        if key not in self.index:
            self.index[key] = len(self.nodes) + YES + 1
            self.nodes.append((question, branches))
        return self.index[key]

    def columns(self) -> Iterator[tuple[str, Sequence[int]]]:
        """Yield the tables of the nodes; those of numbers 0 to YES are none."""
        begin, least, most, after = [0] * (YES + 1), [0] * (YES + 1), [0] * (YES + 1), list[int]()
        for _, branches in self.nodes:
            begin.append(len(after))
            least.append(min(branches))
            most.append(max(branches))
            after += [branches.get(value, 0) for value in range(min(branches), max(branches) + 1)]
        yield "ASKS", [0] * (YES + 1) + [question.what for question, _ in self.nodes]
        yield "WHOM", [0] * (YES + 1) + [question.whom for question, _ in self.nodes]
        yield "ANSWERS", begin
        yield "LEAST", least
        yield "MOST", most
        yield "NEXT", after


class Judged(NamedTuple):
    """Holds a predicate in Promela: its flag, the root of its tree, and what it says at the start."""

    flag: str
    root: int
    at_first: bool
    fails_if: bool | None
    """The answer that is reported, as an assertion of this name that fails; None: it is part of a never claim."""
    reported: bool
    """Some move leads to where that is the answer."""


class Claims:
    """Holds the claims of a protocol as Promela."""

    def __init__(self, tables: Tables) -> None:
        self.tables, self.network = tables, tables.network
        self.trees = Trees()
        self.judged: list[Judged] = []
        for claim in self.network.protocol.claims:
            for name, predicate, fails_if in _predicates(claim):
                self.judged.append(self._judged(claim, name, predicate, fails_if))

    @property
    def reported(self) -> tuple[str, ...]:
        """Return the flags of which the assertions must fail."""
        return tuple(one.flag for one in self.judged if one.reported)

    def _judged(self, claim: Claim, name: str, predicate: Predicate, fails_if: bool | None) -> Judged:
        runs: list[tuple[list[tuple[Question, int]], bool]] = []
        graph = self.tables.met.graph
        for state in graph.states:
            asked = Asked(self.network, state, self.tables)
            try:
                answer = bool(predicate(asked))
            except ModelError as error:
                where = f"{self.network.protocol.name}, claim `{claim.name}`"
                raise ModelError(error.what, where=where, do=error.do) from error
            runs.append((list(asked.asked.items()), answer))
        wanted = [n for n, (_, answer) in enumerate(runs) if answer is fails_if]
        reported = any(n > 0 for n in wanted) or (bool(wanted) and _comes_back(graph.edges))
        if wanted and not reported:
            what = f"claim `{claim.name}` is decided by the state at the start, and Spin is asked after each move"
            raise ModelError(what, where=self.network.protocol.name, do="export it without this claim")
        return Judged(name, self.trees.grown(runs), runs[0][1], fails_if, reported)

    def text(self) -> str:
        """Return the flags, and what sets and asserts them."""
        flags = "\n".join(f"KEPT {one.flag} = {int(one.at_first)};" for one in self.judged)
        if not self.judged:
            return "#define claim() weigh()\n"
        asks = "\n".join(
            (
                f"  ask({one.root}); {one.flag} = (n == YES);"
                + ("" if one.fails_if is None else f" assert({'!' if one.fails_if else ''}{one.flag});")
            )
            for one in self.judged
        )
        return f"{flags}\n\n{ASK}\ninline claim() {{\n{asks}\n  weigh()\n}}\n"

    def never(self) -> str:
        """Return a never claim for each `LeadsTo`."""
        claims = [claim for claim in self.network.protocol.claims if isinstance(claim, LeadsTo)]
        return "\n".join(("#ifdef FAIR", *map(self._never, claims), "#endif\n")) if claims else ""

    def _never(self, claim: LeadsTo) -> str:
        when, then = (f"({flag(name)})" for name in (claim.name + WHEN, claim.name + THEN))
        owing = list(self._owing(claim.fair))
        lines = [f"never {flag(claim.name)} {{", "wait:", "  do", "  :: true"]
        lines += [f"  :: {when} && !{then} -> goto owes0", "  od;"]
        for n, fair in enumerate(owing):
            onward = f"owes{n + 1}" if n + 1 < len(owing) else "accept_all"
            lines += [f"owes{n}:", "  if", f"  :: !{then} && ({fair}) -> goto {onward}"]
            lines += [f"  :: !{then} -> goto owes{n}", "  fi;"]
        return "\n".join((*lines, "accept_all:", "  if", f"  :: !{then} -> goto owes0", "  fi", "}"))

    def _owing(self, fair: Fair) -> Iterator[str]:
        """Yield what a fair run comes to again and again, for each that may owe something."""
        ranks = self.network.ranks
        if fair is Fair.PROGRESS:
            yield f"took || !({' || '.join(f'owed[{n}]' for n in range(2 * ranks))})"
            return
        for n in range(2 * ranks if self.tables.devices else ranks):
            yield f"took == {n + 1} || !owed[{n}]"


THEN = ".then"


def _predicates(claim: Claim) -> Iterator[tuple[str, Predicate, bool | None]]:
    """Yield each predicate of a claim with the name of its flag, and the answer that is reported."""
    if isinstance(claim, LeadsTo):
        yield flag(claim.name + WHEN), claim.when, True
        yield flag(claim.name + THEN), claim.then, None
    elif isinstance(claim, Invariant):
        yield flag(claim.name), claim.holds, False
    else:
        yield flag(claim.name), claim.seen, True


def flag(name: str) -> str:
    """Return a claim's name as Promela can have it."""
    return "claim_" + name.replace("-", "_").replace(".", "_")


def _comes_back(edges: Sequence[Any]) -> bool:
    """Return whether a move leads to the state at the start."""
    return any(edge.target == 0 for n in range(len(edges)) for edge in edges[n])


ASK = """\
inline ask(root) {   /* walk down a tree, from question to answer */
  n = root;
  do
  :: n <= YES -> break
  :: else ->
    if
    :: ASKS[n] == STATE_OF -> d = STATE[at[WHOM[n]]]
    :: ASKS[n] == VARS_OF -> d = VARS[at[WHOM[n]]]
    :: ASKS[n] == FAILED_OF -> d = FAILED[at[WHOM[n]]]
    :: ASKS[n] == ENDED_OF -> d = TERMINAL[at[WHOM[n]]]
    :: ASKS[n] == IN_SLOT -> d = slot[WHOM[n]]
    :: ASKS[n] > IN_SLOT -> PLACE_ANSWER(n)
    fi;
    n = (d >= LEAST[n] && d <= MOST[n] -> NEXT[ANSWERS[n] + d - LEAST[n]] : 0)
  od;
  known = (n -> 1 : 0);
  assert(known)
}
"""
