"""Compares what ranks say at the end of a chunk: records, the table's terms, and the differences.

All ranks of a chunk must say the same, but for the fingerprint of their weights: that must be what each rank
itself gave at start-up. Left out: how an ack travels (`wire`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ...errors import ContractViolation
from ...model.protocols import tp_values as values
from ...traces.outcome import Code, Difference, Outcome
from . import digest, wire
from .wire import Ack

UNREADABLE = values.Ack(-1, -1, -1, -1)


class AckBook:
    """Knows what each rank must say. `shards` are the weight fingerprints of start-up by rank, where there are any."""

    def __init__(self, shards: Sequence[int] = ()) -> None:
        self.shards = tuple(shards)

    def expected(self, cut: bool, rank: int) -> int:
        """Return what the ack of `rank` must have as `weights_fingerprint`; `cut`: in a chunk with `init_cache`."""
        return self.shards[rank] if cut and self.shards else 0

    def state(self, ack: Ack, cut: bool, rank: int) -> int:
        """Return an int64 digest of what an ack of `rank` says beyond ids and counts, equal on ranks in lockstep."""
        return digest.chain(
            0,
            ack.sequence_hash,
            ack.global_end_index,
            ack.local_end_index,
            ack.current_start_frame,
            ack.output_digest,
            ack.weights_fingerprint == self.expected(cut, rank),
        )

    def project(self, records: Sequence[torch.Tensor], cut: bool) -> frozenset[values.Ack]:
        """Return the acks of all ranks in the table's terms: one where they agree."""
        if not cut and all(torch.equal(record, records[0]) for record in records[1:]):
            return frozenset({self._project(records[0], cut, 0)})  # as it should be, and no rank has marks of its own
        return frozenset(self._project(record, cut, rank) for rank, record in enumerate(records))

    def diff(self, mine: Ack, records: Sequence[torch.Tensor], cut: bool) -> Outcome:
        """Return each field that is not as it must be, and the ranks that have it so. `mine` is rank0's own ack."""
        clauses = [c for rank, record in enumerate(records) for c in self._clauses(mine, record, cut, rank)]
        fields = dict.fromkeys(difference.field for difference, _ in clauses)
        differences = tuple(_merged([d for d, _ in clauses if d.field == field]) for field in fields)
        ranks = tuple(sorted({rank for d in differences for rank in d.ranks}))
        return Outcome(Code.ACKS, ranks, next(iter(fields), ""), "; ".join(text for _, text in clauses), differences)

    def _project(self, record: torch.Tensor, cut: bool, rank: int) -> values.Ack:
        try:
            ack = wire.unpack_ack(record)
        except ContractViolation:
            return UNREADABLE
        ids = (ack.call_id, ack.chunk_index, ack.cache_epoch)
        return values.Ack(*ids, ack.observed_generator_calls, self.state(ack, cut, rank))

    def _clauses(self, mine: Ack, record: torch.Tensor, cut: bool, rank: int) -> Iterator[tuple[Difference, str]]:
        try:
            theirs = wire.unpack_ack(record)
        except ContractViolation as error:
            yield Difference("ack", (rank,)), f"rank{rank}: {error}"
            return
        for problem in wire.ack_problems(mine, theirs):
            usual = str(getattr(mine, problem.field.removeprefix("ack.")))
            difference = Difference(problem.field, (rank,), (str(problem.value),), usual)
            yield difference, f"rank{rank} {problem.field} = {problem.value}, {problem.text}"
        given, expected = theirs.weights_fingerprint, self.expected(cut, rank)
        if given != expected:
            value, usual = digest.to_hex(given), digest.to_hex(expected)
            text = f"rank{rank} ack.weights_fingerprint = {value}, at start-up it was {usual}: its weights have changed"
            yield Difference("ack.weights_fingerprint", (rank,), (value,), usual), text


def _merged(differences: Sequence[Difference]) -> Difference:
    """Return the differences of one field, one of each rank, as one."""
    ranks = tuple(rank for d in differences for rank in d.ranks)
    values = tuple(value for d in differences for value in d.values)
    return differences[0]._replace(ranks=ranks, values=values)
