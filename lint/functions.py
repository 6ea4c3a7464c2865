"""Walks the statements of a function into its schedule.

Loops are walked once, `while` twice: what differs at the end of the body differs at its start.
Left out: expressions (`expressions`), and which functions are walked for which calls (`analysis`).
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import vocabulary
from .analysis import Analysis, Summary, doubtful, is_general
from .calls import names_in
from .divergence import NOTHING, UNKNOWN, Atom, Confidence, Kind, Source, Value, alone, differing, merged, sources
from .expressions import Expressions
from .names import by_name
from .package import Function, Package, dotted_name, last_name
from .schedule import Attempt, Branch, Handler, Leave, Loop, Node, Risk, collectives_of, run, walk


def analyse(package: Package) -> Analysis:
    """Return the analysis of a package, with nothing walked yet."""
    return Analysis(package, _walk)


def _walk(analysis: Analysis, function: Function, bound: dict[str, Value], around: dict[str, Value]) -> Summary:
    return Statements(analysis, function, bound, around).summary()


class Statements(Expressions):
    """Walks the statements of one function."""

    def __init__(
        self, analysis: Analysis, function: Function, bound: dict[str, Value], closure: dict[str, Value]
    ) -> None:
        super().__init__(analysis, function, bound, closure)
        self.returned: list[tuple[Value, tuple[Source, ...], tuple[str, ...]]] = []
        self.guards: list[tuple[Source, ...]] = []
        self.nested: list[Function] = []

    def summary(self) -> Summary:
        """Walk the function; return what it does."""
        self._parameters()
        self.statements(self.function.body)
        steps = tuple(step for step in run(self.block) if step.at is None or step.collective)
        if not collectives_of(steps):
            steps = ()
        for function in self.nested:
            if self.analysis.may_issue(self.function):
                self.analysis.nested_names[function] = {**self.closure, **self.names}
        return Summary(
            self.block,
            steps,
            self._value(),
            frozenset(self.agreed),
            self.names,
            _is_risky(self.block),
            self.others,
            frozenset(name for name in self.function.parameters if self.names.get(name, NOTHING).sharded),
        )

    def _parameters(self) -> None:
        node = self.function.node
        if isinstance(node, ast.Module):
            return
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.arg in self.names or argument.arg in ("self", "cls"):
                continue
            known = self.analysis.annotated(self.module, argument.annotation) if argument.annotation else None
            self.names[argument.arg] = known or by_name(argument.arg, argument.arg, argument.lineno)

    def _value(self) -> Value:
        """Return what is known of the function's value, from all its returns."""
        if not self.returned:
            return NOTHING
        first = self.returned[0][0]
        if len(self.returned) == 1:
            told = first if first.formula is not None else doubtful(first)  # a test is its own answer; others less so
            return replace(told if is_general(told) else replace(told, formula=None), version=0)
        size = len(first.parts)
        if size and all(len(value.parts) == size for value, _, _ in self.returned):
            parts = [
                _one_of([value.parts[place] for value, _, _ in self.returned], self._decides_return(place))
                for place in range(size)
            ]
            return replace(differing(*parts), parts=tuple(parts))
        return _one_of([value for value, _, _ in self.returned], self._decides_return(None))

    def _decides_return(self, place: int | None) -> tuple[Source, ...]:
        """Return by what ranks can differ in which value they return, or which item of it.

        A return that writes the same as the last one does not differ from it.
        """

        def written(items: tuple[str, ...]) -> object:
            return items if place is None else items[place] if place < len(items) else items

        *_, (_, _, last) = self.returned
        by = dict.fromkeys(
            source for _, some, items in self.returned if written(items) != written(last) for source in some
        )
        return tuple(s if s.kind is Kind.RANK else replace(s, confidence=Confidence.POSSIBLE) for s in by)[:6]

    # --- statements ---

    def statements(self, body: list[ast.stmt]) -> str:
        """Walk a block; return how it is left, empty where it runs through."""
        for statement in body:
            step = _WALK.get(type(statement))
            how = step(self, statement) if step is not None else ""
            if how:
                return how
        return ""

    def _into(self, block: list[Node], body: list[ast.stmt]) -> str:
        before, self.block = self.block, block
        how = self.statements(body)
        self.block = before
        return how

    def _expression(self, node: ast.Expr) -> str:
        self.value(node.value)
        if isinstance(node.value, ast.Call) and self.dotted(node.value.func) in vocabulary.EXITS:
            return self._leave("raise", node.lineno)
        return ""

    def _leave(self, how: str, line: int) -> str:
        self.block.append(Leave(how, line))
        return how

    def _return(self, node: ast.Return) -> str:
        value = self.value(node.value) if node.value is not None else Value(constant=None)
        items = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] if node.value is not None else []
        guards = tuple(source for guard in self.guards for source in guard)
        self.returned.append((value, guards, tuple(ast.unparse(item) for item in items)))
        return self._leave("return", node.lineno)

    def _raise(self, node: ast.Raise) -> str:
        self.value(node.exc)
        return self._leave("raise", node.lineno)

    def _break(self, node: ast.Break) -> str:
        return self._leave("break", node.lineno)

    def _continue(self, node: ast.Continue) -> str:
        return self._leave("continue", node.lineno)

    def _assign(self, node: ast.Assign) -> str:
        if len(node.targets) == 1 and self._assign_each(node.targets[0], node.value):
            return ""
        value = self.value(node.value)
        for target in node.targets:
            if not _same_with_a_bar(target, node.value):
                self.bind(target, value)
            if isinstance(node.value, ast.Call) and vocabulary.AGREEING_NAME.search(last_name(node.value.func)):
                self.settled.add(dotted_name(target))
        return ""

    def _assign_each(self, target: ast.expr, value: ast.expr) -> bool:
        """Assign `a, b = c, d` one by one."""
        if not (isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)):
            return False
        if len(target.elts) != len(value.elts) or any(isinstance(part, ast.Starred) for part in target.elts):
            return False
        found = [self.value(part) for part in value.elts]
        for part, known in zip(target.elts, found, strict=True):
            self.bind(part, known)
        return True

    def _annotated_assign(self, node: ast.AnnAssign) -> str:
        if node.value is not None:
            value = self.value(node.value)
            known = self.analysis.annotated(self.module, node.annotation)
            self.bind(node.target, known if known is not None and not value.sources and value.cls is None else value)
        return ""

    def _augmented(self, node: ast.AugAssign) -> str:
        value = self.value(node.value)
        text = dotted_name(node.target)
        if text:
            self.names[text] = replace(differing(self.names.get(text, NOTHING), value), version=node.lineno)
        return ""

    def _if(self, node: ast.If) -> str:
        test = self.condition(node.test)
        if isinstance(test, bool):
            return self.statements(node.body if test else node.orelse)
        branch = Branch(test, node.lineno)
        before = dict(self.names)
        found = _telling(sources(test))
        self.guards.append(found)
        how = self._into(branch.then, node.body)
        then, self.names = self.names, before
        how_other = self._into(branch.other, node.orelse)
        self.guards.pop()
        if branch.then or branch.other:
            self.block.append(branch)
        self._meet(then, self.names, how, how_other, found, alone(test))
        return how if how and how_other else ""

    def _meet(
        self,
        then: dict[str, Value],
        other: dict[str, Value],
        how: str,
        how_other: str,
        by: tuple[Source, ...],
        peerless: bool | None,
    ) -> None:
        """Set the names to what is known after a branch."""
        if how or peerless is True:
            self.names = other if not (how and how_other) else then
            if not how:
                self.names = {**then, **other}
            return
        if how_other or peerless is False:
            self.names = then if how_other else {**other, **then}
            return
        for name in then.keys() | other.keys():
            first, second = then.get(name), other.get(name)
            if first is second:
                continue
            if first is None or second is None:
                first, second = first or second or NOTHING, NOTHING
            alike = name in self.settled or vocabulary.COUNT_OF_RANKS.search(name)  # on every member
            joined = merged(first, second, by if first.version != second.version and not alike else ())
            self.names[name] = replace(joined, version=max(first.version, second.version))

    def _for(self, node: ast.For | ast.AsyncFor) -> str:
        items = self.value(node.iter)
        loop = Loop(node.lineno, what=ast.unparse(node.iter))
        loop.count = items.sources
        if items.unordered:
            loop.order = (Source(Kind.DATA, Confidence.LIKELY, f"order of {loop.what}", node.lineno),)
        elif items.dictionary and not items.sources:
            loop.count = (Source(Kind.DATA, Confidence.POSSIBLE, f"keys of {loop.what}", node.lineno),)
        elif vocabulary.LOADER_NAME.search(last_name(node.iter)) and not items.sources:
            loop.count = (Source(Kind.DATA, Confidence.POSSIBLE, f"length of {loop.what}", node.lineno),)
        self.bind(node.target, NOTHING)
        self.each |= names_in(node.target)
        self._loop(loop, node.body, node.orelse)
        return ""

    def _while(self, node: ast.While) -> str:
        if self.walking_twice:
            test = self.condition(node.test)
        else:
            self.walking_twice = True
            kept, before = self.block, dict(self.names)
            others, returned = len(self.others), len(self.returned)
            self.block = []
            self.condition(node.test)
            self.statements(node.body)
            self._meet(dict(self.names), before, "", "", (), None)
            self.block = kept
            del self.others[others:], self.returned[returned:]
            self.walking_twice = False
            test = self.condition(node.test)
        if test is False:
            return ""
        loop = Loop(node.lineno, test, sources(test), what=f"while {ast.unparse(node.test)}")
        self._loop(loop, node.body, node.orelse)
        return ""

    walking_twice = False

    def _loop(self, loop: Loop, body: list[ast.stmt], orelse: list[ast.stmt]) -> None:
        before = dict(self.names)
        by = _telling(loop.count)
        self.guards.append(by)
        self._into(loop.body, body)
        self.guards.pop()
        self._meet(self.names, before, "", "", by, None)
        if loop.body:
            self.block.append(loop)
        self.statements(orelse)

    def _try(self, node: ast.Try | ast.TryStar) -> str:
        attempt = Attempt(node.lineno)
        before = dict(self.names)
        how = self._into(attempt.body, node.body)
        if not how:
            how = self._into(attempt.body, node.orelse)
        after = self.names
        risk = next((part for part in walk(attempt.body) if isinstance(part, Risk)), None)
        by = (Source(Kind.EXCEPTION, Confidence.LIKELY, f"failure of {risk.text}", risk.line),) if risk else ()
        ways = [] if how else [after]
        for handler in node.handlers:
            self.names = {**before, **{name: value for name, value in after.items() if name not in before}}
            clause = Handler(handler.lineno, ast.unparse(handler.type) if handler.type else "", _is_broad(handler))
            self.guards.append(by if clause.broad else ())
            left = self._into(clause.body, handler.body)
            self.guards.pop()
            attempt.handlers.append(clause)
            if not left:
                ways.append(self.names)
        self.names = ways[0] if ways else after
        for way in ways[1:]:
            self._meet(dict(self.names), way, "", "", by, None)
        if attempt.body or any(handler.body for handler in attempt.handlers):
            self.block.append(attempt)
        last = self.statements(node.finalbody)
        return last or (how if not ways else "")

    def _with(self, node: ast.With | ast.AsyncWith) -> str:
        for item in node.items:
            value = self.value(item.context_expr)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, value)
        return self.statements(node.body)

    def _define(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
        function = self.analysis.package.by_node.get(node)
        if function is not None:
            self.names[node.name] = Value(function=function, version=node.lineno)
            self.nested.append(function)
        return ""

    def _delete(self, node: ast.Delete) -> str:
        return ""

    def _match(self, node: ast.Match) -> str:
        self.value(node.subject)
        before, ends = dict(self.names), []
        text = ast.unparse(node.subject)
        found = self._quietly(node.subject).sources
        block = self.block
        for case in node.cases:
            atom = Atom(f"{text} is {ast.unparse(case.pattern)}", found, f"{text} matches {ast.unparse(case.pattern)}")
            branch = Branch(atom, case.pattern.lineno)
            self.names = dict(before)
            ends.append(self._into(branch.then, case.body))
            if branch.then:
                block.append(branch)
            block = branch.other if branch.then else block
        return ""


def _is_risky(nodes: list[Node]) -> bool:
    """Return whether a block can fail on one rank alone, and nothing in it catches that."""
    for node in nodes:
        if isinstance(node, Attempt) and any(handler.broad for handler in node.handlers):
            continue
        if isinstance(node, Risk):
            return True
        if isinstance(node, Branch) and (_is_risky(node.then) or _is_risky(node.other)):
            return True
        if isinstance(node, Loop | Attempt) and _is_risky(node.body):
            return True
    return False


def _same_with_a_bar(target: ast.expr, value: ast.expr) -> bool:
    """Return whether this is `items = tqdm(items)`, which changes no item."""
    shows = isinstance(value, ast.Call) and vocabulary.PROGRESS_BAR.search(last_name(value.func))
    first = value.args[0] if isinstance(value, ast.Call) and value.args else None
    return bool(shows) and first is not None and dotted_name(first) == dotted_name(target) != ""


def _one_of(values: list[Value], by: tuple[Source, ...]) -> Value:
    """Return what is known of a value that is one of these; `by` is what decides which."""
    found = values[0]
    for value in values[1:]:
        found = merged(found, value)
    found = found if found.formula is not None or any(v.formula is not None for v in values) else doubtful(found)
    differ = any(value != values[0] for value in values) or values[0].constant is UNKNOWN
    sources_found = tuple(dict.fromkeys((*found.sources, *(by if differ else ()))))[:6]
    return replace(found, sources=sources_found, formula=None, version=0)


def _telling(found: tuple[Source, ...]) -> tuple[Source, ...]:
    """Return the sources that are likely enough to be carried on to what they decide."""
    return tuple(source for source in found if source.confidence > Confidence.POSSIBLE)


def _is_broad(handler: ast.ExceptHandler) -> bool:
    """Return whether a clause catches what can happen to one rank alone: files, networks, or anything."""
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(last_name(kind) in vocabulary.BROAD for kind in kinds)


_WALK: dict[type[ast.stmt], Callable[[Any, Any], str]] = {
    ast.Expr: Statements._expression,
    ast.Return: Statements._return,
    ast.Raise: Statements._raise,
    ast.Break: Statements._break,
    ast.Continue: Statements._continue,
    ast.Assign: Statements._assign,
    ast.AnnAssign: Statements._annotated_assign,
    ast.AugAssign: Statements._augmented,
    ast.If: Statements._if,
    ast.For: Statements._for,
    ast.AsyncFor: Statements._for,
    ast.While: Statements._while,
    ast.Try: Statements._try,
    ast.TryStar: Statements._try,
    ast.With: Statements._with,
    ast.AsyncWith: Statements._with,
    ast.FunctionDef: Statements._define,
    ast.AsyncFunctionDef: Statements._define,
    ast.Match: Statements._match,
}
