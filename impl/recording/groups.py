"""Keeps what is known of each process group of this process, for as long as it lives."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import ref

import torch
import torch.distributed as dist

from ...traces.format import Group
from .operations import OperationObserver
from .torch_compat import lookup

_Gloo, _backend_of = map(lookup, ("distributed.ProcessGroupGloo", "distributed.ProcessGroup._get_backend"))
_ProcessGroup: Any = dist.ProcessGroup


class Known(NamedTuple):
    """Keeps what is known of a group."""

    alive: ref[Any]
    """Forgets the group when it dies."""
    group: Group
    backend: Any
    """Takes operations on the fast path; None where none may go there."""
    observers: dict[tuple[Any, ...], OperationObserver]
    """Maps operations that took the fast path, by what they are and where they came from, to their observer: a program
    issues the same ones again and again."""


class Groups:
    """Maps live process groups to what is known of them. A group is forgotten when it dies: its backend would live on,
    threads and all."""

    def __init__(self) -> None:
        self.known: dict[int, Known] = {}
        """Keyed by the `id` of a ProcessGroup."""
        self._names: dict[str, int] = {}
        self._joined = 1
        """Counts how often this process has joined its job: torch gives the same names to groups again."""
        self.unregistered: dict[str, ref[Any]] = {}
        """Groups that torch.distributed does not know, by their names."""

    def of(self, group: Any) -> Known:
        """Return what is known of a group."""
        return self.known.get(id(group)) or self._learn(group)

    def begin_job(self, again: bool) -> None:
        """Name groups anew: torch counts from the beginning when the default group is made."""
        self._joined = self._joined + 1 if again else 1
        self._names.clear()
        self.known.clear()

    def forget_observers(self) -> None:
        """Ask the watcher again for its observers."""
        for known in [*self.known.values()]:
            known.observers.clear()

    def _learn(self, group: Any) -> Known:
        name, at = str(group.group_name), id(group)
        if self._joined > 1:
            name += f"#{self._joined}"
        used = self._names[name] = self._names.get(name, 0) + 1
        name = name if used == 1 else f"{name}#{used}"
        alive = ref(group, lambda _: self.known.pop(at, None))
        try:
            members, backend = tuple(dist.get_process_group_ranks(group)), str(dist.get_backend(group))
        except (KeyError, ValueError, AssertionError):  # torch.distributed does not know it
            members, backend = tuple(range(group.size())), ""
            name = f"unregistered {name} {at:x}"
            self.unregistered[name] = alive
        described = Group(name, members, backend, group.group_desc)
        known = self.known[at] = Known(alive, described, _gloo_of(group), {})
        return known


def _gloo_of(group: Any) -> Any:
    """Return the backend of a group where that is plain gloo for tensors on the host; else None."""
    if type(group) is not _ProcessGroup:
        return None
    try:
        backend = _backend_of(group, torch.device("cpu"))
    except RuntimeError:
        return None
    return backend if type(backend) is _Gloo else None
