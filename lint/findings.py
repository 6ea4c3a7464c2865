"""Compares the schedules of ranks that decide differently, and makes a finding of each place where they part.

A finding has two confidences. Its *source* says how surely ranks differ in what decides; its *verdict*, how surely
they part in their collectives because of it. Left out: what a reader has settled (`silence`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher

from . import names, vocabulary
from .analysis import Analysis, Summary
from .divergence import Atom, Confidence, Formula, Join, Kind, Source, atoms
from .package import Function
from .rules import Level
from .schedule import (
    INNER,
    Attempt,
    Branch,
    Collective,
    Handler,
    Leave,
    Loop,
    Risk,
    Step,
    collectives_of,
    decided_differently,
    exception_key,
    run,
    walk,
)

_LOCAL_STATE = (Kind.CLOCK, Kind.FILE, Kind.QUEUE, Kind.MEMORY)
_LONGEST = 3000
"""Steps: schedules longer than this are not compared."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Holds one place where ranks part.

    `decided_at` are the lines of the decision, `collective` the operation and `group` its group; `at` is the line
    of the collective where `line` is another's (an early return's).
    """

    rule: str
    path: str
    line: int
    column: int
    message: str
    function: str
    source: Confidence
    verdict: Confidence
    collective: str
    group: str
    at: int
    decided_at: tuple[int, ...] = ()
    text: str = field(default="", compare=False)

    @property
    def level(self) -> Level:
        """Return how bad it is: the weaker of both confidences decides."""
        return Level(min(self.source, self.verdict))


def find(analysis: Analysis) -> list[Finding]:
    """Return all findings, in the order of files and lines; at most one for a place in a file."""
    best: dict[tuple[str, int, str], Finding] = {}
    for function, summary in analysis.walked():
        if function.name.strip("_").startswith(tuple(vocabulary.GROUP_CREATION)):
            continue  # it is one, and tells members from others by itself
        for finding in _of_function(analysis, function, summary):
            place = (finding.path, finding.line, finding.collective)
            known = best.get(place)
            if finding.source is finding.verdict is Confidence.POSSIBLE:
                continue
            if known is None or finding.level > known.level:
                best[place] = finding
    for function, created, sources in analysis.own_groups:
        if not created.via:
            finding = _own_group(function, created, sources)
            best.setdefault((finding.path, finding.line, finding.collective), finding)
    return sorted(best.values(), key=lambda finding: (finding.path, finding.line, finding.rule))


def _of_function(analysis: Analysis, function: Function, summary: Summary) -> Iterator[Finding]:
    if function.rank_zero_only:
        yield from _rank_zero_only(function, summary)
        return
    for atom, lines in decided_differently(summary.nodes):
        yield from _decision(function, summary, atom, lines)
    for node in walk(summary.nodes):
        if isinstance(node, Loop):
            yield from _loop(function, node)
        elif isinstance(node, Attempt):
            for handler in node.handlers:
                yield from _handler(function, summary, node, handler)
    yield from _other_contexts(analysis, function, summary)


# --- decisions ---


def relevance(source: Source, single: bool, group: str) -> Confidence | None:
    """Return how surely a decision on this source splits the group; None where every member decides alike.

    `single` is true for a test that one rank alone passes (`rank == 0`).
    """
    if source.kind is not Kind.RANK:
        named = group not in (names.WORLD, names.UNKNOWN)
        return Confidence.POSSIBLE if named and source.kind is Kind.DATA else Confidence.LIKELY
    scope = source.scope
    if group == names.WORLD or scope == group:
        return Confidence.CERTAIN
    if group == names.UNKNOWN:
        return Confidence.LIKELY if scope == names.WORLD else Confidence.POSSIBLE
    if scope == names.WORLD:  # a group of another name may be rank 0's with others outside of this job
        return Confidence.LIKELY if single and group in names.DIMENSIONS else Confidence.POSSIBLE
    return None


@dataclass(frozen=True, slots=True)
class _Parting:
    """Holds a stretch in which two schedules differ: `here` is one rank's part, `there` the others'."""

    here: list[Step]
    there: list[Step]
    rest_here: list[Step]
    rest_there: list[Step]


def _decision(function: Function, summary: Summary, atom: Atom, lines: tuple[int, ...]) -> Iterator[Finding]:
    """Compare the ranks for which an atom is true with those for which it is false."""
    first, second = run(summary.nodes, atom.key, True), run(summary.nodes, atom.key, False)
    if first == second or len(first) + len(second) > _LONGEST:
        return
    yes, no = _relevant(first, atom), _relevant(second, atom)
    if _same_ways(yes, no):
        return
    both_written = _written_twice(yes, no)
    for parting in _partings(yes, no):
        found = _judge(function, summary, parting, atom, lines)
        if found is not None:
            yield replace(found, verdict=Confidence.POSSIBLE) if both_written else found
            if all(source.kind is not Kind.RANK for source in atom.sources):
                return  # one decision about a clock or a file is mended once


def _written_twice(yes: list[Step], no: list[Step]) -> bool:
    """Return whether both sides write the same collectives, at places of their own, under tests of their own."""
    first, second = collectives_of(yes), collectives_of(no)
    return [(one.operation, one.group) for one in first] == [(one.operation, one.group) for one in second] and any(
        one.line != other.line for one, other in zip(first, second, strict=True)
    )


_Ways = frozenset[tuple[tuple[str, ...], ...]]
_MOST_WAYS = 64


def _same_ways(yes: list[Step], no: list[Step]) -> bool:
    """Return whether both sides can issue the same runs of collectives, whatever is decided on the way.

    A sender that knows a size and a receiver that is told it branch at different places, and issue the same.
    """
    if not any(step.sign[0] == "if" for step in (*yes, *no)):
        return False
    shared = {step.sign for step in yes if step.sign[0] == "if"} & {step.sign for step in no if step.sign[0] == "if"}
    first, second = _ways(yes, shared), _ways(no, shared)
    return first is not None and first == second


def _ways(steps: list[Step], shared: set[tuple[str, ...]]) -> _Ways | None:
    """Return the runs of collectives that are possible; None where there are too many, or loops.

    A run tells the outcomes of the `shared` tests, which both sides decide alike.
    """
    done: set[tuple[tuple[str, ...], ...]] = set()
    todo: list[tuple[int, tuple[tuple[str, ...], ...]]] = [(0, ())]
    while todo:
        place, issued = todo.pop()
        if len(done) + len(todo) > _MOST_WAYS:
            return None
        if place == len(steps) or isinstance(steps[place].at, Leave):
            done.add(issued)
            continue
        step = steps[place]
        if step.sign[0] == "loop":
            return None
        if step.sign[0] == "if":
            told = step.sign in shared
            todo.append((_after(steps, place, "else"), (*issued, (*step.sign, "no")) if told else issued))
            issued = (*issued, (*step.sign, "yes")) if told else issued
        elif step.sign == ("else",):
            place = _after(steps, place, "end") - 1
        todo.append((place + 1, (*issued, step.sign) if step.collective else issued))
    return frozenset(done)


def _after(steps: list[Step], place: int, mark: str) -> int:
    """Return the place after the mark that belongs to the bracket at `place`."""
    depth = 0
    for number in range(place + 1, len(steps)):
        sign = steps[number].sign[0]
        if depth == 0 and sign == mark:
            return number + 1
        depth += (sign in ("if", "loop")) - (sign == "end")
    return len(steps)


def _relevant(steps: list[Step], atom: Atom) -> list[Step]:
    """Return the steps that matter where this atom is decided differently, without empty brackets."""
    kept: list[Step] = []
    opened: list[int] = []
    for step in steps:
        if step.collective is not None and _confidence(atom, step.collective) is None:
            continue
        if step.sign[0] in ("if", "loop"):
            opened.append(len(kept))
        kept.append(step)
        if step.sign == ("end",) and opened:
            begin = opened.pop()
            if all(inner.at is None or inner.sign[0] in INNER for inner in kept[begin:]):
                del kept[begin:]
    return kept


def _confidence(atom: Atom, collective: Collective) -> tuple[Confidence, Source] | None:
    """Return how surely this decision splits the collective's group, and by which source; None if it does not."""
    if atom.members and atom.members in (collective.members, collective.group):
        return None
    best: tuple[Confidence, Source] | None = None
    for source in atom.sources:
        verdict = relevance(source, atom.single, collective.group)
        if verdict is not None and atom.members and collective.group != names.WORLD:
            verdict = Confidence.POSSIBLE
        if verdict is not None and (best is None or min(verdict, source.confidence) > min(best[0], best[1].confidence)):
            best = verdict, source
    return best


