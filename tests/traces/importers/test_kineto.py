"""Profiles: a healthy set of eight ranks conforms, one change to it does not, what cannot be aligned is unknown."""

from __future__ import annotations

import copy
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import judge, replay
from genlock.errors import UsageError
from genlock.traces.collectives import Interned, recording
from genlock.traces.importers.kineto import read_kineto
from recordings import folder

Event = dict[str, Any]
Profile = dict[str, Any]


def diagnosed(profiles: dict[int, bytes]) -> Diagnosis:
    interned = Interned()
    read = [read_kineto(Path(f"rank{r}.json"), p, interned) for r, p in profiles.items()]
    numbered = all(r.numbered for r in read)
    records = [r.record for r in read]
    return judge(recording("kineto", interned, records, {}, world=read[0].world, window=True, numbered=numbered))


@pytest.fixture(scope="module")
def dlrm() -> dict[int, bytes]:
    with tarfile.open(folder("kineto/dlrm_kineto.tar.gz")) as archive:
        found = [f.read() for m in archive if m.isreg() and (f := archive.extractfile(m))]
    return {json.loads(profile)["distributedInfo"]["rank"]: profile for profile in found}


def encoded(profile: Profile) -> bytes:
    return json.dumps(profile).encode()


def named(profile: Profile) -> list[Event]:
    found = [e for e in profile["traceEvents"] if e.get("cat") == "user_annotation" and e["name"].startswith("nccl:")]
    return sorted(found, key=lambda e: float(e["ts"]))


def test_the_healthy_set_conforms_with_all_its_collectives() -> None:
    found = replay([folder("kineto/dlrm_kineto.tar.gz")]).diagnosis
    assert (found.verdict, found.ranks, found.events, found.matched_collectives) == ("conforming", 8, 64, 8)


def test_two_ranks_of_another_healthy_job_raise_no_alarm() -> None:
    found = replay([folder(f"kineto/sampled_rank-{r}.json.gz") for r in (0, 1)]).diagnosis
    assert (found.verdict, found.divergence, found.ranks) == ("unknown", None, 2)


def test_two_jobs_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="one run at a time"):
        replay([folder("kineto")])


def renamed(profile: Profile, event: Event) -> None:
    event["name"] = "nccl:reduce_scatter"


def resized(profile: Profile, event: Event) -> None:
    event["args"]["Input Dims"][0] = [n + 8 for n in event["args"]["Input Dims"][0]]


def retyped(profile: Profile, event: Event) -> None:
    event["args"]["Input type"] = ["c10::Half"]


def removed(profile: Profile, event: Event) -> None:
    profile["traceEvents"].remove(event)


def repeated(profile: Profile, event: Event) -> None:
    again = copy.deepcopy(event)
    again["ts"] = float(event["ts"]) + 0.001
    profile["traceEvents"].append(again)


CHANGES = (renamed, resized, retyped, removed, repeated)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("rank", [0, 5])
def test_one_change_diverges_at_that_place(
    change: Callable[[Profile, Event], None], rank: int, dlrm: dict[int, bytes]
) -> None:
    for at in range(8):
        changed = json.loads(dlrm[rank])
        change(changed, named(changed)[at])
        found = diagnosed(dlrm | {rank: encoded(changed)})
        assert (found.verdict, found.culprits) == ("divergent", (rank,)), at
        assert found.divergence is not None
        assert found.divergence.rank == rank
        assert abs(found.divergence.line - 1 - at) <= 1, at


def test_a_collective_without_a_trace_of_it_is_missed_where_it_was(dlrm: dict[int, bytes]) -> None:
    """Gone with all that belongs to it; at either end it may as well lie outside of the profile."""
    for at in range(8):
        changed = json.loads(dlrm[4])
        gone = named(changed)[at]
        around = [e for e in changed["traceEvents"] if e["name"] == "record_param_comms" and _encloses(e, gone)]
        changed["traceEvents"] = [e for e in changed["traceEvents"] if e is not gone and e not in around]
        found = diagnosed(dlrm | {4: encoded(changed)})
        assert found.culprits in ([(4,)] if 0 < at < 7 else [(4,), ()]), at
        assert found.verdict == ("divergent" if found.culprits else "unknown"), at


def _encloses(outer: Event, inner: Event) -> bool:
    return 0 <= float(inner["ts"]) - float(outer["ts"]) <= float(outer["dur"])


def test_a_stretch_that_ends_earlier_is_unknown(dlrm: dict[int, bytes]) -> None:
    """A rank whose profile stopped before its last collective has not left one out."""
    short = json.loads(dlrm[3])
    last = float(named(short)[-1]["ts"])
    short["traceEvents"] = [e for e in short["traceEvents"] if float(e.get("ts", 0)) < last - 60]
    found = diagnosed(dlrm | {3: encoded(short)})
    assert (found.verdict, found.divergence) == ("unknown", None)


def test_a_rank_too_few_is_unknown(dlrm: dict[int, bytes]) -> None:
    found = diagnosed({rank: profile for rank, profile in dlrm.items() if rank != 2})
    assert (found.verdict, found.reasons) == ("unknown", ("there is no recording of rank2",))


def described(rank: int, ops: int = 4, **changes: Any) -> Profile:
    """A profile in the newer format, which says what each collective was, and its number."""
    events = [
        {
            "ph": "X",
            "cat": "cpu_op",
            "name": "record_param_comms",
            "ts": 100.5 + at * 10,
            "dur": 3,
            "args": {
                "Collective name": "allreduce",
                "In msg nelems": 8,
                "Out msg nelems": 8,
                "dtype": "Float",
                "Process Group Name": "0",
                "Process Group Description": "default_pg",
                "Process Group Ranks": "[0, 1, 2]",
                "Group size": 3,
                "Seq": 7 + at,
                **changes,
            },
        }
        for at in range(ops)
    ]
    return {"distributedInfo": {"rank": rank, "world_size": 3}, "traceEvents": events}


def test_numbered_collectives_match_by_their_numbers() -> None:
    profiles = {rank: described(rank) for rank in range(3)}
    found = diagnosed({rank: encoded(profile) for rank, profile in profiles.items()})
    assert (found.verdict, found.matched_collectives) == ("conforming", 4)
    del profiles[1]["traceEvents"][2]
    found = diagnosed({rank: encoded(profile) for rank, profile in profiles.items()})
    assert (found.verdict, found.culprits) == ("divergent", (1,))
    assert found.divergence is not None
    assert "#9" in found.divergence.expected[0]


def test_a_numbered_collective_of_another_size_diverges() -> None:
    profiles = {rank: described(rank) for rank in range(3)}
    profiles[2]["traceEvents"][1]["args"]["In msg nelems"] = 9
    found = diagnosed({rank: encoded(profile) for rank, profile in profiles.items()})
    assert (found.verdict, found.culprits) == ("divergent", (2,))
