"""Pictures say all that the tables and steps say, once, and nothing overlaps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import graphviz
import pytest
from genlock.cli.image_file import save
from genlock.errors import UsageError
from genlock.model.checker.counterexample import counterexample
from genlock.model.checker.reference import check
from genlock.model.checker.shortest_run import shortest
from genlock.model.diagrams.sequence_chart import beats, compared, sequence_mermaid, sequence_svg
from genlock.model.diagrams.state_diagram import Note, outline, state_diagram, state_mermaid
from genlock.model.diagrams.state_diagram_diff import merged
from genlock.model.diagrams.table_diff import changes
from genlock.model.protocols.load import load
from genlock.model.protocols.tp_v1_1 import HEADER, RANK0, SCHEDULE, TP_V1_1, WORKER
from genlock.model.semantics.known_mutants import MUTANTS
from genlock.model.semantics.network import Network, Point
from genlock.model.semantics.properties import CRASH_OVER_HANG, Property
from genlock.model.semantics.run import Counterexample, Stuck, TraceStep
from genlock.model.tables import By, Meet, Put, Role, Row, Scope, Slot, State, Take

ROLES = pytest.mark.parametrize("role", [RANK0, WORKER], ids=lambda role: role.name)
SVG = "{http://www.w3.org/2000/svg}"
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="`dot` is not installed")
FAILURES = (By.FAULT, By.DETECTION)


# ── state diagrams ──────────────────────────────────────────────────────────────────────────────────


def drawn(role: Role) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Nodes and (from, to, the whole line) of the edges of the graph for `dot`."""
    nodes, edges = [], []
    for line in state_diagram(role).body:
        edge = re.match(r'\s*("[^"]*"|\w+)(?::\w+)? -> ("[^"]*"|\w+)(?::\w+)? ', line)
        node = re.match(r'\s*("[^"]*"|\w+) \[', line)
        if edge:
            edges.append((edge[1].strip('"'), edge[2].strip('"'), line))
        elif node:
            nodes.append(node[1].strip('"'))
    return nodes, edges


def text_of(line: str) -> str:
    """The words of a label, without its markup."""
    return " ".join(unescape(re.sub(r"<[^<>]*>", " ", line)).split())


@ROLES
def test_every_state_is_drawn_once(role: Role) -> None:
    nodes, _ = drawn(role)
    assert Counter(n for n in nodes if not n.startswith(" ")) == Counter(s.name for s in role.states)
    assert all(state_diagram(role).source.count(f"<b>{state.name}</b>") == 1 for state in role.states)
    double = {line.split()[0] for line in state_diagram(role).body if "peripheries=2" in line}
    assert double == {s.name for s in role.states if s.terminal}


@ROLES
def test_every_row_is_drawn_once_as_an_arrow_or_in_a_note(role: Role) -> None:
    _, edges = drawn(role)
    arrows = [(here, there, line) for here, there, line in edges if not here.startswith(" ")]
    events = [(here, re.findall(r"<b>(\w+)</b>", line)[0], there) for here, there, line in arrows]
    _, notes = outline(role)
    noted = [(state, event, note.target) for note in notes for state in note.states for event in note.events]
    assert Counter(events + noted) == Counter((r.state, r.event, r.target) for r in role.rows)
    failures = {(r.state, r.event, r.target) for r in role.rows if r.by in FAILURES}
    assert failures <= set(noted)
    assert len(edges) == len(arrows) + len(notes) + 1


@ROLES
def test_an_arrow_says_guards_collective_commitment_and_cause(role: Role) -> None:
    _, edges = drawn(role)
    lines = {(here, event): line for here, _, line in edges for event in re.findall(r"<b>(\w+)</b>", line)}
    for row in outline(role)[0]:
        line = lines[row.key]
        said = text_of(line)
        if row.op is not None:
            assert f"⇄ {row.op.name}" in said
        assert ("⇄" in said, "◆" in said) == (row.op is not None, row.commits), line
        assert all(" ".join(str(guard.__doc__).split()) in said for guard in row.guards), line
        assert ("#c81e1e" in line) == (row.by is By.VIOLATION)


