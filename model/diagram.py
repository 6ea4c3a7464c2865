"""Pictures from the tables and from counterexamples: nothing is drawn that no row or step says.

State diagrams are Graphviz or Mermaid, sequence charts SVG or Mermaid. Their text needs no program: only a
state diagram as svg or png needs `dot`, and a sequence chart as png `rsvg-convert`.

Left out: the difference of two protocols.
"""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import graphviz

from ..errors import UsageError
from .checker.counterexample import Counterexample, TraceStep
from .tables import By, Collective, Meet, Put, Role, Row, State, Take
from .transport import depends_on

INK, GREY, BLUE, RED, AMBER = "#1e293b", "#64748b", "#1d4ed8", "#c81e1e", "#b45309"
PALE_RED, PALE_AMBER, PALE_GREY = "#fbd5d5", "#fef3c7", "#f1f5f9"
COLOURS = {By.PROTOCOL: INK, By.ENVIRONMENT: BLUE, By.VIOLATION: RED, By.FAULT: RED, By.DETECTION: RED}
FILLS = ("#dbeafe", "#dcfce7", "#fef9c3", "#fde7d3", "#ede4fb", "#d5f3f0", "#fbe0ec", "#e8ecef")
"""One for each phase, in the order in which the table names the phases."""
MANY = 3
"""From so many states on, a row that they share is said once, in a note."""


# ── state diagrams ──────────────────────────────────────────────────────────────────────────────────


class Note(NamedTuple):
    """Plain rows that many states share: each of `events` leads from each of `states` to `target`."""

    states: tuple[str, ...]
    events: tuple[str, ...]
    target: str
    colour: str

    def lines(self, role: Role) -> list[str]:
        """`any live state:` or the names of the states, then the events."""
        live = tuple(s.name for s in role.states if not s.terminal and not s.failed)
        where = "any live state" if self.states == live else ", ".join(self.states)
        return [*textwrap.wrap(f"{where}:", 28), *textwrap.wrap(", ".join(self.events), 40)]


def outline(role: Role) -> tuple[list[Row], list[Note]]:
    """The rows that are drawn as arrows, and the notes that say all others."""
    same: dict[Row, list[Row]] = {}
    for row in role.rows:
        same.setdefault(replace(row, state=""), []).append(row)
    noted = {row: len(rows) >= MANY and not (row.guards or row.op or row.gate) for row, rows in same.items()}
    events: dict[tuple[tuple[str, ...], str, str], list[str]] = {}
    for row, rows in same.items():
        if noted[row]:
            events.setdefault((tuple(r.state for r in rows), row.target, COLOURS[row.by]), []).append(row.event)
    notes = [Note(states, tuple(names), target, colour) for (states, target, colour), names in events.items()]
    return [row for row in role.rows if not noted[replace(row, state="")]], notes


def state_diagram(role: Role) -> graphviz.Digraph:
    """The table of `role` for `dot`: the main line runs down, in the order in which the table names the states."""
    font = {"fontname": "Helvetica,Arial,sans-serif", "fontcolor": INK}
    graph = graphviz.Digraph(
        role.name,
        graph_attr={
            **font,
            "bgcolor": "white",
            "label": _title(role),
            "labelloc": "t",
            "ordering": "out",
            "ranksep": "0.35",
        },
        node_attr={**font, "shape": "box", "style": "rounded,filled", "fontsize": "13", "margin": "0.16,0.06"},
        edge_attr={**font, "fontsize": "11", "arrowsize": "0.7"},
    )
    graph.node(" start", "", shape="point", width="0.14", color=INK)
    graph.edge(" start", role.initial, color=INK, weight="20")
    fills = _fills(role)
    for state in role.states:
        rim = {"color": RED if state.failed else INK, "peripheries": "2" if state.terminal else "1"}
        graph.node(state.name, _state_label(state), fillcolor=fills[state.name], **rim)
    rows, notes = outline(role)
    line = _main_line(role)
    for _, ports, row in sorted(((*_route(role, line, row), row) for row in rows), key=lambda routed: routed[0]):
        graph.edge(row.state, row.target, _row_label(row), color=COLOURS[row.by], **ports)
    for number, note in enumerate(notes):
        name, look = f" note {number}", {"color": note.colour, "fontcolor": note.colour, "fontsize": "11"}
        graph.node(name, "\n".join(note.lines(role)), shape="note", style="filled", fillcolor="white", **look)
        graph.edge(name, note.target, color=note.colour, style="dashed")
    return graph


