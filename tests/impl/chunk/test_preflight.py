"""Preflight: a good chunk reaches the worker bit by bit; a bad one is refused by name, and nothing changes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest
import torch
from genlock.errors import Refused
from genlock.impl.chunk import digest, preflight, rules, schema, wire
from genlock.impl.chunk.preflight import Prepared, Typed
from genlock.impl.chunk.schema import Committed, Envelope, Ids, Mode, TensorSpec
from genlock.model.protocols.tp_values import Action
from hypothesis import given
from hypothesis import strategies as st

SINCE = Committed(call_id=40, chunk_index=6, cache_epoch=2, control_epoch=1, conditioning_epoch=3)
IDS = Ids(call_id=41, chunk_index=7, cache_epoch=2, control_epoch=1)


def chunk(**changes: Any) -> dict[str, Any]:
    """The fields of a good chunk in bring-up mode, with changes."""
    fields: dict[str, Any] = {
        "tp_plan": "v1_generator_only",
        "tp_envelope_version": 1,
        "height": 480,
        "width": 832,
        "current_start_frame": 6,
        "init_cache": False,
        "manage_cache": True,
        "tp_reset_kv_cache": False,
        "tp_reset_crossattn_cache": False,
        "conditioning_embeds_updated": False,
        "kv_cache_attention_bias": 0.5,
        "tp_do_kv_recompute": False,
        "tp_num_denoise_steps": 4,
        "tp_expected_generator_calls": 4,
        "base_seed": 42,
        "denoising_step_list": torch.tensor([1000, 750, 500, 250]),
        "latents": torch.arange(24, dtype=torch.bfloat16).reshape(1, 4, 6),
        "conditioning_embeds": torch.full((1, 2, 8), 0.25, dtype=torch.float16),
        "context_frames_override": None,
    }
    return fields | changes


RECOMPUTE: dict[str, Any] = {
    "tp_do_kv_recompute": True,
    "tp_expected_generator_calls": 5,
    "context_frames_override": torch.ones(1, 3, dtype=torch.bfloat16),
}


def prepare(
    fields: Mapping[str, object],
    ids: Ids = IDS,
    since: Committed = SINCE,
    mode: Mode = Mode.BRING_UP,
    cast: torch.dtype | None = None,
) -> Prepared:
    parts = preflight.split(preflight.check_schema(fields, ids, since, mode), cast)
    return preflight.materialise(preflight.check_dtypes(preflight.encode_meta(parts)))


def received(sent: Prepared, since: Committed = SINCE, mode: Mode = Mode.BRING_UP) -> Envelope:
    """What a worker makes of the bytes, with all of its checks."""
    header = wire.unpack_header(sent.packet.clone())
    meta = wire.unpack_meta(header)
    rules.require(rules.problems(header.ids, meta, since, mode), header.ids)
    payload = wire.allocate_payload(meta).copy_(sent.payload)
    whole = Envelope(header.action, header.ids, meta, wire.unpack_payload(meta, payload))
    rules.require(rules.envelope_problems(whole, since, mode), header.ids)
    return whole


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor as the contract has them."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    # A clone has strides of its own; an axis of length one may have any stride in a contiguous tensor.
    return plain.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).numpy().tobytes()


# ── a good chunk ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("changes", [{}, RECOMPUTE], ids=["plain", "recompute"])
def test_a_good_chunk_arrives_as_it_was_sent(changes: dict[str, Any]) -> None:
    fields = chunk(**changes)
    sent = prepare(fields)
    whole = received(sent)
    assert whole.meta == sent.envelope.meta
    assert whole.ids == sent.envelope.ids == IDS
    found = whole.fields()
    for key, value in fields.items():
        if isinstance(value, torch.Tensor):
            for at in (found[key], sent.envelope.tensors[key]):
                assert isinstance(at, torch.Tensor)
                assert torch.equal(at, value)
        else:
            assert found[key] == value
            assert type(found[key]) is type(value)
    assert found["conditioning_epoch"] is None


def test_the_order_of_keys_does_not_count() -> None:
    fields = chunk(**RECOMPUTE)
    sent, turned = prepare(fields), prepare(dict(reversed(fields.items())))
    assert torch.equal(sent.packet, turned.packet)
    assert torch.equal(sent.payload, turned.payload)
    assert [spec.key for spec in sent.envelope.meta.tensor_specs] == sorted(schema.TENSOR_KEYS)


def test_what_is_prepared_refers_to_nothing_of_the_user() -> None:
    fields = chunk()
    sent = prepare(fields)
    before = sent.payload.clone()
    fields["latents"].zero_()
    assert torch.equal(sent.payload, before)
    latents = sent.envelope.tensors["latents"]
    assert latents is not None
    assert latents.untyped_storage().data_ptr() == sent.payload.untyped_storage().data_ptr()


def test_the_first_chunk_and_a_hard_cut() -> None:
    first = prepare(chunk(init_cache=True), Ids(1, 1, 1, 0), Committed())
    assert received(first, Committed()).meta.init_cache
    cut = prepare(chunk(init_cache=True), Ids(50, 9, 3, 2))
    assert received(cut).ids.cache_epoch == 3


def test_optimize_mode_sends_conditioning_when_its_epoch_rises() -> None:
    for epoch, embeds in ((3, None), (4, torch.zeros(2, dtype=torch.bfloat16))):
        fields = chunk(conditioning_epoch=epoch, conditioning_embeds=embeds)
        whole = received(prepare(fields, mode=Mode.OPTIMIZE), mode=Mode.OPTIMIZE)
        assert whole.meta.conditioning_epoch == epoch
        assert (whole.tensors["conditioning_embeds"] is None) == (embeds is None)


def test_inference_mode_changes_nothing() -> None:
    plain = prepare(chunk(**RECOMPUTE))
    with torch.inference_mode():
        fields = chunk(**RECOMPUTE)
        inside = prepare(fields)
    assert torch.equal(inside.packet, plain.packet)
    assert torch.equal(prepare(fields).payload, plain.payload)
    assert received(inside).meta == plain.envelope.meta


def test_a_cast_travels_in_the_dtype_that_was_asked_for() -> None:
    latents = torch.linspace(-3, 3, 7)
    sent = prepare(chunk(latents=latents), cast=torch.bfloat16)
    found = received(sent).tensors
    assert torch.equal(found["latents"], latents.bfloat16())  # type: ignore[arg-type]
    assert found["conditioning_embeds"].dtype == torch.bfloat16  # type: ignore[union-attr]
    assert found["denoising_step_list"].dtype == torch.int64  # type: ignore[union-attr]


def test_infinities_of_the_user_s_own_survive_a_cast() -> None:
    latents = torch.tensor([1.0, float("inf"), float("nan")])
    sent = prepare(chunk(latents=latents), cast=torch.float16)
    assert raw(received(sent).tensors["latents"]) == raw(latents.half())  # type: ignore[arg-type]


# ── layouts ─────────────────────────────────────────────────────────────────────────────────────────

Layout = Callable[[torch.Tensor], torch.Tensor]
LAYOUTS: dict[str, Layout] = {
    "as it is": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1) if t.dim() else t,
    "every second": lambda t: t[::2] if t.dim() else t,
    "from an offset": lambda t: t[..., 1:] if t.dim() else t,
    "expanded": lambda t: t[None].expand(3, *t.shape),
    "first": lambda t: t.reshape(-1)[0] if t.numel() else t,
    "none of it": lambda t: t[:0] if t.dim() else t,
    "conjugate": lambda t: t.conj(),
    "negative": lambda t: t.conj().imag if t.is_complex() else t,
    "requires grad": lambda t: t.detach().requires_grad_() if t.is_floating_point() else t,
    "derived": lambda t: t.detach().requires_grad_().view_as(t) if t.is_floating_point() else t,
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
}
PAIRS = st.tuples(st.sampled_from(sorted(wire.WIRE_DTYPES)), st.lists(st.sampled_from(sorted(LAYOUTS)), max_size=3))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bytes as any dtype that can travel, in any layout."""
    name, layouts = draw(PAIRS)
    dtype, shape = wire.WIRE_DTYPES[name], tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    data = draw(st.binary(min_size=nbytes, max_size=nbytes))
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if nbytes else torch.empty(0, dtype=torch.uint8)
    tensor = flat.view(dtype).view(shape)
    for layout in layouts:
        tensor = LAYOUTS[layout](tensor)
    return tensor


