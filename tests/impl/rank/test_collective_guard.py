"""The guard lets through what is due where the protocol stands, and nothing else; what it counts is what was issued."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from genlock.errors import ContractViolation, Exit
from genlock.impl import scenario
from genlock.impl.rank import collective_guard
from genlock.impl.rank.collective_guard import CallLimits, CollectiveGuard, GuardedGenerator
from genlock.impl.rank.monitor import Monitor
from genlock.impl.rank.operations import BackendFailed
from genlock.impl.rank.roles import Run
from genlock.impl.recording import c10d_intercept, fast_path
from genlock.impl.recording.c10d_intercept import Operation, watching
from genlock.impl.recording.works import Completes
from genlock.impl.video.config import ALL_REDUCES_PER_BLOCK, tiny
from genlock.impl.video.generator import Generator
from genlock.impl.video.tensor_parallel import Distributed
from genlock.model.protocols.tp_v1_1 import GENERATE, HEADER, TP_V1_1
from genlock.model.protocols.tp_values import Plan
from genlock.model.tables import Kind, changed
from genlock.traces.format import Group, read
from genlock.traces.outcome import Code, Outcome
from genlock.traces.recorder import Recorder
from hypothesis import given
from hypothesis import strategies as st
from real_ranks import Ranks, inject
from simulated import header

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


def chunk(generator: Generator, guard: CollectiveGuard) -> Run:
    frames = (1, tiny().chunk_frames, tiny().latent_channels, 4, 4)
    return GuardedGenerator(generator, guard).chunk(
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


ANY = CallLimits()


def run_call(inner: Callable[[], None] = lambda: None, plan: CallLimits = ANY, **given: Any) -> CollectiveGuard:
    """One generator call behind a guard."""
    world: Any = dist.group.WORLD
    guard = CollectiveGuard(generating(), {c10d_intercept.group_of(world).name: "device"}, {"generate": plan}, **given)
    generator = video(inner)
    with watching(guard):
        chunk(generator, guard).calls[0]()
    assert guard.counted() == generator.counted()
    return guard


@pytest.mark.usefixtures("alone")
def test_guard_counts_and_hashes_what_a_generator_does() -> None:
    """It agrees with the generator's own ledger, so that no other ledger is needed."""
    count, sequence = run_call(plan=CallLimits(count=ALL_REDUCES_PER_BLOCK * tiny().blocks)).counted()
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
    assert event.outcome == Outcome(Code.COLLECTIVE, (1,), text="all_reduce on group device is due")


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
        (swallowed, CallLimits(), "all_reduce on group device is due"),
        (in_a_thread, CallLimits(), "by thread heartbeat .* only MainThread may"),
        (lambda: dist.all_reduce(torch.ones(5)), CallLimits(count=8), "the plan has 8 in a call"),
        (lambda: None, CallLimits(count=9), "8 collectives were issued, but the plan has 9"),
        (lambda: dist.all_reduce(torch.ones(5).long()), CallLimits(dtypes=frozenset({"float32"})), "has float32"),
        (lambda: dist.all_reduce(torch.ones(10**5)), CallLimits(numel=10**4), "the plan has 10000 elements at most"),
    ],
)
def test_generator_call_outside_its_plan_ends_the_run(inner: Callable[[], None], plan: CallLimits, says: str) -> None:
    with pytest.raises(ContractViolation, match=says) as caught:
        run_call(inner, plan)
    assert caught.value.code is (Code.THREAD if inner is in_a_thread else Code.COLLECTIVE)


@pytest.mark.usefixtures("alone")
def test_other_errors_of_a_call_stay_what_they_are() -> None:
    """A lost peer is not called a miscount."""

    def lost() -> None:
        raise dist.DistBackendError("connection closed by peer")

    with pytest.raises(dist.DistBackendError):
        run_call(lost, CallLimits(count=8))


class Work:
    """Of a backend that has lost a peer."""

    def __init__(self, failed: bool) -> None:
        self.failed = failed

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return not self.failed


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("text", ["connection closed by peer", "nothing that anybody reads"])
def test_what_the_backend_could_not_complete_is_known_by_its_work_not_by_a_text(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(work: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(fast_path, "_wait", lost)
    with pytest.raises(BackendFailed) as caught:
        run_call()
    assert str(caught.value.__cause__) == text


@pytest.mark.usefixtures("alone")
def test_an_error_of_the_generator_itself_is_no_lost_peer() -> None:
    def broken() -> None:
        raise RuntimeError("connection closed by peer")

    with pytest.raises(RuntimeError, match="closed by peer"):
        run_call(broken)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("failed", [True, False])
def test_a_failed_work_that_nobody_waits_for_in_python_counts(failed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a compiled generator has them: what it raises comes out of C++."""
    monkeypatch.setattr(collective_guard, "SETTLES", 0.02)

    def broken() -> None:
        c10d_intercept._interception.works.newest[0] = (Work(failed), Completes(lambda outcome: None), None)
        guard._open += 1
        raise RuntimeError("?")

    guard = CollectiveGuard(generating(), {}, {"generate": CallLimits()})
    with watching(guard), pytest.raises(BackendFailed if failed else RuntimeError):
        chunk(video(broken), guard).calls[0]()


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
    outcome = Outcome(Code.COLLECTIVE, (1,), text="all_reduce on group device is due")
    assert [(e.op, e.outcome) for e in refused] == [("broadcast", outcome)]
    found = ended.replayed()
    assert (found.verdict, found.culprits) == ("divergent", (1,))


def test_nothing_is_due_between_two_moves() -> None:
    guard = CollectiveGuard(Monitor(TP_V1_1.role(1), 1), NAMES, {})
    with pytest.raises(ContractViolation, match="no collective is due"):
        guard.issue(operation(Kind.ALL_REDUCE, "device"))


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


@given(tried=st.lists(DUE | OPERATIONS, min_size=1, max_size=3), call=st.booleans())
def test_guard_lets_through_what_is_due_and_no_more(tried: list[Operation], call: bool) -> None:
    """A header is one broadcast from rank0; a call is any number of all-reduces; after a refusal nothing passes."""
    monitor = generating() if call else Monitor(TP_V1_1.role(1), 1)
    if not call:
        monitor.state = "AWAIT_HEADER"
        monitor.enter("receive_header")
    guard = CollectiveGuard(monitor, NAMES, {"generate": CallLimits()})
    due = GENERATE if call else HEADER
    passed = []
    for one in tried:
        try:
            guard.issue(one)
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
                guard.issue(one)
