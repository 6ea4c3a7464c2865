"""Holds what a page shows, of a check or of a run: events on lanes, collectives that link them, and the problem.

Nothing here knows where events come from (`check_page`, `run_page`) or how they are drawn (`page.js`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..model.diagrams.colours import FILLS
from ..model.diagrams.state_diagram import phase_colours
from ..model.tables import Protocol, Role, Scope

SCHEMA = 1
Edge = Literal["step", "enter", "exit", "fault"]
AnyVerdict = Literal[
    "conforming", "divergent", "unknown", "holds", "violated", "walk",
    "ship", "ship on what was shown", "not shown", "do not ship",
]  # fmt: skip


class Moment(NamedTuple):
    """Holds one event of one rank."""

    rank: int
    column: int
    """Place from left to right: a logical time, by which a collective's end comes after what it waits for."""
    name: str
    edge: Edge
    before: str
    state: str
    """The rank's state afterwards; empty where no protocol is known."""
    phase: str
    call_id: int | None = None
    chunk: int | None = None
    call: int | None = None
    """Number of the generator call, from 1."""
    mate: int | None = None
    """Index of the other end, where this is one end of an operation."""
    link: int | None = None
    """Index of the collective that it is an end of."""
    commits: bool = False
    place: int | None = None
    """Number of the line of the rank's file, or of the step, where to read it; `Story.places` says which."""
    detail: str = ""


TEXTS = ("name", "edge", "before", "state", "phase", "detail")
"""The fields of a moment that are text."""


class CollectiveLink(NamedTuple):
    """Names a collective and its members, whose lanes it links."""

    name: str
    members: tuple[int, ...]
    root: int | None


class Headline(NamedTuple):
    """Tells what went wrong first: `head` names it, `facts` are (name, text)."""

    head: str
    seen: str
    expected: tuple[str, ...]
    why: str
    facts: tuple[tuple[str, str], ...]
    culprits: tuple[int, ...]
    waits: tuple[str, ...]


class Item(NamedTuple):
    """Holds a line of a checklist: the claim, its status, and its evidence, a line each."""

    key: str
    claim: str
    status: str
    good: bool
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Story:
    """Holds everything that one page shows."""

    title: str
    verdict: AnyVerdict
    summary: str
    lanes: Sequence[int]
    """Ranks, from top to bottom; `Moment.rank` is one of them."""
    moments: Sequence[Moment]
    """In the order in which the page steps through them; a rank's own come in its order."""
    links: Sequence[CollectiveLink] = ()
    focus: int | None = None
    """Index of the moment at which the page opens."""
    finding: Headline | None = None
    notes: Sequence[str] = ()
    """Reasons for care, such as what the page leaves out."""
    protocol: Protocol | None = None
    scope: Scope | None = None
    """Within which a protocol with a cast says who plays which rank."""
    walk: Mapping[str, Any] | None = None
    """See `explorer.walk`."""
    places: str = "step"
    checklist: Sequence[Item] = ()


def as_json(story: Story) -> dict[str, Any]:
    """Return the object that the page's script reads: moments column by column, each text once."""
    texts: dict[str, int] = {}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    moments: dict[str, list[Any]] = {}
    for at, name in enumerate(Moment._fields):
        column: list[Any] = [moment[at] for moment in story.moments]
        moments[name] = list(map(number, column)) if name in TEXTS else column
    lane = {rank: at for at, rank in enumerate(story.lanes)}
    moments["lane"] = [lane[rank] for rank in moments.pop("rank")]
    moments["commits"] = [int(commits) for commits in moments["commits"]]
    return {
        "schema": SCHEMA,
        "title": story.title,
        "verdict": story.verdict,
        "summary": story.summary,
        "lanes": [{"rank": rank, "role": _role(story, rank)} for rank in story.lanes],
        "moments": moments,
        "links": [
            [
                number(link.name),
                -1 if link.root is None else lane.get(link.root, -1),
                *(lane[m] for m in link.members if m in lane),
            ]
            for link in story.links
        ],
        "focus": story.focus,
        "finding": None if story.finding is None else story.finding._asdict(),
        "notes": list(story.notes),
        "checklist": [item._asdict() for item in story.checklist],
        "colours": colours(story),
        "phases": {role.name: {s.name: s.phase for s in role.states} for role in _roles(story)},
        "walk": story.walk,
        "places": story.places,
        "texts": list(texts),  # last: by now each has its number
    }


def colours(story: Story) -> dict[str, str]:
    """Return the colour of each phase: as in the state diagrams, or in order of appearance where no table has it."""
    known = phase_colours(*_roles(story))
    others = dict.fromkeys(m.phase for m in story.moments if m.phase not in known)
    return {**known, **{phase: FILLS[number % len(FILLS)] for number, phase in enumerate(others)}}


def _roles(story: Story) -> Sequence[Role]:
    return story.protocol.roles if story.protocol else ()


def _role(story: Story, rank: int) -> str:
    return story.protocol.role(rank, story.scope).name if story.protocol else ""
