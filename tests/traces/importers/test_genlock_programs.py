"""Genlock's own traces of programs without a protocol are judged as recordings of collectives."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from genlock.conformance import replay as road
from genlock.conformance.diagnosis import Strength, accusations
from genlock.conformance.replay import replay
from genlock.conformance.report import as_json
from genlock.errors import GenlockError, UnreadableInput, UsageError
from genlock.traces import parallel_read
from genlock.traces.format import Dropped, End, name_of
from genlock.traces.outcome import Code, Outcome
from hypothesis import given
from hypothesis import strategies as st
from program_traces import RANKS, Writer, failed, lines_of, operations, pipeline, write
from repository import CORPUS


def test_a_healthy_program_conforms(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(range(RANKS), operations(4)))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.matched_collectives, found.reasons) == ("conforming", 4, ())


def test_a_rank_that_stops_is_named_with_the_place(tmp_path: Path) -> None:
    waiting = operations(4, outcome=failed("timed out"))
    write(tmp_path, {0: waiting, 1: operations(3), 2: waiting})
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits, found.stall) == ("divergent", (1,), "host")
    assert found.divergence is not None
    assert (found.divergence.place, found.divergence.phase) == ("all_reduce #4 of group default_pg", "job.py:7")


def test_another_size_is_named(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(range(RANKS), operations(4)) | {2: operations(4, numel=9)})
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits) == ("divergent", (2,))


def test_what_was_refused_was_never_issued(tmp_path: Path) -> None:
    write(
        tmp_path, dict.fromkeys(range(RANKS), operations(4, outcome=Outcome(Code.COLLECTIVE, text="not in the plan")))
    )
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.matched_collectives) == ("conforming", 3)


def test_dropped_events_are_evidence_of_nothing(tmp_path: Path) -> None:
    events = operations(4)
    write(
        tmp_path,
        dict.fromkeys(range(RANKS), events) | {1: [*events[:4], Dropped(4, 4)]},
        rank1=End(8, 0, "stopped", -1),
    )
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.reasons[0]) == ("unknown", "rank1: events were dropped")


def test_two_runs_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {0: operations(1)})
    write(tmp_path, {1: operations(1)}, run="other")
    with pytest.raises(UsageError, match="one run at a time"):
        replay([tmp_path])


# ── sends and receives ──────────────────────────────────────────────────────────────────────────────────


def test_sends_match_receives_of_their_tag(tmp_path: Path) -> None:
    write(tmp_path, lines_of(pipeline()))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.reasons) == ("conforming", ())
    assert found.matched_collectives == 3 * (2 + 2)


def test_a_cut_file_is_evidence_of_nothing(tmp_path: Path) -> None:
    """Each rank's, at each line and in the middle of it: never an alarm, and never all right."""
    healthy = lines_of(pipeline(2))
    write(tmp_path, healthy)
    for rank in range(RANKS):
        path = tmp_path / name_of(rank)
        whole = path.read_bytes()
        ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
        for end in ends[:-1]:
            for cut in (end, end + 30):
                path.write_bytes(whole[:cut])
                found = replay([tmp_path]).diagnosis
                assert (found.verdict, found.culprits) == ("unknown", ()), (rank, cut, found)
        path.write_bytes(whole)
    assert replay([tmp_path]).diagnosis.verdict == "conforming"


def test_dropped_events_do_not_hide_the_rest(tmp_path: Path) -> None:
    """Two lines less, and told: the others still match, and nobody is blamed."""
    lines = lines_of(pipeline())
    lines[1][8:10] = [Dropped(8, 2)]
    write(tmp_path, lines, rank1=End(len(lines[1]) + 1, 0, "stopped", -1))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.reasons[0]) == ("unknown", "rank1: events were dropped")


def test_a_removed_line_is_missed(tmp_path: Path) -> None:
    lines = lines_of(pipeline())
    del lines[1][8]
    write(tmp_path, lines, rank1=End(len(lines[1]) + 1, 0, "stopped", -1))
    with pytest.raises(UnreadableInput, match=r"rank1.*line 11: event 8 is missing"):
        replay([tmp_path])


def test_another_root_is_named(tmp_path: Path) -> None:
    ranks = pipeline()
    broken = ranks[0].lines
    at = next(n for n in range(len(broken) - 1, 0, -1) if broken[n].op == "broadcast" and broken[n].edge == "enter")
    broken[at] = msgspec.structs.replace(broken[at], root=1)
    write(tmp_path, lines_of(ranks))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits) == ("divergent", (0,))
    assert found.divergence is not None
    assert "root rank1" in found.divergence.observed


