"""Defines what is known of a value: whether it can differ between ranks, and by what; and of a condition.

A value with no `sources` is taken to be the same on every rank. A condition is a formula over atoms: an atom with
sources is one that ranks decide differently; the others are decided alike, whatever they say.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .package import Class, Function


class Kind(StrEnum):
    """Says by what a value differs between ranks."""

    RANK = "rank"
    CLOCK = "clock"
    FILE = "file"
    QUEUE = "queue"
    MEMORY = "memory"
    EXCEPTION = "exception"
    DATA = "data"


class Confidence(IntEnum):
    """Says how surely: of a source, that ranks differ there; of a verdict, that they part because of it."""

    POSSIBLE = 1
    LIKELY = 2
    CERTAIN = 3


@dataclass(frozen=True, slots=True)
class Source:
    """Holds one place where ranks come to differ. `scope` is the group in which a rank counts (`groups`)."""

    kind: Kind
    confidence: Confidence
    text: str
    line: int
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Atom:
    """Holds a test that is not taken apart further. Two atoms with one `key` are true together.

    `shown` is the test as the program writes it. `single` is true where one rank alone passes it (`rank == 0`), and
    `members` is the list of ranks in which it looks one up. `alone` is the outcome at which this process has no
    peers (`world_size == 1`), if there is such a one.
    """

    key: str
    sources: tuple[Source, ...] = ()
    shown: str = ""
    single: bool = False
    members: str = ""
    alone: bool | None = None


@dataclass(frozen=True, slots=True)
class Not:
    """Holds a negation."""

    inner: Formula


@dataclass(frozen=True, slots=True)
class Join:
    """Holds a conjunction (`every`) or a disjunction."""

    every: bool
    parts: tuple[Formula, ...]


Formula = bool | Atom | Not | Join


def atoms(formula: Formula) -> tuple[Atom, ...]:
    """Return all atoms of a formula."""
    if isinstance(formula, Atom):
        return (formula,)
    if isinstance(formula, Not):
        return atoms(formula.inner)
    if isinstance(formula, Join):
        return tuple(atom for part in formula.parts for atom in atoms(part))
    return ()


def sources(formula: Formula) -> tuple[Source, ...]:
    """Return by what ranks can decide a formula differently."""
    return tuple(dict.fromkeys(source for atom in atoms(formula) for source in atom.sources))


def assume(formula: Formula, key: str, outcome: bool) -> Formula:
    """Return the formula once the atom with that key is decided."""
    if isinstance(formula, Atom):
        return outcome if formula.key == key else formula
    if isinstance(formula, Not):
        return negated(assume(formula.inner, key, outcome))
    if isinstance(formula, Join):
        return joined(formula.every, [assume(part, key, outcome) for part in formula.parts])
    return formula


def negated(formula: Formula) -> Formula:
    """Return the negation, without a double one."""
    if isinstance(formula, bool):
        return not formula
    return formula.inner if isinstance(formula, Not) else Not(formula)


def joined(every: bool, parts: list[Formula]) -> Formula:
    """Return the conjunction or disjunction, without what does not matter to it."""
    if (not every) in parts:
        return not every
    left = tuple(part for part in parts if part is not every)
    return every if not left else left[0] if len(left) == 1 else Join(every, left)


def alone(formula: Formula) -> bool | None:
    """Return the outcome that only a process without peers sees; None where peers can be there at both."""
    if isinstance(formula, Atom):
        return formula.alone
    if isinstance(formula, Not):
        inner = alone(formula.inner)
        return None if inner is None else not inner
    if isinstance(formula, Join):
        # one part with that outcome is enough to give it to the whole
        return formula.every if any(alone(part) is formula.every for part in formula.parts) else None
    return None


def text(formula: Formula) -> str:
    """Return a formula as one would write it."""
    if isinstance(formula, Atom):
        return formula.shown or formula.key
    if isinstance(formula, Not):
        return f"not ({text(formula.inner)})"
    if isinstance(formula, Join):
        return (" and " if formula.every else " or ").join(f"({text(part)})" for part in formula.parts)
    return str(formula)


class _Unknown:
    """Marks a value that is not a known constant."""

    __slots__ = ()


UNKNOWN = _Unknown()
Constant = _Unknown | None | bool | int | str


@dataclass(frozen=True, slots=True)
class Value:
    """Holds what is known of an expression's value.

    `rank` is the scope of a value that is a rank itself, `group` the key of one that is a process group, `members`
    the text of the ranks that make up a group. `unordered` values yield their items in an order of their own;
    `sharded` ones are modules whose forward gathers parameters; `foreign` ones are instances of a class that is
    none of the package's. `parts` are the values of a tuple's items. A `variable` is one of the
    environment, as text: to be set is to be true.
    """

    sources: tuple[Source, ...] = ()
    constant: Constant = UNKNOWN
    formula: Formula | None = None
    rank: str | None = None
    group: str | None = None
    members: str = ""
    cls: Class | None = None
    function: Function | None = None
    unordered: bool = False
    dictionary: bool = False
    sharded: bool = False
    foreign: bool = False
    parts: tuple[Value, ...] = ()
    variable: bool = False
    version: int = field(default=0, compare=False)


NOTHING = Value()


def differing(*values: Value) -> Value:
    """Return a value that differs between ranks by whatever the given ones do."""
    found = tuple(dict.fromkeys(source for value in values for source in value.sources))[:6]
    return Value(sources=found) if found else NOTHING


def merged(first: Value, second: Value, by: tuple[Source, ...] = ()) -> Value:
    """Return what is known of a value that is one of two; `by` is what decides which, where ranks differ in it."""
    if first == second and not (first is not second and by and first.constant is UNKNOWN):
        return first
    if first.rank is not None and isinstance(second.constant, int):
        return first
    if second.rank is not None and isinstance(first.constant, int):
        return second
    rank = second.rank if first.rank is not None else None
    found = tuple(dict.fromkeys((*first.sources, *second.sources, *by)))[:6]
    return Value(
        sources=found,
        rank=rank,
        group=first.group if first.group == second.group or second.constant is None else second.group,
        cls=first.cls or second.cls,
        function=first.function or second.function,
        dictionary=first.dictionary or second.dictionary,
        unordered=first.unordered or second.unordered,
        sharded=first.sharded or second.sharded,
    )


def agreed(value: Value) -> Value:
    """Return the value after a collective made it the same on every rank."""
    return replace(value, sources=(), formula=None, rank=None, constant=UNKNOWN) if value.sources else value
