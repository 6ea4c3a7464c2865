"""rank0 and worker as coroutines: they yield operations and are told results. No I/O, no ids of their own.

The same code runs on torch.distributed, in the in-memory simulator and under Hypothesis. What is legal is
the table's business: a role says which row it takes, or lets the table decide (`Decide`), and the monitor
holds it to that. Left out: who runs the operations (`conductor`), and phases A and C (`pipeline`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..errors import ContractViolation, Refused
from ..model import protocol as table
from ..model.protocol import Action
from . import digest, parity, preflight, wire
from .envelope import (
    Committed,
    Envelope,
    Ids,
    Meta,
    Mode,
    Problem,
    envelope_problems,
    id_problems,
    plan_in,
    plan_of,
    problems,
    violation,
)
from .monitor import Monitor
from .operations import Call, Decide, Exchange, Moves, Step


class Scalars(Protocol):
    """The cache indices that must be equal on all ranks after a chunk, in frames."""

    @property
    def start_frame(self) -> int: ...
    @property
    def global_end_index(self) -> int: ...
    @property
    def local_end_index(self) -> int: ...


class Run(Protocol):
    """Phase B of one chunk, on one rank."""

    @property
    def calls(self) -> Sequence[Callable[[], None]]:
        """The generator calls, in order; each issues its own collectives."""

    def result(self) -> torch.Tensor:
        """The output, after the last call; it advances the cache."""


class Generator(Protocol):
    """What every rank brings: a generator, sharded as it likes."""

    def chunk(self, fields: Mapping[str, Any]) -> Run:
        """Begin a chunk; `fields` are the envelope's by their canonical names, tensors included."""

    def counted(self) -> tuple[int, int]:
        """Collectives issued since the chunk began, and the hash of their sequence (int64)."""

    def scalars(self) -> Scalars: ...


@dataclass(frozen=True)
class Settings:
    """What both roles are started with; the same on every rank (parity sees to it)."""

    facts: parity.Facts
    mode: Mode = Mode.BRING_UP
    device: torch.device | str = "cpu"


def header_of(header: wire.Header, meta: Meta | None) -> table.Header:
    """A header packet in the table's terms."""
    ids = header.ids
    return table.Header(
        header.action,
        ids.call_id,
        ids.chunk_index,
        ids.cache_epoch,
        ids.control_epoch,
        None if meta is None else plan_of(meta),
        header.payload_digest,
    )


NO_HEADER = table.Header(table.Action.NOOP, 0, 0, 0, 0, intact=False)
NO_PAYLOAD = table.Payload(0, override=False, intact=False)


class Role:
    """What rank0 and worker share."""

    def __init__(self, monitor: Monitor, settings: Settings, generator: Generator) -> None:
        self.monitor, self.settings, self.generator = monitor, settings, generator
        self.conditioning_epoch = 0

    def startup(self) -> Moves[None]:
        """Exchange parity facts; every rank sees every difference, and no header is sent where there is one."""
        records = yield Exchange("exchange_parity", parity.pack(self.settings.facts), parity.project)
        yield Decide(lambda: parity.diff(records))

    def phase_b(self, envelope: Envelope) -> Moves[tuple[torch.Tensor, wire.Ack]]:
        """All generator calls in lockstep, and what this rank has to say about them."""
        run = self.generator.chunk(envelope.fields())
        yield Step("enter_phase_b", len(run.calls))
        for work in run.calls:
            yield Call("generate", work, self.generator.counted)
        output = run.result()
        ack = self._ack(output)
        yield Step("leave_phase_b", ack_state(ack))
        return output, ack

    def committed(self) -> Committed:
        """What this rank has committed to, in the terms of the envelope's rules."""
        v = self.monitor.vars
        return Committed(v.call_id, v.chunk_index, v.cache_epoch, v.control_epoch, self.conditioning_epoch)

    def _ack(self, output: torch.Tensor) -> wire.Ack:
        v, scalars = self.monitor.vars, self.generator.scalars()
        return wire.Ack(
            call_id=v.call_id,
            chunk_index=v.chunk_index,
            observed_generator_calls=v.observed,
            sequence_hash=self.generator.counted()[1],
            global_end_index=scalars.global_end_index,
            local_end_index=scalars.local_end_index,
            cache_epoch=v.cache_epoch,
            current_start_frame=scalars.start_frame,
            output_digest=digest.of_tensor(output),
        )