@pytest.mark.filterwarnings("ignore:ComplexHalf:UserWarning")
@given(st.lists(tensors(), max_size=3))
def test_any_dtype_and_layout_arrives_bit_by_bit(sent: list[torch.Tensor]) -> None:
    # The schema allows few dtypes; step 5 and the wire must carry all of them.
    sent = [T, *sent]
    specs = tuple(
        TensorSpec(f"t{k}", 0, digest.dtype_name(t.dtype), tuple(t.shape), schema.NO_DIGEST) for k, t in enumerate(sent)
    )
    meta = msgspec.structs.replace(prepare(chunk()).envelope.meta, tensor_specs=specs)
    before = [raw(tensor) for tensor in sent]
    done = preflight.materialise(Typed(IDS, meta, tuple(sent), len(schema.encode(meta))))
    found = wire.unpack_payload(done.envelope.meta, done.payload)
    for k, tensor in enumerate(sent):
        arrived = found[f"t{k}"]
        assert arrived is not None
        assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
        assert raw(arrived) == before[k] == raw(tensor)
        own = done.envelope.tensors[f"t{k}"]
        assert own is not None
        assert raw(own) == before[k]
        assert not own.requires_grad


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────


class Hostile:
    """Raises from whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no attributes")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no eq")


class HostileDict(dict[str, object]):
    def items(self) -> Any:
        raise RuntimeError("no items")


class HostileTensor(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no torch function")


def huge() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.bfloat16).expand(schema.MAX_PAYLOAD_BYTES)


BF16 = torch.ones(4, dtype=torch.bfloat16)
T = torch.tensor(3)
REFUSALS: list[tuple[dict[Any, Any], int, str, str]] = [
    # keys
    ({"video": torch.zeros(1)}, 1, "video", "is forbidden: workers never get pixels"),
    ({"video": None}, 1, "video", "is forbidden"),
    ({"latent": BF16}, 1, "latent", "no field.*did you mean latents"),
    ({"extra": 1}, 1, "extra", "no field.*leave it out"),
    ({"a\nb": 1}, 1, r"'a\nb'", "no field"),
    ({"call_id": 41}, 1, "call_id", "belongs to the header"),
    ({"meta": {"latents": BF16}}, 1, "meta", "no field"),
    ({"tensor_specs": []}, 1, "tensor_specs", "no field"),
    ({3: 1}, 1, "3", "no field"),
    # types
    ({"base_seed": lambda: 0}, 1, "meta.base_seed", "must be int, not function"),
    ({"base_seed": True}, 1, "meta.base_seed", "must be int, not bool"),
    ({"conditioning_epoch": "4"}, 1, "meta.conditioning_epoch", "must be int, not str"),
    ({"base_seed": 42.0}, 1, "meta.base_seed", "must be int, not float"),
    ({"base_seed": None}, 1, "meta.base_seed", "must be int, not NoneType"),
    ({"base_seed": 2**63}, 1, "meta.base_seed", "does not fit int64"),
    ({"base_seed": 10**10_000}, 1, "meta.base_seed", "does not fit int64"),
    ({"height": "480"}, 1, "meta.height", "must be int, not str"),
    ({"height": 0}, 1, "meta.height", "at least 1"),
    ({"init_cache": 0}, 1, "meta.init_cache", "must be bool, not int"),
    ({"tp_do_kv_recompute": None}, 1, "meta.tp_do_kv_recompute", "must be bool"),
    ({"kv_cache_attention_bias": 1}, 1, "meta.kv_cache_attention_bias", "must be float, not int"),
    ({"kv_cache_attention_bias": float("nan")}, 1, "meta.kv_cache_attention_bias", "finite"),
    ({"kv_cache_attention_bias": float("inf")}, 1, "meta.kv_cache_attention_bias", "finite"),
    ({"tp_plan": b"v1_generator_only"}, 1, "meta.tp_plan", "must be str, not bytes"),
    ({"tp_plan": "v0_full_pipeline"}, 1, "meta.tp_plan", "the only plan"),
    ({"tp_plan": "\ud800"}, 1, "meta.tp_plan", "the only plan"),
    ({"tp_envelope_version": 2}, 1, "meta.tp_envelope_version", "version 2 is newer than 1"),
    ({"tp_envelope_version": 0}, 1, "meta.tp_envelope_version", "version 0 is older than 1"),
    ({"latents": [1.0, 2.0]}, 1, "latents", "must be a tensor or None, not list"),
    ({"latents": None}, 1, "latents", "must be a tensor"),
    ({"denoising_step_list": [1000, 750, 500, 250]}, 1, "denoising_step_list", "must be a tensor"),
    # nested tensors
    ({"base_seed": T}, 1, "meta.base_seed", "a tensor nested in meta"),
    ({"base_seed": [1, [T]]}, 1, "meta.base_seed[1][0]", "a tensor nested in meta"),
    ({"height": {"a": ({"b": T},)}}, 1, "meta.height['a'][0]['b']", "a tensor nested in meta"),
    ({"latents": [BF16]}, 1, "latents[0]", "a tensor nested in meta"),
    ({"conditioning_epoch": {"a": T}}, 1, "meta.conditioning_epoch['a']", "a tensor nested in meta"),
    # plan identities and overrides
    ({"tp_num_denoise_steps": 3, "tp_expected_generator_calls": 3}, 1, "meta.tp_num_denoise_steps", "= 4"),
    ({"tp_expected_generator_calls": 5}, 1, "meta.tp_expected_generator_calls", "must be int"),
    (RECOMPUTE | {"context_frames_override": None}, 1, "context_frames_override", "no fallback"),
    ({"context_frames_override": BF16}, 1, "context_frames_override", "left over"),
    ({"denoising_step_list": torch.ones(4, 1, dtype=torch.int64)}, 1, "denoising_step_list", "one dimension"),
    ({"init_cache": True}, 1, "cache_epoch", "rises by one on a hard cut, and only then"),
    ({"conditioning_embeds": None}, 1, "conditioning_embeds", "every chunk carries it"),
    ({"conditioning_epoch": 4}, 1, "meta.conditioning_epoch", "belongs to optimize mode"),
    # values that raise
    ({"base_seed": Hostile()}, 1, "meta.base_seed", "RuntimeError: no attributes"),
    ({"height": HostileDict()}, 1, "meta.height", "RuntimeError: no items"),
    ({"latents": BF16.as_subclass(HostileTensor)}, 1, "latents", "HostileTensor is no plain dense tensor"),
    # meta too large
    ({"latents": BF16.view((1,) * 5000 + (4,))}, 3, "meta", "bytes, and the header packet has room for 4096"),
    # dtypes
    ({"latents": torch.ones(3)}, 4, "latents", "dtype float32 is not bfloat16 or float16"),
    ({"latents": torch.ones(3, dtype=torch.int64)}, 4, "latents", "dtype int64 is not"),
    ({"denoising_step_list": torch.ones(4)}, 4, "denoising_step_list", "dtype float32 is not int64"),
    ({"latents": torch.empty(3, dtype=torch.bits8)}, 4, "latents", "bits8 is off the wire map: raw bits"),
    ({"conditioning_embeds": torch.empty(3, dtype=torch.bits16)}, 4, "conditioning_embeds", "off the wire map"),
    # bytes
    ({"latents": BF16.to("meta")}, 5, "latents", "is on the meta device"),
    ({"latents": BF16.to_sparse()}, 5, "latents", "layout torch.sparse_coo is not dense"),
    ({"latents": huge()}, 5, "payload", "`latents` = .*passes 268435456 bytes"),
]


def state(fields: Mapping[str, Any]) -> dict[Any, Any]:
    """What can be seen of plain fields, to tell whether anything changed."""
    return {
        key: (id(value), value._version, tuple(value.shape)) if type(value) is torch.Tensor else id(value)
        for key, value in fields.items()
    }


def refusal(call: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("changes", "step", "field", "text"), REFUSALS, ids=[f"{k}-{row[2]!r}" for k, row in enumerate(REFUSALS)]
)
def test_bad_fields_are_refused_by_name(changes: dict[Any, Any], step: int, field: str, text: str) -> None:
    fields = chunk() | changes
    before = state(fields)
    error = refusal(lambda: prepare(fields))
    assert (error.field, error.step, error.call_id, error.chunk_index) == (field, step, 41, 7)
    assert re.search(text, str(error))
    assert str(error).startswith(f"call_id=41 chunk_index=7: preflight step {step} refused `{field}` = ")
    assert "\n" not in str(error)
    assert len(str(error)) < 500
    assert state(fields) == before
    prepare(chunk())


def test_a_refusal_is_one_line_that_says_what_where_and_what_to_do() -> None:
    assert str(refusal(lambda: prepare(chunk(tp_plan="v0")))) == (
        "call_id=41 chunk_index=7: preflight step 1 refused `meta.tp_plan` = 'v0': "
        "the only plan of this schema is v1_generator_only"
    )
    assert str(refusal(lambda: prepare(chunk(latents=torch.ones(2, 3))))) == (
        "call_id=41 chunk_index=7: preflight step 4 refused `latents` = float32[2, 3]: "
        "dtype float32 is not bfloat16 or float16; cast it first"
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "step", "text"),
    [
        (lambda: torch.nested.nested_tensor([BF16, BF16]), 1, "no plain dense tensor"),
        (lambda: torch.nested.nested_tensor([BF16, BF16], layout=torch.jagged), 1, "no plain dense tensor"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), 4, "qint8 is off the wire map: its"),
        (lambda: BF16[None].to_sparse_csr(), 5, "layout torch.sparse_csr is not dense"),
        (lambda: torch.ones(3).to_mkldnn(), 4, "float32 is not"),
    ],
    ids=["nested", "jagged", "quantised", "csr", "mkldnn"],
)
def test_tensors_that_are_not_plain_bytes_are_refused(make: Callable[[], Any], step: int, text: str) -> None:
    error = refusal(lambda: prepare(chunk(latents=make())))
    assert (error.field, error.step) == ("latents", step)
    assert text in str(error)


@pytest.mark.parametrize("key", sorted(chunk()))
def test_a_key_that_is_left_out_is_named(key: str) -> None:
    fields = chunk()
    del fields[key]
    error = refusal(lambda: prepare(fields))
    assert (error.field, error.step) == (schema.path(key), 1)
    assert "is missing; supply it: even None must be explicit" in str(error)


def test_optimize_mode_needs_its_epoch() -> None:
    error = refusal(lambda: prepare(chunk(), mode=Mode.OPTIMIZE))
    assert error.field == "meta.conditioning_epoch"
    assert "is missing" in str(error)
    error = refusal(lambda: prepare(chunk(conditioning_epoch=None), mode=Mode.OPTIMIZE))
    assert "optimize mode needs it" in str(error)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"call_id": 40}, "call_id"),
        ({"chunk_index": 6}, "chunk_index"),
        ({"cache_epoch": 3}, "cache_epoch"),
        ({"cache_epoch": 4}, "cache_epoch"),
        ({"control_epoch": 0}, "control_epoch"),
        ({"call_id": 2**63}, "call_id"),
    ],
)
def test_ids_out_of_order_are_refused(changes: dict[str, int], field: str) -> None:
    ids = msgspec.structs.replace(IDS, **changes)
    error = refusal(lambda: prepare(chunk(), ids))
    assert (error.field, error.step, error.call_id) == (field, 1, ids.call_id)


@pytest.mark.parametrize(
    ("cast", "step", "field"),
    [(torch.float32, 4, "conditioning_embeds"), (torch.qint8, 4, "conditioning_embeds"), (torch.float16, 5, "latents")],
)
def test_a_cast_that_cannot_be_is_refused(cast: torch.dtype, step: int, field: str) -> None:
    fields = chunk(latents=torch.tensor([1e6]))
    error = refusal(lambda: prepare(fields, cast=cast))
    assert (error.step, error.field) == (step, field)


class NoMapping(Mapping[str, object]):
    def __getitem__(self, key: str) -> object:
        raise RuntimeError("no item")

    def __iter__(self) -> Iterator[str]:
        return iter(["latents"])

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("fields", [NoMapping(), None, 3, "latents"], ids=["raises", "None", "int", "str"])
def test_what_is_no_mapping_is_refused(fields: Any) -> None:
    error = refusal(lambda: prepare(fields))
    assert (error.field, error.step) == ("envelope", 1)


def test_nesting_without_end_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    wide: list[object] = [[]] * 100_000
    for value in (loop, deep, wide):
        fields = chunk(base_seed=value)
        assert refusal(lambda fields=fields: prepare(fields)).field == "meta.base_seed"  # type: ignore[misc]


def test_a_device_that_is_not_there_is_refused() -> None:
    typed = preflight.check_dtypes(
        preflight.encode_meta(preflight.split(preflight.check_schema(chunk(), IDS, SINCE, Mode.BRING_UP)))
    )
    error = refusal(lambda: preflight.materialise(typed, "cuda:99"))
    assert (error.field, error.step) == ("payload", 5)
    assert "\n" not in str(error)


def test_a_huge_tensor_is_refused_before_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", None)
    assert "passes" in str(refusal(lambda: prepare(chunk(latents=huge()))))


def test_a_tensor_whose_storage_was_freed_is_refused() -> None:
    # Kept out of the table above: pytest would print it, which reads memory that is gone.
    tensor = torch.ones(4, dtype=torch.bfloat16)
    tensor.untyped_storage().resize_(0)
    error = refusal(lambda: prepare(chunk(latents=tensor)))
    assert (error.field, error.step) == ("latents", 5)
    assert "its storage was freed" in str(error)
    assert refusal(lambda: prepare(chunk(latents=tensor, conditioning_epoch=1))).step == 1
    assert "bfloat16[4]" in schema.shown(chunk(latents=tensor)["latents"])
    assert "bfloat16[4]" in schema.shown([tensor])


def test_an_interrupt_is_no_refusal() -> None:
    class Interrupting(dict[str, object]):
        def items(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(chunk(height=Interrupting()))


class OneLine(Exception):
    """A refusal whose message is one line."""


def one_line(call: Callable[[], Prepared]) -> Prepared:
    try:
        return call()
    except Refused as error:
        raise (OneLine if len(str(error).splitlines()) == 1 else AssertionError)(str(error)) from error


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5) | tensors(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from(sorted(chunk())) | st.text(max_size=5), VALUES, min_size=1, max_size=2))
def test_any_values_are_prepared_or_refused_on_one_line(changes: dict[str, Any]) -> None:
    fields = chunk(**changes)
    before = state(fields)
    with contextlib.suppress(OneLine):
        received(one_line(lambda: prepare(fields)))
    assert state(fields) == before


def test_the_steps_change_nothing_and_can_be_repeated() -> None:
    fields = chunk(**RECOMPUTE)
    checked = preflight.check_schema(fields, IDS, SINCE, Mode.BRING_UP)
    fields.clear()
    parts = preflight.split(checked)
    typed = preflight.check_dtypes(preflight.encode_meta(parts))
    assert parts.meta == preflight.split(checked).meta
    one, other = preflight.materialise(typed), preflight.materialise(typed)
    assert torch.equal(one.packet, other.packet)
    assert torch.equal(one.payload, other.payload)
    assert {spec.digest for spec in typed.meta.tensor_specs} == {schema.NO_DIGEST}
    assert schema.NO_DIGEST not in {spec.digest for spec in one.envelope.meta.tensor_specs}
    assert one.header.action is Action.INFER
    assert len(one.header.meta) == typed.meta_nbytes
