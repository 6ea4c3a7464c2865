"""Follows calls: which collective one is, at which ranks come to differ, and what a function of the program does there.

Left out: expressions that are no calls (`expressions`).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, replace

from . import names, vocabulary
from .analysis import Analysis, Summary
from .divergence import NOTHING, UNKNOWN, Confidence, Kind, Source, Value, agreed, alone, differing, merged
from .package import Class, Function, Module, dotted_name, last_name
from .schedule import Branch, Collective, Node, Opaque, Risk, Step

_GROUP_POSITION = {"barrier": 0, "monitored_barrier": 0, "reduce": 3, "reduce_scatter": 3, "gather": 3, "scatter": 3}
_GROUP_POSITION |= {"reduce_scatter_tensor": 3, "gather_object": 3, "scatter_object_list": 3, "all_to_all_single": 4}
_GROUP_WORDS = ("group", "process_group", "pg")
_FAR = 3
"""A collective this many calls away depends on too much on the way to be likely."""
_MANY_STEPS = 60
"""A call of more steps than this stands as one step."""


@dataclass(slots=True)
class Calls:
    """Holds what is known at one point of a function, and evaluates calls there.

    `names` maps a name, or a chain such as `self.flag`, to its value. `block` takes the nodes of the schedule.
    `agreed` are the parameters, and `settled` all names, that a collective has made the same on every rank; `each` are
    the items of loops, `others` the functions that are handed to a thread or a signal.
    """

    analysis: Analysis
    function: Function
    names: dict[str, Value]
    closure: dict[str, Value]
    block: list[Node] = field(default_factory=list)
    agreed: set[str] = field(default_factory=set)
    each: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)
    others: list[tuple[str, Function, int]] = field(default_factory=list)

    @property
    def module(self) -> Module:
        """Return the file that the function stands in."""
        return self.function.module

    @property
    def owner(self) -> Class | None:
        """Return the class that `self` belongs to."""
        function: Function | None = self.function
        while function is not None and function.cls is None:
            function = function.parent
        return function.cls if function else None

    def value(self, node: ast.expr | None) -> Value:
        """Return what is known of an expression, and add the collectives that it issues to the block."""
        raise NotImplementedError

    # --- calls ---

    def dotted(self, node: ast.expr) -> str:
        """Return the dotted name of an expression, with imports followed."""
        chain = dotted_name(node)
        first, dot, rest = chain.partition(".")
        first = first.removesuffix("()")
        return self.module.imports.get(first, first) + dot + rest

    def _call(self, node: ast.Call) -> Value:
        name = last_name(node.func)
        owner = self.value(node.func.value) if isinstance(node.func, ast.Attribute) else NOTHING
        arguments = [self.value(argument) for argument in node.args]
        keywords = {keyword.arg or "**": self.value(keyword.value) for keyword in node.keywords}
        receiver = dotted_name(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        dotted = self.dotted(node.func)
        self._other_context(node, name, dotted)
        if vocabulary.COUNT_OF_RANKS.search(name):
            return NOTHING
        issued = self._collective(node, name, receiver, dotted, owner)
        if issued is not None:
            return issued
        origin = self._origin(node, name, receiver, dotted, owner)
        if origin is not None:
            return origin
        called = self.names.get(name) if isinstance(node.func, ast.Name) else None
        if called is not None and called.sharded and not called.cls:
            self._issue(node, "forward", names.WORLD, hidden=True)
        target, sure = self._target(node, owner)
        if isinstance(target, Class):
            return self._construct(target, node, arguments, keywords)
        if isinstance(target, Function):
            bound = self._bind_arguments(target, node, arguments, keywords, isinstance(node.func, ast.Attribute))
            value = self._inline(target, node, name, bound, sure)
            self._agree_by(target, node, name)
            return value
        return self._unknown_call(node, name, receiver, owner, arguments, keywords)

    def _unknown_call(
        self,
        node: ast.Call,
        name: str,
        receiver: str,
        owner: Value,
        arguments: list[Value],
        keywords: dict[str, Value],
    ) -> Value:
        root = receiver.partition(".")[0]
        if name in vocabulary.RISKY and (name in vocabulary.RISKY_ANYWHERE or root in vocabulary.RISKY_MODULES):
            self.block.append(Risk(ast.unparse(node.func), node.lineno))
        if vocabulary.AGREEING_NAME.search(name):
            self._agree(node.args[:1])
            return NOTHING
        if name in vocabulary.SHARDERS:
            for argument in node.args[:1]:
                self.bind(argument, Value(sharded=True))
            return Value(sharded=True)
        container = _container(name, owner, arguments)
        if container is not None:
            return container
        if name in ("append", "add", "extend", "update") and any(value.sources for value in arguments):
            text = receiver
            if text in self.names:
                self.names[text] = merged(self.names[text], differing(self.names[text], *arguments))
            return NOTHING
        if name in ("int", "bool") and len(arguments) == 1:
            return replace(arguments[0], group=None, cls=None, variable=False)
        if vocabulary.PROGRESS_BAR.search(name) and arguments:
            return arguments[0]  # with a bar or without, the same items
        if name in vocabulary.PASS_THROUGH:
            found = differing(owner) if name == "get" else differing(owner, *arguments)
            if name in ("list", "tuple", "enumerate", "iter", "reversed", "map", "filter", "zip"):
                return replace(
                    found,
                    unordered=any(value.unordered for value in arguments),
                    dictionary=any(value.dictionary for value in arguments),
                    sharded=False,
                )
            return found
        if name in ("train", "eval", "to", "cuda", "compile") and (
            owner.sharded or any(value.sharded for value in arguments)
        ):
            return Value(sharded=True)
        return Value(foreign=True) if name[:1].isupper() else NOTHING

    def _collective(self, node: ast.Call, name: str, receiver: str, dotted: str, owner: Value) -> Value | None:
        """Add a collective to the block, if the call is one; return its result."""
        if name in vocabulary.GROUP_CREATION:
            return self._create_group(node, name)
        kind = self._kind_of_collective(name, receiver, dotted, owner)
        if kind is None:
            return None
        group = members = ""
        if kind == "group":
            group = self._group_key(node.func.value) if isinstance(node.func, ast.Attribute) else names.UNKNOWN
        elif kind == "module" or any(k.arg in _GROUP_WORDS for k in node.keywords):
            group, members = self._group_argument(node, name)
        self._issue(node, name, group or names.WORLD, members, hidden=name in vocabulary.SAVES)
        if name in vocabulary.AGREEING or vocabulary.AGREEING_NAME.search(name):
            self._agree(node.args[:1] if node.args else [keyword.value for keyword in node.keywords[:1]])
        return NOTHING

    def _kind_of_collective(self, name: str, receiver: str, dotted: str, owner: Value) -> str | None:
        v = vocabulary
        before = dotted.rpartition(".")[0]
        last = before.rpartition(".")[2].removesuffix("()")
        if before in v.OF_ONE_PROCESS:
            return None
        if name in v.COLLECTIVES and before and (last in v.MODULES_OF_COLLECTIVES or last.endswith("_dist")):
            return "module" if owner.cls is None else None
        for module, functions in v.FUNCTIONS.items():
            if name in functions and (before == module or before.startswith(module + ".")):
                return "library"
        if not receiver:
            return "module" if name in v.UNMISTAKABLE and "." not in dotted and not self._known(name) else None
        if owner.cls is not None and self.analysis.package.method(owner.cls, name) is not None:
            return None
        end = receiver.removesuffix("()").rpartition(".")[2].lower().strip("_")
        for word, methods in v.METHODS.items():
            if word in ("trainer", "engine") and name in self.analysis.package.methods:
                continue  # the program's own
            if name in methods and (end == word or end.endswith("_" + word)) and not self._module_of(dotted):
                return "library"
        if end in ("state", "partial_state", "partialstate") and name == "wait_for_everyone":
            return "library"
        if name in v.COLLECTIVES | v.MPI_COLLECTIVES and v.GROUP_RECEIVER.search(receiver):
            return "group"
        return "module" if name in v.UNMISTAKABLE and not self._module_of(dotted) else None

    def _known(self, name: str) -> bool:
        return name in self.names or self.analysis.package.named(self.module, name) is not None

    def _module_of(self, dotted: str) -> bool:
        return self.analysis.package.find(dotted) is not None

    def _group_argument(self, node: ast.Call, name: str) -> tuple[str, str]:
        """Return the key and the members of the group that a collective is called with."""
        given: ast.expr | None = next((k.value for k in node.keywords if k.arg in _GROUP_WORDS), None)
        position = _GROUP_POSITION.get(name, 2)
        if given is None and len(node.args) > position:
            given = node.args[position]
        if given is None:
            return names.WORLD, ""
        return self._group_key(given), self.value(given).members

    def _group_key(self, node: ast.expr) -> str:
        value = self._quietly(node)
        if value.constant is None:
            return names.WORLD
        by_name = names.key(ast.unparse(node))
        if value.group is not None and (by_name == names.UNKNOWN or value.group.startswith("the group")):
            return value.group
        return value.group or by_name

    def _quietly(self, node: ast.expr) -> Value:
        """Return what is known of an expression that was evaluated before."""
        before, self.block = self.block, []
        value = self.value(node)
        self.block = before
        return value

    def _create_group(self, node: ast.Call, name: str) -> Value:
        given = next((k.value for k in node.keywords if k.arg in ("ranks", "mesh_shape", "split_ranks")), None)
        if given is None and node.args and name in ("new_group", "split_group"):
            given = node.args[0]
        local = any(
            k.arg == "use_local_synchronization" and isinstance(k.value, ast.Constant) and k.value.value
            for k in node.keywords
        )
        members = ast.unparse(given) if given is not None else ""
        group = f"the group of line {node.lineno}"
        if local:
            return Value(group=group, members=members)
        found = self._quietly(given) if given is not None and name == "new_group" else NOTHING
        self._issue(node, name, names.WORLD, creates_group=True)
        issued = self.block[-1]
        differs = any(source.kind is Kind.RANK for source in found.sources)
        if differs and isinstance(issued, Collective):
            self.analysis.own_groups.append((self.function, issued, found.sources))
        return Value(group=group, members=members)

    def _issue(
        self,
        node: ast.expr,
        name: str,
        group: str,
        members: str = "",
        creates_group: bool = False,
        hidden: bool = False,
    ) -> None:
        self.block.append(
            Collective(
                name,
                group,
                node.lineno,
                node.col_offset,
                members=members,
                creates_group=creates_group,
                hidden=hidden,
            )
        )

    def _agree(self, arguments: list[ast.expr]) -> None:
        """Note that the arguments are the same on every rank from here on."""
        for argument in arguments:
            for text in _roots(argument):
                self.names[text] = agreed(self.names.get(text, NOTHING))
                self.settled.add(text)
                if text in self.function.parameters:
                    self.agreed.add(text)

    def _agree_by(self, target: Function, node: ast.Call, name: str) -> None:
        """Note which arguments a function of the package has made the same on every rank."""
        summary = self.analysis.known_summary(target)
        names = [p for p in target.parameters if p not in ("self", "cls")]
        given = [*zip(names, node.args, strict=False), *((k.arg or "", k.value) for k in node.keywords)]
        for parameter, argument in given:
            if summary is not None and parameter in summary.agreed:
                self._agree([argument])
            if summary is not None and parameter in summary.sharded:
                self.bind(argument, Value(sharded=True))
        if vocabulary.AGREEING_NAME.search(name):
            self._agree(node.args[:1])

    def _origin(self, node: ast.Call, name: str, receiver: str, dotted: str, owner: Value) -> Value | None:
        """Return the value of a call at which ranks come to differ; None where it is no such call."""
        v = vocabulary
        if name in ("getenv", "get", "pop") and (receiver.endswith("environ") or name == "getenv") and node.args:
            given = node.args[0]
            return self._variable(given.value, node.lineno) if isinstance(given, ast.Constant) else NOTHING
        rank = self._rank_call(node, name, receiver)
        if rank is not None:
            return rank
        shown = ast.unparse(node.func) + "()"
        kind, confidence = None, Confidence.LIKELY
        if name in v.HOST_CALLS:
            kind = Kind.RANK
            return Value(sources=(Source(kind, confidence, shown, node.lineno, names.WORLD),))
        if dotted in v.CLOCKS:
            kind = Kind.CLOCK
        elif dotted in v.FILE_CALLS or (name in v.FILE_METHODS and receiver and owner.cls is None):
            kind, confidence = Kind.FILE, self._after_barrier()
        elif name in v.QUEUE_METHODS and "queue" in receiver.lower():
            kind = Kind.QUEUE
        elif name in v.MEMORY_CALLS:
            kind = Kind.MEMORY
        elif name in v.LOCAL_VALUES:
            kind = Kind.DATA
        elif name in v.SIZES:
            kind, confidence = Kind.DATA, Confidence.POSSIBLE
        if kind is None:
            return None
        asked = node.args[0] if node.args else node.func.value if isinstance(node.func, ast.Attribute) else None
        handed_in = isinstance(asked, ast.Name) and asked.id in self.function.parameters
        if name in v.KIND_OF_PATH and (handed_in or isinstance(asked, ast.Attribute)):
            confidence = Confidence.POSSIBLE  # file or folder: of a path that was chosen for all
        if kind is Kind.DATA and node.args and not isinstance(node.args[0], ast.Name | ast.Attribute | ast.Call):
            confidence = Confidence.POSSIBLE
        if kind is Kind.DATA and self._is_agreed(node):
            return NOTHING
        return Value(sources=(Source(kind, confidence, shown, node.lineno),), unordered=name in v.FOLDER_ORDER)

    def _is_agreed(self, node: ast.Call) -> bool:
        """Return whether a collective made the tensor that is looked at the same on every rank."""
        looked_at = node.args[:1] or ([node.func.value] if isinstance(node.func, ast.Attribute) else [])
        return any(text in self.settled for argument in looked_at for text in _roots(argument))

    def _after_barrier(self) -> Confidence:
        """Return how surely files differ here: after a barrier, what was written before it is there for all."""
        last = self.block[-1] if self.block else None
        if isinstance(last, Branch) and alone(last.test) is False and len(last.then) == 1:
            last = last.then[0]  # `if dist.is_initialized(): dist.barrier()`
        is_barrier = isinstance(last, Collective) and last.operation in ("barrier", "wait_for_everyone")
        return Confidence.POSSIBLE if is_barrier else Confidence.LIKELY

    def _rank_call(self, node: ast.Call, name: str, receiver: str) -> Value | None:
        translates = len(node.args) > 1 or any(k.arg not in (*_GROUP_WORDS, "mesh_dim") for k in node.keywords)
        if translates and "rank" in name and not name.startswith("is_") and "parallel" not in name:
            return None  # of somebody's place, their rank
        plain = name.removeprefix("get_").removeprefix("current_")
        in_mesh = "mesh" in receiver.lower()
        if plain == "rank" or (in_mesh and plain in ("local_rank", "coordinate")):
            given = next((k.value for k in node.keywords if k.arg in (*_GROUP_WORDS, "mesh_dim")), None)
            given = given or (node.args[0] if node.args else None)
            if name == "rank" and not receiver:
                return None
            if given is not None:
                named = given.value if isinstance(given, ast.Constant) else None
                key = names.key(named) if isinstance(named, str) else self._group_key(given)
                return names.rank_of(key, ast.unparse(node), node.lineno)
            if vocabulary.GROUP_RECEIVER.search(receiver) or in_mesh:
                return names.rank_of(names.key(receiver), ast.unparse(node), node.lineno)
        if name == plain and plain.endswith("rank"):
            return None if receiver and plain != "rank" else self._promised(plain, node)
        return self._promised(plain, node)

    def _promised(self, plain: str, node: ast.Call) -> Value | None:
        value = names.by_name(plain, ast.unparse(node.func) + "()", node.lineno)
        return value if value is not NOTHING else None

    def _target(self, node: ast.Call, owner: Value) -> tuple[Function | Class | None, Confidence]:
        """Return the definition that a call goes to, and how surely."""
        func, package = node.func, self.analysis.package
        if isinstance(func, ast.Name):
            known = self.names.get(func.id) or self.closure.get(func.id)
            if known is not None:
                return known.function or known.cls, Confidence.CERTAIN
            found = package.named(self.module, func.id)
            return (None if isinstance(found, Module) else found), Confidence.CERTAIN
        if not isinstance(func, ast.Attribute):
            return None, Confidence.CERTAIN
        if isinstance(func.value, ast.Call) and last_name(func.value.func) == "super" and self.owner is not None:
            return package.method(self.owner, func.attr, above=True), Confidence.CERTAIN
        if owner.cls is not None:
            return package.method(owner.cls, func.attr), Confidence.CERTAIN
        found = package.find(self.dotted(func))
        if isinstance(found, Function | Class):
            return found, Confidence.CERTAIN
        return (None if owner.foreign else package.only_method(func.attr)), Confidence.LIKELY

    def _construct(self, cls: Class, node: ast.Call, arguments: list[Value], keywords: dict[str, Value]) -> Value:
        constructor = self.analysis.package.method(cls, "__init__")
        if constructor is not None and "__init__" in constructor.name and self.analysis.may_issue(constructor):
            bound = self._bind_arguments(constructor, node, arguments, keywords, True)
            self._inline(constructor, node, cls.name, bound)
        return Value(cls=cls)

    def _bind_arguments(
        self,
        target: Function,
        node: ast.Call,
        arguments: list[Value],
        keywords: dict[str, Value],
        bound_self: bool,
    ) -> dict[str, Value]:
        """Return the values of a function's parameters, as far as a call tells them."""
        if isinstance(target.node, ast.Module) or any(isinstance(part, ast.Starred) for part in node.args):
            return {}
        names = list(target.parameters)
        if target.cls is not None and names and names[0] in ("self", "cls"):
            names = names[1:]
        bound = dict(zip(names, arguments, strict=False))
        bound |= {name: value for name, value in keywords.items() if name in target.parameters}
        for name, default in self.analysis.defaults(target).items():
            if name not in bound and "**" not in keywords:
                bound[name] = default
        given = dict(zip(names, node.args, strict=False)) | {k.arg or "": k.value for k in node.keywords}
        for name in bound:
            looks_so = name in _GROUP_WORDS or name.endswith("group")
            if looks_so and bound[name].group is None and bound[name].constant is UNKNOWN and name in given:
                bound[name] = replace(bound[name], group=self._group_key(given[name]))
        return bound

    def _inline(
        self,
        target: Function,
        node: ast.expr,
        name: str,
        bound: dict[str, Value],
        sure: Confidence = Confidence.CERTAIN,
    ) -> Value:
        """Add the steps of a function that is called here to the block; return its value."""
        handed_on = any(value.sharded for value in bound.values()) or self.analysis.sees_sharded(target)
        if not (handed_on or self.analysis.may_issue(target) or self.analysis.may_differ(target)):
            return NOTHING
        summary = self.analysis.summary(target, bound, self.closure_of(target))
        if target.rank_zero_only:
            return names.predicate(names.WORLD, "== 0", f"@{target.rank_zero_only}", node.lineno, single=True)
        if summary.steps:
            self.block.append(Opaque(_as_called(summary, node, name, sure), node.lineno, node.col_offset))
        if summary.risky:  # which of the two comes first is not told: after the steps, nothing is made of it
            self.block.append(Risk(f"{name}()", node.lineno))
        return summary.value

    def closure_of(self, target: Function) -> dict[str, Value] | None:
        """Return the names that a nested function sees, where it is nested in this one."""
        return {**self.closure, **self.names} if target.parent is self.function and target.cls is None else None

    def _other_context(self, node: ast.Call, name: str, dotted: str) -> None:
        """Note functions that are handed to a thread, a signal or a finalizer."""
        is_thread = name in vocabulary.THREADS
        if not is_thread and dotted not in ("signal.signal", "weakref.finalize", "atexit.register"):
            return
        if dotted == "atexit.register":
            return  # runs on each rank, in the main thread
        candidates = [*node.args[:2], *(k.value for k in node.keywords if k.arg in ("target", "function", "func"))]
        for candidate in candidates:
            if isinstance(candidate, ast.Name | ast.Attribute):
                function = self._quietly(candidate).function
                if function is not None:
                    self.others.append((name, function, node.lineno))

    # --- names ---

    def bind(self, target: ast.AST, value: Value) -> None:
        """Give a value to what stands left of an assignment."""
        if isinstance(target, ast.Tuple | ast.List):
            each = value.parts if len(value.parts) == len(target.elts) else [differing(value)] * len(target.elts)
            for part, known in zip(target.elts, each, strict=True):
                self.bind(part, known)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, differing(value))
        elif isinstance(target, ast.Name | ast.Attribute):
            text = dotted_name(target)
            if vocabulary.COUNT_OF_RANKS.search(last_name(target)):
                value = Value(constant=value.constant)  # the same on every member, however it is come by
            self.names[text] = replace(value, version=target.lineno)
            self.each.discard(text)
            self.settled.discard(text)
        elif isinstance(target, ast.Subscript):
            text = dotted_name(target.value)
            if value.sources and text in self.names:
                self.names[text] = merged(self.names[text], differing(self.names[text], value))

    def _variable(self, name: object, line: int) -> Value:
        scope = vocabulary.RANK_VARIABLES.get(name) if isinstance(name, str) else None
        return replace(names.rank_of(scope, f"the variable {name}", line), variable=True) if scope else NOTHING


