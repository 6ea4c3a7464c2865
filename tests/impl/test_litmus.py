"""The transport rules against real gloo: every run shows an outcome that they predict, and wrong rules are caught."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from genlock.impl.litmus import Seen, cell, main, table
from genlock.model.litmus import LITMUS, Control, Do, Outcome, Prediction, Result, predict
from genlock.model.semantics import transport
from genlock.model.semantics.transport import Contribution, Fate
from genlock.model.tables import Collective, Kind
from repository import ROOT

DOCUMENT = ROOT / "docs" / "litmus.md"
COMMAND = [sys.executable, "-m", "genlock.impl.litmus"]
predicted = cache(predict)

WIDTH = {
    "broadcast_3_late_1": (4, 1),
    "broadcast_3_late_2": (4, 1),
    "broadcast_4_late_1": (8, 1),
    "broadcast_4_late_2": (8, 1),
    "broadcast_4_late_3": (8, 1),
    "gather_3_late_2": (2, 1),
    "gather_4_late_3": (4, 1),
    "gather_8_late_7": (64, 1),
    "killed_before_all_reduce_0": (1, 8),
    "killed_before_all_reduce_3": (1, 8),
    "killed_before_broadcast_0": (1, 8),
    "killed_before_broadcast_3": (8, 27),
    "killed_before_gather_0": (1, 8),
    "killed_before_gather_3": (4, 18),
    "killed_idle_then_broadcast": (1, 3),
    "killed_in_all_reduce": (2, 9),
    "killed_in_broadcast": (3, 9),
    "killed_in_gather": (3, 9),
    "other_kind": (2, 2),
    "other_kind_3": (4, 4),
    "receiver_larger_4": (64, 64),
    "receiver_smaller": (3, 3),
    "receiver_smaller_4": (27, 27),
    "run_ahead_3": (4, 1),
    "run_ahead_killed_3": (4, 16),
    "run_ahead_killed_4": (22, 176),
    "run_ahead_4": (22, 1),
    "run_ahead_8": (8985, 1),
    "run_ahead_two_groups": (79, 1),
    **{f"broadcast_8_late_{late}": (128, 1) for late in range(1, 8)},
}
"""How many outcomes are predicted, while a rank is late and in the end, where it is more than one."""

BLOCKED = {
    3: {0: {1, 2}, 1: {0}, 2: {0}},
    4: {0: {1, 2, 3}, 1: {0, 3}, 2: {0}, 3: {1}},
    8: {0: {1, 2, 3, 4, 5, 6, 7}, 1: {0, 3, 5, 7}, 2: {0, 6}, 3: {1, 7}, 4: {0}, 5: {1}, 6: {2}, 7: {3}},
}
"""Ranks → late rank of a broadcast from rank 0 → who cannot leave before it comes, by gloo's tree."""

GLOO = {
    "broadcast_3_late_0": ("late / waits / waits", "completes / completes / completes"),
    "broadcast_4_late_3": ("completes / waits / completes / late", "completes / completes / completes / completes"),
    "run_ahead_4": (
        "completes waits / waits / completes completes waits / late",
        " / ".join(["completes completes completes"] * 4),
    ),
    "gather_4_late_3": ("waits / completes / completes / late", "completes / completes / completes / completes"),
    "all_reduce_3_late_2": ("waits / waits / late", "completes / completes / completes"),
    "other_dtype": ("completes / garbage",) * 2,
    "strided_source": ("completes / garbage",) * 2,
    "receiver_larger": ("completes / garbage",) * 2,
    "receiver_smaller": ("completes / aborted",) * 2,
    "skipped_all_reduce": ("completes garbage waits / completes garbage waits / completes garbage",) * 2,
    "header_as_payload": ("completes completes completes / completes garbage garbage waits",) * 2,
    "other_kind": ("waits / waits",) * 2,
    "other_kind_detail": ("error / error",) * 2,
    "broadcast_4_late_3_detail": ("waits / waits / waits / late", "completes / completes / completes / completes"),
    "killed_in_all_reduce": ("killed / waits / late", "killed / waits / error"),
    "crossed_groups": ("waits / waits",) * 2,
}
"""Runs that were seen on gloo, for the rules to be tested without it."""


def outcome(text: str) -> Outcome:
    return tuple(tuple(map(Result, rank.split())) for rank in text.split(" / "))


def recorded(name: str) -> Seen:
    held, end = GLOO[name]
    return Seen(outcome(held), outcome(end))


