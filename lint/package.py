"""Reads the files of a program and finds what a name in one of them stands for.

Left out: types. An attribute's class is known where the program writes `self.x = Class(...)` or annotates it
(`expressions`); a method of an unknown receiver is found where one class alone defines a distinctive name.
"""

from __future__ import annotations

import ast
import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from ..errors import UnreadableInput, UsageError
from . import vocabulary

Definition = ast.FunctionDef | ast.AsyncFunctionDef
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(eq=False, slots=True)
class Function:
    """Holds a function, method or module body. `mentions` are the names that it calls or reads as attributes."""

    module: Module
    node: Definition | ast.Module
    name: str
    cls: Class | None = None
    parent: Function | None = None
    mentions: set[str] = field(default_factory=set)
    parameters: tuple[str, ...] = ()
    is_property: bool = False
    rank_zero_only: str = ""

    @property
    def body(self) -> list[ast.stmt]:
        """Return the statements."""
        return self.node.body


@dataclass(eq=False, slots=True)
class Class:
    """Holds a class: its methods, and for each attribute of `self` the methods that assign it."""

    module: Module
    name: str
    bases: list[str]
    methods: dict[str, Function] = field(default_factory=dict)
    assigned: dict[str, list[Function]] = field(default_factory=lambda: defaultdict(list))
    annotated: dict[str, ast.expr] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Module:
    """Holds one file. `imports` maps a name of the file to the dotted name that it was imported from."""

    path: str
    name: str
    tree: ast.Module
    lines: list[str]
    imports: dict[str, str] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    classes: dict[str, Class] = field(default_factory=dict)
    body: Function = field(init=False)


Member = Function | Class | Module


class Package:
    """Holds all files that are linted together, and answers which definition a dotted name stands for."""

    def __init__(self, modules: Iterable[Module]) -> None:
        self.modules: dict[str, Module] = {}
        self.functions: list[Function] = []
        self.by_node: dict[ast.AST, Function] = {}
        self.methods: dict[str, list[Function]] = defaultdict(list)
        self.properties: set[str] = set()
        self.importing: set[Function] = set()
        for module in modules:
            self.modules[module.name] = module
            _Index(self, module).run()
        for name, module in list(self.modules.items()):
            parts = name.split(".")
            beside = not (Path(module.path).parent / "__init__.py").exists()  # as scripts beside it import it
            for start in range(1, len(parts) - 1 + beside):
                self.modules.setdefault(".".join(parts[start:]), module)
        self._found: dict[str, Member | None] = {}

    def find(self, dotted: str, depth: int = 0) -> Member | None:
        """Return what a dotted name stands for, following imports; None where it is none of the package's."""
        if dotted not in self._found:
            self._found[dotted] = None  # for names that lead back to themselves
            self._found[dotted] = self._search(dotted, depth)
        return self._found[dotted]

    def _search(self, dotted: str, depth: int) -> Member | None:
        if dotted in self.modules:
            return self.modules[dotted]
        parent, _, name = dotted.rpartition(".")
        owner = self.find(parent, depth) if parent else None
        if isinstance(owner, Module):
            here = owner.functions.get(name) or owner.classes.get(name)
            if here is None and name in owner.imports and depth < 6 and owner.imports[name] != dotted:
                return self.find(owner.imports[name], depth + 1)
            return here
        return self.method(owner, name) if isinstance(owner, Class) else None

    def named(self, module: Module, name: str) -> Member | None:
        """Return what a bare name stands for in a module."""
        here = module.functions.get(name) or module.classes.get(name)
        return here or (self.find(module.imports[name]) if name in module.imports else None)

    def bases(self, cls: Class) -> Iterator[Class]:
        """Yield the classes of the package that a class is derived from, itself first."""
        seen, todo = {cls}, [cls]
        while todo:
            current = todo.pop(0)
            yield current
            for base in current.bases:
                first, _, rest = base.partition(".")
                found = self.named(current.module, first)
                if rest and isinstance(found, Module):
                    found = self.find(f"{found.name}.{rest}")
                if isinstance(found, Class) and found not in seen:
                    seen.add(found)
                    todo.append(found)

    def method(self, cls: Class, name: str, above: bool = False) -> Function | None:
        """Return a class's method of that name, its bases' too; `above` leaves out its own."""
        for owner in self.bases(cls):
            if name in owner.methods and not (above and owner is cls):
                return owner.methods[name]
        return None

    def only_method(self, name: str) -> Function | None:
        """Return the one method of that name in the package, if the name is distinctive and there is one alone."""
        found = self.methods.get(name, ())
        distinctive = "_" in name.strip("_") and name not in vocabulary.COMMON_METHODS
        return found[0] if len(found) == 1 and distinctive else None

    def reaching(self, names: frozenset[str], libraries: tuple[str, ...]) -> set[str]:
        """Return all function names through which one of `names`, or a library, can be reached, `names` included.

        Functions that use what their file imports from one of the libraries are kept in `importing`.
        """
        for module in self.modules.values():
            local = {name for name, dotted in module.imports.items() if (dotted + ".").startswith(_dots(libraries))}
            if local:
                self.importing |= {f for f in self.functions if f.module is module and not local.isdisjoint(f.mentions)}
        callers: dict[str, set[str]] = defaultdict(set)
        for function in self.functions:
            for mentioned in function.mentions:
                name = function.cls.name if function.cls and function.name == "__init__" else function.name
                callers[mentioned].add(name)
        reached = set(names) | {function.name for function in self.importing} - {"<module>"}
        todo = list(reached)
        while todo:
            for caller in callers.get(todo.pop(), ()):
                if caller not in reached and caller not in ("<module>", "main", "__call__"):
                    reached.add(caller)
                    todo.append(caller)
        return reached


