"""Compares at start-up, key by key, what must not differ by rank; it is exchanged before the first header.

A record has *facts*, which are equal on all ranks, and *marks*, which no two ranks share (the fingerprint of a
weight shard: equal ones mean that the shards are not what they should be). Left out: finding out what a user's
own pipeline has resolved to; they say so in a `Posture`.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import msgspec
import torch

from ...errors import UsageError
from ...model.tables import Protocol
from ...traces.format import FORMAT_VERSION
from ...traces.outcome import Code, Difference, Outcome
from . import digest
from .schema import TP_ENVELOPE_VERSION, TP_PLAN
from .wire import ACK_VERSION, WIRE_VERSION

PARITY_VERSION = 1
TP_RNG_POLICY = "broadcast"
"""The noise travels as data, in `latents`. Another policy is another value here, and a new envelope version."""
PARITY_BYTES = 8192
"""Size of a rank's record on the wire, in every version: records of different versions must still pair."""

_MAGIC = b"GENLOCKP"
_START = len(_MAGIC) + 8
VERSIONS = ("parity_version", "tp_envelope_version", "header_version", "ack_version", "trace_version")
"""Lists the facts that are versions of what travels: of these the message says who is newer."""

Facts = Mapping[str, str]


class Fingerprint(NamedTuple):
    """Holds int64 hashes of a rank's weights: of its own slices, and of what every rank holds in full."""

    shard: int
    replica: int


@dataclass(frozen=True, kw_only=True)
class Posture:
    """Says what a pipeline and its generator resolved to on this rank. Nothing may be `auto`: say what it came to be.

    `compile` is `off` or the mode; `recompute_schedule` is in words; `flags` are all others that gate a
    collective or change numbers: test hooks, kernels, environment variables.
    """

    dtype: str
    attention_backend: str
    kv_bias_backend: str
    compile: str
    recompute_schedule: str
    flags: Facts = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, str]:
        """Return every key with its value. Raises UsageError for `auto`."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "flags"}
        facts = {**named, **{f"flag.{name}": value for name, value in self.flags.items()}}
        for name, value in facts.items():
            if value.lower() == "auto":
                raise UsageError(f"`{name}` is `{value}`", where="parity", do="say what it resolved to on this rank")
        return facts


def own_facts(protocol: Protocol, world: int, extra: Facts) -> dict[str, str]:
    """Return this rank's facts: versions, tables, libraries, and `extra`, e.g. the facts of a `Posture`."""
    return {
        "tp_plan": TP_PLAN,
        "tp_rng_policy": TP_RNG_POLICY,
        "parity_version": str(PARITY_VERSION),
        "tp_envelope_version": str(TP_ENVELOPE_VERSION),
        "header_version": str(WIRE_VERSION),
        "ack_version": str(ACK_VERSION),
        "trace_version": str(FORMAT_VERSION),
        "protocol": protocol.name,
        "tables": protocol.digest,
        "world_size": str(world),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        **{name: _installed(name) for name in ("msgspec", "numpy", "xxhash")},
        **extra,
    }


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


class Record(NamedTuple):
    """Holds what a rank says of itself."""

    facts: Facts
    marks: Facts


def pack(facts: Facts, marks: Facts | None = None) -> torch.Tensor:
    """Return uint8[PARITY_BYTES]: magic, version, length, then facts and marks as canonical JSON.

    Raises UsageError where they are too long.
    """
    data = msgspec.json.encode((dict(sorted(facts.items())), dict(sorted((marks or {}).items()))))
    if len(data) + _START > PARITY_BYTES:
        raise UsageError(f"parity facts are {len(data)} bytes", do=f"keep them under {PARITY_BYTES - _START}")
    raw = _MAGIC + PARITY_VERSION.to_bytes(4, "little") + len(data).to_bytes(4, "little") + data
    return torch.frombuffer(bytearray(raw.ljust(PARITY_BYTES, b"\0")), dtype=torch.uint8)


def unpack(record: torch.Tensor) -> Record:
    """Return what a record says; of another version its version alone, and of what is no record that it is none."""
    return _unpacked(record.cpu().numpy().tobytes())


