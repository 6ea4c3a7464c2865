"""The schema and its rules: the table agrees with the structs, and each rule names what breaks it."""

from __future__ import annotations

import contextlib
import typing
from typing import Any

import msgspec
import pytest
import torch
from genlock.errors import ContractViolation
from genlock.impl.chunk import rules, schema
from genlock.impl.chunk.rules import dtype_problems, envelope_problems, id_problems, problems, require
from genlock.impl.chunk.schema import FIELDS, Committed, Envelope, Ids, Meta, Mode, TensorSpec
from genlock.impl.chunk.wire import WIRE_DTYPES
from genlock.model.protocols import tp_rules as table
from genlock.model.protocols import tp_values as values
from genlock.model.protocols.tp_values import Action
from hypothesis import given
from hypothesis import strategies as st

SINCE = Committed(call_id=4, chunk_index=2, cache_epoch=3, control_epoch=1, conditioning_epoch=5)
IDS = Ids(call_id=5, chunk_index=3, cache_epoch=3, control_epoch=1)


def spec(key: str, dtype: str = "bfloat16", shape: tuple[int, ...] = (1, 2, 3), **other: Any) -> TensorSpec:
    return msgspec.structs.replace(TensorSpec(key, 0, dtype, shape, "0" * 16), **other)


STEPS = spec("denoising_step_list", "int64", (4,))
EMBEDS, LATENTS, OVERRIDE = spec("conditioning_embeds"), spec("latents"), spec("context_frames_override")
GOOD = Meta(
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
    tp_num_denoise_steps=4,
    tp_expected_generator_calls=4,
    base_seed=42,
    conditioning_epoch=None,
    tensor_specs=(EMBEDS, STEPS, LATENTS),
    none_tensors=("context_frames_override",),
)
RECOMPUTE: dict[str, Any] = {
    "tp_do_kv_recompute": True,
    "tp_expected_generator_calls": 5,
    "tensor_specs": (EMBEDS, OVERRIDE, STEPS, LATENTS),
    "none_tensors": (),
}
NO_EMBEDS: dict[str, Any] = {
    "tensor_specs": (STEPS, LATENTS),
    "none_tensors": ("conditioning_embeds", "context_frames_override"),
}


def changed(**changes: Any) -> Meta:
    return msgspec.structs.replace(GOOD, **changes)


def found(meta: Meta, mode: Mode = Mode.BRING_UP, ids: Ids = IDS, since: Committed = SINCE) -> list[str]:
    return [problem.field for problem in problems(ids, meta, since, mode)]


# ── the table and the structs ───────────────────────────────────────────────────────────────────────


def test_every_field_of_the_table_is_in_the_structs_and_back() -> None:
    rows = {row.name: row for row in FIELDS}
    assert len(rows) == len(FIELDS)
    assert rows.keys() == {
        *schema.HEADER_KEYS,
        *schema.META_KEYS,
        *schema.TENSOR_KEYS,
        *schema.FORBIDDEN,
    }
    assert {*schema.HEADER_KEYS} == {"action", *Ids.__struct_fields__}
    assert {*schema.META_KEYS, *schema.MANIFEST_KEYS} == {*Meta.__struct_fields__}
    assert {"video"} == schema.FORBIDDEN
    for name, row in rows.items():
        assert row.tensor == (name in schema.TENSOR_KEYS or name in schema.FORBIDDEN), name
        assert row.tensor == ("tensor" in row.type or row.type in ("int64[steps]", "—")), name


def test_every_type_of_the_table_is_that_of_the_struct_and_back() -> None:
    plain = {"int64 enum": Action, "int64": int, "int": int, "str": str, "bool": bool, "float": float}
    hints = {**typing.get_type_hints(Envelope), **typing.get_type_hints(Ids), **typing.get_type_hints(Meta)}
    for row in FIELDS:
        if not row.tensor:
            expected: Any = plain[row.type]
            if row.required_when == "optimize mode only":
                expected = expected | None
            assert hints[row.name] == expected, row.name


def test_the_literals_of_the_table_are_all_in_use() -> None:
    assert {row.type for row in FIELDS} == {*typing.get_args(schema.Type)}
    assert {row.required_when for row in FIELDS} == {*typing.get_args(schema.RequiredWhen)}
    assert all(row.why and row.first_checked for row in FIELDS)


