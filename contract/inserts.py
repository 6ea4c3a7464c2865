"""Writes pages that are pasted into other manuals: each stands alone.

Left out: what the tables say (`pages.py`).
"""

from __future__ import annotations

from typing import NamedTuple

from .claims import HAZARDS, P0, P1, Claim
from .evidence import Ledger
from .ship import Status, judge

LINES: dict[str, Claim] = {line.key: line for line in (*P0, *P1, *HAZARDS)}


class Insert(NamedTuple):
    """Holds a title, rules in plain words, and the lines of the contract that back them."""

    title: str
    rules: tuple[str, ...]
    backed_by: tuple[str, ...]

    def page(self, ledger: Ledger) -> str:
        """Return the insert as Markdown."""
        rules = "\n".join(f"- {rule}" for rule in self.rules)
        backed = "\n".join(_backing(judge(LINES[key], ledger).status, LINES[key]) for key in self.backed_by)
        where = "**Backed by** (see `p0.md`, `p1.md`, `hazards.md` of the contract)"
        return "\n\n".join([f"# {self.title}", rules, where, backed])


def _backing(status: Status, line: Claim) -> str:
    return f"- {line.key} ({status.value}): {line.text}"


INSERTS: dict[str, Insert] = {
    "framing-and-versioning": Insert(
        "Message framing and versions",
        (
            "A chunk is one header packet of fixed size and one payload. The header is int64 fields, then meta "
            "inline, bounded; "
            "the payload is all tensors as one run of bytes, in the order of `(key, index)`.",
            "Fixed size means that a receiver never has to guess: whatever it reads next is a header or a declared "
            "payload.",
            "Magic, versions, lengths and digests are checked before meta is decoded, and meta before anything is "
            "allocated.",
            "Meta has one canonical encoding; bytes that decode and encode to others are refused. Nothing is pickled.",
            "Header, envelope, ack, parity record and trace have a version each. Newer and older are both fatal, at "
            "start-up, "
            "with both versions named. No default stands in for a missing field.",
        ),
        ("P0-01", "P0-06", "P0-11", "P0-13"),
    ),
    "deadlock-patterns": Insert(
        "Deadlock patterns of collectives",
        (
            "A collective pairs by its place in the group's order, not by its meaning: one call too few pairs the "
            "next one "
            "silently, and the wait comes later and elsewhere.",
            "A commitment point is where a peer begins to wait for more from us. Whatever can raise comes before it; "
            "after it an "
            "exception poisons the run.",
            "A flag that is set on one rank and gates a collective is a hang in waiting: compare flags at start-up.",
            "Heartbeats from a second thread interleave with the chunk: the thread that owns the collectives sends "
            "them, or "
            "nobody does.",
            "A root may have left a broadcast that others still wait in: that rank0 went on says nothing about its "
            "peers.",
            "A peer that is alive but does not call is seen by nobody for 10 to 30 minutes by default. Watch "
            "progress, not life.",
        ),
        ("P0-01", "P0-02", "P0-03", "P0-04", "P0-05"),
    ),
    "graceful-shutdown": Insert(
        "Graceful shutdown",
        (
            "Drain: take no more work, finish or give up the chunk, send SHUTDOWN, exit with 0. Anything else is an "
            "abort: crash fast.",
            "The launcher signals every rank at once. A worker holds the signal and waits for SHUTDOWN, for a grace "
            "period.",
            "A peer that has stopped is normal to whoever waits for a header, and a violation in mid-chunk.",
            "A pending collective cannot be unblocked: a rank that aborts leaves with `os._exit`, after its last line.",
        ),
        ("P0-05", "P0-12"),
    ),
    "determinism-across-ranks": Insert(
        "Determinism across ranks",
        (
            "Not bitwise determinism, but fast detection: what is equal by construction is pinned, all else has a "
            "digest.",
            "Compare what was resolved, never `auto`: attention backend, compile mode, dtypes, libraries, flags.",
            "Noise is data: rank0 draws it and broadcasts it. Generators in lockstep drift with the first call too "
            "many.",
            "In bring-up digest every tensor, the cache indices and the output in every chunk. Later every N-th "
            "chunk and sampled "
            "bytes; never the header less.",
            "Fingerprints of different shards must differ: equal ones mean that the baseline itself is broken.",
        ),
        ("P0-03", "P0-06", "P0-09", "P1-04"),
    ),
    "idempotency-and-replay": Insert(
        "Idempotency and replay",
        (
            "`call_id` rises with every action, `chunk_index` with every INFER; a worker refuses what is not newer "
            "than its last.",
            "Ids and epochs move at the commit alone. A refused chunk leaves a gap in `call_id` at most, never in an "
            "epoch.",
            "A duplicate is refused, not ignored: that it came at all means that the ranks are out of step.",
            "A pending hard cut, reset or override survives a refusal.",
        ),
        ("P0-07", "P0-10"),
    ),
    "kv-cache-management": Insert(
        "KV-cache management",
        (
            "Resets are told by a bit, never inferred: `init_cache`, `tp_reset_kv_cache`, `tp_reset_crossattn_cache`.",
            "Ring indices are derived from `current_start_frame`, which is in the envelope; they come back in the ack.",
            "A hard cut raises `cache_epoch` by one; work of an older epoch is refused.",
            "A recompute needs its override tensor. There is no fallback, and the override is cleared when it is read.",
            "Conditioning that changes under a managed cache needs a reset of the cross-attention cache.",
        ),
        ("P0-07", "P0-08", "P0-09", "H-1", "H-3"),
    ),
    "encode-decode-latency": Insert(
        "Latency and chunking of encode and decode on rank0",
        (
            "Workers wait in AWAIT_HEADER while rank0 encodes or decodes: that is no stall, and no deadline of "
            "theirs runs.",
            "No heartbeat can come while rank0 decodes, since the thread that owns the collectives is busy; liveness "
            "is the "
            "guardian's matter.",
            "Only local work is charged: rank0's own decode runs against rank0's own deadline, by phase, warm-up "
            "apart.",
            "Decode and the re-encoding of the anchor come after the ack, so that workers are never left inside a "
            "chunk.",
        ),
        ("P0-05", "P1-05"),
    ),
}