def _main_line(role: Role) -> list[str]:
    """The states, in the order of the table, as long as each leads to the next."""
    leads = {(row.state, row.target) for row in role.rows if row.by in (By.PROTOCOL, By.ENVIRONMENT)}
    line = [role.initial]
    for here, there in pairwise(s.name for s in role.states):
        if here == line[-1] and (here, there) in leads:
            line.append(there)
    return line


def _route(role: Role, line: list[str], row: Row) -> tuple[tuple[int, int], dict[str, str]]:
    """Where an arrow is drawn, from left to right, and its ports: back, on, aside, to failure.

    The main line stays straight, what returns to it runs on its left, the longest way outermost, and all
    else on its right.
    """
    place = {state.name: number for number, state in enumerate(role.states)}
    step = place[row.target] - place[row.state]
    loops = any(r.target == r.state for r in role.leaving[row.state])
    if row.state == row.target:
        return (2, place[row.state]), {}
    if row.by is By.VIOLATION:
        return (3, 0), {"tailport": "se" if loops else "e"}
    if row.state not in line:
        return (2, place[row.state]), {"headport": "se"} if row.target in line else {}
    if row.target not in line:
        return (2, place[row.target]), {"tailport": "s"}
    return ((1, 0), {"weight": "20"}) if step > 0 else ((0, step), {"tailport": "w", "headport": "w"})


def _title(role: Role) -> str:
    small = (
        "⇄ collective    ◆ commitment point: a peer now waits for more from this rank",
        f'<font color="{BLUE}">blue: the world outside may ask for it</font>    '
        f'<font color="{RED}">red: violations, faults, detection</font>',
    )
    name = f'<font point-size="22"><b>{escape(role.name)}</b></font>'
    return f'<{name}<br/><font point-size="11">{"<br/>".join(small)}</font><br/> >'


def _state_label(state: State) -> str:
    name = f"<b>{escape(state.name)}</b>"
    if state.phase.upper() == state.name:
        return f"<{name}>"
    return f'<{name}<br/><font point-size="10" color="{GREY}">{escape(state.phase)}</font>>'


def _row_label(row: Row) -> str:
    lines = [f'<font color="{COLOURS[row.by]}"><b>{escape(row.event)}</b>{escape(_marks(row))}</font>']
    for part in (part for text in _guards(row) for part in textwrap.wrap(text, 34)):
        lines.append(f'<font point-size="9" color="{GREY}">{escape(part)}</font>')
    text = '<br align="left"/>'.join(lines)
    return f'<<table border="0" cellpadding="4"><tr><td align="left" balign="left">{text}</td></tr></table>>'


def _marks(row: Row) -> str:
    """What the row does beside moving on: a collective, a gate, a sync of the stream, a commitment."""
    slot = row.gate.slot.name if isinstance(row.gate, Put | Take) else ""
    marks = [
        f"⇄ {row.op.name}" if row.op else "",
        f"puts {slot}" if isinstance(row.gate, Put) else f"takes {slot}" if slot else "",
        "once all counters are there" if isinstance(row.gate, Meet) else "",
        "once its stream is done" if row.syncs else "",
        "◆" if row.commits else "",
    ]
    return "".join(f" {mark}" for mark in marks if mark)


def _guards(row: Row) -> list[str]:
    return [" ".join((guard.__doc__ or guard.__name__).split()) for guard in row.guards]


def _fills(role: Role) -> dict[str, str]:
    phases = list(dict.fromkeys(s.phase for s in role.states if not s.failed))
    return {
        s.name: PALE_RED if s.failed else "white" if s.terminal else FILLS[phases.index(s.phase) % len(FILLS)]
        for s in role.states
    }


