"""Writes the contract as Markdown: from the tables, the schema and the lines, each line with what backs it.

Left out: gathering the evidence (`evidence.py`), and the pages that are pasted into other manuals (`inserts.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..model.protocols.tp_v1_1 import TP_V1_1
from ..model.semantics.known_mutants import MUTANTS
from ..model.tables import Guard, Role, Row
from .claims import DELTA, HAZARDS, MODES, P0, P1, Claim
from .evidence import Ledger, matching
from .inserts import INSERTS
from .ship import Judged, Status, judge

NOTE = "<!-- Written by `genlock docs` from the tables and the evidence. Do not edit. -->"
MANY = 4
"""Findings of one pattern up to which each is shown."""

QUESTIONS: tuple[tuple[str, str, str], ...] = (
    ("What has changed against the earlier plan?", "delta list", "delta.md"),
    ("Which fields does the envelope need, when, and who checks them first?", "schema table", "schema.md"),
    ("Which tensors can later go only when they change?", "modes", "modes.md"),
    ("What is forbidden?", "schema table, last part", "schema.md"),
    ("What must be preflighted before the INFER header, and in which order?", "send/receive protocol", "preflight.md"),
    ("How is a mismatch of generator calls prevented?", "plan bits", "plan.md"),
    ("Is a per-call all-gather of the count needed?", "plan bits", "plan.md"),
    ("What is pinned, what detected; what may be sampled later?", "modes", "modes.md"),
    ("What is the policy for random numbers?", "modes", "modes.md"),
    ("Which overrides are dangerous, and what cures them?", "hazards", "hazards.md"),
    ("Which tests break the contract on purpose, and what must they show?", "break-it tests", "break-it.md"),
    ("What blocks shipping, what is recommended?", "P0, P1", "p0.md"),
    ("Where and when is each thing asserted?", "tripwires", "tripwires.md"),
    ("How are versions rolled out and back?", "versions", "versions.md"),
    ("What goes into the operator manuals?", "inserts", "inserts/"),
)  # fmt: skip
"""(question of the seed, what answers it, where)."""


def pages(ledger: Ledger) -> dict[str, str]:
    """Return every page by its path under `docs/contract/`."""
    made: dict[str, Callable[[Ledger], str]] = {
        "README.md": _index,
        "p0.md": lambda found: _lines("P0: what blocks shipping", P0, found),
        "p1.md": lambda found: _lines("P1: what is recommended", P1, found),
        "schema.md": _schema,
        "preflight.md": _preflight,
        "plan.md": _plan,
        "tripwires.md": _tripwires,
        "modes.md": _modes,
        "versions.md": _versions,
        "hazards.md": lambda found: _lines("Overrides that go stale", HAZARDS, found),
        "break-it.md": _break_it,
        "delta.md": _delta,
        **{f"inserts/{name}.md": insert.page for name, insert in INSERTS.items()},
    }
    return {path: f"{NOTE}\n{page(ledger).rstrip()}\n" for path, page in made.items()}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *cells])


# ── lines ───────────────────────────────────────────────────────────────────────────────────────────


def _lines(title: str, lines: Sequence[Claim], ledger: Ledger) -> str:
    judged = [judge(line, ledger) for line in lines]
    overview = table(
        ("", "what", "keeps out", ""),
        ([j.claim.key, j.claim.text, ", ".join(j.claim.modes), j.status.value] for j in judged),
    )
    return "\n\n".join([f"# {title}", overview, *map(line_text, judged)])


def _backed(ledger: Ledger, *keys: str) -> str:
    lines = [line for line in (*P0, *P1) if line.key in keys]
    return "\n\n".join(["## What backs this", *(line_text(judge(line, ledger), "###") for line in lines)])


def line_text(judged: Judged, level: str = "##") -> str:
    """Return a line with all its evidence, as Markdown."""
    line = judged.claim
    modes = f" Keeps out {', '.join(line.modes)}." if line.modes else ""
    evidence = "\n".join(row for pattern in line.evidence for row in _evidence(pattern, judged.found[pattern]))
    return f"{level} {line.key}: {judged.status.value}\n**{line.text}**{modes}\n\n{line.how}\n\n{evidence}"


def _evidence(pattern: str, found: Ledger) -> list[str]:
    kind, _, name = pattern.partition(":")
    if not found:
        return [f"- {kind} `{name}`: **not shown**"]
    bad = {key: f for key, f in found.items() if f.good is not True}
    shown = bad if bad else found if len(found) <= MANY else dict([next(iter(found.items()))])
    rows = [f"- {kind} `{key.partition(':')[2]}`: {f.mark}{clean(f.says)} ({f.known})" for key, f in shown.items()]
    if not bad and len(found) > MANY:
        rows[0] = f"- {len(found)} of `{pattern}`, such as {rows[0][2:]}"
    return rows


def clean(text: str) -> str:
    """Return the text on one line, with what Markdown would take for a tag made harmless."""
    return " ".join(text.split()).replace("<", "&lt;")


# ── pages ───────────────────────────────────────────────────────────────────────────────────────────


def _index(ledger: Ledger) -> str:
    judged = [judge(line, ledger) for line in P0]
    good = sum(j.status is Status.PASS for j in judged)
    return "\n\n".join(
        [
            "# The contract of TP v1.1, generator-only workers",
            "rank0 runs the pipeline; workers run the generator alone. Two catastrophes are kept out: a rank that "
            "waits "
            "for ever, and ranks that drift apart unnoticed. **Crash > hang, detect > drift.** These pages are written "
            "by `genlock docs` from the tables that checker, runtime and replayer read, and from what `genlock audit` "
            "found; every line names its evidence, and says so where there is none.",
            f"P0: {good} of {len(judged)} pass.",
            table(("question", "answer", "page"), ((q, a, f"[{page}]({page})") for q, a, page in QUESTIONS)),
            "How a thing is known: *model*, every state of the checked network; *code*, the check itself was tried "
            "with "
            "a wrong thing; *gloo-measured*, real processes on gloo; *NCCL-measured*, with date and device; *source "
            "only*, read and not run.",
        ]
    )


def _schema(ledger: Ledger) -> str:
    from ..impl.chunk.schema import FIELDS, MAX_PAYLOAD_BYTES, MAX_TENSORS, META_MAX_BYTES, TP_ENVELOPE_VERSION, TP_PLAN

    rows = []
    for field in FIELDS:
        tried = {**matching(ledger, f"probe:rank0.{field.name}.*"), **matching(ledger, f"probe:worker.{field.name}.*")}
        bad = [name for name, f in tried.items() if f.good is False]
        shown = f"FAILS: {', '.join(bad)}" if bad else f"{len(tried)} probes" if tried else "not shown"
        rows.append((f"`{field.name}`", field.type, field.required_when, field.why, field.first_checked, shown))
    return "\n\n".join(
        [
            f"# Envelope schema, `tp_envelope_version = {TP_ENVELOPE_VERSION}`, `tp_plan = {TP_PLAN}`",
            table(("field", "type", "required when", "why", "first checked", "tried"), rows),
            f"At most {MAX_TENSORS} tensors, {META_MAX_BYTES} bytes of meta, {MAX_PAYLOAD_BYTES >> 20} MiB of payload.",
            "## Forbidden\n- `video`: workers never get pixels\n- a tensor nested in meta, however deep\n- an "
            "omitted key "
            "that stands for None: None is explicit\n- a field that the schema does not have\n- a collective that is "
            "not in the plan, such as a broadcast inside a block\n- pickle: meta is canonical bytes",
        ]
    )


def _preflight(ledger: Ledger) -> str:
    steps = [row for row in TP_V1_1.driver.rows if row.event.startswith("preflight_")]
    what = {
        "preflight_schema": "schema, forbidden keys, plan identities, ids in order",
        "preflight_split": "top-level tensors apart from meta, `tensor_specs` ordered by `(key, index)`",
        "preflight_encode": "meta as canonical bytes, within the bound of the header packet",
        "preflight_dtypes": "every dtype can travel, and is one that its field may have",
        "preflight_materialise": "device, cast, contiguous, byte view, digests, buffers",
    }
    send = [f"{n}. `{row.event}` ({row.state} → {row.target}): {what[row.event]}" for n, row in enumerate(steps, 1)]
    receive = [
        f"{n}. `{row.event}` ({row.state} → {row.target}){_guards(row.guards)}"
        for n, row in enumerate(_path(TP_V1_1.worker, "AWAIT_HEADER", ("receive_header", "accept_infer",
                                                                       "receive_payload", "accept_envelope")), 1)
    ]  # fmt: skip
    return "\n\n".join(
        [
            "# Before the header: what rank0 does, and what a worker does with it",
            "## rank0, in this order, all of it before the first byte\n" + "\n".join(send),
            "Then `commit`, which alone moves ids and epochs; the header packet; the payload; phase B. A refusal in "
            "any "
            "step goes back to IDLE: nothing was sent and nothing changed, the caller gets `Refused` with field, "
            "value, "
            "step, `call_id` and `chunk_index`, and the run goes on. Whatever a user's own values raise is such a "
            "refusal.",
            "## Worker\n" + "\n".join(receive),
            "It allocates from the specs alone, after the whole header was validated. A worker that rejects is "
            "poisoned: "
            "it says so, and exits non-zero.",
            "## Schedule of collectives",
            table(
                ("collective", "phase", "kind", "group", "root", "dtype", "size"),
                ((f"`{c.name}`", c.phase, c.kind.value, c.group, "—" if c.root is None else c.root, c.dtype, c.size)
                 for c in TP_V1_1.schedule),
            ),
            "`generate` stands for a whole generator call: its collectives are counted and hashed, and the ack has "
            "both.",
            _backed(ledger, "P0-01", "P0-10"),
        ]
    )  # fmt: skip


def _path(role: Role, state: str, events: Sequence[str]) -> list[Row]:
    rows = []
    for event in events:
        row = role.row(state, event)
        rows.append(row)
        state = row.target
    return rows


def _guards(guards: Sequence[Guard]) -> str:
    names = [f"`{guard.__name__}`" for guard in guards]
    return f", only if {', '.join(names)}" if names else ""


def _plan(ledger: Ledger) -> str:
    bits = (
        (
            "`tp_do_kv_recompute`",
            "one more generator call, first",
            "rank0 preflight; worker on meta and again on payload",
        ),
        ("`tp_num_denoise_steps`", "= len(`denoising_step_list`)", "rank0 preflight; worker on meta"),
        (
            "`tp_expected_generator_calls`",
            "= int(recompute) + steps",
            "both; before each call; on leaving phase B; in the ack",
        ),
        ("`tp_reset_kv_cache`, `tp_reset_crossattn_cache`", "told, never inferred", "rank0 preflight; worker on meta"),
        ("`init_cache`", "hard cut: `cache_epoch` rises by one, and only then", "rank0 preflight; worker on header"),
    )
    return "\n\n".join(
        [
            "# The plan of a chunk",
            table(("bit", "means", "asserted"), bits),
            "**A per-call all-gather of the count is not needed.** Each rank asserts `k < expected` before it issues "
            "call k, "
            "so a rank that would make one too many dies before its peers wait for it; one that makes too few "
            "asserts on "
            "leaving phase B; and the ack brings `observed_generator_calls` and the hash of the sequence of "
            "collectives "
            "back to rank0 in the same chunk. A collective of its own would add a place to be stranded at.",
            _backed(ledger, "P0-02"),
        ]
    )  # fmt: skip


def _tripwires(ledger: Ledger) -> str:
    rows = []
    for role in TP_V1_1.roles:
        for row in role.rows:
            for guard in row.guards:
                name = f"{role.name}.{row.event}.{guard.__name__}"
                found = ledger.get(f"check:{name}")
                why = "chooses the row" if found is None else clean(found.says)
                rows.append((role.name, row.state, row.event, f"`{guard.__name__}`: {guard.__doc__ or ''}", why))
    return "\n\n".join(
        [
            "# Tripwires: what is asserted, where, and what it is worth",
            "Each is a guard of a row of the tables, which the runtime's monitor steps before each move. The last "
            "column "
            "is from the checker: the fault was let in, and the guard was taken away.",
            table(("role", "in state", "at", "asserted", "without it"), rows),
            "## The wire and the schema\n"
            + table(("probe", "what came back"), ((f"`{name.partition(':')[2]}`", clean(f.says))
                    for name, f in matching(ledger, "probe:*").items())),
        ]
    )  # fmt: skip


def _modes(ledger: Ledger) -> str:
    from ..impl.faults import selfcheck

    keys = sorted({p.name.partition(".")[2] for p in selfcheck.probes() if p.name.startswith("parity.")} - {"weights"})
    return "\n\n".join(
        [
            "# Pinned or detected: bring-up mode and optimize mode",
            table(("what", "bring-up", "optimize"), MODES),
            "## Compared at start-up, key by key\n" + ", ".join(f"`{key}`" for key in keys)
            + ", and each flag of `parity.Posture`. Nothing may be `auto`: what counts is what it resolved to.",
            "## Random numbers\nrank0 draws the noise and broadcasts it with the latents. Lockstep generators are "
            "not offered: "
            "they would be a `tp_rng_policy` of its own, with a new version.",
            _backed(ledger, "P0-03", "P0-09", "P1-03", "P1-04"),
        ]
    )  # fmt: skip


def _versions(ledger: Ledger) -> str:
    from ..impl.chunk.parity import PARITY_VERSION
    from ..impl.chunk.schema import TP_ENVELOPE_VERSION
    from ..impl.chunk.wire import ACK_VERSION, WIRE_VERSION
    from ..traces.format import FORMAT_VERSION

    versions = (
        ("header packet", WIRE_VERSION, "worker, on header; parity"),
        ("envelope", TP_ENVELOPE_VERSION, "rank0 preflight, worker on header and meta; parity"),
        ("ack", ACK_VERSION, "rank0, on the ack; parity"),
        ("parity record", PARITY_VERSION, "every rank, at start-up"),
        ("trace", FORMAT_VERSION, "`genlock replay`; parity"),
        ("tables", TP_V1_1.digest, "parity; in each trace"),
    )
    return "\n\n".join(
        [
            "# Versions and roll-out",
            table(("what", "now", "checked by"), versions),
            "A newer rank0 and a newer worker are both refused at start-up; the message has both versions, who is "
            "newer, and "
            "what to do. A field is added by a new version of the envelope, never by a default. There is no "
            "best-effort "
            "fallback. Rolling out is restarting all ranks on the new version; rolling back is restarting all on the "
            "old.",
            _backed(ledger, "P0-11"),
        ]
    )


def _break_it(ledger: Ledger) -> str:
    rows = [(name.partition(":")[2], clean(f.says), f.known) for name, f in matching(ledger, "row:*").items()]
    mutants = ((m.name, m.title, f"`{m.killed_by.name}`", ", ".join(m.faults) or "none") for m in MUTANTS.values())
    return "\n\n".join(
        [
            "# Break-it tests",
            "## On real processes\nPredicted by the model, then run; `genlock audit` runs all of them.",
            table(("row", "what was seen", "known by"), rows) if rows else "Not run here.",
            "## In the model\nTables broken on purpose. Each must be caught, by this property, with a shortest "
            "counterexample.",
            table(("mutant", "what is broken", "property that fails", "fault that brings it out"), mutants),
        ]
    )


def _delta(ledger: Ledger) -> str:
    parts = ["# Against the baseline"]
    for how, changes in DELTA.items():
        parts += [f"## {how.capitalize()}", table(("what", "baseline", "now", "why"), changes)]
    return "\n\n".join(parts)
