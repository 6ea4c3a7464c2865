"""Packs and unpacks an envelope and its ack: a header packet of fixed size, a payload of bytes, an ack of int64s.

Whatever arrives is checked field by field before anything is allocated, and each complaint names the field.
Integers are little-endian. Left out: the rules of the schema (`schema`, `rules`), and the collectives themselves.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec
import torch

from ...errors import Code, ContractViolation
from ...model.protocols.tp_values import Action
from ..recording import torch_compat
from . import digest
from .schema import (
    MAX_PAYLOAD_BYTES,
    MAX_TENSORS,
    META_MAX_BYTES,
    NO_DIGEST,
    TP_ENVELOPE_VERSION,
    Ids,
    Meta,
    Problem,
    TensorSpec,
    decode,
    version_problem,
    violation,
)

WIRE_VERSION = 1
ACK_VERSION = 1

BRING_UP = digest.Policy()
"""Everything is digested, in every chunk."""

ALIGNMENT = 16
"""Is in bytes. The largest element (complex128) then lies aligned, so that each tensor is a view of the payload."""

# fmt: off
WIRE_DTYPES: dict[str, torch.dtype] = {name: torch_compat.lookup(name) for name in (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16",
    "float32", "float64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float4_e2m1fn_x2", "complex32", "complex64", "complex128",
)}
# fmt: on
"""Maps name → dtype of what can travel: elements of whole bytes (float4 in pairs) that need nothing beside them."""

_QUANTISED = "its bytes mean nothing without scale and zero point"
_SUB_BYTE = "torch cannot copy it: its elements are less than a byte"
_BITS = "raw bits without a meaning: send the uint8 view"
OFF_MAP: dict[str, str] = {
    **dict.fromkeys(("qint8", "quint8", "qint32", "quint4x2", "quint2x4"), _QUANTISED),
    **dict.fromkeys((f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)), _SUB_BYTE),
    **dict.fromkeys(("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"), _BITS),
}
"""Maps the name of each other dtype of torch → why it cannot travel."""

HEADER_FIELDS = (
    "magic",
    "wire_version",
    "tp_envelope_version",
    "action",
    "call_id",
    "chunk_index",
    "cache_epoch",
    "control_epoch",
    "meta_nbytes",
    "tensor_count",
    "payload_nbytes",
    "meta_digest",
    "payload_digest",
    "header_digest",
)
"""Lists the int64 fields that open the packet. `header_digest` is over all that stand before it."""

_HEADER_START = (int.from_bytes(b"GENLOCKH", "little"), WIRE_VERSION, TP_ENVELOPE_VERSION)
_META_START = 8 * len(HEADER_FIELDS)
HEADER_NUMEL = (_META_START + META_MAX_BYTES) // 8
_BOUNDS = {"meta_nbytes": META_MAX_BYTES, "tensor_count": MAX_TENSORS, "payload_nbytes": MAX_PAYLOAD_BYTES}


class Header(msgspec.Struct, frozen=True):
    """Holds a header packet whose fields are sound. `meta` is the bytes of meta, empty unless `action` is INFER."""

    action: Action
    ids: Ids
    meta: bytes
    tensor_count: int
    payload_nbytes: int
    meta_digest: int
    payload_digest: int


def pack_header(
    action: Action,
    ids: Ids,
    *,
    meta: bytes = b"",
    tensor_count: int = 0,
    payload_nbytes: int = 0,
    payload_digest: int = 0,
) -> torch.Tensor:
    """Return the header packet, int64[HEADER_NUMEL] on the CPU. The keyword arguments are for INFER alone.

    Raises ContractViolation, naming the field, on what `unpack_header` would reject.
    """
    sizes = {"tensor_count": tensor_count, "payload_nbytes": payload_nbytes}
    return packed_header(action, ids, meta=meta, **sizes, payload_digest=payload_digest)[0]


def packed_header(
    action: Action, ids: Ids, *, meta: bytes, tensor_count: int, payload_nbytes: int, payload_digest: int
) -> tuple[torch.Tensor, Header]:
    """Return the packet of `pack_header`, and what it says, as `unpack_header` would have it."""
    meta_digest = digest.of_bytes(meta) if meta else 0
    order = (ids.call_id, ids.chunk_index, ids.cache_epoch, ids.control_epoch)
    sizes = (len(meta), tensor_count, payload_nbytes)
    fields = (*_HEADER_START, int(action), *order, *sizes, meta_digest, payload_digest)
    start = _signed(HEADER_FIELDS, fields, "header packet")
    header = _header(fields, meta)
    return torch.frombuffer(bytearray((start + meta).ljust(8 * HEADER_NUMEL, b"\0")), dtype=torch.int64), header


def unpack_header(packet: torch.Tensor) -> Header:
    """Return what a header packet, int64[HEADER_NUMEL], says. Raises ContractViolation naming the first bad field.

    Magic and versions come first, because a packet of another version may have another layout.
    """
    data = bytes(_received(packet, torch.int64, HEADER_NUMEL, "header packet"))
    inline = data[_META_START:]
    fields = _checked(HEADER_FIELDS, data[:_META_START], _HEADER_START, "header packet")
    nbytes = fields[HEADER_FIELDS.index("meta_nbytes")]
    header = _header(fields, inline[: max(nbytes, 0)])
    if inline[nbytes:].strip(b"\0"):
        raise _bad("meta", f"{nbytes} bytes", "what follows it in the packet is not zero")
    return header


def unpack_meta(header: Header) -> Meta:
    """Return the meta of an INFER header. Raises ContractViolation where it is unsound, or not as the header says."""
    meta = decode(header.meta)
    for name, said, counted in (
        ("tensor_count", header.tensor_count, len(meta.tensor_specs)),
        ("payload_nbytes", header.payload_nbytes, payload_nbytes(meta.tensor_specs)),
        ("payload_digest", header.payload_digest, payload_digest(meta.tensor_specs)),
    ):
        if said != counted:
            raise _bad(name, said, f"the tensor specs in meta say {counted}")
    return meta


class Slot(NamedTuple):
    """Says where a tensor lies in the payload: bytes `start` to `stop`, then zeros to `end`, a multiple of 16."""

    spec: TensorSpec
    start: int
    stop: int
    end: int


def wire_problems(specs: Sequence[TensorSpec]) -> Iterator[Problem]:
    """Yield the tensors whose dtype is off the wire map."""
    for spec in specs:
        if spec.dtype not in WIRE_DTYPES:
            why = OFF_MAP.get(spec.dtype, "it is unknown here")
            yield Problem(spec.key, spec, f"dtype {spec.dtype} is off the wire map: {why}", "convert it first")


def slots(specs: Sequence[TensorSpec]) -> tuple[Slot, ...]:
    """Return the layout of a payload. Raises ContractViolation on a dtype off the wire map, or a size out of bounds."""
    return _slots(tuple(specs))


@lru_cache(maxsize=4)  # each step of a chunk asks for the same
def _slots(specs: tuple[TensorSpec, ...]) -> tuple[Slot, ...]:
    for problem in wire_problems(specs):
        raise violation(problem, "payload")
    layout: list[Slot] = []
    end = 0
    for spec in specs:
        start, stop = end, end + math.prod(spec.shape) * WIRE_DTYPES[spec.dtype].itemsize
        end = -(-stop // ALIGNMENT) * ALIGNMENT
        if end > MAX_PAYLOAD_BYTES:
            text = f"the payload passes {MAX_PAYLOAD_BYTES} bytes"
            raise violation(Problem(spec.key, spec, text, "send smaller tensors"), "payload")
        layout.append(Slot(spec, start, stop, end))
    return tuple(layout)


def payload_nbytes(specs: Sequence[TensorSpec]) -> int:
    """Return the bytes of the payload, a multiple of 16. Raises like `slots`."""
    layout = slots(specs)
    return layout[-1].end if layout else 0


def payload_digest(specs: Sequence[TensorSpec]) -> int:
    """Return the digest of the digests of all tensors, so that no byte is hashed twice."""
    return digest.of_bytes("".join(spec.digest for spec in specs).encode())


def allocate_payload(meta: Meta, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return an uninitialised payload, uint8[payload_nbytes], strictly from the specs. Raises like `slots`."""
    return torch.empty(payload_nbytes(meta.tensor_specs), dtype=torch.uint8, device=device)