def test_what_many_states_share_is_said_once() -> None:
    live = tuple(s.name for s in RANK0.states if not s.terminal and not s.failed)
    preflight = tuple(f"PREFLIGHT_{n}" for n in range(1, 6))
    notes = {note.events: (note.states, note.target, note.lines(RANK0)) for note in outline(RANK0)[1]}
    failing = ("exception", "peer_lost", "deadline")
    assert notes == {
        failing: (live, "POISONED", ["any live state:", ", ".join(failing)]),
        ("refuse",): (
            preflight,
            "IDLE",
            ["PREFLIGHT_1, PREFLIGHT_2,", "PREFLIGHT_3, PREFLIGHT_4,", "PREFLIGHT_5:", "refuse"],
        ),
    }
    source = state_diagram(RANK0).source
    assert source.count("exception") == source.count("refuse") == 1


def test_a_failure_that_not_every_live_state_has_names_those_that_have_it() -> None:
    rows = tuple(r for r in WORKER.rows if r.event != "exception" or r.state in ("READY", "ACK", "GENERATING"))
    (spared,) = (n for n in outline(replace(WORKER, rows=rows))[1] if n.events == ("exception",))
    assert spared == Note(("READY", "GENERATING", "ACK"), ("exception",), "POISONED", spared.colour)
    assert spared.lines(WORKER) == ["READY, GENERATING, ACK:", "exception"]


def test_a_note_is_for_three_states_or_more_and_for_plain_rows() -> None:
    def shared(states: str, **row: Any) -> tuple[Row, ...]:
        return tuple(Row(state, "leave", "END", **row) for state in states)

    rest = tuple(Row(here, "on", there) for here, there in ("AB", "BC", "CD"))
    states = tuple(State(name, "") for name in ("A", "B", "C", "D", "END"))
    role = Role("r", "A", states, rest, lambda finite: None)
    for rows, noted in [
        (shared("ABC"), ["leave"]),
        (shared("AB"), []),
        (shared("ABC", guards=(lambda v, data: True,)), []),
        (shared("ABC", op=HEADER), []),
        (shared("ABC", gate=Meet()), []),
    ]:
        drawn_rows, notes = outline(role.adding(*rows))
        assert [event for note in notes for event in note.events] == noted
        assert len(drawn_rows) == len(rest) + (0 if noted else len(rows))


EDITS: dict[str, Callable[[Role], Role]] = {
    "target": lambda role: role.edit("GENERATING", "generate", target="PARITY_CHECK"),
    "collective": lambda role: role.edit("GENERATING", "generate", op=HEADER),
    "no collective": lambda role: role.edit("GENERATING", "generate", op=None),
    "guard": lambda role: role.edit("GENERATING", "generate", guards=role.row("GENERATING", "generate").guards[1:]),
    "commitment": lambda role: role.edit("GENERATING", "generate", commits=True),
    "sync": lambda role: role.edit("GENERATING", "leave_phase_b", syncs=False),
    "cause": lambda role: role.edit("GENERATING", "generate", by=By.ENVIRONMENT),
    "less": lambda role: replace(role, rows=tuple(r for r in role.rows if r.key != ("GENERATING", "generate"))),
    "more": lambda role: replace(role, rows=(*role.rows, Row("GENERATING", "wander", "ABORTED"))),
    "failure": lambda role: role.edit("GENERATING", "exception", target="ABORTED"),
    "end": lambda role: replace(
        role, states=tuple(replace(s, terminal=False) if s.name == "STOPPED" else s for s in role.states)
    ),
}


@ROLES
@pytest.mark.parametrize("edit", EDITS)
def test_a_changed_table_changes_the_picture(role: Role, edit: str) -> None:
    changed = EDITS[edit](role)
    assert state_diagram(changed).source != state_diagram(role).source
    if edit != "cause":
        assert state_mermaid(changed) != state_mermaid(role)


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (Put(Slot("mail")), "generate puts mail"),
        (Take(Slot("mail")), "generate takes mail"),
        (Meet(), "generate once all counters are there"),
    ],
)
def test_a_gate_is_said(gate: Put | Take | Meet, said: str) -> None:
    gated = WORKER.edit("GENERATING", "generate", op=None, gate=gate)
    assert said in text_of(state_diagram(gated).source)
    assert f" : {said}" in state_mermaid(gated)


