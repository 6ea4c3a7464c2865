"""Puts a page together: text, style, script, library, diagrams and data in one file that needs no network.

Left out: what the page shows (`view_model`), and how (`page.html`, `page.css`, `page.js`).
"""

from __future__ import annotations

import json
import re
from html import escape
from importlib.resources import files
from pathlib import Path

import graphviz

from ..model.diagrams.state_diagram import phase_colours, state_diagram
from ..model.tables import Protocol, Role
from .view_model import Story, as_json


def write(path: Path, story: Story) -> None:
    """Write the page. Without `dot` on this machine, a role is a list of its states instead of a diagram."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(story), encoding="utf-8")


def page(story: Story) -> str:
    """Return the whole page as HTML."""
    parts = {
        "title": escape(f"{story.title}: {story.verdict}"),
        "style": _file("page.css"),
        "library": _file("vendor/d3.min.js"),
        "licence": escape(_file("vendor/d3.LICENSE")),
        "script": _file("page.js"),
        "diagrams": "\n".join(diagram(role, story.protocol) for role in story.protocol.roles) if story.protocol else "",
        "data": embedded(json.dumps(as_json(story), separators=(",", ":"))),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html"))


def embedded(data: str) -> str:
    """Return JSON that no HTML parser takes for markup."""
    return data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def diagram(role: Role, protocol: Protocol) -> str:
    """Return a role as an `svg` whose states have the ids `ROLE.STATE`, or as a list with the same ids."""
    name = escape(role.name)
    try:
        drawn = state_diagram(role, phase_colours(*protocol.roles), brief=True).pipe("svg", encoding="utf-8")
    except graphviz.ExecutableNotFound:
        items = "".join(f'<li id="{escape(f"{role.name}.{s.name}")}">{escape(s.name)}</li>' for s in role.states)
        drawing = f'<ol class="states">{items}</ol>'
    else:
        svg = drawn[drawn.index("<svg") :]
        drawing = re.sub(r'^<svg width="[^"]*" height="[^"]*"', f'<svg role="img" aria-label="States of {name}"', svg)
    return f'<figure class="role" data-role="{name}"><figcaption>{name}</figcaption>{drawing}</figure>'


def _file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
