"""States the rules: their numbers, names and one-line summaries. Each has a page in `docs/lint`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from importlib import resources

from ..errors import UsageError


class Level(IntEnum):
    """Ranks findings: an *error* is a hang by what is written here, a *warning* needs one likely thing more."""

    note = 1
    warning = 2
    error = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """Holds one rule. `optional` rules report nothing until they are selected by number."""

    id: str
    name: str
    summary: str
    optional: bool = False


RULES = {
    rule.id: rule
    for rule in (
        Rule("GL101", "branch", "A branch that ranks take differently holds a collective"),
        Rule("GL102", "early-return", "Some ranks leave before a collective"),
        Rule("GL103", "loop-count", "Ranks run a loop with a collective a different number of times"),
        Rule("GL104", "loop-over-local-data", "A collective for each item of local data", optional=True),
        Rule("GL105", "group-creation", "Ranks do not all create the same groups in the same order"),
        Rule("GL106", "exception-path", "A rank that catches an exception skips a collective"),
        Rule("GL107", "unordered-loop", "The order of a set or of a folder decides the order of collectives"),
        Rule("GL108", "local-state", "A clock, a file, a queue or free memory decides about a collective"),
        Rule("GL109", "rank-only-call", "A function or save for one rank alone holds a collective"),
        Rule("GL110", "other-context", "A destructor, signal handler or second thread runs a collective"),
    )
}


def rule(identifier: str) -> Rule:
    """Return the rule of that number; raise `UsageError` where there is none."""
    found = RULES.get(identifier.upper())
    if found is None:
        raise UsageError(f"no rule `{identifier}`", do=f"choose from {', '.join(RULES)}")
    return found


def matching(prefixes: tuple[str, ...]) -> frozenset[str]:
    """Return the numbers that begin with one of the prefixes (`GL10`, `GL102`); `ALL` is every rule."""
    chosen: set[str] = set()
    for prefix in prefixes:
        named = {name for name in RULES if prefix.upper() == "ALL" or name.startswith(prefix.upper())}
        if not named or not prefix:
            raise UsageError(f"no rule begins with `{prefix}`", do=f"choose from {', '.join(RULES)}")
        chosen |= named
    return frozenset(chosen)


def explain(identifier: str) -> str:
    """Return a rule's page, as Markdown."""
    page = resources.files("genlock") / "docs" / "lint" / f"{rule(identifier).id}.md"
    return page.read_text(encoding="utf-8")
