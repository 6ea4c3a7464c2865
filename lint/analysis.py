"""Keeps what is known of each function, class and module of a package, made when it is first asked for.

A function is walked for each different set of simple arguments (constants, groups, what differs between ranks), so
that `save(barrier=False)` has no barrier. Left out: the walking (`functions`), and recursion, which issues nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from . import vocabulary
from .divergence import NOTHING, UNKNOWN, Atom, Confidence, Kind, Source, Value, atoms, merged
from .package import Class, Function, Module, Package, dotted_name
from .schedule import Collective, Node, Step

_CONTEXTS = 12
"""A function is walked for this many different calls; further ones see it without their arguments."""


@dataclass(slots=True)
class Summary:
    """Holds what a function does: its schedule, value, the parameters that it makes agree, attributes it assigns."""

    nodes: list[Node] = field(default_factory=list)
    steps: tuple[Step, ...] = ()
    value: Value = NOTHING
    agreed: frozenset[str] = frozenset()
    names: dict[str, Value] = field(default_factory=dict)
    risky: bool = False
    others: list[tuple[str, Function, int]] = field(default_factory=list)
    sharded: frozenset[str] = frozenset()


Walk = Callable[["Analysis", Function, dict[str, Value], dict[str, Value]], Summary]
"""Walks a function, given values of its parameters and of the names around it."""


class Analysis:
    """Holds the summaries of a package's functions, made when they are first asked for."""

    def __init__(self, package: Package, walk: Walk) -> None:
        self.package, self._walk = package, walk
        v = vocabulary
        issuing = set(v.COLLECTIVES | v.UNMISTAKABLE | v.GROUP_CREATION | v.PROPERTIES | v.MPI_COLLECTIVES)
        issuing -= {"gather", "scatter", "reduce"}  # of tensors, as a rule; a module before the dot is looked for too
        for methods in (*v.METHODS.values(), *v.FUNCTIONS.values()):
            issuing |= methods - v.COMMON_METHODS - {"prepare", "gather", "reduce", "broadcast", "all_gather"}
        issuing |= v.SHARDERS | {"accelerator", "fabric", "dcp", "dist_cp"}
        self.reach = package.reaching(frozenset(issuing), tuple(v.FUNCTIONS))
        self.own_groups: list[tuple[Function, Collective, tuple[Source, ...]]] = []
        self.nested_names: dict[Function, dict[str, Value]] = {}
        self._summaries: dict[tuple[Function, frozenset[tuple[str, Value]]], Summary] = {}
        self._contexts: dict[Function, int] = {}
        self._open: set[Function] = set()
        self._attributes: dict[tuple[Class, str], Value | None] = {}
        self._defaults: dict[Function, dict[str, Value]] = {}
        self._differs: dict[Function, bool] = {}

    def may_issue(self, function: Function) -> bool:
        """Return whether a function mentions a collective, or the name of a function that does, and so on."""
        return not self.reach.isdisjoint(function.mentions) or function in self.package.importing

    def sees_sharded(self, function: Function) -> bool:
        """Return whether a nested function mentions a module of the function around it whose forward gathers."""
        around = self.nested_names.get(function, {})
        return any(name in around and around[name].sharded for name in function.mentions)

    def may_differ(self, function: Function) -> bool:
        """Return whether a function mentions something by which ranks can differ."""
        known = self._differs.get(function)
        if known is None:
            self._differs[function] = False
            known = any(_hints(name) for name in function.mentions) or any(
                self.may_differ(found)
                for name in function.mentions
                if isinstance(found := self.package.named(function.module, name), Function)
            )
            self._differs[function] = known
        return known

    def summary(
        self, function: Function, bound: dict[str, Value] | None = None, closure: dict[str, Value] | None = None
    ) -> Summary:
        """Return what a function does when it is called with these values; nothing while it is being walked."""
        simple = frozenset((name, value) for name, value in (bound or {}).items() if _is_simple(value))
        key = (function, simple)
        if key in self._summaries and closure is None:
            return self._summaries[key]
        if function in self._open or len(self._open) > 40:
            return Summary()
        if simple:
            self._contexts[function] = self._contexts.get(function, 0) + 1
            if self._contexts[function] > _CONTEXTS:
                return self.summary(function, None, closure)
        self._open.add(function)
        seen = closure if closure is not None else self.nested_names.get(function, {})
        made = self._walk(self, function, dict(simple), seen)
        self._open.discard(function)
        if closure is None and (not _is_nested(function) or function in self.nested_names):
            self._summaries[key] = made
        return made

    def walked(self) -> list[tuple[Function, Summary]]:
        """Walk all functions that may issue a collective; return each with a summary for each way it is called."""
        for nested in (False, True):
            for function in self.package.functions:
                if _is_nested(function) == nested and self.may_issue(function):
                    self.summary(function)
        return [(function, summary) for (function, _), summary in self._summaries.items()]

    def known_summary(self, function: Function) -> Summary | None:
        """Return some summary of a function that was walked, for what holds in all of them."""
        generic = self._summaries.get((function, frozenset()))
        if generic is not None or function in self._open or not self.may_issue(function):
            return generic
        return self.summary(function)

    def attribute(self, cls: Class, name: str) -> Value | None:
        """Return what is known of an attribute of a class's instances, from all assignments; None without any."""
        key = (cls, name)
        if key not in self._attributes:
            self._attributes[key] = NOTHING  # while it is looked for
            self._attributes[key] = self._assigned(cls, name)
        return self._attributes[key]

    def _assigned(self, cls: Class, name: str) -> Value | None:
        found: Value | None = None
        for owner in self.package.bases(cls):
            for function in owner.assigned.get(name, ()):
                value = self.summary(function).names.get(f"self.{name}", NOTHING)
                value = doubtful(replace(value, formula=value.formula if is_general(value) else None))
                if found is None or (value.sources and not found.sources and found.constant is not UNKNOWN):
                    found = value
                elif value.constant is UNKNOWN or found.constant != value.constant:
                    found = merged(found, value) if value.constant is UNKNOWN else replace(found, constant=UNKNOWN)
            if found is None and name in owner.annotated:
                found = self.annotated(owner.module, owner.annotated[name])
        if found is not None and found.constant is not UNKNOWN:
            return replace(found, constant=UNKNOWN)  # others may assign it
        return found

    def annotated(self, module: Module, annotation: ast.expr) -> Value | None:
        """Return the value that an annotation promises: an instance of a class of the package."""
        text = annotation.value if isinstance(annotation, ast.Constant) else None
        name = text if isinstance(text, str) else dotted_name(annotation)
        name = name.removesuffix(" | None").strip()
        found = self.package.named(module, name) if name.isidentifier() else None
        if found is None and "." in name:
            first, _, rest = name.partition(".")
            found = self.package.find(f"{module.imports.get(first, first)}.{rest}")
        return Value(cls=found) if isinstance(found, Class) else None

    def global_value(self, module: Module, name: str) -> Value | None:
        """Return what is known of a name that a module's body assigns."""
        return self.summary(module.body).names.get(name)

    def defaults(self, function: Function) -> dict[str, Value]:
        """Return the simple defaults of a function's parameters."""
        if function not in self._defaults:
            self._defaults[function] = _defaults(function)
        return self._defaults[function]


