"""Every way into c10d is seen and can be refused, on real gloo ranks; and the fence lets through what is due alone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from genlock.errors import ContractViolation, Exit, UsageError
from genlock.impl import intercept, scenario, versions
from genlock.impl.fence import Fence, Fenced, Inside
from genlock.impl.generator import Generator
from genlock.impl.intercept import Operation, watching
from genlock.impl.monitor import Monitor
from genlock.impl.roles import Run
from genlock.impl.shape import ALL_REDUCES_PER_BLOCK, tiny
from genlock.impl.tensor_parallel import Distributed
from genlock.model.protocol import GENERATE, HEADER, TP_V1_1, Plan
from genlock.model.tables import Kind, changed
from genlock.traces.format import Group, read
from genlock.traces.recorder import Recorder
from hypothesis import given, settings
from hypothesis import strategies as st
from real_ranks import Ranks, inject
from simulated import header
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).parent
STEADY = settings(derandomize=True, database=None, deadline=None)

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


def both(folder: Path, *compiler: str) -> list[dict[str, Any]]:
    """What the two ranks of `c10d_ways` print."""
    command = [sys.executable, str(HERE / "c10d_ways.py")]
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


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return both(tmp_path_factory.mktemp("ways"))


def test_every_way_is_tested(found: list[dict[str, Any]]) -> None:
    assert found[0]["watched"].keys() == found[0]["refused"].keys() == {*WAYS, "all_gather_single"} - MISSING


@pytest.mark.parametrize("way", WAYS)
def test_way_is_seen_with_its_end_on_both_ranks(found: list[dict[str, Any]], way: str) -> None:
    for rank, expected in ((0, WAYS[way]), (1, RECEIVES.get(way, WAYS[way]))):
        seen = found[rank]["watched"][way]
        assert [o["op"] for o in seen] == expected
        assert [o["left"] for o in seen] == [[] if way in NO_END else [None]] * len(seen)
        assert {o["site"].rpartition(":")[0] for o in seen} == {str(HERE / "c10d_ways.py")}


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
    world = {**nothing, "group": "0", "asynchronous": False}
    assert facts(0, "all_reduce") == {**world, "op": "all_reduce"}
    assert facts(0, "async_op") == {**world, "op": "all_reduce", "asynchronous": True}
    assert facts(0, "subgroup") == {**world, "op": "all_reduce", "group": "1"}
    assert facts(0, "other thread") == {**world, "op": "all_reduce", "thread": "other"}
    assert facts(1, "broadcast") == {**world, "op": "broadcast", "root": 1}
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
    with pytest.raises(UsageError, match=rf"has no torch\._C\.nowhere\.to_be_found; use torch {versions.TRIED[0]}"):
        versions.found("_C.nowhere.to_be_found")


def test_no_operator_of_this_torch_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert intercept.unknown_operators() == []
    monkeypatch.delitem(intercept.OPERATORS, "barrier")
    assert intercept.unknown_operators() == ["barrier"]


def test_blind_spots_stand_in_the_document() -> None:
    text = (HERE.parent / "docs" / "recording.md").read_text()
    assert [line for line in intercept.BLIND_SPOTS if f"\n- {line}" not in text] == []


class Everything:
    """Sees all, refuses nothing."""

    def __init__(self) -> None:
        self.seen: list[Operation] = []

    def issue(self, operation: Operation) -> None:
        self.seen.append(operation)


# ── the fence, on a world of one ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def alone() -> Iterator[None]:
    """A world of one rank in this process."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    c10d: Any = dist
    dist.init_process_group("gloo", store=c10d.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_without_watchers_torch_is_as_it_was() -> None:
    everything = Everything()
    with watching(everything):
        dist.all_reduce(torch.ones(2))
        assert c10d_wait() is not intercept._wait
    dist.all_reduce(torch.ones(3))
    assert [o.numel for o in everything.seen] == [2]
    assert c10d_wait() is intercept._wait


def c10d_wait() -> object:
    return vars(dist.Work)["wait"]


@pytest.mark.usefixtures("alone")
def test_watcher_told_before_a_refusal_is_told_of_it() -> None:
    told: list[str | None] = []

    class First:
        def issue(self, operation: Operation) -> intercept.Leave:
            return told.append

    class Then:
        def issue(self, operation: Operation) -> None:
            raise ContractViolation("no")

    with watching(First()), watching(Then()), pytest.raises(ContractViolation):
        dist.all_reduce(torch.ones(1))
    assert told == ["ContractViolation: no"]


# ── the short way ───────────────────────────────────────────────────────────────────────────────────────


class Told:
    """What is issued, and how it ended."""

    def __init__(self) -> None:
        self.all: list[tuple[Operation, str | None, str | None]] = []

    def issue(self, operation: Operation) -> intercept.Leave:
        site = intercept.site(intercept.caller())
        return lambda outcome: self.all.append((operation, site, outcome))


class Patient(Told):
    """Told when the backend has it."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[int] = []

    def issued(self, operation: Operation, time_ns: int, frame: FrameType) -> intercept.Leave:
        self.begun.append(time_ns)
        site = intercept.site(intercept.caller(frame))
        return lambda outcome: self.all.append((operation, site, outcome))


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
    may_go = intercept._Interception._may_go

    def noted(self: Any, *given: Any) -> Any:
        known = may_go(self, *given)
        went.append(known is not None)
        return known

    monkeypatch.setattr(intercept._Interception, "_may_go", noted)
    return went


@pytest.mark.usefixtures("alone")
def test_the_short_way_tells_what_the_kernels_tell(ways: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = Told(), Told()
    with watching(short):
        waited()
    assert ways == [True] * 4
    monkeypatch.setattr(intercept._Interception, "_may_go", lambda self, *given: None)
    with watching(long):
        waited()
    assert short.all == long.all
    assert [o.op for o, _, _ in short.all] == ["all_reduce", "broadcast", "all_reduce", "broadcast"]
    assert [o.root for o, _, _ in short.all] == [None, 0, None, 7]
    assert [outcome is None for _, _, outcome in short.all] == [True, True, True, False]


@pytest.mark.usefixtures("alone")
def test_who_is_patient_is_told_the_same_and_when_it_was_issued() -> None:
    prompt, patient, before = Told(), Patient(), time.monotonic_ns()
    with watching(prompt):
        waited()
    with watching(patient):
        waited()
        dist.barrier()  # by a kernel
    assert patient.all[:-1] == prompt.all
    times = [before, *patient.begun, time.monotonic_ns()]
    assert times == sorted(times)
    assert len(patient.begun) == 4
    with watching(patient), watching(prompt):  # two are told at once
        waited()
    assert len(patient.begun) == 4


@pytest.mark.usefixtures("alone")
def test_what_nobody_waits_for_is_told_when_somebody_does_after_all() -> None:
    """Works are put by, each with whom to tell, while the thread goes on."""
    world: Any = dist.group.WORLD
    told = Told()
    with watching(told):
        works = [world.allreduce([torch.ones(1)], options()) for _ in range(3)]
        for work in works[::-1]:
            work.wait()
            work.wait()
        assert [(o.op, outcome) for o, _, outcome in told.all] == [("all_reduce", None)] * 3
        world.allreduce([torch.ones(1)], options())
    assert not intercept._interception._newest
    assert not intercept._interception._leaves


@pytest.mark.usefixtures("alone")
def test_a_work_that_another_thread_waits_for_is_told() -> None:
    world: Any = dist.group.WORLD
    told = Told()
    with watching(told):
        works = [world.allreduce([torch.ones(1)], options()) for _ in range(2)]
        for work in works[::-1]:
            waiter = threading.Thread(target=work.wait)
            waiter.start()
            waiter.join()
        assert [(o.op, outcome) for o, _, outcome in told.all] == [("all_reduce", None)] * 2


class Refusing:
    def issue(self, operation: Operation) -> None:
        raise ContractViolation("no")


@pytest.mark.usefixtures("alone")
def test_the_short_way_leaves_torch_as_it_was() -> None:
    methods = {name: vars(dist.ProcessGroup)[name] for name in intercept.METHODS}
    for watcher in (Told(), Refusing()):
        with watching(watcher):
            try:
                waited()
            except ContractViolation:
                assert isinstance(watcher, Refusing)
    assert {name: vars(dist.ProcessGroup)[name] for name in methods} == methods == intercept.METHODS


def options() -> Any:
    found = torch.distributed.AllreduceOptions()
    found.asyncOp = False
    return found


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("tensor", "given"),
    [
        (torch.ones(2), {"async_op": True}),
        (torch.ones(2).to_sparse(), {}),
        (torch.ones(2, device="meta"), {}),
        (torch.ones(2, requires_grad=True), {}),
    ],
    ids=["asynchronous", "sparse", "without data", "with a gradient"],
)
def test_what_the_dispatcher_does_more_for_goes_by_the_kernels(
    ways: list[bool], tensor: torch.Tensor, given: dict[str, Any]
) -> None:
    with watching(Told()):
        dist.all_reduce(torch.ones(1))
        with contextlib.suppress(RuntimeError):  # without data there is nothing that a backend could do
            work = dist.all_reduce(tensor, **given)
            assert work is None or work.wait()
    assert ways == [True, False]


@pytest.mark.usefixtures("alone")
def test_a_program_that_calls_the_method_itself_gets_the_work(ways: list[bool]) -> None:
    world: Any = dist.group.WORLD
    told = Told()
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
    with watching(Told()):
        dist.all_reduce(torch.ones(1))
        with FlopCounterMode(display=False):
            dist.all_reduce(torch.ones(1))
        monkeypatch.setattr(intercept, "_Gloo", object)
        monkeypatch.setattr(intercept._interception, "_groups", {})
        dist.all_reduce(torch.ones(1))
    assert ways == [True, False, False]


NAMES = {"0": "device", "1": "control"}


def generating(calls: int = 2) -> Monitor:
    """A worker's monitor that is about to make a generator call."""
    monitor = Monitor(TP_V1_1.role(1), 1)
    monitor.state = "GENERATING"
    monitor.vars = changed(monitor.vars, calls=calls, call_id=1, plan=Plan(calls, False, False, False, calls))
    monitor.enter("generate")
    return monitor


def video(inner: Callable[[], None] = lambda: None) -> Generator:
    """The small generator, in each block of which `inner` happens once."""

    class Comm(Distributed):
        def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
            if self.observed % ALL_REDUCES_PER_BLOCK == 0:
                inner()
            return super().all_reduce(tensor)

    return Generator(tiny(), Comm())


def chunk(generator: Generator, fence: Fence) -> Run:
    frames = (1, tiny().chunk_frames, tiny().latent_channels, 4, 4)
    return Fenced(generator, fence).chunk(
        {
            "cache_epoch": 1,
            "current_start_frame": 0,
            "init_cache": True,
            "manage_cache": True,
            "tp_reset_kv_cache": False,
            "tp_reset_crossattn_cache": True,
            "conditioning_embeds_updated": True,
            "kv_cache_attention_bias": 0.0,
            "tp_do_kv_recompute": False,
            "denoising_step_list": torch.tensor([900]),
            "latents": torch.zeros(frames),
            "conditioning_embeds": torch.zeros(1, 3, tiny().text_dim),
        }
    )


def run_call(inner: Callable[[], None] = lambda: None, plan: Inside = Inside(), **given: Any) -> Fence:  # noqa: B008
    """One generator call behind a fence."""
    world: Any = dist.group.WORLD
    fence = Fence(generating(), {intercept.group_of(world).name: "device"}, {"generate": plan}, **given)
    generator = video(inner)
    with watching(fence):
        chunk(generator, fence).calls[0]()
    assert fence.counted() == generator.counted()
    return fence


@pytest.mark.usefixtures("alone")
def test_fence_counts_and_hashes_what_a_generator_does() -> None:
    """It agrees with the generator's own ledger, so that no other ledger is needed."""
    count, sequence = run_call(plan=Inside(count=ALL_REDUCES_PER_BLOCK * tiny().blocks)).counted()
    assert (count, sequence != 0) == (ALL_REDUCES_PER_BLOCK * tiny().blocks, True)


@pytest.mark.usefixtures("alone")
def test_broadcast_in_a_block_is_refused_and_recorded(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, header(1))
    with pytest.raises(ContractViolation) as caught:
        run_call(lambda: dist.broadcast(torch.ones(5), 0), recorder=recorder)
    for word in ("rank1 (worker) in GENERATING", "broadcast of 5 float32", "group device", "all_reduce", __file__):
        assert word in str(caught.value)
    [event] = read(recorder.path).events
    assert (event.op, event.group, event.numel, event.edge) == ("broadcast", "device", 5, "enter")
    assert event.outcome == "refused: all_reduce on group device is due"


def swallowed() -> None:
    try:
        dist.broadcast(torch.ones(5), 0)
    except ContractViolation:
        return


def in_a_thread() -> None:
    thread = threading.Thread(target=swallowed_sum, name="heartbeat")
    thread.start()
    thread.join()


def swallowed_sum() -> None:
    try:
        dist.all_reduce(torch.ones(5))
    except ContractViolation:
        return


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("inner", "plan", "says"),
    [
        (swallowed, Inside(), "all_reduce on group device is due"),
        (in_a_thread, Inside(), "by thread heartbeat .* only MainThread may"),
        (lambda: dist.all_reduce(torch.ones(5)), Inside(count=8), "the plan has 8 in a call"),
        (lambda: None, Inside(count=9), "8 collectives were issued, but the plan has 9"),
        (lambda: dist.all_reduce(torch.ones(5).long()), Inside(dtypes=frozenset({"float32"})), "has float32"),
        (lambda: dist.all_reduce(torch.ones(10**5)), Inside(numel=10**4), "the plan has 10000 elements at most"),
    ],
)
def test_generator_call_outside_its_plan_ends_the_run(inner: Callable[[], None], plan: Inside, says: str) -> None:
    with pytest.raises(ContractViolation, match=says):
        run_call(inner, plan)


