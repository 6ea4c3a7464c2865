"""Framing: what is packed comes back, and whatever is damaged on the way is found and named."""

from __future__ import annotations

import contextlib
import re
import struct
from typing import Any

import msgspec
import pytest
import torch
from genlock.errors import ContractViolation, UsageError
from genlock.impl.chunk import digest, parity, schema, wire
from genlock.impl.chunk.schema import Ids, Meta, TensorSpec
from genlock.impl.chunk.wire import Ack
from genlock.impl.recording import torch_compat
from genlock.impl.scenario import DEADLINES
from genlock.model.protocols.tp_values import Action
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

INT64 = st.integers(digest.INT64_MIN, digest.INT64_MAX)
COUNT = st.integers(0, digest.INT64_MAX)
IDS = Ids(call_id=5, chunk_index=3, cache_epoch=2, control_epoch=1)
TENSORS = {
    "conditioning_embeds": torch.arange(10, dtype=torch.bfloat16).reshape(2, 5),
    "denoising_step_list": torch.tensor([1000, 750, 500]),
    "latents": torch.randn(2, 7, generator=torch.Generator().manual_seed(0)).to(torch.float16),
}


def spec_of(key: str, tensor: torch.Tensor) -> TensorSpec:
    text = digest.to_hex(digest.of_tensor(tensor))
    return TensorSpec(key, 0, digest.dtype_name(tensor.dtype), tuple(tensor.shape), text)


def meta_of(tensors: dict[str, torch.Tensor]) -> Meta:
    return Meta(
        tp_plan="v1_generator_only",
        tp_envelope_version=1,
        height=480,
        width=832,
        current_start_frame=6,
        init_cache=False,
        manage_cache=True,
        tp_reset_kv_cache=False,
        tp_reset_crossattn_cache=False,
        conditioning_embeds_updated=False,
        kv_cache_attention_bias=0.5,
        tp_do_kv_recompute=False,
        tp_num_denoise_steps=3,
        tp_expected_generator_calls=3,
        base_seed=42,
        conditioning_epoch=None,
        tensor_specs=tuple(spec_of(key, tensor) for key, tensor in sorted(tensors.items())),
        none_tensors=("context_frames_override",),
    )


def payload_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Written without the code under test: each tensor's bytes, then zeros to a multiple of 16."""
    data = b""
    for _, tensor in sorted(tensors.items()):
        data += bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
        data += b"\0" * (-len(data) % 16)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


META = meta_of(TENSORS)
PAYLOAD = payload_of(TENSORS)
INFER: dict[str, Any] = {
    "meta": schema.encode(META),
    "tensor_count": 3,
    "payload_nbytes": PAYLOAD.numel(),
    "payload_digest": wire.payload_digest(META.tensor_specs),
}
PACKET = wire.pack_header(Action.INFER, IDS, **INFER)
NBYTES = len(INFER["meta"])
FIELD_BYTES = 8 * len(wire.HEADER_FIELDS)


def raw(packet: torch.Tensor) -> bytearray:
    return bytearray(packet.numpy().tobytes())


def packet_of(data: bytes | bytearray) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.int64)


def forged(fields: dict[str, int], meta: bytes | None = None) -> torch.Tensor:
    """PACKET with other fields, and digests that agree with them."""
    data = raw(PACKET)
    if meta is not None:
        data[FIELD_BYTES:] = meta.ljust(len(data) - FIELD_BYTES, b"\0")
        fields = {"meta_nbytes": len(meta), "meta_digest": digest.of_bytes(meta), **fields}
    for name, value in fields.items():
        struct.pack_into("<q", data, 8 * wire.HEADER_FIELDS.index(name), value)
    struct.pack_into("<q", data, FIELD_BYTES - 8, digest.of_bytes(bytes(data[: FIELD_BYTES - 8])))
    return packet_of(data)


# ── the wire map ────────────────────────────────────────────────────────────────────────────────────

