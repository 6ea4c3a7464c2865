"""Puts the verdict on recorded collectives and the one on logs together, as one diagnosis.

A dump says in what a rank waits, a log who is behind, a stack where it stands. Where dumps and logs are of one job,
what the dumps say of groups and numbers joins the facts of the logs, so that a rank whose dump is missing is judged by
its log. Where two verdicts contradict each other, nobody is a culprit.

Left out: the verdicts themselves (`collectives`, `judge`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...traces.collectives import Recording, Status
from ...traces.evidence import Counters, Evidence, Fact, GroupName, Membership, Operation, Source, Waits
from ...traces.importers.places import place_text
from ..collectives.diagnose import diagnose
from ..diagnosis import Accusation, Diagnosis, Divergence, MissingEvidence, Strength, accusations
from .advice import advice
from .collected import tempered
from .failures import ended_before
from .finding import Finding, Kind
from .judge import Judged, judge_facts
from .picture import Picture

CONTRADICTION, MERGED = "recording-against-logs", "recording-and-logs"
HOST = (Kind.STANDS_STILL, Kind.STOPPED, Kind.NEVER_CAME, Kind.STACKS, Kind.COUNTS)


def judge_evidence(evidence: Evidence) -> Diagnosis:
    """Return the verdict on all that is known of a job."""
    return tempered(_judged(evidence), evidence)


def _judged(evidence: Evidence) -> Diagnosis:
    recording = evidence.recording
    if recording is None:
        return diagnosis_of(judge_facts(evidence), len(evidence.facts))
    if not evidence.facts:
        return diagnose(recording)
    died = ended_before(Picture(evidence))
    recorded = diagnose(replace(recording, died={**died, **recording.died}))
    both = replace_facts(evidence, [*evidence.facts, *facts_of(recording)])
    return together(recorded, judge_facts(both), judge_facts(evidence), len(evidence.facts))


def replace_facts(evidence: Evidence, facts: Sequence[Fact]) -> Evidence:
    """Return the same evidence with other facts."""
    return Evidence(list(facts), evidence.recording, evidence.files)


def diagnosis_of(judged: Judged, events: int) -> Diagnosis:
    """Return the verdict that facts alone lead to: `divergent` with culprits, else `unknown`."""
    first = judged.first
    found = None
    if judged.culprits and first is not None:
        found = _divergence(first, judged.culprits[0])
    reasons = [] if found else [finding.why for finding in judged.findings]
    if found and first is not None:
        reasons = [f.why for f in judged.findings[1:] if f.culprits and f.culprits != judged.culprits]
    if not judged.findings:
        reasons.append(
            "nothing in it says that a rank waits, raised or stands still, and a log never shows a run whole"
        )
    if found and not judged.world_stated:
        reasons.append(
            f"how many ranks the job has is not stated; no rank above {judged.world - 1} is in what was given"
        )
    kind = "host" if first is not None and first.kind in HOST and found else None
    return Diagnosis(
        "divergent" if found else "unknown",
        judged.seen,
        events,
        0,
        found,
        "FM-18" if kind else None,
        _accused(judged),
        tuple(reasons),
        judged.waits if found else (),
        "host" if kind else None,
        {},
        missing=() if found else tuple(advice(judged.missing)),
    )


def _accused(judged: Judged) -> tuple[Accusation, ...]:
    """Return the ranks that the facts name, by the kind of the finding that the verdict rests on."""
    case = judged.first.kind.name.lower().replace("_", "-") if judged.first else ""
    if judged.culprits:
        return accusations(judged.culprits, Strength.CULPRIT, case)
    return accusations(judged.suspects, Strength.SUSPECT, case)


def _divergence(finding: Finding, rank: int) -> Divergence:
    line = finding.source.line if finding.source else 1
    where = place_text(finding.place, finding.library)
    return Divergence(
        rank,
        line,
        finding.number,
        None,
        where,
        None,
        None,
        finding.at,
        finding.observed or "nothing",
        finding.expected,
        finding.why,
        place=finding.at,
    )


# ── with recorded collectives ───────────────────────────────────────────────────────────────────────────


def together(recorded: Diagnosis, merged: Judged, alone: Judged, events: int) -> Diagnosis:
    """Return one verdict of two.

    `merged` has the facts of both, `alone` those of the logs.
    """
    from_logs = diagnosis_of(merged, events)
    if recorded.verdict == "divergent":
        blamed = set(recorded.culprits)
        against = (set(alone.culprits) and not set(alone.culprits) & blamed) or bool(blamed and blamed <= alone.cleared)
        if not against:
            return _illustrated(recorded, merged)
        suspects = tuple(sorted({*recorded.culprits, *alone.culprits, *alone.suspects}))
        why = recorded.divergence.why if recorded.divergence else "the recorded collectives differ"
        reasons = (f"the recording and the logs contradict each other: {why}", *from_logs.reasons, *_whys(merged))
        return _unknown(recorded, reasons, suspects, recorded.missing, contradict=True)
    if from_logs.divergence is not None:
        if recorded.suspects and not set(recorded.suspects) & set(from_logs.culprits):
            suspects = tuple(sorted({*recorded.suspects, *from_logs.culprits}))
            return _unknown(recorded, (*recorded.reasons, *_whys(merged)), suspects, recorded.missing, contradict=True)
        more = (*from_logs.reasons, *recorded.reasons)
        return replace(
            from_logs,
            ranks=max(recorded.ranks, merged.seen),
            events=recorded.events + events,
            matched_collectives=recorded.matched_collectives,
            reasons=more,
        )
    if not merged.findings and recorded.verdict == "conforming":
        return recorded
    one, other = set(recorded.suspects), set(merged.suspects)
    suspects = tuple(sorted((one & other) or (one | other)))
    missing = (*recorded.missing, *from_logs.missing)
    return _unknown(recorded, (*recorded.reasons, *from_logs.reasons), suspects, missing)


def _unknown(
    recorded: Diagnosis,
    reasons: Sequence[str],
    suspects: tuple[int, ...],
    missing: Sequence[MissingEvidence],
    *,
    contradict: bool = False,
) -> Diagnosis:
    return replace(
        recorded,
        verdict="unknown",
        divergence=None,
        failure_mode=None,
        accused=accusations(suspects, Strength.SUSPECT, CONTRADICTION if contradict else MERGED),
        stall=None,
        waits=(),
        reasons=tuple(dict.fromkeys(reasons)),
        missing=tuple(dict.fromkeys(missing)),
    )


def _whys(judged: Judged) -> tuple[str, ...]:
    return tuple(f.why for f in judged.findings)


def _illustrated(recorded: Diagnosis, merged: Judged) -> Diagnosis:
    """Return a verdict on a recording, with what stacks and tracebacks say of the same ranks."""
    found = recorded.divergence
    for finding in merged.findings:
        about = set(finding.culprits or finding.suspects)
        # of several ranks, the place is that of one of them
        if found is not None and about == {found.rank} and (finding.place or finding.library):
            where = place_text(finding.place, finding.library)
            return replace(recorded, divergence=replace(found, phase=where, why=f"{found.why}; {finding.why}"))
    return recorded


def facts_of(recording: Recording) -> Iterator[Fact]:
    """Yield what dumps say of the same groups and numbers that torch's log lines name."""
    for rank, record in recording.ranks.items():
        source = Source(record.path)
        last: dict[int, int] = {}
        done: dict[int, int] = {}
        pending: dict[int, tuple[int, int]] = {}
        for op in record.ops[["group", "sequence", "signature", "peer", "status"]].tolist():
            group, sequence, signature, peer, status = op
            if peer >= 0:
                continue
            last[group] = max(last.get(group, -1), sequence)
            if status == Status.COMPLETED:
                done[group] = max(done.get(group, -1), sequence)
            elif status != Status.UNSAID and (group not in pending or sequence < pending[group][0]):
                pending[group] = (sequence, signature)
        for group, issued in record.issued.items():
            last[group] = max(last.get(group, -1), issued)
        for group, number in last.items():
            about = recording.groups[group]
            name = GroupName("torch", about.name, about.description)
            for position, member in enumerate(about.members if about.stated else ()):
                yield Membership(source, name, member, position, len(about.members))
            yield Counters(source, rank, name, number, done.get(group, -1))
            if group in pending:
                first, signature = pending[group]
                shape = recording.signatures[signature]
                operation = Operation(shape.kind, shape.sent, shape.received)
                yield Waits(source, rank, name, first, operation)
