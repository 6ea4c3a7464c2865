"""Start-up parity: every key of the contract, compared per key and per rank; versions both ways; weight shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from genlock.errors import ContractViolation, ParityMismatch, UsageError
from genlock.impl.chunk import digest, parity
from genlock.impl.chunk.parity import Fingerprint, Posture
from genlock.impl.chunk.schema import Mode
from genlock.impl.rank.roles import SHARD, Settings
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.traces.outcome import Code, Difference
from hypothesis import given
from hypothesis import strategies as st
from simulated import RANKS, Job, fields

POSTURE: dict[str, Any] = {
    "dtype": "bfloat16",
    "attention_backend": "flash",
    "kv_bias_backend": "math",
    "compile": "off",
    "recompute_schedule": "every 4 chunks",
}


def facts(**flags: str) -> dict[str, str]:
    return parity.own_facts(TP_V1_1, 3, Posture(**POSTURE, flags=flags).facts)


# ── what is compared ────────────────────────────────────────────────────────────────────────────────

CONTRACT = {
    "tp_plan": ["tp_plan"],
    "RNG": ["tp_rng_policy"],
    "envelope version": ["tp_envelope_version", "header_version", "ack_version", "trace_version", "parity_version"],
    "protocol digest": ["tables", "protocol"],
    "world size": ["world_size"],
    "dtypes": ["dtype"],
    "attention and KV-bias backend as resolved": ["attention_backend", "kv_bias_backend"],
    "compile on/off and mode": ["compile"],
    "recompute schedule": ["recompute_schedule"],
    "digests": ["digest_every", "digest_sample", "digest_output"],
    "fingerprints": ["weights_shard", "weights_replica"],
    "test hooks": ["flag.test_hook"],
    "conditioning mode": ["conditioning"],
    "library versions": ["python", "torch", "cuda", "msgspec", "numpy", "xxhash"],
}


def test_every_key_of_the_contract_is_in_the_record() -> None:
    own = Settings(facts(test_hook="off"), fingerprint=lambda: Fingerprint(1, 2))
    record = parity.unpack(own.record())
    assert set(record.facts) == {key for keys in CONTRACT.values() for key in keys}
    assert set(record.marks) == {SHARD}


@pytest.mark.parametrize("name", [*POSTURE, "flag.kernel"])
@pytest.mark.parametrize("value", ["auto", "AUTO"])
def test_nothing_may_be_auto(name: str, value: str) -> None:
    flags = {"kernel": value} if name.startswith("flag.") else {}
    posture = Posture(**(POSTURE if flags else {**POSTURE, name: value}), flags=flags)
    with pytest.raises(UsageError, match=f"`{name}` is `{value}`; say what it resolved to"):
        _ = posture.facts


def test_facts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="parity facts are"):
        parity.pack({"long": "x" * parity.PARITY_BYTES})


# ── the difference, per key and per rank ────────────────────────────────────────────────────────────

FACTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("uvw"), max_size=6)


@given(st.lists(FACTS, min_size=2, max_size=5))
def test_every_key_that_differs_is_named_with_its_ranks_and_no_other(given_facts: list[dict[str, str]]) -> None:
    records = [parity.pack(f) for f in given_facts]
    differing = {k for k in set().union(*given_facts) if len({f.get(k) for f in given_facts}) > 1}
    outcome = parity.diff(records)
    clauses = outcome.text.split("; ") if outcome.text else []
    assert {d.field for d in outcome.differences} == differing
    assert (len(parity.project(records)) == 1) == (not differing)
    for difference, clause in zip(outcome.differences, clauses, strict=True):
        values = [f.get(difference.field) for f in given_facts]
        usual = max(dict.fromkeys(values), key=values.count)
        odd = {rank: value for rank, value in enumerate(values) if value != usual}
        assert difference.ranks == tuple(odd)
        assert difference.values == tuple(value or "" for value in odd.values())
        assert (difference.usual, difference.alike) == (usual or "", False)
        assert clause.startswith(f"`{difference.field}`: ")
        for rank, value in enumerate(values):
            assert (f"rank{rank} has {value!r}" in clause) == (value != usual)
        assert f"the others {usual!r}" in clause
    assert outcome.ranks == tuple(sorted({rank for d in outcome.differences for rank in d.ranks}))


def test_a_value_that_reads_like_another_rank_accuses_nobody() -> None:
    records = [parity.pack({"compile": value}) for value in ("off", "off", "rank0 has 'on', as rank0 has it")]
    assert parity.diff(records).ranks == (2,)


def test_equal_marks_name_the_ranks_that_share_them() -> None:
    records = [parity.pack({}, {"shard": mark}) for mark in ("a", "b", "a")]
    outcome = parity.diff(records)
    assert (outcome.code, outcome.ranks) == (Code.PARITY, (0, 2))
    assert outcome.differences == (Difference("shard", (0, 2), ("a", "a"), alike=True),)


def test_of_two_ranks_that_differ_all_say_the_same() -> None:
    records = [parity.pack({"compile": "off"}), parity.pack({"compile": "on"})]
    assert parity.diff(records).text == "`compile`: rank1 has 'on', the others 'off'"


@pytest.mark.parametrize("newer", [0, 2], ids=["rank0", "worker"])
@pytest.mark.parametrize("key", parity.VERSIONS[1:])
def test_a_version_that_differs_says_both_and_who_is_newer(key: str, newer: int) -> None:
    odd: list[Mapping[str, str]] = [{}, {}, {}]
    odd[newer] = {key: "10"}
    with pytest.raises(ParityMismatch) as caught:
        Job(facts=odd)
    assert f"`{key}`: rank{newer} has '10', the others '{facts()[key]}'" in str(caught.value)
    assert (caught.value.code, caught.value.field, caught.value.ranks) == (Code.PARITY, key, (newer,))
    assert f"rank{newer} is newer: restart all ranks on one version" in str(caught.value)


def test_a_record_of_another_version_is_known_by_its_version_alone() -> None:
    records = [parity.pack(facts()) for _ in range(3)]
    records[1][len("GENLOCKP")] = 9
    assert parity.diff(records).text == (
        "`parity_version`: rank1 has '9', the others '1' (rank1 is newer: restart all ranks on one version)"
    )
    assert len(parity.project(records)) > 1


@given(st.binary(max_size=64), st.booleans())
def test_what_is_no_record_is_never_taken_for_one(data: bytes, begins: bool) -> None:
    raw = (b"GENLOCKP" + (1).to_bytes(4, "little") if begins else b"") + data
    record = torch.frombuffer(bytearray(raw.ljust(parity.PARITY_BYTES, b"\0")), dtype=torch.uint8)
    found = parity.unpack(record)
    assert found.facts.keys() & {"record", "parity_version"} or found == parity.Record({}, {})
    assert len(parity.project([parity.pack(facts()), record])) > 1


def test_a_flag_of_the_settings_cannot_be_forgotten() -> None:
    """Digest cadence, conditioning mode and fingerprints go into the record by themselves."""
    own = facts()
    base = parity.unpack(Settings(own).record()).facts
    for changed in (
        Settings(own, digests=digest.Policy(every=2)),
        Settings(own, digests=digest.Policy(sample=4096)),
        Settings(own, digests=digest.Policy(output=False)),
        Settings(own, mode=Mode.OPTIMIZE),
        Settings(own, fingerprint=lambda: Fingerprint(1, 2)),
    ):
        assert parity.unpack(changed.record()).facts != base


# ── weights ─────────────────────────────────────────────────────────────────────────────────────────


class Weighted(Job):
    """A job whose ranks have weights: `shards` and `replicas` are their fingerprints, and may change."""

    def __init__(self, shards: list[int], replicas: list[int] | None = None) -> None:
        self.shards, self.replicas = shards, replicas or [7] * RANKS
        super().__init__(settings_of=self._settings)

    def _settings(self, rank: int, own: Mapping[str, str]) -> Settings:
        return Settings(own, fingerprint=lambda: Fingerprint(self.shards[rank], self.replicas[rank]))


def test_shards_that_are_equal_are_refused_at_start_up() -> None:
    with pytest.raises(ParityMismatch, match=r"`weights_shard`: rank0 and rank2 have the same"):
        Weighted([5, 6, 5])


def test_weights_that_every_rank_holds_in_full_must_be_equal() -> None:
    with pytest.raises(ParityMismatch, match=r"`weights_replica`: rank1 has '0000000000000008'"):
        Weighted([1, 2, 3], [7, 8, 7])


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_changed_weight_is_found_at_the_next_init_cache_and_names_its_rank(rank: int) -> None:
    job = Weighted([1, 2, 3])
    job.run(job.rank0.chunk(fields(init_cache=True)))
    job.shards[rank] = 99
    job.run(job.rank0.chunk(fields()))
    with pytest.raises(ContractViolation) as caught:
        job.run(job.rank0.chunk(fields(init_cache=True)))
    assert f"rank{rank} ack.weights_fingerprint = {digest.to_hex(99)}" in str(caught.value)
    assert "its weights have changed" in str(caught.value)
    assert str(caught.value).count("weights_fingerprint") == 1


def test_every_rank_knows_the_shards_of_all() -> None:
    job = Weighted([1, 2, 3])
    job.simulation.run()
    assert [role.acks.shards for role in (job.rank0, *job.workers)] == [(1, 2, 3)] * RANKS
