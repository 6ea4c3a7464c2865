"""Runs rank0's preflight of a chunk: five steps, all of them before the first byte is sent.

    check_schema → split → encode_meta → check_dtypes → materialise

Each step takes what the one before it returned, so that none can be left out, and changes nothing else:
inputs, ids and epochs stay as they are. Whatever is wrong with a user's values, be it an exception that they
raise themselves, becomes one `Refused`. Left out: committing, and sending.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec
import torch

from ...errors import Code, GenlockError, Refused
from ...model.protocols.tp_values import Action
from . import digest
from .rules import dtype_problems, plan_problems
from .schema import (
    DTYPES,
    FIELD,
    FORBIDDEN,
    HEADER_KEYS,
    META_KEYS,
    META_MAX_BYTES,
    NO_DIGEST,
    TENSOR_KEYS,
    Committed,
    Envelope,
    Ids,
    Meta,
    Mode,
    Problem,
    TensorSpec,
    decode,
    encode,
    path,
    shown,
)
from .wire import (
    BRING_UP,
    Header,
    packed_header,
    payload_digest,
    slots,
    view_payload,
    wire_problems,
)

_PLAIN = {"str": str, "int": int, "int64": int, "bool": bool, "float": float}
_EXACT = {key: _PLAIN[FIELD[key].type] for key in META_KEYS}
"""Maps each plain field to its type; a value of just that type has nothing nested in it."""
_KNOWN = frozenset((*META_KEYS, *TENSOR_KEYS))
_DENSE = (torch.Tensor, torch.nn.Parameter)
_CASTABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NESTED_LIMIT = 1_000
"""So many values of one field are searched for a nested tensor. Beyond, the field's type alone is refused."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Holds step 1's result: the ids, and a snapshot of the fields, which obey the schema, as they are and as meta."""

    ids: Ids
    fields: Mapping[str, object]
    meta: Meta


@dataclass(frozen=True, slots=True)
class Split:
    """Holds step 2's result: meta with `NO_DIGEST` for each digest, and the tensors in the order of its specs."""

    ids: Ids
    meta: Meta
    tensors: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Encoded(Split):
    """Holds step 3's result: meta is known to encode within its bound, to `meta_nbytes` bytes."""

    meta_nbytes: int


@dataclass(frozen=True, slots=True)
class Typed(Encoded):
    """Holds step 4's result: each tensor is of a dtype that can travel, and that its field allows."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Holds step 5's result, which refers to none of the user's values: all that is left to do is to send it.

    `packet` is int64[HEADER_NUMEL] on the CPU, and `header` what it says; `payload` is uint8 on the device of
    the payload group. The tensors of `envelope` are views of `payload`: rank0 runs on what the workers receive.
    """

    packet: torch.Tensor
    header: Header
    payload: torch.Tensor
    envelope: Envelope


def check_schema(fields: Mapping[str, object], ids: Ids, since: Committed, mode: Mode) -> Checked:
    """Do step 1: check keys, types, plan identities, ids in order.

    `fields` has every field of the schema but those of the header, which are `ids`; a tensor that is not sent
    is an explicit None. `conditioning_epoch` may be left out in bring-up mode, which has none.
    """
    with _refusing(1, ids, "envelope", fields):
        snapshot = dict(fields)
        _refuse_first(_key_problems(snapshot, mode), 1, ids)
        for key, value in snapshot.items():
            if type(value) is _EXACT.get(key) or (key in TENSOR_KEYS and _is_plain(value)):
                continue
            with _refusing(1, ids, path(key), value):
                _refuse_first(_nested_tensors(key, value), 1, ids)
                _refuse_first(_type_problems(key, value), 1, ids)
        meta = _describe(snapshot)
        _refuse_first(plan_problems(ids, meta, since, mode), 1, ids)
        return Checked(ids, snapshot, meta)


def split(checked: Checked, cast: torch.dtype | None = None) -> Split:
    """Do step 2: take top-level tensors apart from meta, in the order of (key, index).

    `cast` is the dtype in which bf16/fp16 fields travel that are handed in as another floating dtype; without
    it nothing is cast.
    """
    with _refusing(2, checked.ids, "envelope", checked.fields):
        meta = checked.meta if cast is None else _describe(checked.fields, cast)
        tensors = _tensors(checked.fields)
        return Split(checked.ids, meta, tuple(tensors[spec.key] for spec in meta.tensor_specs))


def encode_meta(parts: Split) -> Encoded:
    """Do step 3: meta has canonical bytes within the bound. Digests have one size, so step 5 keeps the length."""
    with _refusing(3, parts.ids, "meta", parts.meta):
        data = encode(parts.meta)
        if len(data) > META_MAX_BYTES:
            text = f"{len(data)} bytes, and the header packet has room for {META_MAX_BYTES}"
            _refuse(Problem("meta", parts.meta, text, "use tensors of fewer dimensions"), 3, parts.ids)
        if decode(data) != parts.meta:
            _refuse(Problem("meta", parts.meta, "is another after decoding"), 3, parts.ids)
        return Encoded(parts.ids, parts.meta, parts.tensors, len(data))