def test_a_mutant_is_seen() -> None:
    driver = MUTANTS["FM-04"].edit(TP_V1_1).driver
    lines = {(here, there) for here, there, line in drawn(driver)[1] if "send_header" in line}
    assert lines == {("COMMITTED", "PREFLIGHT_4")}


@ROLES
def test_mermaid_says_every_state_and_row_once(role: Role) -> None:
    lines = [line.strip() for line in state_mermaid(role).splitlines()]
    assert lines[0] == "stateDiagram-v2"
    assert Counter(re.findall(r'state "(\w+)" as \1', "\n".join(lines))) == Counter(s.name for s in role.states)
    found = [re.fullmatch(r"(\w+) --> (\w+) : (\w+).*", line) for line in lines]
    arrows = Counter((m[1], m[3], m[2]) for m in found if m)
    assert arrows == Counter((r.state, r.event, r.target) for r in outline(role)[0])
    assert [line for line in lines if line.endswith("--> [*]")] == [
        f"{s.name} --> [*]" for s in role.states if s.terminal
    ]
    notes = outline(role)[1]
    assert sum(line == "end note" for line in lines) == len(notes)
    assert all(", ".join(note.events) in lines for note in notes)
    labels = [line.partition(" : ")[2].replace("<br/>", "") for line in lines]
    assert not any(set('<>:"') & set(label) for label in labels)


