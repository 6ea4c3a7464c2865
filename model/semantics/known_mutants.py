"""Lists known failure modes as edits of tables, each with the faults that show it and the property that must fail.

A checker that lets one of these pass is worth nothing. Where a failure mode is a missing check, the edit takes the
check away and the fault does the rest; where it is a habit of the code, the edit is that habit.

Left out: numbers. Weights, caches, ring indices and random streams stand here as digests; each title says for what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ...errors import UsageError
from ..protocols import tp_rules as rules
from ..protocols import tp_v1_1 as tp
from ..protocols import tp_values as values
from ..protocols.tp_v1_1 import TP_V1_1
from ..protocols.tp_values import TPVars
from ..tables import Collective, Guard, Kind, Protocol, Role, Row, Scope, changed
from .faults import from_the_owning_thread, with_faults
from .network import CRASH, Faults, Network
from .properties import (
    CALL_COUNT_AGREEMENT,
    CRASH_OVER_HANG,
    EPOCH_FENCE,
    NO_FALSE_ABORT,
    NO_MISPAIRING,
    NO_STALE_OVERRIDE,
    NO_STRANDING,
    NO_UNSEEN_DRIFT,
    REFUSAL_LEAVES_NO_TRACE,
    Property,
)

Edit = Callable[[Protocol], Protocol]


@dataclass(frozen=True)
class Mutant:
    """Describes a broken protocol: what was edited, and the property that must fail.

    `faults` are the kinds that it takes to bring it out, `budget` how many of them; `chunks` the fewest that show it.
    `detection` None: on, and each property judged where it is defined; False: nobody watches the ranks.
    """

    name: str
    title: str
    edit: Edit
    killed_by: Property
    faults: Faults = field(default_factory=dict)
    chunks: int = 1
    detection: bool | None = None
    stream: bool = False

    @property
    def budget(self) -> int:
        return 1 if self.faults else 0

    def applied(self, protocol: Protocol) -> Protocol:
        """Return the protocol with the rows of the faults, then broken."""
        return self.edit(with_faults(protocol, self.faults))

    def network(self, scope: Scope) -> Network:
        """Return the broken TP v1.1 at this scope.

        Raises UsageError for too few chunks to show it.
        """
        if scope.chunks < self.chunks:
            raise UsageError(f"{self.name} shows from {self.chunks} chunks on", where="--chunks", do="allow more")
        return Network(
            self.applied(TP_V1_1),
            scope,
            faults=self.budget,
            kinds=self.faults,
            detection=self.detection is not False,
            stream=self.stream,
        )


# ── edits ───────────────────────────────────────────────────────────────────────────────────────────


def without(guards: tuple[Guard, ...], name: str) -> tuple[Guard, ...]:
    """Return `guards` less the one with this name."""
    return tuple(g for g in guards if g.__name__ != name)


def unguarded(role: Role, *names: str) -> Role:
    """Return the table with these guards taken from every row that has them."""
    rows = role.rows
    for name in names:
        rows = tuple(replace(r, guards=without(r.guards, name)) for r in rows)
    return replace(role, rows=rows)


def dropping(*guards: Guard) -> Edit:
    """Return the edit that takes these guards from both tables."""
    names = [g.__name__ for g in guards]
    return lambda p: replace(p, driver=unguarded(p.driver, *names), worker=unguarded(p.worker, *names))


def _in_driver(state: str, event: str, **changes: object) -> Edit:
    return lambda p: replace(p, driver=p.driver.edit(state, event, **changes))


def _in_worker(state: str, event: str, **changes: object) -> Edit:
    return lambda p: replace(p, worker=p.worker.edit(state, event, **changes))


def _both(*edits: Edit) -> Edit:
    def edit(protocol: Protocol) -> Protocol:
        for one in edits:
            protocol = one(protocol)
        return protocol

    return edit


def _worker_asserts_no_count(protocol: Protocol) -> Protocol:
    return replace(protocol, worker=unguarded(protocol.worker, rules.count_is_expected.__name__))


_FM_04 = _both(
    _in_driver("PREFLIGHT_3", "preflight_encode", target="PREFLIGHTED"),
    _in_driver("COMMITTED", "send_header", target="PREFLIGHT_4"),
    _in_driver("PREFLIGHT_5", "preflight_materialise", target="HEADER_SENT"),
)
_FM_07 = _both(
    _in_driver("PREFLIGHT_3", "preflight_encode", target="PREFLIGHT_5"),
    _in_driver("COMMITTED", "send_header", target="PREFLIGHT_4"),
    _in_driver("PREFLIGHT_4", "preflight_dtypes", target="HEADER_SENT"),
)


# ── what broken code does ───────────────────────────────────────────────────────────────────────────

OTHER_SIZE = replace(tp.PAYLOAD, size="other bytes")
AD_HOC = Collective("ad_hoc", Kind.BROADCAST, "device", 0, "int64", "guessed by the receiver", "generate")


def one_call_short(v: TPVars, scope: Scope) -> Iterable[int]:
    """A rank's own code makes one call less than the plan says."""
    return (calls - 1 for calls in rules.own_calls(v, scope))


