"""Validates what a worker receives of a call, piece by piece, before anything is made of it.

Left out: which move follows (the table's matter, `rank.roles`), and the rules themselves (`rules`, `wire`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ...errors import ContractViolation
from ...model.protocols import tp_values as values
from ...model.protocols.tp_values import Action
from ...traces.outcome import Code, Outcome, outcome_of
from . import digest, wire
from .rules import id_problems, plan_of, problems, tensor_problems
from .schema import Committed, Envelope, Meta, Mode, Problem, violation

Damage = Callable[[Meta, int], str | None]


def header_of(header: wire.Header, meta: Meta | None) -> values.Header:
    """Return a header packet in the table's terms."""
    ids = header.ids
    return values.Header(
        header.action,
        ids.call_id,
        ids.chunk_index,
        ids.cache_epoch,
        ids.control_epoch,
        None if meta is None else plan_of(meta),
        header.payload_digest,
    )


NO_HEADER = values.Header(values.Action.NOOP, 0, 0, 0, 0, intact=False)
NO_PAYLOAD = values.Payload(0, override=False, intact=False)


class Inbox:
    """Holds what a worker has received of one call, and what is wrong with it.

    `since` is what was committed before the call; `damage` says what is wrong with the conditioning that is held.
    """

    def __init__(self, since: Committed, mode: Mode, digests: digest.Policy, damage: Damage) -> None:
        self._since, self._mode, self._digests, self._damage = since, mode, digests, damage
        self._header: wire.Header | None = None
        self._meta: Meta | None = None
        self._envelope: Envelope | None = None
        self.outcome: Outcome | None = None
        """The first thing that is wrong, if anything is."""

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

    def take_header(self, packet: torch.Tensor) -> values.Header:
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
            self.outcome = outcome_of(error)
            return NO_HEADER

    def _note(self, broken: Iterator[Problem]) -> bool:
        """Keep the first problem; returns True where there is none."""
        problem = next(broken, None)
        if problem is not None:
            self.outcome = outcome_of(violation(problem, "header"))
        return problem is None

    def take_payload(self, payload: torch.Tensor) -> values.Payload:
        """Check every tensor's digest, then the tensors against the meta, which was validated with the header."""
        header, meta = self._header, self.meta
        if header is None:
            raise ContractViolation("no header was received")
        try:
            chunk = header.ids.chunk_index
            tensors = wire.unpack_payload(meta, payload, self._digests, chunk)
            if damage := self._damage(meta, chunk):
                raise ContractViolation(damage, code=Code.CONDITIONING, field="conditioning_embeds")
            envelope = self._envelope = Envelope(Action.INFER, header.ids, meta, tensors)
            sound = self._note(tensor_problems(envelope))
            return values.Payload(header.payload_digest, plan_of(meta).override, intact=sound)
        except ContractViolation as error:
            self.outcome = outcome_of(error)
            return NO_PAYLOAD