def state_mermaid(role: Role) -> str:
    """The table of `role` as a Mermaid `stateDiagram-v2`."""
    rows, notes = outline(role)
    lines = ["stateDiagram-v2", *(f'state "{_plain(s.name)}" as {s.name}' for s in role.states)]
    lines.append(f"[*] --> {role.initial}")
    for row in rows:
        label = "<br/>".join(map(_plain, [row.event + _marks(row), *_guards(row)]))
        lines.append(f"{row.state} --> {row.target} : {label}")
    lines += [f"{s.name} --> [*]" for s in role.states if s.terminal]
    for note in notes:
        lines += [f"note right of {note.target}", *(f"  {_plain(text)}" for text in note.lines(role)), "end note"]
    for name, fill in _fills(role).items():
        lines.append(f"style {name} fill:{fill},color:{INK}")
    return "\n    ".join(lines) + "\n"


def _plain(text: str) -> str:
    """`text` with what Mermaid would take for syntax as entities."""
    return "".join(f"#{ord(c)};" if c in '#;:<>"' else c for c in text)


# ── sequence charts ─────────────────────────────────────────────────────────────────────────────────


class Beat(NamedTuple):
    """What a chart shows as one: a step, a run of plain steps of one rank, or a collective that ends as it begins."""

    steps: tuple[TraceStep, ...]
    sources: tuple[int, ...]
    """The other ranks whose parts in a collective it is given here."""
    verdict: str
    """What the last step violates, where no rank is stuck."""

    @property
    def rank(self) -> int:
        return self.steps[0].rank

    @property
    def lines(self) -> list[str]:
        """Numbers and what happens, where it leads, and whether it commits."""
        first, last = self.steps[0], self.steps[-1]
        here, collective = f"→ {last.states[self.rank]}", f"⇄ {last.operation} #{last.sequence}"
        if first is last:
            told = {
                "issue": [last.event, f"{collective} issued"],
                "complete": [collective, here],
                "device": [collective, "done on the stream"],
                "crash": ["dies"],
            }.get(last.edge, [last.event, here])
        elif last.edge == "complete":
            told = [first.event, collective, here]
        else:
            passed = ", ".join(step.event for step in self.steps)
            told = [f"{first.states[self.rank]} … {last.states[self.rank]}", *textwrap.wrap(passed, 32)]
        number = str(first.number) if first is last else f"{first.number}-{last.number}"
        commits = ["◆ commitment point"] if self.commits else []
        return [f"{number}  {told[0]}", *told[1:], *commits, *([f"violates {self.verdict}"] if self.verdict else [])]

    @property
    def commits(self) -> bool:
        """Whether it begins with a commitment; the end of a collective is none."""
        return self.steps[0].commits and self.steps[0].edge != "complete"

    @property
    def colours(self) -> tuple[str, str]:
        """Of the rim and the inside."""
        if self.verdict or self.steps[-1].edge in ("crash", "stall", "killed"):
            return RED, PALE_RED
        return (AMBER, PALE_AMBER) if self.commits else (GREY, "white")


def beats(example: Counterexample, schedule: Sequence[Collective]) -> list[Beat]:
    """The steps of `example`; the schedule says whose parts each of its collectives delivers."""
    operations = {op.name: op for op in schedule}
    verdict = "" if example.stuck else example.claim
    runs: list[list[TraceStep]] = []
    for step in example.steps:
        shown_alone = bool(verdict) and step is example.steps[-1]
        if runs and not shown_alone and _goes_on(runs[-1][-1], step):
            runs[-1].append(step)
        else:
            runs.append([step])
    found = []
    for run in runs:
        last = run[-1]
        sources: Sequence[int] = ()
        if last.edge in ("complete", "device") and last.operation in operations:
            sources = depends_on(operations[last.operation], last.rank, example.ranks)
        others = tuple(rank for rank in sources if rank != last.rank)
        found.append(Beat(tuple(run), others, verdict if last is example.steps[-1] else ""))
    return found


def _goes_on(before: TraceStep, step: TraceStep) -> bool:
    plain = before.edge == step.edge == "step" and not before.commits and not step.commits
    return before.rank == step.rank and (plain or (before.edge, step.edge) == ("issue", "complete"))


