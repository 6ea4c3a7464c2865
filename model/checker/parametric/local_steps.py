"""Skips steps that nobody sees: a rank that has one way to go, and that only its end can hold up, is there already.

Whatever others can do while it is on its way they can do once it has arrived, for all that it does to them is to
issue what they may wait for. So there are fewer lanes, those in which ranks wait or choose, and nothing is lost.

Here stands also what a protocol must be for its workers to be a set. Left out: steps that others hold up or see.
"""

from __future__ import annotations

from ....errors import ModelError
from ...semantics.lts import Info, Lts, Step
from ...semantics.network import Faults
from ...tables import Protocol, Put, Take, beyond
from ..reference import Taken
from .abstract_state import Lanes

MAX_UNFINISHED = 24
"""More unfinished collectives than this in one group are taken for a queue that grows without end."""
ELSEWHERE = "check it at a chosen number of ranks"


def refuse(protocol: Protocol) -> None:
    """Raise ModelError for what is no function of the set of occupied lanes, naming the row."""
    more = beyond(protocol)
    if more is not None:
        raise ModelError(f"no world size but one that is chosen can have {more}", where=protocol.name, do=ELSEWHERE)
    if protocol.claims:
        what = f"its claim `{protocol.claims[0].name}` is about the ranks that there are"
        raise ModelError(what, where=protocol.name, do=ELSEWHERE)
    for role in protocol.roles:
        for row in role.rows:
            where = f"{role.name}, row {row}"
            if isinstance(row.gate, Put | Take):
                what = f"slot `{row.gate.slot.name}` belongs to one worker, and any world size takes them as equals"
                raise ModelError(what, where=where, do=ELSEWHERE)
            if row.op is not None and row.op.root not in (None, 0):
                what = f"the root of `{row.op.name}` is one worker, and any world size takes them as equals"
                raise ModelError(what, where=where, do=ELSEWHERE)
            failed, fails = role.by_name[row.state].failed, role.by_name[row.target].failed
            if failed and (row.op is not None or not fails):
                raise ModelError("a failed rank takes part again, and here it is forgotten", where=where, do=ELSEWHERE)
            if row.op is not None and fails:
                raise ModelError(f"`{row.op.name}` leads to a failed state", where=where, do="fail in a row of its own")
    if protocol.ranks is not None:
        raise ModelError(f"it is about {protocol.ranks} ranks and no others", where=protocol.name)


class LocalSteps:
    """Maps a lane to the one at which its rank next waits, chooses or ends, and what is seen and taken till then."""

    def __init__(self, lanes: Lanes, kinds: Faults) -> None:
        self.lanes, self.kinds = lanes, kinds
        protocol = lanes.protocol
        self.streams = [g for g in protocol.streams if g in lanes.group and lanes.lts[0].stream]
        self._points = {p.state for points in kinds.values() for p in points or ()}
        self._found: dict[tuple[int, int], tuple[int, tuple[str, ...], tuple[Taken, ...]]] = {}

    def __call__(self, role: int, number: int) -> tuple[int, tuple[str, ...], tuple[Taken, ...]]:
        found = self._found.get((role, number))
        if found is None:
            seen, taken = list[str](), list[Taken]()
            on, passed = number, {number}
            while steps := self._only_way(role, on):
                seen += (name for step in steps for name in step.seen)
                taken += (row for step in steps for row in self.lanes.taken(role, step))
                on = self.stepped(role, on, steps[0])
                if on in passed:
                    raise ModelError("a rank goes round for ever without waiting", where=f"row {steps[0].row}")
                passed.add(on)
            found = self._found[role, number] = (on, tuple(dict.fromkeys(seen)), tuple(dict.fromkeys(taken)))
        return found

    def stepped(self, role: int, number: int, step: Step) -> int:
        """Return the lane after a step that does not fail."""
        if step.contribution is None:
            return self.lanes.put(role, number, step.target)
        op = step.contribution.op
        group = self.lanes.group[op.group]
        column = self.lanes.lane(role, number).columns[group]
        if len(column) >= MAX_UNFINISHED:
            what = f"a rank may be in more than {MAX_UNFINISHED} unfinished collectives of group `{op.group}`"
            raise ModelError(what, where=f"row {step.row}", do=ELSEWHERE)
        return self.lanes.put(role, number, step.target, group, (*column, self.lanes.contributions(step.contribution)))

    def _only_way(self, role: int, number: int) -> tuple[Step, ...]:
        """Return the one step that leads on from a lane, then those that lead nowhere; none where there is a choice."""
        lts, local = self.lanes.lts[role], self.lanes.lane(role, number).local
        info = lts.info(local)
        if info.terminal or info.stalled or info.op is not None or info.state in self._points:
            return ()
        own = lts.menu(local).own
        onward = [s for s in own if s.target != local]
        nowhere = [s for s in own if s.target == local]
        if len(onward) != 1 or any(s.row.gate or s.contribution for s in nowhere):
            return ()
        step, after = onward[0], lts.info(onward[0].target)
        if step.row.gate is not None or (step.row.syncs and lts.stream) or self._looks_away(role, number, after):
            return ()
        if after.terminal or after.failed or after.counter < info.counter or not self._only_ends(lts, local, step):
            return ()
        return (step, *nowhere)

    def _looks_away(self, role: int, number: int, after: Info) -> bool:
        """Return whether the host would wait elsewhere than its device, which may wait for a rank that has ended."""
        if after.op is None:
            return False
        columns = self.lanes.lane(role, number).columns
        streams = (self.lanes.group[g] for g in self.streams if g != after.op.group)
        return any(entry > 0 for group in streams for entry in columns[group])

    def _only_ends(self, lts: Lts, local: int, step: Step) -> bool:
        """Return whether faults and detection can do no more to the local than end it, as they can after the step."""
        here, there = lts.menu(local), lts.menu(step.target)
        struck = [s for s in here.faults if s.row.fault in self.kinds]
        if any(not lts.info(s.target).failed for s in (*struck, *here.detects)):
            return False
        if here.detects and not there.detects:
            return False
        later = {s.row.fault for s in there.faults if lts.info(s.target).failed}
        return all(s.row.fault in later for s in struck)
