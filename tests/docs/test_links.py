"""Each link of a document leads to a file that is there, and to a heading of it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from repository import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


@cache
def headings(path: Path) -> frozenset[str]:
    """The anchors of a document, as GitHub makes them of its headings and as it names them itself."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    named = re.findall(r'<a (?:id|name)="([^"]+)"', text)
    of_headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower() for title in of_headings)
    return frozenset([*named, *(re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain)])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    dead = []
    for file, anchor in LINK.findall(FENCE.sub("", document.read_text(encoding="utf-8"))):
        there = (document.parent / file).resolve() if file else document
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in headings(there)):
            dead.append(f"{file}#{anchor}")
    assert dead == []
