"""Every way into c10d is seen and can be refused, on real gloo ranks."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from genlock.errors import ContractViolation, UsageError
from genlock.impl.recording import c10d_intercept, fast_path, groups, operations, torch_compat, works
from genlock.impl.recording.c10d_intercept import Operation, watching
from genlock.impl.recording.command import RecordingSettings
from genlock.impl.recording.session import JobTrace, Session
from genlock.traces import recorder
from genlock.traces.collectives import Interned
from genlock.traces.format import name_of, read
from genlock.traces.importers.genlock_programs import Reader
from genlock.traces.outcome import Code, Outcome
from repository import PROCESSES, ROOT
from torch.utils.flop_counter import FlopCounterMode

WAYS = {
    "all_reduce": ["all_reduce"],
    "broadcast": ["broadcast"],
    "reduce": ["reduce"],
    "all_gather": ["all_gather"],
    "all_gather_into_tensor": ["all_gather_into_tensor"],
    "reduce_scatter": ["reduce_scatter"],
    "reduce_scatter_tensor": ["reduce_scatter_tensor"],
    "gather": ["gather"],
    "scatter": ["scatter"],
    "all_to_all": ["all_to_all"],
    "all_to_all_single": ["all_to_all_single"],
    "barrier": ["barrier"],
    "monitored_barrier": ["monitored_barrier"],
    "send/recv": ["send"],
    "recv from any": ["send"],
    "isend/irecv": ["send"],
    "batch_isend_irecv": ["send", "recv"],
    "send_object_list": ["send", "send"],
    "broadcast_object_list": ["broadcast", "broadcast"],
    "all_gather_object": ["all_gather", "all_gather"],
    "gather_object": ["all_gather", "gather"],
    "async_op": ["all_reduce"],
    "subgroup": ["all_reduce"],
    "direct": ["all_reduce"],
    "direct p2p": ["send"],
    "functional all_reduce": ["all_reduce"],
    "functional all_gather": ["all_gather_into_tensor_coalesced"],
    "functional reduce_scatter": ["reduce_scatter_tensor_coalesced"],
    "functional all_to_all": ["all_to_all_single"],
    "functional broadcast": ["broadcast"],
    "all_reduce_coalesced": ["all_reduce_coalesced"],
    "coalescing manager": ["all_reduce_coalesced"],
    "functional coalesced": ["all_reduce_coalesced"],
    "other thread": ["all_reduce"],
    "inference mode": ["all_reduce"],
    "compiled": ["all_reduce"],
    "DDP": ["all_reduce"],
    "DDP hook": ["all_reduce", "all_reduce"],
}
"""What each way of `c10d_ways` issues on rank0."""
RECEIVES = {
    "send/recv": ["recv"],
    "recv from any": ["recv_any_source"],
    "isend/irecv": ["recv"],
    "send_object_list": ["recv", "recv"],
    "direct p2p": ["recv"],
}
"""Where rank1 does something else."""
NO_END = {"functional reduce_scatter"}
"""Ways whose end is among the blind spots."""


compiled = pytest.mark.skipif(
    c10d_intercept._interception.compiled is None, reason="_c10d_kernel.cpp was not built: it takes a C++ compiler"
)
KERNELS = [pytest.param("c++", marks=compiled), "python"]


def both(folder: Path, *compiler: str) -> list[dict[str, Any]]:
    """What the two ranks of `c10d_ways` print."""
    command = [sys.executable, str(PROCESSES / "c10d_ways.py")]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder / "store"), *compiler], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        return [json.loads(rank.communicate(timeout=100)[0].splitlines()[-1]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


@pytest.fixture(scope="module", params=KERNELS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return both(tmp_path_factory.mktemp("ways"), "aot_eager", request.param)


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either kernels are used: what they tell differs in the reduction alone, which those in Python cannot see."""
    if request.param == "python":
        monkeypatch.setattr(c10d_intercept._interception, "compiled", None)
    return str(request.param)


@compiled
def test_the_kernel_in_c_is_used_where_it_was_built() -> None:
    assert c10d_intercept._interception.compiled is not None
    with watching(Everything()):
        assert c10d_intercept._interception._installed is c10d_intercept._interception.compiled


def test_every_way_is_tested(found: list[dict[str, Any]]) -> None:
    assert found[0]["watched"].keys() == found[0]["refused"].keys() == {*WAYS, "all_gather_single"} - MISSING


