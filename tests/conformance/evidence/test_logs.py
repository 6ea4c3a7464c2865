"""Logs of hung jobs of every version, behind every prefix, whole and in parts: never an innocent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from hangs import hang
from job_logs import LAUNCHERS, NUMBERED, VERSIONS, Said, grid, mixed, one_ahead, one_behind, unlike
from watchdog_logs import said_of


def judged(folder: Path, log: bytes, name: str = "job.log") -> Diagnosis:
    (folder / name).write_bytes(log)
    return replay([folder / name]).diagnosis


JOBS: dict[str, tuple[Callable[[str], Said], tuple[int, ...]]] = {
    "one behind": (one_behind, (2,)),
    "two of seven behind": (lambda v: one_behind(v, 7, (1, 4)), (1, 4)),
    "another operation": (unlike, (2,)),
    "one ahead": (one_ahead, (0,)),
    "one of a grid": (grid, (5,)),
    "one of a grid, groups untold": (lambda v: grid(v, told=False), (5,)),
}
UNTOLD = "one of a grid, groups untold"
NAMED = ("2.4", "2.5", "2.6", "2.8", "glog")
"""Versions that name groups alike on all ranks, and have the counters of the default group."""


@pytest.mark.parametrize("version", NAMED)
@pytest.mark.parametrize("job", [name for name in JOBS if name != UNTOLD])
def test_a_whole_log_names_exactly_the_culprits(job: str, version: str, tmp_path: Path) -> None:
    make, culprits = JOBS[job]
    found = judged(tmp_path, mixed(make(version)))
    assert (found.verdict, found.culprits) == ("divergent", culprits)
    assert found.divergence is not None
    assert found.divergence.rank in culprits


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("job", JOBS)
def test_no_version_accuses_an_innocent_and_suspects_have_the_culprit(job: str, version: str, tmp_path: Path) -> None:
    make, culprits = JOBS[job]
    found = judged(tmp_path, mixed(make(version)))
    assert set(found.culprits) <= set(culprits)
    if found.verdict == "unknown" and version in NUMBERED:
        assert set(culprits) <= set(found.suspects) or not found.suspects


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_prefixes_of_launchers_change_nothing(launcher: str, tmp_path: Path) -> None:
    for job, (make, culprits) in JOBS.items():
        if job != UNTOLD:
            found = judged(tmp_path, mixed(make("2.6"), launcher, seed=1))
            assert (found.verdict, found.culprits) == ("divergent", culprits), job


def subsets(ranks: list[int]) -> Iterator[tuple[int, ...]]:
    """Which ranks are left out: each, each two, all but one, and either half."""
    for many in (1, 2, len(ranks) - 1):
        yield from itertools.combinations(ranks, many)
    yield tuple(ranks[: len(ranks) // 2])
    yield tuple(ranks[len(ranks) // 2 :])


@pytest.mark.parametrize("version", ["2.1", "2.3", "2.6"])
@pytest.mark.parametrize("job", JOBS)
def test_parts_of_a_log_never_accuse_an_innocent(job: str, version: str, tmp_path: Path) -> None:
    make, culprits = JOBS[job]
    said = make(version)
    for gone in subsets(sorted(said)):
        log = mixed({rank: lines for rank, lines in said.items() if rank not in gone})
        if log:
            found = judged(tmp_path, log)
            assert set(found.culprits) <= set(culprits), gone


def test_where_the_culprits_lines_are_missing_it_is_the_suspect(tmp_path: Path) -> None:
    said = one_behind("2.6")
    del said[2]
    found = judged(tmp_path, mixed(said))
    assert (found.verdict, found.suspects) == ("unknown", (2,))
    assert any("fetch the log of rank2" in missing.text for missing in found.missing)


def test_a_rank_that_stands_still_may_wait_for_one_of_whom_nothing_is_known(tmp_path: Path) -> None:
    said = one_behind("2.6", 5)
    del said[1]
    found = judged(tmp_path, mixed(said))
    assert (found.verdict, found.suspects) == ("unknown", (1, 2))


def test_of_two_ranks_nothing_tells_which_is_right(tmp_path: Path) -> None:
    for said in (one_behind("2.6", 2, (1,)), unlike("2.6", 2, (1,))):
        found = judged(tmp_path, mixed(said))
        assert (found.verdict, found.suspects) == ("unknown", (0, 1))


def test_where_most_stand_still_either_may_be_wrong(tmp_path: Path) -> None:
    found = judged(tmp_path, mixed(one_behind("2.6", 4, (0, 1, 2))))
    assert (found.verdict, found.suspects) == ("unknown", (0, 1, 2, 3))
    assert any("one operation too many" in reason for reason in found.reasons)


def test_when_all_are_in_it_it_is_a_device_or_the_network(tmp_path: Path) -> None:
    found = judged(tmp_path, mixed(one_behind("2.6", 4, ())))
    assert (found.verdict, found.culprits) == ("unknown", ())
    assert any("a device or the network" in reason for reason in found.reasons)


def test_the_rank_that_others_heard_of_first_waited_itself(tmp_path: Path) -> None:
    """Of one host's log, ranks 4 to 7: rank 1, of the other, sent the signal."""
    said = one_behind("2.6", 8, (3,))
    log = b"".join(mixed({rank: said[rank]}) for rank in (4, 5, 6, 7)).replace(b"from this local rank", b"from  rank 1")
    found = judged(tmp_path, log.replace(b"OpType=ALLREDUCE, NumelIn=4096", b"OpType=_ALLGATHER_BASE, NumelIn=512"))
    assert (found.verdict, found.suspects) == ("unknown", (0, 2, 3))