def ack_state(ack: wire.Ack) -> int:
    """One digest of all that an ack says beyond ids and counts, signed 64 bit."""
    return digest.chain(
        0,
        ack.sequence_hash,
        ack.global_end_index,
        ack.local_end_index,
        ack.current_start_frame,
        ack.output_digest,
    )


def ack_of(ack: wire.Ack) -> table.Ack:
    """An ack in the table's terms."""
    return table.Ack(ack.call_id, ack.chunk_index, ack.cache_epoch, ack.observed_generator_calls, ack_state(ack))


class Rank0(Role):
    """The driver's moves, one coroutine each: run one to its end before the next."""

    def chunk(self, fields: Mapping[str, object]) -> Moves[torch.Tensor]:
        """One chunk, from preflight to the last ack; returns the generator's output.

        `fields` are the envelope's, without the header's ids. Raises Refused, with nothing sent and nothing
        changed on any rank, where preflight finds something wrong. A pending hard cut is put into the plan.
        """
        prepared = yield from self.prepare((yield from self.request(fields)))
        yield from self.commit(prepared)
        yield Exchange("send_payload", prepared.payload, lambda _: self._payload(prepared))
        output, mine = yield from self.phase_b(prepared.envelope)
        self.conditioning_epoch = prepared.envelope.meta.conditioning_epoch or self.conditioning_epoch
        records = yield Exchange("collect_acks", wire.pack_ack(mine), _acks)
        yield Decide(lambda: _ack_diff(mine, records))
        return output

    def request(self, fields: Mapping[str, object]) -> Moves[dict[str, object]]:
        """Take a chunk up: its fields, with the hard cut that an earlier, refused chunk may have left pending."""
        if fields.get("init_cache") is True and not self.monitor.vars.pending_cut:
            yield from self.hard_cut()
        yield Step("request")
        return {**fields, "init_cache": True} if self.monitor.vars.pending_cut else dict(fields)

    def prepare(self, fields: Mapping[str, object]) -> Moves[preflight.Prepared]:
        """The five steps. Nothing is sent here, and nothing of this rank changes but where it stands."""
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
            prepared = preflight.materialise(typed, self.settings.device)
            yield Step("preflight_materialise", prepared.header.payload_digest)
        except Refused as refusal:
            yield Step("refuse", note=str(refusal))
            raise
        return prepared

    def commit(self, prepared: preflight.Prepared) -> Moves[None]:
        """The commitment point: from here on, workers block for more from this rank."""
        yield Step("commit")
        header = header_of(prepared.header, prepared.envelope.meta)
        yield Exchange("send_header", prepared.packet, lambda _: header)

    def hard_cut(self) -> Moves[None]:
        """The next committed chunk starts a new cache epoch, whatever is refused until then."""
        yield Step("hard_cut")

    def heartbeat(self) -> Moves[None]:
        """NOOP."""
        yield Step("heartbeat")
        yield self._bare("send_noop", Action.NOOP)

    def shutdown(self, event: str = "shutdown") -> Moves[None]:
        """SHUTDOWN: every worker exits cleanly. `event` is `shutdown`, or `drain` where a signal asked for it."""
        yield Step(event)
        yield self._bare("send_shutdown", Action.SHUTDOWN)

    def _bare(self, event: str, action: Action) -> Exchange:
        v = self.monitor.vars
        packet = wire.pack_header(action, Ids(v.call_id, v.chunk_index, v.cache_epoch, v.control_epoch))
        header = header_of(wire.unpack_header(packet), None)
        return Exchange(event, packet, lambda _: header)

    @staticmethod
    def _payload(prepared: preflight.Prepared) -> table.Payload:
        return table.Payload(prepared.header.payload_digest, plan_of(prepared.envelope.meta).override)


