"""The pytest plugin, as another project has it: its tests run in a pytest of their own, with real ranks."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

RANKS = """
import os, signal, sys

def live(rank, path, broken):
    import torch, torch.distributed as dist
    torch.set_num_threads(1)
    signal.alarm(60)  # nothing is left of a test that hangs
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    if not broken or rank == 0:
        dist.all_reduce(torch.ones(4), async_op=broken)
    sys.exit(0)

def main(path, broken=False):
    import torch.distributed
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    ranks = [os.fork() or live(rank, path, broken) for rank in range(2)]
    sys.exit(sum(os.waitpid(pid, 0)[1] for pid in ranks))

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] == ["broken"])
"""
TESTS = """
import multiprocessing, os, subprocess, sys
import ranks

ENVIRONMENT = dict(os.environ)

def test_healthy_twice(genlock_ranks, tmp_path):
    run = [sys.executable, "ranks.py", str(tmp_path / "one")]
    subprocess.run(run, check=True, env={**ENVIRONMENT, **genlock_ranks.environment()})
    process = multiprocessing.get_context("spawn").Process(target=ranks.main, args=(str(tmp_path / "two"),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [d.verdict for d in genlock_ranks.diagnoses()] == ["conforming"] * 2

def test_broken(genlock_ranks, tmp_path):
    subprocess.run([sys.executable, "ranks.py", str(tmp_path / "one"), "broken"])

def test_nothing(genlock_ranks):
    subprocess.run([sys.executable, "-c", ""], check=True)

def test_fails_itself(genlock_ranks):
    raise ValueError("of its own")

def test_without():
    assert "GENLOCK_RECORD" not in os.environ
"""

PROTOCOLS = """
import pytest
from genlock import Protocol, Put, Role, Row, Slot, State, Take, UsageError

def hand_over(offered):
    slot, end = Slot("work"), State("DONE", "end", terminal=True)
    put = Row("IDLE", "put", "DONE", gate=Put(slot, lambda v: 1), send=lambda v: "work")
    again = Row("IDLE", "keep", "DONE")
    take = Row("WAIT", "take", "DONE", gate=Take(slot))
    driver = Role("driver", "IDLE", (State("IDLE", "work"), end), (put, again)[:offered], start=lambda finite: ())
    worker = Role("worker", "WAIT", (State("WAIT", "work"), end), (take,), start=lambda finite: ())
    return Protocol("hand_over", "1", driver, worker, schedule=(), slots=(slot,), ranks=2)

def test_holds(genlock_check):
    assert genlock_check(hand_over(1), faults=0).holds
    assert genlock_check("tp_v1.1", ranks=2, chunks=1, faults=0).network.ranks == 2
    assert len(genlock_check.reports) == 2

def test_strands(genlock_check):
    genlock_check(hand_over(2), faults=0)
    raise AssertionError("not reached")

def test_known_mutant(genlock_check):
    genlock_check(ranks=2, chunks=1, mutant="FM-04")

def test_ended_early(genlock_check):
    def stop(*_):
        raise KeyboardInterrupt
    genlock_check(progress=stop)

def test_checks_nothing(genlock_check):
    pass

def test_asks_nonsense(genlock_check):
    with pytest.raises(UsageError, match="no protocol `tp_v9`"):
        genlock_check("tp_v9")
    genlock_check(hand_over(1), faults=0)

def test_without():
    pass
"""


@pytest.fixture(scope="module")
def entry_point() -> str:
    """The plugin's name, as an installation has it."""
    (found,) = entry_points(group="pytest11", name="genlock")
    return found.value


def test_ranks_of_other_peoples_tests_are_recorded_and_held_to_conform(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(ranks=RANKS, test_ranks=TESTS)
    done = pytester.runpytest_subprocess("-v", "-p", "no:cacheprovider", timeout=110)
    done.assert_outcomes(passed=2, failed=3)
    done.stdout.fnmatch_lines(
        [
            "*::test_healthy_twice PASSED*",
            "*::test_broken FAILED*",
            "*::test_nothing FAILED*",
            "*::test_fails_itself FAILED*",
            "*::test_without PASSED*",
            "genlock_ranks: traces in *",
            "divergent: 2 ranks*",
            "*suspects  rank0, rank1 (one-too-many-or-one-too-few)",
            "*nothing was recorded*",
            "*ValueError: of its own",
        ]
    )


def test_other_peoples_protocols_are_checked_and_fail_with_numbered_steps(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_protocols=PROTOCOLS)
    done = pytester.runpytest_subprocess("-v", "-p", "no:cacheprovider", timeout=110)
    done.assert_outcomes(passed=3, failed=4)
    done.stdout.fnmatch_lines(
        [
            "*::test_holds PASSED*",
            "*::test_strands FAILED*",
            "*::test_known_mutant FAILED*",
            "*::test_ended_early FAILED*",
            "*::test_checks_nothing FAILED*",
            "*::test_asks_nonsense PASSED*",
            "*::test_without PASSED*",
            "genlock_check: hand_over: 2 ranks*",
            "*VIOLATED  no_stranding *",
            "*1. rank0 keep*",
            "*rank1 is stuck in WAIT*",
            "genlock_check: tp_v1.1 broken by FM-04*",
            "*STOPPED: *",
            "genlock_check: nothing was checked*",
        ]
    )
    done.stdout.no_fnmatch_line("*not reached*")


def test_the_entry_point_imports_next_to_nothing(entry_point: str) -> None:
    code = (
        "import sys, pytest; before = set(sys.modules)\n"
        f"import {entry_point}; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["genlock", "genlock.pytest_plugin"]
