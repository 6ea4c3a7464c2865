"""Says what no network of a protocol reaches, so that nothing holds at every size for want of a run.

Networks are searched from two ranks up until nothing is missing. What none of them reaches, and what no move of the
abstraction takes, is never reached at any size. The rest is undecided: the abstraction takes it, a network need not.

Left out: what the abstraction forgets (rows of ranks that have failed) or does not see (what is `sometimes` seen):
these are undecided where no network that was searched has them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from ....errors import UsageError
from ...semantics.properties import Property
from ...semantics.query import Query
from ...tables import Protocol, Row
from ..coverage import Coverage, coverage
from ..engine import check
from ..reference import Progress, Taken

UP_TO = 5
"""Networks of two ranks to so many are searched,"""
STATES = 400_000
"""and of at most so many states."""


@dataclass(frozen=True)
class Reached:
    """Holds what was not reached by any network that was searched."""

    never: Coverage
    """Names what no network reaches, whatever its size."""
    undecided: Coverage
    """Names what larger networks may reach."""
    tried: int
    """The ranks of the largest network that was searched."""

    def undecided_lines(self) -> list[str]:
        """Return a line for each thing of which it is not known whether a larger network reaches it."""
        return [f"{line} (with up to {self.tried} ranks)" for line in self.undecided.lines()]


def reached(
    question: Query,
    sometimes: Sequence[Property],
    allowed: Sequence[str],
    taken: Container[Taken],
    progress: Progress | None = None,
    seconds_left: Callable[[], float | None] = lambda: None,
) -> Reached | None:
    """Return what no network that was searched reaches; None where none was searched to its end.

    `taken` are the rows that the abstraction takes.
    """
    found: list[Coverage] = []
    tried, struck = 0, [kind for kind, _ in question.fault_points]
    for ranks in range(2, UP_TO + 1):
        try:
            network = replace(question, scope=replace(question.scope, ranks=ranks)).network()
        except UsageError:  # a fault names a rank that it has not got
            continue
        result = check(network, sometimes, progress=progress, max_states=STATES, timeout=seconds_left())
        if result.stopped:
            break
        found.append(coverage(result, question.tables(), allowed, struck))
        protocol, tried = network.protocol, ranks
        if not reduce(_both, found).vacuous:
            break
    return _decided(reduce(_both, found), protocol, taken, tried) if found else None


def _both(one: Coverage, other: Coverage) -> Coverage:
    """Return what is missing in both of two networks."""
    rows = {row.name for row in other.rows}
    return replace(
        one,
        rows=tuple(row for row in one.rows if row.name in rows),
        states=tuple(state for state in one.states if state in other.states),
        sometimes=tuple(prop for prop in one.sometimes if prop in other.sometimes),
        faults=tuple(fault for fault in one.faults if fault in other.faults),
        not_exercised=tuple(row for row in one.not_exercised if row in other.not_exercised),
    )


def _decided(missing: Coverage, protocol: Protocol, taken: Container[Taken], tried: int) -> Reached:
    roles = {role.name: (number, role) for number, role in enumerate(protocol.roles)}

    def may_be_taken(role_name: str, row: Row) -> bool:
        number, role = roles[role_name]
        return (number, *row.key) in taken or role.by_name[row.state].failed

    def may_be_entered(role_name: str, state: str) -> bool:
        return any(may_be_taken(role_name, row) for row in roles[role_name][1].rows if row.target == state)

    never = replace(
        missing,
        rows=tuple(row for row in missing.rows if not may_be_taken(row.role, row.row)),
        states=tuple(state for state in missing.states if not may_be_entered(*state)),
        sometimes=(),
        faults=(),
    )
    undecided = replace(
        missing,
        rows=tuple(row for row in missing.rows if row not in never.rows),
        states=tuple(state for state in missing.states if state not in never.states),
    )
    return Reached(never, undecided, tried)
