"""Writes rank0 and worker as coroutines: they yield operations and are sent results. No I/O, no ids of their own.

The same code runs on torch.distributed, in the in-memory simulator and under Hypothesis. What is legal is
the table's business: a role says which row it takes, or lets the table decide (`Decide`), and the monitor
holds it to that. Left out: who runs the operations (`conductor`), and phases A and C (`video.pipeline`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...errors import Code, ContractViolation, Refused
from ...model.protocols import tp_values as values
from ...model.protocols.tp_values import Action
from ...traces.outcome import outcome_of
from ..chunk import digest, parity, preflight, wire
from ..chunk.ack_check import AckBook
from ..chunk.received_envelope import Inbox, header_of
from ..chunk.retained_tensors import Conditioning, Override
from ..chunk.rules import plan_in, plan_of
from ..chunk.schema import Committed, Envelope, Ids, Meta, Mode
from .monitor import Monitor
from .operations import Call, Decide, Exchange, Moves, Step


class Scalars(Protocol):
    """Holds the cache indices that must be equal on all ranks after a chunk, in frames."""

    @property
    def start_frame(self) -> int: ...
    @property
    def global_end_index(self) -> int: ...
    @property
    def local_end_index(self) -> int: ...


class Run(Protocol):
    """Runs phase B of one chunk, on one rank."""

    @property
    def calls(self) -> Sequence[Callable[[], None]]:
        """Return the generator calls, in order; each issues its own collectives."""

    def result(self) -> torch.Tensor:
        """Return the output, after the last call; it advances the cache."""


class Generator(Protocol):
    """Stands for a rank's generator, sharded as it likes."""

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        """Begin a chunk; `fields` are the envelope's by their canonical names, tensors included."""

    def counted(self) -> tuple[int, int]:
        """Return how many collectives were issued since the chunk began, and the hash of their sequence (int64)."""

    def scalars(self) -> Scalars: ...


@dataclass(frozen=True)
class Settings:
    """Holds what both roles are started with; the same on every rank (parity sees to it), but for the device.

    `fingerprint` hashes this rank's weights: at start-up, and again in every chunk with `init_cache`. None, on
    all ranks or on none: weights are not looked at.
    """

    facts: parity.Facts
    mode: Mode = Mode.BRING_UP
    device: torch.device | str = "cpu"
    digests: digest.Policy = wire.BRING_UP
    fingerprint: Callable[[], parity.Fingerprint] | None = None
    vigil: Callable[[], str | None] | None = None
    """Returns what is wrong with this rank's weights; called in every other chunk whose digests are due."""
    reserve: Callable[[torch.Tensor], None] = lambda payload: None
    """Sets aside whatever sending a payload takes, in preflight: `TorchTransport.reserve`."""

    def record(self) -> torch.Tensor:
        """Return what this rank says of itself at start-up: its facts, and every flag of its own that gates a check."""
        own = {"conditioning": self.mode.value, **self.digests.facts, **self.facts}
        if self.fingerprint is None:
            return parity.pack({**own, SHARD: "off"})
        weights = self.fingerprint()
        own |= {SHARD: "on", "weights_replica": digest.to_hex(weights.replica)}
        return parity.pack(own, {SHARD: digest.to_hex(weights.shard)})


SHARD = "weights_shard"
"""Names the mark of a rank's own slices of the weights."""