def _container(name: str, owner: Value, arguments: list[Value]) -> Value | None:
    """Return the value of a call that makes a set or a dictionary, or goes through one; None for other calls."""
    if name in ("set", "frozenset"):
        return replace(differing(*arguments), unordered=bool(arguments))
    if name in ("dict", "defaultdict", "OrderedDict", "Counter"):
        return Value(dictionary=True)
    if name == "sorted":
        return replace(differing(*arguments), dictionary=any(value.dictionary for value in arguments))
    if name in ("items", "keys", "values"):
        return Value(sources=owner.sources, dictionary=True)
    return None


def names_in(target: ast.AST) -> set[str]:
    """Return the names that a target of an assignment binds."""
    return {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}


def _roots(node: ast.expr) -> list[str]:
    """Return the names of what is handed to a call: of `[flag]`, `flag`; of `buffer[0].view(-1)`, `buffer`."""
    if isinstance(node, ast.List | ast.Tuple):
        return [text for part in node.elts for text in _roots(part)]
    if isinstance(node, ast.Subscript | ast.Starred):
        return _roots(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _roots(node.func.value)
    text = dotted_name(node)
    return [text] if text and "()" not in text else []


def _unconditional(steps: tuple[Step, ...]) -> bool:
    """Return whether some collective stands outside of all branches."""
    opened: list[str] = []
    for step in steps:
        if step.sign[0] in ("if", "loop"):
            opened.append(step.sign[0])
        elif step.sign == ("end",):
            opened.pop()
        elif step.collective is not None and "if" not in opened:
            return True
    return False


def _as_called(summary: Summary, node: ast.expr, name: str, sure: Confidence) -> tuple[Step, ...]:
    """Return a function's steps as they stand at a call of it."""
    found = [step.at for step in summary.steps if isinstance(step.at, Collective)]
    doubt = 0 if _unconditional(summary.steps) else 1  # for each condition on the way

    def called(issued: Collective) -> Collective:
        kept = issued.creates_group and (doubt or len(issued.via) > 1)  # groups are made once, and kept
        surely = 1 if kept or len(issued.via) > _FAR else max(1, issued.sure - doubt)
        return replace(
            issued,
            line=node.lineno,
            column=node.col_offset,
            via=(name, *issued.via)[:6],
            sure=min(sure, Confidence(surely)),
        )

    if len(summary.steps) > _MANY_STEPS:
        return (Step(("call", name), called(found[0])),)
    return tuple(
        Step(step.sign, called(step.at) if isinstance(step.at, Collective) else None) for step in summary.steps
    )
