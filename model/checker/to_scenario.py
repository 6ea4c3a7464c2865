"""Turns a counterexample into a scenario that `genlock run` executes: what rank0 was asked to do, and the fault.

Left out: the order in which ranks move; real ranks choose their own.
"""

from __future__ import annotations

from typing import Any

from ..semantics.run import Counterexample


def scenario(example: Counterexample, mutant: str | None) -> dict[str, Any]:
    """Return `{"steps": [...], "inject": ...}`: rank0's chunks and heartbeats, and at which chunk what is injected.

    A mutant is injected by its name, a chunk that preflight refuses by a break-it row that has the same effect;
    other faults are named, and `genlock run` says whether it can make them yet.
    """
    steps: list[dict[str, Any]] = []
    inject: dict[str, Any] | None = None
    cut, chunks = False, 0
    for step in example.steps:
        if step.edge in ("crash", "stall"):
            rank, phase = step.rank, step.states[step.rank]
            inject = {"id": "OM-13", "chunk": max(chunks, 1), "rank": rank, "state": phase, "kind": step.edge}
        if step.rank != 0:
            continue
        if step.event == "heartbeat":
            steps.append({"do": "heartbeat"})
        elif step.event == "hard_cut":
            cut = True
        elif step.event == "request":
            chunks += 1
            steps.append({"do": "chunk", "hard_cut": cut})
        elif step.event == "preflight_schema":
            steps[-1]["recompute"] = "recompute=True" in step.data
        elif step.event == "refuse":
            inject = inject or {"id": mutant or "OM-01", "chunk": chunks}
        elif step.event == "commit":
            cut = False
    if inject is None and mutant is not None:
        inject = {"id": mutant, "chunk": max(chunks, 1)}
    return {"steps": steps, "inject": inject}
