"""What a search over any number of workers found, as text, JSON and JUnit XML. Left out: pictures (`..chart`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...errors import Exit
from ..properties import Property
from .anysize import Proof
from .report import SCHEMA
from .shown import counted, counterexample_json, counterexample_text, faults_text, write_counterexample

VERDICTS = {Exit.OK: "holds", Exit.VIOLATED: "violated", Exit.UNKNOWN: "unknown"}
MARKS = {True: "holds   ", False: "VIOLATED", None: "UNKNOWN "}


def as_json(proof: Proof) -> dict[str, Any]:
    """The object that `check --any-world-size --format json` prints. `holds` null: possibly spurious."""
    question, search, example = proof.question, proof.search, proof.counterexample
    kinds = proof.network.kinds.items()
    return {
        "schema": SCHEMA,
        "protocol": question.protocol,
        "mutant": question.mutant,
        "ranks": "any",
        "transport": "stream" if proof.network.stream else "rendezvous",
        "faults": {kind: sorted(map(str, points)) if points else None for kind, points in kinds},
        "states": len(search.states),
        "transitions": search.hops,
        "depth": max(search.depth),
        "engine": "any-world-size",
        "seconds": round(proof.seconds, 3),
        "states_per_second": round(len(search.states) / proof.seconds),
        "verdict": VERDICTS[proof.status],
        "properties": [{"name": p.name, "kind": p.kind, "holds": proof.holds(p)} for p in proof.properties],
        "not_covered": [p.name for p in proof.not_covered],
        "counterexample": None
        if example is None
        else {"confirmed_at_ranks": example.ranks, **counterexample_json(example)},
        "possibly_spurious": [
            {"property": p.name, "tried_ranks": proof.tried, "steps": _moves(proof, p)} for p in proof.spurious
        ],
    }


def as_text(proof: Proof) -> str:
    """The verdict, a line a property, what is not covered, and the counterexample as numbered steps."""
    question, search, network = proof.question, proof.search, proof.network
    scope, mutant = network.scope, f" broken by {question.mutant}" if question.mutant else ""
    lines = [
        f"{question.protocol}{mutant}: any number of workers, {counted(scope.chunks, 'chunk')}, "
        f"{counted(scope.steps, 'step')} a chunk, {faults_text(network)}, "
        f"{'stream' if network.stream else 'rendezvous'} transport",
        f"{len(search.states):,} sets of situations, {search.hops:,} transitions, depth {max(search.depth)}, "
        f"in {proof.seconds:.1f} s by the any-world-size engine",
        "",
        *(f"  {MARKS[proof.holds(p)]}  {p.name:30} {p.text}" for p in proof.properties),
        "",
        "  Not covered, as a set of workers tells nothing of it (check it at a chosen --ranks):",
        f"  {', '.join(p.name for p in proof.not_covered if p.kind != 'sometimes')}, and what is `sometimes` seen.",
    ]
    if proof.counterexample is not None:
        example = proof.counterexample
        lines += ["", f"Confirmed on a network of {example.ranks} ranks.", *counterexample_text(example)]
    for prop in proof.spurious:
        lines += ["", *_spurious(proof, prop)]
    return "\n".join(lines)


def as_junit(proof: Proof) -> str:
    """One test case a property; what is possibly spurious is an error, and no failure."""
    failures = sum(proof.holds(p) is False for p in proof.properties)
    suite = ElementTree.Element(
        "testsuite",
        name=f"genlock check {proof.question.protocol} --any-world-size",
        tests=str(len(proof.properties)),
        failures=str(failures),
        errors=str(len(proof.spurious)),
        time=f"{proof.seconds:.3f}",
    )
    for prop in proof.properties:
        classname = f"genlock.check.{proof.question.protocol}.any_world_size"
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name=prop.name)
        if prop.name in proof.confirmed:
            failure = ElementTree.SubElement(case, "failure", message=prop.text)
            failure.text = "\n".join(counterexample_text(proof.confirmed[prop.name]))
        elif proof.holds(prop) is None:
            error = ElementTree.SubElement(case, "error", message=_doubt(proof))
            error.text = "\n".join(_spurious(proof, prop))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def write(proof: Proof, out: Path) -> None:
    """`check.txt` and `check.json`; of a counterexample also its chart and a scenario for `genlock run`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "check.txt").write_text(as_text(proof) + "\n")
    (out / "check.json").write_text(json.dumps(as_json(proof), indent=2) + "\n")
    if proof.counterexample is not None:
        schedule = proof.network.protocol.schedule
        write_counterexample(proof.counterexample, schedule, proof.question.mutant, out)


def _doubt(proof: Proof) -> str:
    tried = f"no network of 2 to {proof.tried} ranks shows it" if proof.tried else "every network is too large to try"
    return f"possibly spurious: {tried}"


def _spurious(proof: Proof, prop: Property) -> list[str]:
    lines = [f"{prop.name} fails for a set of workers, {_doubt(proof)}. The way there:"]
    return lines + [f"  {number:3}. {text}" for number, text in enumerate(_moves(proof, prop), 1)]


def _moves(proof: Proof, prop: Property) -> list[str]:
    return [f"{hop.who} {hop.event}" + (f", {hop.edge}s" if hop.edge in ("issue", "complete") else "")
            for hop in proof.search.path(prop.name)]  # fmt: skip
