"""Casts, groups, channels, cells, links: held against driver and workers with slots, products, and an oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import systems
from agreement import FAST, agree
from fuzz import Maker
from genlock.errors import GenlockError, ModelError, UsageError
from genlock.model.checker.engine import check
from genlock.model.checker.limits import Ended
from genlock.model.checker.parametric.prove import prove
from genlock.model.checker.reference import Graph, explore
from genlock.model.checker.report import Answer, Report, run_check
from genlock.model.claims import Invariant, Sometimes
from genlock.model.semantics.network import Network
from genlock.model.semantics.properties import GENERIC, NO_LIVELOCK
from genlock.model.semantics.query import Query
from genlock.model.semantics.whole import Whole
from genlock.model.tables import (
    By,
    Cell,
    Collective,
    Fifo,
    Gate,
    Group,
    Kind,
    Link,
    Poll,
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
    Slot,
    State,
    Take,
    beyond,
    each,
    everyone,
    is_empty,
    is_there,
    least,
    mesh,
    most,
    total,
    validate,
)

GO, END = State("GO", ""), State("END", "", terminal=True)


def op(name: str, kind: Kind, group: str = "g", root: int | None = None, result: Any = None) -> Collective:
    return Collective(name, kind, group, root, "int64", "1", "", result)


def line(name: str, *rows: Row, ranks: Callable[[Scope], Iterable[int]] = everyone, v: Any = None) -> Role:
    """A role whose rows are taken one after the other."""
    names = [f"S{n}" for n in range(len(rows))]
    placed = [replace(row, state=at, target=to) for row, at, to in zip(rows, names, [*names[1:], "END"], strict=True)]
    start = (lambda rank, scope: rank) if v == "rank" else (lambda rank, scope: v)
    return Role(name, names[0], (*(State(n, "") for n in names), END), tuple(placed), ranks=ranks, start_at=start)


def row(event: str, **how: Any) -> Row:
    return Row("", event, "", **how)


def cast(*roles: Role, ranks: int | None = None, **more: Any) -> Protocol:
    return Protocol("cast", "1", cast=roles, ranks=ranks, **more)


def checked(protocol: Protocol, ranks: int = 2, **how: Any) -> Report:
    asked = Query(protocol.name, Scope(ranks=protocol.ranks or ranks), faults=0, given=validate(protocol))
    return run_check(asked, **how)


def only(*ranks: int) -> Callable[[Scope], Iterable[int]]:
    return lambda scope: ranks


def keep(v: Any, data: Any) -> Any:
    return ("given", data)


# ── against driver and workers with slots ────────────────────────────────────────────────────────────


def as_cast(protocol: Protocol) -> Protocol:
    """The same protocol as a cast, with a channel of one place for each slot."""
    channels: dict[Any, Fifo] = {
        slot: Fifo(slot.name, 1, lambda scope: range(1, scope.ranks)) for slot in protocol.slots
    }

    def other(r: Row) -> Row:
        return replace(r, gate=replace(r.gate, slot=channels[r.gate.slot])) if isinstance(r.gate, Put | Take) else r

    def role(old: Role, ranks: Callable[[Scope], Iterable[int]]) -> Role:
        return replace(old, rows=tuple(map(other, old.rows)), ranks=ranks)

    roles = role(protocol.driver, only(0)), role(protocol.worker, lambda scope: range(1, scope.ranks))
    nobody = Protocol("", "").driver
    return replace(
        protocol, driver=nobody, worker=nobody, cast=roles, slots=(), streams=(), shared=tuple(channels.values())
    )


def few(states: int) -> None:
    if states > 500:
        raise Ended("many")


def graphs(network: Network, protocol: Protocol) -> list[Graph]:
    more = {"faults": network.faults, "kinds": network.kinds, "detection": network.detection}
    return [explore(Network(p, network.scope, **more), limit=few) for p in (network.protocol, protocol)]  # type: ignore[arg-type]


def test_a_cast_is_what_driver_and_workers_are() -> None:
    """Random networks, their slots made channels: the same states in the same order, and the same verdicts."""
    compared = 0
    for seed in range(100):
        try:
            network = Maker(seed).network()
            old, new = graphs(network, as_cast(network.protocol))
        except GenlockError:
            continue
        if old.stopped or new.stopped:
            continue
        compared += 1
        assert len(old.states) == len(new.states), seed
        assert old.edges == new.edges, seed
        assert old.seen == new.seen, seed
    assert compared > 30


def test_a_draw_has_what_it_is_held_against() -> None:
    gates = {type(r.gate) for s in range(100) if (n := _made(s)) for role in n.protocol.roles for r in role.rows}
    assert {Put, Take} <= gates


def _made(seed: int) -> Network | None:
    try:
        return Maker(seed).network()
    except GenlockError:
        return None


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────


def test_groups_know_nothing_of_each_other() -> None:
    """Two pairs have the states of one pair, squared; the same protocol on all four has others."""
    one = systems.early_return(mended=True, ticks=1)
    alone = len(explore(Network(one, Scope(ranks=2), faults=0)).states)
    schedule = tuple(replace(o, group="pair") for o in one.schedule)
    renamed = dict(zip(one.schedule, schedule, strict=True))
    role = one.cast[0]
    role = replace(role, rows=tuple(replace(r, op=renamed[r.op]) if r.op else r for r in role.rows))
    pairs = Group("pair", lambda scope: [(0, 2), (3, 1)])
    two = replace(one, schedule=schedule, cast=(role,), groups=(pairs,), ranks=4)
    assert len(explore(Network(two, Scope(ranks=4), faults=0)).states) == alone**2


def test_a_mesh_has_a_list_for_each_line() -> None:
    groups = {g.name: [tuple(m) for m in g.members(Scope())] for g in mesh(pp=2, dp=2, tp=2)}
    assert groups["tp"] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert groups["dp"] == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert groups["pp"] == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_a_root_is_a_place_in_the_list() -> None:
    tell = op("tell", Kind.BROADCAST, root=1)
    role = line("r", row("tell", op=tell, send=lambda v: v, effect=keep), row("end"), v="rank")
    lists = Group("g", lambda scope: [(0, 1), (3, 2)])
    got = Sometimes("told", "", lambda s: [s.vars(r)[1] for r in s.ranks if s.state(r) == "S1"] == [1, 1, 2, 2])
    assert checked(cast(role, ranks=4, schedule=(tell,), groups=(lists,), claims=(got,))).verdict is Answer.HOLDS


@pytest.mark.parametrize(
    ("kind", "result", "given"),
    [
        (Kind.ALL_REDUCE, total, (9, 9, 9)),
        (Kind.ALL_REDUCE, least, (2, 2, 2)),
        (Kind.ALL_REDUCE, most, (4, 4, 4)),
        (Kind.ALL_GATHER, each, ((2, 3, 4),) * 3),
        (Kind.ALL_GATHER, None, (frozenset((2, 3, 4)),) * 3),
        (Kind.REDUCE_SCATTER, total, (9, 9, 9)),
        (Kind.BARRIER, None, (None,) * 3),
        (Kind.REDUCE, total, (None, 9, None)),
        (Kind.GATHER, each, (None, (2, 3, 4), None)),
        (Kind.BROADCAST, None, (3, 3, 3)),
    ],
)
def test_what_a_collective_delivers(kind: Kind, result: Any, given: tuple[Any, ...]) -> None:
    rooted = kind in (Kind.REDUCE, Kind.GATHER, Kind.BROADCAST)
    collective = op("c", kind, root=1 if rooted else None, result=result)
    role = line("r", row("c", op=collective, send=lambda v: v + 2, effect=keep), row("end"), v="rank")
    assert_given(role, collective, given)


@pytest.mark.parametrize("kind", [Kind.SCATTER, Kind.ALL_TO_ALL])
def test_what_is_handed_out(kind: Kind) -> None:
    """Rank r puts (10 r, 10 r + 1, 10 r + 2) in."""
    collective = op("c", kind, root=1 if kind is Kind.SCATTER else None, result=None if kind is Kind.SCATTER else each)
    send = lambda v: tuple(10 * v + n for n in range(3))  # noqa: E731
    role = line("r", row("c", op=collective, send=send, effect=keep), row("end"), v="rank")
    assert_given(
        role, collective, (10, 11, 12) if kind is Kind.SCATTER else tuple((n, 10 + n, 20 + n) for n in range(3))
    )


def assert_given(role: Role, collective: Collective, given: tuple[Any, ...]) -> None:
    """Each rank that has left the collective holds what it was given, and a run comes to where all do."""

    def is_given(s: Whole) -> bool:
        return all(s.vars(r) == ("given", given[r]) for r in s.ranks if s.state(r) == "S1")

    all_have = Sometimes("all", "", lambda s: s.states == ("S1",) * 3)
    protocol = cast(role, ranks=3, schedule=(collective,), claims=(Invariant("given", "", is_given), all_have))
    assert checked(protocol).verdict is Answer.HOLDS


@pytest.mark.parametrize(("kind", "early"), [(Kind.REDUCE, (0, 2)), (Kind.SCATTER, (1,)), (Kind.BARRIER, ())])
def test_who_may_leave_before_the_others_have_come(kind: Kind, early: Sequence[int]) -> None:
    """As much as can be, for it has not been measured: all that only send."""
    collective = op("c", kind, root=None if kind is Kind.BARRIER else 1, result=each if kind is Kind.REDUCE else None)
    asked = row("c", op=collective, send=lambda v: (0, 0, 0), by=By.ENVIRONMENT)
    protocol = cast(line("r", asked, v="rank"), ranks=3, schedule=(collective,))
    graph = explore(Network(validate(protocol), Scope(ranks=3), faults=0))
    network = Network(protocol, Scope(ranks=3), faults=0)
    first = {
        r
        for state in explore(network).states
        for r in range(3)
        if network.state_name(state, r) == "END" and all(not any(q) for q in [_others(network, state, r)])
    }
    assert first == set(early), graph


def _others(network: Network, state: Any, rank: int) -> list[bool]:
    """Whether others have begun."""
    return [
        network.state_name(state, r) == "END" or network.info(state, r).op is not None
        for r in range(network.ranks)
        if r != rank
    ]


# ── links: an oracle ─────────────────────────────────────────────────────────────────────────────────

Ops = list[list[tuple[str, int]]]


def left_over(programs: Ops, buffer: int) -> dict[int, int]:
    """Return where each rank that cannot end stands: sends and receives of fixed programs have one outcome."""
    at = [0] * len(programs)
    begun = [False] * len(programs)
    sent: dict[tuple[int, int], int] = {}
    posted: dict[tuple[int, int], int] = {}
    moved = True
    while moved:
        moved = False
        for rank, program in enumerate(programs):
            if at[rank] == len(program):
                continue
            what, peer = program[at[rank]]
            key = (rank, peer) if what == "send" else (peer, rank)
            count = sent if what == "send" else posted
            if not begun[rank]:
                count[key] = count.get(key, 0) + 1
                begun[rank] = moved = True
            there = sent.get(key, 0) - posted.get(key, 0)
            if there <= buffer if what == "send" else there >= 0:
                at[rank], begun[rank], moved = at[rank] + 1, False, True
    return {rank: at[rank] for rank, program in enumerate(programs) if at[rank] < len(program)}


def test_the_oracle_knows_a_ring() -> None:
    ring = [[("send", 1), ("recv", 1)], [("send", 0), ("recv", 0)]]
    assert left_over(ring, 0) == {0: 0, 1: 0}
    assert left_over(ring, 1) == {}


def test_links_agree_with_the_oracle() -> None:
    dice, stuck = random.Random(11), 0
    for _ in range(150):
        ranks = dice.choice([2, 2, 3])
        programs: Ops = [
            [
                (dice.choice(["send", "recv"]), dice.choice([p for p in range(ranks) if p != r]))
                for _ in range(dice.randint(1, 3))
            ]
            for r in range(ranks)
        ]
        buffer = dice.randint(0, 2)
        expected = left_over(programs, buffer)
        report = checked(of_links(programs, buffer), properties=("no_stranding",))
        held = report.result.verdict("no_stranding").holds
        assert held is not bool(expected), (programs, buffer)
        if report.counterexample is not None:
            stuck += 1
            found = {s.rank: int(s.state[1:]) for s in report.counterexample.stuck}
            assert found == expected, (programs, buffer)
    assert stuck > 30


def of_links(programs: Ops, buffer: int) -> Protocol:
    link = Link("link", buffer)
    roles = []
    for rank, program in enumerate(programs):
        gates: list[Gate] = [(Send if what == "send" else Receive)(link, systems.to(peer)) for what, peer in program]
        rows = [row(f"op{n}", gate=gate, send=lambda v: "x") for n, gate in enumerate(gates)]
        roles.append(line(f"rank{rank}", *rows, ranks=only(rank)))
    return cast(*roles, ranks=len(programs), shared=(link,))


def test_messages_come_in_order_with_what_was_sent() -> None:
    link = Link("link", 2)
    to_other, of_other = (lambda v: 1), (lambda v: 0)
    sender = line(
        "a", *(row(f"s{n}", gate=Send(link, to_other), send=lambda v, n=n: n) for n in range(3)), ranks=only(0)
    )
    append = lambda v, data: (*v, data)  # noqa: E731
    takes = [row(f"r{n}", gate=Receive(link, of_other), effect=append) for n in range(3)]
    taker = line("b", *takes, row("end"), ranks=only(1), v=())
    got = Invariant("order", "", lambda s: s.state(1) == "END" or s.vars(1) == tuple(range(len(s.vars(1)))))
    assert checked(cast(sender, taker, ranks=2, shared=(link,), claims=(got,))).verdict is Answer.HOLDS


def test_a_message_of_one_that_died_inside_need_not_come() -> None:
    """Without detection the receiver is stranded, although the message may come."""
    link = Link("link")
    rows = [row("send", gate=Send(link, lambda v: 1), send=lambda v: 1), row("rest", by=By.ENVIRONMENT)]
    protocol = cast(
        line("a", *rows, ranks=only(0)),
        line("b", row("recv", gate=Receive(link, lambda v: 0)), ranks=only(1)),
        ranks=2,
        shared=(link,),
    )
    asked = Query("cast", Scope(ranks=2), faults=1, detection=False, given=protocol)
    report = run_check(asked, properties=("no_stranding",))
    assert report.verdict is Answer.VIOLATED
    assert report.counterexample is not None
    assert report.counterexample.steps[-1].edge == "crash"


def go(network: Network, state: Any, rank: int, event: str, edge: str) -> Any:
    """The state after a move."""
    return next(
        after for move, after in network.successors(state) if (move.rank, move.event, move.edge) == (rank, event, edge)
    )


def bound(network: Network, state: Any, rank: int) -> list[bool]:
    """Per way in which a rank may complete what it is in, whether it is bound to."""
    return [move.ordinary for move, _ in network.successors(state) if (move.rank, move.edge) == (rank, "complete")]


def test_nobody_is_bound_to_receive_from_one_that_died_inside() -> None:
    link = Link("link")
    sender = line("a", row("send", gate=Send(link, lambda v: 1), send=lambda v: 1), ranks=only(0))
    taker = line("b", row("recv", gate=Receive(link, lambda v: 0)), ranks=only(1))
    network = Network(cast(sender, taker, ranks=2, shared=(link,)), Scope(ranks=2), faults=1)
    both = go(network, go(network, network.initial(), 0, "send", "issue"), 1, "recv", "issue")
    assert bound(network, both, 1) == [True]
    assert bound(network, go(network, both, 0, "crash", "crash"), 1) == [False]
    assert bound(network, go(network, both, 1, "crash", "crash"), 0) == []


def test_nobody_is_bound_to_leave_what_another_timed_out_of() -> None:
    barrier = op("b", Kind.BARRIER)
    rows = (Row("GO", "b", "END", op=barrier), Row("GO", "times_out", "END", interrupts=True))
    role = Role("r", "GO", (GO, END), rows, ranks=everyone)
    network = Network(cast(role, ranks=2, schedule=(barrier,)), Scope(ranks=2), faults=0)
    both = go(network, go(network, network.initial(), 0, "b", "issue"), 1, "b", "issue")
    assert bound(network, both, 0) == [True]
    assert bound(network, go(network, both, 1, "times_out", "step"), 0) == [False]


def test_a_post_goes_on_and_its_wait_does_not() -> None:
    link = Link("link")
    peer = lambda v: 1 - v  # noqa: E731
    post, wait = row("post", gate=Post(link, peer), send=lambda v: v), row("wait", gate=Sent(link, peer))
    receive = row("recv", gate=Receive(link, peer))
    assert checked(cast(line("r", post, receive, wait, v="rank"), ranks=2, shared=(link,))).holds
    assert not checked(cast(line("r", post, wait, receive, v="rank"), ranks=2, shared=(link,))).holds


# ── channels and cells ───────────────────────────────────────────────────────────────────────────────


def test_a_channel_holds_what_it_has_room_for() -> None:
    def of(capacity: int) -> Report:
        channel = Fifo("c", capacity)
        puts = [row(f"p{n}", gate=Put(channel), send=lambda v, n=n: n) for n in range(3)]
        waits = row("wait", by=By.ENVIRONMENT)
        full = Sometimes("full", "", lambda s: s.held(channel) == tuple(range(capacity)))
        room = Invariant("room", "", lambda s: len(s.held(channel)) <= capacity)
        takes = [row(f"t{n}", gate=Take(channel), guards=((lambda v, data, n=n: data == n),)) for n in range(3)]
        roles = line("a", *puts, ranks=only(0)), line("b", waits, *takes, ranks=only(1))
        return checked(cast(*roles, ranks=2, shared=(channel,), claims=(full, room)))

    assert [of(n).verdict for n in (1, 2, 3)] == [Answer.HOLDS] * 3


def test_a_poll_does_not_wait() -> None:
    channel = Fifo("c")
    poll = (
        Row("GO", "nothing", "AGAIN", gate=Poll(channel), guards=(is_empty,)),
        Row("GO", "taken", "END", gate=Poll(channel), guards=(is_there,)),
        Row("AGAIN", "again", "GO"),
    )
    poller = Role("poller", "GO", (GO, State("AGAIN", ""), END), poll, ranks=only(0))
    puts = line("putter", row("put", gate=Put(channel), send=lambda v: 1), ranks=only(1))
    assert checked(cast(poller, puts, ranks=2, shared=(channel,))).verdict is Answer.HOLDS
    never = line("putter", row("forgets"), ranks=only(1))
    report = checked(cast(poller, never, ranks=2, shared=(channel,)), properties=("no_livelock", "no_stranding"))
    assert [(v.property.name, v.holds) for v in report.result.verdicts] == [
        ("no_livelock", False),
        ("no_stranding", True),
    ]


def test_a_value_that_came_and_went_was_not_seen() -> None:
    cell = Cell("flag", False)
    up, down = (row(n, gate=Set(cell), send=lambda v, x=x: x) for n, x in (("up", True), ("down", False)))
    waits = line("w", row("see", gate=See(cell), guards=((lambda v, data: data is True),)), ranks=only(1))
    setter = line("s", up, down, ranks=only(0))
    assert not checked(cast(setter, waits, ranks=2, shared=(cell,)), properties=("no_stranding",)).holds
    stays = line("s", up, ranks=only(0))
    assert checked(cast(stays, waits, ranks=2, shared=(cell,)), properties=("no_stranding",)).holds


# ── handles, time-outs ───────────────────────────────────────────────────────────────────────────────


def opposite(*, posts: bool) -> Protocol:
    one, other = op("one", Kind.BARRIER, "a"), op("other", Kind.BARRIER, "b")
    ways = ((one, other), (other, one))
    roles = [
        line(f"r{n}", *(row(o.name, op=o, posts=posts) for o in ops), row("wait", syncs=posts), ranks=only(n))
        for n, ops in enumerate(ways)
    ]
    return cast(*roles, ranks=2, schedule=(one, other))


def test_opposite_orders_hang_unless_they_are_posted() -> None:
    assert checked(opposite(posts=True)).verdict is Answer.HOLDS
    assert not checked(opposite(posts=False)).holds


def test_what_is_posted_is_waited_for() -> None:
    barrier = op("b", Kind.BARRIER)
    posts = line("r", row("b", op=barrier, posts=True), row("wait", syncs=True), ranks=only(0))
    never = line("n", row("skips"), ranks=only(1))
    report = checked(cast(posts, never, ranks=2, schedule=(barrier,)))
    example = report.counterexample
    assert example is not None
    assert [(s.rank, s.operation, s.waiting_for) for s in example.stuck] == [(0, "stream", (1,))]


def test_a_time_out_leaves_the_others_behind() -> None:
    """Who times out goes on; nobody else is bound to leave the collective any more."""
    barrier = op("b", Kind.BARRIER)
    patient = Role("patient", "GO", (GO, END), (Row("GO", "b", "END", op=barrier),), ranks=only(0))
    rows = (Row("GO", "b", "END", op=barrier), Row("GO", "times_out", "END", interrupts=True))
    hasty = Role("hasty", "GO", (GO, END), rows, ranks=only(1))
    report = checked(cast(patient, hasty, ranks=2, schedule=(barrier,)), properties=("no_stranding",))
    assert report.verdict is Answer.VIOLATED
    example = report.counterexample
    assert example is not None
    assert {s.rank for s in example.stuck} == {0}
    both = replace(hasty, ranks=everyone)
    assert checked(cast(both, ranks=2, schedule=(barrier,)), properties=("no_stranding",)).verdict is Answer.HOLDS


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────

BARRIER = op("b", Kind.BARRIER)
SUM = op("s", Kind.ALL_REDUCE, result=total)
PLAIN = op("p", Kind.ALL_REDUCE)
CHANNEL, CELL, LINK = Fifo("c"), Cell("f"), Link("l")


def two(*rows: Row, **more: Any) -> Protocol:
    role = Role("role", "GO", (GO, END), rows or (Row("GO", "go", "END"),))
    return Protocol("two", "1", role, role, **more)


BEYOND = {
    "a cast (role)": cast(Role("role", "GO", (GO, END), (Row("GO", "go", "END"),), ranks=everyone), ranks=2),
    "group `g`": two(Row("GO", "go", "END", op=PLAIN), schedule=(PLAIN,), groups=(Group("g", lambda s: [range(2)]),)),
    "fifo `c`": two(shared=(CHANNEL,)),
    "cell `f`": two(shared=(CELL,)),
    "link `l`": two(shared=(LINK,)),
    "collective `b`, a barrier": two(Row("GO", "go", "END", op=BARRIER), schedule=(BARRIER,)),
    "collective `s`, whose result is `total`": two(Row("GO", "go", "END", op=SUM, send=lambda v: 1), schedule=(SUM,)),
    "role role, each rank of which starts": replace(
        two(), worker=replace(two().worker, start_at=lambda rank, scope: rank)
    ),
    "which posts": two(Row("GO", "go", "END", op=PLAIN, posts=True), schedule=(PLAIN,)),
    "which interrupts": two(Row("GO", "go", "END", interrupts=True)),
}


@pytest.mark.parametrize("said", BEYOND)
def test_what_others_do_not_have_they_refuse_by_name(said: str) -> None:
    protocol = validate(BEYOND[said])
    network = Network(protocol, Scope(ranks=2), faults=0)
    for engine in ("auto", *FAST):
        for flag in ("symmetry", "reduction"):
            with pytest.raises(UsageError, match=f"--{flag} on") as refused:
                check(network, GENERIC, engine=engine, **{flag: "on"})  # type: ignore[arg-type]
            assert said in str(refused.value)
    with pytest.raises(ModelError) as unfit:
        prove(Query("x", Scope(), given=protocol))
    assert said in str(unfit.value)
    assert check(network, GENERIC).engine == "reference"  # it is small


@pytest.mark.parametrize("said", BEYOND)
def test_engines_agree_on_each_word(said: str) -> None:
    agree(Network(validate(BEYOND[said]), Scope(ranks=2)), GENERIC)


def test_protocols_of_before_are_not_beyond_anything() -> None:
    from genlock.model.protocols.load import PROTOCOLS

    assert [beyond(p) for p in PROTOCOLS.values()] == [None, None]


def test_a_cast_has_no_streams() -> None:
    with pytest.raises(UsageError, match="a cast has no device streams"):
        Network(BEYOND["a cast (role)"], Scope(ranks=2), stream=True)


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        (Protocol("p", "1"), "nobody plays in it"),
        (replace(two(), cast=(Role("r", "GO", (GO, END), (Row("GO", "go", "END"),), ranks=everyone),)), "or worker"),
        (cast(Role("r", "GO", (GO, END), (Row("GO", "go", "END"),)), ranks=2), "it does not say who plays it"),
        (cast(line("r", row("go"), ranks=only(0)), ranks=2), "nobody plays rank1"),
        (cast(line("r", row("go"), ranks=only(0, 1, 2)), ranks=2), "2 is no rank; ranks are 0 to 1"),
        (cast(line("r", row("go")), line("s", row("go"), ranks=only(1)), ranks=2), "rank1 plays r too"),
        (cast(line("r", row("go")), line("r", row("go")), ranks=2), "two roles are called `r`"),
        (cast(line("r", row("go")), ranks=2, slots=(Slot("s"),)), "it has a cast, and slots; channels have keys"),
        (two(shared=(CHANNEL, Cell("c"))), "two things shared are called `c`"),
        (two(shared=(Fifo("c", 0),)), "`c` has room for 0; take 1 to 64"),
        (two(shared=(Slot("c"),)), "`shared` has Slot"),
        (two(groups=(Group("g", lambda s: []),)), "group `g` has no collective"),
        (two(Row("GO", "go", "END", gate=Put(CHANNEL))), "fifo `c` is not declared"),
        (
            two(Row("GO", "go", "END", gate=See(CHANNEL)), shared=(CHANNEL,)),  # type: ignore[arg-type]
            "`See` is at `c`, a Fifo; it may be at a Cell",
        ),
        (two(Row("GO", "go", "END", gate=Send(LINK)), shared=(LINK,)), "`Send` does not say with whom"),
        (two(Row("GO", "go", "END", posts=True)), "it posts, and has no collective"),
        (two(Row("GO", "x", "END", By.FAULT, gate=See(CELL), fault="x"), shared=(CELL,)), "a row by fault has a gate"),
        (two(Row("GO", "x", "END", By.DETECTION, gate=Set(CELL)), shared=(CELL,)), "a row by detection has a gate"),
        (two(Row("GO", "go", "END", op=SUM, posts=True), schedule=(SUM,)), "whose result it would not be given"),
        (two(Row("GO", "go", "END", op=PLAIN, interrupts=True), schedule=(PLAIN,)), "it interrupts, and waits itself"),
        (
            two(
                Row("GO", "go", "END", gate=Send(LINK, lambda v: 1)),
                Row("GO", "out", "END", interrupts=True),
                shared=(LINK,),
            ),
            "it interrupts a Send or Receive",
        ),
        (
            two(Row("GO", "go", "END", gate=See(CELL)), Row("GO", "bad", "END", By.VIOLATION), shared=(CELL,)),
            "a violation stands beside row GO --go--> END",
        ),
        (
            two(Row("GO", "go", "END", gate=See(CELL), choices=lambda v, s: ()), shared=(CELL,)),
            "takes a value or chooses",
        ),
        (
            cast(line("r", row("b", op=BARRIER)), ranks=2, schedule=(BARRIER,), groups=(Group("g", lambda s: [(0,)]),)),
            "rank1 is in no group `g`",
        ),
        (
            cast(
                line("r", row("b", op=BARRIER)),
                ranks=2,
                schedule=(BARRIER,),
                groups=(Group("g", lambda s: [(0, 0, 1)]),),
            ),
            "rank0 is in it twice",
        ),
        (
            cast(line("r", row("p", gate=Put(Fifo("k", 1, only(5))))), ranks=2, shared=(Fifo("k", 1, only(5)),)),
            "is not declared",
        ),
        (cast(line("r", row("b", gate=Send(LINK, lambda v: 0))), ranks=2, shared=(LINK,)), "rank0 has no peer 0"),
        (
            cast(
                line("r", row("s", op=op("s", Kind.SCATTER, root=0), send=lambda v: 1)),
                ranks=2,
                schedule=(op("s", Kind.SCATTER, root=0),),
            ),
            "`s` is given 1 for 2 members",
        ),
        (
            cast(line("r", row("s", op=SUM, send=lambda v: "x")), ranks=2, schedule=(SUM,)),
            "its result `total` of ('x', 'x')",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(protocol: Protocol, said: str) -> None:
    with pytest.raises(ModelError) as refused:
        checked(protocol)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_key_that_there_is_not_is_named() -> None:
    channel = Fifo("inbox", 1, only(5))
    protocol = cast(line("r", row("p", gate=Put(channel))), ranks=2, shared=(channel,))
    with pytest.raises(ModelError, match=r"rank0 has none of its own; `inbox` has 5"):
        checked(protocol)


def test_a_result_is_waited_for_on_a_stream_too() -> None:
    got = Sometimes("got", "", lambda s: s.states == ("S1", "S1") and s.vars(0) == s.vars(1) == ("given", 2))
    rows = Row("S0", "s", "S1", op=SUM, send=lambda v: 1, effect=keep), Row("S1", "end", "END")
    role = Role("role", "S0", (State("S0", ""), State("S1", ""), END), rows)
    protocol = Protocol("stream", "1", role, role, (SUM,), streams=("g",), claims=(got,))
    asked = Query("stream", Scope(ranks=2), faults=0, stream=True, given=validate(protocol))
    assert run_check(asked).verdict is Answer.HOLDS


def test_a_rank_that_only_looks_takes_no_part() -> None:
    looks = Row("GO", "look", "AGAIN", gate=See(CELL)), Row("AGAIN", "again", "GO")
    out = Row("GO", "out", "END", By.ENVIRONMENT, guards=((lambda v, data: False),))
    role = Role("role", "GO", (GO, State("AGAIN", ""), END), (*looks, out))
    protocol = Protocol("looks", "1", role, role, shared=(CELL,))
    network = Network(validate(protocol), Scope(ranks=2), faults=0)
    assert not check(network, [NO_LIVELOCK]).holds


def test_of_a_rank_that_ends_by_a_collective_comes_no_more_than_of_any_that_ends() -> None:
    """It posts, and ends by a barrier: what nobody had posted a receive for may come, and need not."""
    sends = row("post", gate=Post(LINK, lambda v: 1)), row("barrier", op=BARRIER)
    takes = row("barrier", op=BARRIER), row("receive", gate=Receive(LINK, lambda v: 0))
    found = checked(
        cast(
            line("sender", *sends, ranks=only(0)),
            line("receiver", *takes, ranks=only(1)),
            ranks=2,
            shared=(LINK,),
            schedule=(BARRIER,),
        )
    )
    assert found.verdict is Answer.VIOLATED
