"""Writes what `genlock replay --out` leaves in its folder.

| file | what |
|---|---|
| `replay.txt`, `replay.json`, `junit.xml` | the verdict |
| `perfetto.json` | all ranks on one time line, for ui.perfetto.dev |
| `coverage.txt`, `coverage.json` | which transitions of the model were witnessed |
| `sequence.svg`, `sequence.mmd` | a divergence, and what led to it |
| `witness/` | the shortest traces that still show it |

Coverage and the chart are of runs that follow a protocol, a witness is of traces that Genlock recorded. Left out: how
each is made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..traces.collectives import Recording
from ..traces.format import Trace
from ..traces.perfetto import write as write_perfetto
from . import report
from .diagnosis import Diagnosis


def write(read: Sequence[Trace] | Recording, found: Diagnosis, folder: Path) -> None:
    """Write all of it; files of the same names are replaced. Raises UsageError where the traces lie in the folder."""
    own = [r.path for r in read.ranks.values()] if isinstance(read, Recording) else [t.path for t in read]
    if any(folder.resolve() in path.resolve().parents for path in own):
        # a witness is traces too, and would be read as a second run
        raise UsageError("the traces lie in this folder", where=f"--out {folder}", do="name another one")
    write_verdict(found, folder)
    write_perfetto(read, folder / "perfetto.json")
    if isinstance(read, Recording):
        _write_program(read, found, folder)
        return
    _write_coverage(read, found, folder)
    if found.divergence is not None:
        _write_divergence(read, found, folder)


def write_verdict(found: Diagnosis, folder: Path) -> None:
    """Write the verdict alone, as text, JSON and JUnit XML."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "replay.json", report.as_json(found))
    (folder / "replay.txt").write_text(report.as_text(found) + "\n", encoding="utf-8")
    (folder / "junit.xml").write_text(report.as_junit(found) + "\n", encoding="utf-8")


def _write_program(recording: Recording, found: Diagnosis, folder: Path) -> None:
    """Write the witness of a divergent program, where Genlock recorded it."""
    if found.divergence is None or recording.source != "genlock" or recording.unreadable:
        return
    from .shrink import witness_of_program
    from .shrink import write as write_witness

    if kept := witness_of_program([record.path for record in recording.ranks.values()], found):
        write_witness(kept, folder / "witness")


def _write_coverage(traces: Sequence[Trace], found: Diagnosis, folder: Path) -> None:
    from .protocol import coverage
    from .protocol.diagnose import protocol_of

    seen = coverage.Coverage(protocol_of(traces), found.witnessed)
    _write_json(folder / "coverage.json", coverage.as_json(seen))
    (folder / "coverage.txt").write_text(coverage.as_text(seen) + "\n", encoding="utf-8")


def _write_divergence(traces: Sequence[Trace], found: Diagnosis, folder: Path) -> None:
    from ..model.diagrams.sequence_chart import sequence_mermaid, sequence_svg
    from .protocol.diagnose import protocol_of
    from .protocol.sequence_chart import MAX_LANES, chart
    from .shrink import witness
    from .shrink import write as write_witness

    write_witness(witness(traces, found), folder / "witness")
    if traces[0].header.world <= MAX_LANES:
        example, schedule = chart(traces, found), protocol_of(traces).schedule
        (folder / "sequence.svg").write_text(sequence_svg(example, schedule), encoding="utf-8")
        (folder / "sequence.mmd").write_text(sequence_mermaid(example, schedule), encoding="utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
