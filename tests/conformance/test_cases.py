"""The documents have the very cases of blame that the code has, row by row, and no others."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from genlock.conformance.cases import Table
from genlock.conformance.collectives.blame import ALONE, STUCK, UNLIKE
from genlock.conformance.protocol.blame import MISSED, WHOSE
from genlock.conformance.report import as_json
from genlock.conformance.report_schema import schema
from repository import ROOT

TABLES: dict[str, list[tuple[str, Table[Any]]]] = {
    "docs/diagnosis.md": [("ALONE", ALONE), ("UNLIKE", UNLIKE), ("STUCK", STUCK)],
    "docs/replay.md": [("WHOSE", WHOSE), ("MISSED", MISSED)],
}
BLOCK = re.compile(r"(<!-- cases: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str, tables: dict[str, Table[Any]]) -> str:
    """The document with each block of cases as the code has it."""
    return BLOCK.sub(lambda found: f"{found[1]}{tables[found[2]].as_markdown()}\n{found[4]}", text)


@pytest.mark.parametrize("path", TABLES)
def test_the_document_is_the_table_of_the_code(path: str) -> None:
    """If not: python tests/conformance/test_cases.py"""
    text = (ROOT / path).read_text(encoding="utf-8")
    assert [found[2] for found in BLOCK.finditer(text)] == [name for name, _ in TABLES[path]]
    assert filled(text, dict(TABLES[path])) == text


def test_each_case_has_one_name_in_its_table() -> None:
    for tables in TABLES.values():
        for _, table in tables:
            names = [case.name for case in table.cases]
            assert len(set(names)) == len(names)


def test_the_schema_in_the_documents_is_that_of_the_code() -> None:
    """If not: python -m genlock.conformance.report_schema > docs/replay.schema.json"""
    assert json.loads((ROOT / "docs" / "replay.schema.json").read_text()) == json.loads(json.dumps(schema()))


@pytest.mark.parametrize("name", ["healthy/three-ranks", "broken/OM-11", "struck/worker-ready-stall"])
def test_what_is_reported_fits_the_schema(name: str) -> None:
    import corpus
    from genlock.conformance.replay import judge

    traces = corpus.traces(name)
    validator = jsonschema.Draft202012Validator(schema())
    for kept in (traces, traces[:1], traces[1:]):
        report = json.loads(json.dumps(as_json(judge(kept))))
        validator.validate(report)
        assert set(report) == set(schema()["$defs"]["Report"]["properties"])


if __name__ == "__main__":
    for document, listed in TABLES.items():
        at = ROOT / document
        at.write_text(filled(at.read_text(encoding="utf-8"), dict(listed)), encoding="utf-8")
