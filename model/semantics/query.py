"""Turns what a user asks about into a network: a protocol by the name that they gave, its scope, and what may go wrong.

Left out: what is asked of it (`properties.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...errors import UsageError
from ..protocols.load import load
from ..tables import Protocol, Scope
from .faults import asked, refuse_idle, with_faults
from .known_mutants import mutant as find_mutant
from .network import CRASH, MAX_RANKS, Network

MUTATED = "tp_v1.1"
"""The protocol that the known mutants break."""
MAX_FAULTS = 255
MOST = 10_000
"""Chunks and steps, at most: a search of fewer would already have no end."""


@dataclass(frozen=True)
class Query:
    """Holds a protocol (see `load`), or a mutant of TP v1.1, and how it is to be searched."""

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
    ranks_chosen: bool = False
    """The user chose `scope.ranks`, so that a protocol that is about another number is refused."""
    given: Protocol | None = None
    """The protocol itself, where there is no name to load it by; `protocol` is then what it calls itself."""

    def network(self) -> Network:
        """Return the network to search. Raise UsageError for an unknown name, or a fault that cannot strike."""
        self._check_bounds()
        tables = self.tables()
        ranks = tables.ranks or self.scope.ranks
        if self.ranks_chosen and ranks != self.scope.ranks:
            do = "leave --ranks out: its own parameters (--param) say how many there are"
            raise UsageError(f"{self.protocol} is about {ranks} ranks", where=f"--ranks {self.scope.ranks}", do=do)
        if self.mutant is not None and self.protocol != MUTATED:
            what = f"{self.protocol} has no known mutants: they break {MUTATED}"
            raise UsageError(what, where=f"--mutant {self.mutant}")
        broken = None if self.mutant is None else find_mutant(self.mutant)
        chosen = asked(self.fault_points, tables)
        if chosen and self.faults == 0:
            raise UsageError("no fault can strike", where="--faults 0", do="leave --fault out, or allow one")
        kinds = {**(broken.faults if broken else {}), **chosen} or {CRASH: None}
        budget, detection, stream = 1, self.detection, self.stream
        edited = with_faults(tables, kinds)
        refuse_idle(chosen, edited, replace(self.scope, ranks=ranks))
        if broken is not None:
            edited, budget, stream = broken.edit(edited), broken.budget, stream or broken.stream
            detection = broken.detection if detection is None else detection
        return Network(
            edited,
            replace(self.scope, ranks=ranks),
            faults=budget if self.faults is None else self.faults,
            kinds=kinds,
            detection=detection is not False,
            stream=stream,
        )

    def tables(self) -> Protocol:
        """Return the protocol, without faults or a mutant."""
        return self.given or load(self.protocol, self.params)

    def _check_bounds(self) -> None:
        scope = self.scope
        for name, value, most in (
            ("ranks", scope.ranks, MAX_RANKS), ("chunks", scope.chunks, MOST), ("steps", scope.steps, MOST),
            ("faults", self.faults or 0, MAX_FAULTS),
        ):  # fmt: skip
            if value > most:
                raise UsageError(f"{value} {name} are too many to search", where=f"--{name}", do=f"take at most {most}")