ALL_DTYPES = {digest.dtype_name(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}


def test_each_dtype_of_torch_is_on_the_map_or_off_it_with_a_reason() -> None:
    assert wire.WIRE_DTYPES.keys() | wire.OFF_MAP.keys() == ALL_DTYPES
    assert not wire.WIRE_DTYPES.keys() & wire.OFF_MAP.keys()
    assert all(wire.OFF_MAP.values())


def test_a_torch_that_lacks_a_dtype_is_told_apart_at_import() -> None:
    with pytest.raises(UsageError, match=rf"torch {re.escape(torch.__version__)} has no torch\.float1; use torch"):
        torch_compat.lookup("float1")


def test_the_names_are_those_of_the_dtypes() -> None:
    assert {name: digest.dtype_name(dtype) for name, dtype in wire.WIRE_DTYPES.items()} == {
        name: name for name in wire.WIRE_DTYPES
    }
    assert max(dtype.itemsize for dtype in wire.WIRE_DTYPES.values()) == wire.ALIGNMENT


def test_the_header_packet_has_a_fixed_size() -> None:
    noop = wire.pack_header(Action.NOOP, IDS)
    assert noop.shape == PACKET.shape == (wire.HEADER_NUMEL,)
    assert noop.dtype == torch.int64
    assert 8 * len(wire.HEADER_FIELDS) + schema.META_MAX_BYTES == 8 * wire.HEADER_NUMEL


# ── header packet ───────────────────────────────────────────────────────────────────────────────────


@given(st.builds(Ids, COUNT, COUNT, COUNT, COUNT), st.sampled_from([Action.NOOP, Action.SHUTDOWN]))
def test_a_header_without_meta_comes_back(ids: Ids, action: Action) -> None:
    assert wire.unpack_header(wire.pack_header(action, ids)) == wire.Header(action, ids, b"", 0, 0, 0, 0)


@given(
    st.builds(Ids, COUNT, COUNT, COUNT, COUNT),
    st.binary(min_size=1, max_size=schema.META_MAX_BYTES),
    st.integers(1, schema.MAX_TENSORS),
    st.integers(1, schema.MAX_PAYLOAD_BYTES),
    INT64,
)
def test_a_header_with_meta_comes_back(ids: Ids, meta: bytes, count: int, nbytes: int, payload: int) -> None:
    packet = wire.pack_header(
        Action.INFER, ids, meta=meta, tensor_count=count, payload_nbytes=nbytes, payload_digest=payload
    )
    expected = wire.Header(Action.INFER, ids, meta, count, nbytes, digest.of_bytes(meta), payload)
    assert wire.unpack_header(packet) == expected


def region(byte: int) -> str:
    """What a flipped byte of the packet must be called."""
    if byte >= FIELD_BYTES:
        return "meta_digest" if byte < FIELD_BYTES + NBYTES else "meta"
    name = wire.HEADER_FIELDS[byte // 8]
    return name if name in ("magic", "wire_version", "tp_envelope_version") else "header_digest"


@pytest.mark.parametrize("packet", [PACKET, wire.pack_header(Action.NOOP, IDS)], ids=["INFER", "NOOP"])
def test_any_flipped_bit_of_the_fields_is_named(packet: torch.Tensor) -> None:
    for bit in range(8 * FIELD_BYTES):
        data = raw(packet)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ContractViolation, match=rf"^header packet: `{region(bit // 8)}` = "):
            wire.unpack_header(packet_of(data))


@given(st.integers(0, 8 * schema.META_MAX_BYTES - 1))
def test_any_flipped_bit_of_the_inline_meta_is_named(bit: int) -> None:
    data = raw(PACKET)
    data[FIELD_BYTES + bit // 8] ^= 1 << bit % 8
    with pytest.raises(ContractViolation, match=rf"^header packet: `{region(FIELD_BYTES + bit // 8)}` = "):
        wire.unpack_header(packet_of(data))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"magic": 0}, "`magic` = 0: .* out of step"),
        ({"wire_version": 2}, "`wire_version` = 2: version 2 is newer than 1.*update this rank"),
        ({"wire_version": 0}, "`wire_version` = 0: version 0 is older than 1.*update the sender"),
        ({"tp_envelope_version": 2}, "`tp_envelope_version` = 2: version 2 is newer than 1"),
        ({"tp_envelope_version": 0}, "`tp_envelope_version` = 0: version 0 is older than 1"),
        ({"action": 3}, r"`action` = 3: must be one of 0 \(NOOP\), 1 \(INFER\), 2 \(SHUTDOWN\)"),
        ({"action": -1}, "`action` = -1"),
        ({"call_id": -1}, "`call_id` = -1: is negative"),
        ({"chunk_index": -1}, "`chunk_index` = -1: is negative"),
        ({"cache_epoch": -1}, "`cache_epoch` = -1: is negative"),
        ({"control_epoch": -(2**63)}, "`control_epoch` = -9223372036854775808: is negative"),
        ({"meta_nbytes": 0}, "`meta_nbytes` = 0"),
        ({"meta_nbytes": -1}, "`meta_nbytes` = -1"),
        ({"meta_nbytes": schema.META_MAX_BYTES + 1}, "`meta_nbytes` = 4097: INFER has 1 to 4096"),
        ({"meta_nbytes": 2**62}, "`meta_nbytes` = "),
        ({"meta_nbytes": NBYTES - 1}, "`meta_digest` = "),
        ({"tensor_count": 0}, "`tensor_count` = 0"),
        ({"tensor_count": schema.MAX_TENSORS + 1}, "`tensor_count` = 17"),
        ({"payload_nbytes": -16}, "`payload_nbytes` = -16"),
        ({"payload_nbytes": schema.MAX_PAYLOAD_BYTES + 16}, "`payload_nbytes` = "),
        ({"meta_digest": 0}, "`meta_digest` = 0"),
        ({"action": 0}, "`meta_nbytes` = .*: NOOP has 0 to 0"),
        ({"action": 2, "meta_nbytes": 0}, "`tensor_count` = 3: SHUTDOWN has 0 to 0"),
        ({"action": 0, "meta_nbytes": 0, "tensor_count": 0}, "`payload_nbytes` = "),
        ({"action": 0, "meta_nbytes": 0, "tensor_count": 0, "payload_nbytes": 0}, "`meta_digest` = "),
        (
            {"action": 0, "meta_nbytes": 0, "tensor_count": 0, "payload_nbytes": 0, "meta_digest": 0},
            "`payload_digest` = ",
        ),
    ],
)
def test_malformed_fields_are_named_even_where_the_digests_agree(fields: dict[str, int], text: str) -> None:
    with pytest.raises(ContractViolation, match="^header packet: " + text) as caught:
        wire.unpack_header(forged(fields))
    assert "\n" not in str(caught.value)


