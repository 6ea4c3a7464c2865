"""Replay: a healthy run conforms; any event taken away or changed diverges at that event; a cut file is unknown."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.protocol.diagnose import diagnose
from genlock.conformance.report import as_json, as_junit, as_text
from genlock.errors import ContractViolation, Refused, UnreadableInput
from genlock.impl.faults.inject import HeaderFirst
from genlock.traces.format import Trace, name_of, read
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import RANKS, FakeGenerator, Job, fields, healthy

MANY = settings(max_examples=60)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a healthy run."""
    folder = tmp_path_factory.mktemp("run")
    healthy(folder)
    return folder


def lines_of(folder: Path, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name_of(rank)).read_text().splitlines()]


def replayed(run: Path, into: Path, rank: int, edit: Callable[[list[dict[str, Any]]], object]) -> Diagnosis:
    """Diagnose the run with one rank's lines edited."""
    traces = []
    for r in range(RANKS):
        lines = lines_of(run, r)
        if r == rank:
            edit(lines)
        path = into / name_of(r)
        path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        traces.append(read(path))
    return diagnose(traces)


def test_healthy_run_conforms_with_every_collective_matched(run: Path) -> None:
    found = diagnose([read(run / name_of(r)) for r in range(RANKS)])
    assert (found.verdict, found.divergence, found.reasons) == ("conforming", None, ())
    # control: parity, 6 headers (2 heartbeats, 3 chunks, shutdown), 3 acks; device: 3 payloads, 2 + 3 + 2 calls
    assert found.matched_collectives == 1 + 6 + 3 + 3 + 7
    assert found.ranks == RANKS


def test_order_of_files_does_not_matter(run: Path) -> None:
    traces = [read(run / name_of(r)) for r in range(RANKS)]
    reports = {json.dumps(as_json(diagnose(order))) for order in itertools.permutations(traces)}
    assert len(reports) == 1


@pytest.mark.parametrize("rank", range(RANKS))
def test_each_event_deleted_by_hand_is_named(run: Path, tmp_path: Path, rank: int) -> None:
    """For every event of the rank: without it, the run diverges at the line that then stands there."""
    count = len(lines_of(run, rank))
    for at in range(1, count - 1):
        found = replayed(run, tmp_path, rank, partial(_without, at))
        where = found.divergence
        assert (found.verdict, found.culprits) == ("divergent", (rank,)), at
        assert where is not None
        assert (where.rank, where.line) == (rank, at + 1)
        assert where.why == f"event {at - 1} is missing"


@pytest.mark.parametrize("rank", range(RANKS))
def test_each_event_deleted_and_the_rest_renumbered_is_found(run: Path, tmp_path: Path, rank: int) -> None:
    """With the hole closed, the tables and the other ranks still show that something is gone."""
    lines = lines_of(run, rank)
    for at in range(1, len(lines) - 1):
        found = replayed(run, tmp_path, rank, partial(_renumbered, at))
        assert found.verdict == "divergent", (at, lines[at])
        where = found.divergence
        assert where is not None
        assert where.rank == rank, (at, lines[at])
        assert where.line <= at + 2, (at, lines[at], where)


def _without(at: int, lines: list[dict[str, Any]]) -> None:
    del lines[at]


def _changed(at: int, change: Callable[[dict[str, Any]], object], lines: list[dict[str, Any]]) -> None:
    change(lines[at])


def _renumbered(at: int, lines: list[dict[str, Any]]) -> None:
    del lines[at]
    for index, line in enumerate(lines[1:]):
        line["index"] = index


@MANY
@given(data=st.data())
def test_swapped_events_are_found(run: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, RANKS - 1))
    at = data.draw(st.integers(1, len(lines_of(run, rank)) - 3))

    def swap(lines: list[dict[str, Any]]) -> None:
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
        lines[at]["index"], lines[at + 1]["index"] = at - 1, at

    found = replayed(run, tmp_path_factory.mktemp("swapped"), rank, swap)
    where = found.divergence
    assert where is not None
    assert (where.rank, where.line) == (rank, at + 1)


CHANGES: Sequence[tuple[str, Callable[[dict[str, Any]], bool], Callable[[dict[str, Any]], object]]] = (
    ("op", lambda e: "op" in e and e["edge"] == "enter", lambda e: e.update(op="reduce_scatter")),
    ("root", lambda e: e.get("root") == 0 and e["edge"] == "enter", lambda e: e.update(root=1)),
    ("size", lambda e: "numel" in e and e["edge"] == "enter", lambda e: e.update(numel=e["numel"] + 1)),
    ("dtype", lambda e: "dtype" in e and e["edge"] == "enter", lambda e: e.update(dtype="float64")),
    ("group", lambda e: e.get("group") == "device" and e["edge"] == "enter", lambda e: e.update(group="control")),
    ("call_id", lambda e: e.get("call_id", 0) > 1, lambda e: e.update(call_id=e["call_id"] - 1)),
    ("state", lambda e: e.get("state") == "READY", lambda e: e.update(state="GENERATING")),
    ("payload", lambda e: "digest" in _data(e), lambda e: e["data"].update(digest=7)),
    ("inside", lambda e: "inside" in e, lambda e: e["inside"].update(collectives=1)),
)


