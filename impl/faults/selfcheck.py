"""Tries each check of the control plane: what breaks a rule is handed to the code that must catch it, in memory.

A probe hands in one wrong thing and returns the message that came back. It fails where nothing came back, or where
what the check found is of another field or rank: so a check that is taken out of the code is missed here. The contract
documents and the audit cite these probes. Left out: what only several processes can show (the break-it matrix).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from ...errors import Code, ContractViolation, GenlockError, Refused
from ...model.protocols.tp_v1_1 import TP_V1_1
from ...model.protocols.tp_values import Action
from ...traces.outcome import Outcome, outcome_of
from ..chunk import digest, parity, preflight, wire
from ..chunk.ack_check import AckBook
from ..chunk.received_envelope import Inbox
from ..chunk.schema import (
    FIELDS,
    META_KEYS,
    TENSOR_KEYS,
    TP_ENVELOPE_VERSION,
    Committed,
    Field,
    Ids,
    Mode,
    encode,
    path,
)
from ..chunk.wire import Ack

SINCE = Committed(call_id=6, chunk_index=3, cache_epoch=2, control_epoch=1, conditioning_epoch=0)
IDS = Ids(call_id=7, chunk_index=4, cache_epoch=2, control_epoch=1)


class Unnoticed(GenlockError):
    """Says that a probe's wrong thing went through, or that the message does not say what it was."""


@dataclass(frozen=True)
class Probe:
    """Holds one wrong thing.

    `run` returns the message with which it was caught, and raises Unnoticed where it was not.
    """

    name: str
    what: str
    run: Callable[[], str]


def fields(**changes: Any) -> dict[str, Any]:
    """Return the fields of a sound chunk in bring-up mode, with changes."""
    sound: dict[str, Any] = {
        "tp_plan": "v1_generator_only",
        "tp_envelope_version": TP_ENVELOPE_VERSION,
        **dict.fromkeys(("height", "width"), 64),
        "current_start_frame": 6,
        **dict.fromkeys(("init_cache", "tp_reset_kv_cache", "tp_reset_crossattn_cache"), False),
        **dict.fromkeys(("conditioning_embeds_updated", "tp_do_kv_recompute"), False),
        "manage_cache": True,
        "kv_cache_attention_bias": 0.5,
        **dict.fromkeys(("tp_num_denoise_steps", "tp_expected_generator_calls"), 2),
        "base_seed": 1,
        "denoising_step_list": torch.tensor([1000, 500]),
        "latents": torch.ones(2, 3, dtype=torch.bfloat16),
        "conditioning_embeds": torch.ones(2, 8, dtype=torch.bfloat16),
        "context_frames_override": None,
    }
    return sound | changes


def prepared(given: Mapping[str, Any] | None = None, mode: Mode = Mode.BRING_UP) -> preflight.Prepared:
    """Take these fields through all five steps of preflight, or raise Refused."""
    checked = preflight.check_schema(fields() if given is None else given, IDS, SINCE, mode)
    return preflight.materialise(preflight.check_dtypes(preflight.encode_meta(preflight.split(checked))))


def probes() -> Iterator[Probe]:
    """Yield every probe, each name once."""
    for field in FIELDS:
        yield from _of_rank0(field)
        yield from _of_worker(field)
    yield from _of_preflight()
    yield from _of_wire()
    yield from _of_parity()
    yield from _of_acks()


# ── who must object ─────────────────────────────────────────────────────────────────────────────────


def _refused(
    names: str,
    given: Callable[[], Mapping[str, Any]],
    *,
    step: int = 1,
    mode: Mode = Mode.BRING_UP,
    code: Code = Code.RULE,
) -> str:
    try:
        prepared(given(), mode)
    except Refused as refusal:
        due = (names, step, code, IDS.call_id, IDS.chunk_index)
        if (refusal.field, refusal.step, refusal.code, refusal.call_id, refusal.chunk_index) != due:
            raise Unnoticed(f"the refusal is not of `{names}`, step {step}, {code}: {refusal}") from refusal
        return str(refusal)
    raise Unnoticed(f"preflight lets it pass; it must name `{names}` in step {step}")


def _rejected(names: str, packet: torch.Tensor, payload: torch.Tensor | None = None) -> str:
    """Return the worker's complaint about a header packet, or about the payload that follows."""
    inbox = Inbox(SINCE, Mode.BRING_UP, wire.BRING_UP, lambda meta, chunk: None)
    sound = inbox.take_header(packet).intact
    if sound and payload is not None:
        sound = inbox.take_payload(payload).intact
    return _named(names, None if sound else inbox.outcome, "the worker")