def test_a_noop_with_bytes_after_its_fields_is_refused() -> None:
    data = raw(wire.pack_header(Action.NOOP, IDS))
    data[-1] = 1
    with pytest.raises(ContractViolation, match="`meta` = '0 bytes': what follows it"):
        wire.unpack_header(packet_of(data))


@pytest.mark.parametrize(
    "packet",
    [PACKET[:-1], PACKET.reshape(1, -1), PACKET.view(torch.float64), PACKET.view(torch.uint8), torch.empty(0)],
    ids=["truncated", "shape", "dtype", "bytes", "empty"],
)
def test_a_packet_of_another_size_is_refused(packet: torch.Tensor) -> None:
    with pytest.raises(ContractViolation, match=rf"^header packet: .* instead of int64\[{wire.HEADER_NUMEL}\]"):
        wire.unpack_header(packet)


def test_a_packet_that_is_not_contiguous_is_read_right() -> None:
    spread = torch.zeros(wire.HEADER_NUMEL, 2, dtype=torch.int64)
    spread[:, 0] = PACKET
    assert wire.unpack_header(spread[:, 0]) == wire.unpack_header(PACKET)


@given(st.binary(max_size=8 * wire.HEADER_NUMEL))
def test_random_packets_are_a_contract_violation(data: bytes) -> None:
    with pytest.raises(ContractViolation):
        wire.unpack_header(packet_of(data.ljust(8 * wire.HEADER_NUMEL, b"\0")))


@given(st.dictionaries(st.sampled_from(wire.HEADER_FIELDS[3:13]), INT64), st.binary(min_size=1, max_size=64))
def test_forged_headers_are_read_or_a_contract_violation(fields: dict[str, int], meta: bytes) -> None:
    try:
        header = wire.unpack_header(forged(fields, meta))
    except ContractViolation:
        return
    assert 0 < len(header.meta) <= schema.META_MAX_BYTES
    assert 0 < header.payload_nbytes <= schema.MAX_PAYLOAD_BYTES