def resized(ranks: dict[int, Writer], rank: int, op: str, numbers: Iterable[int]) -> None:
    """Let these operations of a rank's, as it entered them, be of another size."""
    entered = [n for n, line in enumerate(ranks[rank].lines) if line.op == op and line.edge == "enter"]
    for number in numbers:
        ranks[rank].lines[entered[number]] = msgspec.structs.replace(ranks[rank].lines[entered[number]], numel=99)


def test_of_two_ends_that_disagree_the_one_that_left_its_habit_is_named(tmp_path: Path) -> None:
    """Two sizes take turns, at both ends; then a receive of rank 2 is of the size whose turn it is not."""
    ranks = pipeline(40)
    resized(ranks, 1, "send", range(2, 36, 4))
    resized(ranks, 2, "recv", range(2, 36, 4))
    resized(ranks, 2, "recv", [36])
    write(tmp_path, lines_of(ranks))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits) == ("divergent", (2,))
    assert found.divergence is not None
    assert found.divergence.place.startswith("recv #19 from rank1")


def test_of_two_ends_that_disagree_either_may_be_wrong_where_a_size_is_new(tmp_path: Path) -> None:
    """A receive of rank 2 is larger than the eight before it; the last batch may be larger, and the send be wrong."""
    ranks = pipeline(18)
    resized(ranks, 2, "recv", [16])
    write(tmp_path, lines_of(ranks))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits, found.suspects) == ("divergent", (), (1, 2))


def test_of_two_ends_that_disagree_in_the_first_steps_nothing_tells_which_is_right(tmp_path: Path) -> None:
    ranks = pipeline(5)
    resized(ranks, 2, "recv", [2])
    write(tmp_path, lines_of(ranks))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits, found.suspects) == ("divergent", (), (1, 2))


def test_a_send_that_nobody_took_is_found_though_all_ended_well(tmp_path: Path) -> None:
    ranks = pipeline()
    ranks[0].do("send", 9, peer=1, tag=7, left=False)
    write(tmp_path, lines_of(ranks))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits, found.suspects) == ("divergent", (), (0, 1))


def test_a_receive_from_anybody_is_left_alone(tmp_path: Path) -> None:
    """Whom it was from is not recorded; so nothing of that rank's receives in the group is numbered."""
    ranks = pipeline()
    ranks[0].do("send", 1, peer=1, tag=5)
    ranks[1].do("recv_any_source", 1, peer=None, tag=5)
    write(tmp_path, lines_of(ranks))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.divergence) == ("conforming", None)


def test_uneven_exchanges_are_legal(tmp_path: Path) -> None:
    ranks = {rank: Writer() for rank in range(RANKS)}
    for rank, own in ranks.items():
        own.do("all_to_all_single", 1, numel=3 + rank)
    write(tmp_path, lines_of(ranks))
    assert replay([tmp_path]).diagnosis.verdict == "conforming"


# ── how ranks end ───────────────────────────────────────────────────────────────────────────────────────


def test_a_rank_that_raises_after_all_is_done_is_named(tmp_path: Path) -> None:
    lines = lines_of(pipeline())
    write(tmp_path, lines, rank2=End(len(lines[2]), 0, "exception", 1, "ValueError: no such layer"))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits, found.stall) == ("divergent", (2,), None)
    assert found.divergence is not None
    assert found.divergence.observed == "ValueError: no such layer"
    assert found.divergence.place.startswith("after broadcast #6")


def test_a_killed_rank_is_named_where_the_others_wait_for_it(tmp_path: Path) -> None:
    ranks = pipeline()
    for rank in (0, 2):
        ranks[rank].do("all_reduce", 7, failure="RuntimeError: Connection closed by peer")
    lines = lines_of(ranks)
    ends: dict[str, Any] = {f"rank{r}": End(len(lines[r]), 0, "exception", 1, "RuntimeError") for r in (0, 2)}
    write(tmp_path, lines, **ends, rank1=None)
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits, found.stall) == ("divergent", (1,), "host")
    assert found.divergence is not None
    assert found.divergence.place.startswith("all_reduce #7")
    assert found.divergence.line == len((tmp_path / name_of(1)).read_bytes().splitlines()) - 1


def test_a_torn_file_is_not_blamed_for_what_another_did_not_do(tmp_path: Path) -> None:
    """Ranks 0 and 1 wait in the seventh; rank 2 came to its end before; rank 1's file ends long before that.

    Of one that waits and one that came to its end, nothing tells which is right: the torn file would.
    """
    ranks = pipeline()
    for rank in (0, 1):
        ranks[rank].do("all_reduce", 7, failure="RuntimeError: timed out")
    lines = lines_of(ranks)
    write(tmp_path, lines | {1: lines[1][:9]}, rank1=None)
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits, found.suspects) == ("divergent", (), (0, 2))