def test_a_log_without_a_hang_says_nothing(tmp_path: Path) -> None:
    said = {rank: lines[:3] for rank, lines in grid("2.6").items()}  # groups, and nothing else
    found = judged(tmp_path, mixed(said))
    assert (found.verdict, found.culprits, found.suspects) == ("unknown", (), ())


def test_order_and_files_do_not_matter(tmp_path: Path) -> None:
    said = grid("2.8")
    whole = {judged(tmp_path, mixed(said, seed=seed)).culprits for seed in range(5)}
    parts = tmp_path / "parts"
    parts.mkdir()
    for rank, lines in said.items():
        (parts / f"{7 - rank}.log").write_bytes(mixed({rank: lines}))
    assert whole == {replay([parts]).diagnosis.culprits} == {(5,)}


def test_ranks_that_wait_in_unlike_operations_are_told_apart(tmp_path: Path) -> None:
    said = "[rank{r}]:[E ProcessGroupNCCL.cpp:523] [Rank {r}] Watchdog caught collective operation timeout: WorkNCCL("
    said += "SeqNum={n}, OpType={op}, NumelIn=64, NumelOut=64, Timeout(ms)=600000) ran for 600100 milliseconds before "
    rows = [(1, 88, "ALLGATHER"), (8, 87, "REDUCE_SCATTER"), (9, 88, "ALLGATHER")]
    log = "".join(said.format(r=r, n=n, op=op) + "timing out.\n" for r, n, op in rows)
    found = judged(tmp_path, log.encode())
    assert found.verdict == "unknown"
    assert "rank1 and rank9 wait in all_gather #88; rank8 waits in reduce_scatter #87" in found.reasons[0]


@pytest.mark.parametrize(("fault", "silent"), [("extra", 9), ("skip", None)])
def test_where_nothing_says_who_is_in_a_group_anybody_may_be_owed(
    fault: str, silent: int | None, tmp_path: Path
) -> None:
    job = hang(3001, fault)
    assert job is not None
    said = said_of(job, told=False)
    given = {r: lines for r, lines in said.items() if r != silent} if silent is not None else {4: said[4], 10: said[10]}
    found = judged(tmp_path, mixed(given))
    assert (found.verdict, found.culprits) == ("unknown", ())
    known = set(range(max(given) + 1))
    assert set(job.culprits) & known <= set(found.suspects)


@pytest.mark.parametrize("version", VERSIONS)
def test_who_waits_alone_in_a_log_may_be_the_one_out_of_step(version: str, tmp_path: Path) -> None:
    found = judged(tmp_path, mixed({2: grid(version, told=False)[2]}))
    assert (found.verdict, found.culprits) == ("unknown", ())
    assert 2 in found.suspects