def endings(example: Counterexample) -> list[list[str]]:
    """Per rank, where the run leaves it: stuck, in what and for whom, or just its state."""
    states = example.steps[-1].states if example.steps else ("at the start",) * example.ranks
    lines = [[state] for state in states]
    for stuck in example.stuck:
        lines[stuck.rank] = stuck.text.removeprefix(f"rank{stuck.rank} is ").split(", ")
        if stuck.since is not None:
            lines[stuck.rank].append(f"since step {stuck.since} ({example.steps[stuck.since - 1].event})")
    return lines


def sequence_mermaid(example: Counterexample, schedule: Sequence[Collective]) -> str:
    """A counterexample as a Mermaid `sequenceDiagram`."""
    lines = ["sequenceDiagram", *(f"participant rank{rank}" for rank in range(example.ranks))]
    lines.append(f"Note over rank0,rank{example.ranks - 1}: {_plain(f'{example.claim}: {example.text}')}")
    for beat in beats(example, schedule):
        for source in beat.sources:
            last = beat.steps[-1]
            lines.append(f"rank{source}->>rank{beat.rank}: {_plain(f'{last.operation} #{last.sequence}')}")
        lines.append(f"Note over rank{beat.rank}: {'<br/>'.join(map(_plain, beat.lines))}")
    lines.append("rect rgb(251, 213, 213)")
    lines += [f"Note over rank{rank}: {'<br/>'.join(map(_plain, end))}" for rank, end in enumerate(endings(example))]
    lines.append("end")
    return "\n    ".join(lines) + "\n"


EM, LINE, PAD, GAP = 6.7, 14, 6, 12
"""Of a chart, in pixels: a character's width, a line's height, around a box's text, between boxes."""


def sequence_svg(example: Counterexample, schedule: Sequence[Collective]) -> str:
    """A counterexample as SVG: a lane for each rank, a row for each beat; stuck ranks end in red."""
    shown, ends, stuck = beats(example, schedule), endings(example), {s.rank for s in example.stuck}
    title = [f"{example.claim} does not hold:", example.text]
    title.append("thick: inside a collective; arrows: whose parts it delivers")
    top = GAP + LINE * len(title) + GAP
    lanes, right = _lanes(shown, ends)
    under: list[str] = []
    boxes = [_box(x, top, [f"rank{rank}"], INK, INK, "white") for rank, x in enumerate(lanes)]
    y = top + _height([""]) + GAP
    inside: dict[int, float] = {}
    for beat in shown:
        x, middle = lanes[beat.rank], y + _height(beat.lines) / 2
        if beat.rank in inside:
            under.append(_bar(x, inside.pop(beat.rank), middle, AMBER))
        if beat.steps[-1].edge == "issue":
            inside[beat.rank] = middle
        under += _arrows([lanes[source] for source in beat.sources], x, _width(beat.lines) / 2, middle)
        boxes.append(_box(x, y, beat.lines, *beat.colours, INK, hover="\n".join(step.text for step in beat.steps)))
        y += _height(beat.lines) + GAP
    y += GAP
    for rank, x in enumerate(lanes):
        if rank in inside:
            under.append(_bar(x, inside[rank], y, RED if rank in stuck else AMBER))
        boxes.append(_box(x, y, ends[rank], *((RED, PALE_RED, RED) if rank in stuck else (GREY, PALE_GREY, INK))))
    lives = [f'<path d="M{x:.1f} {top}V{y:.1f}" stroke="{GREY}" stroke-dasharray="2 3"/>' for x in lanes]
    head = [_text(GAP, GAP + LINE * n, line, INK, "start") for n, line in enumerate(title, 1)]
    width, height = max(right, *(len(line) * EM + 2 * GAP for line in title)), y + max(map(_height, ends)) + GAP
    font = 'font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="11"'
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    start = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    return "\n".join([*start, *head, *lives, *under, *boxes, "</svg>\n"])


