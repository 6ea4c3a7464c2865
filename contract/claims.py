"""Lists the claims of the documents, and the evidence that each rests on. Literals only.

Evidence is named `kind:name`, where a name may end in `*`:

    property:NAME   holds in every state of TP v1.1, both transports
    mutant:NAME     the table broken in this way is caught by the checker
    check:ROLE.ROW.GUARD   without this guard, under the fault that it is there for, a property fails
    probe:NAME      a wrong thing handed to the code is caught, and named (`impl/faults/selfcheck.py`)
    row:ID          break-it on real processes
    test:FILE       a file of tests

Left out: what the tables and the schema say themselves, which the pages read from there.
"""

from __future__ import annotations

from typing import NamedTuple


class Claim(NamedTuple):
    """Holds one line of the contract: what must hold, the failure modes that it keeps out, how, and its evidence."""

    key: str
    text: str
    modes: tuple[str, ...]
    how: str
    evidence: tuple[str, ...]


P0 = (
    Claim(
        "P0-01",
        "Whatever can raise happens before the first byte: an INFER header leaves only after all five preflight steps.",
        ("FM-04", "FM-07"),
        "Each step takes the result of the one before; `commit` takes a `Prepared`, which only step 5 makes; "
        "the monitor refuses a header from any other state.",
        ("property:nothing_sent_before_preflight", "mutant:FM-04", "mutant:FM-07", "probe:preflight.*",
         "row:OM-01", "row:OM-02"),
    ),
    Claim(
        "P0-02",
        "Every rank makes exactly the planned generator calls, and asserts it before each call and on leaving phase B.",
        ("FM-02",),
        "Plan identities are checked by rank0 and again by each worker; the ack brings count and sequence hash back.",
        ("property:call_count_agreement", "property:coherent_plan", "mutant:FM-02", "mutant:FM-02-asserted",
         "check:*.generate.call_is_expected", "check:*.leave_phase_b.count_is_expected", "probe:preflight.identity.*",
         "probe:ack.observed_generator_calls", "row:OM-03"),
    ),
    Claim(
        "P0-03",
        "Nothing that gates a collective, chooses a code path or changes numbers differs by rank.",
        ("FM-01", "FM-03", "FM-14"),
        "One all-gather of facts at start-up, compared key by key, before the first header; `auto` is refused.",
        ("property:parity_before_header", "mutant:FM-01", "mutant:FM-03", "mutant:FM-14",
         "check:*.parity_agrees.parity_agrees", "probe:parity.*", "row:OM-04", "row:OM-05", "row:C-01", "row:C-04"),
    ),
    Claim(
        "P0-04",
        "In phase B no collective is issued that is not in the plan, from any thread, by any way into torch.",
        ("FM-08", "FM-09"),
        "An operation that is not due is refused at the dispatcher, before it reaches the backend.",
        ("property:no_mispairing", "mutant:FM-08", "mutant:FM-09", "row:OM-06",
         "test:tests/impl/recording/test_c10d_intercept.py", "test:tests/impl/rank/test_collective_guard.py"),
    ),
    Claim(
        "P0-05",
        "No rank waits for ever: when one dies, stands still or is poisoned, all others end, and say who it was.",
        ("FM-18",),
        "A guardian is the parent of each rank; it watches progress, relays ABORT and kills.",
        ("property:no_stranding", "property:crash_over_hang", "mutant:FM-18", "row:OM-13",
         "test:tests/guardian/test_guardian.py", "test:tests/guardian/test_talk.py"),
    ),
    Claim(
        "P0-06",
        "What a worker computes on is, byte for byte, what rank0 sent, in the order that the manifest says.",
        ("FM-05",),
        "Digests of header, meta and each tensor travel with them, and are checked before anything is used.",
        ("property:acts_as_told", "mutant:FM-05", "mutant:FM-05-order", "check:worker.accept_envelope.*",
         "check:worker.accept_*.header_is_intact", "probe:header.*", "probe:payload.*", "row:OM-11", "row:OM-16"),
    ),
    Claim(
        "P0-07",
        "Stale, duplicate or replayed work is never accepted, and a hard cut separates cache worlds without a gap.",
        ("FM-10",),
        "Ids and epochs move at the commit alone, on rank0 and on acceptance; a worker checks each against its own.",
        ("property:monotonic_ids", "property:epoch_fence", "mutant:FM-10", "mutant:EPOCH-EARLY",
         "check:worker.accept_*.call_is_newer", "check:worker.accept_*.epoch_follows", "probe:worker.*.stale",
         "row:OM-14", "row:OM-16"),
    ),
    Claim(
        "P0-08",
        "An override lives for one chunk; recompute without one, or one without recompute, is refused.",
        ("FM-06", "FM-15"),
        "It is cleared on read on every path, None is explicit, and phase B is not left while one is held.",
        ("property:no_stale_override", "mutant:FM-06", "mutant:FM-15", "check:*.leave_phase_b.override_is_clear",
         "probe:preflight.recompute_without_override", "probe:preflight.stale_override", "row:OM-10",
         "test:tests/impl/chunk/test_retained_tensors.py"),
    ),
    Claim(
        "P0-09",
        "Weights, caches, frames, noise and conditioning that drift are seen in the same chunk, with the rank named.",
        ("FM-11", "FM-12", "FM-13", "FM-16", "FM-17"),
        "Noise travels as data; acks carry cache indices, start frame, output digest, and on a hard cut the weights'.",
        ("property:no_unseen_drift", "mutant:FM-11", "mutant:FM-12", "mutant:FM-13", "mutant:FM-16", "mutant:FM-17",
         "check:rank0.acks_agree.acks_agree", "probe:ack.*", "probe:parity.weights", "row:OM-12",
         "test:tests/impl/faults/test_drift.py"),
    ),
    Claim(
        "P0-10",
        "A refused chunk has sent nothing and changed nothing: pending cuts, resets and overrides survive it.",
        ("FM-04", "FM-10"),
        "Preflight works on copies; the caller gets a typed error, and the next chunk goes on.",
        ("property:refusal_leaves_no_trace", "mutant:EPOCH-EARLY", "row:OM-14",
         "test:tests/impl/chunk/test_preflight.py"),
    ),
    Claim(
        "P0-11",
        "Ranks of different versions never speak to each other, and unknown bytes are refused before any allocation.",
        ("FM-01",),
        "Header, envelope, ack, parity record and trace have versions; parity compares them before the first header.",
        ("probe:version.*", "probe:parity.*_version", "probe:header.wire_version",
         "test:tests/impl/chunk/test_parity.py"),
    ),
    Claim(
        "P0-12",
        "A shutdown reaches every rank, also on SIGTERM and Ctrl-C in mid-chunk; all exit with 0.",
        ("FM-18",),
        "rank0 finishes or gives up its chunk and sends SHUTDOWN; workers hold the signal meanwhile.",
        ("property:clean_shutdown", "property:no_false_abort", "row:OM-15", "test:tests/impl/rank/test_drain.py"),
    ),
    Claim(
        "P0-13",
        "Nothing that arrives is executed: no pickle on the control plane, sizes bounded, unknown fields refused.",
        ("FM-05",),
        "Meta is msgpack in one canonical form, checked against a closed schema.",
        ("probe:worker.*.absent", "probe:worker.*.undeclared", "test:tests/impl/chunk/test_wire.py",
         "test:tests/traces/importers/test_hostile_files.py"),
    ),
)  # fmt: skip

