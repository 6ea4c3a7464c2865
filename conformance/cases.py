"""Defines the form of a blame case: one rule that names ranks, with its strength and what it needs to be entailed.

Each layer has a table of them (`protocol.blame`, `collectives.blame`), which docs/diagnosis.md shows row by row: a test
holds document and code together. Left out: the rules themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from .diagnosis import Accusation, Strength, accusations

E = TypeVar("E")
"""Stands for the evidence that a rule of a layer looks at."""


class Case(NamedTuple, Generic[E]):
    """Holds one rule."""

    name: str
    strength: Strength
    when: str
    """The evidence that it asks for, in one line for people."""
    needs: str
    """Why that entails the blame or, of a suspect, what would."""
    ranks: Callable[[E], Iterable[int]]
    """Return the ranks that it names; none where it does not apply."""

    def __call__(self, evidence: E) -> tuple[Accusation, ...]:
        """Apply the rule."""
        return accusations(tuple(self.ranks(evidence)), self.strength, self.name)


class Table(Generic[E]):
    """Holds the cases of one layer, in the order in which they are asked."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.cases: list[Case[E]] = []

    def case(
        self, name: str, strength: Strength, *, when: str, needs: str
    ) -> Callable[[Callable[[E], Iterable[int]]], Case[E]]:
        """Enter a rule into the table, below those that are there."""

        def enter(ranks: Callable[[E], Iterable[int]]) -> Case[E]:
            entered: Case[E] = Case(name, strength, when, needs, ranks)
            self.cases.append(entered)
            return entered

        return enter

    def first(self, evidence: E, among: Iterable[Case[E]] | None = None) -> tuple[Accusation, ...]:
        """Return what the first case says that names somebody; nothing if none does."""
        return next((named for case in among or self.cases if (named := case(evidence))), ())

    def as_markdown(self) -> str:
        """Return the rows of the document."""
        rows = [f"| `{c.name}` | {c.strength.value} | {c.when} | {c.needs} |" for c in self.cases]
        return "\n".join(["| case | strength | when | because, or what would tell |", "|---|---|---|---|", *rows])
