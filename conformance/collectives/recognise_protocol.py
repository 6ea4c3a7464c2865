"""Recognises TP v1.1 in a recording that knows no protocol: which chunk and phase each collective belongs to.

A signature says which line of the schedule an operation may be. A role's table is then walked by these alone: its
steps without a collective are taken as they may come, guards unasked, for a recording does not show what they ask.
A generate call is any number of reductions, so nothing tells calls apart.

Left out: verdicts. A recording that does not fit is no TP v1.1, or a broken one: `collectives` says what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np

from ...model.protocols.tp_v1_1 import HEADER, PAYLOAD, TP_V1_1
from ...model.tables import By, Collective, Protocol, Role
from ...traces.collectives import RankRecord, Recording, Signature
from .alignment import Key

DTYPES = {
    "uint8": {"uint8", "Byte"},
    "int64": {"int64", "Long"},
    "model": {"float16", "bfloat16", "float32", "float64", "Half", "BFloat16", "Float", "Double"},
}
"""The schedule's name of a dtype to those that recorders use."""


class Place(NamedTuple):
    """Says what a collective is in the protocol."""

    line: Collective
    chunk: int | None
    """None where the recording does not begin with the run, and for what belongs to no chunk."""


class Lifted:
    """Reads a recording as a run of TP v1.1; false if it is none."""

    def __init__(self, recording: Recording, protocol: Protocol = TP_V1_1) -> None:
        self.recording, self.protocol = recording, protocol
        self.places: dict[Key, Place] = {}
        self.chunks = 0
        walked = [self._walk(rank) for rank in recording.ranks] if self._groups else []
        if 2 * sum(walked) <= len(walked) or not self.chunks:
            self.places.clear()

    def __bool__(self) -> bool:
        return bool(self.places)

    def summary(self) -> str:
        """Return a text like `tp_v1.1, 3 chunks`; empty for a recording that is none."""
        return f"{self.protocol.name}, {self.chunks} chunk{'s' * (self.chunks != 1)}" if self else ""

    def state(self, rank: int, key: Key) -> str | None:
        """Return the state in which the rank's table takes part in that collective, if there is but one."""
        place = self.places.get(key)
        rows = [row for row in self.protocol.role(rank).rows if place is not None and row.op is place.line]
        if place is not None and place.line is HEADER and place.chunk is not None:
            rows = [row for row in rows if self._leads(row.target, PAYLOAD)]
        return rows[0].state if len(rows) == 1 else None

    def _leads(self, state: str, line: Collective) -> bool:
        """Return True if the next collective after a state may be of that line, on either role."""
        roles = [role for role in self.protocol.roles if state in role.by_name]
        return any(row.op is line for role in roles for at in _ahead(role, state) for row in role.leaving[at])

    @cached_property
    def _lines(self) -> list[Collective | None]:
        """Return, for each signature, the line of the schedule that it may be."""
        return [next((c for c in self.protocol.schedule if _fits(s, c)), None) for s in self.recording.signatures]

    @cached_property
    def _groups(self) -> dict[int, str]:
        """Map a recorded group to the one of the schedule: those with headers, and with payloads, of all ranks."""
        lines = self._lines
        if HEADER not in lines or PAYLOAD not in lines:
            return {}
        found: dict[int, str] = {}
        for record in self.recording.ranks.values():
            for group, signature in np.unique(record.ops[["group", "signature"]]).tolist():
                line = lines[signature]
                if line in (HEADER, PAYLOAD) and len(self.recording.groups[group].members) == self.recording.world:
                    found[group] = line.group if found.get(group, line.group) == line.group else ""
        return found if set(found.values()) == set(self.protocol.group_names) else {}

    def _walk(self, rank: int) -> bool:
        """Return True if the rank's operations fit its table, which places them on the way."""
        record, role = self.recording.ranks[rank], self.protocol.role(rank)
        begins = not (record.lost or record.pending_only)
        states = _ahead(role, role.initial) if begins else frozenset(s.name for s in role.states)
        found: list[tuple[Key, Collective]] = []
        for key, line in self._steps(record):
            if not (states := _after(role, states, line)):
                return False
            found.append((key, line))
        self._place(found, begins)
        return True

    def _steps(self, record: RankRecord) -> list[tuple[Key, Collective]]:
        """Return the rank's collectives in the two groups; what is none of the schedule fits nothing."""
        ops = record.ops[np.isin(record.ops["group"], list(self._groups)) & (record.ops["peer"] < 0)]
        steps = []
        for group, sequence, signature in ops[["group", "sequence", "signature"]].tolist():
            line = self._lines[signature]
            fits = line is not None and line.group == self._groups[group]
            steps.append((Key(group, sequence), line if line is not None and fits else UNPLANNED))
        return steps

    def _place(self, found: Sequence[tuple[Key, Collective]], begins: bool) -> None:
        chunk = 0
        header: Key | None = None
        for key, line in found:
            if line is PAYLOAD:
                chunk += 1
                if header is not None:
                    self.places[header] = Place(HEADER, chunk if begins else None)
            header = key if line is HEADER else None
            of_chunk = line is not HEADER and line.phase != self.protocol.schedule[0].phase
            self.places.setdefault(key, Place(line, chunk if begins and of_chunk else None))
        self.chunks = max(self.chunks, chunk)


UNPLANNED = Collective("unplanned", HEADER.kind, "", None, "", "", "")


def _fits(signature: Signature, line: Collective) -> bool:
    root = signature.root < 0 or signature.root == line.root
    return signature.kind == line.kind.value and signature.dtype in DTYPES[line.dtype] and root


@cache
def _ahead(role: Role, state: str) -> frozenset[str]:
    """Return the states that are reached from one without a collective, and it."""
    found, new = {state}, [state]
    while new:
        for row in role.leaving[new.pop()]:
            if row.op is None and row.by in (By.PROTOCOL, By.ENVIRONMENT) and row.target not in found:
                found.add(row.target)
                new.append(row.target)
    return frozenset(found)


@cache
def _after(role: Role, states: frozenset[str], line: Collective) -> frozenset[str]:
    """Return the states after a collective."""
    targets = {row.target for state in states for row in role.leaving[state] if row.op is line}
    return frozenset(after for target in targets for after in _ahead(role, target))
