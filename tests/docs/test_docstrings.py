"""Docstrings by the rule of CONTRIBUTING.md: they begin with a verb, and use no words of our own.

A machine cannot know a verb. It can know what is none: an article, a pronoun, a preposition, or `What` and `Whether`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

ROOMS = ("cli", "guardian", "page", "scripts")
"""Folders that keep the rule, beside the modules at the root."""
NOT_YET = {"errors.py", "audit_page.py"}
FILES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
FILES = [path for path in FILES if path.name not in NOT_YET]
NO_VERB = re.compile(
    r"(What|Whether|Of|Wh(om|ose|ere|en|y|o|ich)|How|The|An?|Its?|Th(is|at|ese|ose|ey|ere)|Each|Every|Some|All|Any|No|"
    r"One|Two|So|As|At|By|For|From|In|On|To|With|True|False)\b"
)
"""First words that make no imperative, nor a verb of which the thing itself is the subject."""
QUESTIONS = {"__init__.py": "Can a rank of my job", "cli/app.py": "Can a rank of my job"}
"""The one line that says what Genlock is for."""
OUR_OWN = re.compile(r"\b(house|seat|crew|(?:is|are) told|vigil)\b", re.IGNORECASE)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, docstring) of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text


def breaks_the_rule(text: str) -> bool:
    """True for a docstring whose first word is no verb, or that has a word of our own."""
    return bool(NO_VERB.match(text) or not text[0].isupper() or OUR_OWN.search(text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_begin_with_a_verb_and_use_the_words_of_the_field(path: Path) -> None:
    question = QUESTIONS.get(path.relative_to(ROOT).as_posix(), "\0")
    found = [f"{where}: {text.splitlines()[0]}" for where, text in docstrings(path) if not text.startswith(question)]
    wrong = [line for line in found if breaks_the_rule(line.partition(": ")[2])]
    assert wrong == []


@pytest.mark.parametrize("text", ["What it is.", "Whether it holds.", "Of a rank, its end.", "`x`: a thing.", "a seat"])
def test_what_breaks_the_rule_is_found(text: str) -> None:
    assert breaks_the_rule(text)


def test_what_keeps_the_rule_is_let_through() -> None:
    assert not breaks_the_rule("Return the rank that others wait for.")