@pytest.mark.parametrize("way", WAYS)
def test_way_is_seen_with_its_end_on_both_ranks(found: list[dict[str, Any]], way: str) -> None:
    for rank, expected in ((0, WAYS[way]), (1, RECEIVES.get(way, WAYS[way]))):
        seen = found[rank]["watched"][way]
        assert [o["op"] for o in seen] == expected
        assert [o["left"] for o in seen] == [[] if way in NO_END else [None]] * len(seen)
        assert {o["site"].rpartition(":")[0] for o in seen} == {str(PROCESSES / "c10d_ways.py")}


@pytest.mark.parametrize("way", WAYS)
def test_way_is_refused_with_the_reason(found: list[dict[str, Any]], way: str) -> None:
    assert found[0]["refused"][way] == f"ContractViolation: {WAYS[way][0]} is not in the plan"


def test_nothing_refused_reached_the_backend(found: list[dict[str, Any]]) -> None:
    """Rank1 issued nothing while rank0 was refused: one that had gone out would have paired with this sum."""
    assert [f["sum"] for f in found] == [[3, 3, 3], [3, 3, 3]]


def test_facts_of_an_operation(found: list[dict[str, Any]]) -> None:
    def facts(rank: int, way: str) -> dict[str, Any]:
        seen: dict[str, Any] = found[rank]["watched"][way][0]
        return {name: value for name, value in seen.items() if name not in ("site", "left")}

    nothing = {"root": None, "peer": None, "tag": None, "thread": None, "dtype": "float32", "numel": 4}
    nothing |= {"reduce": None, "splits": None}
    world = {**nothing, "group": "0", "asynchronous": False}
    assert facts(0, "all_reduce") == {**world, "op": "all_reduce", "reduce": "sum"}
    assert facts(0, "async_op") == {**world, "op": "all_reduce", "asynchronous": True, "reduce": "sum"}
    assert facts(0, "subgroup") == {**world, "op": "all_reduce", "group": "1", "reduce": "sum"}
    assert facts(0, "other thread") == {**world, "op": "all_reduce", "thread": "other", "reduce": "sum"}
    assert facts(1, "broadcast") == {**world, "op": "broadcast", "root": 1}
    assert facts(0, "all_to_all_single")["splits"] is False
    assert facts(0, "all_to_all") == {**world, "op": "all_to_all", "numel": 8}
    assert facts(0, "barrier") == {**world, "op": "barrier", "dtype": None, "numel": None}
    p2p = {**world, "asynchronous": True, "tag": 7}
    assert facts(0, "send/recv") == {**p2p, "op": "send", "peer": 1}
    assert facts(1, "send/recv") == {**p2p, "op": "recv", "peer": 0}
    assert facts(1, "recv from any")["peer"] is None


@pytest.mark.slow
def test_compiled_by_inductor(tmp_path: Path) -> None:
    found = both(tmp_path, "inductor")
    assert [o["op"] for o in found[0]["watched"]["compiled"]] == ["all_reduce"]
    assert found[0]["refused"]["compiled"] == "ContractViolation: all_reduce is not in the plan"
    assert found[0]["sum"] == [3, 3, 3]


MISSING = set() if hasattr(dist.ProcessGroup, "all_gather_single") else {"all_gather_single"}


def test_torch_that_lacks_a_private_name_is_told_which_was_tried() -> None:
    with pytest.raises(UsageError, match=rf"has no torch\._C\.nowhere\.to_be_found; use torch {torch_compat.TRIED[0]}"):
        torch_compat.lookup("_C.nowhere.to_be_found")


def test_no_operator_of_this_torch_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert c10d_intercept.unknown_operators() == []
    monkeypatch.delitem(operations.OPERATORS, "barrier")
    assert c10d_intercept.unknown_operators() == ["barrier"]


def test_blind_spots_stand_in_the_document() -> None:
    text = (ROOT / "docs" / "recording.md").read_text()
    assert [line for line in c10d_intercept.BLIND_SPOTS if f"\n- {line}" not in text] == []


class Everything:
    """Sees all, refuses nothing."""

    def __init__(self) -> None:
        self.seen: list[Operation] = []

    def issue(self, operation: Operation) -> None:
        self.seen.append(operation)


# ── watchers, on a world of one ─────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("alone")
def test_without_watchers_torch_is_as_it_was() -> None:
    everything = Everything()
    with watching(everything):
        dist.all_reduce(torch.ones(2))
        assert c10d_wait() is not works._wait
    dist.all_reduce(torch.ones(3))
    assert [o.numel for o in everything.seen] == [2]
    assert c10d_wait() is works._wait


