"""Names the failure mode of a divergence, and the ranks that a rank's own check accuses, by typed facts alone.

What left the model is known from the tables; which of the known failure modes that is stands in the two tables here.
Left out: finding it (`diagnose`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...traces.outcome import Code, Difference
from ..diagnosis import Divergence, Observation, Seen

COMMITTED = frozenset({"header", "payload", "generate", "ack"})
"""The phases in which peers block for more from a rank, so that they are stranded when it raises."""
ACKS = frozenset({"send_ack", "collect_acks", "acks_differ"})
PARITY = "parity_differs"
EXCEPTION = "exception"
LOST = frozenset({"deadline", "peer_lost"})
"""Moves, and causes of an end, by which a rank says that it waited in vain."""


@dataclass(frozen=True, slots=True)
class Sign:
    """Tells a failure mode by what was seen; an empty set of facts is not looked at."""

    mode: str
    seen: frozenset[Seen] = frozenset()
    transitions: frozenset[str] = frozenset()
    codes: frozenset[Code] = frozenset()
    phases: frozenset[str] = frozenset()

    def fits(self, facts: Observation, phase: str) -> bool:
        """Return True where every fact that the sign looks at is one of its own."""
        code = None if facts.outcome is None else facts.outcome.code
        return (
            (not self.seen or facts.seen in self.seen)
            and (not self.transitions or facts.transition in self.transitions)
            and (not self.codes or code in self.codes)
            and (not self.phases or phase in self.phases)
        )


def _sign(mode: str, *transitions: str, **facts: Iterable[str]) -> Sign:
    sets = {name: frozenset(values) for name, values in facts.items()}
    return Sign(mode, transitions=frozenset(transitions), **sets)  # type: ignore[arg-type]


SIGNS = (
    _sign("FM-09", seen=[Seen.OPERATION], codes=[Code.THREAD]),
    _sign("FM-08", seen=[Seen.OPERATION], codes=[Code.COLLECTIVE]),
    _sign("FM-04", "commit", "send_header", phases=["preflight"]),
    _sign("FM-02", "generate", "leave_phase_b", "miscount", "enter_phase_b", phases=["generate"]),
    _sign("FM-10", "reject_header", "receive_header", "send_header", "send_noop", "send_shutdown"),
    _sign("FM-05", "reject_envelope", "receive_payload", "send_payload"),
    _sign("FM-09", EXCEPTION, codes=[Code.THREAD]),
    _sign("FM-08", EXCEPTION, codes=[Code.COLLECTIVE]),
    _sign("FM-02", EXCEPTION, codes=[Code.CALLS]),
    _sign("FM-11", EXCEPTION, codes=[Code.WEIGHTS]),
    _sign("FM-12", EXCEPTION, codes=[Code.RESET]),
    _sign("FM-15", EXCEPTION, codes=[Code.OVERRIDE]),
    _sign("FM-04", EXCEPTION, phases=COMMITTED),
    _sign("FM-18", *LOST),
    _sign("FM-18", seen=[Seen.NOTHING]),
)
"""Read from the top; the first that fits names the failure mode. A missing line has none."""

FIELDS: tuple[tuple[str, frozenset[str], tuple[str, ...]], ...] = (
    ("FM-01", frozenset({"tp_plan", "protocol", "tables", "world_size", "record"}), ("_version",)),
    ("FM-11", frozenset({"weights_shard", "weights_replica", "ack.weights_fingerprint"}), ()),
    (
        "FM-14",
        frozenset({"compile", "dtype", "python", "torch", "cuda", "msgspec", "numpy", "xxhash", "ack.output_digest"}),
        ("_backend",),
    ),
    ("FM-16", frozenset({"tp_rng_policy"}), ()),
    ("FM-13", frozenset({"ack.global_end_index", "ack.current_start_frame"}), ()),
    ("FM-12", frozenset({"ack.local_end_index", "ack.cache_epoch"}), ()),
    ("FM-02", frozenset({"ack.observed_generator_calls"}), ()),
    (
        "FM-03",
        frozenset({"conditioning", "recompute_schedule", "ack.sequence_hash"}),
        ("flag.", "digest_"),
    ),
)
"""Maps fields in which ranks must agree, at start-up and in every ack, to the failure mode where they do not: names,
and what a name may end or begin with. Of several that differ, the first here names it: a plan that differs changes
flags too, weights that differ change outputs, and another start frame moves the end of the ring."""


def failure_mode(divergence: Divergence, told: Sequence[Difference]) -> str | None:
    """Return the failure mode of a divergence; None where it has none, or where a trace holds it as text alone.

    `told` is what rank0 found wrong with the acks.
    """
    facts = divergence.facts
    if facts.seen is Seen.GAP or text_alone(divergence):
        return None
    outcome = facts.outcome
    if facts.transition == PARITY:
        return mode_of([] if outcome is None else [d.field for d in outcome.differences]) or "FM-01"
    if facts.transition in ACKS:
        return mode_of([d.field for d in told])
    if facts.transition == EXCEPTION and outcome is not None and outcome.code is Code.CACHE:
        mode = mode_of([f"ack.{outcome.field}"])  # the indices that an ack has
        if mode is not None:
            return mode
    return next((sign.mode for sign in SIGNS if sign.fits(facts, divergence.phase)), None)


def mode_of(fields: Sequence[str]) -> str | None:
    """Return the failure mode of ranks that differ in these fields; None where no field has one."""
    for mode, names, parts in FIELDS:
        if any(f in names or any(f.endswith(p) if p[0] == "_" else f.startswith(p) for p in parts) for f in fields):
            return mode
    return None


def text_alone(divergence: Divergence) -> bool:
    """Return True where only the text of a message could tell the failure mode, as in format 1."""
    outcome = divergence.facts.outcome
    decided_by_it = divergence.facts.transition in (PARITY, EXCEPTION, "acks_differ")
    return decided_by_it and outcome is not None and outcome.code is Code.UNTYPED


def accused_by_check(divergence: Divergence, world: int) -> tuple[int, ...]:
    """Return the ranks that a failed comparison names; none, where it names none.

    Where as many ranks have the one value as the other, all of them: nothing tells which is right.
    """
    facts = divergence.facts
    differences = () if facts.outcome is None else facts.outcome.differences
    if facts.transition == "acks_differ":
        odd = _ranks(differences)
        return (divergence.rank,) if 1 < len(odd) == world - 1 else odd  # rank0 holds the others against its own
    if facts.transition != PARITY:
        return ()
    alone = _ranks(d for d in differences if not d.alike)
    tied = tuple(range(world)) if alone and 2 * len(alone) >= world else alone
    return tuple(sorted({*tied, *_ranks(d for d in differences if d.alike)}))


def changed_weights(told: Sequence[Difference]) -> tuple[int, ...]:
    """Return the ranks whose weights are not those of their own start-up, by what rank0 found wrong with the acks."""
    return _ranks(d for d in told if d.field == "ack.weights_fingerprint")


def _ranks(differences: Iterable[Difference]) -> tuple[int, ...]:
    return tuple(sorted({rank for difference in differences for rank in difference.ranks}))
