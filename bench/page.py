"""Times opening and stepping the page of 16 ranks x 5,000 events, in headless Chromium.

    python bench/page.py [--ranks 16] [--events 5000]

The run is made from the tables: chunk after chunk in lockstep, until a worker in the middle makes one call too few.
Bars: opening at most 2 s, a step at most 50 ms.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from genlock.conformance.replay import judge
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.transport import Contribution, delivered
from genlock.model.tables import Data, Scope
from genlock.page import run_page as pages
from genlock.page.html import write
from genlock.traces.format import Clock, End, Event, Trace, TraceHeader

CALLS, TURNS, STEPS = 4, 3, 40
SCOPE = Scope(chunks=1 << 30, steps=CALLS)
PREPARES = "request preflight_schema preflight_split preflight_encode preflight_dtypes preflight_materialise commit"


class Rank:
    """One rank's way through its table, as it would record it."""

    def __init__(self, rank: int) -> None:
        self.rank, self.role = rank, TP_V1_1.role(rank)
        self.state, self.vars = self.role.initial, self.role.start(False)
        self.lines: list[Event | End] = []
        self.sequences: Counter[str] = Counter()

    def step(self, name: str, data: Data = None) -> None:
        row = self.role.row(self.state, name)
        if data is None and row.choices:
            data = next(iter(row.choices(self.vars, SCOPE)), None)
        before, self.vars, self.state = self.state, row.apply(self.vars, data), row.target
        self._write(name, "step", before, data=msgspec.to_builtins(data) if row.data else None)

    def enter(self, name: str) -> Contribution:
        row = self.role.row(self.state, name)
        assert row.op is not None
        self.sequences[row.op.group] += 1
        self._write(name, "enter", self.state, **self._op(name))
        return Contribution(row.op, row.send(self.vars) if row.send else None)

    def exit(self, name: str, data: Data) -> None:
        row, op = self.role.row(self.state, name), self._op(name)
        before, self.vars, self.state = self.state, row.apply(self.vars, data), row.target
        self._write(name, "exit", before, data=msgspec.to_builtins(data) if row.data else None, **op)

    def _op(self, name: str) -> dict[str, Any]:
        op = self.role.row(self.state, name).op
        assert op is not None
        return {"group": op.group, "sequence": self.sequences[op.group], "op": op.kind.value, "root": op.root}

    def _write(self, name: str, edge: Any, before: str, **more: Any) -> None:
        v, index = self.vars, len(self.lines)
        ids = {"call_id": v.call_id, "chunk": v.chunk_index, "epoch": v.cache_epoch}
        phase = self.role.by_name[before].phase
        self.lines.append(Event(index, index * 1000, name, edge, before, phase, **ids, **more))

    def trace(self, ranks: int) -> Trace:
        end = End(len(self.lines), 0, "peer_lost", 12)
        groups = dict.fromkeys(TP_V1_1.group_names, tuple(range(ranks)))
        tables = (TP_V1_1.name, TP_V1_1.digest)
        header = TraceHeader(1, "bench", self.rank, ranks, self.role.name, "gloo", *tables, groups, Clock(0, 0))
        lines = (*self.lines, end)
        return Trace(Path(f"rank{self.rank}"), header, lines, tuple(range(2, len(lines) + 2)), False, groups)


def run(ranks: int, events: int) -> list[Trace]:
    """Traces of so many events a worker; in the last chunk the worker in the middle makes a call less."""
    all_ = {rank: Rank(rank) for rank in range(ranks)}
    workers = [all_[rank] for rank in range(1, ranks)]
    together(all_, "exchange_parity", "exchange_parity")
    for rank in all_.values():
        rank.step("parity_agrees")
    while True:
        last = len(all_[1].lines) + 2 * 18 > events
        for name in PREPARES.split():
            all_[0].step(name)
        together(all_, "send_header", "receive_header")
        for rank in workers:
            rank.step("accept_infer")
        together(all_, "send_payload", "receive_payload")
        for rank in workers:
            rank.step("accept_envelope")
        for rank in all_.values():
            rank.step("enter_phase_b")
        for call in range(CALLS):
            if last and call == CALLS - 1:
                all_[ranks // 2].step("leave_phase_b", 0)
                return [left(rank, ranks) for rank in all_.values()]
            together(all_, "generate", "generate")
        for rank in all_.values():
            rank.step("leave_phase_b")
        together(all_, "collect_acks", "send_ack")
        all_[0].step("acks_agree")


def left(rank: Rank, ranks: int) -> Trace:
    """The trace of a rank whose run is lost; who still waits for a call learns that a peer has gone."""
    if rank.state == "GENERATING":
        rank.enter("generate")
        rank.step("peer_lost")
        rank.step("abort")
    return rank.trace(ranks)


def together(ranks: Mapping[int, Rank], driver: str, worker: str) -> None:
    """One collective: all issue it, then it completes for all."""
    names = {number: driver if number == 0 else worker for number in ranks}
    issued = [rank.enter(names[number]) for number, rank in ranks.items()]
    for number, rank in ranks.items():
        op = issued[number].op
        row = rank.role.row(rank.state, names[number])
        rank.exit(names[number], delivered(op, number, issued) if row.data else None)


def measure(page: Path) -> dict[str, float]:
    """Milliseconds to open, and the median and worst of a step, of a step with all in sight, and of a jump."""
    from playwright.sync_api import sync_playwright

    found: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        begin = time.perf_counter()
        tab.goto(page.as_uri())
        tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found["open"] = (time.perf_counter() - begin) * 1000
        for name, prepare, act in (
            ("step", "whole(); toDivergence()", "move(-1)"),
            ("step, all in sight", "whole()", "move(-1)"),
            ("jump", "toDivergence()", "show(Math.floor(page.run.count * Math.random()))"),
        ):
            tab.evaluate(f"() => {{ {prepare} }}")
            times = [tab.evaluate(STEP.replace("ACT", act)) for _ in range(STEPS)]
            found[f"{name}, median"], found[f"{name}, worst"] = statistics.median(times), max(times)
        browser.close()
    return found


STEP = """() => new Promise(done => {
  const begin = performance.now();
  ACT;
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - begin)));
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--events", type=int, default=5000, help="a rank")
    asked = parser.parse_args()
    if shutil.which("chromium") is None:
        print("skipped: there is no program `chromium`")
        return
    traces = run(asked.ranks, asked.events)
    with tempfile.TemporaryDirectory() as folder:
        page, diagnosis = Path(folder) / "page.html", judge(traces)
        begin = time.perf_counter()
        story = pages.story_of(traces, diagnosis)
        write(page, story)
        written, size = time.perf_counter() - begin, page.stat().st_size / 1e6
        turns = [measure(page) for _ in range(TURNS)]
    place = f"rank{diagnosis.divergence.rank}, line {diagnosis.divergence.line}" if diagnosis.divergence else ""
    print(f"{asked.ranks} ranks, {len(story.moments):,} events, {diagnosis.verdict} at {place}")
    print(f"a page of {size:.1f} MB, written in {written:.1f} s")
    for name in turns[0]:
        print(f"{name:28} {statistics.median(turn[name] for turn in turns):8.1f} ms")


if __name__ == "__main__":
    main()