def c10d_wait() -> object:
    return vars(dist.Work)["wait"]


@pytest.mark.usefixtures("alone")
def test_watcher_told_before_a_refusal_is_told_of_it() -> None:
    told: list[Outcome | None] = []

    class First:
        def issue(self, operation: Operation) -> c10d_intercept.OnComplete:
            return told.append

    class Then:
        def issue(self, operation: Operation) -> None:
            raise ContractViolation("no")

    with watching(First()), watching(Then()), pytest.raises(ContractViolation):
        dist.all_reduce(torch.ones(1))
    assert told == [Outcome(Code.CONTRACT, text="no")]


# ── the short way ───────────────────────────────────────────────────────────────────────────────────────


class Noting:
    """Notes what is issued, and how it ended."""

    def __init__(self) -> None:
        self.all: list[tuple[Operation, str | None, Outcome | None]] = []

    def issue(self, operation: Operation) -> c10d_intercept.OnComplete:
        site = c10d_intercept.site(c10d_intercept.caller())
        return lambda outcome: self.all.append((operation, site, outcome))


class Keeping(Noting):
    """Has an observer for each operation and place."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []
        self.asked: list[Operation] = []

    def observer(self, operation: Operation, frame: FrameType) -> Kept:
        self.asked.append(operation)
        return Kept(self, operation, c10d_intercept.site(c10d_intercept.caller(frame)))


class Kept(NamedTuple):
    """Observes one operation from one place, for `Keeping`."""

    keeping: Keeping
    operation: Operation
    site: str | None

    def begin(self, time_ns: int, /) -> int:
        self.keeping.begun.append(time_ns)
        return len(self.keeping.begun)

    def wait(self, begun: int, time_ns: int, /) -> None:
        assert begun <= len(self.keeping.begun)

    def end(self, begun: int, time_ns: int, outcome: Outcome | None = None, /) -> None:
        assert begun == len(self.keeping.begun)
        assert self.keeping.begun[-1] <= time_ns <= time.monotonic_ns()
        self.keeping.all.append((self.operation, self.site, outcome))


def waited() -> None:
    """Operations that may go the short way, on one line each time, and one that fails."""
    dist.all_reduce(torch.ones(3, dtype=torch.int64))
    dist.broadcast(torch.nn.Parameter(torch.ones(2)).detach(), 0)
    dist.all_reduce(torch.ones(2, 2), group=dist.group.WORLD)
    with pytest.raises((RuntimeError, ValueError)):
        dist.broadcast(torch.ones(1), group_src=7)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each operation that torch's own function issues: whether it went the short way."""
    went = list[bool]()
    may_go = fast_path.FastMethods._takes

    def noted(self: Any, *given: Any) -> Any:
        taken = may_go(self, *given)
        went.append(taken is not None)
        return taken

    monkeypatch.setattr(fast_path.FastMethods, "_takes", noted)
    return went