def test_pictures_are_the_same_in_every_run() -> None:
    code = (
        "from genlock.model.diagrams.state_diagram import *; from genlock.model.protocols.tp_v1_1 import *\n"
        "for r in (RANK0, WORKER): print(state_diagram(r).source, state_mermaid(r))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


# ── differences ─────────────────────────────────────────────────────────────────────────────────────


@ROLES
def test_a_role_does_not_differ_from_itself(role: Role) -> None:
    assert changes(role, role) == {}
    same, marks = merged(role, role)
    assert (same, marks) == (role, {})
    assert "no difference" in state_diagram(same, marks=marks).source


@ROLES
@pytest.mark.parametrize("edit", EDITS)
def test_a_difference_is_the_rows_that_were_edited(role: Role, edit: str) -> None:
    changed = EDITS[edit](role)
    found = changes(role, changed)
    before, after = {r.key: r for r in role.rows}, {r.key: r for r in changed.rows}
    assert set(found) == {key for key in before | after if before.get(key) != after.get(key)}
    assert {key: (c.old, c.new) for key, c in found.items()} == {
        key: (before.get(key), after.get(key)) for key in found
    }
    assert all(change.words for change in found.values())
    back = changes(changed, role)
    assert {key: (c.new, c.old) for key, c in back.items()} == {key: (c.old, c.new) for key, c in found.items()}


@pytest.mark.parametrize("name", ["FM-02", "FM-04", "FM-08", "tp_v0"])
def test_a_difference_shows_all_rows_of_both_and_marks_those_that_differ(name: str) -> None:
    other = MUTANTS[name].edit(TP_V1_1) if name in MUTANTS else load(name)
    for old, new in zip(TP_V1_1.roles, other.roles, strict=True):
        both, marks = merged(old, new)
        found = changes(old, new)
        assert {r for r in both.rows if r not in marks} == {r for r in new.rows if r.key not in found}
        signs = {row: mark.sign for row, mark in marks.items() if isinstance(row, Row)}
        kept = {key for key, c in found.items() if c.old and c.new and c.old.target == c.new.target}
        assert {row for row, sign in signs.items() if sign == "~"} == {c.new for key, c in found.items() if key in kept}
        assert {row for row, sign in signs.items() if sign == "-"} == {
            c.old for key, c in found.items() if c.old and key not in kept
        }
        assert {s.name for s in both.states} == {s.name for s in old.states} | {s.name for s in new.states}
        source = state_diagram(both, marks=marks).source
        for row, mark in marks.items():
            if isinstance(row, Row) and row in outline(both, marks)[0]:
                assert all(part in text_of(source) for word in mark.words for part in word.split()), mark.words
        mermaid = state_mermaid(both, marks=marks)
        drawn_rows = [row for row in outline(both, marks)[0] if row in marks]
        assert all(f" : {marks[row].sign} {row.event}" in mermaid for row in drawn_rows)


def test_an_arrow_that_leads_elsewhere_is_there_before_and_after() -> None:
    both, marks = merged(RANK0, MUTANTS["FM-04"].edit(TP_V1_1).driver)
    lines = [line for line in state_diagram(both, marks=marks).body if "send_header" in line]
    targets = [re.findall(r"COMMITTED(?::\w)? -> (\w+)", line)[0] for line in lines]
    assert sorted(targets) == ["HEADER_SENT", "PREFLIGHT_4"]
    gone = next(line for line in lines if "HEADER_SENT" in line)
    assert "<s>send_header</s>" in gone
    assert "dashed" in gone


def test_guards_that_are_dropped_or_added_are_told() -> None:
    bare = WORKER.edit("GENERATING", "generate", guards=())
    (change,) = changes(WORKER, bare).values()
    guards = [" ".join(str(g.__doc__).split()) for g in WORKER.row("GENERATING", "generate").guards]
    assert change.words == tuple(f"no longer asks that {guard}" for guard in guards)
    (change,) = changes(bare, WORKER).values()
    assert change.words == tuple(f"now asks that {guard}" for guard in guards)
    turned = WORKER.edit("GENERATING", "generate", guards=WORKER.row("GENERATING", "generate").guards[::-1])
    assert changes(WORKER, turned) == {}


@needs_dot
def test_a_difference_leaves_the_states_where_they_stood() -> None:
    def line(graph: graphviz.Digraph) -> list[str]:
        """The states of the main line, one below the other, from the top."""
        plain = graph.pipe("plain", encoding="utf-8")
        found = re.findall(r"^node (\w+) ([\d.]+) ([\d.]+)", plain, re.M)
        middle = next(float(x) for name, x, _ in found if name == "STARTUP")
        return [name for name, x, _ in sorted(found, key=lambda n: -float(n[2])) if abs(float(x) - middle) < 0.1]

    both, marks = merged(RANK0, MUTANTS["FM-04"].edit(TP_V1_1).driver)
    assert line(state_diagram(both, marks=marks)) == line(state_diagram(RANK0))
    assert len(line(state_diagram(RANK0))) == 15


def test_one_more_row_leaves_all_other_lines_of_the_drawing_as_they_were() -> None:
    before = state_diagram(WORKER).source.splitlines()
    after = state_diagram(WORKER.adding(Row("READY", "wander", "ACK"))).source.splitlines()
    assert [line for line in after if line not in before] == [line for line in after if "wander" in line]
    assert [line for line in before if line not in after] == []


# ── sequence charts ─────────────────────────────────────────────────────────────────────────────────


def network_of(name: str) -> tuple[Network, Property]:
    if name in MUTANTS:
        known = MUTANTS[name]
        return Network(known.edit(TP_V1_1), Scope(3, 1, 2), faults=0, detection=False), known.killed_by
    ranks, stream = (2, True) if name == "stream" else (3, False)
    kinds = {"crash": frozenset({Point("AWAIT_ACK")}) if stream else None}
    network = Network(TP_V1_1, Scope(ranks, 1, 2), faults=1, kinds=kinds, detection=False, stream=stream)
    return network, CRASH_OVER_HANG


@pytest.fixture(scope="module", params=["FM-02", "FM-02-asserted", "FM-04", "crash", "stream"])
def example(request: pytest.FixtureRequest) -> Counterexample:
    """A counterexample of each kind: a violated step, ranks that are stuck, a rank that died, also on a stream."""
    network, claim = network_of(request.param)
    result = check(network, [claim])
    found = counterexample(result, result.verdict(claim.name))
    assert found is not None
    return found


def boxes(svg: str) -> Iterator[tuple[float, float, float, float, list[str]]]:
    """(left, top, right, bottom, lines) of each box."""
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        x, y, width, height = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        yield x, y, x + width, y + height, ["".join(text.itertext()) for text in group.iter(f"{SVG}text")]


def test_beats_take_every_step_once_in_order(example: Counterexample) -> None:
    shown = beats(example, SCHEDULE)
    assert [step for beat in shown for step in beat.steps] == list(example.steps)
    assert all({step.rank for step in beat.steps} == {beat.rank} for beat in shown)
    assert [beat.commits for beat in shown].count(True) == sum(
        s.commits and s.edge != "complete" for s in example.steps
    )
    assert all(
        len(beat.steps) == 1 or not beat.steps[-1].commits or beat.steps[-1].edge == "complete" for beat in shown
    )
    for beat in shown:
        assert {step.event for step in beat.steps if step.edge == "step"} <= set(
            re.findall(r"\w+", " ".join(beat.lines))
        )


def test_a_collective_is_drawn_from_those_whose_parts_it_delivers(example: Counterexample) -> None:
    ranks = set(range(example.ranks))
    sources = {"header": {0}, "payload": {0}, "parity": ranks, "generate": ranks}
    for beat in beats(example, SCHEDULE):
        last = beat.steps[-1]
        expected = sources[last.operation] - {beat.rank} if last.edge in ("complete", "device") else set()
        assert set(beat.sources) == expected
        arrow = [f"rank{source}->>rank{beat.rank}: {last.operation} #35;{last.sequence}" for source in beat.sources]
        assert all(line in sequence_mermaid(example, SCHEDULE) for line in arrow)
    svg = sequence_svg(example, SCHEDULE)
    assert svg.count("<circle") == sum(len(beat.sources) for beat in beats(example, SCHEDULE))


def test_every_stuck_rank_is_shown_with_its_operation_and_whom_it_waits_for(example: Counterexample) -> None:
    svg, mermaid = sequence_svg(example, SCHEDULE), sequence_mermaid(example, SCHEDULE)
    last = [lines for *_, lines in boxes(svg)][-example.ranks :]
    stuck = {s.rank: s for s in example.stuck}
    assert len(last) == example.ranks
    for rank, lines in enumerate(last):
        if rank not in stuck:
            assert lines == [example.steps[-1].states[rank]]
            continue
        s = stuck[rank]
        peers = " and ".join(f"rank{peer}" for peer in s.waiting_for)
        since = [f"since step {s.since} ({example.steps[s.since - 1].event})"] if s.since else []
        assert lines == [f"stuck in {s.state} ({s.operation})", f"waiting for {peers}", *since]
        assert f"Note over rank{rank}: {'<br/>'.join(lines)}" in mermaid
    assert svg.count("violates") == mermaid.count("violates") == (0 if stuck else 1)


def test_every_step_is_told_in_full_when_pointed_at(example: Counterexample) -> None:
    svg = ElementTree.fromstring(sequence_svg(example, SCHEDULE))
    titles = "\n".join("".join(title.itertext()) for title in svg.iter(f"{SVG}title"))
    assert titles.splitlines() == [step.text for step in example.steps]


def test_nothing_overlaps_and_all_text_is_inside_its_box(example: Counterexample) -> None:
    svg = sequence_svg(example, SCHEDULE)
    root = ElementTree.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    drawn_boxes = list(boxes(svg))
    assert len(drawn_boxes) == 2 * example.ranks + len(beats(example, SCHEDULE))
    for left, top, right, bottom, lines in drawn_boxes:
        assert 0 < left < right < width
        assert 0 < top < bottom < height
        assert max(map(len, lines)) * 6.62 < right - left  # the advance of DejaVu Sans Mono at 11 px
        assert len(lines) * 13 < bottom - top
    for a, b in combinations(drawn_boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    assert root[0].attrib == {"width": "100%", "height": "100%", "fill": "white"}


def test_an_arrow_crosses_no_box_of_another_collective_and_begins_after_its_source_came(
    example: Counterexample,
) -> None:
    shown = beats(example, SCHEDULE)
    svg = sequence_svg(example, SCHEDULE)
    drawn_boxes = list(boxes(svg))[example.ranks :]
    middles = {id(beat): (top + bottom) / 2 for beat, (_, top, _, bottom, _) in zip(shown, drawn_boxes, strict=False)}
    issued: dict[tuple[int, str, int | None], float] = {}
    for beat in shown:
        first = beat.steps[0]
        for source in beat.sources:
            assert middles[id(beat)] >= issued[source, beat.steps[-1].operation, beat.steps[-1].sequence] - 0.1
        if first.edge == "issue":
            issued[beat.rank, first.operation, first.sequence] = middles[id(beat)]
        across = range(min(beat.sources, default=beat.rank), max(beat.sources, default=beat.rank) + 1)
        for other, (_, top, _, bottom, _) in zip(shown, drawn_boxes, strict=False):
            one, two = other.steps[-1], beat.steps[-1]
            same = (one.operation, one.sequence) == (two.operation, two.sequence)
            if beat.sources and other is not beat and other.rank in across and not same:
                assert not top < middles[id(beat)] < bottom, (beat, other)


def test_two_runs_are_compared_rank_by_rank(example: Counterexample) -> None:
    same = compared(example, example, SCHEDULE)
    assert {beat.sign for beat in same} == {"="}
    assert [step for beat in same for step in beat.steps] == list(example.steps)
    at = len(example.steps) // 2
    cut = replace(example, steps=(*example.steps[:at], *example.steps[at + 1 :]))
    for new, old, sign in ((example, cut, "+"), (cut, example, "-")):
        both = compared(new, old, SCHEDULE)
        marked = [step for beat in both if beat.sign == sign for step in beat.steps]
        assert marked == [example.steps[at]]
        assert {beat.sign for beat in both} <= {"=", sign}
        kept = [step for beat in both if beat.sign != "-" for step in beat.steps]
        assert kept == list(new.steps[-len(kept) :])
        svg = sequence_svg(new, SCHEDULE, old)
        assert svg.count('text-decoration="line-through"') == sum(len(b.lines) for b in both if b.sign == "-")
        assert f": {sign} " in sequence_mermaid(new, SCHEDULE, old)


def test_another_interleaving_is_no_difference() -> None:
    def step(number: int, rank: int, event: str) -> TraceStep:
        return TraceStep(number, rank, event, "step", "", None, False, ("A", "B"))

    one = (step(1, 0, "a"), step(2, 0, "b"), step(3, 1, "c"), step(4, 1, "d"))
    two = (step(1, 1, "c"), step(2, 0, "a"), step(3, 1, "d"), step(4, 0, "b"))
    here, there = (Counterexample("", "text", 2, (), steps) for steps in (one, two))
    assert {beat.sign for beat in compared(here, there, SCHEDULE)} == {"="}


def test_the_shortest_healthy_run_ends_with_its_event() -> None:
    network = Network(TP_V1_1, Scope(2, 1, 1), faults=0)
    run = shortest(network, "acks_agree")
    assert (run.claim, run.steps[-1].event, run.steps[-1].rank) == ("", "acks_agree", 0)
    assert "does not hold" not in sequence_svg(run, SCHEDULE)
    taken = shortest(network, "receive_header").steps[-1]
    assert (taken.event, taken.edge) == ("receive_header", "complete")
    ended = shortest(network, None)
    assert ended.steps[-1].states == ("STOPPED", "STOPPED")
    with pytest.raises(UsageError, match="no run has miscount; name an event that can happen: exchange_parity"):
        shortest(network, "miscount")


ODD = Counterexample(
    'a<b>&"c";#',
    "x < y; & more",
    2,
    (Stuck(1, "S<1>", "header", (0,), 1),),
    (TraceStep(1, 0, "go<&;#:>", "issue", "header", 1, True, ("A", "S<1>")),),
)


def test_every_edge_of_a_step_can_be_drawn() -> None:
    edges = ("step", "issue", "complete", "device", "crash", "stall", "resume", "killed")
    steps = tuple(TraceStep(n, n % 2, edge, edge, "unlisted", 1, False, ("A", "B")) for n, edge in enumerate(edges, 1))
    svg = sequence_svg(Counterexample("claim", "text", 2, (), steps), SCHEDULE)
    titles = [lines[0] for *_, lines in boxes(svg)]
    told = [
        "1  step",
        "2  issue",
        "3  ⇄ unlisted #1",
        "4  ⇄ unlisted #1",
        "5  dies",
        "6  stall",
        "7  resume",
        "8  killed",
    ]
    assert titles == ["rank0", "rank1", *told, "A", "B"]
    red = re.findall(r">\d+  (\w+)<", "".join(line for line in svg.splitlines() if "#fbd5d5" in line))
    assert red == ["dies", "stall", "killed"]


def test_the_step_that_violates_stands_alone_and_the_end_of_a_collective_commits_to_nothing() -> None:
    def step(number: int, rank: int, edge: str = "step", commits: bool = False) -> TraceStep:
        return TraceStep(number, rank, "go", edge, "header", 1, commits, ("A", "B"))

    steps = (step(1, 0, "issue", True), step(2, 1), step(3, 0, "complete", True), step(4, 1), step(5, 1), step(6, 1))
    violated = beats(Counterexample("claim", "text", 2, (), steps), SCHEDULE)
    assert [[s.number for s in beat.steps] for beat in violated] == [[1], [2], [3], [4, 5], [6]]
    assert [beat.verdict for beat in violated] == ["", "", "", "", "claim"]
    assert [beat.commits for beat in violated] == [True, False, False, False, False]
    stuck = beats(replace(ODD, steps=steps), SCHEDULE)
    assert [[s.number for s in beat.steps] for beat in stuck] == [[1], [2], [3], [4, 5, 6]]


def test_markup_in_a_name_stays_text() -> None:
    svg = ElementTree.fromstring(sequence_svg(ODD, SCHEDULE))
    texts = ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]
    assert "1  go<&;#:>" in texts
    assert "stuck in S<1> (header)" in texts
    for line in sequence_mermaid(ODD, SCHEDULE).splitlines():
        said = line.partition(": ")[2].replace("<br/>", "")
        assert not re.search(r'[<>:"]|;(?<!#\d\d;)|#(?!\d\d;)', said), line


def test_a_claim_that_fails_at_the_start_can_be_drawn() -> None:
    nothing = Counterexample("claim", "text", 2, (), ())
    assert [lines for *_, lines in boxes(sequence_svg(nothing, SCHEDULE))][-2:] == [["at the start"]] * 2
    assert "at the start" in sequence_mermaid(nothing, SCHEDULE)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────


def test_text_needs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    texts = {"a.dot": "dot", "a.mmd": "mermaid", "a.svg": "svg"}
    save(state_diagram(WORKER), tmp_path / "a.dot", "dot")
    save(state_mermaid(WORKER), tmp_path / "a.mmd", "mermaid")
    save(sequence_svg(ODD, SCHEDULE), tmp_path / "a.svg", "svg")
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in texts] == [
        state_diagram(WORKER).source,
        state_mermaid(WORKER),
        sequence_svg(ODD, SCHEDULE),
    ]