class Role:
    """Holds what rank0 and worker share."""

    def __init__(self, monitor: Monitor, settings: Settings, generator: Generator) -> None:
        self.monitor, self.settings, self.generator = monitor, settings, generator
        self.override, self.conditioning = Override(), Conditioning()
        self.signalled: Callable[[], bool] = lambda: False
        """Returns True once a signal asks this rank to drain."""
        self.acks = AckBook()

    def startup(self) -> Moves[None]:
        """Exchange parity facts; every rank sees every difference, and no header is sent where there is one."""
        records = yield Exchange("exchange_parity", self.settings.record(), parity.project)
        yield Decide(lambda: parity.diff(records))
        marks = [parity.unpack(record).marks.get(SHARD) for record in records]
        self.acks = AckBook([digest.to_int64(int(mark, 16)) for mark in marks if mark is not None])

    def phase_b(self, envelope: Envelope) -> Moves[tuple[torch.Tensor, wire.Ack]]:
        """Make all generator calls in lockstep; returns the output, and this rank's ack."""
        run = self.generator.chunk(self.inputs(envelope))
        self._look_after_weights(envelope.meta.init_cache)
        yield Step("enter_phase_b", len(run.calls))
        for work in run.calls:
            yield Call("generate", work, self.generator.counted)
        output = run.result()
        if self.override.full:
            where = f"rank{self.monitor.rank}, phase B"
            raise ContractViolation("the override was read and not cleared", where=where, code=Code.OVERRIDE)
        cut = envelope.meta.init_cache
        ack = self._ack(output, cut)
        yield Step("leave_phase_b", self.acks.state(ack, cut, self.monitor.rank))
        return output, ack

    def _look_after_weights(self, cut: bool) -> None:
        """Raise ContractViolation where they have changed. With a hard cut the ack says it instead."""
        settings, v = self.settings, self.monitor.vars
        damage = settings.vigil() if settings.vigil and not cut and settings.digests.due(v.chunk_index) else None
        if damage:
            where = f"rank{self.monitor.rank}, call_id={v.call_id}, weights"
            raise ContractViolation(damage, where=where, code=Code.WEIGHTS)

    def inputs(self, envelope: Envelope) -> dict[str, object]:
        """Return the fields that the generator runs on: the override taken, the conditioning by its epoch."""
        meta, fields = envelope.meta, envelope.fields()
        fields["context_frames_override"] = self.override.take(meta.tp_do_kv_recompute)
        if meta.conditioning_epoch is not None:
            fields["conditioning_embeds"] = self.conditioning.of(meta.conditioning_epoch)
        return fields

    def hold(self, envelope: Envelope) -> None:
        """Keep what outlives the moment, once the chunk is committed to: nothing before that may change anything."""
        self.override.put(envelope.tensors["context_frames_override"])
        self.conditioning.adopt(envelope.meta.conditioning_epoch, envelope.tensors["conditioning_embeds"])

    def damage(self, meta: Meta, chunk_index: int) -> str | None:
        """Return what is wrong with the held conditioning, where the chunk relies on it and its digest is due."""
        relies = meta.conditioning_epoch is not None and meta.spec("conditioning_embeds") is None
        return self.conditioning.damage(chunk_index) if relies and self.settings.digests.due(chunk_index) else None

    def committed(self) -> Committed:
        """Return what this rank has committed to, in the terms of the envelope's rules."""
        v = self.monitor.vars
        return Committed(v.call_id, v.chunk_index, v.cache_epoch, v.control_epoch, self.conditioning.epoch)

    def _ack(self, output: torch.Tensor, cut: bool) -> wire.Ack:
        v, scalars, settings = self.monitor.vars, self.generator.scalars(), self.settings
        digested = settings.digests.output and settings.digests.due(v.chunk_index)
        return wire.Ack(
            call_id=v.call_id,
            chunk_index=v.chunk_index,
            observed_generator_calls=v.observed,
            sequence_hash=self.generator.counted()[1],
            global_end_index=scalars.global_end_index,
            local_end_index=scalars.local_end_index,
            cache_epoch=v.cache_epoch,
            current_start_frame=scalars.start_frame,
            output_digest=settings.digests.of(output, v.chunk_index) if digested else 0,
            weights_fingerprint=settings.fingerprint().shard if cut and settings.fingerprint else 0,
        )