def check_dtypes(encoded: Encoded) -> Typed:
    """Do step 4: every dtype is on the wire map, and is one that its field allows."""
    _refuse_first(wire_problems(encoded.meta.tensor_specs), 4, encoded.ids, Code.MESSAGE)
    _refuse_first(dtype_problems(encoded.meta), 4, encoded.ids)
    return Typed(encoded.ids, encoded.meta, encoded.tensors, encoded.meta_nbytes)


def check_held(typed: Typed, damage: str | None) -> None:
    """Do step 5: the conditioning that the chunk relies on is what it was, unless `damage` says what is wrong."""
    if damage:
        problem = Problem("conditioning_embeds", None, damage, "send it anew, with the next epoch")
        _refuse(problem, 5, typed.ids, Code.CONDITIONING)


def materialise(
    typed: Typed,
    device: torch.device | str = "cpu",
    policy: digest.Policy = BRING_UP,
    reserve: Callable[[torch.Tensor], None] = lambda payload: None,
) -> Prepared:
    """Do step 5: all tensors as one run of bytes on `device`, their digests as far as due, and the header packet.

    `reserve` sets aside whatever sending the payload takes beside it; what it raises is a refusal.
    """
    ids, specs = typed.ids, typed.meta.tensor_specs
    for spec, tensor in zip(specs, typed.tensors, strict=True):
        with _refusing(5, ids, spec.key, tensor):
            _refuse_first(_value_problems(spec.key, tensor), 5, ids)
    with _refusing(5, ids, "payload", [f"{spec.key}: {spec}" for spec in specs]):
        layout = slots(specs)
        payload = torch.empty(layout[-1].end, dtype=torch.uint8, device=device)
        views = view_payload(specs, payload)
        reserve(payload)
    digests = []
    for slot, tensor in zip(layout, typed.tensors, strict=True):
        with _refusing(5, ids, slot.spec.key, tensor):
            view = views[slot.spec.key]
            digests.append(policy.copy(tensor, view, payload[slot.start : slot.stop], ids.chunk_index))
            _refuse_first(_overflow(tensor, view, slot.spec), 5, ids)
            if slot.stop < slot.end:
                payload[slot.stop : slot.end].zero_()
    with _refusing(5, ids, "payload", payload):
        return _seal(typed, payload, views, digests)


def _seal(typed: Typed, payload: torch.Tensor, views: Mapping[str, torch.Tensor], digests: Sequence[int]) -> Prepared:
    """Return the final meta, with the digests of what is in the payload now, and the header packet."""
    specs = tuple(
        msgspec.structs.replace(spec, digest=digest.to_hex(found))
        for spec, found in zip(typed.meta.tensor_specs, digests, strict=True)
    )
    meta = msgspec.structs.replace(typed.meta, tensor_specs=specs)
    data = encode(meta)
    if len(data) != typed.meta_nbytes:
        raise AssertionError(f"meta went from {typed.meta_nbytes} to {len(data)} bytes after step 3")
    sizes = {"tensor_count": len(specs), "payload_nbytes": payload.numel()}
    packet, header = packed_header(Action.INFER, typed.ids, meta=data, **sizes, payload_digest=payload_digest(specs))
    tensors = {**views, **dict.fromkeys(meta.none_tensors)}
    return Prepared(packet, header, payload, Envelope(Action.INFER, typed.ids, meta, tensors))


def _tensors(fields: Mapping[str, object]) -> dict[str, torch.Tensor]:
    return {key: value for key in TENSOR_KEYS if isinstance(value := fields[key], torch.Tensor)}


def _describe(fields: Mapping[str, object], cast: torch.dtype | None = None) -> Meta:
    """Return meta of fields whose types are right, with `NO_DIGEST` for each digest."""
    tensors = _tensors(fields)
    specs = tuple(
        TensorSpec(key, 0, digest.dtype_name(_wire_dtype(key, tensor, cast)), tuple(tensor.shape), NO_DIGEST)
        for key, tensor in tensors.items()
    )
    plain: dict[str, Any] = {name: fields.get(name) for name in META_KEYS}
    return Meta(**plain, tensor_specs=specs, none_tensors=tuple(k for k in TENSOR_KEYS if k not in tensors))


def _wire_dtype(key: str, tensor: torch.Tensor, cast: torch.dtype | None) -> torch.dtype:
    castable = "bfloat16" in DTYPES[FIELD[key].type] and tensor.dtype in _CASTABLE
    return cast if cast is not None and castable else tensor.dtype


