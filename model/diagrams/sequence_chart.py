"""Draws sequence charts of counterexamples, as SVG and Mermaid: a lane a rank, and nothing that no step says.

Left out: charts of recorded runs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape
from typing import NamedTuple

from ..semantics.run import Counterexample, TraceStep
from ..semantics.transport import depends_on
from ..tables import Collective
from .colours import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    INK,
    PALE_AMBER,
    PALE_GREEN,
    PALE_GREY,
    PALE_LINE,
    PALE_RED,
    RED,
    plain,
)


class Beat(NamedTuple):
    """Holds what a chart shows as one: a step, plain steps of one rank, or a collective that ends as it begins."""

    steps: tuple[TraceStep, ...]
    sources: tuple[int, ...]
    """The other ranks whose parts in a collective it is given here."""
    verdict: str
    """Holds what the last step violates, where no rank is stuck."""
    sign: str = ""
    """Where two runs are compared: `+` only in this one, `-` only in the other, `=` in both."""

    @property
    def rank(self) -> int:
        return self.steps[0].rank

    @property
    def lines(self) -> list[str]:
        """Return the numbers and what happens, where it leads, and whether it commits."""
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
        """Return whether it begins with a commitment; the end of a collective is none."""
        return self.steps[0].commits and self.steps[0].edge != "complete"

    @property
    def colours(self) -> tuple[str, str]:
        """Return the colours of the rim and the inside."""
        if self.sign:
            return {"+": (GREEN, PALE_GREEN), "-": (RED, "white"), "=": (PALE_LINE, "white")}[self.sign]
        if self.verdict or self.steps[-1].edge in ("crash", "stall", "killed"):
            return RED, PALE_RED
        return (AMBER, PALE_AMBER) if self.commits else (GREY, "white")


def beats(example: Counterexample, schedule: Sequence[Collective]) -> list[Beat]:
    """Return the steps of `example` as beats; the schedule says whose parts each of its collectives delivers."""
    return _grouped([("", step) for step in example.steps], example, schedule)


def _grouped(
    signed: Sequence[tuple[str, TraceStep]], example: Counterexample, schedule: Sequence[Collective]
) -> list[Beat]:
    operations = {op.name: op for op in schedule}
    verdict = "" if example.stuck else example.claim
    runs: list[tuple[str, list[TraceStep]]] = []
    for sign, step in signed:
        shown_alone = bool(verdict) and step is example.steps[-1]
        if runs and not shown_alone and runs[-1][0] == sign and _goes_on(runs[-1][1][-1], step):
            runs[-1][1].append(step)
        else:
            runs.append((sign, [step]))
    found = []
    for sign, run in runs:
        last = run[-1]
        sources: Sequence[int] = ()
        if last.edge in ("complete", "device") and last.operation in operations and sign != "-":
            members = last.members or range(example.ranks)
            needed = depends_on(operations[last.operation], members.index(last.rank), len(members))
            sources = [members[place] for place in needed]
        others = tuple(rank for rank in sources if rank != last.rank)
        found.append(Beat(tuple(run), others, verdict if last is example.steps[-1] else "", sign))
    return found


def _goes_on(before: TraceStep, step: TraceStep) -> bool:
    plain = before.edge == step.edge == "step" and not before.commits and not step.commits
    return before.rank == step.rank and (plain or (before.edge, step.edge) == ("issue", "complete"))


ALIKE = 8
"""So many steps that two runs share are shown before the first in which they differ."""


def compared(new: Counterexample, old: Counterexample, schedule: Sequence[Collective]) -> list[Beat]:
    """Return both runs from shortly before they differ.

    Each rank is compared with itself: how ranks interleave is chance.
    """
    signs: dict[int, str] = {}
    gone: dict[int | None, list[TraceStep]] = {}
    for rank in range(new.ranks):
        before, after = ([s for s in run.steps if s.rank == rank] for run in (old, new))
        for tag, i, j, k, n in SequenceMatcher(None, _events(before), _events(after), autojunk=False).get_opcodes():
            signs |= {step.number: "=" if tag == "equal" else "+" for step in after[k:n]}
            if tag != "equal":
                gone.setdefault(after[k].number if k < len(after) else None, []).extend(before[i:j])
    merged: list[tuple[str, TraceStep]] = []
    for step in new.steps:
        merged += [("-", lost) for lost in gone.get(step.number, ())]
        merged.append((signs[step.number], step))
    merged += [("-", lost) for lost in gone.get(None, ())]
    first = next((at for at, (sign, _) in enumerate(merged) if sign != "="), 0)
    return _grouped(merged[max(0, first - ALIKE) :], new, schedule)


def _events(steps: Sequence[TraceStep]) -> list[tuple[str, str, str]]:
    return [(step.event, step.edge, step.operation) for step in steps]


def endings(example: Counterexample) -> list[list[str]]:
    """Return, per rank, where the run leaves it: stuck, in what and waiting for which ranks, or just its state."""
    states = example.steps[-1].states if example.steps else ("at the start",) * example.ranks
    lines = [[state] for state in states]
    for stuck in example.stuck:
        lines[stuck.rank] = stuck.text.removeprefix(f"rank{stuck.rank} is ").split(", ")
        if stuck.since is not None:
            lines[stuck.rank].append(f"since step {stuck.since} ({example.steps[stuck.since - 1].event})")
    return lines


def sequence_mermaid(example: Counterexample, schedule: Sequence[Collective], old: Counterexample | None = None) -> str:
    """Return a counterexample as a Mermaid `sequenceDiagram`.

    With another one, `+` and `-` say what only one of them has.
    """
    lines = ["sequenceDiagram", *(f"participant rank{rank}" for rank in range(example.ranks))]
    lines.append(f"Note over rank0,rank{example.ranks - 1}: {plain(': '.join(_heading(example)))}")
    for beat in compared(example, old, schedule) if old else beats(example, schedule):
        for source in beat.sources:
            last = beat.steps[-1]
            lines.append(f"rank{source}->>rank{beat.rank}: {plain(f'{last.operation} #{last.sequence}')}")
        sign = f"{beat.sign} " if beat.sign in ("+", "-") else ""
        lines.append(f"Note over rank{beat.rank}: {sign}{'<br/>'.join(map(plain, beat.lines))}")
    lines.append("rect rgb(251, 213, 213)")
    lines += [f"Note over rank{rank}: {'<br/>'.join(map(plain, end))}" for rank, end in enumerate(endings(example))]
    lines.append("end")
    return "\n    ".join(lines) + "\n"


EM, LINE, PAD, GAP = 6.7, 14, 6, 12
"""Measures of a chart, in pixels: a character's width, a line's height, around a box's text, between boxes."""