def test_no_field_of_meta_has_a_default() -> None:
    assert all(field.required for field in msgspec.structs.fields(Meta))


def test_the_dtypes_of_the_schema_can_travel() -> None:
    tensor_types = {row.type for row in FIELDS if row.name in schema.TENSOR_KEYS}
    assert tensor_types == schema.DTYPES.keys()
    assert {name for names in schema.DTYPES.values() for name in names} <= WIRE_DTYPES.keys()


def test_the_largest_usual_meta_needs_a_quarter_of_the_bound() -> None:
    specs = tuple(msgspec.structs.replace(row, shape=(2**40,) * 5) for row in RECOMPUTE["tensor_specs"])
    names = ("height", "width", "current_start_frame", "base_seed", "conditioning_epoch")
    largest = changed(**{**RECOMPUTE, **dict.fromkeys(names, 2**63 - 1), "tensor_specs": specs})
    assert len(schema.encode(largest)) <= schema.META_MAX_BYTES // 4


# ── the rules ───────────────────────────────────────────────────────────────────────────────────────


def test_a_good_chunk_has_no_problem() -> None:
    assert found(GOOD) == []
    assert found(changed(**RECOMPUTE)) == []
    assert list(dtype_problems(GOOD)) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tp_envelope_version": 2}, "meta.tp_envelope_version"),
        ({"tp_plan": "v0_full_pipeline"}, "meta.tp_plan"),
        ({"height": 0}, "meta.height"),
        ({"width": -1}, "meta.width"),
        ({"current_start_frame": -1}, "meta.current_start_frame"),
        ({"base_seed": 2**63}, "meta.base_seed"),
        ({"base_seed": -(2**63) - 1}, "meta.base_seed"),
        ({"kv_cache_attention_bias": float("nan")}, "meta.kv_cache_attention_bias"),
        ({"kv_cache_attention_bias": float("-inf")}, "meta.kv_cache_attention_bias"),
        ({"tp_num_denoise_steps": 3, "tp_expected_generator_calls": 3}, "meta.tp_num_denoise_steps"),
        ({"tp_expected_generator_calls": 5}, "meta.tp_expected_generator_calls"),
        (RECOMPUTE | {"tp_expected_generator_calls": 4}, "meta.tp_expected_generator_calls"),
        ({"tp_do_kv_recompute": True, "tp_expected_generator_calls": 5}, "context_frames_override"),
        (RECOMPUTE | {"tp_do_kv_recompute": False, "tp_expected_generator_calls": 4}, "context_frames_override"),
        ({"init_cache": True}, "cache_epoch"),
        ({"conditioning_epoch": 1}, "meta.conditioning_epoch"),
        (NO_EMBEDS, "conditioning_embeds"),
        ({"tensor_specs": (EMBEDS, spec("denoising_step_list", "int64", (4, 1)), LATENTS)}, "denoising_step_list"),
        ({"tensor_specs": (EMBEDS, spec("denoising_step_list", "int64", ()), LATENTS)}, "denoising_step_list"),
        (
            {"tensor_specs": (EMBEDS, LATENTS), "none_tensors": ("context_frames_override", "denoising_step_list")},
            "denoising_step_list",
        ),
        ({"tensor_specs": (EMBEDS, STEPS), "none_tensors": ("context_frames_override", "latents")}, "latents"),
        ({"tensor_specs": (EMBEDS, LATENTS, STEPS)}, "meta.tensor_specs"),
        ({"tensor_specs": (EMBEDS, STEPS, LATENTS, spec("latents", index=1))}, "latents"),
        ({"tensor_specs": (EMBEDS, STEPS, spec("latents", index=1))}, "latents"),
        ({"tensor_specs": (EMBEDS, STEPS, LATENTS, spec("video"))}, "video"),
        ({"tensor_specs": (EMBEDS, STEPS, LATENTS, LATENTS)}, "meta.tensor_specs"),
        ({"none_tensors": ("context_frames_override", "latents")}, "latents"),
        ({"none_tensors": ("context_frames_override", "context_frames_override")}, "meta.none_tensors"),
        ({"none_tensors": ("base_seed", "context_frames_override")}, "base_seed"),
        ({"none_tensors": ()}, "context_frames_override"),
        ({"tensor_specs": (EMBEDS, STEPS)}, "latents"),
    ],
)
def test_each_broken_rule_is_named_first(changes: dict[str, Any], field: str) -> None:
    meta = changed(**changes)
    assert found(meta)[0] == field, found(meta)
    with pytest.raises(ContractViolation, match=r"call_id=5 chunk_index=3: `") as caught:
        require(problems(IDS, meta, SINCE, Mode.BRING_UP), IDS)
    assert "\n" not in str(caught.value)


