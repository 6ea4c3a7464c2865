"""Writes a picture into a file, in the format that was asked for.

Text needs no program: only a graph as svg or png needs `dot`, and a chart as png `rsvg-convert`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import graphviz

from ..errors import UsageError


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
