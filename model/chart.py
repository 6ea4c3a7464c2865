"""Sequence charts of counterexamples, as SVG and Mermaid: a lane a rank, and nothing that no step says.

Left out: charts of recorded runs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from .checker.counterexample import Counterexample, TraceStep
from .picture import AMBER, BLUE, GREY, INK, PALE_AMBER, PALE_GREY, PALE_RED, RED, plain
from .tables import Collective
from .transport import depends_on


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
    lines.append(f"Note over rank0,rank{example.ranks - 1}: {plain(f'{example.claim}: {example.text}')}")
    for beat in beats(example, schedule):
        for source in beat.sources:
            last = beat.steps[-1]
            lines.append(f"rank{source}->>rank{beat.rank}: {plain(f'{last.operation} #{last.sequence}')}")
        lines.append(f"Note over rank{beat.rank}: {'<br/>'.join(map(plain, beat.lines))}")
    lines.append("rect rgb(251, 213, 213)")
    lines += [f"Note over rank{rank}: {'<br/>'.join(map(plain, end))}" for rank, end in enumerate(endings(example))]
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