@pytest.mark.usefixtures("alone")
def test_other_errors_of_a_call_stay_what_they_are() -> None:
    """A lost peer is not called a miscount."""

    def lost() -> None:
        raise dist.DistBackendError("connection closed by peer")

    with pytest.raises(dist.DistBackendError):
        run_call(lost, Inside(count=8))


def test_om_06_a_broadcast_in_a_block_dies_on_its_own_rank(tmp_path: Path) -> None:
    """Refused before it reached the backend: the peers see a rank that is gone, not another collective."""
    ranks = Ranks()
    try:
        ended = ranks.run(tmp_path, scenario.default(3), inject("OM-06,chunk=2"))
    finally:
        ranks.close()
    assert ended.statuses == [Exit.PEER_DIED, Exit.CONTRACT, Exit.PEER_DIED]
    message = ended.messages()[1]
    for word in ("rank1 (worker) in GENERATING", "broadcast of 1 float32 on group device", "was refused before"):
        assert word in message
    refused = [e for e in ended.traces[1].events if not e.transition]
    assert [(e.op, e.outcome) for e in refused] == [("broadcast", "refused: all_reduce on group device is due")]
    found = ended.replayed()
    assert (found.verdict, found.culprits) == ("divergent", (1,))


def test_nothing_is_due_between_two_moves() -> None:
    fence = Fence(Monitor(TP_V1_1.role(1), 1), NAMES, {})
    with pytest.raises(ContractViolation, match="no collective is due"):
        fence.issue(operation(Kind.ALL_REDUCE, "device"))


