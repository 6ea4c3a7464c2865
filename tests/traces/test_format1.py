"""Traces of format 1 are read; what only their texts tell decides nothing, and replay says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from genlock.conformance.protocol.diagnose import diagnose
from genlock.conformance.replay import replay
from genlock.errors import UnreadableInput
from genlock.page.run_page import of_traces
from genlock.traces import fast_summary
from genlock.traces.convert import convert
from genlock.traces.format import Trace, find, read
from genlock.traces.importers.detect import programs
from genlock.traces.load import files_of, own_of
from genlock.traces.outcome import Code, Outcome
from repository import SUPPORT

FORMER = SUPPORT / "format1"


def traces(name: str) -> list[Trace]:
    return [read(path) for path in find(FORMER / name)]


def test_a_healthy_run_conforms() -> None:
    assert {t.header.format for t in traces("two-ranks")} == {1}
    found = diagnose(traces("two-ranks"))
    assert (found.verdict, found.reasons) == ("conforming", ())


@pytest.mark.parametrize(("name", "culprits", "state"), [("OM-05", (), "PARITY_CHECK"), ("FM-12-text", (2,), "READY")])
def test_what_only_a_text_tells_has_no_failure_mode_and_accuses_nobody(
    name: str, culprits: tuple[int, ...], state: str
) -> None:
    """Who raises is known by its move; who is odd, and why it raised, by the text alone."""
    found = diagnose(traces(name))
    assert (found.verdict, found.failure_mode, found.culprits) == ("divergent", None, culprits)
    assert found.divergence is not None
    assert found.divergence.state == state
    assert any("format 1 holds what this rank found as text only" in reason for reason in found.reasons)


def test_what_the_structure_tells_is_kept() -> None:
    """An operation whose issue has an outcome was refused, whatever the text says."""
    found = diagnose(traces("OM-06"))
    assert (found.failure_mode, found.culprits, found.reasons) == ("FM-08", (1,), ())
    assert found.divergence is not None
    assert found.divergence.facts.outcome is not None
    assert found.divergence.facts.outcome.code is Code.COLLECTIVE


@pytest.mark.parametrize("name", sorted(path.name for path in FORMER.iterdir()))
def test_a_converted_run_is_judged_as_before(name: str, tmp_path: Path) -> None:
    convert([FORMER / name], tmp_path)
    assert diagnose([read(path) for path in find(tmp_path)]).reasons == diagnose(traces(name)).reasons
    before, after = diagnose(traces(name)), replay([tmp_path]).diagnosis
    assert (after.verdict, after.failure_mode, after.culprits) == (before.verdict, before.failure_mode, before.culprits)


HEAD = (
    '{"kind":"header","format":1,"run":"r","rank":%d,"world":2,"role":"","backend":"gloo","protocol":"","tables":"",'
    '"groups":{"g":[0,1]},"clock":{"wall_ns":1,"monotonic_ns":0}}'
)
ENTER = (
    '{"kind":"event","index":%d,"time_ns":5,"transition":"","edge":"enter","state":"","phase":"","group":"g",'
    '"sequence":%d,"op":"all_reduce","dtype":"float32","numel":8,"site":"job.py:%d"%s}'
)
EXIT = (
    '{"kind":"event","index":%d,"time_ns":6,"transition":"","edge":"exit","state":"","phase":"","group":"g",'
    '"sequence":%d,"op":"all_reduce","entered":%d%s}'
)
END = '{"kind":"end","index":%d,"time_ns":9,"cause":"%s","exit":0,"message":"%s"}'


def program(folder: Path, *ends: tuple[str, str], outcome: str = "", sites: tuple[int, int] = (7, 8)) -> None:
    """Two ranks of a program as format 1 has them: two sums each."""
    for rank, end in enumerate(ends):
        lines = [HEAD % rank]
        for number in (1, 2):
            at = 2 * (number - 1)
            lines += [ENTER % (at, number, sites[(rank + number) % 2], ""), EXIT % (at + 1, number, at, "")]
        if outcome and rank:
            lines[-1] = EXIT % (3, 2, 2, f',"outcome":"{outcome}"')
        (folder / f"rank{rank}.trace.jsonl").write_text("\n".join([*lines, END % (4, *end)]) + "\n")


def test_a_program_is_read_fast_and_slowly(tmp_path: Path) -> None:
    """Its sites are other lines on each rank, so that what is remembered of one rank's lines must not name them."""
    program(tmp_path, ("stopped", ""), ("stopped", ""))
    found = replay([tmp_path]).diagnosis
    assert (found.verdict, found.matched_collectives) == ("conforming", 2)
    own = own_of(files_of([tmp_path]))
    assert own is not None
    assert fast_summary.agreed(own) is not None
    read_fast = programs(*own)
    for path in find(tmp_path):  # another spelling of the same is read line by line
        path.write_text(path.read_text().replace('{"kind":"event",', '{"kind": "event",'))
    read_slowly = programs(*own)
    for recording in (read_fast, read_slowly):
        sites = {r: [recording.sites[op["site"]] for op in record.ops] for r, record in recording.ranks.items()}
        assert sites == {0: ["job.py:8", "job.py:7"], 1: ["job.py:7", "job.py:8"]}


def test_a_program_that_goes_on_elsewhere_is_evidence_of_nothing(tmp_path: Path) -> None:
    program(tmp_path, ("stopped", ""), ("stopped", "some words"))
    assert replay([tmp_path]).diagnosis.verdict == "unknown"


def test_an_operation_that_failed_is_told_by_its_exit(tmp_path: Path) -> None:
    program(tmp_path, ("stopped", ""), ("stopped", ""), outcome="refused: whatever a text says")
    [failed] = [e.outcome for e in read(tmp_path / "rank1.trace.jsonl").events if e.outcome]
    assert failed == Outcome(Code.BACKEND, text="refused: whatever a text says")


def test_a_format_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rank0.trace.jsonl").write_text((HEAD % 0).replace('"format":1', '"format":4') + "\n")
    with pytest.raises(UnreadableInput, match="format 4 is newer than what this program reads, 1 to 3"):
        replay([tmp_path])


def test_the_page_shows_its_places_and_texts() -> None:
    moments, _ = of_traces(traces("OM-06"), None)
    assert any("all_reduce on group device is due" in moment.detail for moment in moments)