def test_no_step_at_all_is_a_problem() -> None:
    none = spec("denoising_step_list", "int64", (0,))
    changes = {"tp_num_denoise_steps": 0, "tp_expected_generator_calls": 0}
    assert found(changed(tensor_specs=(EMBEDS, none, LATENTS), **changes)) == ["meta.tp_num_denoise_steps"]


@pytest.mark.parametrize(
    ("action", "changes", "field"),
    [
        (Action.INFER, {"call_id": 4}, "call_id"),
        (Action.INFER, {"call_id": 3}, "call_id"),
        (Action.INFER, {"chunk_index": 2}, "chunk_index"),
        (Action.INFER, {"cache_epoch": 5}, "cache_epoch"),
        (Action.INFER, {"cache_epoch": 2}, "cache_epoch"),
        (Action.INFER, {"control_epoch": 0}, "control_epoch"),
        (Action.INFER, {"call_id": 2**63}, "call_id"),
        (Action.INFER, {"call_id": True}, "call_id"),
        (Action.INFER, {"chunk_index": None}, "chunk_index"),
        (Action.NOOP, {}, "chunk_index"),
        (Action.NOOP, {"chunk_index": 1}, "chunk_index"),
        (Action.NOOP, {"chunk_index": 2, "cache_epoch": 4}, "cache_epoch"),
        (Action.NOOP, {"chunk_index": 2, "call_id": 4}, "call_id"),
        (Action.SHUTDOWN, {"chunk_index": 2, "control_epoch": 0}, "control_epoch"),
    ],
)
def test_ids_out_of_order_are_named(action: Action, changes: dict[str, Any], field: str) -> None:
    ids = msgspec.structs.replace(IDS, **changes)
    assert [problem.field for problem in id_problems(action, ids, SINCE)] == [field]


def test_ids_in_order_are_no_problem() -> None:
    jump = Ids(call_id=90, chunk_index=40, cache_epoch=4, control_epoch=7)
    assert list(id_problems(Action.INFER, jump, SINCE, init_cache=True)) == []
    assert found(changed(init_cache=True), ids=jump) == []
    for action in (Action.NOOP, Action.SHUTDOWN):
        assert list(id_problems(action, msgspec.structs.replace(jump, chunk_index=2, cache_epoch=3), SINCE)) == []


@pytest.mark.parametrize(
    ("epoch", "sent", "field"),
    [
        (5, False, None),
        (6, True, None),
        (5, True, "conditioning_embeds"),
        (6, False, "conditioning_embeds"),
        (7, True, "meta.conditioning_epoch"),
        (4, False, "meta.conditioning_epoch"),
        (4, True, "meta.conditioning_epoch"),
        (None, True, "meta.conditioning_epoch"),
    ],
)
def test_conditioning_travels_iff_its_epoch_rises_by_one(epoch: int | None, sent: bool, field: str | None) -> None:
    meta = changed(conditioning_epoch=epoch, **({} if sent else NO_EMBEDS))
    assert found(meta, Mode.OPTIMIZE) == ([] if field is None else [field])


def test_the_first_chunk_in_optimize_mode_cannot_go_without_conditioning() -> None:
    ids = Ids(1, 1, 0, 0)
    first = changed(conditioning_epoch=0, **NO_EMBEDS)
    assert found(first, Mode.OPTIMIZE, ids, Committed()) == ["meta.conditioning_epoch"]
    assert found(changed(conditioning_epoch=1), Mode.OPTIMIZE, ids, Committed()) == []


@pytest.mark.parametrize(
    ("specs", "field"),
    [
        ((EMBEDS, STEPS, spec("latents", "float32")), "latents"),
        ((EMBEDS, spec("denoising_step_list", "int32", (4,)), LATENTS), "denoising_step_list"),
        ((spec("conditioning_embeds", "int64"), STEPS, LATENTS), "conditioning_embeds"),
    ],
)
def test_each_field_has_its_dtypes(specs: tuple[TensorSpec, ...], field: str) -> None:
    meta = changed(tensor_specs=specs)
    assert [problem.field for problem in dtype_problems(meta)] == [field]
    assert found(meta) == [field]
    assert list(rules.plan_problems(IDS, meta, SINCE, Mode.BRING_UP)) == []


