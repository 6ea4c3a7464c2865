"""Checks the rules of a chunk's envelope, each once: rank0's preflight refuses what breaks one, before the first byte.

A worker that meets one broken poisons the run. Rules of order are the guards of the worker's table. Left out: the
schema itself (`schema`), and what a user may hand in (`preflight`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ...model.protocols import tp_rules as rules
from ...model.protocols import tp_v1_1 as table
from ...model.protocols import tp_values as values
from ...model.protocols.tp_values import Action
from ...model.tables import Guard
from .digest import INT64_MAX, INT64_MIN, dtype_name
from .schema import (
    DTYPES,
    FIELD,
    META_KEYS,
    TENSOR_KEYS,
    TP_ENVELOPE_VERSION,
    TP_PLAN,
    Committed,
    Envelope,
    Ids,
    Meta,
    Mode,
    Problem,
    path,
    version_problem,
    violation,
)

ID_GUARDS: Mapping[Guard, str] = {
    rules.call_is_newer: "call_id",
    rules.chunk_is_newer: "chunk_index",
    rules.chunk_is_same: "chunk_index",
    rules.epoch_follows: "cache_epoch",
    rules.control_epoch_holds: "control_epoch",
}
"""Maps the table's guards that speak of an id to that id."""
_INTS = tuple(name for name in META_KEYS if FIELD[name].type.startswith("int"))


def plan_in(fields: Mapping[str, Any]) -> values.Plan:
    """Return the plan bits of a chunk whose fields obey the schema."""
    return values.Plan(
        fields["tp_num_denoise_steps"],
        fields["tp_do_kv_recompute"],
        fields["init_cache"],
        fields["context_frames_override"] is not None,
        fields["tp_expected_generator_calls"],
    )


def plan_of(meta: Meta) -> values.Plan:
    """Return the plan bits that meta carries."""
    return values.Plan(
        meta.tp_num_denoise_steps,
        meta.tp_do_kv_recompute,
        meta.init_cache,
        meta.spec("context_frames_override") is not None,
        meta.tp_expected_generator_calls,
    )


def id_problems(action: Action, ids: Ids, since: Committed, *, init_cache: bool = False) -> Iterator[Problem]:
    """Yield broken rules of the header fields, of any action: the guards of the worker's table that speak of them."""
    for name in Ids.__struct_fields__:
        value = getattr(ids, name)
        if type(value) is not int or not INT64_MIN <= value <= INT64_MAX:
            yield Problem(name, value, "must be an int that fits int64")
            return
    order = (ids.call_id, ids.chunk_index, ids.cache_epoch, ids.control_epoch)
    plan = values.Plan(1, recompute=False, init_cache=init_cache, override=False, expected=1)
    received = values.Header(action, *order, plan if action is Action.INFER else None)
    v = values.TPVars(since.call_id, since.chunk_index, since.cache_epoch, since.control_epoch, received=received)
    for guard in table.WORKER.row("HEADER_CHECK", f"accept_{action.name.lower()}").guards:
        if guard in ID_GUARDS and not guard(v, None):
            field = ID_GUARDS[guard]
            text = f"it does not hold that {guard.__doc__}: {getattr(since, field)} is committed"
            yield Problem(field, getattr(ids, field), text)


def problems(ids: Ids, meta: Meta, since: Committed, mode: Mode) -> Iterator[Problem]:
    """Yield every broken rule of a chunk, the first to mend first.

    It needs no tensor: lengths come from the specs, so that a worker can ask before it allocates.
    """
    yield from plan_problems(ids, meta, since, mode)
    yield from dtype_problems(meta)


def plan_problems(ids: Ids, meta: Meta, since: Committed, mode: Mode) -> Iterator[Problem]:
    """Yield `problems` but those of dtypes, which preflight has in a later step."""
    yield from _version_problems(meta)
    yield from _manifest_problems(meta)
    yield from id_problems(Action.INFER, ids, since, init_cache=meta.init_cache)
    yield from _value_problems(meta)
    yield from _identity_problems(meta)
    yield from _conditioning_problems(meta, since, mode)


def dtype_problems(meta: Meta) -> Iterator[Problem]:
    """Yield the tensors whose dtype is not one that the schema allows for their field."""
    for spec in meta.tensor_specs:
        allowed = DTYPES.get(FIELD[spec.key].type) if spec.key in FIELD else None
        if allowed and spec.dtype not in allowed:
            yield Problem(spec.key, spec, f"dtype {spec.dtype} is not {' or '.join(allowed)}", "cast it first")


def envelope_problems(envelope: Envelope, since: Committed, mode: Mode) -> Iterator[Problem]:
    """Yield every broken rule of a whole envelope: `problems`, and tensors that are not what meta says."""
    meta = envelope.meta
    if envelope.action is not Action.INFER:
        yield Problem("action", envelope.action.name, "an envelope belongs to INFER alone")
    yield from problems(envelope.ids, meta, since, mode)
    yield from tensor_problems(envelope)


def tensor_problems(envelope: Envelope) -> Iterator[Problem]:
    """Yield the tensors that are not what meta says; of meta itself, which cannot change, nothing is asked again."""
    meta = envelope.meta
    if sorted(envelope.tensors) != list(TENSOR_KEYS):
        yield Problem("tensors", sorted(envelope.tensors), f"must be {', '.join(TENSOR_KEYS)}")
    for key, tensor in envelope.tensors.items():
        found = None if tensor is None else (dtype_name(tensor.dtype), tuple(tensor.shape))
        spec = meta.spec(key)
        if found != (None if spec is None else (spec.dtype, spec.shape)):
            yield Problem(key, tensor, f"meta says {spec}")


