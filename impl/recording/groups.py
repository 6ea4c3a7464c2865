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

    def of(self, group: Any) -> Known:
        """Return what is known of a group."""
        return self.known.get(id(group)) or self._learn(group)

    def forget_observers(self) -> None:
        """Ask the watcher again for its observers."""
        for known in [*self.known.values()]:
            known.observers.clear()

    def _learn(self, group: Any) -> Known:
        name, at = str(group.group_name), id(group)
        used = self._names[name] = self._names.get(name, 0) + 1
        try:
            members, backend = tuple(dist.get_process_group_ranks(group)), str(dist.get_backend(group))
        except (KeyError, ValueError, AssertionError):  # torch.distributed does not know it
            members, backend = tuple(range(group.size())), ""
        described = Group(name if used == 1 else f"{name}#{used}", members, backend, group.group_desc)
        alive = ref(group, lambda _: self.known.pop(at, None))
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
