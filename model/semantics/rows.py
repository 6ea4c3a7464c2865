"""Steps one rank by one row: which row an event takes from where the rank is, and where that leads.

The one place that says so. The unfolded role, the `transitions` machine, the runtime monitor and the replayer ask
here, so that none of them can allow what another forbids.

Left out: peers, transport, gates and slots (`network`), and who chooses among several enabled rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..tables import By, Data, Role, Row, Scope, Vars


def breaks_off(role: Role, row: Row) -> bool:
    """Return true if the row takes a rank out of a collective that it has issued: inside one, a rank can only fail."""
    return row.by in (By.FAULT, By.DETECTION) and role.by_name[row.target].failed


def enabled_row(role: Role, state: str, event: str, v: Vars, data: Data = None, *, inside: bool = False) -> Row | None:
    """Return the row that `event` takes from `state`, or None where the table does not allow it.

    Guards are asked, and a VIOLATION row is enabled only where no PROTOCOL row of the state is. `inside` says that the
    rank has issued a collective and not completed it. Raises ModelError where a guard raises.
    """
    row = role.enabled(state, event, v, data)
    return None if row is None or (inside and not breaks_off(role, row)) else row


def enabled_rows(role: Role, state: str, v: Vars, data: Data = None, *, inside: bool = False) -> Iterator[Row]:
    """Yield the rows that are enabled in `state`, in the order of the table."""
    for row in role.leaving[state]:
        if enabled_row(role, state, row.event, v, data, inside=inside) is row:
            yield row


def nothing_wrong(role: Role, row: Row, v: Vars, data: Data, scope: Scope) -> bool:
    """Return true for a VIOLATION row that reports what is no violation: a PROTOCOL row of its state applies.

    What slots hold is left open; the network asks for that (`Role.checks_pass`).
    """
    return row.by is By.VIOLATION and role.checks_pass(row, v, data, scope=scope)


def arrive(row: Row, v: Vars, data: Data) -> tuple[str, Vars]:
    """Return state and variables after the row; of one with a collective, after its completion, which delivers `data`.

    Issuing a collective changes neither.
    """
    return row.target, row.apply(v, data)