def fits(name: str, prediction: Prediction) -> bool:
    """Whether a prediction has room for the recorded run, and for no more than it should."""
    width = (len(prediction.held.outcomes), len(prediction.end.outcomes))
    return recorded(name).predicted(prediction) and width == WIDTH.get(name, (1, 1))


# ── the rules ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_where_signatures_are_equal_and_nobody_is_lost_fates_are_may_and_must(kind: Kind, ranks: int) -> None:
    op = Collective("op", kind, "g", 1, "float32", "64", "")
    for here in product([False, True], repeat=ranks):
        issued = [Contribution(op, rank) if came else None for rank, came in enumerate(here)]
        assert transport.bound(op, issued) == transport.must_complete(op, issued)
        for rank in range(ranks):
            expected = {Fate.COMPLETES} if transport.may_complete(op, rank, issued) else set()
            assert transport.fates(op, rank, issued) == expected


@pytest.mark.parametrize(("ranks", "ahead"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (7, 2), (8, 3)])
def test_a_member_may_be_ahead_of_the_slowest_by_the_depth_of_the_tree(ranks: int, ahead: int) -> None:
    assert transport.run_ahead(ranks) == ahead
    assert transport.in_reach(ahead - 1, [0, *[ahead] * (ranks - 1)])
    assert not transport.in_reach(ahead, [0, *[ahead + 1] * (ranks - 1)])


def test_sizes_that_are_no_numbers_may_be_too_long_where_they_differ() -> None:
    def sized(size: str) -> Collective:
        return Collective("op", Kind.BROADCAST, "g", 0, "uint8", size, "")

    assert transport.overruns(sized("64"), sized("8"))
    assert not transport.overruns(sized("8"), sized("64"))
    assert transport.overruns(sized("payload bytes"), sized("64"))
    assert not transport.overruns(sized("payload bytes"), sized("payload bytes"))


def test_programs_are_what_the_exploration_takes_for_granted() -> None:
    for litmus in LITMUS.values():
        for program in litmus.programs:
            names = [step.op.name for step in program if isinstance(step, Do)]
            assert len(set(names)) == len(names), f"{litmus.name}: one name, one meaning"
            if Control.DIE in program:
                assert program[-1] is Control.DIE


@pytest.mark.parametrize("name", LITMUS)
def test_predictions_are_as_wide_as_the_rules_leave_open(name: str) -> None:
    prediction = predicted(LITMUS[name])
    assert (len(prediction.held.outcomes), len(prediction.end.outcomes)) == WIDTH.get(name, (1, 1))


def test_it_is_said_for_whom_a_rank_waits() -> None:
    def waiting(name: str) -> list[list[int]]:
        return [sorted(whom) for whom in predicted(LITMUS[name]).end.waiting]

    assert waiting("skipped_all_reduce") == [[2], [2], []]
    assert waiting("header_as_payload") == [[], [0]]
    assert waiting("crossed_groups") == [[1], [0]]
    assert waiting("killed_before_gather_3") == [[3], [3], [3], []]
    assert waiting("all_reduce_4_late_3") == [[], [], [], []]
    assert [sorted(whom) for whom in predicted(LITMUS["all_reduce_4_late_3"]).held.waiting] == [[3], [3], [3], []]


# ── wrong rules ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", GLOO)
def test_the_rules_explain_what_was_recorded(name: str) -> None:
    assert fits(name, predicted(LITMUS[name]))


def everyone(op: Collective, rank: int, ranks: int) -> Sequence[int]:
    return range(ranks)


def nobody(op: Collective, rank: int, ranks: int) -> Sequence[int]:
    return ()


def root_stays(op: Collective, rank: int, ranks: int) -> Sequence[int]:
    return range(ranks) if rank == op.root or op.root is None else (op.root,)


def unmatched(op: Collective) -> Collective:
    return op


def right(op: Collective, rank: int, issued: Sequence[Contribution | None]) -> Any:
    return "what was meant"


def the_dead_count(op: Collective, issued: Sequence[Contribution | None], **_: Any) -> bool:
    return transport.must_complete(op, issued)