def _raised(names: str, act: Callable[[], object], who: str) -> str:
    try:
        act()
    except ContractViolation as error:
        return _named(names, outcome_of(error), who)
    return _named(names, None, who)


def _named(names: str, outcome: Outcome | None, who: str, ranks: tuple[int, ...] = ()) -> str:
    """Return the text of what was found, once it is known to be of that field (any, where `names` is empty)."""
    if outcome is None:
        raise Unnoticed(f"{who} lets it pass; it must name `{names}`")
    if names and names not in (outcome.field, *(d.field for d in outcome.differences)):
        raise Unnoticed(f"{who} does not name `{names}`: {outcome.text}")
    if ranks and outcome.ranks != ranks:
        raise Unnoticed(f"{who} does not name {ranks}: {outcome.text}")
    return outcome.text


# ── the schema ──────────────────────────────────────────────────────────────────────────────────────


def _of_rank0(field: Field) -> Iterator[Probe]:
    """Yield what rank0's preflight must say of a field that is missing, mistyped or forbidden."""
    name, named = field.name, path(field.name)
    if field.required_when == "forbidden":
        yield _rank0(name, "is handed in", name, lambda: fields(**{name: torch.ones(1)}))
    elif name in META_KEYS or name in TENSOR_KEYS:
        mode = Mode.OPTIMIZE if field.required_when == "optimize mode only" else Mode.BRING_UP
        yield _rank0(name, "is left out", named, lambda: {k: v for k, v in fields().items() if k != name}, mode)
        yield _rank0(name, "is of another type", named, lambda: fields(**{name: object()}), mode)
    else:
        yield _rank0(name, "is handed in by the caller", name, lambda: fields(**{name: 1}))


def _rank0(
    name: str, how: str, names: str, given: Callable[[], Mapping[str, Any]], mode: Mode = Mode.BRING_UP
) -> Probe:
    return Probe(f"rank0.{name}.{how.replace(' ', '_')}", f"`{name}` {how}", lambda: _refused(names, given, mode=mode))


def _of_worker(field: Field) -> Iterator[Probe]:
    """Yield what a worker must say of a field that another build of rank0 sends wrong."""
    name = field.name
    if name in Ids.__struct_fields__:
        yield Probe(f"worker.{name}.stale", f"a header comes with a stale `{name}`", lambda: _stale(name))
    elif name == "action":
        yield Probe("worker.action.unknown", "a header comes with an unknown `action`", _unknown_action)
    elif name in META_KEYS and field.required_when == "INFER":
        yield Probe(f"worker.{name}.absent", f"meta comes without `{name}`", lambda: _absent(name))
    elif field.tensor and field.required_when != "forbidden":
        yield Probe(f"worker.{name}.undeclared", f"meta says nothing of `{name}`", lambda: _undeclared(name))


def _stale(name: str) -> str:
    # an epoch that stays is sound, so it goes back; a call or chunk that stays is a replay
    back = 1 if name.endswith("_epoch") else 0
    ids = msgspec.structs.replace(IDS, **{name: getattr(SINCE, name) - back})
    sound = prepared()
    sizes = {"tensor_count": sound.header.tensor_count, "payload_nbytes": sound.header.payload_nbytes}
    meta, sealed = sound.header.meta, sound.header.payload_digest
    return _rejected(name, wire.pack_header(Action.INFER, ids, meta=meta, **sizes, payload_digest=sealed))


def _unknown_action() -> str:
    packet = prepared().packet.clone()
    packet[wire.HEADER_FIELDS.index("action")] = 9
    return _rejected("action", _resigned(packet))


def _absent(name: str) -> str:
    meta = msgspec.to_builtins(prepared().envelope.meta)
    meta.pop(name)
    return _rejected(path(name), _with_meta(msgspec.msgpack.encode(meta)))


def _undeclared(name: str) -> str:
    meta = prepared().envelope.meta
    specs = tuple(spec for spec in meta.tensor_specs if spec.key != name)
    nones = tuple(key for key in meta.none_tensors if key != name)
    meta = msgspec.structs.replace(meta, tensor_specs=specs, none_tensors=nones)
    sizes = {"tensor_count": len(specs), "payload_nbytes": wire.payload_nbytes(specs)}
    sealed = wire.payload_digest(specs)
    return _rejected(name, wire.pack_header(Action.INFER, IDS, meta=encode(meta), **sizes, payload_digest=sealed))


