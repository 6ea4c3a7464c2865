"""The break-it matrix on real processes: what is injected, and the fast, named failure that must follow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from genlock.errors import Exit
from genlock.impl import scenario
from genlock.impl.faults import inject as faults
from genlock.impl.scenario import Chunk, Heartbeat, Scenario
from genlock.model.protocols.tp_v1_1 import SCHEDULE
from real_ranks import Ended, Ranks, inject

OK, CONTRACT, PEER, PARITY = (int(e) for e in (Exit.OK, Exit.CONTRACT, Exit.PEER_DIED, Exit.PARITY))


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    zygote = Ranks()
    yield zygote
    zygote.close()


# ── refused in preflight: nothing is sent, and the run goes on ──────────────────────────────────────

REFUSED = {
    "OM-01": ("`meta.base_seed`", "lambda"),
    "OM-02": ("`latents`", "bits16"),
    "OM-03": ("`meta.tp_expected_generator_calls`", "tp_num_denoise_steps=4"),
    "OM-10": ("`context_frames_override`", "no fallback"),
    "OM-14": ("`meta.height`", "-1"),
}
"""For each: what the refusal names."""


@pytest.fixture(scope="module")
def refusals(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A good chunk, then after each spoilt chunk a good one, with a heartbeat between."""
    steps: list[scenario.Step] = [Chunk()]
    for name in REFUSED:
        steps += [Chunk(spoil=name), Heartbeat(), Chunk(prompt=name)]
    return ranks.run(tmp_path_factory.mktemp("refused"), Scenario(tuple(steps)))


def test_no_refusal_ends_the_run_or_is_seen_by_a_worker(refusals: Ended) -> None:
    assert (refusals.statuses, refusals.causes()) == ([OK] * 3, ["stopped"] * 3)
    assert len(refusals.said) == len(REFUSED)
    for rank in (1, 2):
        assert refusals.events(rank, "accept_infer") == 1 + len(REFUSED)
        assert refusals.events(rank, "receive_header") == 1 + 2 * len(REFUSED) + 1
    assert refusals.replayed().verdict == "conforming"


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_field_value_call_and_chunk(refusals: Ended, name: str) -> None:
    line = refusals.said[list(REFUSED).index(name)]
    for word in (*REFUSED[name], "call_id=", "chunk_index=", "nothing was sent", "preflight step"):
        assert word in line


def test_om_14_the_refused_hard_cut_still_happens_and_epochs_have_no_gap(refusals: Ended) -> None:
    for trace in refusals.traces:
        epochs = list(dict.fromkeys(e.epoch for e in trace.events))
        assert epochs == [0, 1, 2], "the first chunk's own cut, and the one that was refused at first"
    assert refusals.traces[0].header.world == 3


def test_a_chunk_takes_header_payload_calls_and_ack_and_no_other_collective(refusals: Ended) -> None:
    issued = [e.transition for e in refusals.traces[1].events if e.edge == "enter"]
    chunk = ["receive_header", "receive_payload", *["generate"] * 4, "send_ack"]
    assert issued[:8] == ["exchange_parity", *chunk]
    assert issued[8:-1] == [*["receive_header"], *chunk] * len(REFUSED), "heartbeat, then chunk"
    assert {op.name for op in SCHEDULE} == {"parity", "header", "payload", "generate", "ack"}


# ── refused at start-up ─────────────────────────────────────────────────────────────────────────────

DIFFERS = {
    "OM-04": "`tp_plan`: rank1 has 'v0_full_pipeline', the others 'v1_generator_only'",
    "OM-05": "`flag.test_hook`: rank1 has 'on', the others 'off'",
    "C-01": "`compile`: rank1 has 'inductor, max-autotune', the others 'off'",
    "C-04": "`attention_backend`: rank1 has 'flash', the others 'math'",
}


def no_header_was_sent(ended: Ended, failure_mode: str) -> None:
    assert ended.statuses == [PARITY] * len(ended.statuses)
    for trace in ended.traces:
        assert {e.transition for e in trace.events} == {"exchange_parity", "parity_differs", "abort"}
    found = ended.replayed()
    assert (found.verdict, found.failure_mode) == ("divergent", failure_mode)


@pytest.mark.parametrize("name", DIFFERS)
def test_parity_names_key_rank_and_both_values_on_every_rank(ranks: Ranks, tmp_path: Path, name: str) -> None:
    ended = ranks.run(tmp_path, scenario.default(1), inject(name))
    no_header_was_sent(ended, scenario.FAULTS[name].failure_mode)
    assert all(DIFFERS[name] in message for message in ended.messages().values())


@pytest.mark.parametrize("newer", [0, 1], ids=["rank0", "worker"])
def test_a_newer_version_on_either_side_is_refused_with_both_versions(ranks: Ranks, tmp_path: Path, newer: int) -> None:
    ended = ranks.run(tmp_path, scenario.default(1), ranks=2, facts={newer: {"tp_envelope_version": "2"}})
    no_header_was_sent(ended, "FM-01")
    for message in ended.messages().values():
        ours, theirs = ("'2'", "'1'") if newer == 0 else ("'1'", "'2'")
        assert f"`tp_envelope_version`: rank1 has {theirs}, the others {ours}" in message
        assert f"rank{newer} is newer: restart all ranks on one version" in message


