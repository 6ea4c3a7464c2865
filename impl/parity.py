"""Start-up parity: what must not differ by rank, exchanged before the first header and compared per key.

Left out: collecting the facts of a user's own pipeline; they hand them in.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import msgspec
import torch

from ..errors import UsageError
from ..model.tables import Protocol
from . import digest
from .envelope import TP_ENVELOPE_VERSION, TP_PLAN
from .wire import ACK_VERSION, WIRE_VERSION

PARITY_BYTES = 8192
"""Size of a rank's record on the wire, its length included. Facts are some 40 short strings."""

Facts = Mapping[str, str]


def own_facts(protocol: Protocol, world: int, extra: Facts) -> dict[str, str]:
    """This rank's facts: versions, tables and whatever the pipeline adds (`extra`: dtypes, backends, flags)."""
    return {
        "tp_plan": TP_PLAN,
        "tp_envelope_version": str(TP_ENVELOPE_VERSION),
        "header_version": str(WIRE_VERSION),
        "ack_version": str(ACK_VERSION),
        "protocol": protocol.name,
        "tables": protocol.digest,
        "world_size": str(world),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **extra,
    }


def pack(facts: Facts) -> torch.Tensor:
    """uint8[PARITY_BYTES]: 4 bytes of length, then the facts as canonical JSON."""
    data = msgspec.json.encode(dict(sorted(facts.items())))
    if len(data) + 4 > PARITY_BYTES:
        raise UsageError(f"parity facts are {len(data)} bytes", do=f"keep them under {PARITY_BYTES - 4}")
    raw = len(data).to_bytes(4, "little") + data
    return torch.frombuffer(bytearray(raw.ljust(PARITY_BYTES, b"\0")), dtype=torch.uint8)


def unpack(record: torch.Tensor) -> dict[str, str]:
    """The facts of a record; what is no record is one fact that nobody shares."""
    raw = record.numpy().tobytes()
    size = int.from_bytes(raw[:4], "little")
    try:
        return msgspec.json.decode(raw[4 : 4 + size], type=dict[str, str])
    except msgspec.DecodeError as error:
        return {"record": f"unreadable: {error}"}


def project(records: Sequence[torch.Tensor]) -> frozenset[str]:
    """The digests of the distinct records, as the table's guard compares them."""
    return frozenset(digest.to_hex(digest.of_tensor(record)) for record in records)


def diff(records: Sequence[torch.Tensor]) -> str:
    """One clause for each key that differs: `compile: rank0 'off', rank2 'on'`."""
    facts = [unpack(r) for r in records]
    clauses = []
    for key in sorted(set().union(*facts)):
        values = [f.get(key) for f in facts]
        if len(set(values)) > 1:
            common = max(set(values), key=values.count)
            odd = [f"rank{n} has {v!r}" for n, v in enumerate(values) if v != common]
            clauses.append(f"`{key}`: {', '.join(odd)}, the others {common!r}")
    return "; ".join(clauses)
