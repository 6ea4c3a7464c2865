"""Drift on one real rank, weights, caches or clock: caught in the same chunk, by a message that names the rank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from genlock.errors import Exit
from genlock.impl.scenario import Chunk, Scenario
from real_ranks import Ranks, inject

STEPS = Scenario(tuple(Chunk(f"scene {n // 6}", hard_cut=n == 6) for n in range(8)))
"""The ring evicts from chunk 4 on; a hard cut in chunk 7."""
DRIFTS = {
    "OM-12,chunk=2": (True, "weight `blocks.0.ffn.up` has digest"),
    "OM-12,chunk=5": (True, "weight `blocks.0.ffn.up` has digest"),
    "OM-12,chunk=7": (False, "ack.weights_fingerprint"),
    "FM-12,chunk=2": (False, "ack.local_end_index = 2, "),
    "FM-12,chunk=4": (False, "ack.local_end_index = 2, "),  # the slot of the newest frame is as it should be
    "FM-12,chunk=6": (False, "ack.local_end_index = 2, "),
    "FM-12,chunk=3,kind=text": (True, "cross-attention was reset, and no plan has told it"),
    "FM-13,chunk=3": (True, "start frame is 5, expected 4"),
    "FM-13,chunk=7": (True, "start frame is 1, expected 0"),
}
"""For each: whether the rank finds it by itself, or rank0 in its ack; and what the message says."""


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    zygote = Ranks()
    yield zygote
    zygote.close()


@pytest.mark.parametrize("fault", DRIFTS)
def test_drift_is_caught_in_the_same_chunk_and_names_the_rank(ranks: Ranks, tmp_path: Path, fault: str) -> None:
    wrong, (itself, text) = 2, DRIFTS[fault]
    injected = inject(f"{fault},rank={wrong}")
    ended = ranks.run(tmp_path, STEPS, injected)
    finder = wrong if itself else 0
    assert ended.statuses[finder] == Exit.CONTRACT
    assert Exit.OK not in ended.statuses
    message = ended.messages()[finder]
    assert text in message
    assert f"rank{wrong}" in message
    assert {e.chunk for t in ended.traces for e in t.events if e.transition == "generate"} <= set(
        range(1, injected.chunk + 1)
    ), "no rank went on to another chunk"
    found = ended.replayed()
    assert (found.verdict, found.culprits) == ("divergent", (wrong,))
