"""Says which moves a search may leave out, because what they lead to is met without them: partial order reduction.

*Hasty ranks.* A rank whose next steps ask nothing of others, and do no more to them than issue what they may wait for,
takes them before anybody else moves. All that others could do meanwhile they can do afterwards.

*Failures.* Once a rank has failed or stalled, everything but detection could have been done before; and detection can
take every rank to its end. So a state in which somebody has failed is kept, and not gone on from.

Both are sound under conditions on the tables, which are checked; where one does not hold, the row or state is named.
The argument stands in docs/checker.md. Left out: the search (`search.py`), and what is judged (`properties.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ....errors import UsageError
from ...semantics.lts import DEADLINE, Lts, Step
from ...semantics.network import Network
from ...tables import By, Meet, Put, Role, Row, Take, beyond


class Unfit(UsageError):
    """Says that the protocol does not meet a condition of the reduction."""


def unfit(why: str) -> Unfit:
    return Unfit(f"the search cannot be reduced: {why}", where="--reduction on", do="leave it at auto")


class Reduction:
    """Decides what may be left out of a network's search.

    Raises Unfit where its tables do not allow any of it.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._points = {p.state for points in network.kinds.values() for p in points or ()}
        self._hasty: dict[tuple[int, int], bool] = {}
        if (more := beyond(network.protocol)) is not None:
            raise unfit(f"it has {more}")
        if not network.detection:
            raise unfit("with detection off nothing ends the others after a failure")
        for role in network.protocol.roles:
            _check_ends(role)
        self._compares = any(isinstance(row.gate, Meet) for role in network.protocol.roles for row in role.rows)

    def is_hasty(self, role: int, local: int) -> bool:
        """Return whether a rank's own steps from here are taken before anybody else moves.

        Raises Unfit where detection cannot end the rank here after another's failure.
        """
        found = self._hasty.get((role, local))
        if found is None:
            # while it is worked out it counts as not hasty, which breaks a cycle of hasty steps
            self._hasty[role, local] = False
            found = self._hasty[role, local] = self._asks_nobody(role, local)
        return found

    def looks_away(self, role: int, local: int, outstanding: Sequence[str]) -> bool:
        """Return whether a rank's next step makes its host wait elsewhere than its device, which runs these groups.

        A rank whose host waits in a collective is asked for that one alone whether a member has ended, so that it
        may have detected before the step what it cannot detect after it.
        """
        infos = (self._network.lts[role].info(s.target) for s in self._network.lts[role].menu(local).own)
        return any(info.op is not None and info.op.group != group for info in infos for group in outstanding)

    def _asks_nobody(self, role: int, local: int) -> bool:
        lts = self._network.lts[role]
        info = lts.info(local)
        if info.terminal or info.failed or info.stalled:
            return False
        menu = lts.menu(local)
        self._fails_unseen(lts, local)
        if not menu.detects or not all(lts.info(s.target).failed for s in menu.detects):
            raise unfit(f"detection does not end {lts.role.name} in {info.state}")
        if any(s.seen for s in menu.detects):
            raise unfit(f"a property names what detection does to {lts.role.name} in {info.state}")
        if info.op is not None or info.state in self._points:
            return False
        struck = [s for s in menu.faults if s.row.fault in self._network.kinds]
        if any(s.seen or not lts.info(s.target).failed for s in struck):
            return False
        onward = [s for s in menu.own if s.target != local]
        still = [s for s in menu.own if s.target == local]
        if not onward or any(s.row.gate or s.contribution for s in still):
            return False
        return all(self._is_own_affair(lts, local, s) for s in onward) and not any(
            self._returns(role, local, s.target) for s in onward
        )

    def _fails_unseen(self, lts: Lts, local: int) -> None:
        """Raise Unfit where a rank that fails from here raises its counter, on which others may wait."""
        if not self._compares:
            return
        info, menu = lts.info(local), lts.menu(local)
        ends = [s.target for s in (*menu.own, *menu.faults, *menu.detects) if lts.info(s.target).failed]
        todo, known = [lts.crashed(local), *ends], set()
        while todo:
            here = todo.pop()
            if here in known:
                continue
            known.add(here)
            there = lts.info(here)
            if there.counter > info.counter:
                raise unfit(f"the counter of {lts.role.name} rises where it fails in {info.state}")
            if not there.terminal:
                steps = lts.menu(here)
                todo += [s.target for s in (*steps.own, *steps.faults, *steps.detects)]

    def _is_own_affair(self, lts: Lts, local: int, step: Step) -> bool:
        after = lts.info(step.target)
        waits = step.row.gate is not None or bool(step.checks) or (step.row.syncs and lts.stream)
        return not waits and not after.terminal and not after.failed and after.counter >= lts.info(local).counter

    def _returns(self, role: int, start: int, local: int) -> bool:
        """Return whether hasty steps lead from `local` round to `start`."""
        seen, todo = set(), [local]
        while todo:
            here = todo.pop()
            if here == start:
                return True
            if here not in seen:
                seen.add(here)
                if self.is_hasty(role, here):
                    todo += [s.target for s in self._network.lts[role].menu(here).own if s.target != here]
        return False


def _check_ends(role: Role) -> None:
    """Raise Unfit unless a failed rank comes to its end by steps of its own, whatever the others do.

    Failing and what follows must do nothing to others, so that they could have done before all that they do after.
    """
    ends = {s.name for s in role.states if s.terminal}
    failed = {s.name for s in role.states if s.failed}
    for row in role.rows:
        if row.op is not None and row.target in failed:
            raise unfit(f"a collective leads into a failed state: {role.name}, row {row}")
        if isinstance(row.gate, Put | Take) and row.target in failed:
            raise unfit(f"a rank fills or empties a slot as it fails: {role.name}, row {row}")
    for state in failed - ends:
        rows = role.leaving[state]
        for row in rows:
            if row.op or row.gate or row.guards or row.syncs or row.target not in failed:
                raise unfit(f"a failed rank takes part again: {role.name}, row {row}")
        if not any(_is_always_open(row, rows) for row in rows):
            raise unfit(
                f"{role.name} may stay in {state} for ever" if rows else f"{role.name} stays in {state} for ever"
            )
    # each round takes away those whose every way leads to an end
    left = failed - ends
    while fewer := {s for s in left if any(row.target in left for row in role.leaving[s])}:
        if fewer == left:
            raise unfit(f"a failed {role.name} may go round for ever")
        left = fewer


def _is_always_open(row: Row, beside: Sequence[Row]) -> bool:
    """Return whether a row without gate and guards can be taken whenever its rank is in its state, which has failed.

    A fault may be over, a deadline is not modelled, choices may be none, and a violation comes after the checks.
    """
    if row.choices is not None or row.by is By.FAULT or row.event == DEADLINE:
        return False
    return row.by is not By.VIOLATION or all(other.by is not By.PROTOCOL for other in beside)