def torn(ranks: dict[int, Writer], folder: Path) -> None:
    """Ranks 0 and 1 end in a reduction; rank 2 came to its end before; rank 0's file is cut after two lines."""
    for rank in (0, 1):
        ranks[rank].do("all_reduce", 100, failure="RuntimeError: timed out")
    lines = lines_of(ranks)
    write(folder, lines | {0: lines[0][:2]}, rank0=None)


ONE_OF_TWO = accusations((1, 2), Strength.SUSPECT, "one-too-many-or-one-too-few")
"""The one that waits or the one that came to its end; not the one whose file is cut."""


def test_that_others_reduced_with_it_shows_that_a_file_is_cut(tmp_path: Path) -> None:
    ranks = {rank: Writer() for rank in range(RANKS)}
    for own in ranks.values():
        for number in range(1, 100):
            own.do("all_reduce", number)
    torn(ranks, tmp_path)
    assert replay([tmp_path]).diagnosis.accused == ONE_OF_TWO


def test_that_others_received_from_it_shows_that_a_file_is_cut(tmp_path: Path) -> None:
    ranks = {rank: Writer() for rank in range(RANKS)}
    for number in (1, 2, 3):
        ranks[0].do("send", number, peer=1)
        ranks[1].do("recv", number, peer=0)
    torn(ranks, tmp_path)
    assert replay([tmp_path]).diagnosis.accused == ONE_OF_TWO


def test_nccl_exits_say_that_it_was_enqueued(tmp_path: Path) -> None:
    """All ranks left their calls; but rank 1 never made the last one."""
    ranks = pipeline()
    for rank in (0, 2):
        ranks[rank].do("all_reduce", 7)
    write(tmp_path, lines_of(ranks))
    for rank in range(RANKS):
        path = tmp_path / name_of(rank)
        path.write_bytes(path.read_bytes().replace(b'"backend":"gloo"', b'"backend":"nccl"'))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits) == ("divergent", (1,))


def test_any_spelling_of_a_line_is_read(tmp_path: Path) -> None:
    """As somebody's script may have written it anew."""
    write(tmp_path, lines_of(pipeline()))
    for rank in range(RANKS):
        path = tmp_path / name_of(rank)
        own = [json.loads(line) for line in path.read_bytes().splitlines()]
        path.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in own))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.matched_collectives) == ("conforming", 12)


@given(st.permutations(range(RANKS)), st.sampled_from(["healthy", "cut", "stalled"]))
def test_the_order_of_files_never_matters(order: list[int], what: str) -> None:
    ranks = lines_of(pipeline())
    if what == "stalled":
        del ranks[1][-4:]
    with tempfile.TemporaryDirectory() as name:
        ends: dict[str, Any] = {} if what == "healthy" else {"rank1": None}
        write(Path(name), ranks, **ends)
        files = [Path(name) / name_of(rank) for rank in range(RANKS)]
        assert as_json(replay([files[n] for n in order]).diagnosis) == as_json(replay(files).diagnosis)


# ── out of step, though every pair fits ─────────────────────────────────────────────────────────────────


def loop(*, without: int | None = None, twice: int | None = None, steps: int = 4) -> Writer:
    """Two equal all_reduces a step, from two lines; one of them left out, or done once more."""
    own = Writer()
    for number in range(2 * steps):
        for _ in range({without: 0, twice: 2}.get(number, 1)):
            own.do("all_reduce", len(own.lines) // 2 + 1, site=30 + number % 2)
    return own


@pytest.mark.parametrize(
    ("broken", "place", "what"),
    [({"without": 3}, "all_reduce #4", "left one out"), ({"twice": 3}, "all_reduce #5", "did one more")],
)
def test_the_place_is_where_it_fell_out_of_step_not_where_it_was_missed(
    broken: dict[str, int], place: str, what: str, tmp_path: Path
) -> None:
    ranks = {0: loop(), 1: loop(**broken), 2: loop()}
    for rank in [0, 2] if "without" in broken else [1]:  # they wait in the last
        ranks[rank].lines[-1] = msgspec.structs.replace(
            ranks[rank].lines[-1], outcome=failed("RuntimeError: timed out")
        )
    write(tmp_path, lines_of(ranks))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits) == ("divergent", (1,))
    assert found.divergence is not None
    assert found.divergence.place.startswith(place)
    assert what in found.divergence.why