def falls_back(v: TPVars, scope: Scope) -> Iterable[int]:
    """Without an override the rank skips the recompute, whatever the plan says."""
    return () if v.plan is None else (int(v.plan.recompute and v.plan.override) + v.plan.steps,)


def bump_early(v: TPVars, plan: values.Plan) -> TPVars:
    """hold the plan, and start the new cache epoch at once (one a chunk, to keep the search finite)"""
    first = v.pending_cut and v.cache_epoch <= v.chunk_index
    return changed(rules.propose(v, plan), cache_epoch=v.cache_epoch + int(first), pending_cut=False)


def reset_where_an_override_came(v: TPVars, data: object) -> TPVars:
    """an override came, so that the cache must be stale: reset it"""
    after = rules.adopt_payload(v, data)
    return changed(after, cache_epoch=after.cache_epoch + int(after.override))


def draw_own_noise(v: TPVars, data: object) -> TPVars:
    """compute with noise of the rank's own generator"""
    return changed(rules.adopt_payload(v, data), inputs=-1)


def keep_conditioning(v: TPVars, data: object) -> TPVars:
    """compute with the conditioning of the chunk before, if there is one"""
    after = rules.adopt_payload(v, data)
    return changed(after, inputs=after.inputs - int(after.chunk_index > 1))


def requested_facts(v: TPVars) -> str:
    """Return what the configuration asks for (`auto`), not what it resolves to."""
    return "same"


def _sends_another_size(p: Protocol) -> Protocol:
    broken = _in_driver("HEADER_SENT", "send_payload", op=OTHER_SIZE)(p)
    return replace(broken, schedule=(*p.schedule, OTHER_SIZE))


def _broadcasts_in_a_block(p: Protocol) -> Protocol:
    row = Row("GENERATING", "broadcast_in_block", "GENERATING", op=AD_HOC)
    return replace(p, driver=p.driver.adding(row), schedule=(*p.schedule, AD_HOC))


def _parity_by_request(p: Protocol) -> Protocol:
    driver = p.driver.edit("STARTUP", "exchange_parity", send=requested_facts)
    return replace(p, driver=driver, worker=p.worker.edit("STARTUP", "exchange_parity", send=requested_facts))


# ── the mutants ─────────────────────────────────────────────────────────────────────────────────────


def _fault(kind: str) -> Mapping[str, None]:
    return {kind: None}