def _lanes(shown: Sequence[Beat], ends: Sequence[Sequence[str]]) -> tuple[list[float], float]:
    """The middle of each rank's lane, wide enough for all that is said in it, and where the last one ends."""
    lanes, right = [], float(GAP)
    for rank, end in enumerate(ends):
        width = max(_width(lines) for lines in (end, *(b.lines for b in shown if b.rank == rank))) + 2 * GAP
        lanes.append(right + width / 2)
        right += width
    return lanes, right + GAP


def _height(lines: Sequence[str]) -> float:
    return LINE * len(lines) + 2 * PAD


def _width(lines: Sequence[str]) -> float:
    return max(map(len, lines)) * EM + 2 * PAD


def _text(x: float, y: float, text: str, colour: str, anchor: str, weight: str = "normal") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} fill="{colour}" font-weight="{weight}">{escape(text)}</text>'


def _box(x: float, y: float, lines: Sequence[str], rim: str, fill: str, colour: str, hover: str = "") -> str:
    width, height = _width(lines), _height(lines)
    weights = ["bold", *["normal"] * len(lines)]
    texts = [
        _text(x, y + PAD + LINE * n - 3.5, line, colour, "middle", weight)
        for n, (line, weight) in enumerate(zip(lines, weights, strict=False), 1)
    ]
    where = f'x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    title = f"<title>{escape(hover)}</title>" if hover else ""
    return f'<g>{title}<rect {where} rx="5" fill="{fill}" stroke="{rim}"/>{"".join(texts)}</g>'


def _bar(x: float, top: float, bottom: float, colour: str) -> str:
    return f'<rect x="{x - 3:.1f}" y="{top:.1f}" width="6" height="{bottom - top:.1f}" fill="{colour}"/>'


def _arrows(sources: Sequence[float], x: float, half: float, y: float) -> list[str]:
    """From every source's lane to the edge of the box at `x`."""
    parts = [f'<circle cx="{source:.1f}" cy="{y:.1f}" r="4" fill="{BLUE}"/>' for source in sources]
    for side in (-1, 1):
        there = [source for source in sources if (source - x) * side > 0]
        if there:
            far, tip = max(there, key=lambda source: abs(source - x)), x + side * half
            parts.append(f'<path d="M{far:.1f} {y:.1f}H{tip:.1f}" stroke="{BLUE}" stroke-width="1.5"/>')
            parts.append(f'<path d="M{tip:.1f} {y:.1f}l{side * 8} -4v8z" fill="{BLUE}"/>')
    return parts


# ── files ───────────────────────────────────────────────────────────────────────────────────────────


def save(picture: graphviz.Digraph | str, path: Path, format: str) -> None:
    """Write a state diagram (`svg`, `png`, `dot`), or the text of a chart (`svg`, `png` or `mermaid`, as it is).

    Raises UsageError where the picture has no such format, or the program that it needs is not installed.
    """
    if isinstance(picture, graphviz.Digraph):
        path.write_bytes(_from_dot(picture, format))
    elif format == ("svg" if picture.startswith("<svg") else "mermaid"):
        path.write_text(picture, encoding="utf-8")
    elif format == "png" and picture.startswith("<svg"):
        path.write_bytes(_from_svg(picture))
    else:
        raise UsageError(f"this picture cannot be written as {format}", where=str(path), do="choose another format")


def _from_dot(graph: graphviz.Digraph, format: str) -> bytes:
    if format == "dot":
        return str(graph.source).encode()
    if format not in ("svg", "png"):
        raise UsageError(f"a graph cannot be written as {format}", do="choose svg, png or dot")
    try:
        return bytes(graph.pipe(format))
    except graphviz.ExecutableNotFound as error:
        raise UsageError(
            f"{format} needs the program `dot`, which is not installed",
            do="install the package `graphviz` of the system, or choose dot or mermaid, which are text",
        ) from error


def _from_svg(text: str) -> bytes:
    try:
        done = subprocess.run(["rsvg-convert"], input=text.encode(), capture_output=True, check=True)
    except FileNotFoundError as error:
        raise UsageError(
            "png needs the program `rsvg-convert`, which is not installed",
            do="install the package `librsvg2-bin` of the system, or choose svg or mermaid, which are text",
        ) from error
    return done.stdout
