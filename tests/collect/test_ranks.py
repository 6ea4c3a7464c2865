"""Which of a node's processes are ranks, by what was seen of them."""

from __future__ import annotations

from typing import Any

from genlock.collect.ranks import Seen, choose

TORCH = "/env/torch"


def seen(*given: dict[str, Any]) -> dict[int, Seen]:
    """Processes by their number, from 100001 on so that none is a real one's."""
    found = {}
    for at, about in enumerate(given):
        pid = 5_000_001 + at
        plain = {"start": at, "parent": 5_000_000, "python": True, **about}
        found[pid] = Seen(pid=pid, **plain)
    return found


def chosen(everyone: dict[int, Seen]) -> list[tuple[int, int | None, bool]]:
    """Process (from 1), rank and certainty of each that is chosen."""
    return sorted((one.pid - 5_000_000, number, sure) for one, number, _, _, sure in choose(everyone, everyone))


def rank(number: int, **more: Any) -> dict[str, Any]:
    return {"environment": {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "torch": TORCH, **more}


def test_a_guardian_a_shell_and_a_loader_of_a_rank_are_none() -> None:
    guardian = rank(0, torch="")
    own = rank(0, parent=5_000_001)
    loader = rank(0, parent=5_000_002)
    assert chosen(seen(guardian, own, loader, rank(1))) == [(2, 0, True), (4, 1, True)]


def test_a_launcher_with_a_rank_of_its_own_is_none() -> None:
    """Some launch torchrun with RANK, for the number of the node."""
    launcher = {"environment": {"RANK": "0", "WORLD_SIZE": "1"}, "torch": TORCH}
    ranks = [rank(n, parent=5_000_001) for n in range(2)]
    assert chosen(seen(launcher, *ranks)) == [(2, 0, True), (3, 1, True)]


def test_a_trace_says_more_than_the_environment() -> None:
    assert chosen(seen(rank(0, trace=3), rank(1))) == [(1, 3, True)]


def test_variables_of_mpi_and_slurm_count_where_none_has_rank() -> None:
    mpi = {"environment": {"OMPI_COMM_WORLD_RANK": "7", "OMPI_COMM_WORLD_SIZE": "8", "SLURM_PROCID": "1"}}
    assert chosen(seen({**mpi, "torch": TORCH})) == [(1, 7, True)]
    assert chosen(seen({**mpi, "torch": TORCH}, rank(1))) == [(2, 1, True)]
    assert chosen(seen(mpi)) == [], "a shell of the task has them too"


def test_engines_workers_are_known_by_their_titles_and_not_for_certain() -> None:
    workers = [{"torch": TORCH, "axes": {"PP": p, "TP": t}} for p in range(2) for t in range(2)]
    assert chosen(seen(*workers)) == [(n + 1, n, False) for n in range(4)]


def test_spawned_processes_are_ranks_in_the_order_of_their_start_if_they_have_connections() -> None:
    parent = {"torch": TORCH, "parent": 4_999_999}
    own = {"torch": TORCH, "parent": 5_000_001, "connected": True}
    late, early = {**own, "start": 9}, {**own, "start": 3}
    helper = {"torch": TORCH, "parent": 5_000_002, "connected": True, "start": 1}
    loader = {"torch": TORCH, "parent": 5_000_001, "start": 2}
    assert chosen(seen(parent, late, early, helper, loader)) == [(2, 1, False), (3, 0, False)]


def test_a_program_without_ranks_has_none() -> None:
    assert chosen(seen({"torch": TORCH}, {"torch": TORCH, "parent": 5_000_001})) == []
