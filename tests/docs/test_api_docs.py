"""docs/api.md is what its sources say, and names each public name once."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import genlock
import pytest
from repository import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_docs", ROOT / "scripts" / "api_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.manual(), "run `python scripts/api_docs.py`"


def test_each_public_name_has_an_entry(script: ModuleType) -> None:
    assert sorted(name for section in script.SECTIONS for name in section.names) == sorted(genlock.__all__)


def test_each_entry_is_documented(script: ModuleType) -> None:
    assert "(not documented)" not in script.manual()