def test_ranks_may_run_different_lines(tmp_path: Path) -> None:
    """Rank 0 has a line of its own for the second; that it is rank 2 that never comes is seen all the same."""
    ranks = {rank: loop() for rank in range(RANKS)}
    for line, own in enumerate(ranks[0].lines):
        if own.edge == "enter" and own.sequence % 2 == 0:
            ranks[0].lines[line] = msgspec.structs.replace(own, site=99)
    ranks[2].lines[-2:] = []
    for rank in (0, 1):
        ranks[rank].lines[-1] = msgspec.structs.replace(
            ranks[rank].lines[-1], outcome=failed("RuntimeError: timed out")
        )
    write(tmp_path, lines_of(ranks))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.culprits, found.stall) == ("divergent", (2,), "host")


# ── large ones, at a glance ─────────────────────────────────────────────────────────────────────────────


def spoilt(rank: int, at: int) -> Iterator[dict[int, list[Any]]]:
    """A healthy pipeline with one thing changed, at one line of one rank."""
    for change in ("drop", "cut", "size", "kind", "site", "later"):
        ranks = lines_of(pipeline())
        own = ranks[rank]
        if change == "drop":
            del own[at]
        elif change == "cut":
            del own[at:]
        elif change == "later":
            own[at] = msgspec.structs.replace(own[at], time_ns=own[at].time_ns + 5)
        else:
            new: dict[str, dict[str, Any]] = {
                "size": {"numel": 9},
                "kind": {"op": "all_gather"},
                "site": {"site": 10},
            }
            own[at] = msgspec.structs.replace(own[at], **new[change])
        yield ranks


@pytest.mark.parametrize("rank", range(RANKS))
def test_what_is_said_at_a_glance_is_what_the_whole_says(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glances = set()
    for at in range(0, len(pipeline()[rank].lines), 3):
        for ranks in spoilt(rank, at):
            write(tmp_path, ranks)
            monkeypatch.setattr(road, "LARGE", 1 << 40)
            try:
                whole = replay([tmp_path]).diagnosis
            except UnreadableInput as refused:
                monkeypatch.setattr(road, "LARGE", 0)
                with pytest.raises(UnreadableInput, match=re.escape(str(refused))):
                    road._at_a_glance([tmp_path])
                continue
            monkeypatch.setattr(road, "LARGE", 0)
            glance = road._at_a_glance([tmp_path])
            assert (glance is not None) == (whole.verdict == "conforming")
            assert glance in (None, whole)
            glances.add(glance is not None)
    assert glances == {True, False}


@pytest.mark.parametrize("without", ["a rank", "an end", "a header"])
def test_nothing_is_said_at_a_glance_of_what_is_not_whole(
    without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(road, "LARGE", 0)
    write(tmp_path, lines_of(pipeline()), rank1=None if without == "an end" else End(18, 0, "stopped", -1))
    path = tmp_path / name_of(1)
    if without == "a rank":
        path.unlink()
    elif without == "a header":
        path.write_bytes(path.read_bytes()[:40])
    assert road._at_a_glance([tmp_path]) is None
    with contextlib.suppress(GenlockError):
        assert replay([tmp_path]).diagnosis.verdict != "conforming"


def on_interrupt(paths: Sequence[Path]) -> str:
    return str(signal.getsignal(signal.SIGINT))


def test_a_process_that_reads_dies_of_an_interrupt_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_read, "MUCH", 0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    (tmp_path / "any").write_bytes(b"x")
    assert list(parallel_read.in_processes(on_interrupt, [tmp_path / "any"])) == [str(signal.SIG_DFL)]


LOADED = """
import sys
sys.argv = ["genlock", "replay", sys.argv[1]]
from genlock.__main__ import main
try:
    main()
except SystemExit as ended:
    print(ended.code or 0, *sys.modules)
"""


HEAVY = {"torch", "networkx", "graphviz", "transitions", "numba", "concurrent.futures.process"}


def replayed(folder: Path) -> tuple[str, set[str]]:
    """The exit status of a replay of the folder, and the modules that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(folder)], capture_output=True, text=True, timeout=60, check=True
    )
    status, *loaded = done.stdout.splitlines()[-1].split()
    return status, set(loaded)


def test_a_small_replay_loads_little(tmp_path: Path) -> None:
    write(tmp_path, lines_of(pipeline()))
    status, loaded = replayed(tmp_path)
    assert status == "0"
    assert not HEAVY & loaded


@pytest.mark.parametrize(("run", "status"), [("healthy/three-ranks", "0"), ("broken/OM-11", "1")])
def test_a_replay_of_a_protocol_does_without_numpy(run: str, status: str) -> None:
    ended, loaded = replayed(CORPUS / run)
    assert ended == status
    assert not (HEAVY | {"numpy"}) & loaded