def _data(event: dict[str, Any]) -> dict[str, Any]:
    data = event.get("data")
    return data if isinstance(data, dict) else {}


@pytest.mark.parametrize(("name", "fits", "change"), CHANGES, ids=[c[0] for c in CHANGES])
def test_changed_event_of_a_worker_is_named(
    run: Path,
    tmp_path: Path,
    name: str,
    fits: Callable[[dict[str, Any]], bool],
    change: Callable[[dict[str, Any]], object],
) -> None:
    rank = 2
    places = [at for at, e in enumerate(lines_of(run, rank)) if e["kind"] == "event" and fits(e)]
    assert places
    for at in random.Random(name).sample(places, min(4, len(places))):
        found = replayed(run, tmp_path, rank, partial(_changed, at, change))
        where = found.divergence
        assert where is not None, at
        assert where.rank == rank
        assert where.line in (at + 1, at + 2)  # the end of a collective tells what its beginning got wrong


def test_root_that_sends_what_its_table_has_not_is_named(run: Path, tmp_path: Path) -> None:
    def lie(lines: list[dict[str, Any]]) -> None:
        _first(lines, "send_header")["data"]["chunk_index"] = 9

    found = replayed(run, tmp_path, 0, lie)
    assert found.divergence is not None
    assert (found.culprits, found.divergence.observed) == ((0,), "send_header (exit)")
    assert found.divergence.why.startswith("it says that it sent Header(")


def test_cut_file_is_unknown(run: Path, tmp_path: Path) -> None:
    """Whatever byte the last rank was killed at: no verdict, and never a false alarm."""
    raw = (run / name_of(2)).read_bytes()
    first = raw.index(b"\n") + 1
    for size in range(first, len(raw) - 1, 997):
        (tmp_path / name_of(2)).write_bytes(raw[:size])
        traces = [read(run / name_of(0)), read(run / name_of(1)), read(tmp_path / name_of(2))]
        assert diagnose(traces).verdict == "unknown", size


def test_missing_rank_is_unknown_and_says_which(run: Path) -> None:
    found = diagnose([read(run / name_of(0)), read(run / name_of(2))])
    assert (found.verdict, found.reasons) == ("unknown", ("rank1: there is no trace",))


def test_dropped_events_are_unknown(run: Path, tmp_path: Path) -> None:
    def drop(lines: list[dict[str, Any]]) -> None:
        lines[10:14] = [{"kind": "dropped", "index": lines[10]["index"], "count": 4}]

    found = replayed(run, tmp_path, 1, drop)
    assert (found.verdict, found.divergence) == ("unknown", None)
    assert any("dropped" in reason for reason in found.reasons)


def test_what_a_rank_says_after_dropped_events_still_counts(run: Path, tmp_path: Path) -> None:
    """The disk was full for a while; later the rank rejects a header. Who is wrong, it or rank0, is not known."""

    def drop(lines: list[dict[str, Any]]) -> None:
        at = next(n for n, line in enumerate(lines) if line.get("transition") == "accept_infer")
        lines[5 : at - 2] = [{"kind": "dropped", "index": 4, "count": at - 7}]
        rejects = next(line for line in lines if line.get("transition") == "accept_infer")
        outcome = {"code": "rule_broken", "field": "call_id", "text": "header: `call_id` = 1"}
        rejects.update(transition="reject_header", outcome=outcome)

    found = replayed(run, tmp_path, 1, drop)
    assert (found.verdict, found.failure_mode, found.suspects) == ("divergent", "FM-10", (0, 1))
    assert found.divergence is not None
    assert (found.divergence.rank, found.divergence.state) == (1, "HEADER_CHECK")


def test_members_beyond_the_job_are_refused(run: Path, tmp_path: Path) -> None:
    """Two files that say that they are all of a run, and whose groups have three members."""
    for rank in range(2):
        lines = lines_of(run, rank)
        lines[0]["world"] = 2
        (tmp_path / name_of(rank)).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    with pytest.raises(UnreadableInput, match=r"line 1: the members of group .* are not distinct ranks of a job of 2"):
        _read_all(tmp_path)


