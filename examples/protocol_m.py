"""Protocol M, a small driver/worker protocol in Genlock's terms: one-slot channels, a counter, one crash.

rank0, per chunk: picks RUN, NOOP (skip the chunk) or SHUT; puts it into each worker's header slot, in worker
order; if RUN, puts a payload into each worker's slot, then makes K calls in lockstep with everyone, and takes
each worker's ack, in worker order. Any rank may crash once; after that any live rank may abort.

    genlock check examples/protocol_m.py --param W=3 --param C=2 --param K=3

Its state space is known from four other checkers: (W, C, K) = (3, 2, 3) has 32,826 states, (5, 2, 3) has 2,253,672.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from genlock import By, Meet, Protocol, Put, Role, Row, Scope, Slot, State, Take

ALONE = ("HEADER.put_header", "PAYLOAD.put_payload", "ACK.take_ack")
"""With one worker there is none before the last."""
ONE_CALL = ("INSIDE.leave_call",)
"""With one call a chunk none is before the last."""

HEADER, PAYLOAD, ACK = Slot("header"), Slot("payload"), Slot("ack")


@dataclass(frozen=True)
class V:
    """`worker`: whose turn it is, from 1. `count`: calls made so far, over all chunks."""

    worker: int = 1
    kind: str = ""
    chunk: int = 0
    count: int = 0


def whose(v: V) -> int:
    return v.worker


def its_kind(v: V) -> str:
    return v.kind


def token(v: V) -> str:
    return "full"


def says(kind: str) -> Callable[[V, object], bool]:
    def is_kind(v: V, data: object) -> bool:
        """the header says so"""
        return data == kind

    return is_kind


def pick(v: V, kind: str) -> V:
    return replace(v, kind=kind)


def turn(v: V, data: object) -> V:
    return replace(v, worker=v.worker + 1)


def done(v: V, data: object) -> V:
    return replace(v, worker=1, kind="")


def next_chunk(v: V, data: object) -> V:
    return replace(v, worker=1, kind="", chunk=v.chunk + 1)


def arrive(v: V, data: object) -> V:
    return replace(v, count=v.count + 1)


def start(finite: bool) -> V:
    return V()


def protocol(W: int = 3, C: int = 2, K: int = 3) -> Protocol:
    """W workers, at most C chunks, K calls a chunk."""

    def kinds(v: V, scope: Scope) -> Iterable[str]:
        return ("RUN", "NOOP", "SHUT") if v.chunk < C else ("SHUT",)

    def more(v: V, data: object) -> bool:
        """there is a worker after this one"""
        return v.worker < W

    def last(kind: str) -> Callable[[V, object], bool]:
        def is_last(v: V, data: object) -> bool:
            """this is the last worker"""
            return v.worker == W and v.kind == kind

        return is_last

    def chunk_over(v: V, data: object) -> bool:
        """K calls are made"""
        return v.count % K == 0

    def calls_left(v: V, data: object) -> bool:
        """fewer than K calls are made"""
        return v.count % K != 0

    calls = (
        Row("CALL", "arrive", "INSIDE", effect=arrive),
        Row("INSIDE", "leave_call", "CALL", gate=Meet(), guards=(calls_left,)),
        Row("INSIDE", "leave_chunk", "ACK", gate=Meet(), guards=(chunk_over,)),
    )
    live = ("IDLE", "HEADER", "PAYLOAD", "CALL", "INSIDE", "ACK")
    lost = tuple(Row(state, "peer_lost", "ABORTED", By.DETECTION) for state in live)
    to_header, to_payload = Put(HEADER, whose), Put(PAYLOAD, whose)
    driver = (
        Row("IDLE", "pick", "HEADER", By.ENVIRONMENT, choices=kinds, effect=pick),
        Row("HEADER", "put_header", "HEADER", gate=to_header, send=its_kind, guards=(more,), effect=turn),
        Row("HEADER", "put_last_run", "PAYLOAD", gate=to_header, send=its_kind, guards=(last("RUN"),), effect=done),
        Row(
            "HEADER", "put_last_noop", "IDLE", gate=to_header, send=its_kind, guards=(last("NOOP"),), effect=next_chunk
        ),
        Row("HEADER", "put_last_shut", "EXIT", gate=to_header, send=its_kind, guards=(last("SHUT"),), effect=done),
        Row("PAYLOAD", "put_payload", "PAYLOAD", gate=to_payload, send=token, guards=(more,), effect=turn),
        Row("PAYLOAD", "put_last_payload", "CALL", gate=to_payload, send=token, guards=(last(""),), effect=done),
        *calls,
        Row("ACK", "take_ack", "ACK", gate=Take(ACK, whose), guards=(more,), effect=turn),
        Row("ACK", "take_last_ack", "IDLE", gate=Take(ACK, whose), guards=(last(""),), effect=next_chunk),
        *lost,
    )
    worker = (
        Row("IDLE", "take_run", "PAYLOAD", gate=Take(HEADER), guards=(says("RUN"),)),
        Row("IDLE", "take_noop", "IDLE", gate=Take(HEADER), guards=(says("NOOP"),)),
        Row("IDLE", "take_shut", "EXIT", gate=Take(HEADER), guards=(says("SHUT"),)),
        Row("PAYLOAD", "take_payload", "CALL", gate=Take(PAYLOAD)),
        *calls,
        Row("ACK", "put_ack", "IDLE", gate=Put(ACK), send=token),
        *(row for row in lost if row.state != "HEADER"),
    )
    ends = (State("EXIT", "end", terminal=True), State("ABORTED", "end", terminal=True, failed=True))
    states = (*(State(name, name.lower()) for name in live), *ends)

    return Protocol(
        "protocol_m",
        "1",
        Role("rank0", "IDLE", states, driver, start),
        Role("worker", "IDLE", tuple(s for s in states if s.name != "HEADER"), worker, start),
        schedule=(),
        slots=(HEADER, PAYLOAD, ACK),
        counter=lambda v: v.count,
        keeps=True,
        ranks=W + 1,
        may_be_unreached=tuple(ALONE if W == 1 else ()) + tuple(ONE_CALL if K == 1 else ()),
    )
