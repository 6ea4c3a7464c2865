"""Finds the protocol that a user names: built in, or a function or constant in a file of theirs.

The file is run, as Python runs any file that it is asked to. Left out: checking it (`tables.Protocol.validate`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ...errors import GenlockError, ModelError, UsageError
from ...host import run_file
from ..tables import Protocol, validate
from .tp_v0 import TP_V0
from .tp_v1_1 import TP_V1_1
from .tp_values import TPVars

PROTOCOLS = {p.name: p for p in (TP_V1_1, TP_V0)}
"""Built-in protocols by name."""

DEFAULT = "protocol"
"""The name that is looked for in a file when none is given."""


def load(name: str, params: Mapping[str, str] | None = None) -> Protocol:
    """Return the protocol called `name`.

    It is one of `PROTOCOLS`, or `FILE.py[:NAME]`, where NAME is a `Protocol` or a function that returns one. `params`
    are that function's arguments, as text.

    Raises UsageError for a name or parameter that does not exist, ModelError for a file or table that fails.
    """
    params = params or {}
    path, _, inside = name.partition(":")
    if not path.endswith(".py"):
        if name not in PROTOCOLS:
            raise UsageError(f"no protocol `{name}`", do=f"built in: {', '.join(PROTOCOLS)}; or FILE.py[:NAME]")
        if params:
            raise UsageError(f"{name} has no parameter `{next(iter(params))}`", where="--param")
        return PROTOCOLS[name]
    found = getattr(_module(PurePath(path)), inside or DEFAULT, None)
    if found is None:
        raise UsageError(f"no `{inside or DEFAULT}` in this file", where=path, do="name one as FILE.py:NAME")
    if callable(found):
        found = _called(found, params, name)
    elif params:
        raise UsageError(f"{name} has no parameter `{next(iter(params))}`", where="--param")
    if not isinstance(found, Protocol):
        raise UsageError(f"{inside or DEFAULT} is a {type(found).__name__}, and no Protocol", where=path)
    validate(found)
    _refuse_a_borrowed_name(found, name)
    return found


def _module(path: PurePath) -> Any:
    try:
        return run_file(path)
    except GenlockError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{type(error).__name__}: {error}", where=_place(error, path)) from error


def _called(function: Any, params: Mapping[str, str], name: str) -> Any:
    known = inspect.signature(function).parameters
    values: dict[str, object] = {}
    for key, text in params.items():
        if key not in known:
            takes = ", ".join(known) or "none"
            raise UsageError(f"{name} has no parameter `{key}`", where="--param", do=f"it has {takes}")
        values[key] = _read(key, text, type(known[key].default))
    try:
        return function(**values)
    except GenlockError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{type(error).__name__}: {error}", where=_place(error, PurePath(name))) from error


BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _read(key: str, text: str, kind: type) -> object:
    """Read a parameter as the type of its default; one without a default is a whole number."""
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise UsageError(f"`{text}` is neither true nor false", where=f"--param {key}")
        return BOOLEANS[text.lower()]
    try:
        return kind(text) if kind in (int, float, str) else int(text)
    except ValueError:
        what = "number" if kind is float else "whole number"
        raise UsageError(f"`{text}` is no {what}", where=f"--param {key}") from None


def _refuse_a_borrowed_name(protocol: Protocol, name: str) -> None:
    """Raise ModelError where a user's tables are called as TP's: properties would look for TP's variables in them."""
    if protocol.name.startswith("tp_") and (
        protocol.cast or not all(isinstance(r.start(True), TPVars) for r in protocol.roles)
    ):
        what = f"the protocol is called `{protocol.name}`, as Genlock's own are"
        raise ModelError(what, where=name, do="give it another name")


def _place(error: BaseException, path: PurePath) -> str:
    """Return the file, and the line in it where the error came from."""
    trace, line = error.__traceback__, getattr(error, "lineno", None)
    while trace is not None:
        if PurePath(trace.tb_frame.f_code.co_filename).name == path.name.partition(":")[0]:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{path}, line {line}" if line else str(path)
