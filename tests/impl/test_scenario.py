"""Scenarios as data: a fault that cannot strike in a run is refused before anything is started."""

from __future__ import annotations

import pytest
from genlock.errors import UsageError
from genlock.impl.scenario import FAULTS, Chunk, Heartbeat, Scenario, default, must_strike
from real_ranks import inject

RUN = Scenario((Heartbeat(), Chunk(), Chunk(spoil="OM-01"), Chunk(), Chunk()))
"""Four chunks, of which the second is refused."""


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("OM-03,rank=9", "there is no rank9 of 3 ranks; count from 0"),
        ("OM-04,rank=3", "there is no rank3 of 3 ranks"),
        ("OM-11,chunk=4", "there is no chunk 4: the run has 3; choose another `chunk`"),
        ("OM-01,chunk=5", "there is no chunk 5: the run has 4"),
        ("OM-03,rank=1,chunk=4", "there is no chunk 4: the run has 3"),
        ("OM-13,rank=0,phase=header,chunk=4", "there is no chunk 4"),
        ("OM-15,phase=header,chunk=4", "there is no chunk 4"),
        ("OM-13,phase=header,chunk=5", "there is no chunk 5"),
        ("OM-13,where=inside,chunk=4", "there is no chunk 4"),
        ("OM-16,chunk=2", "no header that could come again was sent before chunk 2; use chunk=3 or more"),
        ("OM-16,kind=duplicate,chunk=1", "use chunk=2 or more"),
    ],
)
def test_a_fault_that_cannot_strike_is_refused(fault: str, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("`", ".")):
        must_strike(inject(fault), RUN, 3)


@pytest.mark.parametrize(
    "fault",
    [
        "OM-03,rank=2,kind=fewer",
        "OM-01,chunk=4",
        "OM-13,phase=header,chunk=4",
        "OM-13,rank=0,phase=idle,chunk=4",
        "OM-13,phase=shutdown,chunk=99",
        "OM-13,rank=2,phase=startup,where=inside,chunk=99",
        "OM-16,kind=truncated,chunk=1",
        "OM-16",
    ],
)
def test_a_fault_that_can_strike_is_not(fault: str) -> None:
    must_strike(inject(fault), RUN, 3)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_strikes_a_run_as_long_as_the_command_makes_it(name: str) -> None:
    must_strike(inject(name), default(8), 2)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("OM-13,phase=decode", "no phase `decode`; choose from startup"),
        ("OM-13,where=outside", "no where `outside`; choose from inside"),
        ("OM-13,where=inside,phase=idle", "no phase `idle`; choose from startup, header, payload, generate, ack"),
        ("OM-13,rank=1,phase=preflight", "rank1 has no phase `preflight`"),
        ("OM-03,kind=more", "without a rank OM-03 has no kind"),
    ],
)
def test_a_place_that_does_not_exist_is_refused(fault: str, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("`", ".")):
        inject(fault)