def _heading(example: Counterexample) -> list[str]:
    return [f"{example.claim} does not hold", example.text] if example.claim else [example.text]


def sequence_svg(example: Counterexample, schedule: Sequence[Collective], old: Counterexample | None = None) -> str:
    """Return a counterexample as SVG: a lane for each rank, a row for each beat; stuck ranks end in red.

    With `old`, another run: what only this one does is green, what only that one does red and struck out.
    """
    shown = compared(example, old, schedule) if old else beats(example, schedule)
    ends, stuck = endings(example), {s.rank for s in example.stuck}
    told = _heading(example)
    if old:
        other = "" if _heading(old) == told else f" ({'; '.join(_heading(old))})"
        told.append(f"green: only here; red, struck out: only in the other run{other}")
    lanes, right = _lanes(shown, ends)
    title = [line for text in told for line in textwrap.wrap(text, max(60, int(right / EM) - 4))]
    top = GAP + LINE * len(title) + GAP
    under: list[str] = []
    boxes = [_box(x, top, [f"rank{rank}"], INK, INK, "white") for rank, x in enumerate(lanes)]
    inside: dict[int, float] = {}
    below = top + _height([""]) + GAP
    tops = _tops(shown, below, example.ranks)
    for beat, y in zip(shown, tops, strict=True):
        x, middle = lanes[beat.rank], y + _height(beat.lines) / 2
        if beat.rank in inside and beat.sign != "-":
            under.append(_bar(x, inside.pop(beat.rank), middle, AMBER))
        if beat.steps[-1].edge == "issue" and beat.sign != "-":
            inside[beat.rank] = middle
        under += _arrows([lanes[source] for source in beat.sources], x, _width(beat.lines) / 2, middle)
        hover = "\n".join(step.text for step in beat.steps)
        boxes.append(_box(x, y, beat.lines, *beat.colours, INK, hover, gone=beat.sign == "-"))
    y = max([below, *(at + _height(beat.lines) + GAP for beat, at in zip(shown, tops, strict=True))]) + GAP
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


