"""Tells which transitions of the model traces have witnessed, and which no real run can take.

Left out: what a model checker reaches (`model.checker`): that a row is reachable there says nothing of real ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...model.tables import By, Protocol, Role, Row

Witnessed = Mapping[str, frozenset[tuple[str, str]]]
"""Role name to the (state, event) of each row that was seen."""


@dataclass(frozen=True)
class Coverage:
    """Holds the rows of a protocol, by role, sorted by whether they were seen."""

    protocol: Protocol
    witnessed: Witnessed

    def seen(self, role: Role) -> list[Row]:
        """Return the rows of the role that the traces show, in the order of the table."""
        return [row for row in role.rows if row.key in self.witnessed.get(role.name, frozenset())]

    def open(self, role: Role) -> list[Row]:
        """Return the rows that the traces do not show, and a real run can take."""
        return [row for row in self._unseen(role) if beyond(row, role) is None]

    def beyond(self, role: Role) -> list[tuple[Row, str]]:
        """Return the rows that the traces do not show because no real run can take them, with the reason."""
        return [(row, why) for row in self._unseen(role) if (why := beyond(row, role)) is not None]

    def _unseen(self, role: Role) -> list[Row]:
        seen = self.seen(role)
        return [row for row in role.rows if row not in seen]


def merged(*several: Witnessed) -> Witnessed:
    """Return what several runs have shown together."""
    names = {name for witnessed in several for name in witnessed}
    return {name: frozenset().union(*(w.get(name, frozenset()) for w in several)) for name in sorted(names)}


def beyond(row: Row, role: Role) -> str | None:
    """Return why no real run can take a row; None where one can."""
    collectives = [r for r in role.leaving[row.state] if r.op is not None]
    if row.by is By.DETECTION and row.event == "peer_lost" and not collectives:
        return "a rank notices a dead peer inside a collective, and none is issued in this state"
    return None


def as_json(coverage: Coverage) -> dict[str, Any]:
    """Return per role: how many rows there are, which were seen, which were not, and which cannot be."""
    roles = {}
    for role in coverage.protocol.roles:
        roles[role.name] = {
            "rows": len(role.rows),
            "witnessed": [list(row.key) for row in coverage.seen(role)],
            "open": [list(row.key) for row in coverage.open(role)],
            "beyond": [{"row": list(row.key), "why": why} for row, why in coverage.beyond(role)],
        }
    protocol = coverage.protocol
    return {"schema": 1, "protocol": protocol.name, "tables": protocol.digest, "roles": roles}


def as_text(coverage: Coverage) -> str:
    """Return per role one line of figures, then the rows that were not seen, by why."""
    lines = []
    for role in coverage.protocol.roles:
        seen, left, beyond_it = coverage.seen(role), coverage.open(role), coverage.beyond(role)
        lines.append(
            f"{role.name}: {len(seen)} of {len(role.rows)} transitions witnessed, "
            f"{len(left)} not, {len(beyond_it)} that no real run can take"
        )
        lines += [f"  not witnessed: {row}" for row in left]
        reasons: dict[str, list[str]] = {}
        for row, why in beyond_it:
            reasons.setdefault(why, []).append(f"{row.state} --{row.event}-->")
        lines += [f"  {why}: {', '.join(rows)}" for why, rows in reasons.items()]
    return "\n".join(lines)