WRONG: Mapping[str, tuple[str, Callable[..., Any], Sequence[str]]] = {
    # what the rule says instead: (function of `transport`, its replacement, programs that must notice)
    "nobody leaves early": ("depends_on", everyone, ["broadcast_4_late_3", "gather_4_late_3", "run_ahead_4"]),
    "a root never leaves early": ("depends_on", root_stays, ["broadcast_4_late_3", "run_ahead_4"]),
    "anybody leaves at once": ("depends_on", nobody, ["broadcast_3_late_0", "gather_4_late_3", "all_reduce_3_late_2"]),
    "one ahead at any size": ("run_ahead", lambda ranks: 1, ["run_ahead_4"]),
    "any number ahead": ("run_ahead", lambda ranks: 9, ["run_ahead_4"]),
    "pairing by dtype and size": ("matched", unmatched, ["other_dtype", "receiver_larger"]),
    "all sizes fit": ("overruns", lambda sender, op: False, ["receiver_smaller"]),
    "values are what was meant": (
        "delivered",
        right,
        ["other_dtype", "strided_source", "receiver_larger", "skipped_all_reduce", "header_as_payload"],
    ),
    "torch checks nothing": ("refused", lambda issued: False, ["other_kind_detail"]),
    "a dead member's part counts": ("bound", the_dead_count, ["killed_in_all_reduce"]),
    "nothing is bound to happen": ("bound", lambda op, issued, **_: False, ["broadcast_3_late_0", "other_dtype"]),
    "all is bound to happen": ("bound", lambda op, issued, **_: True, ["broadcast_4_late_3", "gather_4_late_3"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_rule_is_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, replacement, programs = WRONG[wrong]
    monkeypatch.setattr(transport, function, replacement)
    assert [name for name in programs if fits(name, predict(LITMUS[name]))] == []


# ── the real backend ────────────────────────────────────────────────────────────────────────────────────


def alive(text: str) -> list[str]:
    """Processes whose command line has `text` in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in command and int(entry.name) != os.getpid():
            found.append(entry.name)
    return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Seen]:
    """One run of every program. Nothing of it may be left."""
    out = tmp_path_factory.mktemp("litmus") / "litmus.md"
    command = [*COMMAND, "--jobs", "4", "--probe", "0.5", "--limit", "40", "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=110, check=False)
    assert alive(str(out)) == []
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {line["name"]: Seen(read(line["held"]), read(line["end"])) for line in lines}
    assert done.returncode == (not all(line["predicted"] for line in lines))
    assert set(found) == set(LITMUS)
    assert listed(out.read_text(encoding="utf-8")) == list(LITMUS)
    return found


def read(results: Sequence[Sequence[str]]) -> Outcome:
    return tuple(tuple(map(Result, rank)) for rank in results)


@pytest.mark.parametrize("name", LITMUS)
def test_gloo_shows_an_outcome_that_is_predicted(name: str, seen: Mapping[str, Seen]) -> None:
    prediction = predicted(LITMUS[name])
    assert seen[name].held in prediction.held.outcomes
    assert seen[name].end in prediction.end.outcomes


@pytest.mark.parametrize(("ranks", "late"), [(ranks, late) for ranks, trees in BLOCKED.items() for late in trees])
def test_gloo_broadcasts_along_its_tree(ranks: int, late: int, seen: Mapping[str, Seen]) -> None:
    held = seen[f"broadcast_{ranks}_late_{late}"].held
    assert {rank for rank, results in enumerate(held) if results == (Result.WAITS,)} >= BLOCKED[ranks][late]


@pytest.mark.skipif(sys.platform != "linux", reason="ranks die with their parent on Linux only")
def test_ranks_die_with_the_command() -> None:
    marker = f"3100.{os.getpid():08}"  # seconds that no other command has
    process = subprocess.Popen([*COMMAND, "not_calling", "--probe", marker])
    try:
        wait_until(lambda: len(alive(marker)) == 5)  # the command, two jobs, two ranks
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not alive(marker))


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_unknown_program_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["no_such"])
    assert "no program no_such" in capsys.readouterr().err


# ── the document ────────────────────────────────────────────────────────────────────────────────────────


def rows(document: str) -> list[list[str]]:
    lines = [line for line in document.splitlines() if line.startswith("| `")]
    return [line.strip("| ").split(" | ") for line in lines]


def listed(document: str) -> list[str]:
    return [row[0].strip("`") for row in rows(document)]


def test_the_committed_table_lists_the_programs_and_what_is_predicted_now() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert listed(document) == list(LITMUS)
    for name, text, prediction, gloo, nccl in rows(document):
        litmus = LITMUS[name.strip("`")]
        assert text == litmus.text
        assert prediction == cell(litmus, *predicted(litmus))
        assert gloo
        assert nccl == "not measured"


def test_what_differs_only_in_how_often_a_rank_completes_is_one_entry() -> None:
    held = outcome("waits / late"), outcome("completes completes waits / late")
    end = outcome("completes completes completes / completes")
    [row] = rows(table({"run_ahead_4": [Seen(one, end) for one in held]}, 2))
    assert row[3] == "*while late* 0: completes ×0–2, waits; 1: late<br>*then* 0: completes ×3; 1: completes"