P1 = (
    Claim(
        "P1-01",
        "Record every run, and replay what ended badly before reading logs.",
        (),
        "`genlock run` records by itself, `genlock record -- CMD` any other program.",
        ("test:tests/impl/recording/test_command.py", "test:tests/conformance/test_replay.py"),
    ),
    Claim(
        "P1-02",
        "Check the tables before a change of the protocol goes in, and each known mistake against them.",
        (),
        "`genlock check`, `genlock check --mutants`, `genlock audit` in CI.",
        ("mutant:*", "check:*"),
    ),
    Claim(
        "P1-03",
        "Send conditioning only when its epoch rises, once bring-up is over.",
        ("FM-17",),
        "`Mode.OPTIMIZE`; what is held is digested again, an eighth in each chunk.",
        ("probe:rank0.conditioning_epoch.*", "mutant:FM-17", "test:tests/impl/chunk/test_retained_tensors.py"),
    ),
    Claim(
        "P1-04",
        "Digest every N-th chunk and a sample of the bytes, once bring-up is over; never the header less.",
        (),
        "`digest.Policy(every=N, sample=BYTES, output=False)`, the same on every rank by parity.",
        ("test:tests/impl/chunk/test_digest.py",),
    ),
    Claim(
        "P1-05",
        "Give each phase a deadline of its own, and watch in observe mode before it is enforced.",
        ("FM-18",),
        "`--deadline PHASE=SECONDS`, `--observe`.",
        ("test:tests/guardian/test_guardian.py",),
    ),
    Claim(
        "P1-06",
        "Simulate a million schedules before a release.",
        (),
        "`make soak-sim`; a failure prints its seed.",
        ("test:tests/impl/rank/test_stateful_roles.py", "test:tests/impl/rank/test_roles.py"),
    ),
)  # fmt: skip

