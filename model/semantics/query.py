"""What a user asks about: a protocol by the name that they gave, its scope, and what may go wrong; as a network.

Left out: what is asked of it (`properties.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..protocols.load import load
from ..tables import Protocol, Scope
from .faults import asked, with_faults
from .known_mutants import mutant as find_mutant
from .network import CRASH, Network


@dataclass(frozen=True)
class Query:
    """A protocol (see `load`), or a mutant of TP v1.1, and how it is to be searched."""

    protocol: str
    scope: Scope
    params: Mapping[str, str] = field(default_factory=dict)
    faults: int | None = None
    """At most so many; None: one, or as many as the mutant needs."""
    fault_points: tuple[tuple[str, str | None], ...] = ()
    """Kinds of faults, each at a point or (None) anywhere; empty: the mutant's, or a crash anywhere."""
    stream: bool = False
    detection: bool | None = None
    """None: each property is judged in the mode that it is defined for."""
    mutant: str | None = None
    tables: Protocol | None = None
    """The protocol itself, where there is no name to load it by; `protocol` is then what it calls itself."""

    def network(self) -> Network:
        """The network to search. Raises UsageError for a name that does not exist."""
        tables = self.tables or load(self.protocol, self.params)
        broken = None if self.mutant is None else find_mutant(self.mutant)
        kinds = {**(broken.faults if broken else {}), **asked(self.fault_points, tables)} or {CRASH: None}
        budget, detection, stream = 1, self.detection, self.stream
        edited = with_faults(tables, kinds)
        if broken is not None:
            edited, budget, stream = broken.edit(edited), broken.budget, stream or broken.stream
            detection = broken.detection if detection is None else detection
        return Network(
            edited,
            replace(self.scope, ranks=tables.ranks or self.scope.ranks),
            faults=budget if self.faults is None else self.faults,
            kinds=kinds,
            detection=detection is not False,
            stream=stream,
        )
