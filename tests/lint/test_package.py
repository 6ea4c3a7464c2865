"""Files are read together; names are followed through imports, packages or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from genlock.errors import UnreadableInput, UsageError
from genlock.lint.package import Class, Function, read


def files(folder: Path, **sources: str) -> None:
    for name, source in sources.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


def test_names_are_followed_through_imports(tmp_path: Path) -> None:
    files(
        tmp_path,
        pkg__one="def f(): pass\nclass A:\n    def m(self): pass\n",
        pkg__two="from .one import f as g, A\nclass B(A): pass\n",
    )
    (tmp_path / "pkg" / "__init__.py").write_text("from .two import g, B\n")
    package = read([tmp_path / "pkg"])
    found = package.find("pkg.g")
    assert isinstance(found, Function)
    assert found.name == "f"
    method = package.find("pkg.B.m")
    assert isinstance(method, Function)
    assert method.cls is not None
    assert method.cls.name == "A"
    assert isinstance(package.find("pkg.two.A"), Class)
    assert package.find("pkg.nothing") is None


def test_an_import_that_leads_back_to_itself_ends(tmp_path: Path) -> None:
    files(tmp_path, a="from b import x\n", b="from a import x\n")
    assert read([tmp_path]).find("a.x") is None


def test_a_folder_without_init_files_is_a_package(tmp_path: Path) -> None:
    files(tmp_path, pkg__sub__one="def f(): pass\n", pkg__two="from pkg.sub.one import f\n")
    assert isinstance(read([tmp_path / "pkg"]).find("pkg.two.f"), Function)


def test_a_method_is_found_by_name_only_where_the_name_is_distinctive_and_alone(tmp_path: Path) -> None:
    methods = "".join(f"    def {name}(self): pass\n" for name in ("sync_all", "update", "two_of"))
    files(tmp_path, a=f"class A:\n{methods}")
    files(tmp_path, b="class B:\n    def two_of(self): pass\n")
    package = read([tmp_path])
    assert package.only_method("sync_all") is not None
    assert package.only_method("update") is None
    assert package.only_method("two_of") is None


def test_tests_are_left_out_unless_they_are_named(tmp_path: Path) -> None:
    files(tmp_path, tests__test_a="", a="")
    excluded = ("tests", "test_*.py")
    assert {Path(m.path).name for m in read([tmp_path], excluded).modules.values()} == {"a.py"}
    assert read([tmp_path / "tests" / "test_a.py"], excluded).modules


def test_what_cannot_be_read_is_said_with_its_line(tmp_path: Path) -> None:
    files(tmp_path, bad="x = 1\ndef f(:\n")
    with pytest.raises(UnreadableInput, match=r"bad.py:2: no Python"):
        read([tmp_path])


def test_a_path_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match="no such file"):
        read([tmp_path / "missing"])
    with pytest.raises(UsageError, match="no Python files"):
        read([tmp_path])