HAZARDS = (
    Claim(
        "H-1",
        "`context_frames_override` survives in the pipeline's state and is used for a later chunk.",
        ("FM-06", "FM-15"),
        "Cleared on read, on every path; explicit None in the envelope; worker asserts None iff no recompute.",
        ("property:no_stale_override", "mutant:FM-15", "probe:preflight.stale_override",
         "test:tests/impl/chunk/test_retained_tensors.py"),
    ),
    Claim(
        "H-2",
        "An override of the latents survives in the same way.",
        ("FM-15", "FM-16"),
        "`latents` is an argument of the call, with each chunk, and never state.",
        ("mutant:FM-16", "probe:rank0.latents.*", "probe:payload.latents",
         "test:tests/impl/chunk/test_retained_tensors.py"),
    ),
    Claim(
        "H-3",
        "Conditioning that is missing falls back to what is cached.",
        ("FM-17",),
        "Required in each chunk; in optimize mode the epoch names which is current, and a gap is fatal.",
        ("mutant:FM-17", "probe:preflight.stale_conditioning", "probe:payload.conditioning_embeds",
         "test:tests/impl/chunk/test_retained_tensors.py"),
    ),
)  # fmt: skip


class Change(NamedTuple):
    """Holds a point in which the contract stands to the baseline: unchanged, refined or overridden, and why."""

    what: str
    baseline: str
    now: str
    why: str


DELTA: dict[str, tuple[Change, ...]] = {
    "unchanged": (
        Change("plan", "explicit, no behaviour inferred from tensors", "the same",
               "FM-01 and FM-06 are what inference makes"),
        Change("workers", "never run the full pipeline", "the same", "`video` is forbidden in the envelope"),
        Change("recompute", "needs an override tensor", "the same, on both sides", "a fallback is FM-06"),
        Change("crash > hang", "the rule", "the rule", "checked as `no_stranding` and `crash_over_hang`"),
        Change("meta", "no nested tensors", "the same, however deep", "a nested tensor has no spec"),
        Change("bring-up", "conditioning in each chunk", "the same", "workers cannot encode"),
    ),
    "refined": (
        Change("header", "five fields", "14 fields with digests, and meta inline, one fixed size",
               "with five, rank0's next header is taken as a payload after an exception (gloo-measured)"),
        Change("call count", "asserted by workers",
               "asserted before each issue and on leaving, and brought back in the ack",
               "a count that is only asserted at the end has already hung"),
        Change("digests", "optional", "in every chunk in bring-up; per tensor, so that a mismatch names the field",
               "an optional check is off when it is needed; xxh3 of 5.39 MB takes 0.1 ms"),
        Change("epochs", "bumped by rank0", "at the commit alone; a refused hard cut stays pending",
               "a bump before a refusal leaves a gap (mutant EPOCH-EARLY)"),
        Change("heartbeat", "optional NOOP", "NOOP for order, the guardian for liveness",
               "the thread that owns the collectives cannot beat while it decodes"),
    ),
    "overridden": (
        Change("encoding of meta", "pickle by `broadcast_object_list`", "canonical msgpack inside the header packet",
               "pickle runs what it reads, is not canonical, and costs two more broadcasts"),
        Change("tensors", "one broadcast each", "one run of bytes for all",
               "one collective can mispair in one way; see `bench/envelope.py`"),
        Change("watchdog", "30 s, one clock", "deadlines by phase, charged to who works, not to who waits",
               "one clock kills healthy ranks in warm-up, and blames those who wait"),
        Change("call count by all-gather", "optional, per call", "not needed",
               "each rank asserts before it issues, and the ack has count and sequence hash"),
    ),
}  # fmt: skip

MODES = (
    ("conditioning", "with every chunk", "when `conditioning_epoch` rises by one"),
    ("digests of tensors", "all bytes, every chunk", "every N-th chunk, B bytes that move on"),
    ("digests of header and meta", "always", "always"),
    ("output digest", "every chunk", "off"),
    ("cache indices and start frame in the ack", "every chunk", "every chunk"),
    ("weight fingerprints", "at start-up and each hard cut", "at start-up and each hard cut"),
    (
        "noise",
        "rank0 draws, latents travel",
        "the same: lockstep generators need a named `tp_rng_policy` and a new version",
    ),
    ("parity", "start-up, all keys", "start-up, all keys"),
    ("guardian", "observe, then enforce", "enforce"),
    ("`base_seed`", "recorded in each envelope", "recorded in each envelope"),
)
"""(what, bring-up, optimize)"""