def _dots(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name + "." for name in names)


class _Index:
    """Walks a file once and notes its definitions, imports, and what each function mentions."""

    def __init__(self, package: Package, module: Module) -> None:
        self.package, self.module = package, module

    def run(self) -> None:
        body = Function(self.module, self.module.tree, "<module>")
        self.module.body = body
        self.package.functions.append(body)
        self._walk(self.module.tree.body, body, None)

    def _walk(self, nodes: Iterable[ast.AST], function: Function, cls: Class | None) -> None:
        todo = list(nodes)
        while todo:
            node = todo.pop()
            if isinstance(node, _DEFINITIONS):
                self._define(node, function, cls)
                todo += node.decorator_list
                continue
            if isinstance(node, ast.ClassDef):
                self._define_class(node, function)
                continue
            if isinstance(node, ast.Attribute):
                function.mentions.add(node.attr)
                if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
                    self._assign(node.attr, function)
            elif isinstance(node, ast.Name):
                function.mentions.add(node.id)
                continue
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
                continue
            elif isinstance(node, ast.AnnAssign) and cls is not None and isinstance(node.target, ast.Name):
                cls.annotated[node.target.id] = node.annotation
            elif isinstance(node, ast.Constant):
                continue
            todo += ast.iter_child_nodes(node)

    def _assign(self, attribute: str, function: Function) -> None:
        owner: Function | None = function
        while owner is not None and owner.cls is None:
            owner = owner.parent
        if owner is not None and owner.cls is not None and function not in owner.cls.assigned[attribute]:
            owner.cls.assigned[attribute].append(function)

    def _define(self, node: Definition, parent: Function, cls: Class | None) -> None:
        arguments = node.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        function = Function(self.module, node, node.name, cls, parent, parameters=tuple(names))
        for decorator in node.decorator_list:
            name = last_name(decorator.func if isinstance(decorator, ast.Call) else decorator)
            if name in ("property", "cached_property"):
                function.is_property = True
                self.package.properties.add(node.name)
            elif vocabulary.RANK_ZERO_ONLY.match(name):
                function.rank_zero_only = name
        self.package.functions.append(function)
        self.package.by_node[node] = function
        if cls is not None:
            cls.methods.setdefault(node.name, function)
            self.package.methods[node.name].append(function)
        elif parent.node is self.module.tree:
            self.module.functions.setdefault(node.name, function)
        parent.mentions.add(node.name)
        self._walk(node.body, function, None)

    def _define_class(self, node: ast.ClassDef, function: Function) -> None:
        cls = Class(self.module, node.name, [dotted_name(base) for base in node.bases])
        if function.node is self.module.tree:
            self.module.classes.setdefault(node.name, cls)
        self._walk(node.body, function, cls)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.module.imports[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
            return
        base = node.module or ""
        if node.level:
            parts = self.module.name.split(".")
            is_package = self.module.path.endswith("__init__.py")
            kept = parts[: len(parts) - node.level + is_package]
            base = ".".join([*kept, base] if base else kept)
        for alias in node.names:
            self.module.imports.setdefault(alias.asname or alias.name, f"{base}.{alias.name}")


def last_name(node: ast.AST) -> str:
    """Return the last part of a name: `c` of `a.b.c`; empty for what is no name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def dotted_name(node: ast.AST) -> str:
    """Return a chain of names, as `a.b().c`; empty where it does not begin with a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted_name(node.value)
        return f"{before}.{node.attr}" if before else ""
    if isinstance(node, ast.Call):
        before = dotted_name(node.func)
        return f"{before}()" if before else ""
    return ""


def read(paths: Iterable[Path], excluded: Iterable[str] = ()) -> Package:
    """Read the files, and all Python files below the folders, less those that match an `excluded` pattern."""
    patterns = tuple(excluded)
    kept = [(path, root) for path, root in _files(paths) if path == root or not _excluded(path, root, patterns)]
    collected = gc.isenabled()
    gc.disable()  # syntax trees have no cycles, and many objects to look through for them
    try:
        return Package([_parse(path, root) for path, root in kept])
    finally:
        if collected:
            gc.enable()


def _excluded(path: Path, root: Path, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern fits the path below `root`, its end, or the name of a folder or file on it."""
    inside = path.relative_to(root)
    return any(
        fnmatch(inside.as_posix(), pattern) or any(fnmatch(part, pattern) for part in inside.parts)
        for pattern in patterns
    )


def _files(paths: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield each file once, with the path that was given for it."""
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UnreadableInput("no such file or folder", where=str(path))
        inside = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        hidden = len(path.parts)
        for file in inside:
            skipped = any(part.startswith(".") or part in _SKIPPED for part in file.parts[hidden:])
            if file not in seen and not skipped:
                seen.add(file)
                yield file, path
    if not seen:
        raise UsageError("no Python files there", where=", ".join(map(str, paths)))


_SKIPPED = {"__pycache__", "build", "node_modules", "site-packages", "venv"}


def _parse(path: Path, root: Path) -> Module:
    try:
        source = path.read_bytes()
        tree = ast.parse(source)
    except SyntaxError as error:
        where = f"{path}:{error.lineno}" if error.lineno else str(path)
        raise UnreadableInput(f"no Python: {error.msg}", where=where, do="mend it, or exclude it") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableInput(f"no Python: {error}", where=str(path), do="mend it, or exclude it") from None
    lines = source.decode("utf-8", "replace").splitlines()
    return Module(path.as_posix(), _module_name(path, root), tree, lines)


def _module_name(path: Path, root: Path) -> str:
    """Return the dotted name under which the file is imported: from the topmost folder that is a package, or `root`."""
    folder = path.absolute().parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    root = root.absolute()
    if folder.is_relative_to(root) and root.is_dir():
        folder = root if (root / "__init__.py").exists() else root.parent  # a package without __init__.py files
    parts = path.absolute().relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
