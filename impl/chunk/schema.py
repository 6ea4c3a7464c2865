"""Defines schema v1 of a chunk's envelope (`tp_plan = v1_generator_only`): its fields, its bounds and its bytes.

`FIELDS` is the schema as a literal table, for the checks and for the documents. Left out: the rules that a chunk
obeys (`rules`), how the bytes travel (`wire`), and what a user may hand in (`preflight`).
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from enum import Enum
from operator import attrgetter
from typing import Annotated, Literal, NamedTuple

import msgspec
import torch

from ...errors import Code, ContractViolation
from ...model.protocols.tp_values import Action
from .digest import dtype_name

TP_PLAN = "v1_generator_only"
TP_ENVELOPE_VERSION = 1

META_MAX_BYTES = 4096
"""Meta travels inline in the header packet, whose size is fixed. Four times what schema v1 needs."""
MAX_TENSORS = 16
"""Schema v1 has four tensors; the rest is room for versions to come."""
MAX_PAYLOAD_BYTES = 256 * 2**20
"""A worker allocates what a header asks for: some fifty times a usual chunk, and no more."""

NO_DIGEST = "0" * 16
"""Stands for a digest that is not known yet; as long as a real one."""


class Mode(Enum):
    """Says how conditioning travels. The same on every rank by start-up parity, hence not in the envelope."""

    BRING_UP = "bring-up"
    """With every chunk."""
    OPTIMIZE = "optimize"
    """When `conditioning_epoch` rises."""


Type = Literal[
    "int64 enum",
    "int64",
    "str",
    "int",
    "bool",
    "float",
    "int64[steps]",
    "bf16/fp16 tensor",
    "bf16/fp16 tensor or explicit None",
    "—",
]
RequiredWhen = Literal[
    "always",
    "INFER",
    "INFER in bring-up mode; in optimize mode iff `conditioning_epoch` rises",
    "optimize mode only",
    "always present; a tensor iff `tp_do_kv_recompute`",
    "forbidden",
]


class Field(NamedTuple):
    """Holds a row of the schema; `tensor` says whether it travels in the payload."""

    name: str
    type: Type
    required_when: RequiredWhen
    why: str
    first_checked: str
    tensor: bool


_HEADER = "worker, on header"
_RANK0_HEADER = "rank0 preflight, worker on header"
_RANK0_META = "rank0 preflight, worker on meta"
_BOTH = "both"
_EMBEDS: RequiredWhen = "INFER in bring-up mode; in optimize mode iff `conditioning_epoch` rises"
_OVERRIDE: RequiredWhen = "always present; a tensor iff `tp_do_kv_recompute`"

# fmt: off
FIELDS: tuple[Field, ...] = (
    Field("action", "int64 enum", "always", "control flow of the receiver", _HEADER, False),
    Field("call_id", "int64", "always", "order, replay boundary, log key", _HEADER, False),
    Field("chunk_index", "int64", "INFER", "plan bookkeeping, output order", _HEADER, False),
    Field("cache_epoch", "int64", "always", "separates cache worlds (hard cuts)",
          "rank0 preflight (bump rule), worker on header", False),
    Field("control_epoch", "int64", "always", "sequencing sanity", _RANK0_HEADER, False),
    Field("tp_plan", "str", "INFER", "chooses the code path; never inferred from which tensors are there",
          _RANK0_META, False),
    Field("tp_envelope_version", "int", "INFER", "schema dispatch; unknown is fatal before any allocation",
          "header, rank0 preflight, worker on meta", False),
    Field("height", "int", "INFER", "geometry of caches and masks", _RANK0_META, False),
    Field("width", "int", "INFER", "geometry of caches and masks", _RANK0_META, False),
    Field("current_start_frame", "int", "INFER", "KV index source of truth", _RANK0_META, False),
    Field("init_cache", "bool", "INFER", "hard cut", _BOTH, False),
    Field("manage_cache", "bool", "INFER", "must not differ by rank", _BOTH, False),
    Field("tp_reset_kv_cache", "bool", "INFER", "reset is told, never inferred", _BOTH, False),
    Field("tp_reset_crossattn_cache", "bool", "INFER", "likewise, on prompt change", _BOTH, False),
    Field("conditioning_embeds_updated", "bool", "INFER", "cross-attention cache life cycle", _BOTH, False),
    Field("kv_cache_attention_bias", "float", "INFER", "soft transition must match", _BOTH, False),
    Field("tp_do_kv_recompute", "bool", "INFER", "adds one generator call", _BOTH, False),
    Field("tp_num_denoise_steps", "int", "INFER", "call count", _BOTH, False),
    Field("tp_expected_generator_calls", "int", "INFER", "belt and braces against FM-02",
          "both, and at the end of phase B", False),
    Field("base_seed", "int", "INFER", "audit trail (diagnostic in bring-up)", _BOTH, False),
    Field("denoising_step_list", "int64[steps]", "INFER", "same timesteps everywhere",
          "both (length = `tp_num_denoise_steps`)", True),
    Field("latents", "bf16/fp16 tensor", "INFER", "randomness travels as data, not as RNG state",
          _BOTH, True),
    Field("conditioning_embeds", "bf16/fp16 tensor", _EMBEDS, "workers cannot encode", _BOTH, True),
    Field("conditioning_epoch", "int64", "optimize mode only",
          "names which conditioning is current; gap or decrease is fatal", _BOTH, False),
    Field("context_frames_override", "bf16/fp16 tensor or explicit None", _OVERRIDE,
          "recompute anchor without a VAE", _BOTH, True),
    Field("video", "—", "forbidden", "workers never get pixels", "rank0 preflight", True),
)
# fmt: on

FIELD = {field.name: field for field in FIELDS}
FORBIDDEN = frozenset(field.name for field in FIELDS if field.required_when == "forbidden")
TENSOR_KEYS = tuple(sorted(field.name for field in FIELDS if field.tensor and field.name not in FORBIDDEN))
DTYPES: dict[Type, tuple[str, ...]] = {
    "int64[steps]": ("int64",),
    "bf16/fp16 tensor": ("bfloat16", "float16"),
    "bf16/fp16 tensor or explicit None": ("bfloat16", "float16"),
}
"""Maps each type to the dtype names that a tensor of it may have."""


class Ids(msgspec.Struct, frozen=True):
    """Holds the header fields that order a call; candidates until the call commits. All count from 0 up."""

    call_id: int
    chunk_index: int
    cache_epoch: int
    control_epoch: int


HEADER_KEYS = ("action", *Ids.__struct_fields__)


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Holds one tensor of the payload. `index` numbers the tensors of a key: always 0 in schema v1."""

    key: str
    index: Annotated[int, msgspec.Meta(ge=0)]
    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    digest: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Meta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds every field that is no tensor, and the manifest of those that are. No field has a default."""

    tp_plan: str
    tp_envelope_version: int
    height: int
    width: int
    current_start_frame: int
    init_cache: bool
    manage_cache: bool
    tp_reset_kv_cache: bool
    tp_reset_crossattn_cache: bool
    conditioning_embeds_updated: bool
    kv_cache_attention_bias: float
    tp_do_kv_recompute: bool
    tp_num_denoise_steps: int
    tp_expected_generator_calls: int
    base_seed: int
    conditioning_epoch: int | None
    tensor_specs: tuple[TensorSpec, ...]
    """Ordered by (key, index): the order of the payload."""
    none_tensors: tuple[str, ...]
    """The tensor fields that are None, by name and in order: an omitted key never stands for None."""

    def spec(self, key: str) -> TensorSpec | None:
        """Return the spec of `key`, or None where no tensor is sent for it."""
        for spec in self.tensor_specs:
            if spec.key == key:
                return spec
        return None


MANIFEST_KEYS = ("tensor_specs", "none_tensors")
META_KEYS = tuple(name for name in Meta.__struct_fields__ if name not in MANIFEST_KEYS)
_plain = attrgetter(*META_KEYS)


class Envelope(msgspec.Struct, frozen=True, eq=False):
    """Holds a chunk as every rank works on it: header fields, meta, and all tensor fields (None is explicit)."""

    action: Action
    ids: Ids
    meta: Meta
    tensors: Mapping[str, torch.Tensor | None]

    def fields(self) -> dict[str, object]:
        """Return every field of the schema by its canonical name, for the generator."""
        ids, plain = msgspec.structs.asdict(self.ids), zip(META_KEYS, _plain(self.meta), strict=True)
        return {"action": self.action, **ids, **dict(plain), **self.tensors}


class Committed(msgspec.Struct, frozen=True):
    """Holds what a rank has committed to so far; all 0 before the first call."""

    call_id: int = 0
    chunk_index: int = 0
    cache_epoch: int = 0
    control_epoch: int = 0
    conditioning_epoch: int = 0

    def after(self, ids: Ids, meta: Meta | None = None) -> Committed:
        """Return what is committed once the call `ids` is; `meta` is that of an INFER, None of any other action."""
        epoch = None if meta is None else meta.conditioning_epoch
        return Committed(
            ids.call_id,
            ids.chunk_index,
            ids.cache_epoch,
            ids.control_epoch,
            self.conditioning_epoch if epoch is None else epoch,
        )


class Problem(NamedTuple):
    """Holds a broken rule: where (`meta.height`, `latents`), what stands there, what is wrong, what to do."""

    field: str
    value: object
    text: str
    do: str = ""


def path(name: str) -> str:
    """Return how messages name a field: `meta.height`, but `latents` and `call_id`."""
    return f"meta.{name}" if name in Meta.__struct_fields__ else name


def encode(meta: Meta) -> bytes:
    """Return the canonical bytes of meta: msgpack, fields in the order of the struct, shortest form of each int."""
    return msgspec.msgpack.encode(meta)


def decode(data: bytes) -> Meta:
    """Invert `encode`. Raises ContractViolation on anything that `encode` would not have written."""
    try:
        meta = msgspec.msgpack.decode(data, type=Meta)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        text, field = f"not meta of schema v{TP_ENVELOPE_VERSION}: {shown(error)}", _field_of(data)
        raise ContractViolation(text, where="meta", code=Code.MESSAGE, field=field) from error
    if encode(meta) != data:
        raise ContractViolation("the bytes are not in canonical form", where="meta", code=Code.MESSAGE, field="meta")
    return meta


def _field_of(data: bytes) -> str:
    """Return the first field of meta that the bytes lack or have of another type; `meta` where they are no mapping."""
    try:
        raw = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return "meta"
    if not isinstance(raw, dict):
        return "meta"
    for field in msgspec.structs.fields(Meta):
        try:
            msgspec.convert(raw[field.name], field.type)
        except (KeyError, msgspec.ValidationError):
            return path(field.name)
    return "meta"


def violation(problem: Problem, where: str, code: Code = Code.RULE) -> ContractViolation:
    """Return a problem as the error that poisons a rank."""
    text = f"`{problem.field}` = {shown(problem.value)}: {problem.text}"
    return ContractViolation(text, where=where, do=problem.do, code=code, field=problem.field)


def version_problem(field: str, theirs: int, ours: int) -> Problem:
    """Return what to say, and to do, where another rank speaks another version."""
    age, who = ("newer", "this rank") if theirs > ours else ("older", "the sender")
    text = f"version {theirs} is {age} than {ours}, the one spoken here"
    return Problem(field, theirs, text, f"update {who}, or restart all ranks on one version")


class _Short(reprlib.Repr):
    def repr1(self, x: object, level: int) -> str:
        # A tensor's own repr reads its data: slow on a device, and fatal where the storage was freed.
        if isinstance(x, torch.Tensor):
            return f"{dtype_name(x.dtype)}{list(x.shape)} on {x.device}"
        return str(x) if isinstance(x, TensorSpec | Exception) else super().repr1(x, level)


_short = _Short()
_short.maxstring = _short.maxother = _short.maxlong = 70


def shown(value: object) -> str:
    """Return a short rendering of anything, on one line, for a message. Never raises, never reads tensor data."""
    try:
        return " ".join(_short.repr(value).split())[:160]
    except Exception:
        return "<a value that cannot be shown>"
