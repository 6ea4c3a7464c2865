"""Describes a run of a network in numbered steps, and what it shows: who is stuck, in what, waiting for which ranks.

Left out: how a run is found (`checker.counterexample`, `checker.shortest_run`) and drawn (`diagrams.sequence_chart`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceStep:
    """Holds one numbered step.

    `edge` is as in `Move`; `states` are all ranks' afterwards.
    """

    number: int
    rank: int
    event: str
    edge: str
    operation: str
    sequence: int | None
    """Which collective of that name it is, from 1."""
    commits: bool
    states: tuple[str, ...]
    data: str = ""
    members: tuple[int, ...] = ()
    """The ranks that its collective is of, in the order of the group; empty: all."""

    @property
    def text(self) -> str:
        collective = f"{self.operation} #{self.sequence}"
        shown = {
            "issue": f"{self.event}, issues {collective}",
            "complete": f"{self.event}, completes {collective}",
            "device": f"completes {collective} on its stream",
            "crash": "dies",
        }.get(self.edge, self.event)
        return f"rank{self.rank} {shown} → {self.states[self.rank]}" + (f"  [{self.data}]" if self.data else "")


@dataclass(frozen=True, slots=True)
class Stuck:
    """Describes a rank that can never advance.

    `since` is the number of the step that committed a peer to wait.
    """

    rank: int
    state: str
    operation: str
    waiting_for: tuple[int, ...]
    since: int | None
    goes_round: bool = False
    """It waits for nobody: all that it can do is go round by itself."""

    @property
    def text(self) -> str:
        """Return a sentence: `rank1 is stuck in AWAIT_PAYLOAD (payload), waiting for rank0`."""
        if self.goes_round:
            return f"rank{self.rank} can only go round by itself, from {self.state}"
        peers = " and ".join(f"rank{p}" for p in self.waiting_for) or "nobody in particular"
        return f"rank{self.rank} is stuck in {self.state} ({self.operation}), waiting for {peers}"


@dataclass(frozen=True)
class Counterexample:
    """Holds a run that shows that a property does not hold."""

    claim: str
    """Name of the property."""
    text: str
    ranks: int
    stuck: tuple[Stuck, ...]
    steps: tuple[TraceStep, ...]
    shortest: bool = True
    """No run that shows it has fewer steps. A reduced search leaves out some that may."""
    then: str = ""
    """Says how the run may go on for ever, where the property says what must come in the end."""

    def __repr__(self) -> str:
        return f"<{self.title}>"

    @property
    def title(self) -> str:
        """Return a title: `shortest counterexample to no_stranding, 27 steps`."""
        number = len(self.steps)
        return f"{'shortest ' * self.shortest}counterexample to {self.claim}, {number} step{'s' * (number != 1)}"

    @property
    def summary(self) -> str:
        """Return one sentence for each rank that is stuck, or what the last step did."""
        after = [self.then] if self.then else []
        if not self.stuck:
            last = self.steps[-1] if self.steps else None
            violated = f"{self.claim} is violated" + (f" when {last.text}" if last else " in the initial state")
            return "; ".join([violated, *after])
        return "; ".join([*(s.text + self._since(s) for s in self.stuck), *after])

    def _since(self, stuck: Stuck) -> str:
        return f", since step {stuck.since} ({self.steps[stuck.since - 1].event})" if stuck.since else ""