def require(broken: Iterator[Problem], ids: Ids) -> None:
    """Raise ContractViolation on the first problem: the worker's side of the rules."""
    for problem in broken:
        raise violation(problem, f"call_id={ids.call_id} chunk_index={ids.chunk_index}")


def _version_problems(meta: Meta) -> Iterator[Problem]:
    if meta.tp_envelope_version != TP_ENVELOPE_VERSION:
        yield version_problem(path("tp_envelope_version"), meta.tp_envelope_version, TP_ENVELOPE_VERSION)
    if meta.tp_plan != TP_PLAN:
        yield Problem(path("tp_plan"), meta.tp_plan, f"the only plan of this schema is {TP_PLAN}")


def _manifest_problems(meta: Meta) -> Iterator[Problem]:
    """Yield what is wrong with the two lists: each tensor field is in exactly one, and both are in order."""
    order = [(spec.key, spec.index) for spec in meta.tensor_specs]
    if order != sorted(set(order)):
        yield Problem(path("tensor_specs"), order, "not ordered by (key, index), each once")
    if list(meta.none_tensors) != sorted(set(meta.none_tensors)):
        yield Problem(path("none_tensors"), meta.none_tensors, "not ordered by key, each once")
    keys = [key for key, _ in order] + list(meta.none_tensors)
    for key in keys:
        if key not in TENSOR_KEYS:
            yield Problem(key, key, "no tensor field of this schema")
        elif keys.count(key) > 1:
            yield Problem(key, key, "is sent twice, or sent and named as None")
    for key, index in order:
        if index != 0:
            yield Problem(key, index, "schema v1 has one tensor a key: index 0")
    for key in TENSOR_KEYS:
        if key not in keys:
            yield Problem(key, None, "neither sent nor named as None", "name it in none_tensors")


def _value_problems(meta: Meta) -> Iterator[Problem]:
    for name in _INTS:
        value = getattr(meta, name)
        if value is not None and not INT64_MIN <= value <= INT64_MAX:
            yield Problem(path(name), value, "does not fit int64")
    for name, least in (("height", 1), ("width", 1), ("current_start_frame", 0), ("tp_num_denoise_steps", 1)):
        if getattr(meta, name) < least:
            yield Problem(path(name), getattr(meta, name), f"must be at least {least}")
    if not math.isfinite(meta.kv_cache_attention_bias):
        yield Problem(path("kv_cache_attention_bias"), meta.kv_cache_attention_bias, "must be finite")


def _identity_problems(meta: Meta) -> Iterator[Problem]:
    """Yield broken plan identities, and an override without recompute or the other way round."""
    steps, calls, recompute = meta.tp_num_denoise_steps, meta.tp_expected_generator_calls, meta.tp_do_kv_recompute
    timesteps = meta.spec("denoising_step_list")
    if timesteps is None or len(timesteps.shape) != 1:
        yield Problem("denoising_step_list", timesteps, "must be a tensor of one dimension, int64[steps]")
    elif timesteps.shape[0] != steps:
        text = f"must be len(denoising_step_list) = {timesteps.shape[0]}"
        yield Problem(path("tp_num_denoise_steps"), steps, text)
    if calls != int(recompute) + steps:
        text = f"must be int(tp_do_kv_recompute={recompute}) + tp_num_denoise_steps={steps}"
        yield Problem(path("tp_expected_generator_calls"), calls, text)
    if meta.manage_cache and meta.conditioning_embeds_updated and not meta.tp_reset_crossattn_cache:
        text = "the conditioning changes under a managed cache, so cross-attention must be reset"
        yield Problem(path("tp_reset_crossattn_cache"), False, text, "set it")
    if meta.spec("latents") is None:
        yield Problem("latents", None, "must be a tensor", "supply it")
    override = meta.spec("context_frames_override")
    if recompute and override is None:
        text = "tp_do_kv_recompute needs it, and there is no fallback"
        yield Problem("context_frames_override", None, text, "supply it")
    if override is not None and not recompute:
        text = "left over: tp_do_kv_recompute is False"
        yield Problem("context_frames_override", override, text, "make it None: clear it when it is read")


def _conditioning_problems(meta: Meta, since: Committed, mode: Mode) -> Iterator[Problem]:
    epoch, embeds, last = meta.conditioning_epoch, meta.spec("conditioning_embeds"), since.conditioning_epoch
    if mode is Mode.BRING_UP:
        if epoch is not None:
            yield Problem(path("conditioning_epoch"), epoch, "belongs to optimize mode", "make it None")
        if embeds is None:
            text = "every chunk carries it in bring-up mode"
            yield Problem("conditioning_embeds", None, text, "supply it")
    elif epoch is None:
        yield Problem(path("conditioning_epoch"), None, "optimize mode needs it", "supply it")
    elif epoch == 0 or epoch - last not in (0, 1):
        text = f"{last} is committed: it stays or rises by one, and the first is 1"
        yield Problem(path("conditioning_epoch"), epoch, text)
    elif epoch > last and embeds is None:
        yield Problem("conditioning_embeds", None, f"conditioning_epoch rises to {epoch}", "supply it")
    elif epoch == last and embeds is not None:
        text = f"conditioning_epoch stays at {epoch}"
        yield Problem("conditioning_embeds", embeds, text, "make it None, or raise the epoch")