@lru_cache(maxsize=64)  # each rank asks for all of them three times
def _unpacked(raw: bytes) -> Record:
    if not raw.startswith(_MAGIC):
        return Record({"record": f"none: it begins with {raw[: len(_MAGIC)]!r}"}, {})
    spoken = int.from_bytes(raw[len(_MAGIC) : len(_MAGIC) + 4], "little")
    if spoken != PARITY_VERSION:
        return Record({"parity_version": str(spoken)}, {})
    size = int.from_bytes(raw[len(_MAGIC) + 4 : _START], "little")
    try:
        facts, marks = msgspec.json.decode(raw[_START : _START + size], type=tuple[dict[str, str], dict[str, str]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Record({"record": f"unreadable: {error}"}, {})
    return Record(facts, marks)


def project(records: Sequence[torch.Tensor]) -> frozenset[str]:
    """Return one digest where all is well, as the table's guard asks; more where facts differ, or marks do not."""
    said = [unpack(record) for record in records]
    odd = {digest.to_hex(digest.of_bytes(msgspec.json.encode(sorted(r.facts.items())))) for r in said}
    return frozenset(odd | {f"shared {key}" for key, *_ in _shared(said)})


def diff(records: Sequence[torch.Tensor]) -> Outcome:
    """Return each key that differs, and each shared mark, with the ranks that are odd there.

    Where no value has most ranks for it, the lowest rank's stands for the others.
    """
    said = [unpack(record) for record in records]
    clauses = [*_versions(said), *_differing(said)]
    for key, value, ranks in _shared(said):
        who = " and ".join(f"rank{n}" for n in ranks)
        text = f"`{key}`: {who} have the same, and no two ranks may: each must hold a shard of its own"
        clauses.append((Difference(key, ranks, (_short(value),) * len(ranks), alike=True), text))
    differences = tuple(difference for difference, _ in clauses)
    ranks = tuple(sorted({rank for d in differences for rank in d.ranks}))
    field = differences[0].field if differences else ""
    return Outcome(Code.PARITY, ranks, field, "; ".join(text for _, text in clauses), differences)


Clause = tuple[Difference, str]
"""A difference, and the text of it."""


def _differing(said: Sequence[Record]) -> Iterator[Clause]:
    # a record of another version has nothing else to compare
    comparable = [r.facts for r in said if r.facts.keys() != {"parity_version"}]
    for key in sorted(set().union(*comparable) - set(VERSIONS)):
        values = {n: r.facts.get(key) for n, r in enumerate(said) if r.facts in comparable}
        if len(set(values.values())) > 1:
            yield _odd(key, values)


def _versions(said: Sequence[Record]) -> Iterator[Clause]:
    for key in VERSIONS:
        values = {n: r.facts[key] for n, r in enumerate(said) if key in r.facts}
        spoken = sorted(set(values.values()), key=lambda v: (len(v), v))
        if len(spoken) > 1:
            difference, text = _odd(key, values)
            newest = [f"rank{n}" for n, v in values.items() if v == spoken[-1]]
            do = f"{' and '.join(newest)} {'are' if newest[1:] else 'is'} newer: restart all ranks on one version"
            yield difference, f"{text} ({do})"


def _odd(key: str, values: Mapping[int, str | None]) -> Clause:
    """Return the ranks that do not have what most have; of a tie, what the lowest has, so that all say the same."""
    usual = max(dict.fromkeys(values.values()), key=list(values.values()).count)
    odd = {n: value for n, value in values.items() if value != usual}
    difference = Difference(key, tuple(odd), tuple(_short(value) for value in odd.values()), _short(usual))
    return difference, f"`{key}`: {', '.join(f'rank{n} has {v!r}' for n, v in odd.items())}, the others {usual!r}"


def _short(value: str | None) -> str:
    return "" if value is None else value[:80]


def _shared(said: Sequence[Record]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield the marks that two ranks have alike: key, value, and those ranks."""
    for key in sorted(set().union(*(r.marks for r in said))):
        holders: dict[str, list[int]] = {}
        for n, record in enumerate(said):
            if key in record.marks:
                holders.setdefault(record.marks[key], []).append(n)
        yield from ((key, value, tuple(ranks)) for value, ranks in holders.items() if len(ranks) > 1)