MUTANTS = {
    m.name: m
    for m in (
        Mutant(
            "FM-01",
            "a worker runs another `tp_plan`, takes no payload and generates alone; nobody compares parity",
            dropping(rules.parity_agrees),
            NO_STRANDING,
            _fault("role"),
        ),
        Mutant(
            "FM-02",
            "workers make one generator call too few, and nobody asserts the count",
            _both(_in_worker("READY", "enter_phase_b", choices=one_call_short), _worker_asserts_no_count),
            CALL_COUNT_AGREEMENT,
        ),
        Mutant(
            "FM-02-asserted",
            "workers make one generator call too few, and their assertion poisons the run",
            _in_worker("READY", "enter_phase_b", choices=one_call_short),
            NO_FALSE_ABORT,
        ),
        Mutant(
            "FM-03",
            "a flag that is set on one rank gates a collective; nobody compares parity",
            dropping(rules.parity_agrees),
            NO_MISPAIRING,
            _fault("flag"),
        ),
        Mutant(
            "FM-04",
            "the header is sent after preflight step 3; steps 4 and 5 can still refuse the chunk",
            _FM_04,
            NO_STRANDING,
        ),
        Mutant(
            "FM-05",
            "rank0 sends a payload of another size than the specs in the header, from which workers allocate",
            _sends_another_size,
            NO_STRANDING,
        ),
        Mutant(
            "FM-05-order",
            "rank0 sends the tensors in another order than their specs; workers check no digest",
            dropping(rules.payload_is_intact),
            NO_MISPAIRING,
            _fault("manifest"),
        ),
        Mutant(
            "FM-06",
            "a recompute is planned without its override; nobody refuses, workers fall back to no recompute and "
            "assert no count",
            _both(
                dropping(rules.override_iff_recompute, rules.header_plan_holds, rules.payload_fits_plan),
                _in_worker("READY", "enter_phase_b", choices=falls_back),
                _worker_asserts_no_count,
            ),
            NO_STRANDING,
            _fault("request"),
        ),
        Mutant(
            "FM-07",
            "dtypes are looked at after the header is sent: an unsupported one still refuses the chunk",
            _FM_07,
            NO_STRANDING,
        ),
        Mutant(
            "FM-08",
            "rank0 broadcasts inside a generator block, which no plan has",
            _broadcasts_in_a_block,
            NO_STRANDING,
        ),
        Mutant(
            "FM-09",
            "a second thread of rank0 sends a heartbeat in mid-chunk; nobody asks whose thread it is",
            dropping(from_the_owning_thread),
            NO_STRANDING,
            _fault("thread"),
        ),
        Mutant(
            "FM-10",
            "a header from before the last hard cut is accepted",
            dropping(rules.epoch_follows),
            EPOCH_FENCE,
            _fault("stale"),
        ),
        Mutant(
            "FM-11",
            "a weight changes on one rank, and no fingerprint is compared (abstract: it would ride in the ack)",
            dropping(rules.acks_agree),
            NO_UNSEEN_DRIFT,
            _fault("weights"),
        ),
        Mutant(
            "FM-12",
            "a worker infers a cache reset from the override that came, instead of being told",
            _in_worker("ENVELOPE_CHECK", "accept_envelope", effect=reset_where_an_override_came),
            EPOCH_FENCE,
        ),
        Mutant(
            "FM-13",
            "start frame or ring index drifts on one rank, and acks are not compared (abstract: the digest of its "
            "cache scalars)",
            dropping(rules.acks_agree),
            NO_UNSEEN_DRIFT,
            _fault("drift"),
        ),
        Mutant(
            "FM-14",
            "one rank resolves another backend; parity compares what was requested, and acks are not compared "
            "(abstract: the digest of its output)",
            _both(_parity_by_request, dropping(rules.acks_agree)),
            NO_UNSEEN_DRIFT,
            _fault("backend"),
        ),
        Mutant(
            "FM-15",
            "one rank reads the override without clearing it, and nobody asserts that the slot is empty",
            dropping(rules.override_is_clear),
            NO_STALE_OVERRIDE,
            _fault("override"),
        ),
        Mutant(
            "FM-16",
            "workers draw noise of their own instead of taking rank0's (abstract: the digest of their inputs)",
            _in_worker("ENVELOPE_CHECK", "accept_envelope", effect=draw_own_noise),
            NO_MISPAIRING,
        ),
        Mutant(
            "FM-17",
            "workers go on with the conditioning of the chunk before (abstract: the digest of their inputs)",
            _in_worker("ENVELOPE_CHECK", "accept_envelope", effect=keep_conditioning),
            NO_MISPAIRING,
            chunks=2,
        ),
        Mutant(
            "FM-18",
            "a rank dies, and nobody watches",
            lambda protocol: protocol,
            CRASH_OVER_HANG,
            _fault(CRASH),
            detection=False,
        ),
        Mutant(
            "EPOCH-EARLY",
            "the cache epoch rises in preflight step 1; a later step can still refuse the chunk",
            _in_driver("PREFLIGHT_1", "preflight_schema", effect=bump_early),
            REFUSAL_LEAVES_NO_TRACE,
        ),
    )
}
"""Mutants of TP v1.1 by name."""


def mutant(name: str) -> Mutant:
    """Return the mutant of this name, or raise UsageError."""
    try:
        return MUTANTS[name]
    except KeyError:
        raise UsageError(f"no mutant `{name}`", do=f"choose one of {', '.join(MUTANTS)}") from None