class Worker(Role):
    """The worker's life: one coroutine from start-up to SHUTDOWN."""

    def serve(self) -> Moves[None]:
        """Take headers until SHUTDOWN. Whatever a check finds wrong poisons the run."""
        yield from self.startup()
        while True:
            inbox = Inbox(self)
            yield Exchange("receive_header", torch.zeros(wire.HEADER_NUMEL, dtype=torch.int64), inbox.take_header)
            action = yield Decide(lambda inbox=inbox: inbox.error)  # type: ignore[misc]
            if action == "accept_shutdown":
                return
            if action == "accept_infer":
                yield from self.chunk(inbox)

    def chunk(self, inbox: Inbox) -> Moves[None]:
        """From the accepted header to the ack."""
        payload = wire.allocate_payload(inbox.meta, self.settings.device)
        yield Exchange("receive_payload", payload, inbox.take_payload)
        yield Decide(lambda: inbox.error)
        _, mine = yield from self.phase_b(inbox.envelope)
        self.conditioning_epoch = inbox.meta.conditioning_epoch or self.conditioning_epoch
        yield Exchange("send_ack", wire.pack_ack(mine), lambda _: None)


class Inbox:
    """What a worker has received of one call, and what is wrong with it."""

    def __init__(self, worker: Role) -> None:
        self._since, self._mode = worker.committed(), worker.settings.mode
        self._header: wire.Header | None = None
        self._meta: Meta | None = None
        self._envelope: Envelope | None = None
        self.error: str | None = None

    @property
    def meta(self) -> Meta:
        if self._meta is None:
            raise ContractViolation("no meta was received")
        return self._meta

    @property
    def envelope(self) -> Envelope:
        if self._envelope is None:
            raise ContractViolation("no envelope was received")
        return self._envelope

    def take_header(self, packet: torch.Tensor) -> table.Header:
        """Validate the packet and the meta in it, before anything is allocated."""
        try:
            header = self._header = wire.unpack_header(packet)
            if header.action is not Action.INFER:
                self._note(id_problems(header.action, header.ids, self._since))
                return header_of(header, None)
            meta = self._meta = wire.unpack_meta(header)
            sound = self._note(problems(header.ids, meta, self._since, self._mode))
            return replace(header_of(header, meta), intact=sound)
        except ContractViolation as error:
            self.error = str(error)
            return NO_HEADER

    def _note(self, broken: Iterator[Problem]) -> bool:
        """Keep the first problem for the message; whether there was none."""
        problem = next(broken, None)
        if problem is not None:
            self.error = str(violation(problem, "header"))
        return problem is None

    def take_payload(self, payload: torch.Tensor) -> table.Payload:
        """Check every tensor's digest, then validate the envelope as a whole."""
        header, meta = self._header, self.meta
        if header is None:
            raise ContractViolation("no header was received")
        try:
            tensors = wire.unpack_payload(meta, payload)
            envelope = self._envelope = Envelope(Action.INFER, header.ids, meta, tensors)
            sound = self._note(envelope_problems(envelope, self._since, self._mode))
            return table.Payload(header.payload_digest, plan_of(meta).override, intact=sound)
        except ContractViolation as error:
            self.error = str(error)
            return NO_PAYLOAD


def _acks(records: Sequence[torch.Tensor]) -> frozenset[table.Ack]:
    acks = []
    for record in records:
        try:
            acks.append(ack_of(wire.unpack_ack(record)))
        except ContractViolation:
            acks.append(table.Ack(-1, -1, -1, -1))
    return frozenset(acks)


def _ack_diff(mine: wire.Ack, records: Sequence[torch.Tensor]) -> str:
    clauses = []
    for rank, record in enumerate(records):
        try:
            theirs = wire.unpack_ack(record)
        except ContractViolation as error:
            clauses.append(f"rank{rank}: {error}")
            continue
        clauses += [f"rank{rank} {p.field} = {p.value}, {p.text}" for p in wire.ack_problems(mine, theirs)]
    return "; ".join(clauses)
