"""Evaluates expressions: what a value can differ by between ranks, and which collectives its evaluation issues.

Left out: calls (`calls`), statements (`functions`), and all arithmetic on values.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import names, vocabulary
from .calls import Calls, names_in
from .divergence import (
    NOTHING,
    UNKNOWN,
    Atom,
    Confidence,
    Formula,
    Kind,
    Source,
    Value,
    alone,
    differing,
    joined,
    merged,
    negated,
    sources,
)
from .package import Class, Function, dotted_name, last_name
from .schedule import Branch, Loop, Node

_OPPOSITE: dict[type[ast.cmpop], tuple[str, bool]] = {
    ast.Eq: ("==", True),
    ast.NotEq: ("==", False),
    ast.Lt: ("<", True),
    ast.GtE: ("<", False),
    ast.Gt: (">", True),
    ast.LtE: (">", False),
    ast.In: ("in", True),
    ast.NotIn: ("in", False),
    ast.Is: ("is", True),
    ast.IsNot: ("is", False),
}
"""Comparison → the one that is written in its place, and whether it holds or its opposite."""


class Expressions(Calls):
    """Evaluates expressions at one point of a function."""

    # --- values ---

    def value(self, node: ast.expr | None) -> Value:
        """Return what is known of an expression, and add the collectives that it issues to the block."""
        if node is None:
            return NOTHING
        evaluate = _EVALUATE.get(type(node))
        if evaluate is not None:
            return evaluate(self, node)
        return differing(*(self.value(part) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)))

    def _constant(self, node: ast.Constant) -> Value:
        value = node.value
        return Value(constant=value) if value is None or isinstance(value, bool | int | str) else NOTHING

    def _name(self, node: ast.Name) -> Value:
        name = node.id
        for scope in (self.names, self.closure):
            if name in scope:
                return scope[name]
        if name == "self" and self.owner is not None:
            return Value(cls=self.owner)
        found = self.analysis.package.named(self.module, name)
        if isinstance(found, Function):
            return Value(function=found)
        if isinstance(found, Class):
            return NOTHING
        if self.function.node is not self.module.tree and name not in self.function.parameters:
            known = self.analysis.global_value(self.module, name)
            if known is not None:
                return known
        return names.by_name(name, name, node.lineno)

    def _is_progress_bar(self, node: ast.expr, owner: Value) -> bool:
        name = owner.cls.name if owner.cls is not None else last_name(node)
        return bool(vocabulary.PROGRESS_BAR.search(name))

    def _attribute(self, node: ast.Attribute) -> Value:
        chain, name = dotted_name(node), node.attr
        if vocabulary.COUNT_OF_RANKS.search(name):
            return NOTHING
        for scope in (self.names, self.closure):
            if chain in scope:
                return scope[chain]
        owner = self.value(node.value)
        if name in vocabulary.SHOWN and self._is_progress_bar(node.value, owner):
            source = Source(Kind.RANK, Confidence.LIKELY, chain, node.lineno, names.WORLD)
            return Value(sources=(source,), formula=Atom(chain, (source,), chain))
        if name in vocabulary.PROPERTIES and owner.cls is not self.owner:
            self._issue(node, name, names.WORLD, hidden=True)
            return NOTHING
        if owner.cls is not None:
            method = self.analysis.package.method(owner.cls, name)
            if method is not None and method.is_property:
                return self._inline(method, node, name, {})
            if method is not None:
                return Value(function=method)
            known = self.analysis.attribute(owner.cls, name)
            if known is not None:
                return known
        elif name in self.analysis.package.properties and name in self.analysis.reach:
            method = self.analysis.package.only_method(name)
            if method is not None and method.is_property:
                return self._inline(method, node, name, {}, Confidence.LIKELY)
        found = self.analysis.package.find(self.dotted(node)) if owner is NOTHING else None
        if isinstance(found, Function):
            return Value(function=found)
        root = chain.partition(".")[0]
        if root in self.each and name in ("rank", "process_index"):
            return NOTHING  # of one of many things that have one each
        return names.by_name(name, chain or name, node.lineno)

    def _subscript(self, node: ast.Subscript) -> Value:
        if dotted_name(node.value).endswith("environ") and isinstance(node.slice, ast.Constant):
            return self._variable(node.slice.value, node.lineno)
        owner = self.value(node.value)
        self.value(node.slice)
        if owner.sharded:
            return owner
        # what stands at a rank's own place in a list is taken to be alike: lists of equal settings are the common case
        return differing(owner) if owner.sources else NOTHING

    def _slice(self, node: ast.Slice) -> Value:
        for part in (node.lower, node.upper, node.step):
            self.value(part)
        return NOTHING

    def _either(self, node: ast.IfExp) -> Value:
        test = self.condition(node.test)
        if isinstance(test, bool):
            return self.value(node.body if test else node.orelse)
        before, branch = self.block, Branch(test, node.lineno)
        self.block = branch.then
        first = self.value(node.body)
        self.block = branch.other
        second = self.value(node.orelse)
        self.block = before
        if branch.then or branch.other:
            before.append(branch)
        peerless = alone(test)
        if peerless is not None:
            return second if peerless else first
        shows = any(isinstance(part, ast.Call) and _shows_progress(part) for part in (node.body, node.orelse))
        return merged(first, second, () if shows else sources(test))

    def _boolean(self, node: ast.BoolOp) -> Value:
        every = isinstance(node.op, ast.And)
        before, parts, found = self.block, [], []
        for part in node.values:
            value = self.value(part)
            parts.append(self.formula(part, value))
            found.append(value)
            left = joined(every, list(parts))
            branch = Branch(left, node.lineno)
            self.block.append(branch)
            self.block = branch.then if every else branch.other
        self.block = before
        _drop_empty(before)
        formula = joined(every, parts)
        if isinstance(formula, bool):
            return Value(constant=formula)
        return replace(differing(*found), formula=formula, group=found[0].group, cls=found[-1].cls)

    def _unary(self, node: ast.UnaryOp) -> Value:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            formula = negated(self.formula(node.operand, value))
            return Value(constant=formula) if isinstance(formula, bool) else replace(differing(value), formula=formula)
        if isinstance(node.op, ast.USub) and isinstance(value.constant, int):
            return Value(constant=-value.constant)
        return differing(value)

    def _lambda(self, node: ast.Lambda) -> Value:
        return NOTHING

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Value:
        before, kept = self.block, dict(self.names)
        loop = Loop(node.lineno, what="comprehension")
        self.block = loop.body
        found: list[Value] = []
        for generator in node.generators:
            items = self.value(generator.iter)
            loop.count += items.sources
            self.bind(generator.target, NOTHING)
            self.each.update(names_in(generator.target))
            found.append(replace(items, formula=None))
            for test in generator.ifs:
                value = self.value(test)
                loop.count += value.sources
                found.append(value)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        found += [self.value(part) for part in parts]
        self.block, self.names = before, kept
        if loop.body:
            before.append(loop)
        return replace(
            differing(*found),
            unordered=isinstance(node, ast.SetComp) or any(value.unordered for value in found),
            dictionary=isinstance(node, ast.DictComp),
        )

    def _list(self, node: ast.List) -> Value:
        found = [self.value(part) for part in node.elts]
        alone_in_it = len(found) == 1 and found[0].rank is not None  # a group of its own: all ranks make one alike
        return NOTHING if alone_in_it else differing(*found)

    def _tuple(self, node: ast.Tuple) -> Value:
        parts = tuple(self.value(part) for part in node.elts)
        return replace(differing(*parts), parts=parts)

    def _set(self, node: ast.Set) -> Value:
        return replace(differing(*(self.value(part) for part in node.elts)), unordered=True)

    def _dict(self, node: ast.Dict) -> Value:
        for key, value in zip(node.keys, node.values, strict=True):
            self.value(key)
            self.value(value)
        return Value(dictionary=True)

    def _text(self, node: ast.JoinedStr) -> Value:
        found = [self.value(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
        return differing(*found)

    def _binary(self, node: ast.BinOp) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        return differing(left, right) if left.sources or right.sources else NOTHING

    def _walrus(self, node: ast.NamedExpr) -> Value:
        value = self.value(node.value)
        self.bind(node.target, value)
        return value

    # --- conditions ---

    def condition(self, node: ast.expr) -> Formula:
        """Evaluate a test; return the formula that decides it."""
        return self.formula(node, self.value(node))

    def formula(self, node: ast.expr, value: Value) -> Formula:
        """Return the formula of a value that is tested for truth."""
        if value.formula is not None:
            return value.formula
        if value.variable:
            return Atom(ast.unparse(node), alone=False)  # set, by a launcher
        if value.rank is not None:
            return negated(self._equal_zero(value, node))
        if isinstance(value.constant, bool | int | str) or value.constant is None:
            return bool(value.constant)
        text = ast.unparse(node)
        named = node.func if isinstance(node, ast.Call) else node.target if isinstance(node, ast.NamedExpr) else node
        last = last_name(named)
        if value.group is not None or (value.sources and _is_group(last)):
            return Atom(text)  # there for members: what it guards is theirs
        peerless = False if vocabulary.DISTRIBUTED.match(last) else None
        return Atom(self.key(node, text) if value.sources else text, value.sources, text, alone=peerless)

    def key(self, node: ast.expr, text: str) -> str:
        """Return a text that is the same for two tests only while the names in them keep their values."""
        versions = [
            f"{part.id}@{self.names[part.id].version}"
            for part in ast.walk(node)
            if isinstance(part, ast.Name) and part.id in self.names and self.names[part.id].version
        ]
        return " ".join([text, *sorted(set(versions))])

    def _equal_zero(self, value: Value, node: ast.expr) -> Atom:
        return Atom(f"rank of {value.rank} == 0", value.sources, f"{ast.unparse(node)} == 0", single=True)

    def _compare(self, node: ast.Compare) -> Value:
        values = [self.value(node.left), *(self.value(part) for part in node.comparators)]
        text = ast.unparse(node)
        if len(node.ops) > 1:
            found = differing(*values)
            return replace(found, formula=Atom(self.key(node, text) if found.sources else text, found.sources, text))
        left, right = values
        operator, holds = _OPPOSITE[type(node.ops[0])]
        if left.constant is not UNKNOWN and right.constant is not UNKNOWN and operator in ("==", "is"):
            same = left.constant == right.constant if operator == "==" else left.constant is right.constant
            return Value(constant=same == holds)
        if operator in ("is", "==") and (right.constant is None or left.constant is None):
            plain = self._missing(node, left if right.constant is None else right, text, holds)
            if plain is not None:
                return plain
        peerless = _alone_at(node)
        if not holds:  # the same atom as of the opposite comparison
            text = ast.unparse(ast.Compare(node.left, [_plain(node.ops[0])], node.comparators))
            peerless = None if peerless is None else not peerless
        atom = self._atom(node, left, right, operator, text)
        if isinstance(atom, Atom) and peerless is not None:
            atom = replace(atom, alone=peerless)
        return Value(sources=sources(atom), formula=atom if holds else negated(atom))

    def _missing(self, node: ast.Compare, value: Value, text: str, holds: bool) -> Value | None:
        """Return the value of `x is None`, where that says no more than what `x` is."""
        if value.group is not None or _is_group(last_name(node.left)):
            return Value(formula=Atom(text))
        if value.rank is not None:
            return Value(formula=Atom(text))  # given or not, alike for all
        return None

    def _atom(self, node: ast.Compare, left: Value, right: Value, operator: str, text: str) -> Formula:
        """Return the atom of a comparison, written alike for all ways to write it (`rank > 0` is `not rank == 0`)."""
        found = differing(left, right).sources
        own, other = node.left, node.comparators[0]
        if left.rank is None and right.rank is not None and operator in ("==", "<", ">"):
            left, right, operator = right, left, {"==": "==", "<": ">", ">": "<"}[operator]
            own, other = other, own
        if right.constant == 0 and isinstance(own, ast.Call) and last_name(own.func) in vocabulary.SIZES:
            found = tuple(replace(source, confidence=Confidence.LIKELY) for source in found)
        if operator == "in" and left.rank is None and not right.sources:
            found = tuple(
                replace(source, confidence=Confidence.POSSIBLE) for source in found
            )  # a look-up, as in a cache
        if operator == "is" and isinstance(own, ast.Name) and own.id in self.function.parameters:
            found = tuple(replace(source, confidence=Confidence.POSSIBLE) for source in found)  # given or not
        if left.rank is None or not found:
            return Atom(self.key(node, text) if found else text, found, text)
        if right.rank is not None:  # the two are equal on one row of ranks: of each group alike
            return Atom(f"rank of {left.rank} {operator} rank of {right.rank}", _rows(left, right), text)
        constant = right.constant
        if isinstance(constant, int):
            if (operator, constant) in (("==", -1), ("<", 0)):
                return Atom(text, alone=True)  # the mark of a program that was started alone
            if (operator, constant) == (">", -1):
                return Atom(text, alone=False)
            if (operator, constant) == (">", 0):
                return negated(self._equal_zero(left, own))
            if (operator, constant) == ("<", 1):
                return self._equal_zero(left, own)
            single = operator == "=="
            return Atom(f"rank of {left.rank} {operator} {constant}", found, text, single=single)
        if operator == "in" and isinstance(other, ast.List | ast.Tuple | ast.Set) and _first_or_alone(other):
            return self._equal_zero(left, own)
        members = ast.unparse(other) if operator == "in" else ""
        single = operator == "=="
        return Atom(
            self.key(other, f"rank of {left.rank} {operator} {ast.unparse(other)}"), found, text, single, members
        )


def _drop_empty(block: list[Node]) -> None:
    """Take branches that hold nothing from the end of a block."""
    while block and isinstance(block[-1], Branch):
        last = block[-1]
        _drop_empty(last.then)
        _drop_empty(last.other)
        if last.then or last.other:
            break
        block.pop()


def _first_or_alone(listed: ast.List | ast.Tuple | ast.Set) -> bool:
    """Return whether a list holds no ranks but 0, and -1 for a process that was started alone."""
    return {ast.unparse(part) for part in listed.elts} in ({"0"}, {"0", "-1"})


def _shows_progress(call: ast.Call) -> bool:
    return vocabulary.PROGRESS_BAR.search(last_name(call.func)) is not None


def _rows(left: Value, right: Value) -> tuple[Source, ...]:
    """Return the sources of `rank in one group == rank in another`: members of the first differ in nothing else."""
    narrow = left if left.rank != names.WORLD else right
    wide = right if narrow is left else left
    return tuple(replace(source, scope=names.ROW + str(narrow.rank)) for source in wide.sources)


def _is_group(name: str) -> bool:
    return name.endswith(("group", "groups", "_pg", "mesh", "comm", "communicator")) or name in ("pg", "comm")


def _plain(operator: ast.cmpop) -> ast.cmpop:
    return {"==": ast.Eq, "<": ast.Lt, ">": ast.Gt, "in": ast.In, "is": ast.Is}[_OPPOSITE[type(operator)][0]]()


def _alone_at(node: ast.Compare) -> bool | None:
    """Return the outcome of a comparison that tells that there are no other ranks; None where none does."""
    left, right = node.left, node.comparators[0]
    counted = last_name(left.func if isinstance(left, ast.Call) else left)
    if not (isinstance(right, ast.Constant) and vocabulary.ALONE.search(counted)):
        return None
    known = {
        (ast.Eq, 1): True,
        (ast.LtE, 1): True,
        (ast.Lt, 2): True,
        (ast.NotEq, 1): False,
        (ast.Gt, 1): False,
        (ast.GtE, 2): False,
    }
    value = right.value
    return known.get((type(node.ops[0]), value)) if isinstance(value, int) else None


_EVALUATE: dict[type[ast.expr], Callable[[Any, Any], Value]] = {
    ast.Constant: Expressions._constant,
    ast.Name: Expressions._name,
    ast.Attribute: Expressions._attribute,
    ast.Subscript: Expressions._subscript,
    ast.Slice: Expressions._slice,
    ast.IfExp: Expressions._either,
    ast.BoolOp: Expressions._boolean,
    ast.UnaryOp: Expressions._unary,
    ast.Compare: Expressions._compare,
    ast.Call: Expressions._call,
    ast.Lambda: Expressions._lambda,
    ast.ListComp: Expressions._comprehension,
    ast.SetComp: Expressions._comprehension,
    ast.GeneratorExp: Expressions._comprehension,
    ast.DictComp: Expressions._comprehension,
    ast.List: Expressions._list,
    ast.Tuple: Expressions._tuple,
    ast.Set: Expressions._set,
    ast.Dict: Expressions._dict,
    ast.JoinedStr: Expressions._text,
    ast.BinOp: Expressions._binary,
    ast.NamedExpr: Expressions._walrus,
}
