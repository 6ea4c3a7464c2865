"""What the machine says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from genlock import host


def test_memory_is_what_the_container_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    whole = host.available_memory()
    assert whole is None or whole > 0
    for name, text in (("memory.max", "1000"), ("memory.current", "600"), ("memory.stat", "anon 1\ninactive_file 50")):
        (tmp_path / name).write_text(text)
    assert host.available_memory() == 450
    (tmp_path / "memory.max").write_text("max")
    assert host.available_memory() != 450