@needs_dot
@ROLES
def test_a_state_diagram_is_rendered(role: Role, tmp_path: Path) -> None:
    save(state_diagram(role), tmp_path / "a.svg", "svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    ids = {group.attrib["id"] for group in root.iter(f"{SVG}g")}
    assert {f"{role.name}.{state.name}" for state in role.states} < ids
    assert {f"{role.name}.{row.state}.{row.event}" for row in outline(role)[0]} < ids
    words = "".join(root.itertext())
    assert all(state.name in words for state in role.states)
    save(state_diagram(role), tmp_path / "a.png", "png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("picture", "format", "program"),
    [(state_diagram(WORKER), "svg", "dot"), (state_diagram(WORKER), "png", "dot"), ("<svg/>", "png", "rsvg-convert")],
)
def test_a_missing_program_is_named_and_the_way_round_it(
    picture: str, format: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=f"{format} needs the program `{program}`, which .* install the package") as it:
        save(picture, tmp_path / "a", format)
    assert "mermaid, which are text" in str(it.value)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("picture", "format"),
    [(state_diagram(WORKER), "mermaid"), ("<svg/>", "dot"), ("<svg/>", "mermaid"), ("graph", "svg"), ("graph", "png")],
)
def test_a_format_that_a_picture_does_not_have_is_refused(picture: str, format: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"cannot be written as {format}; choose"):
        save(picture, tmp_path / "a", format)
    assert not (tmp_path / "a").exists()