def _key_problems(fields: Mapping[str, object], mode: Mode) -> Iterator[Problem]:
    known = (*META_KEYS, *TENSOR_KEYS)
    if fields.keys() == _KNOWN:
        return
    for key, value in fields.items():
        if key in FORBIDDEN:
            yield Problem(key, value, f"is forbidden: {FIELD[key].why}", "leave the key out")
        elif key in HEADER_KEYS:
            yield Problem(key, value, "belongs to the header", "leave it to Ids")
        elif key not in known:
            near = difflib.get_close_matches(key, known, 1) if type(key) is str else []
            do = f"did you mean {near[0]}?" if near else "leave it out"
            name = key if type(key) is str and key.isidentifier() else shown(key)
            yield Problem(name, value, "no field of this schema", do)
    for key in known:
        needed = mode is Mode.OPTIMIZE or FIELD[key].required_when != "optimize mode only"
        if needed and key not in fields:
            yield Problem(path(key), None, "is missing", "supply it: even None must be explicit")


def _is_plain(value: object) -> bool:
    """Return True for a tensor field of a type that can travel: None, or a plain dense tensor."""
    return value is None or (type(value) in _DENSE and isinstance(value, torch.Tensor) and not value.is_nested)


def _type_problems(key: str, value: object) -> Iterator[Problem]:
    found = type(value).__name__
    if key in TENSOR_KEYS:
        if value is not None and not isinstance(value, torch.Tensor):
            yield Problem(key, value, f"must be a tensor or None, not {found}")
        elif not _is_plain(value):
            yield Problem(key, value, f"{found} is no plain dense tensor", "pass a plain torch.Tensor")
        return
    plain = _PLAIN[FIELD[key].type]
    optional = FIELD[key].required_when == "optimize mode only" and value is None
    # The exact type: a bool is no int and an int is no float, or the bytes would not be canonical.
    if type(value) is not plain and not optional:
        text, do = f"must be {plain.__name__}, not {found}", f"pass a plain {plain.__name__}"
        yield Problem(path(key), value, text, do)


def _nested_tensors(key: str, value: object) -> Iterator[Problem]:
    """Yield tensors that stand where none travels, however deep in built-in containers."""
    if key in TENSOR_KEYS and isinstance(value, torch.Tensor):
        return
    stack, seen = [(path(key), value)], set[int]()
    while stack and len(seen) < _NESTED_LIMIT:
        where, value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            text = "a tensor nested in meta"
            yield Problem(where, value, text, f"only {', '.join(TENSOR_KEYS)} carry tensors, at top level")
        elif isinstance(value, dict):
            stack += [(f"{where}[{shown(inner)}]", item) for inner, item in value.items()]
        elif isinstance(value, list | tuple | set | frozenset):
            stack += [(f"{where}[{index}]", item) for index, item in enumerate(value)]


def _value_problems(key: str, tensor: torch.Tensor) -> Iterator[Problem]:
    """Yield a tensor that has no values, or not as plain bytes."""
    if tensor.layout is not torch.strided:
        yield Problem(key, tensor, f"layout {tensor.layout} is not dense", "pass `.to_dense()`")
    elif tensor.device.type == "meta":
        yield Problem(key, tensor, "is on the meta device: it has no values", "materialise it first")
    elif tensor.numel() > 0:
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        needed = (tensor.storage_offset() + reach + 1) * tensor.itemsize
        if tensor.untyped_storage().nbytes() < needed:
            yield Problem(key, tensor, "its storage was freed or is too small", "materialise it first")


def _overflow(source: torch.Tensor, view: torch.Tensor, spec: TensorSpec) -> Iterator[Problem]:
    """Yield a cast that made infinities out of numbers."""
    if view.dtype != source.dtype and bool((view.isinf() & ~source.to(view.device).isinf()).any()):
        yield Problem(spec.key, source, f"has finite values that overflow {spec.dtype}", "scale it first")


def _refuse_first(problems: Iterator[Problem], step: int, ids: Ids, code: Code = Code.RULE) -> None:
    for problem in problems:
        _refuse(problem, step, ids, code)


class _AsIs(str):
    """Holds text that `Refused` shows as it is."""

    __slots__ = ()
    __repr__ = str.__str__


def _refuse(problem: Problem, step: int, ids: Ids, code: Code = Code.RULE) -> NoReturn:
    raise Refused(
        problem.text,
        field=problem.field,
        value=_AsIs(shown(problem.value)),
        step=step,
        call_id=ids.call_id,
        chunk_index=ids.chunk_index,
        do=problem.do,
        code=code,
    )


class _refusing:
    """Turns whatever is raised inside into a refusal that names the field."""

    __slots__ = ("field", "ids", "step", "value")

    def __init__(self, step: int, ids: Ids, field: str, value: object) -> None:
        self.step, self.ids, self.field, self.value = step, ids, field, value

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, Refused):
            what = shown(error) if isinstance(error, GenlockError) else f"{type(error).__name__}: {shown(error)}"
            _refuse(Problem(self.field, self.value, what), self.step, self.ids, Code.EXCEPTION)