@pytest.mark.parametrize(
    ("action", "ids", "changes", "field"),
    [
        (Action.INFER, IDS, {"meta": b"x" * (schema.META_MAX_BYTES + 1)}, "meta_nbytes"),
        (Action.INFER, IDS, {"meta": b""}, "meta_nbytes"),
        (Action.INFER, IDS, {"payload_nbytes": 2**40}, "payload_nbytes"),
        (Action.INFER, IDS, {"payload_digest": 2**63}, "payload_digest"),
        (Action.NOOP, IDS, {}, "meta_nbytes"),
        (Action.INFER, Ids(2**63, 0, 0, 0), {}, "call_id"),
        (Action.INFER, Ids(1, -1, 0, 0), {}, "chunk_index"),
    ],
)
def test_what_would_be_rejected_is_not_packed(action: Action, ids: Ids, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ContractViolation, match=f"^header packet: `{field}` = "):
        wire.pack_header(action, ids, **INFER | changes)


# ── meta ────────────────────────────────────────────────────────────────────────────────────────────


def test_meta_comes_back() -> None:
    assert wire.unpack_meta(wire.unpack_header(PACKET)) == META


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"tensor_count": 2}, "`tensor_count` = 2: .* 3"),
        ({"payload_nbytes": 16}, "`payload_nbytes` = 16: .* 96"),
        ({"payload_digest": 7}, "`payload_digest` = 7"),
    ],
)
def test_a_header_that_contradicts_its_meta_is_refused(fields: dict[str, int], text: str) -> None:
    header = wire.unpack_header(forged(fields))
    with pytest.raises(ContractViolation, match="^header packet: " + text):
        wire.unpack_meta(header)


def test_meta_that_is_none_is_refused() -> None:
    header = wire.unpack_header(forged({}, b"\x80"))
    with pytest.raises(ContractViolation, match=r"^meta: .*missing required field"):
        wire.unpack_meta(header)


# ── payload ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_payload_has_the_layout_that_is_written_down() -> None:
    assert wire.payload_nbytes(META.tensor_specs) == PAYLOAD.numel() == 32 + 32 + 32
    assert [(slot.start, slot.stop, slot.end) for slot in wire.slots(META.tensor_specs)] == [
        (0, 20, 32),
        (32, 56, 64),
        (64, 92, 96),
    ]
    assert wire.payload_nbytes(()) == 0


def test_tensors_come_back_as_views_and_none_is_explicit() -> None:
    tensors = wire.unpack_payload(META, PAYLOAD)
    assert tensors.keys() == {*TENSORS, "context_frames_override"}
    assert tensors["context_frames_override"] is None
    for key, tensor in TENSORS.items():
        found = tensors[key]
        assert found is not None
        assert torch.equal(found, tensor)
        assert found.untyped_storage().data_ptr() == PAYLOAD.untyped_storage().data_ptr()


def test_a_payload_that_lies_askew_is_read_right() -> None:
    askew = torch.zeros(PAYLOAD.numel() + 1, dtype=torch.uint8)[1:]
    spread = torch.zeros(PAYLOAD.numel(), 2, dtype=torch.uint8)[:, 0]
    room = bytearray(PAYLOAD.numel() + 32)
    low = -torch.frombuffer(room, dtype=torch.uint8).data_ptr() % wire.ALIGNMENT + wire.ALIGNMENT - 1
    askew_storage = torch.frombuffer(room, dtype=torch.uint8, offset=low)[: PAYLOAD.numel()]
    askew_in_askew = torch.frombuffer(room, dtype=torch.uint8, offset=low)[1 : PAYLOAD.numel() + 1]
    for payload in (askew, spread, askew_storage, askew_in_askew):
        for key, found in wire.unpack_payload(META, payload.copy_(PAYLOAD)).items():
            if found is not None:
                assert torch.equal(found, TENSORS[key])
                assert found.data_ptr() % wire.ALIGNMENT == 0