def _with_meta(meta: bytes) -> torch.Tensor:
    header = prepared().header
    sizes = {"tensor_count": header.tensor_count, "payload_nbytes": header.payload_nbytes}
    return wire.pack_header(Action.INFER, IDS, meta=meta, **sizes, payload_digest=header.payload_digest)


def _resigned(packet: torch.Tensor) -> torch.Tensor:
    """Return the packet with the digest of its fields made right again, as a broken build would send it."""
    last = len(wire.HEADER_FIELDS) - 1
    packet[last] = digest.of_bytes(packet[:last].numpy().tobytes())
    return packet


# ── preflight ───────────────────────────────────────────────────────────────────────────────────────


class _Unreadable(Mapping[str, Any]):
    """Holds fields that raise when they are read, as a user's own mapping may."""

    def __getitem__(self, key: str) -> Any:
        raise ValueError("no value")

    def __iter__(self) -> Iterator[str]:
        return iter(("latents",))

    def __len__(self) -> int:
        return 1


def _of_preflight() -> Iterator[Probe]:
    override = torch.ones(1, 3, dtype=torch.bfloat16)
    deep = torch.ones(2, dtype=torch.bfloat16).view((1,) * 5000 + (2,))
    cases: tuple[tuple[str, str, str, int, Callable[[], Mapping[str, Any]]], ...] = (
        ("identity.calls", "the expected calls are not recompute + steps", "meta.tp_expected_generator_calls", 1,
         lambda: fields(tp_expected_generator_calls=3)),
        ("identity.steps", "the steps are not the length of the list", "meta.tp_num_denoise_steps", 1,
         lambda: fields(tp_num_denoise_steps=3, tp_expected_generator_calls=3)),
        ("recompute_without_override", "a recompute is planned without its override", "context_frames_override", 1,
         lambda: fields(tp_do_kv_recompute=True, tp_expected_generator_calls=3)),
        ("stale_override", "an override is left over from another chunk", "context_frames_override", 1,
         lambda: fields(context_frames_override=override)),
        ("stale_conditioning", "conditioning is left out in bring-up mode", "conditioning_embeds", 1,
         lambda: fields(conditioning_embeds=None)),
        ("crossattn_reset", "conditioning changes under a managed cache without a reset",
         "meta.tp_reset_crossattn_cache", 1, lambda: fields(conditioning_embeds_updated=True)),
        ("lambda", "a lambda stands in meta", "meta.base_seed", 1,
         lambda: fields(base_seed=lambda: 1)),
        ("nested_tensor", "a tensor is nested in meta", "meta.base_seed[0]", 1,
         lambda: fields(base_seed=[torch.ones(1)])),
        ("unreadable", "the caller's own mapping raises", "envelope", 1, _Unreadable),
        ("meta_bound", "meta does not fit the header packet", "meta", 3, lambda: fields(latents=deep)),
        ("dtype_off_map", "a tensor is of a dtype that cannot travel", "latents", 4,
         lambda: fields(latents=torch.empty(2, 3, dtype=torch.bits8))),
        ("dtype_of_field", "a tensor is of a dtype that its field may not have", "latents", 4,
         lambda: fields(latents=torch.ones(2, 3, dtype=torch.float64))),
        ("meta_device", "a tensor has no values", "latents", 5,
         lambda: fields(latents=torch.ones(2, 3, dtype=torch.bfloat16, device="meta"))),
    )  # fmt: skip
    for name, what, names, step, given in cases:
        yield Probe(f"preflight.{name}", what, _refusal(names, given, step, OTHER_CODES.get(name, Code.RULE)))


OTHER_CODES = {"unreadable": Code.EXCEPTION, "dtype_off_map": Code.MESSAGE}
"""Names the probes that no rule of the schema refuses."""


def _refusal(names: str, given: Callable[[], Mapping[str, Any]], step: int, code: Code) -> Callable[[], str]:
    return lambda: _refused(names, given, step=step, code=code)


# ── the wire ────────────────────────────────────────────────────────────────────────────────────────