def test_other_tables_are_unknown(run: Path, tmp_path: Path) -> None:
    found = replayed(run, tmp_path, 1, lambda lines: lines[0].update(tables="0" * 16))
    assert found.verdict == "unknown"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[0].update(run="another"), "is of run another"),
        (lambda lines: lines[0]["groups"].update(control=[0, 1]), "other members in its groups"),
        (lambda lines: lines[0].update(format=99), "newer than what this program reads"),
        (lambda lines: lines[0].update(protocol="tp_v9"), "`tp_v9` is unknown"),
        (lambda lines: lines[0].update(rank=7), "rank 7 is not one of 3"),
        (lambda lines: lines[0].update(rank=0), "a second trace of rank 0"),
        (lambda lines: lines.pop(0), "the first line is not a header"),
        (lambda lines: lines[3].pop("transition"), "line 4: not a line of a trace"),
        (lambda lines: _first(lines, "receive_header").update(data=[1]), "data of receive_header"),
        (lambda lines: _first(lines, "accept_infer", "step").update(data=[1]), "accept_infer is given no data"),
    ],
)
def test_malformed_file_is_one_clear_line(
    run: Path, tmp_path: Path, edit: Callable[[list[dict[str, Any]]], object], message: str
) -> None:
    with pytest.raises(UnreadableInput) as caught:
        replayed(run, tmp_path, 1, edit)
    assert message in str(caught.value).replace(str(tmp_path), "")
    assert "\n" not in str(caught.value)


def _first(lines: list[dict[str, Any]], transition: str, edge: str = "exit") -> dict[str, Any]:
    return next(line for line in lines if (line.get("transition"), line.get("edge")) == (transition, edge))


@MANY
@given(raw=st.binary(max_size=300), keep=st.integers(0, 5))
def test_random_bytes_never_crash_the_reader(
    run: Path, tmp_path_factory: pytest.TempPathFactory, raw: bytes, keep: int
) -> None:
    path = tmp_path_factory.mktemp("random") / name_of(1)
    good = (run / name_of(1)).read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(good[:keep]) + raw)
    message = str(path)
    try:
        diagnose([read(path)])
    except UnreadableInput as error:
        message = str(error)
    assert str(path) in message


def test_worker_that_drops_a_call_is_fm_02(tmp_path: Path) -> None:
    job = Job(folder=tmp_path, generators=[FakeGenerator(), FakeGenerator(off_by=-1), FakeGenerator()])
    job.simulation.start(0, job.rank0.chunk(fields()))
    job.simulation.run()
    job.simulation.conductors[1].fail(job.simulation.errors[1])
    found = diagnose(_read_all(tmp_path))
    assert (found.verdict, found.failure_mode, found.culprits) == ("divergent", "FM-02", (1,))


def test_header_before_preflight_is_fm_04_and_the_workers_are_left_waiting(tmp_path: Path) -> None:
    job = Job(folder=tmp_path)
    job.monitors[0].enforce = False
    broken = HeaderFirst(job.rank0.monitor, job.rank0.settings, job.rank0.generator)
    latents = fields()["latents"].to("meta")
    with pytest.raises(Refused):
        job.run(broken.chunk(fields(latents=latents)))
    job.simulation.run()
    found = diagnose(_read_all(tmp_path))
    assert (found.verdict, found.failure_mode, found.culprits) == ("divergent", "FM-04", (0,))
    assert found.divergence is not None
    assert found.divergence.state == "PREFLIGHT_4"
    assert {(w.rank, w.missing) for w in found.waits} == {(1, (0,)), (2, (0,))}


def test_flipped_payload_byte_names_rank_and_field(tmp_path: Path) -> None:
    """OM-11 in memory: a byte changes on one worker after receipt."""
    job = Job(folder=tmp_path)
    worker = job.simulation
    job.simulation.start(0, job.rank0.chunk(fields()))
    deliver = worker._deliver

    def flip(op: Any, rank: int, instance: Any) -> Any:
        tensor = deliver(op, rank, instance)
        if op.name == "payload" and rank == 2:
            tensor[0] ^= 1
        return tensor

    worker._deliver = flip  # type: ignore[method-assign]
    worker.run()
    error = worker.errors[2]
    assert isinstance(error, ContractViolation)
    assert "rank2" in str(error)
    assert "`conditioning_embeds`" in str(error)
    worker.conductors[2].fail(error)
    found = diagnose(_read_all(tmp_path))
    assert (found.verdict, found.culprits) == ("divergent", (2,))
    assert found.divergence is not None
    assert found.divergence.observed.startswith("receive_payload")


def test_reports_agree_with_each_other(run: Path, tmp_path: Path) -> None:
    good = diagnose([read(run / name_of(r)) for r in range(RANKS)])
    assert as_json(good)["verdict"] == "conforming"
    assert 'failures="0"' in as_junit(good)
    bad = replayed(run, tmp_path, 1, lambda lines: lines.pop(9))
    shown = as_json(bad)["divergence"]
    assert set(shown) >= {
        *("rank", "chunk", "phase", "call", "event", "state", "observed", "expected"),
        *("failure_mode", "culprits", "stall"),
    }
    assert f"rank{shown['rank']}" in as_text(bad)
    assert shown["observed"] in as_text(bad)
    assert 'failures="1"' in as_junit(bad)


def _read_all(folder: Path) -> list[Trace]:
    return [read(path) for path in sorted(folder.iterdir())]