def test_committing_moves_everything_on_and_only_then() -> None:
    since = Committed()
    assert since.after(Ids(1, 1, 1, 0), changed(conditioning_epoch=1)) == Committed(1, 1, 1, 0, 1)
    assert since.after(Ids(1, 1, 1, 0), GOOD) == Committed(1, 1, 1, 0, 0)
    assert Committed(1, 1, 1, 0, 1).after(Ids(2, 1, 1, 3)) == Committed(2, 1, 1, 3, 1)
    assert since == Committed()


# ── a whole envelope ────────────────────────────────────────────────────────────────────────────────


def whole(**changes: Any) -> Envelope:
    tensors: dict[str, torch.Tensor | None] = {
        spec.key: torch.zeros(spec.shape, dtype=WIRE_DTYPES[spec.dtype]) for spec in GOOD.tensor_specs
    }
    tensors["context_frames_override"] = None
    return msgspec.structs.replace(Envelope(Action.INFER, IDS, GOOD, tensors), **changes)


def test_a_whole_envelope_has_every_field_by_name() -> None:
    good = whole()
    assert list(envelope_problems(good, SINCE, Mode.BRING_UP)) == []
    assert good.fields().keys() == {row.name for row in FIELDS} - schema.FORBIDDEN
    assert good.fields()["call_id"] == 5
    assert good.fields()["context_frames_override"] is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"action": Action.NOOP}, "action"),
        ({"meta": changed(tp_expected_generator_calls=7)}, "meta.tp_expected_generator_calls"),
        ({"ids": Ids(4, 3, 3, 1)}, "call_id"),
        ({"tensors": {**whole().tensors, "latents": torch.zeros(1, 2, 3)}}, "latents"),
        ({"tensors": {**whole().tensors, "latents": torch.zeros(1, 2, dtype=torch.bfloat16)}}, "latents"),
        ({"tensors": {**whole().tensors, "latents": None}}, "latents"),
        (
            {"tensors": {**whole().tensors, "context_frames_override": torch.zeros(1)}},
            "context_frames_override",
        ),
        ({"tensors": {**whole().tensors, "video": None}}, "tensors"),
        ({"tensors": {"latents": whole().tensors["latents"]}}, "tensors"),
        (
            {
                "meta": changed(tensor_specs=(EMBEDS, STEPS, spec("latents", "float64"))),
                "tensors": {**whole().tensors, "latents": torch.zeros(1, 2, 3, dtype=torch.float64)},
            },
            "latents",
        ),
    ],
)
def test_a_whole_envelope_is_held_against_its_meta(changes: dict[str, Any], field: str) -> None:
    assert next(envelope_problems(whole(**changes), SINCE, Mode.BRING_UP)).field == field


# ── canonical bytes ─────────────────────────────────────────────────────────────────────────────────


def test_meta_survives_its_bytes() -> None:
    for meta in (GOOD, changed(**RECOMPUTE), changed(kv_cache_attention_bias=-0.0)):
        assert schema.decode(schema.encode(meta)) == meta


def as_map(**changes: Any) -> bytes:
    return msgspec.msgpack.encode({**msgspec.to_builtins(GOOD), **changes})


