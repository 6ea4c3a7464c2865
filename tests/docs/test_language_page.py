"""docs/language.md says what Genlock says: its blocks are run, its verdicts and messages are the true ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import genlock
import pytest
from genlock.errors import GenlockError
from repository import ROOT

PAGE = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
VERDICT = re.compile(r"# (?:with one of `(?P<fault>\w+)` )?=> (?P<said>.*)")
EXAMPLES, MISTAKES = (BLOCK.findall(part) for part in PAGE.split("## Mistakes, and what is said of them"))


def run(names: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Run the examples, one after the other; yield what the page says of each protocol, and what Genlock says."""
    for block in EXAMPLES:
        code = ""
        for line in block.splitlines():
            match = VERDICT.fullmatch(line)
            if match is None:
                code += f"{line}\n"
                continue
            exec(code, names)
            code, fault = "", match["fault"]
            report = genlock.check(names["protocol"], faults=int(fault is not None), fault=[fault] if fault else [])
            yield match["said"], repr(report).partition(": ")[2].rstrip(">")
        exec(code, names)


def test_every_example_has_the_verdict_that_the_page_says() -> None:
    found = list(run({}))
    assert len(found) > 15
    assert [said for said, _ in found] == [told for _, told in found]


def mistakes() -> list[tuple[str, str]]:
    """(row, message) of each mistake."""
    found: list[tuple[str, str]] = []
    for line in MISTAKES[0].splitlines():
        if line.startswith("# "):
            row, said = found.pop()
            found.append((row, f"{said} {line[2:]}".strip()))
        else:
            found.append((line, ""))
    return found


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    known: dict[str, Any] = {}
    for _ in run(known):
        pass
    return known


@pytest.mark.parametrize(("row", "said"), mistakes(), ids=[row for row, _ in mistakes()])
def test_a_mistake_is_told_as_the_page_says(row: str, said: str, names: dict[str, Any]) -> None:
    role = names["role"]("rank", [0, 1], eval(row, names), start_at=names["number"])
    schedule, shared = (["SUM", "VOTE"], ["QUEUE", "FLAG", "WIRE", "INBOX"])
    protocol = genlock.Protocol(
        "mine",
        "1",
        cast=(role,),
        ranks=2,
        schedule=tuple(names[name] for name in schedule),
        shared=tuple(names[name] for name in shared),
    )
    with pytest.raises(GenlockError) as error:
        genlock.check(protocol, faults=0)
    told = str(error.value)
    assert said
    assert told.endswith(said)


def test_every_word_of_the_language_is_in_an_example() -> None:
    words = "By Cell Collective Fair Fifo Invariant Kind LeadsTo Link Meet Poll Post Put Receive See Send Sent Set Take"
    code = "".join(EXAMPLES).partition("def role")[2]
    assert [word for word in words.split() if not re.search(rf"\b{word}[.(]", code)] == []
