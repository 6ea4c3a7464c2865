"""`genlock explain`: the text, and that it names what the readers know."""

from __future__ import annotations

import pytest
from genlock.cli.explain import explain
from genlock.errors import UsageError


def test_each_version_of_torch_has_its_switches() -> None:
    text = explain("evidence")
    for word in ("2.2 to 2.6", "2.7 to 2.10", "2.11 and later", "TORCH_NCCL_TRACE_BUFFER_SIZE", "ncclras", "py-spy"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 120


def test_what_hangs_now_begins_with_one_command() -> None:
    now = explain("evidence").split("BEFORE", 1)[0].split("NOW", 1)[1]
    assert now.splitlines()[1].split()[:2] == ["genlock", "collect"]


def test_an_unknown_topic_is_refused() -> None:
    with pytest.raises(UsageError, match="choose one of evidence"):
        explain("everything")