class Rank0(Role):
    """Makes the driver's moves, one coroutine each: run one to its end before the next."""

    def chunk(self, fields: Mapping[str, object]) -> Moves[torch.Tensor]:
        """Run one chunk, from preflight to the last ack; returns the generator's output.

        `fields` are the envelope's, without the header's ids. Raises Refused, with nothing sent and nothing
        changed on any rank, where preflight finds something wrong. A pending hard cut is put into the plan.
        """
        prepared = yield from self.prepare((yield from self.request(fields)))
        yield from self.commit(prepared)
        yield Exchange("send_payload", prepared.payload, lambda _: self._payload(prepared))
        output, mine = yield from self.phase_b(prepared.envelope)
        cut = prepared.envelope.meta.init_cache
        records = yield Exchange("collect_acks", wire.pack_ack(mine), lambda found: self.acks.project(found, cut))
        yield Decide(lambda: self.acks.diff(mine, records, cut))
        return output

    def request(self, fields: Mapping[str, object]) -> Moves[Mapping[str, object]]:
        """Take a chunk up: its fields, with the hard cut that an earlier, refused chunk may have left pending."""
        asked = isinstance(fields, Mapping) and fields.get("init_cache") is True
        if asked and not self.monitor.vars.pending_cut:
            yield from self.hard_cut()
        yield Step("request")
        pending = self.monitor.vars.pending_cut and isinstance(fields, Mapping)
        return {**fields, "init_cache": True} if pending else fields

    def prepare(self, fields: Mapping[str, object]) -> Moves[preflight.Prepared]:
        """Make the five steps of preflight. Nothing is sent, and nothing of this rank changes but where it stands."""
        after = self.monitor.candidate("PREFLIGHTED", "commit")
        ids = Ids(after.call_id, after.chunk_index, after.cache_epoch, after.control_epoch)
        try:
            checked = preflight.check_schema(fields, ids, self.committed(), self.settings.mode)
            yield Step("preflight_schema", plan_in(checked.fields))
            parts = preflight.split(checked)
            yield Step("preflight_split")
            encoded = preflight.encode_meta(parts)
            yield Step("preflight_encode")
            typed = preflight.check_dtypes(encoded)
            yield Step("preflight_dtypes")
            preflight.check_held(typed, self.damage(typed.meta, ids.chunk_index))
            settings = self.settings
            prepared = preflight.materialise(typed, settings.device, settings.digests, settings.reserve)
            yield Step("preflight_materialise", prepared.header.payload_digest)
        except Refused as refusal:
            yield Step("refuse", outcome=outcome_of(refusal))
            raise
        return prepared

    def commit(self, prepared: preflight.Prepared) -> Moves[None]:
        """Pass the commitment point: from here on, workers block for more from this rank."""
        yield Step("commit")
        self.hold(prepared.envelope)
        header = header_of(prepared.header, prepared.envelope.meta)
        yield Exchange("send_header", prepared.packet, lambda _: header)

    def hard_cut(self) -> Moves[None]:
        """Have the next committed chunk start a new cache epoch, whatever is refused until then."""
        yield Step("hard_cut")

    def heartbeat(self) -> Moves[None]:
        """Send NOOP."""
        yield Step("heartbeat")
        yield self._bare("send_noop", Action.NOOP)

    def shutdown(self, event: str = "shutdown") -> Moves[None]:
        """Send SHUTDOWN: every worker exits cleanly. `event` is `shutdown`, or `drain` where a signal asked for it."""
        yield Step(event)
        yield self._bare("send_shutdown", Action.SHUTDOWN)

    def _bare(self, event: str, action: Action) -> Exchange:
        v = self.monitor.vars
        packet = wire.pack_header(action, Ids(v.call_id, v.chunk_index, v.cache_epoch, v.control_epoch))
        header = header_of(wire.unpack_header(packet), None)
        return Exchange(event, packet, lambda _: header)

    @staticmethod
    def _payload(prepared: preflight.Prepared) -> values.Payload:
        return values.Payload(prepared.header.payload_digest, plan_of(prepared.envelope.meta).override)


class Worker(Role):
    """Lives a worker's life: one coroutine from start-up to SHUTDOWN."""

    def serve(self) -> Moves[None]:
        """Take headers until SHUTDOWN. Whatever a check finds wrong poisons the run.

        A signal is held: it is rank0 that drains, and its SHUTDOWN that ends this rank.
        """
        yield from self.startup()
        held = False
        while True:
            if not held and self.signalled():
                held = True
                yield Step("hold_signal")
            inbox = Inbox(self.committed(), self.settings.mode, self.settings.digests, self.damage)
            yield Exchange("receive_header", torch.zeros(wire.HEADER_NUMEL, dtype=torch.int64), inbox.take_header)
            action = yield Decide(lambda inbox=inbox: inbox.outcome)  # type: ignore[misc]
            if action == "accept_shutdown":
                return
            if action == "accept_infer":
                yield from self.chunk(inbox)

    def chunk(self, inbox: Inbox) -> Moves[None]:
        """Run one chunk, from the accepted header to the ack."""
        payload = wire.allocate_payload(inbox.meta, self.settings.device)
        yield Exchange("receive_payload", payload, inbox.take_payload)
        yield Decide(lambda: inbox.outcome)
        self.hold(inbox.envelope)
        _, mine = yield from self.phase_b(inbox.envelope)
        yield Exchange("send_ack", wire.pack_ack(mine), lambda _: None)
