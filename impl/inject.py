"""How faults are made in a real run, by the ids of the break-it matrix.

Left out for now: the rows that need a fault on a worker, in a process or in the launcher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import Refused
from ..model.protocol import Action
from . import preflight, wire
from .envelope import Ids, encode, plan_in
from .operations import Exchange, Moves, Step
from .roles import Rank0, header_of

Fields = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """How a fault is made. `spoil` changes what the application hands to rank0; `build` replaces rank0's code."""

    spoil: Callable[[Fields], Fields]
    build: type[Rank0] = Rank0


class HeaderFirst(Rank0):
    """A broken build (FM-04): the header leaves after preflight step 3, and no monitor stops it."""

    def chunk(self, fields: Mapping[str, object]) -> Moves[torch.Tensor]:
        """One chunk. A refusal in steps 4 and 5 comes when the workers already wait for the payload."""
        asked = yield from self.request(fields)
        try:
            prepared = yield from self.out_of_order(asked)
        except Refused as refusal:
            yield Step("refuse", note=str(refusal))
            raise
        yield Exchange("send_payload", prepared.payload, lambda _: self._payload(prepared))
        output, _ = yield from self.phase_b(prepared.envelope)
        return output

    def out_of_order(self, fields: Mapping[str, object]) -> Moves[preflight.Prepared]:
        """Steps 1 to 3, the header, steps 4 and 5."""
        after = self.monitor.candidate("PREFLIGHTED", "commit")
        ids = Ids(after.call_id, after.chunk_index, after.cache_epoch, after.control_epoch)
        checked = preflight.check_schema(fields, ids, self.committed(), self.settings.mode)
        yield Step("preflight_schema", plan_in(checked.fields))
        parts = preflight.split(checked)
        yield Step("preflight_split")
        encoded = preflight.encode_meta(parts)
        yield Step("preflight_encode")
        packet = wire.pack_header(
            Action.INFER,
            ids,
            meta=encode(encoded.meta),
            tensor_count=len(encoded.tensors),
            payload_nbytes=wire.payload_nbytes(encoded.meta.tensor_specs),
            payload_digest=wire.payload_digest(encoded.meta.tensor_specs),
        )
        yield Step("commit")
        header = header_of(wire.unpack_header(packet), encoded.meta)
        yield Exchange("send_header", packet, lambda _: header)
        typed = preflight.check_dtypes(encoded)
        yield Step("preflight_dtypes")
        return preflight.materialise(typed, self.settings.device)


def _with(**changes: Any) -> Callable[[Fields], Fields]:
    return lambda fields: {**fields, **changes}


def _never_materialised(fields: Fields) -> Fields:
    return {**fields, "latents": torch.empty_like(fields["latents"], device="meta")}


def _raw_bits(fields: Fields) -> Fields:
    return {**fields, "latents": fields["latents"].contiguous().view(torch.bits16)}


def _wrong_count(fields: Fields) -> Fields:
    return {**fields, "tp_expected_generator_calls": fields["tp_expected_generator_calls"] + 1}


def _no_override(fields: Fields) -> Fields:
    calls = fields["tp_num_denoise_steps"] + 1
    recompute = {"tp_do_kv_recompute": True, "tp_expected_generator_calls": calls}
    return {**fields, **recompute, "context_frames_override": None}


def _cut_and_spoil(fields: Fields) -> Fields:
    return {**fields, "init_cache": True, "height": -1}


FAULTS: Mapping[str, Fault] = {
    "OM-01": Fault(_with(base_seed=lambda: 0)),
    "OM-02": Fault(_raw_bits),
    "OM-03": Fault(_wrong_count),
    "OM-10": Fault(_no_override),
    "OM-14": Fault(_cut_and_spoil),
    "FM-04": Fault(_never_materialised, HeaderFirst),
}
"""How each fault of `scenario.FAULTS` is made."""
