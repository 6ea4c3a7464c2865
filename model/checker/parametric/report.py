"""Reports what a search over any number of workers found, as text, JSON and JUnit XML.

Left out: pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....junit import Case, as_xml
from ...semantics.properties import Property
from ..formatting import counterexample_json, counterexample_text, scope_json, scope_text
from ..report import NOTHING_SAID, SCHEMA, Answer
from .prove import Proof
from .reached import Reached

NOBODY_ASKED = "no network was searched to its end for what is reached"
MARKS = {True: "holds   ", False: "VIOLATED", None: "UNKNOWN "}


def as_json(proof: Proof) -> dict[str, Any]:
    """Return the object that `check --any-world-size --format json` prints.

    `holds` null: possibly spurious.
    """
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
        "scope": {**scope_json(proof.network, question), "ranks": "any"},
        "depth": max(search.depth),
        "stopped": search.stopped,
        "engine": "any-world-size",
        "seconds": round(proof.seconds, 3),
        "states_per_second": round(len(search.states) / proof.seconds),
        "verdict": proof.verdict.value,
        "properties": [{"name": p.name, "kind": p.kind, "holds": proof.holds(p)} for p in proof.properties],
        "not_covered": [p.name for p in proof.not_covered],
        **_reached_json(proof.reached),
        "counterexample": None
        if example is None
        else {"confirmed_at_ranks": example.ranks, **counterexample_json(example)},
        "possibly_spurious": [
            {"property": p.name, "tried_ranks": proof.tried, "steps": _moves(proof, p)} for p in proof.spurious
        ],
    }


def as_text(proof: Proof) -> str:
    """Return the verdict, a line a property, what is not covered, and the counterexample as numbered steps."""
    question, search, network = proof.question, proof.search, proof.network
    mutant = f" broken by {question.mutant}" if question.mutant else ""
    stopped = [f"STOPPED: {search.stopped}; what was not searched may violate anything"] if search.stopped else []
    lines = [
        f"{question.protocol}{mutant}: {scope_text(network, question, 'any number of workers')}",
        f"{len(search.states):,} sets of situations, {search.hops:,} transitions, depth {max(search.depth)}, "
        f"in {proof.seconds:.1f} s by the any-world-size engine",
        *stopped,
        "",
        *(f"  {MARKS[proof.holds(p)]}  {p.name:30} {p.text}" for p in proof.properties),
        "",
        "  Not covered, as a set of workers tells nothing of it (check it at a chosen --ranks):",
        f"  {', '.join(p.name for p in proof.not_covered if p.kind != 'sometimes')}.",
        *_reached_text(proof),
    ]
    if proof.counterexample is not None:
        example = proof.counterexample
        lines += ["", f"Confirmed on a network of {example.ranks} ranks.", *counterexample_text(example)]
    for prop in proof.spurious:
        lines += ["", *_spurious(proof, prop)]
    return "\n".join(lines)


def as_junit(proof: Proof) -> str:
    """Return one test case a property; what is possibly spurious is an error, and no failure."""
    name = f"genlock check {proof.question.protocol} --any-world-size"
    cases = [_case(proof, prop) for prop in proof.properties]
    classname = _classname(proof)
    if proof.reached is not None:
        cases += [Case(classname, line, "error", "never reached") for line in proof.reached.never.lines()]
        cases += [Case(classname, line, "error", "not shown to be reached") for line in proof.reached.undecided_lines()]
    elif proof.verdict is Answer.UNKNOWN and not proof.search.seen:
        cases.append(Case(classname, "something was reached", "error", NOBODY_ASKED))
    return as_xml(name, cases, proof.seconds)


def _classname(proof: Proof) -> str:
    return f"genlock.check.{proof.question.protocol}.any_world_size"


def _reached_json(found: Reached | None) -> dict[str, Any]:
    if found is None:
        return {**NOTHING_SAID, "undecided": None, "reached_at_ranks": None}
    return {
        **found.never.as_json(),
        "undecided": found.undecided.as_json()["unreached"],
        "reached_at_ranks": found.tried,
    }


def _reached_text(proof: Proof) -> Iterator[str]:
    """Yield what was never reached, what is not known to be, and what need not be."""
    found = proof.reached
    if found is None:
        if proof.verdict is Answer.UNKNOWN and not proof.search.seen:
            yield f"  UNKNOWN: {NOBODY_ASKED}"
        return
    if proof.verdict is Answer.HOLDS:
        yield f"  Networks of up to {found.tried} ranks reach all that must be reached."
    yield from (f"  NEVER REACHED  {line}" for line in found.never.lines())
    yield from (f"  NOT SHOWN TO BE REACHED  {line}" for line in found.undecided_lines())
    if proof.verdict is Answer.VACUOUS:
        yield "  VACUOUS: no verdict on what is reached at no size; widen the scope, or --allow-unreached ROW"
    elif proof.verdict is Answer.UNKNOWN:
        yield "  UNKNOWN: whether a larger network reaches that is not decided; --allow-unreached ROW"
    if found.never.allowed:
        yield f"  need not be reached: {', '.join(found.never.allowed)}"


def _case(proof: Proof, prop: Property) -> Case:
    classname = _classname(proof)
    if prop.name in proof.confirmed:
        steps = "\n".join(counterexample_text(proof.confirmed[prop.name]))
        return Case(classname, prop.name, "failure", prop.text, steps)
    if proof.holds(prop) is None:
        way = _spurious(proof, prop) if prop.name in proof.search.seen else []
        return Case(classname, prop.name, "error", _doubt(proof), "\n".join(way))
    return Case(classname, prop.name)


def _doubt(proof: Proof) -> str:
    if proof.search.stopped:
        return f"the search ended early: {proof.search.stopped}"
    tried = f"no network of 2 to {proof.tried} ranks shows it" if proof.tried else "every network is too large to try"
    return f"possibly spurious: {tried}"


def _spurious(proof: Proof, prop: Property) -> list[str]:
    lines = [f"{prop.name} fails for a set of workers, {_doubt(proof)}. The way there:"]
    return lines + [f"  {number:3}. {text}" for number, text in enumerate(_moves(proof, prop), 1)]


def _moves(proof: Proof, prop: Property) -> list[str]:
    return [f"{hop.who} {hop.event}" + (f", {hop.edge}s" if hop.edge in ("issue", "complete") else "")
            for hop in proof.search.path(prop.name)]  # fmt: skip