DTYPES = st.sampled_from(sorted(wire.WIRE_DTYPES))
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype, shape = wire.WIRE_DTYPES[draw(DTYPES)], draw(SHAPES)
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=nbytes, max_size=nbytes)))
    if dtype is torch.bool:
        data = bytearray(byte & 1 for byte in data)
    flat = torch.frombuffer(data, dtype=torch.uint8) if nbytes else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).view(shape)


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), tensors(), min_size=1))
def test_any_tensors_come_back_bit_by_bit(sent: dict[str, torch.Tensor]) -> None:
    meta, payload = meta_of(sent), payload_of(sent)
    assert payload.numel() == wire.payload_nbytes(meta.tensor_specs) == wire.allocate_payload(meta).numel()
    received = wire.unpack_payload(meta, payload)
    for key, tensor in sent.items():
        found = received[key]
        assert found is not None
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert bytes(digest.host_bytes(found)) == bytes(digest.host_bytes(tensor))


@given(st.integers(0, 8 * PAYLOAD.numel() - 1))
def test_any_flipped_bit_of_the_payload_names_the_field(bit: int) -> None:
    damaged = PAYLOAD.clone()
    damaged[bit // 8] ^= 1 << bit % 8
    slot = next(slot for slot in wire.slots(META.tensor_specs) if bit // 8 < slot.end)
    what = "has digest" if bit // 8 < slot.stop else "the padding after it"
    with pytest.raises(ContractViolation, match=rf"^payload: `{slot.spec.key}` = .*: {what}"):
        wire.unpack_payload(META, damaged)


def test_tensors_in_the_wrong_place_are_found() -> None:
    twins = {"a": torch.zeros(4), "b": torch.ones(4)}
    swapped = payload_of({"a": twins["b"], "b": twins["a"]})
    with pytest.raises(ContractViolation, match=r"^payload: `a`"):
        wire.unpack_payload(meta_of(twins), swapped)


@pytest.mark.parametrize(
    "payload",
    [PAYLOAD[:-1], PAYLOAD.view(torch.int8), PAYLOAD.reshape(2, -1), torch.empty(0)],
    ids=["truncated", "dtype", "shape", "empty"],
)
def test_a_payload_of_another_size_is_refused(payload: torch.Tensor) -> None:
    with pytest.raises(ContractViolation, match=r"^payload: .* instead of uint8\[96\]"):
        wire.unpack_payload(META, payload)


def specs(*rows: tuple[str, tuple[int, ...]]) -> Meta:
    found = tuple(TensorSpec(f"t{k}", 0, dtype, shape, "0" * 16) for k, (dtype, shape) in enumerate(rows))
    return msgspec.structs.replace(META, tensor_specs=found)


@pytest.mark.parametrize("name", sorted(wire.OFF_MAP))
def test_dtypes_off_the_map_are_named_with_their_reason(name: str) -> None:
    with pytest.raises(ContractViolation, match=rf"`t1` = .*dtype {name} is off the wire map: .+"):
        wire.allocate_payload(specs(("uint8", (1,)), (name, (1,))))


@pytest.mark.parametrize("name", ["float128", "", "torch.float16", "__class__"])
def test_unknown_dtypes_are_refused(name: str) -> None:
    with pytest.raises(ContractViolation, match="off the wire map: it is unknown here"):
        wire.allocate_payload(specs((name, (1,))))


@pytest.mark.parametrize(
    "rows",
    [
        [("uint8", (schema.MAX_PAYLOAD_BYTES + 1,))],
        [("complex128", (2**40, 2**40))],
        [("uint8", (1,)), ("uint8", (schema.MAX_PAYLOAD_BYTES,))],
        [("uint8", (2**63, 2**63, 2**63))],
    ],
)
def test_nothing_beyond_the_bound_is_allocated(
    rows: list[tuple[str, tuple[int, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "empty", None)
    with pytest.raises(ContractViolation, match=f"the payload passes {schema.MAX_PAYLOAD_BYTES} bytes"):
        wire.allocate_payload(specs(*rows))


ROWS = st.tuples(
    DTYPES | st.text(max_size=3),
    st.lists(st.integers(0, 3) | st.integers(0, 2**64 - 1), max_size=5).map(tuple),
)


@given(st.lists(ROWS, max_size=3))
def test_hostile_specs_are_read_or_a_contract_violation(rows: list[tuple[str, tuple[int, ...]]]) -> None:
    meta = specs(*rows)
    with contextlib.suppress(ContractViolation):
        nbytes = wire.payload_nbytes(meta.tensor_specs)
        assert nbytes <= schema.MAX_PAYLOAD_BYTES
        if nbytes < 2**16:
            wire.view_payload(meta.tensor_specs, wire.allocate_payload(meta))


def test_a_shape_that_cannot_exist_is_named() -> None:
    meta = specs(("uint8", (0, 2**63)))
    with pytest.raises(ContractViolation, match=r"`t0` = .*no tensor has this shape"):
        wire.view_payload(meta.tensor_specs, wire.allocate_payload(meta))


# ── ack ─────────────────────────────────────────────────────────────────────────────────────────────

ACKS = st.builds(Ack, *(INT64 for _ in Ack.__struct_fields__))
ACK = Ack(*range(1, 11))


@given(ACKS)
def test_an_ack_comes_back(ack: Ack) -> None:
    record = wire.pack_ack(ack)
    assert (record.dtype, record.shape) == (torch.int64, (wire.ACK_NUMEL,))
    assert wire.unpack_ack(record) == ack


def test_any_flipped_bit_of_an_ack_is_named() -> None:
    for bit in range(64 * wire.ACK_NUMEL):
        data = raw(wire.pack_ack(ACK))
        data[bit // 8] ^= 1 << bit % 8
        name = wire.ACK_FIELDS[bit // 64]
        expected = name if name in ("magic", "ack_version") else "ack_digest"
        with pytest.raises(ContractViolation, match=f"^ack: `{expected}` = "):
            wire.unpack_ack(packet_of(data))


def test_an_ack_of_another_kind_is_refused() -> None:
    record = wire.pack_ack(ACK)
    with pytest.raises(ContractViolation, match=rf"^ack: .* instead of int64\[{wire.ACK_NUMEL}\]"):
        wire.unpack_ack(record[1:])
    with pytest.raises(ContractViolation, match=r"^ack: `magic` = "):
        wire.unpack_ack(PACKET[: wire.ACK_NUMEL])
    record[1] = 2
    with pytest.raises(ContractViolation, match=r"^ack: `ack_version` = 2: version 2 is newer than 1"):
        wire.unpack_ack(record)
    with pytest.raises(ContractViolation, match=r"^ack: `output_digest` = "):
        wire.pack_ack(msgspec.structs.replace(ACK, output_digest=2**63))


@given(ACKS, ACKS)
def test_the_fields_in_which_acks_differ_are_named(mine: Ack, theirs: Ack) -> None:
    found = [problem.field for problem in wire.ack_problems(mine, theirs)]
    compared = [n for n in Ack.__struct_fields__ if n != "weights_fingerprint"]
    assert found == [f"ack.{n}" for n in compared if getattr(mine, n) != getattr(theirs, n)]
    assert not list(wire.ack_problems(mine, mine))


def test_an_ack_mismatch_says_both_values() -> None:
    [problem] = wire.ack_problems(ACK, msgspec.structs.replace(ACK, observed_generator_calls=4))
    assert (problem.field, problem.value, problem.text) == ("ack.observed_generator_calls", 4, "rank0 has 3")


# ── the page ────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_has_the_sizes_of_the_code() -> None:
    page = (ROOT / "docs" / "control-plane.md").read_text()
    sizes = {
        f"int64[{wire.HEADER_NUMEL}]": f"{len(wire.HEADER_FIELDS)} fields",
        f"at most {schema.META_MAX_BYTES} bytes": f"at most {schema.MAX_TENSORS} tensors",
        f"int64[{wire.ACK_NUMEL}]": f"At most {schema.MAX_PAYLOAD_BYTES // 2**20} MiB",
        f"a multiple of {wire.ALIGNMENT}": f"a record of {parity.PARITY_BYTES} bytes",
        f"drain=SECONDS` ({DEADLINES['drain']:.0f})": "",
    }
    for text in (*sizes, *sizes.values()):
        assert text in page