def _defaults(function: Function) -> dict[str, Value]:
    if isinstance(function.node, ast.Module):
        return {}
    arguments = function.node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = list(zip(reversed(positional), reversed(arguments.defaults), strict=False))
    pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    found: dict[str, Value] = {}
    for argument, default in pairs:
        if isinstance(default, ast.Constant) and (default.value is None or isinstance(default.value, bool)):
            found[argument.arg] = Value(constant=default.value)
    return found


def _hints(name: str) -> bool:
    """Return whether a name alone says that ranks may differ by it."""
    return (
        "rank" in name
        or name.startswith("is_")
        or name in ("environ", "getenv", "time", "exists", "isfile", "isdir", "process_index", "main_process")
        or name in vocabulary.FILE_METHODS
        or name in vocabulary.QUEUE_METHODS
        or name in vocabulary.MEMORY_CALLS
        or name in vocabulary.LOCAL_VALUES
        or name in vocabulary.HOST_CALLS
        or name in vocabulary.RISKY_ANYWHERE
    )


def _is_nested(function: Function) -> bool:
    return function.parent is not None and not isinstance(function.parent.node, ast.Module)


def _is_simple(value: Value) -> bool:
    """Return whether a function is walked anew for an argument of this value."""
    return bool(
        value.sources
        or value.group is not None
        or value.cls is not None
        or value.function is not None
        or value.sharded
        or value.constant is None
        or isinstance(value.constant, bool)
    )


def is_general(value: Value) -> bool:
    """Return whether a formula means the same in every function."""
    return value.formula is not None and all(
        isinstance(atom, Atom) and atom.key.startswith("rank of") for atom in atoms(value.formula)
    )


def doubtful(value: Value) -> Value:
    """Return a value as one sees it who did not ask the clock or the file: much may have made it agree since."""
    if all(source.kind is Kind.RANK for source in value.sources):
        return value
    return replace(
        value,
        sources=tuple(
            source if source.kind is Kind.RANK else replace(source, confidence=Confidence.POSSIBLE)
            for source in value.sources
        ),
    )
