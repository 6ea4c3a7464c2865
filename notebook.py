"""Renders a result as a small HTML table, for the notebooks that ask an object for `_repr_html_`.

Left out: everything that a page needs beyond one table (`page`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

GOOD, BAD, OPEN = "#1a7f37", "#b42318", "#8a6d00"
"""Colours of a verdict: shown, refuted, not known."""
COLOURS = {"holds": GOOD, "conforming": GOOD, "violated": BAD, "divergent": BAD}


def table(title: str, verdict: str, rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table: title and coloured verdict above, then `rows`, whose cells are escaped text."""
    colour = COLOURS.get(verdict, OPEN)
    head = f'{escape(title)}: <strong style="color:{colour}">{escape(verdict)}</strong>'
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<table><caption style="text-align:left">{head}</caption><tbody>{body}</tbody></table>'


def _cell(value: object) -> str:
    lines = escape(str(value)).replace("\n", "<br>")
    return f'<td style="text-align:left;vertical-align:top">{lines}</td>'
