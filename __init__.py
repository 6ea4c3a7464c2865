"""Can a rank of my job ever be left waiting, or drift away unnoticed? And if it just did: which rank, where, and why?

Check a protocol: every state that its ranks can reach, with every fault that may strike.

    >>> import genlock
    >>> genlock.check("tp_v1.1", ranks=2, chunks=1)
    <Report tp_v1.1: holds, 2 ranks, 2,405 states>
    >>> broken = genlock.check("tp_v1.1", mutant="FM-04")
    >>> broken.holds, broken.counterexample
    (False, <shortest counterexample to no_stranding, 27 steps>)
    >>> print(broken.counterexample.summary)  # doctest: +ELLIPSIS
    rank0 is stuck in BEATING (header), waiting for rank1 and rank2, since step 15 (send_noop); rank1 is ...

Replay what ranks have recorded: Genlock's own traces, Flight Recorder dumps, Kineto traces. (This run was made by
`genlock run --inject FM-04 --out run2`.)

    >>> diagnosis = genlock.replay("run2")
    >>> diagnosis
    <Diagnosis divergent (FM-04): rank0 in PREFLIGHT_4; culprits rank0>
    >>> print(genlock.as_text(diagnosis))  # doctest: +ELLIPSIS
    divergent: 3 ranks, 93 events, 9 collectives matched
    <BLANKLINE>
    First divergence (FM-04): rank0, chunk 1, phase preflight, ...

Write a protocol of your own, as a table a role, and check it (this vocabulary is provisional until version 1.0):

    >>> from genlock import Protocol, Put, Role, Row, Slot, State, Take
    >>> slot, end = Slot("work"), State("DONE", "end", terminal=True)
    >>> put = Row("IDLE", "put", "DONE", gate=Put(slot, lambda v: 1), send=lambda v: "work")
    >>> take = Row("WAIT", "take", "DONE", gate=Take(slot))
    >>> driver = Role("driver", "IDLE", (State("IDLE", "work"), end), (put,), start=lambda finite: ())
    >>> worker = Role("worker", "WAIT", (State("WAIT", "work"), end), (take,), start=lambda finite: ())
    >>> hand_over = Protocol("hand_over", "1", driver, worker, schedule=(), slots=(slot,), ranks=2)
    >>> genlock.check(hand_over, faults=0)
    <Report hand_over: holds, 2 ranks, 3 states>

Serve a model of your own on ranks that torchrun starts (needs torch: `pip install 'genlock[run]'`):

    def build(group, device) -> genlock.RankModel: ...  # on every rank: your model, sharded over `group`


    def application(driver: genlock.Driver) -> None: ...  # on rank0 alone: your pipeline


    sys.exit(genlock.serve(build, application, out="traces"))

Names, each imported when it is first used, so that `import genlock` itself loads neither numpy nor torch:

- check a protocol: `check`, `Report`, `Counterexample`, `TraceStep`, `Stuck`
- replay a run: `replay`, `load_traces`, `diagnose`, `Diagnosis`, `Divergence`, `Trace`, `Recording`
- print a verdict: `as_text`, `as_json`
- write a protocol: `load_protocol`, `Protocol`, `Role`, `State`, `Row`, `By`, `Scope`, `Collective`, `Kind`, `Slot`,
  `Put`, `Take`, `Meet`; groups `Group`, `mesh`, `everyone`; what ranks share, `Fifo`, `Cell`, `Link`, with `Poll`,
  `Set`, `See`, `Send`, `Receive`, `Post`, `Sent`, `is_empty`, `is_there`; results `total`, `least`, `most`, `any_of`,
  `each`; what it claims: `Invariant`, `Sometimes`, `LeadsTo`, `Fair`, `Whole`
- record a queue of your own: `channel`, `Channel`
- compare collectives and decisions before the backend has them: `precheck`, `agree`
- guard a rank from inside, where no launcher does: `guard`
- serve a model: `serve`, `RankModel`, `Driver`, `chunk_fields`, `Posture`, `Mode`
- errors, each one line that says what, where and what to do: `GenlockError`, `UsageError`, `UnreadableInput`,
  `ModelError`, `Refused`, `ContractViolation`; and the exit statuses of the commands, `Exit`

`help(genlock.check)` has the details of one, docs/api.md those of all. On the command line: `genlock --help`. In a test
suite: the pytest fixtures `genlock_check` and `genlock_ranks`.
"""

from __future__ import annotations

__version__ = "0.2.0"

_HOMES = {
    "api": "check replay load_traces diagnose as_text as_json load_protocol",
    "model.checker.report": "Report",
    "model.semantics.run": "Counterexample TraceStep Stuck",
    "conformance.diagnosis": "Diagnosis Divergence",
    "traces.format": "Trace",
    "traces.collectives": "Recording",
    "model.claims": "Invariant Sometimes LeadsTo Fair",
    "model.semantics.whole": "Whole",
    "model.tables.protocol": "Protocol",
    "model.tables.roles": "Role State Row By",
    "model.tables.scope": "Scope everyone",
    "model.tables.collectives": "Collective Kind Group mesh total least most any_of each",
    "model.tables.shared": "Slot Put Take Meet Fifo Cell Link Poll Set See Send Receive Post Sent is_empty is_there",
    "impl.recording.channel": "channel Channel",
    "impl.recording.precheck": "precheck agree",
    "impl.rank.operation_beats": "guard",
    "impl.rank.serve": "serve RankModel Driver chunk_fields",
    "impl.chunk.parity": "Posture",
    "impl.chunk.schema": "Mode",
    "errors": "GenlockError UsageError UnreadableInput ModelError Refused ContractViolation Exit",
}
"""The module of each public name; `__init__.pyi` has their types. Those of `impl` need torch."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used. Raises ImportError for one that needs torch, where there is none."""
    if name == "__all__":
        return _available()
    if name not in _HOME_OF:
        raise AttributeError(f"module `genlock` has no attribute `{name}`")
    from importlib import import_module

    try:
        found: object = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"genlock.{name} needs torch; pip install 'genlock[run]'") from error
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names that can be had here, and what the module holds already."""
    return sorted({*globals(), *_available()})


def _available() -> list[str]:
    """Return the public names that can be had here, so that `from genlock import *` and `help` work without torch."""
    from importlib.util import find_spec

    has_torch = find_spec("torch") is not None
    return [name for name, module in _HOME_OF.items() if has_torch or not module.startswith("impl.")]
