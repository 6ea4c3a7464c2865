"""Defines the colours that all pictures share, and text that Mermaid takes as text."""

from __future__ import annotations

INK, GREY, BLUE, RED, AMBER, GREEN = "#1e293b", "#64748b", "#1d4ed8", "#c81e1e", "#b45309", "#15803d"
PALE_RED, PALE_AMBER, PALE_GREY, PALE_GREEN = "#fbd5d5", "#fef3c7", "#f1f5f9", "#dcfce7"
PALE_LINE = "#94a3b8"
"""Colours of what is the same, where two versions are compared."""
FILLS = ("#dbeafe", "#dcfce7", "#fef9c3", "#fde7d3", "#ede4fb", "#d5f3f0", "#fbe0ec", "#e8ecef")
"""One for each phase, in the order in which the table names the phases."""


def plain(text: str) -> str:
    """Return `text` with what Mermaid would take for syntax as entities."""
    return "".join(f"#{ord(c)};" if c in '#;:<>"' else c for c in text)