def _partings(yes: list[Step], no: list[Step]) -> Iterator[_Parting]:
    matcher = SequenceMatcher(None, _in_context(yes), _in_context(no), autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag != "equal":
            yield _Parting(yes[i1:i2], no[j1:j2], yes[i2:], no[j2:])


def _in_context(steps: list[Step]) -> list[tuple[tuple[str, ...], ...]]:
    """Return the signs of the steps, collectives with the open tests around them: under a test it is not the same."""
    around: list[tuple[str, ...]] = []
    found = []
    for step in steps:
        if step.sign == ("end",):
            around.pop()
        elif step.sign == ("else",):
            around[-1] = (*around[-1], "else")
        found.append((step.sign, *around) if step.collective else (step.sign,))
        if step.sign[0] in ("if", "loop"):
            around.append(step.sign)
    return found


def _judge(
    function: Function, summary: Summary, parting: _Parting, atom: Atom, lines: tuple[int, ...]
) -> Finding | None:
    """Return the finding that a parting makes; None where nobody is left waiting."""
    issued = collectives_of(parting.here) or collectives_of(parting.there)
    leave = _left_early(parting)
    if leave is None and not issued:
        return None
    if not issued:
        inside = _loop_of(parting)
        issued = collectives_of(_body(inside)) if inside is not None else []
        issued = issued or (collectives_of(parting.rest_there) or collectives_of(parting.rest_here))
        issued = [one for one in issued if _confidence(atom, one) is not None]
    if not issued:
        return None
    collective = issued[0]
    if leave is not None and collective.line <= leave.line and _loop_of(parting) is None:
        leave = None  # it is the other way of a branch, not an early end
    judged = _confidence(atom, collective)
    if judged is None:
        return None
    verdict, source = judged
    verdict = min(verdict, collective.sure)
    if _is_alternative(summary, atom):
        # `configured or rank == 0`: what is called then may ask for the same configuration
        verdict = Confidence.POSSIBLE if collective.via else min(verdict, Confidence.LIKELY)
    if leave is not None and leave.how == "raise":
        verdict = Confidence.POSSIBLE  # it is seen, and ends the job as a rule
    number = _rule(source, collective, leave, _loop_of(parting))
    where = leave if leave is not None and number != "GL105" else collective
    return Finding(
        number,
        function.module.path,
        where.line,
        getattr(where, "column", 0),
        _message(parting, atom, collective, leave, source),
        function.name,
        source.confidence,
        verdict,
        collective.operation,
        collective.group,
        collective.line,
        lines,
        _line(function, where.line),
    )


def _is_alternative(summary: Summary, atom: Atom) -> bool:
    """Return whether each branch on this atom is one on an alternative that all ranks decide alike, too."""
    tests = [node.test for node in walk(summary.nodes) if isinstance(node, Branch)]
    tests = [test for test in tests if any(part.key == atom.key for part in atoms(test))]
    return bool(tests) and all(
        isinstance(test, Join)
        and any(_is_choice(part) for part in (test, *test.parts) if any(a.key == atom.key for a in atoms(part)))
        for test in tests
    )


def _is_choice(formula: Formula) -> bool:
    """Return whether a formula is a disjunction with something in it that all ranks decide alike."""
    return (
        isinstance(formula, Join)
        and not formula.every
        and any(not part.sources and part.alone is None for part in atoms(formula))
    )


def _left_early(parting: _Parting) -> Leave | None:
    """Return the leave by which one side misses what the other does; None where both leave, or none."""
    both = all(any(isinstance(step.at, Leave) for step in side) for side in (parting.here, parting.there))
    if both and not collectives_of([*parting.here, *parting.there]):
        return None
    for side in (parting.here, parting.there):
        for step in side:
            if isinstance(step.at, Leave) and not collectives_of(side):
                return step.at
    return None


def _loop_of(parting: _Parting) -> Loop | None:
    for step in (*parting.here, *parting.there):
        if isinstance(step.at, Leave) and step.at.how in ("break", "return") and step.loop is not None:
            return step.loop
    return None


def _body(loop: Loop) -> list[Step]:
    return run(loop.body)


def _rule(source: Source, collective: Collective, leave: Leave | None, loop: Loop | None) -> str:
    if collective.creates_group:
        return "GL105"
    if source.kind is Kind.EXCEPTION:
        return "GL106"
    if source.kind in _LOCAL_STATE:
        return "GL108"
    if leave is not None and loop is not None:
        return "GL103"
    if leave is not None:
        return "GL102"
    return "GL109" if collective.hidden else "GL101"


def _message(parting: _Parting, atom: Atom, collective: Collective, leave: Leave | None, source: Source) -> str:
    """Return who waits for whom, and what decided."""
    test = atom.shown or atom.key
    called = _called(collective)
    if leave is not None:
        ends = {"return": "return", "raise": "raise", "break": "leave the loop", "continue": "skip the rest"}[leave.how]
        which = "is true" if any(step.at is leave for step in parting.here) else "is false"
        return (
            f"ranks where `{test}` {which} {ends} at line {leave.line}; the others wait for them in {called}"
            f" at line {collective.line} ({_by(source)})"
        )
    side = "is true" if collectives_of(parting.here) else "is false"
    here, there = parting.here, parting.there
    rest = (there or parting.rest_there) if collectives_of(here) else (here or parting.rest_here)
    after = collectives_of(rest)
    elsewhere = f"go on to {after[0].operation} at line {after[0].line}" if after else "never call it"
    return f"ranks where `{test}` {side} wait in {called}; the others {elsewhere} ({_by(source)})"


def _called(collective: Collective) -> str:
    group = "" if collective.group in (names.WORLD, names.UNKNOWN) else f" on group {collective.group}"
    via = f" (through {' > '.join(f'{name}()' for name in collective.via)})" if collective.via else ""
    return f"{collective.operation}{group}{via}"


def _by(source: Source) -> str:
    return f"{source.kind} decides: {source.text}"


def _line(function: Function, line: int) -> str:
    lines = function.module.lines
    return lines[line - 1].strip() if 0 < line <= len(lines) else ""


# --- loops ---


def _loop(function: Function, loop: Loop) -> Iterator[Finding]:
    """Yield a finding for a loop that ranks run a different number of times, or in another order."""
    issued = collectives_of(run(loop.body))
    for sources, ordered in ((loop.count, False), (loop.order, True)):
        chosen = _worst(sources, issued)
        if chosen is None:
            continue
        verdict, source, collective = chosen
        number = "GL107" if ordered else _rule_of_loop(source)
        what = "in an order of their own" if ordered else "as often as each sees fit"
        yield Finding(
            number,
            function.module.path,
            loop.line,
            0,
            f"ranks run this loop ({loop.what}) {what}, with {_called(collective)} at line {collective.line} in it"
            f" ({_by(source)})",
            function.name,
            source.confidence,
            verdict,
            collective.operation,
            collective.group,
            collective.line,
            (loop.line,),
            _line(function, loop.line),
        )


def _worst(sources: Iterable[Source], issued: list[Collective]) -> tuple[Confidence, Source, Collective] | None:
    best: tuple[Confidence, Source, Collective] | None = None
    for source in sources:
        for collective in issued:
            verdict = relevance(source, False, collective.group)
            if verdict is None:
                continue
            verdict = min(verdict, collective.sure)
            if best is None or min(verdict, source.confidence) > min(best[0], best[1].confidence):
                best = verdict, source, collective
    return best


def _rule_of_loop(source: Source) -> str:
    if source.kind in _LOCAL_STATE:
        return "GL108"
    return "GL104" if source.kind is Kind.DATA and source.confidence is Confidence.POSSIBLE else "GL103"


# --- exceptions, and functions that not every rank runs ---


def _handler(function: Function, summary: Summary, attempt: Attempt, handler: Handler) -> Iterator[Finding]:
    """Yield a finding where a rank that catches an exception goes on without a collective of the others."""
    risk = next((node for node in walk(attempt.body) if isinstance(node, Risk)), None)
    if risk is None or not handler.broad or any(_gives_up(node) for node in handler.body):
        return
    key = exception_key(attempt, handler)
    source = Source(Kind.EXCEPTION, Confidence.LIKELY, f"failure of {risk.text} at line {risk.line}", risk.line)
    atom = Atom(key, (source,), f"{risk.text} failed")
    caught, passed = run(summary.nodes, key, True), run(summary.nodes, key, False)
    if caught == passed or len(caught) + len(passed) > _LONGEST:
        return
    for parting in _partings(_relevant(caught, atom), _relevant(passed, atom)):
        found = _judge(function, summary, parting, atom, (attempt.line, handler.line))
        if found is not None:
            yield found


def _gives_up(node: object) -> bool:
    return isinstance(node, Leave) and node.how == "raise"


def _rank_zero_only(function: Function, summary: Summary) -> Iterator[Finding]:
    issued = collectives_of(summary.steps)
    if issued:
        first = issued[0]
        yield _plain(
            function,
            "GL109",
            first,
            f"`@{function.rank_zero_only}` runs this on one rank, which waits in {_called(first)} for the others",
            Confidence.CERTAIN,
            first.sure if first.group in (names.WORLD, names.UNKNOWN) else Confidence.POSSIBLE,
        )


def _other_contexts(analysis: Analysis, function: Function, summary: Summary) -> Iterator[Finding]:
    """Yield findings for destructors, and for functions that a thread or a signal runs."""
    if function.name == "__del__":
        for first in collectives_of(summary.steps)[:1]:
            yield _plain(
                function,
                "GL110",
                first,
                f"the collector runs this destructor when it likes, on each rank at another time: {_called(first)}",
                Confidence.LIKELY,
                min(Confidence.LIKELY, first.sure),
            )
    for name, target, line in summary.others:
        if not analysis.may_issue(target):
            continue
        for first in collectives_of(analysis.summary(target).steps)[:1]:
            on_default = first.group == names.WORLD
            handed = Collective(first.operation, first.group, line, via=(target.name, *first.via))
            yield _plain(
                function,
                "GL110",
                handed,
                f"`{name}` runs {target.name}() beside the main thread, whose collectives it can overtake:"
                f" {_called(first)}",
                Confidence.LIKELY,
                min(Confidence.LIKELY if on_default else Confidence.POSSIBLE, first.sure),
            )


def _own_group(function: Function, created: Collective, sources: tuple[Source, ...]) -> Finding:
    source = next(source for source in sources if source.kind is Kind.RANK)
    return _plain(
        function,
        "GL105",
        created,
        f"each rank creates a group of its own choice ({_by(source)}): {created.operation} waits for all ranks, which"
        " must create the same groups in the same order",
        source.confidence,
        Confidence.CERTAIN,
    )


def _plain(
    function: Function, number: str, first: Collective, message: str, source: Confidence, verdict: Confidence
) -> Finding:
    return Finding(
        number,
        function.module.path,
        first.line,
        first.column,
        message,
        function.name,
        source,
        verdict,
        first.operation,
        first.group,
        first.line,
        (),
        _line(function, first.line),
    )