# ── poisoned in the same chunk ──────────────────────────────────────────────────────────────────────


def poisoned(ended: Ended, *found_by: int, culprits: tuple[int, ...] = ()) -> None:
    """Nobody is left, nobody ends well, and replay blames the right ranks (those that found it, unless told)."""
    assert OK not in ended.statuses
    assert all(ended.statuses[rank] == CONTRACT for rank in found_by)
    found = ended.replayed()
    assert found.verdict == "divergent"
    assert found.culprits
    assert set(found.culprits) <= set(culprits or found_by)


@pytest.mark.parametrize(("kind", "made"), [("more", 4), ("fewer", 3)])
def test_om_03_a_worker_that_miscounts_dies_at_its_own_assertion(
    ranks: Ranks, tmp_path: Path, kind: str, made: int
) -> None:
    ended = ranks.run(tmp_path, scenario.default(4), inject(f"OM-03,rank=1,kind={kind}"))
    poisoned(ended, 1)
    last = [e for e in ended.traces[1].events if e.chunk == 3]
    assert sum(e.transition == "generate" and e.edge == "enter" for e in last) == made, "no extra collective"
    assert "miscount" in [e.transition for e in last]
    assert f"generator calls {made} of 4" in ended.messages()[1]
    assert "it does not hold that observed calls" in ended.messages()[1]
    assert ended.replayed().failure_mode == "FM-02"


@pytest.mark.parametrize("rank", [1, 2])
def test_om_11_a_flipped_byte_names_rank_and_field_in_the_same_chunk(ranks: Ranks, tmp_path: Path, rank: int) -> None:
    ended = ranks.run(tmp_path, scenario.default(4), inject(f"OM-11,rank={rank}"))
    poisoned(ended, rank)
    message = ended.messages()[rank]
    for word in (f"rank{rank}", "`conditioning_embeds`", "has digest", "rank0 sent"):
        assert word in message
    assert max(e.chunk for e in ended.traces[rank].events) == 3
    assert not [e for e in ended.traces[rank].events if e.chunk == 3 and e.transition == "generate"]


def test_om_12_a_changed_weight_names_its_rank_at_the_hard_cut(ranks: Ranks, tmp_path: Path) -> None:
    ended = ranks.run(tmp_path, scenario.default(4), inject("OM-12,rank=2"))
    poisoned(ended, 0, culprits=(2,))
    message = ended.messages()[0]
    assert "rank2 ack.weights_fingerprint" in message
    assert "its weights have changed" in message
    assert "output_digest" not in message, "a slice's error is summed into every rank alike"


HEADERS = {"stale": "`call_id` = 1", "duplicate": "`call_id` = 3", "truncated": "`meta_digest`"}


@pytest.mark.parametrize("kind", HEADERS)
def test_om_16_a_bad_header_is_rejected_by_name_and_poisons_the_run(ranks: Ranks, tmp_path: Path, kind: str) -> None:
    steps = Scenario((Chunk(), Heartbeat(), Chunk(), Chunk(), Chunk()))
    ended = ranks.run(tmp_path, steps, inject(f"OM-16,kind={kind}"))
    poisoned(ended, 1, 2, culprits=(0,))
    for rank in (1, 2):
        message = ended.messages()[rank]
        assert "reject_header" in message
        assert HEADERS[kind] in message
        assert ended.events(rank, "accept_infer") == 2
    assert ended.replayed().failure_mode == "FM-10"


# ── the matrix ──────────────────────────────────────────────────────────────────────────────────────


def test_every_fault_has_a_title_a_making_and_a_test() -> None:
    tested = {*REFUSED, *DIFFERS, "OM-03", "OM-11", "OM-12", "OM-15", "OM-16", "FM-04"}
    assert set(faults.FAULTS) == set(scenario.FAULTS)
    assert tested <= set(scenario.FAULTS)
    assert {name for name, fault in scenario.FAULTS.items() if fault.refused} == set(REFUSED)


def test_a_run_in_optimize_mode_conforms_and_sends_conditioning_only_with_a_new_epoch(
    ranks: Ranks, tmp_path: Path
) -> None:
    steps = (Chunk("a"), Chunk("a"), Chunk("b"), Chunk("b", hard_cut=True), Chunk("b"), Chunk("b", recompute=True))
    full = ranks.run(tmp_path / "full", Scenario(steps))
    lean = ranks.run(tmp_path / "lean", Scenario(steps, conditioning="optimize", digest_every=2))
    for ended in (full, lean):
        assert ended.statuses == [OK] * 3
        assert ended.replayed().verdict == "conforming"

    def sizes(ended: Ended) -> list[int | None]:
        return [e.numel for e in ended.traces[1].events if e.transition == "receive_payload" and e.edge == "enter"]

    whole, part = sizes(full), sizes(lean)
    sent = [a == b for a, b in zip(whole, part, strict=True)]
    assert sent == [True, False, True, True, False, False], "new prompt, or hard cut"
    [saved] = {a - b for a, b in zip(whole, part, strict=True) if a != b and a and b}
    assert saved == 16 * 64 * 2, "bfloat16[1, 16, 64]"
