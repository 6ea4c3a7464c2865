"""Sketches of twelve hangs of real systems, in the language of docs/language.md: each before its mend, and after.

Each function returns a protocol, with the public report that it is drawn from. They are as small as shows the hang;
what is left out of each system is everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from genlock.model.tables import (
    By,
    Cell,
    Collective,
    Fifo,
    Gate,
    Group,
    Kind,
    Link,
    Post,
    Protocol,
    Put,
    Receive,
    Role,
    Row,
    Scope,
    See,
    Send,
    Sent,
    Set,
    State,
    Take,
    any_of,
    each,
    everyone,
    least,
    mesh,
    total,
)

END, DEAD = State("END", "", terminal=True), State("DEAD", "", terminal=True, failed=True)


def states(*names: str, dead: bool = False) -> tuple[State, ...]:
    return (*(State(name, "") for name in names), END, *((DEAD,) if dead else ()))


def op(name: str, kind: Kind, group: str = "world", root: int | None = None, result: Any = None) -> Collective:
    return Collective(name, kind, group, root, "int64", "1", "", result)


def only(*ranks: int) -> Callable[[Scope], Iterable[int]]:
    return lambda scope: ranks


def others(scope: Scope) -> Iterable[int]:
    return range(1, scope.ranks)


def is_(value: Any) -> Callable[[Any, Any], bool]:
    def is_it(v: Any, data: Any) -> bool:
        return bool(data == value)

    return is_it


def to(rank: int) -> Callable[[Any], int]:
    return lambda v: rank


def says(value: Any) -> Callable[[Any], Any]:
    return lambda v: value


def sets(**values: Any) -> Callable[[Any, Any], Any]:
    return lambda v, data: replace(v, **values)


def keeps(name: str) -> Callable[[Any, Any], Any]:
    return lambda v, data: replace(v, **{name: data})


def adds(name: str, by: int = 1) -> Callable[[Any, Any], Any]:
    return lambda v, data: replace(v, **{name: getattr(v, name) + by})


def where(name: str, wanted: Callable[[Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(v: Any, data: Any) -> bool:
        return wanted(getattr(v, name))

    return holds


def zero_or_one(v: Any, scope: Scope) -> Iterable[int]:
    return (0, 1)


# ── 1. nano-vllm 246: a buffer and an event, no acknowledgement ──────────────────────────────────────


@dataclass(frozen=True)
class Buffer:
    """`command`: the one at hand, from 1. `worker`: whose turn it is, or of a worker who one is. `read`: its length."""

    command: int = 1
    worker: int = 1
    read: int = 0


def shared_buffer(workers: int = 1, commands: int = 2, mend: str = "none", collectives: bool = False) -> Protocol:  # noqa: C901  # a page is easier to read as one
    """`mend`: none, ack, or ack_then_clear, which loses a wake-up again. `collectives`: every command has one."""
    length, data = Cell("length", 0), Cell("data", 0)
    event, ack = Cell("event", False, others), Cell("ack", True, others)
    run = op("run", Kind.ALL_REDUCE)
    last = commands + 1

    def whose(v: Buffer) -> int:
        return v.worker

    def command(v: Buffer) -> int:
        return v.command

    def more(v: Buffer, seen: Any) -> bool:
        return v.worker < workers

    def no_more(v: Buffer, seen: Any) -> bool:
        return v.worker == workers

    def one_more(v: Buffer, seen: Any) -> bool:
        return v.worker < workers and seen is True

    def the_last(v: Buffer, seen: Any) -> bool:
        return v.worker == workers and seen is True

    def with_collective(v: Buffer, seen: Any) -> bool:
        return collectives or command_of(v) == last

    def without(v: Buffer, seen: Any) -> bool:
        return not with_collective(v, seen)

    def command_of(v: Buffer) -> int:
        return v.read or v.command

    def is_over(v: Buffer, seen: Any) -> bool:
        return command_of(v) == last

    def goes_on(v: Buffer, seen: Any) -> bool:
        return command_of(v) != last

    def torn(v: Buffer, seen: Any) -> bool:
        return bool(seen != v.read)

    def whole(v: Buffer, seen: Any) -> bool:
        return bool(seen == v.read)

    turn, first = adds("worker"), sets(worker=1)
    waits = (
        Row("ACK", "acked", "CLEAR", gate=See(ack, whose), guards=(is_(True),)),
        Row("CLEAR", "clear_ack", "ACK", gate=Set(ack, whose), send=says(False), guards=(more,), effect=turn),
        Row("CLEAR", "clear_last", "LENGTH", gate=Set(ack, whose), send=says(False), guards=(no_more,), effect=first),
    )
    engine = (
        *(waits if mend != "none" else ()),
        Row("LENGTH", "write_length", "DATA", gate=Set(length), send=command),
        Row("DATA", "write_data", "WAKE", gate=Set(data), send=command),
        Row("WAKE", "wake", "WAKE", gate=Set(event, whose), send=says(True), guards=(more,), effect=turn),
        Row("WAKE", "wake_last", "CALL", gate=Set(event, whose), send=says(True), guards=(no_more,), effect=first),
        Row("CALL", "run", "NEXT", op=run, guards=(with_collective,)),
        Row("CALL", "run_alone", "NEXT", guards=(without,)),
        Row("NEXT", "go_on", "LENGTH" if mend == "none" else "ACK", guards=(goes_on,), effect=adds("command")),
        Row("NEXT", "stop", "END", guards=(is_over,)),
    )
    clears = Row("CLEAR", "clear", "ANSWER", gate=Set(event), send=says(False))
    answers = Row("ANSWER", "answer", "CALL", gate=Set(ack), send=says(True))
    if mend == "none":
        after: tuple[Row, ...] = (replace(clears, target="CALL"),)
    elif mend == "ack":
        after = (clears, answers)
    else:
        after = (
            replace(answers, state="CLEAR", target="ANSWER"),
            replace(clears, state="ANSWER", target="CALL"),
        )
    worker = (
        Row("WAIT", "woken", "READ1", gate=See(event), guards=(is_(True),)),
        Row("READ1", "read_length", "READ2", gate=See(length), effect=keeps("read")),
        Row("READ2", "read_data", "CLEAR", gate=See(data), guards=(whole,)),
        Row("READ2", "torn", "DEAD", gate=See(data), guards=(torn,)),
        *after,
        Row("CALL", "run", "NEXT", op=run, guards=(with_collective,)),
        Row("CALL", "run_alone", "NEXT", guards=(without,)),
        Row("NEXT", "go_on", "WAIT", guards=(goes_on,)),
        Row("NEXT", "stop", "END", guards=(is_over,)),
    )
    waiting = ("ACK", "CLEAR") if mend != "none" else ()
    answering = ("ANSWER",) if mend != "none" else ()
    return Protocol(
        "shared_buffer",
        "1",
        schedule=(run,),
        cast=(
            Role(
                "engine",
                "LENGTH" if mend == "none" else "ACK",
                states(*waiting, "LENGTH", "DATA", "WAKE", "CALL", "NEXT"),
                engine,
                ranks=only(0),
                start_at=lambda rank, scope: Buffer(),
            ),
            Role(
                "worker",
                "WAIT",
                states("WAIT", "READ1", "READ2", "CLEAR", *answering, "CALL", "NEXT", dead=True),
                worker,
                ranks=others,
                start_at=lambda rank, scope: Buffer(worker=rank),
            ),
        ),
        shared=(length, data, event, ack) if mend != "none" else (length, data, event),
        ranks=workers + 1,
        may_be_unreached=("READ2.torn", "CALL.run_alone", "WAKE.wake", "CLEAR.clear_ack", "engine.CALL.run_alone")
        if mend != "none"
        else ("READ2.torn", "CALL.run_alone", "WAKE.wake"),
    )


# ── 2. SGLang 26923: an early return before an all-reduce ────────────────────────────────────────────


@dataclass(frozen=True)
class Tick:
    """`at`: ticks so far. `here`: what is local to the rank. `need`: what all agreed on."""

    at: int = 0
    here: int = 0
    need: bool = False


def early_return(mended: bool = False, ticks: int = 2) -> Protocol:
    requests, reduce_ = (
        op("broadcast_reqs", Kind.BROADCAST, root=0),
        op("all_reduce_min", Kind.ALL_REDUCE, result=least),
    )
    forward = op("forward", Kind.ALL_GATHER)

    def here(v: Tick) -> int:
        return v.here

    gate = Row("GATE", "reduce", "WORK", op=reduce_, send=here)
    some, none = where("here", bool), where("here", lambda n: not n)
    rows = (
        Row("TICK", "receive", "CHECK", op=requests, guards=(where("at", lambda n: n < ticks),)),
        Row("TICK", "stop", "END", guards=(where("at", lambda n: n == ticks),)),
        Row("CHECK", "look", "GATE", choices=zero_or_one, effect=keeps("here")),
        *((gate,) if mended else (replace(gate, guards=(some,)), Row("GATE", "return", "WORK", guards=(none,)))),
        Row("WORK", "forward", "TICK", op=forward, effect=lambda v, data: Tick(v.at + 1)),
    )
    scheduler = Role(
        "scheduler",
        "TICK",
        states("TICK", "CHECK", "GATE", "WORK"),
        rows,
        ranks=everyone,
        start_at=lambda rank, scope: Tick(),
    )
    return Protocol("early_return", "1", schedule=(requests, reduce_, forward), cast=(scheduler,))


# ── 3. TensorRT-LLM 14020: a local count gates an all-gather ─────────────────────────────────────────


def local_gate(mend: str = "none", ticks: int = 2) -> Protocol:
    """`mend`: none, vote, or subgroup: the vote is over half of the ranks."""
    votes = "half" if mend == "subgroup" else "world"
    fetch, vote = op("bcast", Kind.BROADCAST, root=0), op("vote_or", Kind.ALL_REDUCE, votes, result=any_of)
    gather, forward = op("allgather", Kind.ALL_GATHER), op("forward", Kind.ALL_GATHER)
    # on the wire the two differ, as one is of another size
    forward = replace(forward, size="batch")

    def none_fits(v: Tick) -> bool:
        return not v.here

    def needed(v: Tick, data: Any) -> bool:
        return v.need if mend != "none" else not v.here

    def not_needed(v: Tick, data: Any) -> bool:
        return not needed(v, data)

    again = lambda v, data: Tick(v.at + 1)  # noqa: E731
    rows = (
        Row("TICK", "fetch", "FIT", op=fetch, guards=(where("at", lambda n: n < ticks),)),
        Row("TICK", "stop", "END", guards=(where("at", lambda n: n == ticks),)),
        Row("FIT", "fit", "GATE" if mend == "none" else "VOTE", choices=zero_or_one, effect=keeps("here")),
        *((Row("VOTE", "vote", "GATE", op=vote, send=none_fits, effect=keeps("need")),) if mend != "none" else ()),
        Row("GATE", "transfer", "TICK", op=gather, guards=(needed,), effect=again),
        Row("GATE", "forward", "TICK", op=forward, guards=(not_needed,), effect=again),
    )
    names = ("TICK", "FIT", "GATE") if mend == "none" else ("TICK", "FIT", "VOTE", "GATE")
    rank = Role("rank", "TICK", states(*names), rows, ranks=everyone, start_at=lambda rank, scope: Tick())
    schedule = (fetch, gather, forward) if mend == "none" else (fetch, vote, gather, forward)

    def halves(scope: Scope) -> Iterable[Iterable[int]]:
        middle = scope.ranks // 2
        return (range(middle), range(middle, scope.ranks))

    return Protocol(
        "local_gate",
        "1",
        schedule=schedule,
        cast=(rank,),
        groups=(Group("half", halves),) if mend == "subgroup" else (),
    )


# ── 4. vLLM 45644, 45224: a ring with a flag a reader; a wake-up that is lost ────────────────────────


@dataclass(frozen=True)
class Ring:
    """`message`: the one at hand, from 0. `reader`: whose flag is next. `me`: the reader that one is."""

    message: int = 0
    reader: int = 1
    me: int = 0


def ring(messages: int = 3, blocks: int = 2, readers: int = 2, mended: bool = False) -> Protocol:
    """A reader dies, and the writer waits for its flag; mended: a monitor sets `shutdown`, which ends every wait."""
    monitor = readers + 1
    written = Cell("written", False, lambda scope: range(blocks))
    read = Cell("read", True, lambda scope: [(b, r) for b in range(blocks) for r in range(1, readers + 1)])
    shutdown, finished = Cell("shutdown", False), Fifo("finished")

    def block(v: Ring) -> int:
        return v.message % blocks

    def flag(v: Ring) -> tuple[int, int]:
        return (v.message % blocks, v.me or v.reader)

    def more(v: Ring, data: Any) -> bool:
        return v.reader < readers

    def last(v: Ring, data: Any) -> bool:
        return v.reader == readers

    def both(one: Callable[[Any, Any], bool], other: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
        return lambda v, data: one(v, data) and other(v, data)

    turn, first = adds("reader"), sets(reader=1)
    ended = (Row("ACQUIRE", "cancelled", "END", gate=See(shutdown), guards=(is_(True),)),) if mended else ()
    left = where("message", lambda n: n < messages)
    over = where("message", lambda n: n == messages)
    tells = Row("DONE", "tell", "END", gate=Put(finished), send=says(1))
    writer = (
        Row("LOOP", "go_on", "ACQUIRE", guards=(left,)),
        Row("LOOP", "stop", "DONE" if mended else "END", guards=(over,)),
        *((tells,) if mended else ()),
        Row("ACQUIRE", "acquire_write", "ACQUIRE", gate=See(read, flag), guards=(both(more, is_(True)),), effect=turn),
        Row("ACQUIRE", "acquired", "UNWRITTEN", gate=See(read, flag), guards=(both(last, is_(True)),), effect=first),
        *ended,
        Row("UNWRITTEN", "unwritten", "UNREAD", gate=Set(written, block), send=says(False)),
        Row("UNREAD", "unread", "UNREAD", gate=Set(read, flag), send=says(False), guards=(more,), effect=turn),
        Row("UNREAD", "all_unread", "WRITTEN", gate=Set(read, flag), send=says(False), guards=(last,), effect=first),
        Row("WRITTEN", "written", "LOOP", gate=Set(written, block), send=says(True), effect=adds("message")),
    )
    reader = (
        Row("LOOP", "go_on", "ACQUIRE", guards=(left,)),
        Row("LOOP", "stop", "END", guards=(over,)),
        Row("ACQUIRE", "is_unread", "OWN", gate=See(read, flag), guards=(is_(False),)),
        Row("OWN", "is_written", "READ", gate=See(written, block), guards=(is_(True),)),
        *ended,
        *(replace(row, state="OWN") for row in ended),
        Row("READ", "mark_read", "LOOP", gate=Set(read, flag), send=says(True), effect=adds("message")),
    )
    watching = (
        Row("WATCH", "finished", "END", gate=Take(finished)),
        Row("WATCH", "sees_death", "TELL", By.DETECTION),
        Row("TELL", "shut_down", "END", gate=Set(shutdown), send=says(True)),
    )
    roles = [
        Role(
            "writer",
            "LOOP",
            states("LOOP", "ACQUIRE", "UNWRITTEN", "UNREAD", "WRITTEN", *(("DONE",) if mended else ())),
            writer,
            ranks=only(0),
            start_at=lambda rank, scope: Ring(),
        ),
        Role(
            "reader",
            "LOOP",
            states("LOOP", "ACQUIRE", "OWN", "READ"),
            reader,
            ranks=only(*range(1, readers + 1)),
            start_at=lambda rank, scope: Ring(me=rank),
        ),
    ]
    if mended:
        roles.append(Role("monitor", "WATCH", states("WATCH", "TELL"), watching, ranks=only(monitor)))
    return Protocol(
        "ring",
        "1",
        cast=tuple(roles),
        shared=(written, read, *((shutdown, finished) if mended else ())),
        ranks=readers + 1 + mended,
        may_be_unreached=("ACQUIRE.cancelled", "OWN.cancelled") if mended else (),
    )


def lost_wake_up(mended: bool = False) -> Protocol:
    """The only wake-up is lost, and the reader sleeps; mended: a sleeper looks again after a while."""
    written, notify = Cell("written", False), Cell("notify", False)
    writer = (
        Row("WRITE", "write", "NOTIFY", gate=Set(written), send=says(True)),
        Row("NOTIFY", "notify", "END", gate=Set(notify), send=says(True)),
        Row("NOTIFY", "lost", "END", By.FAULT, fault="lost"),
    )
    reader = (
        Row("LOOK", "is_written", "END", gate=See(written), guards=(is_(True),)),
        Row("LOOK", "is_not", "SLEEP", gate=See(written), guards=(is_(False),)),
        Row("SLEEP", "woken", "LOOK", gate=See(notify), guards=(is_(True),)),
        *((Row("SLEEP", "looks_again", "LOOK"),) if mended else ()),
    )
    return Protocol(
        "lost_wake_up",
        "1",
        shared=(written, notify),
        ranks=2,
        cast=(
            Role("writer", "WRITE", states("WRITE", "NOTIFY"), writer, ranks=only(0)),
            Role("reader", "LOOK", states("LOOK", "SLEEP"), reader, ranks=only(1)),
        ),
    )


# ── 5. vLLM 23985: a worker whose answer nobody reads fails ──────────────────────────────────────────


@dataclass(frozen=True)
class Calls:
    """`done`: calls so far. `worker`: whose command is next."""

    done: int = 0
    worker: int = 1


def unread_failure(mend: str = "none", calls: int = 2) -> Protocol:
    """`mend`: none, error (the driver is told), or kill: it then kills the workers too. rank1 alone answers."""
    command, reply = Fifo("cmd", 2, others), Fifo("reply", 2)
    err, shutdown = Cell("err", False), Cell("shutdown", False)
    reduce_ = op("all_reduce", Kind.ALL_REDUCE, "workers")

    def whose(v: Calls) -> int:
        return v.worker

    def word(v: Calls) -> str:
        return "call" if v.done < calls else "stop"

    def at_first(v: Calls, data: Any) -> bool:
        return v.worker == 1

    def call_sent(v: Calls, data: Any) -> bool:
        return v.worker == 2 and v.done < calls

    def stop_sent(v: Calls, data: Any) -> bool:
        return v.worker == 2 and v.done == calls

    told = mend != "none"
    driver = (
        Row("PUT", "put", "PUT", gate=Put(command, whose), send=word, guards=(at_first,), effect=sets(worker=2)),
        Row(
            "PUT", "put_last", "REPLY", gate=Put(command, whose), send=word, guards=(call_sent,), effect=sets(worker=1)
        ),
        Row("PUT", "put_stop", "END", gate=Put(command, whose), send=word, guards=(stop_sent,)),
        Row("REPLY", "reply", "PUT", gate=Take(reply), effect=adds("done")),
        *(
            (
                Row("REPLY", "error", "SHUT", gate=See(err), guards=(is_(True),)),
                Row("SHUT", "shut_down", "DEAD", gate=Set(shutdown), send=says(True)),
            )
            if told
            else ()
        ),
    )
    killed = [
        Row(state, "killed", "DEAD", gate=See(shutdown), guards=(is_(True),), interrupts=state == "CALL")
        for state in (("TAKE", "CALL", "ANSWER") if mend == "kill" else ())
    ]

    def takes(after: str) -> tuple[Row, ...]:
        return (
            Row("TAKE", "take", "CALL", gate=Take(command), guards=(is_("call"),)),
            Row("TAKE", "stop", "END", gate=Take(command), guards=(is_("stop"),)),
            Row("CALL", "all_reduce", after, op=reduce_),
        )

    output = (*takes("ANSWER"), Row("ANSWER", "answer", "TAKE", gate=Put(reply), send=says(1)), *killed)
    other = (
        *takes("TAKE"),
        Row("CALL", "raises", "TELL" if told else "TAKE", By.FAULT, fault="exception"),
        *((Row("TELL", "tell", "TAKE", gate=Set(err), send=says(True)),) if told else ()),
        *(row for row in killed if row.state != "ANSWER"),
    )
    return Protocol(
        "unread_failure",
        "1",
        schedule=(reduce_,),
        ranks=3,
        groups=(Group("workers", lambda scope: [others(scope)]),),
        shared=(command, reply, *((err, shutdown) if told else ())),
        cast=(
            Role(
                "driver",
                "PUT",
                states("PUT", "REPLY", *(("SHUT",) if told else ()), dead=told),
                driver,
                ranks=only(0),
                start_at=lambda rank, scope: Calls(),
            ),
            Role("output", "TAKE", states("TAKE", "CALL", "ANSWER", dead=mend == "kill"), output, ranks=only(1)),
            Role(
                "other",
                "TAKE",
                states("TAKE", "CALL", *(("TELL",) if told else ()), dead=mend == "kill"),
                other,
                ranks=only(2),
            ),
        ),
        may_be_unreached=(
            "REPLY.error",
            "SHUT.shut_down",
            "TELL.tell",
            *(f"{s}.killed" for s in ("TAKE", "CALL", "ANSWER") if mend == "kill"),
        )
        if told
        else (),
    )


# ── 6. TensorRT-LLM 10665: an isend that only its sender's next wait would finish ────────────────────


@dataclass(frozen=True)
class Stage:
    rank: int
    at: int = 0


def stage(rank: int, scope: Scope) -> Stage:
    return Stage(rank)


def slow_isend(way: str = "rendezvous", ranks: int = 2, iterations: int = 2) -> Protocol:
    """`way`: rendezvous (progress only inside the library), eager, or blocking."""
    requests, activations = Link("req"), Link("act")

    def next_(v: Stage) -> int:
        return v.rank + 1

    def before(v: Stage) -> int:
        return v.rank - 1

    first, last = (lambda v, d: v.rank == 0), (lambda v, d: v.rank == ranks - 1)
    inner, later = (lambda v, d: v.rank > 0), (lambda v, d: v.rank < ranks - 1)

    def guards(*wanted: Callable[[Any, Any], bool]) -> tuple[Callable[[Any, Any], bool], ...]:
        return wanted

    wait: Gate = Send(requests, next_) if way == "rendezvous" else Sent(requests, next_)
    isend: Gate | None = {"rendezvous": None, "eager": Post(requests, next_), "blocking": Send(requests, next_)}[way]
    fresh, old = where("at", lambda n: n == 0), where("at", lambda n: n > 0)
    left, over = where("at", lambda n: n < iterations), where("at", lambda n: n == iterations)
    handles = way != "blocking"
    waiting = (
        Row("WAIT", "wait_handle", "ISEND", gate=wait, guards=(later, old)),
        Row("WAIT", "no_handle", "ISEND", guards=(later, fresh)),
        Row("WAIT", "nobody", "FORWARD", guards=(last,)),
        Row("DRAIN", "wait_last", "END", gate=wait, guards=(later,)),
        Row("DRAIN", "nothing", "END", guards=(last,)),
    )
    straight = (
        Row("WAIT", "go_on", "ISEND", guards=(later,)),
        Row("WAIT", "nobody", "FORWARD", guards=(last,)),
    )
    rows = (
        Row("LOOP", "recv_requests", "WAIT", gate=Receive(requests, before), guards=(inner, left)),
        Row("LOOP", "have_requests", "WAIT", guards=(first, left)),
        Row("LOOP", "stop", "DRAIN" if handles else "END", guards=(over,)),
        *(waiting if handles else straight),
        Row("ISEND", "isend", "FORWARD", gate=isend, send=says("requests")),
        Row("FORWARD", "recv_act", "PASS", gate=Receive(activations, before), guards=(inner,)),
        Row("FORWARD", "compute", "PASS", guards=(first,)),
        Row(
            "PASS",
            "send_act",
            "LOOP",
            gate=Send(activations, next_),
            send=says("act"),
            guards=(later,),
            effect=adds("at"),
        ),
        Row("PASS", "output", "LOOP", guards=(last,), effect=adds("at")),
    )
    names = ("LOOP", "WAIT", "ISEND", "FORWARD", "PASS", *(("DRAIN",) if handles else ()))
    return Protocol(
        "slow_isend",
        "1",
        shared=(requests, activations),
        ranks=ranks,
        cast=(Role("stage", "LOOP", states(*names), rows, ranks=everyone, start_at=stage),),
    )


# ── 7. vLLM 36594: a wake-up that overtakes a pause ──────────────────────────────────────────────────


@dataclass(frozen=True)
class Engine:
    me: int = 0
    """Its number: engines are 0 and 1."""
    run: bool = False
    work: int = 0
    paused: bool = False
    pending: bool = False


@dataclass(frozen=True)
class Front:
    engine: int = 0
    answers: int = 0


def overtaken_pause(mend: str = "none") -> Protocol:  # noqa: C901  # a page is easier to read as one
    """Two engines step together while any has work; a frontend pauses both, updates their weights, and stops them.

    `mend`: none; ignore, which drops a START while paused; or two_phases: an engine that is to pause goes on stepping
    until the all-reduce of a step says that all of them are.
    """
    engines, front = (0, 1), 2
    inbox, answer, wave = Fifo("inbox", 5, lambda scope: engines), Fifo("answer", 2), Fifo("wave", 2)
    step = op("step", Kind.ALL_REDUCE, "dp", result=each)
    update = op("update", Kind.BARRIER, "weights")
    two = mend == "two_phases"

    def me(v: Engine) -> int:
        return v.me

    def status(v: Engine) -> tuple[bool, bool]:
        return (v.work > 0, v.pending)

    def stepped(v: Engine, data: tuple[tuple[bool, bool], ...]) -> Engine:
        if two and all(pending for _, pending in data):
            return replace(v, run=False, paused=True, pending=False)
        left = max(0, v.work - 1) if not v.paused else v.work
        return replace(v, work=left, run=any(work for work, _ in data) or (two and any(p for _, p in data)))

    def got(v: Engine, data: str) -> Engine:
        if data == "REQ":
            return replace(v, work=v.work + 1, run=v.run or not v.paused)
        if data == "START":
            return v if v.paused and (two or mend == "ignore") else replace(v, run=True)
        return replace(v, pending=True, run=True) if two else replace(v, paused=True, run=False)

    def ordinary(v: Engine, data: Any) -> bool:
        return data in ("REQ", "START")

    def idle(v: Engine, data: Any) -> bool:
        return not v.run

    def running(v: Engine, data: Any) -> bool:
        return v.run

    def pauses(v: Engine, data: Any) -> bool:
        return bool(data == "PAUSE")

    def wakes(v: Engine, data: Any) -> bool:
        return bool(data == "REQ") and not v.run and not v.paused

    def no_wake(v: Engine, data: Any) -> bool:
        return ordinary(v, data) and not wakes(v, data)

    def to_answer(v: Engine, data: Any) -> bool:
        return v.paused

    def from_loop(gate: Any, state: str, name: str) -> tuple[Row, ...]:
        return (
            Row(state, f"{name}_wakes", "WAVE", gate=gate, guards=(wakes,), effect=got),
            Row(state, f"{name}_more", "LOOP", gate=gate, guards=(no_wake,), effect=got),
            Row(state, f"{name}_pause", "LOOP" if two else "ANSWER", gate=gate, guards=(pauses,), effect=got),
            Row(state, f"{name}_update", "UPDATE", gate=gate, guards=(is_("UPDATE"),)),
            Row(state, f"{name}_stop", "END", gate=gate, guards=(is_("STOP"),)),
        )

    def paused_now(v: Engine, data: Any) -> bool:
        return v.paused and not v.run

    engine = (
        Row("LOOP", "is_idle", "IDLE", guards=(idle,)),
        *from_loop(Take(inbox, me), "IDLE", "take"),
        Row("LOOP", "runs", "STEP", guards=(running,)),
        Row("LOOP", "looks", "POLL", guards=(running,)),
        *from_loop(Take(inbox, me), "POLL", "poll"),
        Row("POLL", "nothing", "STEP"),
        Row("WAVE", "asks_for_wave", "LOOP", gate=Put(wave), send=lambda v: 1 - v.me),
        Row("STEP", "step", "CHECK" if two else "LOOP", op=step, send=status, effect=stepped),
        *(
            (
                Row("CHECK", "goes_on", "LOOP", guards=(lambda v, d: not paused_now(v, d),)),
                Row("CHECK", "all_pause", "ANSWER", guards=(paused_now,)),
            )
            if two
            else ()
        ),
        Row("ANSWER", "answer", "LOOP", gate=Put(answer), send=says("paused"), guards=(to_answer,)),
        Row("UPDATE", "update", "LOOP", op=update),
    )

    def whose(v: Front) -> int:
        return v.engine

    def tell(state: str, word: str, after: str) -> tuple[Row, ...]:
        put, name = Put(inbox, whose), word.lower()
        first, last = where("engine", lambda n: n == 0), where("engine", lambda n: n == 1)
        return (
            Row(state, name, state, gate=put, send=says(word), guards=(first,), effect=sets(engine=1)),
            Row(state, f"{name}_last", after, gate=put, send=says(word), guards=(last,), effect=sets(engine=0)),
        )

    frontend = (
        Row("REQUEST", "request", "PAUSE", gate=Put(inbox, to(0)), send=says("REQ")),
        *tell("PAUSE", "PAUSE", "ANSWERS"),
        Row(
            "ANSWERS",
            "answered",
            "ANSWERS",
            gate=Take(answer),
            guards=(where("answers", lambda n: n == 0),),
            effect=adds("answers"),
        ),
        Row("ANSWERS", "all_answered", "UPDATE", gate=Take(answer), guards=(where("answers", lambda n: n == 1),)),
        *tell("UPDATE", "UPDATE", "STOP"),
        *tell("STOP", "STOP", "END"),
    )
    coordinator = (
        Row("WAIT", "asked", "START", gate=Take(wave), effect=lambda v, data: data),
        Row("START", "start", "WAIT", gate=Put(inbox, lambda v: v), send=says("START")),
        Row("WAIT", "stop", "END", By.ENVIRONMENT),
    )
    names = ("LOOP", "IDLE", "POLL", "WAVE", "STEP", "ANSWER", "UPDATE", *(("CHECK",) if two else ()))
    poll_rows = tuple(f"{state}.{row.event}" for state in ("POLL", "IDLE") for row in engine if row.state == state)
    return Protocol(
        "overtaken_pause",
        "1",
        schedule=(step, update),
        ranks=4,
        shared=(inbox, answer, wave),
        groups=(Group("dp", lambda scope: [engines]), Group("weights", lambda scope: [engines])),
        cast=(
            Role(
                "engine",
                "LOOP",
                states(*names),
                engine,
                ranks=only(*engines),
                start_at=lambda rank, scope: Engine(rank),
            ),
            Role(
                "frontend",
                "REQUEST",
                states("REQUEST", "PAUSE", "ANSWERS", "UPDATE", "STOP"),
                frontend,
                ranks=only(front),
                start_at=lambda rank, scope: Front(),
            ),
            Role("coordinator", "WAIT", states("WAIT", "START"), coordinator, ranks=only(3)),
        ),
        may_be_unreached=poll_rows,
    )


# ── 8. PyTorch DDP 38174, 44425: uneven inputs ───────────────────────────────────────────────────────


@dataclass(frozen=True)
class Inputs:
    """`left`: batches that the rank still has. `at`: batches so far. `agreed`: how many have input, or if all sync."""

    left: int
    at: int = 0
    agreed: int = 0


def uneven_inputs(mend: str = "none", no_sync: bool = False, vote: bool = False) -> Protocol:
    """`mend`: none or join. `no_sync`: every other batch skips the gradients. `vote`: on whether a batch syncs."""
    present = op("present", Kind.ALL_REDUCE, result=total)
    will_sync = replace(op("will_sync", Kind.ALL_REDUCE, result=any_of), size="2")
    grad = replace(op("grad", Kind.ALL_REDUCE), size="gradients")

    def has_input(v: Inputs) -> int:
        return int(v.left > 0)

    def syncs(v: Inputs) -> bool:
        return not no_sync or v.at % 2 == 0

    def asks_to_sync(v: Inputs) -> bool:
        return v.left > 0 and syncs(v)

    def does(v: Inputs, data: Any) -> bool:
        return bool(v.agreed) if vote else (v.left == 0 or syncs(v))

    def does_not(v: Inputs, data: Any) -> bool:
        return not does(v, data)

    def next_batch(v: Inputs, data: Any) -> Inputs:
        return Inputs(max(0, v.left - 1), v.at + 1)

    more, none = where("left", bool), where("left", lambda n: not n)
    if mend == "none":
        rows: tuple[Row, ...] = (
            Row("BATCH", "grad", "BATCH", op=grad, guards=(more,), effect=next_batch),
            Row("BATCH", "stop", "END", guards=(none,)),
        )
    else:
        rows = (
            Row("BATCH", "present", "JOINED", op=present, send=has_input, effect=keeps("agreed")),
            Row("JOINED", "stop", "END", guards=(where("agreed", lambda n: n == 0),)),
            Row("JOINED", "go_on", "VOTE" if vote else "GRAD", guards=(where("agreed", bool),)),
            *(
                (Row("VOTE", "will_sync", "GRAD", op=will_sync, send=asks_to_sync, effect=keeps("agreed")),)
                if vote
                else ()
            ),
            Row("GRAD", "grad", "BATCH", op=grad, guards=(does,), effect=next_batch),
            *((Row("GRAD", "skip", "BATCH", guards=(does_not,), effect=next_batch),) if no_sync else ()),
        )
    names = ("BATCH",) if mend == "none" else ("BATCH", "JOINED", *(("VOTE",) if vote else ()), "GRAD")
    trainer = Role(
        "trainer", "BATCH", states(*names), rows, ranks=everyone, start_at=lambda rank, scope: Inputs(rank + 1)
    )
    schedule = (grad,) if mend == "none" else (present, *((will_sync,) if vote else ()), grad)
    return Protocol("uneven_inputs", "1", schedule=schedule, cast=(trainer,))


# ── 9. PyTorch 172668, Megatron-LM 5100: orders of sends and receives ────────────────────────────────


def exchange(second: str = "send_first", buffer: int = 0) -> Protocol:
    """Two neighbours: the first sends first; the second too, or receives first."""
    link = Link("p2p", buffer)

    def line(peer: int, *ops: str) -> tuple[Row, ...]:
        at = [*(f"S{n}" for n in range(len(ops))), "END"]
        gates: dict[str, Gate] = {"send": Send(link, to(peer)), "recv": Receive(link, to(peer))}
        return tuple(Row(at[n], name, at[n + 1], gate=gates[name], send=says(1)) for n, name in enumerate(ops))

    orders = {"send_first": ("send", "recv"), "recv_first": ("recv", "send")}
    return Protocol(
        "exchange",
        "1",
        shared=(link,),
        ranks=2,
        cast=(
            Role("one", "S0", states("S0", "S1"), line(1, "send", "recv"), ranks=only(0)),
            Role("other", "S0", states("S0", "S1"), line(0, *orders[second]), ranks=only(1)),
        ),
    )


def send_ring(ranks: int = 4, odd_first: bool = False, buffer: int = 0) -> Protocol:
    """A ring in which each sends to the next and receives from the one before; mended: odd ranks receive first."""
    link = Link("ring", buffer)

    def right(v: Stage) -> int:
        return (v.rank + 1) % ranks

    def left(v: Stage) -> int:
        return (v.rank - 1) % ranks

    def receives_first(v: Stage, data: Any) -> bool:
        return odd_first and v.rank % 2 == 1

    def sends_first(v: Stage, data: Any) -> bool:
        return not receives_first(v, data)

    send, receive = Send(link, right), Receive(link, left)
    rows = (
        Row("FIRST", "send", "LAST", gate=send, send=says(1), guards=(sends_first,)),
        Row("LAST", "recv", "END", gate=receive, guards=(sends_first,)),
        *(
            (
                Row("FIRST", "recv_first", "LAST", gate=receive, guards=(receives_first,)),
                Row("LAST", "send_last", "END", gate=send, send=says(1), guards=(receives_first,)),
            )
            if odd_first
            else ()
        ),
    )
    return Protocol(
        "send_ring",
        "1",
        shared=(link,),
        ranks=ranks,
        cast=(Role("rank", "FIRST", states("FIRST", "LAST"), rows, ranks=everyone, start_at=stage),),
    )


# ── 10. TorchRec 3849: two groups in opposite order ──────────────────────────────────────────────────


def two_groups(shard: int = 2, replica: int = 2, order: str = "any") -> Protocol:
    """`order`: any (each device's own choice), one for all, or left_out: the second operation is not begun.

    With one replica both groups are of all ranks.
    """
    sharding, replicas = op("sharding", Kind.ALL_TO_ALL, "shard"), op("replicas", Kind.REDUCE_SCATTER, "replica")

    def pairs(v: str, scope: Scope) -> Iterable[str]:
        return ("shard", "replica") if order == "any" else ("shard",)

    def chosen(v: str, data: str) -> str:
        return data

    def is_first(name: str) -> Callable[[str, Any], bool]:
        return lambda v, data: v == name

    def shares(v: str) -> tuple[int, ...]:
        return (0,) * shard

    after = "END" if order == "left_out" else "SECOND"
    rows = [
        Row("START", "pick", "FIRST", choices=pairs, effect=chosen),
        Row("FIRST", "sharding_first", after, op=sharding, send=shares, guards=(is_first("shard"),)),
    ]
    if order != "left_out":
        rows.append(Row("SECOND", "replicas_second", "END", op=replicas, guards=(is_first("shard"),)))
    if order == "any":
        rows.append(Row("FIRST", "replicas_first", "SECOND", op=replicas, guards=(is_first("replica"),)))
        rows.append(Row("SECOND", "sharding_second", "END", op=sharding, send=shares, guards=(is_first("replica"),)))
    names = ("START", "FIRST") if order == "left_out" else ("START", "FIRST", "SECOND")
    ops = (sharding,) if order == "left_out" else (sharding, replicas)
    groups = [g for g in mesh(replica=replica, shard=shard) if g.name == "shard" or replica > 1]
    return Protocol(
        "two_groups",
        "1",
        schedule=ops,
        ranks=shard * replica,
        groups=tuple(g for g in groups if g.name in {o.group for o in ops}),
        cast=(Role("rank", "START", states(*names), tuple(rows), ranks=everyone, start_at=lambda rank, scope: ""),),
    )


# ── 11. DeepSpeed 4048: a barrier of flags that comes round too fast ─────────────────────────────────

BEGIN, COPIED_IN, REDUCED, COPIED_OUT = range(4)


@dataclass(frozen=True)
class Copies:
    call: int = 0
    other: int = 1


def flag_barrier(mended: bool = False, ranks: int = 2, calls: int = 2) -> Protocol:
    state = Cell("state", BEGIN, everyone)
    out = COPIED_OUT if mended else REDUCED

    def other(v: Copies) -> int:
        return v.other

    def come(value: int, *, last: bool) -> Callable[[Copies, Any], bool]:
        return lambda v, seen: seen == value and (v.other == ranks - 1) is last

    def begun(v: Copies, seen: Any) -> bool:
        return bool(seen != REDUCED) if mended else bool(seen == BEGIN)

    turn, first = adds("other"), sets(other=1)
    left, over = where("call", lambda n: n < calls), where("call", lambda n: n == calls)

    def waits(name: str, value: int, after: str) -> tuple[Row, ...]:
        more = (
            Row(
                name,
                f"{name.lower()}_more",
                name,
                gate=See(state, other),
                guards=(come(value, last=False),),
                effect=turn,
            ),
        )
        one = Row(
            name, f"{name.lower()}", after, gate=See(state, other), guards=(come(value, last=True),), effect=first
        )
        return (*(more if ranks > 2 else ()), one)

    calling = (
        Row("CALL", "copy_in", "IN", gate=Set(state), send=says(COPIED_IN), guards=(left,)),
        Row("CALL", "stop", "END", guards=(over,)),
    )
    root = (
        *calling,
        *waits("IN", COPIED_IN, "REDUCE"),
        Row("REDUCE", "reduced", "OUT", gate=Set(state), send=says(REDUCED)),
        *waits("OUT", out, "RESET"),
        Row("RESET", "reset", "CALL", gate=Set(state), send=says(BEGIN), effect=adds("call")),
    )
    copier = (
        *calling,
        Row("IN", "sees_reduced", "COPY", gate=See(state, to(0)), guards=(is_(REDUCED),)),
        Row("COPY", "copy_out", "OUT", gate=Set(state), send=says(out)),
        Row("OUT", "sees_begin", "RESET", gate=See(state, to(0)), guards=(begun,)),
        Row("RESET", "reset", "CALL", gate=Set(state), send=says(BEGIN), effect=adds("call")),
    )
    begin = lambda rank, scope: Copies()  # noqa: E731
    return Protocol(
        "flag_barrier",
        "1",
        shared=(state,),
        ranks=ranks,
        cast=(
            Role("root", "CALL", states("CALL", "IN", "REDUCE", "OUT", "RESET"), root, ranks=only(0), start_at=begin),
            Role("copier", "CALL", states("CALL", "IN", "COPY", "OUT", "RESET"), copier, ranks=others, start_at=begin),
        ),
    )


# ── 12. KempnerForge 104: two threads of a rank on one communicator ──────────────────────────────────


def two_threads(mended: bool = False, ranks: int = 2) -> Protocol:
    """Thread r saves, thread n+r plans the checkpoint, 2n+r runs what both post; mended: the barrier has a group."""
    mains, savers, posters = (range(n * ranks, (n + 1) * ranks) for n in range(3))
    begin, posted = Fifo("begin", 1, lambda scope: savers), Fifo("posted", 2, lambda scope: posters)
    done = Cell("done", False, lambda scope: [*mains, *savers])
    barrier, gather = op("barrier", Kind.BARRIER, "default"), op("gather", Kind.GATHER, "default", 0)
    own = op("barrier", Kind.BARRIER, "own")

    def number(v: Stage) -> int:
        return v.rank

    def its_saver(v: Stage) -> int:
        return v.rank + ranks

    def its_poster(v: Stage) -> int:
        return 2 * ranks + v.rank % ranks

    def of_its_main(v: Stage) -> int:
        return v.rank - 2 * ranks

    def of_its_saver(v: Stage) -> int:
        return v.rank - ranks

    true = says(True)
    in_between = (
        (Row("BARRIER", "barrier", "END", op=own),)
        if mended
        else (
            Row("BARRIER", "post_barrier", "WAIT", gate=Put(posted, its_poster), send=says("barrier")),
            Row("WAIT", "barrier_done", "END", gate=See(done, number), guards=(is_(True),)),
        )
    )
    main = (Row("SAVE", "start_save", "BARRIER", gate=Put(begin, its_saver), send=says(1)), *in_between)
    saver = (
        Row("IDLE", "begin", "PLAN", gate=Take(begin, number)),
        Row("PLAN", "post_gather", "WAIT", gate=Put(posted, its_poster), send=says("gather")),
        Row("WAIT", "gather_done", "END", gate=See(done, number), guards=(is_(True),)),
    )
    took = Take(posted, number)
    runs = (
        *(
            (
                Row("NEXT", "take_barrier", "BARRIER", gate=took, guards=(is_("barrier"),)),
                Row("BARRIER", "run_barrier", "TOLD", op=barrier),
                Row("TOLD", "tell_main", "NEXT", gate=Set(done, of_its_main), send=true, effect=adds("at")),
            )
            if not mended
            else ()
        ),
        Row("NEXT", "take_gather", "GATHER", gate=took, guards=(is_("gather"),)),
        Row("GATHER", "run_gather", "TELL", op=gather),
        Row("TELL", "tell_saver", "NEXT", gate=Set(done, of_its_saver), send=true, effect=adds("at")),
        Row("NEXT", "close", "END", guards=(where("at", lambda n: n == (1 if mended else 2)),)),
    )
    return Protocol(
        "two_threads",
        "1",
        schedule=(own, gather) if mended else (barrier, gather),
        ranks=3 * ranks,
        groups=(Group("default", lambda scope: [posters]), *((Group("own", lambda scope: [mains]),) if mended else ())),
        shared=(begin, posted, done),
        cast=(
            Role(
                "main",
                "SAVE",
                states("SAVE", "BARRIER", *(() if mended else ("WAIT",))),
                main,
                ranks=only(*mains),
                start_at=stage,
            ),
            Role("saver", "IDLE", states("IDLE", "PLAN", "WAIT"), saver, ranks=only(*savers), start_at=stage),
            Role(
                "communicator",
                "NEXT",
                states("NEXT", *(() if mended else ("BARRIER", "TOLD")), "GATHER", "TELL"),
                runs,
                ranks=only(*posters),
                start_at=stage,
            ),
        ),
    )