def test_the_bytes_are_a_plain_map_in_the_order_of_the_struct() -> None:
    assert as_map() == schema.encode(GOOD)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (as_map(extra=1), "unknown field `extra`"),
        (as_map(height=True), r"\$.height"),
        (as_map(init_cache=1), r"\$.init_cache"),
        (as_map(base_seed=1.0), r"\$.base_seed"),
        (as_map(tp_plan=b"v1_generator_only"), r"\$.tp_plan"),
        (as_map(kv_cache_attention_bias=1), "canonical"),
        (as_map(tensor_specs=[{**msgspec.to_builtins(LATENTS), "x": 1}]), r"unknown field `x`"),
        (as_map(tensor_specs=[{**msgspec.to_builtins(LATENTS), "digest": "0" * 15}]), "digest"),
        (as_map(tensor_specs=[{**msgspec.to_builtins(LATENTS), "digest": "0" * 16 + "\n"}]), "digest"),
        (as_map(tensor_specs=[{**msgspec.to_builtins(LATENTS), "shape": [-1]}]), "shape"),
        (as_map(tensor_specs=[{**msgspec.to_builtins(LATENTS), "index": -1}]), "index"),
        (
            msgspec.msgpack.encode({k: v for k, v in msgspec.to_builtins(GOOD).items() if k != "none_tensors"}),
            "missing required field `none_tensors`",
        ),
        (
            msgspec.msgpack.encode(dict(reversed(msgspec.to_builtins(GOOD).items()))),
            "canonical",
        ),
        (schema.encode(GOOD) + b"\0", "trailing"),
        (schema.encode(GOOD)[:-1], "truncated"),
        (b"", "truncated"),
    ],
)
def test_other_bytes_are_refused_by_name(data: bytes, text: str) -> None:
    with pytest.raises(ContractViolation, match=rf"meta: .*{text}"):
        schema.decode(data)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_contract_violation(data: bytes) -> None:
    with pytest.raises(ContractViolation):
        schema.decode(data)


@given(st.integers(0, len(schema.encode(GOOD)) - 1), st.integers(0, 255))
def test_a_changed_byte_is_another_meta_or_a_contract_violation(at: int, byte: int) -> None:
    data = bytearray(schema.encode(GOOD))
    data[at] = byte
    with contextlib.suppress(ContractViolation):
        meta = schema.decode(bytes(data))
        assert schema.encode(meta) == data
        list(problems(IDS, meta, SINCE, Mode.BRING_UP))
        list(dtype_problems(meta))


# ── showing values ──────────────────────────────────────────────────────────────────────────────────


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Lines:
    def __repr__(self) -> str:
        return "one\ntwo"


@pytest.mark.parametrize(
    "value",
    [Broken(), [Broken()], 10**10_000, "x" * 10_000, torch.zeros(10**4), Lines()],
    ids=["broken", "nested", "huge", "long", "tensor", "lines"],
)
def test_anything_is_shown_on_one_short_line(value: object) -> None:
    text = schema.shown(value)
    assert len(text) <= 160
    assert "\n" not in text


def test_versions_are_told_with_what_to_do() -> None:
    newer = schema.version_problem("x_version", 2, 1)
    assert (newer.text, "this rank" in newer.do) == ("version 2 is newer than 1, the one spoken here", True)
    older = schema.version_problem("x_version", 1, 2)
    assert (older.text, "the sender" in older.do) == ("version 1 is older than 2, the one spoken here", True)


@given(
    steps=st.integers(-1, 3),
    calls=st.integers(-1, 5),
    recompute=st.booleans(),
    override=st.booleans(),
    cut=st.booleans(),
)
def test_plan_rules_agree_with_the_guards_of_the_table(
    steps: int, calls: int, recompute: bool, override: bool, cut: bool
) -> None:
    """The envelope names fields, the table decides: they find the same plans wrong."""
    specs = [s for s in GOOD.tensor_specs if s.key not in ("context_frames_override", "denoising_step_list")]
    specs.append(spec("denoising_step_list", "int64", (max(steps, 0),)))
    specs += [spec("context_frames_override")] * override
    meta = changed(
        tp_num_denoise_steps=steps,
        tp_expected_generator_calls=calls,
        tp_do_kv_recompute=recompute,
        init_cache=cut,
        tensor_specs=tuple(sorted(specs, key=lambda s: s.key)),
        none_tensors=() if override else ("context_frames_override",),
    )
    ids = msgspec.structs.replace(IDS, cache_epoch=SINCE.cache_epoch + cut)
    v, plan = values.TPVars(), rules.plan_of(meta)
    agrees = table.plan_identities_hold(v, plan) and table.override_iff_recompute(v, plan)
    assert (found(meta, ids=ids) == []) == agrees


def test_a_managed_cache_is_reset_with_its_conditioning() -> None:
    assert found(changed(conditioning_embeds_updated=True)) == ["meta.tp_reset_crossattn_cache"]
    assert found(changed(conditioning_embeds_updated=True, tp_reset_crossattn_cache=True)) == []
    assert found(changed(conditioning_embeds_updated=True, manage_cache=False)) == []