def _of_wire() -> Iterator[Probe]:
    for field in wire.HEADER_FIELDS:
        yield Probe(f"header.{field}", f"`{field}` of a header is changed on the way", _flipped_header(field))
    yield Probe("header.truncated", "a header is cut off after its fields", _truncated)
    yield Probe("header.meta_byte", "a byte of meta is changed on the way", _flipped_meta)
    for key in ("conditioning_embeds", "denoising_step_list", "latents"):
        yield Probe(f"payload.{key}", f"a byte of `{key}` is changed on one rank", _flipped_payload(key))
    for age, by in (("newer", 1), ("older", -1)):
        yield Probe(f"version.header.{age}", f"a header comes from {age} build", _other_version(by))


def _flipped_header(field: str) -> Callable[[], str]:
    at = wire.HEADER_FIELDS.index(field)

    def run() -> str:
        packet = prepared().packet.clone()
        packet[at] ^= 1 << 40
        shown = {"header_digest": "header_digest", "magic": "magic"}.get(field, "")
        return _rejected(shown, packet)

    return run


def _truncated() -> str:
    packet = prepared().packet.clone()
    packet[len(wire.HEADER_FIELDS) + 1 :] = 0
    return _rejected("meta_digest", packet)


def _flipped_meta() -> str:
    packet = prepared().packet.clone()
    packet[len(wire.HEADER_FIELDS)] ^= 1
    return _rejected("meta_digest", packet)


def _flipped_payload(key: str) -> Callable[[], str]:
    def run() -> str:
        sound = prepared()
        slot = next(slot for slot in wire.slots(sound.envelope.meta.tensor_specs) if slot.spec.key == key)
        payload = sound.payload.clone()
        payload[slot.start] ^= 1
        return _rejected(key, sound.packet, payload)

    return run


def _other_version(by: int) -> Callable[[], str]:
    def run() -> str:
        packet = prepared().packet.clone()
        packet[wire.HEADER_FIELDS.index("tp_envelope_version")] += by
        return _rejected("tp_envelope_version", _resigned(packet))

    return run


# ── parity and acks ─────────────────────────────────────────────────────────────────────────────────


POSTURE = parity.Posture(
    dtype="bfloat16",
    attention_backend="sdpa",
    kv_bias_backend="sdpa",
    compile="off",
    recompute_schedule="never",
    flags={"a_flag_that_gates_a_collective": "off"},
)


def _of_parity() -> Iterator[Probe]:
    facts = parity.own_facts(TP_V1_1, 3, POSTURE.facts)
    for key in facts:
        yield Probe(f"parity.{key}", f"`{key}` differs on one rank", _differs(facts, key))
    yield Probe("parity.weights", "two ranks hold the same shard of the weights", _same_shard)


def _differs(facts: Mapping[str, str], key: str) -> Callable[[], str]:
    def run() -> str:
        other = "999" if facts[key].isdigit() else "another"
        records = [parity.pack(facts), parity.pack(facts), parity.pack({**facts, key: other})]
        outcome = parity.diff(records) if len(parity.project(records)) > 1 else None
        text = _named(key, outcome, "parity", (2,))
        found = [(d.values, d.usual) for d in outcome.differences if d.field == key] if outcome else []
        if found != [((other[:80],), facts[key][:80])]:
            raise Unnoticed(f"parity does not say who has what: {text}")
        return text

    return run


def _same_shard() -> str:
    facts = parity.own_facts(TP_V1_1, 3, POSTURE.facts)
    records = [parity.pack(facts, {"weights.shard": mark}) for mark in ("a", "b", "a")]
    outcome = parity.diff(records) if len(parity.project(records)) > 1 else None
    return _named("weights.shard", outcome, "parity", (0, 2))


def _of_acks() -> Iterator[Probe]:
    for name in Ack.__struct_fields__:
        yield Probe(f"ack.{name}", f"one rank's ack has another `{name}`", _odd_ack(name))


def _odd_ack(name: str) -> Callable[[], str]:
    def run() -> str:
        book, values = AckBook((11, 22, 33)), dict.fromkeys(Ack.__struct_fields__, 5)
        sound = [Ack(**values | {"weights_fingerprint": shard}) for shard in book.shards]
        odd = [*sound[:2], msgspec.structs.replace(sound[2], **{name: 6})]
        if len(book.project([wire.pack_ack(ack) for ack in sound], cut=True)) != 1:
            raise Unnoticed("acks that agree are told apart")
        records = [wire.pack_ack(ack) for ack in odd]
        if len(book.project(records, cut=True)) == 1:
            raise Unnoticed(f"rank0 lets it pass; it must name `{name}`")
        return _named(f"ack.{name}", book.diff(sound[0], records, cut=True), "rank0", (2,))

    return run
