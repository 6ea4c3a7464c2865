"""Draws state diagrams from the tables, for Graphviz and as Mermaid: nothing is drawn that no row says.

Left out: sequence charts (`chart`), and how a picture becomes a file (`picture`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from itertools import pairwise
from typing import NamedTuple

import graphviz

from ..tables import By, Meet, Put, Role, Row, State, Take
from .colours import BLUE, FILLS, GREY, INK, PALE_LINE, PALE_RED, RED, plain

COLOURS = {By.PROTOCOL: INK, By.ENVIRONMENT: BLUE, By.VIOLATION: RED, By.FAULT: RED, By.DETECTION: RED}
SIGNS = {"+": "green: added", "-": "red, struck out: removed", "~": "amber: changed"}
MANY = 3
"""From so many states on, a row that they share is said once, in a note."""


class Note(NamedTuple):
    """Holds plain rows that many states share: each of `events` leads from each of `states` to `target`."""

    states: tuple[str, ...]
    events: tuple[str, ...]
    target: str
    colour: str

    def lines(self, role: Role) -> list[str]:
        """Return `any live state:` or the names of the states, then the events."""
        live = tuple(s.name for s in role.states if not s.terminal and not s.failed)
        where = "any live state" if self.states == live else ", ".join(self.states)
        return [*textwrap.wrap(f"{where}:", 28), *textwrap.wrap(", ".join(self.events), 40)]


class Mark(NamedTuple):
    """Says how a row or state that is not the same in two versions is drawn, and in what words."""

    sign: str
    colour: str
    words: tuple[str, ...] = ()


Marks = Mapping[Row | State, Mark]
"""The rows and states that are marked in a difference; all others are drawn pale."""


def outline(role: Role, marks: Marks | None = None) -> tuple[list[Row], list[Note]]:
    """Return the rows that are drawn as arrows, and the notes that say all others."""
    same: dict[tuple[Row, str], list[Row]] = {}
    for row in role.rows:
        same.setdefault((replace(row, state=""), _colour(row, marks)), []).append(row)
    noted = {key: len(rows) >= MANY and not (key[0].guards or key[0].op or key[0].gate) for key, rows in same.items()}
    events: dict[tuple[tuple[str, ...], str, str], list[str]] = {}
    for (row, colour), rows in same.items():
        if noted[row, colour]:
            events.setdefault((tuple(r.state for r in rows), row.target, colour), []).append(row.event)
    notes = [Note(states, tuple(names), target, colour) for (states, target, colour), names in events.items()]
    return [row for row in role.rows if not noted[replace(row, state=""), _colour(row, marks)]], notes


def _colour(row: Row, marks: Marks | None) -> str:
    if marks is None:
        return COLOURS[row.by]
    return marks[row].colour if row in marks else PALE_LINE


def state_diagram(
    role: Role, colours: Mapping[str, str] | None = None, *, brief: bool = False, marks: Marks | None = None
) -> graphviz.Digraph:
    """Return the table of `role` for `dot`: the main line runs down, in the order in which the table names the states.

    In SVG a state has the id `ROLE.STATE` and an arrow `ROLE.STATE.EVENT`, whatever else is in the table. `colours` as
    `phase_colours` has them. `brief` leaves out what stands beside the events: guards, and what the colours mean.
    With `marks` it is a difference (see `diagram_diff`).
    """
    font = {"fontname": "Helvetica,Arial,sans-serif", "fontcolor": INK}
    graph = graphviz.Digraph(
        role.name,
        graph_attr={
            **font,
            "bgcolor": "white",
            "id": role.name,
            "label": _title(role, brief, marks),
            "labelloc": "t",
            "ordering": "out",
            "ranksep": "0.22" if brief else "0.35",
        },
        node_attr={**font, "shape": "box", "style": "rounded,filled", "fontsize": "13", "margin": "0.16,0.06"},
        edge_attr={**font, "fontsize": "11", "arrowsize": "0.7"},
    )
    graph.node(" start", "", shape="point", width="0.14", color=INK)
    graph.edge(" start", role.initial, color=INK, weight="20")
    fills = colours or phase_colours(role)
    for state in role.states:
        look = {"color": RED if state.failed else INK, "peripheries": "2" if state.terminal else "1"}
        look |= {"id": f"{role.name}.{state.name}", "fillcolor": fills.get(state.phase, "white")}
        if marks is not None:
            mark = marks.get(state, Mark("", PALE_LINE))
            look |= {"fillcolor": "white", "color": mark.colour, "penwidth": "2.5" if mark.sign else "1"}
        graph.node(state.name, _state_label(state), **look)
    rows, notes = outline(role, marks)
    line = _main_line(role)
    for _, ports, row in sorted(((*_route(role, line, row), row) for row in rows), key=lambda routed: routed[0]):
        look = {"id": f"{role.name}.{row.state}.{row.event}", "color": _colour(row, marks)}
        if marks is not None and row in marks:
            look |= {"penwidth": "2.5", "style": "dashed" if marks[row].sign == "-" else "solid"}
            if marks[row].sign == "+" and not {role.by_name[row.state], role.by_name[row.target]} & marks.keys():
                look |= {"constraint": "false"}  # so that the states stand where they stood before
        graph.edge(row.state, row.target, _row_label(row, brief, marks), **look, **ports)
    for number, note in enumerate(notes):
        name, look = f" note {number}", {"color": note.colour, "fontcolor": note.colour, "fontsize": "11"}
        graph.node(name, "\n".join(note.lines(role)), shape="note", style="filled", fillcolor="white", **look)
        graph.edge(name, note.target, color=note.colour, style="dashed")
    return graph


def _main_line(role: Role) -> list[str]:
    """Return the states, in the order of the table, as long as each leads to the next."""
    leads = {(row.state, row.target) for row in role.rows if row.by in (By.PROTOCOL, By.ENVIRONMENT)}
    line = [role.initial]
    for here, there in pairwise(s.name for s in role.states):
        if here == line[-1] and (here, there) in leads:
            line.append(there)
    return line


def _route(role: Role, line: list[str], row: Row) -> tuple[tuple[int, int], dict[str, str]]:
    """Return where an arrow is drawn, from left to right, and its ports: back, on, aside, to failure.

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


