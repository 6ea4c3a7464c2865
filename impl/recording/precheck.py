"""Compares every collective with its peers' before the backend gets it, and decisions that ranks must take alike.

Each member writes a line into the job's store (which operation, of what, from where), waits for the others' lines, and
holds them against its own. So a mismatch, and a rank that does not come in time, raise on every rank, with the lines
that differ; the backend would hang, or mispair. It costs a round through the store for each operation, and lets no rank
run ahead: for bring-up and CI. A reduction (sum, max) is compared between the ranks whose way into torch shows it. Left
out: sends and receives, whose other end may rightly come later.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import torch.distributed as dist

from ...errors import Code, ContractViolation, UsageError
from ...traces.format import P2P, Group
from .c10d_intercept import OnComplete, Operation, caller, group_of, site, store_of, unregistered, watch, watching

DEADLINE = 60.0
"""Seconds that a rank waits for the others, unless it is told otherwise."""
MOST_LINES = 8
"""An error has the lines of so many ranks that differ."""


@contextmanager
def precheck(deadline: float = DEADLINE) -> Iterator[None]:
    """Compare every collective with its peers', meanwhile, before the backend gets it.

    Where members issue different ones, or one has not come after `deadline` seconds, each member that has come raises
    ContractViolation, with the ranks, what each issued, and from which line. It must be entered by all ranks alike.
    """
    checker = Precheck(deadline)
    before, _current[:] = [*_current], [checker]
    try:
        with watching(checker):
            yield
    finally:
        _current[:] = before


def agree(name: str, value: Any, deadline: float = DEADLINE) -> None:
    """Raise ContractViolation on every rank unless all ranks give the same value, which is compared by its `repr`.

    For a decision that all ranks must take alike, such as to stop, to skip a batch, or to save. It is a collective of
    the default group. Raises UsageError before torch.distributed is initialised.
    """
    if not dist.is_initialized() or dist.group.WORLD is None:
        raise UsageError("torch.distributed is not initialised", where="genlock.agree", do="call it after that")
    checker = _current[0] if _current else _decisions
    place = site(caller(sys._getframe())) or ""
    checker.compare(group_of(dist.group.WORLD), f"decision `{name}` = {value!r}", place, deadline)


class Precheck:
    """Watches operations, and holds them against the peers'."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self._turn = deadline, next(_turns)
        self._numbers: Counter[str] = Counter()

    def issue(self, operation: Operation) -> OnComplete | None:
        """Compare a collective with its peers'; an exception keeps it from the backend."""
        op, group = operation.op, operation.group
        if op not in P2P and len(group.members) > 1 and unregistered(group.name) is None:
            by = f" by {operation.reduce}" if operation.reduce else ""
            self.compare(group, described(operation), site(caller()) or "", self.deadline, by)
        return None

    def compare(self, group: Group, what: str, place: str, deadline: float, by: str = "") -> None:
        """Raise ContractViolation unless all members say the same, within the deadline; `by`, if they say anything."""
        store, rank = store_of(None), dist.get_rank()
        if rank not in group.members:
            return
        number = self._numbers[group.name] = self._numbers[group.name] + 1
        keys_of = f"genlock/precheck/{self._turn}/{group.name}"
        key = f"{keys_of}/{number}"
        store.set(f"{key}/{rank}", json.dumps([what, place, by]))
        keys = [f"{key}/{member}" for member in group.members]
        absent: list[int] = []
        try:
            store.wait(keys, timedelta(seconds=deadline))
        except RuntimeError:  # whose kind depends on the store
            absent = [member for member, own in zip(group.members, keys, strict=True) if not store.check([own])]
        present = [member for member in group.members if member not in absent]
        lines = {member: _read(store, f"{key}/{member}") for member in present}
        if number > 2:  # whoever is here has read what came two before
            store.delete_key(f"{keys_of}/{number - 2}/{rank}")
        if absent:
            raise _absent(absent, number, group, lines[rank], deadline)
        if len({what for what, *_ in lines.values()}) > 1 or len({by for *_, by in lines.values()} - {""}) > 1:
            raise _different({member: (what + by, place) for member, (what, place, by) in lines.items()}, number, group)


def described(operation: Operation) -> str:
    """Return what all members of an operation must issue alike."""
    free = operation.op.startswith(("gather", "scatter", "all_to_all")) or operation.op == "all_gather"
    parts = [operation.op]
    if operation.dtype is not None and not free:
        parts.append(f"of {operation.numel} {operation.dtype}")
    if operation.root is not None:
        parts.append(f"from rank{operation.root}")
    return " ".join(parts)


Line = tuple[str, str, str]
"""Holds what a rank says: the operation, its place, and the reduction, if it shows."""


def _read(store: Any, key: str) -> Line:
    what, place, by = json.loads(store.get(key))
    return what, place, by


def _different(lines: dict[int, tuple[str, str]], number: int, group: Group) -> ContractViolation:
    by: dict[tuple[str, str], list[int]] = {}
    for rank, line in lines.items():
        by.setdefault(line, []).append(rank)
    told = [f"{_ranks(ranks)}: {what} at {place}" for (what, place), ranks in by.items()]
    usual = Counter(what for what, _ in lines.values()).most_common(1)[0]
    odd = [r for r, (what, _) in lines.items() if what != usual[0]] if usual[1] * 2 > len(lines) else []
    text = f"operation {number} of group {group.name} differs: " + "; ".join(told[:MOST_LINES])
    return ContractViolation(text, code=Code.COLLECTIVE, ranks=tuple(odd))


def _absent(absent: Sequence[int], number: int, group: Group, own: Line, s: float) -> ContractViolation:
    text = f"{_ranks(absent)} did not come to operation {number} of group {group.name} within {s:g} s: "
    return ContractViolation(f"{text}{own[0]} at {own[1]}", code=Code.COLLECTIVE, ranks=tuple(absent))


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(f"rank{rank}" for rank in ranks)


def precheck_from_now_on(deadline: float) -> None:
    """Compare all collectives of this process."""
    checker = Precheck(deadline)
    _current[:] = [checker]
    watch(checker)


_turns = count()
"""Numbers the checkers of this process: those of one number talk to each other, as all ranks make the same ones."""
_current: list[Precheck] = []
_decisions = Precheck(DEADLINE)
