"""Writes docs/api.md, the manual of the public names, from their signatures and docstrings.

    python scripts/api_docs.py

The sources are parsed, not imported: neither torch nor an installation is needed. Left out: which names are public
(`__init__.py`), and every member without a docstring.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
WIDTH = 100
"""A longer signature has a line for each parameter."""


class Section(NamedTuple):
    """Holds a chapter of the manual."""

    title: str
    text: str
    names: tuple[str, ...]
    """In the order of the manual."""


SECTIONS = (
    Section(
        "Check a protocol",
        "`genlock check` does the same ([checker.md](checker.md)).",
        ("check", "Report", "Counterexample", "TraceStep", "Stuck"),
    ),
    Section(
        "Replay a run",
        "`genlock replay` does the same ([replay.md](replay.md), [diagnosis.md](diagnosis.md)).",
        ("replay", "load_traces", "diagnose", "Diagnosis", "Divergence", "Trace", "Recording"),
    ),
    Section(
        "Print a verdict",
        "In a notebook a `Report` and a `Diagnosis` show themselves as a table.",
        ("as_text", "as_json"),
    ),
    Section(
        "Write a protocol",
        "**Provisional**: these names may change in any version before 1.0. The guide is "
        "[own-protocol.md](guides/own-protocol.md), a whole protocol [protocol_m.py](../examples/protocol_m.py).",
        (
            *("load_protocol", "Protocol", "Role", "State", "Row", "By", "Scope"),
            *("Collective", "Kind", "Slot", "Put", "Take", "Meet"),
            *("Group", "mesh", "everyone", "Fifo", "Cell", "Link", "Poll", "Set", "See"),
            *("Send", "Receive", "Post", "Sent", "is_empty", "is_there", "total", "least", "most", "any_of", "each"),
            *("Invariant", "Sometimes", "LeadsTo", "Fair", "Whole"),
        ),
    ),
    Section(
        "Record a queue of your own",
        "For what passes by torch.distributed; these names need torch ([recording.md](recording.md#channels)).",
        ("channel", "Channel"),
    ),
    Section(
        "Compare before it hangs",
        "For bring-up and CI; these names need torch ([recording.md](recording.md#precheck)).",
        ("precheck", "agree"),
    ),
    Section(
        "Guard a rank from inside",
        "Where no launcher of Genlock's starts the ranks; the name needs torch ([guardian.md](guardian.md)).",
        ("guard",),
    ),
    Section(
        "Serve a model",
        "These names need torch. The guide is [own-pipeline.md](guides/own-pipeline.md), "
        "a whole program [language_model.py](../examples/language_model.py).",
        ("serve", "RankModel", "Driver", "chunk_fields", "Posture", "Mode"),
    ),
    Section(
        "Errors",
        "Everything that Genlock raises on purpose is a `GenlockError`; its text is one line: what, where, what to do.",
        ("GenlockError", "UsageError", "UnreadableInput", "ModelError", "Refused", "ContractViolation", "Exit"),
    ),
)


def manual() -> str:
    """Return the whole page."""
    front = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    homes = _homes(front)
    parts = [
        "# Python interface",
        "Made by `python scripts/api_docs.py` from the docstrings. The names below are public, and follow semantic "
        "versioning; whatever else a module holds may change in any version.",
        _examples(ast.get_docstring(front) or ""),
    ]
    for section in SECTIONS:
        parts += [f"## {section.title}", section.text]
        for name in section.names:
            parts += _entry(name, homes[name])
    return "\n\n".join(parts) + "\n"


def _homes(front: ast.Module) -> dict[str, str]:
    """Return the module of each public name, as `__init__.py` has it."""
    for node in front.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            return {name: module for module, names in ast.literal_eval(node.value).items() for name in names.split()}
    raise LookupError("__init__.py has no _HOMES")


def _examples(text: str) -> str:
    """Return a docstring with its indented blocks fenced."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        inside = line.startswith("    ") or (fenced and not line)
        if inside != fenced:
            while not inside and lines[-1] == "":
                lines.pop()
            lines += ["```python" if inside else "```"] + [""] * (not inside)
            fenced = inside
        lines.append(line.removeprefix("    ").partition("  # doctest:")[0])
    return "\n".join([*lines, *["```"] * fenced])


def _entry(name: str, module: str) -> Iterator[str]:
    """Yield the paragraphs of one name."""
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    (node,) = (n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name)
    yield f"### `{name}`"
    if isinstance(node, ast.FunctionDef):
        yield f"```python\n{_signature(node)}\n```"
    yield ast.get_docstring(node) or "(not documented)"
    if isinstance(node, ast.ClassDef):
        members = list(_members(node))
        if members:
            yield "\n".join(members)


def _members(node: ast.ClassDef) -> Iterator[str]:
    """Yield a line for each public field, value and method: its type, and its docstring."""
    for at, item in enumerate(node.body):
        if isinstance(item, ast.AnnAssign | ast.Assign):
            target = item.target if isinstance(item, ast.AnnAssign) else item.targets[0]
            kind = f": {ast.unparse(item.annotation)}" if isinstance(item, ast.AnnAssign) else ""
            value = f" = {ast.unparse(item.value)}" if item.value is not None and _is_short(item.value) else ""
            text, member = _text_after(node.body, at), f"{ast.unparse(target)}{kind}{value}"
            yield f"- `{member}`" + (f": {text}" if text else "")
        elif isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            text = " ".join((ast.get_docstring(item) or "").split())
            if text:
                yield f"- `{_signature(item, method=True)}`: {text}"


def _is_short(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant | ast.Tuple | ast.Attribute)


def _text_after(body: list[ast.stmt], at: int) -> str:
    """Return the string that stands behind a field, which is its docstring."""
    following = body[at + 1] if at + 1 < len(body) else None
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        return " ".join(str(following.value.value).split())
    return ""


def _signature(node: ast.FunctionDef, *, method: bool = False) -> str:
    """Return `name(parameters) -> type`; of a property `name: type`."""
    returned = ast.unparse(node.returns) if node.returns else "None"
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if decorators & {"property", "cached_property"}:
        return f"{node.name}: {returned}"
    parameters = [each for each in _each(node.args) if each != "self"]
    line = f"{node.name}({', '.join(parameters)}) -> {returned}"
    if len(line) <= WIDTH or method:
        return line
    lines = "".join(f"    {each},\n" for each in parameters)
    return f"{node.name}(\n{lines}) -> {returned}"


def _each(arguments: ast.arguments) -> Iterator[str]:
    """Yield the parameters one by one, the bare star among them."""
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    for argument, default in zip(positional, defaults, strict=True):
        yield _parameter(argument, default)
    if arguments.vararg:
        yield f"*{ast.unparse(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _parameter(argument, default)
    if arguments.kwarg:
        yield f"**{ast.unparse(arguments.kwarg)}"


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default is not None else "")


if __name__ == "__main__":
    PAGE.write_text(manual(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