@pytest.mark.usefixtures("alone")
def test_the_short_way_tells_what_the_kernels_tell(
    ways: list[bool], kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = Noting(), Noting()
    with watching(short):
        waited()
    assert ways == [True] * 4
    monkeypatch.setattr(fast_path.FastMethods, "_takes", lambda self, *given: None)
    with watching(long):
        waited()
    seen = [(o._replace(reduce=None), *rest) for o, *rest in short.all] if kernels == "python" else short.all
    assert seen == long.all
    assert [o.reduce for o, *_ in short.all] == ["sum", None, "sum", None]
    assert [o.op for o, _, _ in short.all] == ["all_reduce", "broadcast", "all_reduce", "broadcast"]
    assert [o.root for o, _, _ in short.all] == [None, 0, None, 7]
    assert [outcome is None for _, _, outcome in short.all] == [True, True, True, False]


@pytest.mark.usefixtures("alone")
def test_who_says_once_whom_to_tell_is_told_the_same_and_when_it_was_issued(kernels: str) -> None:
    prompt, keeping, before = Noting(), Keeping(), time.monotonic_ns()
    with watching(prompt):
        waited()
    with watching(keeping):
        waited()
        dist.monitored_barrier()  # by a kernel
    assert keeping.all[:-1] == prompt.all
    times = [before, *keeping.begun, time.monotonic_ns()]
    assert times == sorted(times)
    assert len(keeping.begun) == 4 + (kernels == "c++")
    del prompt.all[:], keeping.all[:]
    with watching(keeping), watching(prompt):  # two are told at once
        waited()
    assert len(keeping.begun) == 8 + (kernels == "c++")
    assert keeping.all == prompt.all


@pytest.mark.usefixtures("alone")
def test_who_says_whom_to_tell_is_asked_once_of_an_operation_and_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_and_told() -> tuple[int, int]:
        return len(keeping.asked), len(keeping.begun)

    keeping, one = Keeping(), torch.ones(1)
    with watching(keeping):
        for _ in range(3):
            dist.all_reduce(one)
        assert asked_and_told() == (1, 3)
        for tensor in (one, torch.ones(2), torch.ones(1, dtype=torch.int64)):
            dist.all_reduce(tensor)  # another place, another size, another type
        assert asked_and_told() == (4, 6)
        thread = threading.Thread(target=lambda: [dist.all_reduce(one) for _ in range(2)], name="other")
        thread.start()
        thread.join()
        assert asked_and_told() == (5, 8)
        assert keeping.asked[-1].thread == "other"
        monkeypatch.setattr(fast_path, "MAX_OBSERVERS", 3)
        for again in range(2):
            dist.all_reduce(one)
            c10d_intercept.forget_observers()
            assert asked_and_told() == (6 + again, 9 + again)
    assert len(keeping.all) == 10


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("told", [Noting(), Keeping()], ids=["prompt", "keeping"])
def test_what_fails_while_it_is_waited_for_is_told_once(told: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(work: Any) -> None:
        raise RuntimeError("connection closed by peer")

    with watching(told):
        monkeypatch.setattr(fast_path, "_wait", lost)
        with pytest.raises(RuntimeError, match="closed by peer"):
            dist.all_reduce(torch.ones(1))
        monkeypatch.undo()
        dist.all_reduce(torch.ones(1))
    text = "RuntimeError: connection closed by peer"
    assert [outcome for _, _, outcome in told.all] == [Outcome(Code.BACKEND, text=text), None]


@pytest.mark.usefixtures("alone")
def test_what_nobody_waits_for_is_told_when_somebody_does_after_all() -> None:
    """Works are put by, each with whom to tell, while the thread goes on."""
    world: Any = dist.group.WORLD
    told = Noting()
    with watching(told):
        works = [world.allreduce([torch.ones(1)], options()) for _ in range(3)]
        for work in works[::-1]:
            work.wait()
            work.wait()
        assert [(o.op, outcome) for o, _, outcome in told.all] == [("all_reduce", None)] * 3
        world.allreduce([torch.ones(1)], options())
    assert not c10d_intercept._interception.works.newest
    assert not c10d_intercept._interception.works.unwaited


@pytest.mark.usefixtures("alone")
def test_a_work_that_another_thread_waits_for_is_told() -> None:
    world: Any = dist.group.WORLD
    told = Noting()
    with watching(told):
        works = [world.allreduce([torch.ones(1)], options()) for _ in range(2)]
        for work in works[::-1]:
            waiter = threading.Thread(target=work.wait)
            waiter.start()
            waiter.join()
        assert [(o.op, outcome) for o, _, outcome in told.all] == [("all_reduce", None)] * 2


@pytest.mark.usefixtures("alone")
def test_what_is_issued_was_written_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend may end the process, as gloo does where sizes differ: the trace names the operation nevertheless."""
    written: list[list[str]] = []
    to_backend: Any = dist.ProcessGroupGloo.allreduce  # type: ignore[attr-defined]

    def allreduce(*given: Any) -> Any:
        written.append([e.edge for e in read(tmp_path / name_of(0)).events])
        return to_backend(*given)

    monkeypatch.setattr(fast_path._Gloo, "allreduce", allreduce)
    session = Session(RecordingSettings("r", str(tmp_path)))
    with watching(session):
        for _ in range(2):
            dist.all_reduce(torch.ones(1))
    session.end()
    assert written == [["enter"], ["enter", "exit", "enter"]]


class Refusing:
    def issue(self, operation: Operation) -> None:
        raise ContractViolation("no")


@pytest.mark.usefixtures("alone")
def test_the_short_way_leaves_torch_as_it_was() -> None:
    methods = {name: vars(dist.ProcessGroup)[name] for name in fast_path.METHODS}
    for watcher in (Noting(), Refusing()):
        with watching(watcher):
            try:
                waited()
            except ContractViolation:
                assert isinstance(watcher, Refusing)
    assert {name: vars(dist.ProcessGroup)[name] for name in methods} == methods == fast_path.METHODS


def options() -> Any:
    found = torch.distributed.AllreduceOptions()
    found.asyncOp = False
    return found


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("tensor", "given"),
    [
        (torch.ones(2).to_sparse(), {}),
        (torch.ones(2, device="meta"), {}),
        (torch.ones(2, requires_grad=True), {}),
    ],
    ids=["sparse", "without data", "with a gradient"],
)
def test_what_the_dispatcher_does_more_for_goes_by_the_kernels(
    ways: list[bool], tensor: torch.Tensor, given: dict[str, Any]
) -> None:
    with watching(Noting()):
        dist.all_reduce(torch.ones(1))
        with contextlib.suppress(RuntimeError):  # without data there is nothing that a backend could do
            work = dist.all_reduce(tensor, **given)
            assert work is None or work.wait()
    assert ways == [True, False]


@pytest.mark.usefixtures("alone")
def test_a_program_that_calls_the_method_itself_gets_the_work(ways: list[bool]) -> None:
    world: Any = dist.group.WORLD
    told = Noting()
    with watching(told):
        work = world.allreduce([torch.ones(1)], options())
        assert not told.all
        assert work.wait()
        world.allreduce(torch.ones(1)).wait()
    assert [(o.op, outcome) for o, _, outcome in told.all] == [("all_reduce", None)] * 2
    assert not ways


@pytest.mark.usefixtures("alone")
def test_under_a_mode_or_another_backend_operations_go_by_the_kernels(
    ways: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with watching(Noting()):
        dist.all_reduce(torch.ones(1))
        with FlopCounterMode(display=False):
            dist.all_reduce(torch.ones(1))
        monkeypatch.setattr(groups, "_Gloo", object)
        c10d_intercept._interception.groups.known.clear()
        dist.all_reduce(torch.ones(1))
    assert ways == [True, False, False]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("native", [True, False])
def test_a_recorder_that_fails_says_so_once_and_the_program_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], native: bool
) -> None:
    """What it met before is not recorded either: a trace with a gap in the numbers of a group would accuse the rank."""

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no")

    if not native:
        monkeypatch.setattr(recorder, "FastOperationRecorder", None)
    session, numbers = Session(RecordingSettings("r", str(tmp_path))), broken()
    monkeypatch.setattr(JobTrace, "counter", lambda *_: numbers)
    with watching(session):
        for _ in range(3):
            dist.all_reduce(torch.ones(1))
        session.end()
    assert capsys.readouterr().err == "genlock: this process is not recorded any further: ValueError: no\n"
    trace = read(tmp_path / name_of(0))
    assert [(e.edge, e.sequence) for e in trace.events] == [("enter", 1), ("exit", 1)]
    assert trace.end is not None
    assert (trace.end.cause, trace.end.exit) == ("detached", -1), "nothing follows from what is missing"


def by_the_kernels() -> None:
    """Operations that take no short way: the same ones again, others from the same line, one that fails."""
    world: Any = dist.group.WORLD
    for size in (1, 1, 2, 1):
        for dtype in (torch.float32, torch.int64):
            world.allreduce([torch.ones(size, dtype=dtype)]).wait()
            world.allgather([[torch.ones(size)]], [torch.ones(size)]).wait()
    for tag in (3, 4):
        with contextlib.suppress(RuntimeError):  # nobody else is there
            world.send([torch.ones(2)], 0, tag)
    with contextlib.suppress(RuntimeError, ValueError):
        world.broadcast(torch.ones(1), 7).wait()
    world.barrier().wait()
    with pytest.raises(RuntimeError):
        world.allreduce([torch.ones(1).to_sparse(), torch.ones(2)]).wait()
    dist.monitored_barrier()
    world.allreduce([torch.ones(1)], options()).wait()


@compiled
@pytest.mark.usefixtures("alone")
def test_both_kernels_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name in ("c++", "python"):
        if name == "python":
            monkeypatch.setattr(c10d_intercept._interception, "compiled", None)
        session = Session(RecordingSettings("r", str(tmp_path / name)))
        with watching(session):
            by_the_kernels()
            dist.barrier()
        session.end()
        trace = read(tmp_path / name / name_of(0))
        events = {event.index: event for event in trace.events}
        lines = []
        for event in events.values():
            start = event if event.entered is None else events[event.entered]
            failed = event.outcome is not None and event.outcome.code
            facts = event.edge, start.op, start.sequence, start.numel, start.dtype, start.root, start.peer, start.tag
            lines.append((*map(str, facts), start.asynchronous, failed, trace.place(start)))
        written.append(sorted(lines))
    assert written[0] == written[1]
    assert {line[0] for line in written[0]} == {"enter", "exit"}
    assert {line[-2] for line in written[0]} == {False, Code.BACKEND}


@pytest.mark.usefixtures("alone")
def test_a_recording_with_a_cap_counts_every_way(tmp_path: Path, kernels: str) -> None:
    session, world, one = Session(RecordingSettings("r", str(tmp_path), keep=1 << 14)), dist.group.WORLD, torch.ones(1)
    direct: Any = world
    with watching(session):
        for _ in range(100):
            dist.all_reduce(one)
            dist.all_reduce(one, async_op=True).wait()
            direct.allreduce([one]).wait()
            dist.monitored_barrier()
        session.end()
    record = Reader(Interned()).rank(tmp_path / name_of(0)).record
    assert record.summed is not None
    assert record.summed.operations + len(record.ops) == 400
    assert record.ops["sequence"].tolist() == list(range(401 - len(record.ops), 401))
    assert sum(file.stat().st_size for file in tmp_path.glob("rank0.*.jsonl")) < (1 << 14) + 4096


@compiled
@pytest.mark.usefixtures("alone")
def test_the_kernel_in_c_asks_once_of_an_operation_and_a_place() -> None:
    keeping, world, one = Keeping(), dist.group.WORLD, torch.ones(1)
    direct: Any = world
    with watching(keeping):
        for tensor in (one, one, torch.ones(2), one.double(), one):
            direct.allreduce([tensor], options()).wait()
        direct.allreduce([one], options()).wait()
        assert (len(keeping.asked), len(keeping.begun)) == (4, 6)
        c10d_intercept.forget_observers()
        direct.allreduce([one], options()).wait()
    assert (len(keeping.asked), len(keeping.begun)) == (5, 7)
    assert [operation.numel for operation, *_ in keeping.all] == [1, 1, 2, 1, 1, 1, 1]


# ── asynchronous operations of the short way ────────────────────────────────────────────────────────────


def edges(folder: Path) -> list[tuple[str, str | None]]:
    return [(event.edge, event.op) for event in read(folder / name_of(0)).events]


@pytest.mark.usefixtures("alone")
def test_when_the_host_begins_to_wait_is_recorded(tmp_path: Path) -> None:
    session = Session(RecordingSettings("r", str(tmp_path)))
    one, out = torch.ones(1), torch.empty(1)
    with watching(session):
        first = dist.all_reduce(one, async_op=True)
        second = c10d.all_to_all_single(out, one, async_op=True)
        dist.barrier()
        second.wait()
        first.wait()
        first.wait()
    session.end()
    assert edges(tmp_path) == [
        ("enter", "all_reduce"),
        ("enter", "all_to_all_single"),
        *[("enter", "barrier"), ("exit", "barrier")],
        *[("wait", "all_to_all_single"), ("exit", "all_to_all_single")],
        *[("wait", "all_reduce"), ("exit", "all_reduce")],
    ]
    entered = [event.entered for event in read(tmp_path / name_of(0)).events if event.entered is not None]
    assert entered == [2, 1, 1, 0, 0]


@pytest.mark.usefixtures("alone")
def test_who_asks_for_the_end_sees_it_recorded(tmp_path: Path) -> None:
    """By polling, or by a future."""
    session = Session(RecordingSettings("r", str(tmp_path)))
    with watching(session):
        polled = dist.all_reduce(torch.ones(1), async_op=True)
        while not polled.is_completed():
            time.sleep(0.001)
        ended = threading.Event()
        dist.all_reduce(torch.ones(1), async_op=True).get_future().add_done_callback(lambda _: ended.set())
        assert ended.wait(10)
    session.end()
    assert edges(tmp_path) == [("enter", "all_reduce"), ("exit", "all_reduce")] * 2


@pytest.mark.usefixtures("alone")
def test_arguments_that_are_not_understood_are_left_to_torch(ways: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    told = Noting()
    with watching(told):
        dist.all_reduce(torch.ones(1))
        options: Any = fast_path.FAST_PATHS[0]
        assert options.read is fast_path._reduction
        assert c10d_intercept._interception.fast._takes(dist.group.WORLD, options.read, ([torch.ones(1)],)) is None
    assert [o.op for o, *_ in told.all] == ["all_reduce"]


c10d: Any = dist