def _title(role: Role, brief: bool, marks: Marks | None) -> str:
    name = f'<font point-size="22"><b>{escape(role.name)}</b></font>'
    if brief:
        return f"<{name}>"
    if marks is not None:
        signs = {mark.sign: f'<font color="{mark.colour}">{SIGNS[mark.sign]}</font>' for mark in marks.values()}
        told = "    ".join(signs[sign] for sign in SIGNS if sign in signs) or "no difference"
        return f'<{name}<br/><font point-size="12">{told}</font><br/> >'
    return f"<{name}<br/> >"


def _state_label(state: State) -> str:
    name = f"<b>{escape(state.name)}</b>"
    if not state.phase or state.phase.upper() == state.name:
        return f"<{name}>"
    return f'<{name}<br/><font point-size="10" color="{GREY}">{escape(state.phase)}</font>>'


def _row_label(row: Row, brief: bool, marks: Marks | None) -> str:
    colour, mark = _colour(row, marks), None if marks is None else marks.get(row)
    event = f"<s>{escape(row.event)}</s>" if mark and mark.sign == "-" else escape(row.event)
    lines = [f'<font color="{colour}"><b>{event}</b>{escape(_marks(row))}</font>']
    small = [] if brief else mark.words if mark else _guards(row) if marks is None else []
    for part in (part for text in small for part in textwrap.wrap(text, 34)):
        lines.append(f'<font point-size="9" color="{colour if mark else GREY}">{escape(part)}</font>')
    text = '<br align="left"/>'.join(lines)
    return f'<<table border="0" cellpadding="4"><tr><td align="left" balign="left">{text}</td></tr></table>>'


def _marks(row: Row) -> str:
    """Return what the row does beside moving on: a collective, a gate, a sync of the stream, a commitment."""
    slot = row.gate.slot.name if isinstance(row.gate, Put | Take) else ""
    marks = [
        f"⇄ {row.op.name}" if row.op else "",
        f"puts {slot}" if isinstance(row.gate, Put) else f"takes {slot}" if slot else "",
        "once all counters are there" if isinstance(row.gate, Meet) else "",
        "once its stream is done" if row.syncs else "",
        "◆ commits" if row.commits else "",
    ]
    return "".join(f"  {mark}" for mark in marks if mark)


def _guards(row: Row) -> list[str]:
    return [" ".join((guard.__doc__ or guard.__name__).split()) for guard in row.guards]


def phase_colours(*roles: Role) -> dict[str, str]:
    """Return the colour of each phase, alike in all pictures of these roles."""
    states = [state for role in roles for state in role.states]
    phases = list(dict.fromkeys(s.phase for s in states if not s.failed))
    colours = {phase: FILLS[number % len(FILLS)] for number, phase in enumerate(phases)}
    return {**colours, **{s.phase: PALE_RED if s.failed else "white" for s in states if s.failed or s.terminal}}


def state_mermaid(role: Role, colours: Mapping[str, str] | None = None, *, marks: Marks | None = None) -> str:
    """Return the table of `role` as a Mermaid `stateDiagram-v2`."""
    rows, notes = outline(role, marks)
    lines = ["stateDiagram-v2", *(f'state "{plain(s.name)}" as {s.name}' for s in role.states)]
    lines.append(f"[*] --> {role.initial}")
    for row in rows:
        mark = (marks or {}).get(row, Mark("", ""))
        told = _guards(row) if marks is None else mark.words
        label = "<br/>".join(map(plain, [" ".join(f"{mark.sign} {row.event}{_marks(row)}".split()), *told]))
        lines.append(f"{row.state} --> {row.target} : {label}")
    lines += [f"{s.name} --> [*]" for s in role.states if s.terminal]
    for note in notes:
        lines += [f"note right of {note.target}", *(f"  {plain(text)}" for text in note.lines(role)), "end note"]
    fills = colours or phase_colours(role)
    lines += [f"style {s.name} fill:{fills.get(s.phase, 'white')},color:{INK}" for s in role.states]
    return "\n    ".join(lines) + "\n"
