"""Settings come from the nearest pyproject; what is none is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from genlock.errors import GenlockError
from genlock.lint.rules import Level
from genlock.lint.settings import EXCLUDED, Settings, read


def written(folder: Path, table: str) -> Settings:
    (folder / "pyproject.toml").write_text(f"[tool.genlock.lint]\n{table}\n")
    return read(folder)


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert read(tmp_path) == Settings()
    assert "GL104" not in Settings().rules()
    assert len(Settings().rules()) == 9


def test_the_nearest_file_is_read(tmp_path: Path) -> None:
    written(tmp_path, 'ignore = ["GL101"]')
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert read(inner).ignore == ("GL101",)


def test_each_setting_is_read(tmp_path: Path) -> None:
    table = 'select = ["GL10"]\nignore = ["GL101"]\nextend-exclude = ["old"]\nfail-on = "note"\nshow = "error"\n'
    settings = written(tmp_path, table + 'baseline = "b.json"')
    assert settings == Settings(("GL10",), ("GL101",), (*EXCLUDED, "old"), Level.note, Level.error, tmp_path / "b.json")
    assert settings.rules() == {f"GL10{n}" for n in range(2, 10)}
    assert written(tmp_path, 'exclude = ["old"]').exclude == ("old",)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("select = 'GL101'", "tool.genlock.lint.select"),
        ("ignore = ['GL2']", "no rule begins with `GL2`"),
        ("fail-on = 'bad'", "`bad` is no level"),
        ("colour = true", "tool.genlock.lint.colour: is no setting"),
        ("select = [", "no TOML"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, table: str, says: str) -> None:
    with pytest.raises(GenlockError, match=says):
        written(tmp_path, table)