class _Placed(NamedTuple):
    """Holds what takes room from `top` to `bottom` on lanes `left` to `right`: a box, or the arrows into one."""

    left: int
    right: int
    top: float
    bottom: float
    about: tuple[str, int | None]


def _tops(shown: Sequence[Beat], top: float, ranks: int) -> list[float]:
    """Return where each beat's box begins: as high as its lane, its collective, and arrows of others leave it room.

    So what ranks do at the same time stands side by side; the numbers keep the order in which it was found.
    """
    free = [top] * ranks
    issued: dict[tuple[int, str, int | None], float] = {}
    placed: list[_Placed] = []
    tops = []
    for beat in shown:
        last, height, rank = beat.steps[-1], _height(beat.lines), beat.rank
        about = (last.operation, last.sequence)
        y = max([free[rank], *(issued.get((source, *about), top) - height / 2 for source in beat.sources)])
        span = (min((rank, *beat.sources)), max((rank, *beat.sources)))
        while True:
            box = _Placed(rank, rank, y, y + height, about)
            arrows = _Placed(*span, y + height / 2 - 4, y + height / 2 + 4, about)
            hit = [other for other in placed if _hits(other, box) or (beat.sources and _hits(other, arrows))]
            if not hit:
                break
            y = max(y + 1, min(other.bottom for other in hit) + GAP / 2 - height / 2)
        placed += [box, arrows] if beat.sources else [box]
        if beat.sign != "-" and beat.steps[0].edge == "issue":
            issued[rank, beat.steps[0].operation, beat.steps[0].sequence] = y + height / 2
        free[rank] = y + height + GAP
        tops.append(y)
    return tops


def _hits(one: _Placed, other: _Placed) -> bool:
    """Return whether they are in each other's way. What belongs to one collective is not."""
    apart = one.right < other.left or other.right < one.left or one.bottom <= other.top or other.bottom <= one.top
    return not apart and (one.about != other.about or not one.about[0])


def _lanes(shown: Sequence[Beat], ends: Sequence[Sequence[str]]) -> tuple[list[float], float]:
    """Return the middle of each rank's lane, wide enough for all that is said in it, and where the last one ends."""
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


def _text(x: float, y: float, text: str, colour: str, anchor: str, weight: str = "normal", gone: bool = False) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"' + (' text-decoration="line-through"' if gone else "")
    return f'<text {where} fill="{colour}" font-weight="{weight}">{escape(text)}</text>'


def _box(
    x: float,
    y: float,
    lines: Sequence[str],
    rim: str,
    fill: str,
    colour: str,
    hover: str = "",
    *,
    gone: bool = False,
) -> str:
    width, height = _width(lines), _height(lines)
    weights = ["bold", *["normal"] * len(lines)]
    texts = [
        _text(x, y + PAD + LINE * n - 3.5, line, RED if gone else colour, "middle", weight, gone)
        for n, (line, weight) in enumerate(zip(lines, weights, strict=False), 1)
    ]
    where = f'x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    title = f"<title>{escape(hover)}</title>" if hover else ""
    return f'<g>{title}<rect {where} rx="5" fill="{fill}" stroke="{rim}"/>{"".join(texts)}</g>'


def _bar(x: float, top: float, bottom: float, colour: str) -> str:
    return f'<rect x="{x - 3:.1f}" y="{top:.1f}" width="6" height="{bottom - top:.1f}" fill="{colour}"/>'


def _arrows(sources: Sequence[float], x: float, half: float, y: float) -> list[str]:
    """Return the arrows from every source's lane to the edge of the box at `x`."""
    parts = [f'<circle cx="{source:.1f}" cy="{y:.1f}" r="4" fill="{BLUE}"/>' for source in sources]
    for side in (-1, 1):
        there = [source for source in sources if (source - x) * side > 0]
        if there:
            far, tip = max(there, key=lambda source: abs(source - x)), x + side * half
            parts.append(f'<path d="M{far:.1f} {y:.1f}H{tip:.1f}" stroke="{BLUE}" stroke-width="1.5"/>')
            parts.append(f'<path d="M{tip:.1f} {y:.1f}l{side * 8} -4v8z" fill="{BLUE}"/>')
    return parts