OTHER = {name: group for group, name in NAMES.items()}


def operation(op: str, group: str, root: int | None = None, dtype: str | None = "int64") -> Operation:
    members = Group(OTHER.get(group, group), (0, 1, 2))
    return Operation(op, members, root, None, None, dtype, 9, False, None)


OPERATIONS = st.builds(
    operation,
    st.sampled_from([*Kind, "send", "barrier"]),
    st.sampled_from(["device", "control", "7"]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from(["int64", "uint8", None]),
)


DUE = st.sampled_from([operation("broadcast", "control", 0), operation("all_reduce", "device", dtype="uint8")])


@STEADY
@given(tried=st.lists(DUE | OPERATIONS, min_size=1, max_size=3), call=st.booleans())
def test_fence_lets_through_what_is_due_and_no_more(tried: list[Operation], call: bool) -> None:
    """A header is one broadcast from rank0; a call is any number of all-reduces; after a refusal nothing passes."""
    monitor = generating() if call else Monitor(TP_V1_1.role(1), 1)
    if not call:
        monitor.state = "AWAIT_HEADER"
        monitor.enter("receive_header")
    fence = Fence(monitor, NAMES, {"generate": Inside()})
    due = GENERATE if call else HEADER
    passed = []
    for one in tried:
        try:
            fence.issue(one)
        except ContractViolation:
            break
        passed.append(one)
    fits = [(o.op, NAMES.get(o.group.name)) == (due.kind, due.group) for o in tried]
    if not call:
        fits = [f and (o.root, o.dtype) == (due.root, due.dtype) for f, o in zip(fits, tried, strict=True)]
        fits[1:] = [False] * len(fits[1:])
    assert len(passed) == (fits.index(False) if False in fits else len(fits))
    if len(passed) < len(tried):
        for one in tried:
            with pytest.raises(ContractViolation):
                fence.issue(one)
