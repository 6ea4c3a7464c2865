"""How a failure mode looks in a trace, and what a rank's own word says about whose fault it is.

What left the model is known from the tables alone; which of the known failure modes that is stands here. Left
out: finding it (`explain`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..diagnosis import Divergence
from .replay_rank import NOTHING, REFUSED

SENT_EARLY = ("commit", "send_header")
COUNTING = ("generate", "leave_phase_b", "miscount", "enter_phase_b")
HEADERS = ("reject_header", "receive_header", "send_header", "send_noop", "send_shutdown")
PAYLOADS = ("reject_envelope", "receive_payload", "send_payload")
ACKS = ("send_ack", "collect_acks", "acks_differ")
COMMITTED = ("header", "payload", "generate", "ack")
"""The phases in which peers block for more from a rank, so that they are stranded when it raises."""
STALLED = ("deadline", NOTHING)
WAITING = (*STALLED, "peer_lost")


@dataclass(frozen=True, slots=True)
class _Sign:
    """A failure mode, and how a divergence of it looks."""

    mode: str
    fits: Callable[[Divergence], bool]


SIGNS = (
    _Sign("FM-09", lambda d: d.why.startswith(REFUSED) and "by thread" in d.observed),
    _Sign("FM-08", lambda d: d.why.startswith(REFUSED)),
    _Sign("FM-04", lambda d: d.phase == "preflight" and d.observed.startswith(SENT_EARLY)),
    _Sign("FM-02", lambda d: d.phase == "generate" and d.observed.startswith(COUNTING)),
    _Sign("FM-10", lambda d: d.observed.startswith(HEADERS)),
    _Sign("FM-05", lambda d: d.observed.startswith(PAYLOADS)),
    _Sign("FM-09", lambda d: d.observed.startswith("exception") and "second thread" in d.why),
    _Sign("FM-12", lambda d: d.observed.startswith("exception") and "was reset" in d.why),
    _Sign("FM-13", lambda d: d.observed.startswith("exception") and "start frame is" in d.why),
    _Sign("FM-15", lambda d: d.observed.startswith("exception") and "override was read" in d.why),
    _Sign("FM-04", lambda d: d.observed.startswith("exception") and d.phase in COMMITTED),
    _Sign("FM-18", lambda d: d.observed.startswith(WAITING)),
)
"""Read from the top; the first that fits names the failure mode. A missing line has none."""

FIELDS = (
    ("FM-01", r"tp_plan|protocol|tables|world_size|\w+_version|record"),
    ("FM-11", r"weights_\w+|ack\.weights_fingerprint"),
    ("FM-14", r"compile|dtype|\w+_backend|python|torch|cuda|msgspec|numpy|xxhash|ack\.output_digest"),
    ("FM-16", r"tp_rng_policy"),
    ("FM-13", r"ack\.(global_end_index|current_start_frame)"),
    ("FM-12", r"ack\.(local_end_index|cache_epoch)"),
    ("FM-02", r"ack\.observed_generator_calls"),
    ("FM-03", r"flag\..+|conditioning|digest_\w+|recompute_schedule|ack\.sequence_hash"),
)
"""What ranks must agree on, at start-up and in every ack, and the failure mode where they do not. Of several that
differ, the first here names it: a plan that differs changes flags too, weights that differ change outputs, and another
start frame moves the end of the ring."""
_PARITY_FIELD = re.compile(r"`([\w.]+)`: ")
_ACK_FIELD = re.compile(r"rank\d+ (ack\.\w+) = ")
_ODD = re.compile(r"rank(\d+) has ")
_RANK = re.compile(r"rank(\d+)")
_SHARED = re.compile(r"(rank\d+(?: and rank\d+)+) have the same")
_WEIGHTS = re.compile(r"rank(\d+) ack\.weights_fingerprint = ")
_ODD_ACK = re.compile(r"rank(\d+) ack\.")


def failure_mode(found: Divergence, told: str) -> str | None:
    """The failure mode of a divergence; `told` is what the ranks themselves found wrong."""
    if found.why.startswith("event ") and found.why.endswith("is missing"):
        return None
    if found.observed.startswith("parity_differs"):
        return _by_field(_PARITY_FIELD.findall(found.why)) or "FM-01"
    if found.observed.startswith(ACKS):
        return _by_field(_ACK_FIELD.findall(told))
    return next((sign.mode for sign in SIGNS if sign.fits(found)), None)


def _by_field(names: list[str]) -> str | None:
    return next((mode for mode, field in FIELDS if any(re.fullmatch(field, n) for n in names)), None)


def accused_by_word(found: Divergence, world: int) -> tuple[int, ...]:
    """Whom a failed comparison names: `compile: rank2 has 'on', the others 'off'`. Nobody, where it names none.

    Where as many ranks have the one as the other, all of them: nothing tells which is right.
    """
    if found.observed.startswith("acks_differ"):
        odd = _ranks(_ODD_ACK, found.why)
        return (found.rank,) if 1 < len(odd) == world - 1 else odd  # rank0 holds the others against its own
    if not found.observed.startswith("parity_differs"):
        return ()
    odd = _ranks(_ODD, found.why)
    tied = tuple(range(world)) if 2 * len(odd) >= world else odd
    shared = [rank for several in _SHARED.findall(found.why) for rank in _ranks(_RANK, several)]
    return tuple(sorted({*tied, *shared}))


def changed_weights(told: str) -> tuple[int, ...]:
    """The ranks whose weights are not those of their own start-up, by what rank0 found wrong with the acks."""
    return _ranks(_WEIGHTS, told)


def _ranks(pattern: re.Pattern[str], text: str) -> tuple[int, ...]:
    return tuple(sorted({int(rank) for rank in pattern.findall(text)}))
