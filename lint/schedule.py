"""Writes down which collectives a function issues, in order, and what decides about them: its *schedule*.

Ranks that decide one atom differently run two different schedules. `run` returns the one that a rank follows once
that atom is decided, as a flat list of steps, so that two of them can be compared. Decisions that are left open stay
in both lists alike, between brackets.
Left out: which findings a difference makes (`findings`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .divergence import Atom, Confidence, Formula, Not, Source, alone, assume, atoms, text


@dataclass(slots=True)
class Collective:
    """Holds one collective. `via` are the calls that lead to it; `sure` is less where a call is a guess."""

    operation: str
    group: str
    line: int
    column: int = 0
    via: tuple[str, ...] = ()
    sure: Confidence = Confidence.CERTAIN
    members: str = ""
    creates_group: bool = False
    hidden: bool = False


@dataclass(slots=True)
class Leave:
    """Holds an end of the block: `return`, `raise`, `break`, `continue`."""

    how: str
    line: int


@dataclass(slots=True)
class Risk:
    """Holds a call that can fail on one rank alone."""

    text: str
    line: int


@dataclass(slots=True)
class Branch:
    """Holds two ways on, and the formula that decides."""

    test: Formula
    line: int
    then: list[Node] = field(default_factory=list)
    other: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Loop:
    """Holds a loop. `count` is by what ranks differ in how often it runs, `order` in which order."""

    line: int
    test: Formula = True
    count: tuple[Source, ...] = ()
    order: tuple[Source, ...] = ()
    what: str = ""
    body: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Handler:
    """Holds an `except` clause."""

    line: int
    catches: str
    broad: bool
    body: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Attempt:
    """Holds a `try`: its body with the `else` clause, and its handlers."""

    line: int
    body: list[Node] = field(default_factory=list)
    handlers: list[Handler] = field(default_factory=list)


@dataclass(slots=True)
class Opaque:
    """Holds the steps of a function that is called here, as one run of them."""

    steps: tuple[Step, ...]
    line: int
    column: int


Node = Collective | Leave | Risk | Branch | Loop | Attempt | Opaque


@dataclass(frozen=True, slots=True)
class Step:
    """Holds one step of a schedule. Two steps are the same where `sign` is; `at` is the node that it comes from."""

    sign: tuple[str, ...]
    at: Collective | Leave | None = field(default=None, compare=False)
    loop: Loop | None = field(default=None, compare=False)

    @property
    def collective(self) -> Collective | None:
        """Return the collective, if the step is one."""
        return self.at if isinstance(self.at, Collective) else None


def walk(nodes: list[Node]) -> Iterator[Node]:
    """Yield all nodes, outer ones first."""
    for node in nodes:
        yield node
        if isinstance(node, Branch):
            yield from walk(node.then)
            yield from walk(node.other)
        elif isinstance(node, Loop):
            yield from walk(node.body)
        elif isinstance(node, Attempt):
            yield from walk(node.body)
            for handler in node.handlers:
                yield from walk(handler.body)


def decided_differently(nodes: list[Node]) -> list[tuple[Atom, tuple[int, ...]]]:
    """Return the atoms of branches that ranks decide differently, each with the lines of those branches."""
    found: dict[str, tuple[Atom, tuple[int, ...]]] = {}
    for node in walk(nodes):
        if isinstance(node, Branch):
            for atom in atoms(node.test):
                if atom.sources:
                    first, lines = found.get(atom.key, (atom, ()))
                    found[atom.key] = (first, (*lines, node.line))
    return list(found.values())


def exception_key(attempt: Attempt, handler: Handler) -> str:
    """Return the key of the atom that is true on ranks where this handler catches something."""
    return f"exception at line {attempt.line}, caught at line {handler.line}"


@dataclass(slots=True)
class _Run:
    """Collects the steps of a rank for which some atoms, by their keys, are decided."""

    decided: dict[str, bool]
    steps: list[Step] = field(default_factory=list)

    def block(self, nodes: list[Node], loop: Loop | None) -> str:
        """Add a block's steps; return how it is left, empty where it runs through."""
        for node in nodes:
            how = self._node(node, loop)
            if how:
                return how
        return ""

    def _node(self, node: Node, loop: Loop | None) -> str:
        if isinstance(node, Collective):
            self.steps.append(Step((node.operation, node.group), node, loop))
        elif isinstance(node, Opaque):
            self.steps += [Step(step.sign, step.at, loop) for step in node.steps]
        elif isinstance(node, Leave):
            self.steps.append(Step((node.how, str(node.line)), node, loop))
            return node.how
        elif isinstance(node, Branch):
            return self._branch(node, loop)
        elif isinstance(node, Loop):
            self._loop(node)
        elif isinstance(node, Attempt):
            return self._attempt(node, loop)
        return ""

    def _branch(self, node: Branch, loop: Loop | None) -> str:
        test = node.test
        for key, outcome in self.decided.items():
            test = assume(test, key, outcome)
        peerless = alone(test)
        if peerless is not None:
            test = not peerless  # a process without peers strands nobody
        if isinstance(test, bool):
            return self.block(node.then if test else node.other, loop)
        if isinstance(test, Not):
            return self._branch(Branch(test.inner, node.line, node.other, node.then), loop)
        open_key = test.key if isinstance(test, Atom) else ""
        then, other = (_Run({**self.decided, open_key: outcome}) for outcome in (True, False))
        left, left_other = then.block(node.then, loop), other.block(node.other, loop)
        if then.steps == other.steps:
            self.steps += then.steps
        elif then.steps or other.steps:
            self.steps += [Step(("if", text(test))), *then.steps, Step(("else",)), *other.steps, Step(("end",))]
        return left if left and left_other else ""

    def _loop(self, node: Loop) -> None:
        inner = _Run(self.decided)
        inner.block(node.body, node)
        if any(step.at is not None and step.sign[0] not in INNER for step in inner.steps):
            while inner.steps and inner.steps[-1].sign[0] == "continue":
                inner.steps.pop()  # as it would have gone on by itself
            self.steps += [Step(("loop", node.what)), *inner.steps, Step(("end",))]

    def _attempt(self, node: Attempt, loop: Loop | None) -> str:
        for handler in node.handlers:
            if self.decided.get(exception_key(node, handler)):
                self.block(before_risk(node.body), loop)
                return self.block(handler.body, loop)
        return self.block(node.body, loop)


INNER = ("break", "continue")
"""Steps that leave no more than the loop: a loop of these alone issues nothing."""


def before_risk(nodes: list[Node]) -> list[Node]:
    """Return what has been issued when the first call that can fail alone does so."""
    found: list[Node] = []
    for node in nodes:
        if isinstance(node, Risk) or any(isinstance(inner, Risk) for inner in walk([node])):
            break
        found.append(node)
    return found


def run(nodes: list[Node], key: str = "", outcome: bool = True) -> list[Step]:
    """Return the steps of a rank for which the atom `key` has that outcome."""
    collected = _Run({key: outcome})
    collected.block(nodes, None)
    return collected.steps


def collectives_of(steps: list[Step] | tuple[Step, ...]) -> list[Collective]:
    """Return the collectives among the steps."""
    return [step.at for step in steps if isinstance(step.at, Collective)]
