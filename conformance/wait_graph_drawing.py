"""Draws the wait-for graph, for `dot` and Mermaid: who waits, in which operation, for which ranks, left to right.

Left out: the graph itself (`waits`), and how a picture becomes a file (`model.picture`).
"""

from __future__ import annotations

from collections.abc import Mapping

import graphviz

from ..model.diagrams.colours import AMBER, GREY, INK, PALE_AMBER, PALE_GREY, PALE_RED, RED, plain
from .wait_graph import Edge, Node, WaitGraph, named

LOOKS: Mapping[str, tuple[str, str, str]] = {
    "culprit": (RED, PALE_RED, "to blame"),
    "circle": (AMBER, PALE_AMBER, "waits in a circle"),
    "root": (AMBER, PALE_AMBER, "waits for nobody"),
    "waiting": (GREY, PALE_GREY, "left waiting"),
}
"""Role to line, fill and words."""


def waits_graph(graph: WaitGraph) -> graphviz.Digraph:
    """Return the picture for `dot`.

    In SVG a node of ranks has the id of its first rank, `rank3`.
    """
    font = {"fontname": "Helvetica,Arial,sans-serif", "fontcolor": INK}
    drawn = graphviz.Digraph(
        "waits",
        graph_attr={**font, "bgcolor": "white", "label": graph.title(), "labelloc": "t", "rankdir": "LR"},
        node_attr={**font, "fontsize": "13", "margin": "0.16,0.08"},
        edge_attr={"arrowsize": "0.7"},
    )
    for node in graph.nodes:
        line, fill, _ = LOOKS[node.role]
        look = {"shape": "box", "style": "rounded,filled", "color": line, "fillcolor": fill}
        wide = "2.5" if node.role == "culprit" else "1"
        drawn.node(_name(node), "\n".join(_lines(node)), id=_name(node), penwidth=wide, **look)
    for number, (wait, waiting, awaited) in enumerate(graph.arrows()):
        name = f"op{number}"
        drawn.node(name, "\n".join(_what(wait)), shape="plain", fontsize="11")
        for node in waiting:
            drawn.edge(_name(node), name, color=GREY, arrowhead="none")
        for node in awaited:
            drawn.edge(name, _name(node), color=LOOKS[node.role][0])
    return drawn


def waits_mermaid(graph: WaitGraph) -> str:
    """Return the same picture as text for Mermaid."""
    lines = ["---", f'title: "{graph.title()}"', "---", "flowchart LR"]
    for node in graph.nodes:
        lines.append(f'    {_name(node)}["{"<br/>".join(map(plain, _lines(node)))}"]:::{node.role}')
    for number, (wait, waiting, awaited) in enumerate(graph.arrows()):
        lines.append(f'    op{number}["{"<br/>".join(map(plain, _what(wait)))}"]:::operation')
        lines += [f"    {_name(node)} --- op{number}" for node in waiting]
        lines += [f"    op{number} --> {_name(node)}" for node in awaited]
    lines += [f"    classDef {role} stroke:{line},fill:{fill}" for role, (line, fill, _) in LOOKS.items()]
    lines.append("    classDef operation stroke:none,fill:none")
    return "\n".join(lines) + "\n"


def _name(node: Node) -> str:
    return f"rank{node.ranks[0]}"


def _lines(node: Node) -> list[str]:
    """Return the ranks of a node, some to a line, and its role."""
    ranks = named(node.ranks).split(", ")
    return [*(", ".join(ranks[at : at + 4]) for at in range(0, len(ranks), 4)), LOOKS[node.role][2]]


def _what(wait: Edge) -> list[str]:
    """Return the operation, its group in a line of its own."""
    what, of, group = wait.operation.partition(" of ")
    return [what, of.lstrip() + group] if of else [what]
