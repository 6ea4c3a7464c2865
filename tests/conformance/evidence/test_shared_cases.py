"""Logs of invented jobs and of public reports, which are no part of the repository: each as its truth says."""

from __future__ import annotations

import pytest
from genlock.conformance.diagnosis import Diagnosis
from genlock.conformance.replay import replay
from recordings import DATA

CASES = DATA.parent / "cases"


def judged(name: str) -> Diagnosis:
    path = CASES / name
    if not path.exists():
        pytest.skip(f"{path.name} is absent: other people's cases lie beside the checkout")
    return replay([path]).diagnosis


CULPRITS = {
    "logs/different_op/log": (2,),
    "logs/interleaved_nccl/log": (1,),
    "logs/many_groups/log": (5,),
    "logs/one_ahead/log": (0,),
    "logs/one_behind/log": (2,),
    "logs/ras_behind/log": (6,),
    "reports/json-active-only/j_active_only_culprit_has_no_entries": (2,),
    "reports/torchcomms-dumps/stall_spmd": (3,),
    "reports/torchcomms-dumps/stall_uneven": (3,),
}
SUSPECTS = {
    "reports/dump-file-names/swap": (0, 1),  # of two ranks nothing tells which is right
    "logs/host_died/log": (),
    "logs/single_node/log": (0, 2, 3),
    "reports/desync-and-wrapper-log/wrapper.log": (0, 1),
    "reports/nccl-debug-coll-log/nccl_coll.log": (0, 1),
    "reports/nccl-inspector/insp": (2,),
    "reports/nccl-ras/ras.txt": tuple(rank for rank in range(32) if rank not in (12, 13)),
    "reports/vllm-shm-broadcast/vllm.log": (1,),
}
HEALTHY = (
    "reports/torchcomms-dumps/healthy_spmd",
    "reports/torchcomms-dumps/healthy_uneven",
    "reports/torchfrtrace-fixtures/f08_coalesced_broadcast_ok",
    "reports/torchfrtrace-fixtures/f10_uneven_reduce_scatter_ok",
)


@pytest.mark.parametrize("name", CULPRITS)
def test_what_is_entailed_is_said(name: str) -> None:
    found = judged(name)
    assert (found.verdict, found.culprits) == ("divergent", CULPRITS[name])


@pytest.mark.parametrize("name", SUSPECTS)
def test_what_is_not_entailed_names_suspects_and_what_to_fetch(name: str) -> None:
    found = judged(name)
    assert (found.verdict, found.culprits, found.suspects) == ("unknown", (), SUSPECTS[name])
    assert found.missing


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_healthy_conforms(name: str) -> None:
    assert judged(name).verdict == "conforming"


def test_a_host_that_went_down_is_named_by_its_address() -> None:
    found = judged("logs/host_died/log")
    assert any("10.77.0.19" in reason and "no rank above 3" in reason for reason in found.reasons)


def test_a_folder_whose_name_holds_torch_is_the_users() -> None:
    found = judged("reports/project-folder-named-pytorch/pytorch_folder").divergence
    assert found is not None
    assert found.phase == "train.py:40 (step)"