def view_payload(specs: Sequence[TensorSpec], payload: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors of a payload, by key, as views of it (of a copy where it does not lie aligned).

    Nothing is verified but that shapes can exist: ContractViolation names the one that cannot.
    """
    if payload.data_ptr() % ALIGNMENT or payload.storage_offset() % ALIGNMENT or not payload.is_contiguous():
        payload = payload.clone(memory_format=torch.contiguous_format)
    views: dict[str, torch.Tensor] = {}
    layout = slots(specs)
    pieces = payload.split_with_sizes([slot.end - slot.start for slot in layout])
    for (spec, start, stop, end), piece in zip(layout, pieces, strict=True):
        try:
            plain = piece if stop == end else piece[: stop - start]
            views[spec.key] = plain.view(WIRE_DTYPES[spec.dtype]).view(spec.shape)
        except (RuntimeError, OverflowError, TypeError, ValueError) as error:
            raise _bad(spec.key, spec, "no tensor has this shape", "payload") from error
    return views


def spec_digest(spec: TensorSpec, plain: torch.Tensor | memoryview, policy: digest.Policy, chunk_index: int) -> str:
    """Return what a spec says of a tensor's bytes, uint8[n] or on the host: their digest, or `NO_DIGEST` if not due."""
    if not policy.due(chunk_index):
        return NO_DIGEST
    return digest.to_hex(policy.of_plain(spec.dtype, spec.shape, plain, chunk_index))


def unpack_payload(
    meta: Meta, payload: torch.Tensor, policy: digest.Policy = BRING_UP, chunk_index: int = 1
) -> dict[str, torch.Tensor | None]:
    """Return every tensor field of the envelope, by key, None where meta says so: views of `payload`, any device.

    Raises ContractViolation naming the field whose digest differs from the one in its spec. `policy` is that of
    rank0, by start-up parity.
    """
    specs = meta.tensor_specs
    _sized(payload, torch.uint8, payload_nbytes(specs), "payload")
    views = view_payload(specs, payload)
    due = policy.due(chunk_index)
    plain = digest.host_bytes(payload) if due and not policy.sample else payload.contiguous()
    for spec, start, stop, end in slots(specs):
        received = spec_digest(spec, plain[start:stop], policy, chunk_index)
        if received != spec.digest:
            raise _bad(spec.key, spec, f"has digest {received}, but rank0 sent {spec.digest}", "payload")
        if stop < end and due and any(plain[stop:end].tolist()):
            raise _bad(spec.key, spec, "the padding after it is not zero", "payload")
    return {**views, **dict.fromkeys(meta.none_tensors)}


class Ack(msgspec.Struct, frozen=True):
    """Reports a worker's chunk at its end; rank0 holds its own against it. All fields are int64."""

    call_id: int
    chunk_index: int
    observed_generator_calls: int
    sequence_hash: int
    global_end_index: int
    local_end_index: int
    cache_epoch: int
    current_start_frame: int
    output_digest: int
    """0 where the digest policy has none."""
    weights_fingerprint: int
    """Fingerprint of this rank's shard, in a chunk with `init_cache`; 0 in any other. It differs from rank to rank."""


ACK_FIELDS = ("magic", "ack_version", *Ack.__struct_fields__, "ack_digest")
"""Lists the int64 fields of an ack. `ack_digest` is over all that stand before it."""
ACK_NUMEL = len(ACK_FIELDS)
_ACK_START = (int.from_bytes(b"GENLOCKA", "little"), ACK_VERSION)


def pack_ack(ack: Ack) -> torch.Tensor:
    """Return the ack record, int64[ACK_NUMEL] on the CPU. Raises ContractViolation on a field that is no int64."""
    data = _signed(ACK_FIELDS, (*_ACK_START, *msgspec.structs.astuple(ack)), "ack")
    return torch.frombuffer(bytearray(data), dtype=torch.int64)


def unpack_ack(record: torch.Tensor) -> Ack:
    """Return what an ack record, int64[ACK_NUMEL], says. Raises ContractViolation naming the first bad field."""
    data = bytes(_received(record, torch.int64, ACK_NUMEL, "ack"))
    return Ack(*_checked(ACK_FIELDS, data, _ACK_START, "ack")[len(_ACK_START) :])


def ack_problems(mine: Ack, theirs: Ack) -> Iterator[Problem]:
    """Yield the fields in which a worker's ack differs from rank0's own, in the order of the record.

    Fingerprints of weights are not compared with each other, but with those of start-up (`ack_check`).
    """
    for name in Ack.__struct_fields__[:-1]:
        ours, other = getattr(mine, name), getattr(theirs, name)
        if ours != other:
            yield Problem(f"ack.{name}", other, f"rank0 has {ours}")


def _header(fields: tuple[int, ...], meta: bytes) -> Header:
    """Make the checks of a header that sender and receiver share; `fields` without the last, the digest."""
    value = dict(zip(HEADER_FIELDS, fields, strict=False))
    try:
        action = Action(value["action"])
    except ValueError:
        known = ", ".join(f"{action.value} ({action.name})" for action in Action)
        raise _bad("action", value["action"], f"must be one of {known}") from None
    infer = action is Action.INFER
    for name in Ids.__struct_fields__:
        if value[name] < 0:
            raise _bad(name, value[name], "is negative")
    for name, most in _BOUNDS.items():
        low, high = (1, most) if infer else (0, 0)
        if not low <= value[name] <= high:
            raise _bad(name, value[name], f"{action.name} has {low} to {high}")
    if value["meta_digest"] != (digest.of_bytes(meta) if infer else 0):
        raise _bad("meta_digest", value["meta_digest"], "meta is not what was sent")
    if value["payload_digest"] != 0 and not infer:
        raise _bad("payload_digest", value["payload_digest"], f"{action.name} has no payload")
    return Header(
        action,
        Ids(*(value[name] for name in Ids.__struct_fields__)),
        meta,
        *(value[name] for name in ("tensor_count", "payload_nbytes", "meta_digest", "payload_digest")),
    )


def _signed(names: Sequence[str], fields: Sequence[int], where: str) -> bytes:
    """Return the int64 fields of a message as bytes, then their digest, which is the last name."""
    if {*map(type, fields)} != {int} or min(fields) < digest.INT64_MIN or max(fields) > digest.INT64_MAX:
        for name, value in zip(names, fields, strict=False):
            if not isinstance(value, int) or not digest.INT64_MIN <= value <= digest.INT64_MAX:
                raise _bad(name, value, "must be an int that fits int64", where)
    data = struct.pack(f"<{len(fields)}q", *fields)
    return data + struct.pack("<q", digest.of_bytes(data))


def _checked(names: Sequence[str], data: bytes, start: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Invert `_signed`, without the digest; `start` is the magic and the versions spoken here."""
    *fields, signed = struct.unpack(f"<{len(names)}q", data)
    if fields[0] != start[0]:
        raise _bad(names[0], fields[0], "this is another message: the ranks are out of step", where)
    for name, theirs, ours in zip(names[1:], fields[1:], start[1:], strict=False):
        if theirs != ours:
            raise violation(version_problem(name, theirs, ours), where, Code.MESSAGE)
    if signed != digest.of_bytes(data[:-8]):
        raise _bad(names[-1], signed, "the int64 fields are not what was sent", where)
    return tuple(fields)


def _received(tensor: torch.Tensor, dtype: torch.dtype, numel: int, where: str) -> memoryview:
    """Return the host bytes of a message, once it is known to have the size that it must have."""
    _sized(tensor, dtype, numel, where)
    return digest.host_bytes(tensor)


def _sized(tensor: torch.Tensor, dtype: torch.dtype, numel: int, where: str) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != (numel,):
        given = f"{digest.dtype_name(tensor.dtype)}{list(tensor.shape)}"
        text = f"{given} instead of {digest.dtype_name(dtype)}[{numel}]"
        raise ContractViolation(text, where=where, code=Code.MESSAGE, field=where)


def _bad(field: str, value: object, text: str, where: str = "header packet") -> ContractViolation:
    return violation(Problem(field, value, text), where, Code.MESSAGE)
