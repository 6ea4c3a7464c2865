"""The page says what was found, steps through it, and walks the model; in headless Chromium, without a network."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from genlock.model.checker.reference import check
from genlock.model.checker.report import run_check
from genlock.model.protocols.tp_v1_1 import TP_V1_1
from genlock.model.semantics.lts import CRASHED
from genlock.model.semantics.network import Network
from genlock.model.semantics.query import Query
from genlock.model.tables import Scope
from genlock.page import audit_page, check_page, html, run_page
from genlock.page.explorer import along, steps, walk
from genlock.page.html import page as html_of
from genlock.page.html import write
from genlock.page.lamport_order import columns
from genlock.page.run_page import MAX_LANES, shown, window
from genlock.page.view_model import Moment, Story, as_json
from playwright.sync_api import Browser, Page, Request, sync_playwright
from repository import CORPUS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MUTANTS = {"FM-02": ("rank1", "leave_phase_b", "call_count_agreement"), "FM-04": ("rank0", "preflight_encode", "stuck")}
RUNS = {"OM-03-fewer": "FM-02", "FM-04": "FM-04"}
"""A recorded run, and the failure mode that it shows."""


@cache
def of_mutant(name: str) -> Story:
    return check_page.story_of(run_check(Query("tp_v1.1", Scope(3, 1, 2), mutant=name)), bound=3000)


@cache
def of_run(name: str) -> Story:
    return run_page.of_paths([CORPUS / "broken" / name])


# ── what the page is given ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MUTANTS)
def test_the_cause_is_the_first_step_that_the_unbroken_protocol_does_not_have(name: str) -> None:
    story, (rank, event, came_of_it) = of_mutant(name), MUTANTS[name]
    assert story.focus is not None
    assert story.finding is not None
    assert (f"rank{story.moments[story.focus].rank}", story.moments[story.focus].name) == (rank, event)
    assert dict(story.finding.facts)["rank"] == rank
    assert came_of_it in " ".join(story.finding.waits)


def test_expected_is_what_the_unbroken_protocol_would_do_there() -> None:
    few, early = of_mutant("FM-02").finding, of_mutant("FM-04").finding
    assert few is not None
    assert early is not None
    assert (few.seen, few.expected) == ("leave_phase_b → ACK", ("generate → GENERATING",))
    assert dict(few.facts)["call"] == "1, the last that rank1 makes"
    assert "A rank's own code makes one call less than the plan says" in few.why
    assert early.seen == "preflight_encode → PREFLIGHTED"
    assert early.expected == ("preflight_encode → PREFLIGHT_4", "refuse → IDLE")
    assert early.why == "step 9, preflight_encode: leads to PREFLIGHTED, not PREFLIGHT_4"


def test_an_edit_that_changes_what_is_sent_is_found_at_its_row() -> None:
    finding = check_page.story_of(run_check(Query("tp_v1.1", Scope(3, 1, 1), mutant="FM-05")), bound=50).finding
    assert finding is not None
    assert (finding.culprits, finding.expected) == ((0,), ("send_payload as it was",))
    assert finding.why == "carries payload of other bytes"


def test_a_fault_is_the_cause_where_nothing_was_edited() -> None:
    question = Query("tp_v1.1", Scope(2, 1, 1), fault_points=(("crash", "AWAIT_PAYLOAD"),), detection=False)
    story = check_page.story_of(run_check(question, properties=["crash_over_hang"]), bound=100)
    assert story.focus is not None
    assert story.moments[story.focus].edge == "fault"
    assert story.finding is not None
    assert story.finding.expected == ("no fault",)


def test_a_check_that_holds_is_a_page_to_walk() -> None:
    story = check_page.story_of(run_check(Query("tp_v1.1", Scope(2, 1, 1), faults=0)), bound=500)
    assert (story.verdict, story.moments, story.finding) == ("holds", (), None)
    assert story.walk is not None


@pytest.mark.parametrize("story", [of_mutant("FM-04"), of_run("FM-04")], ids=["check", "run"])
def test_moments_are_in_order_and_ends_of_an_operation_know_each_other(story: Story) -> None:
    last: dict[int, int] = {}
    for at, moment in enumerate(story.moments):
        assert moment.column > last.get(moment.rank, -1)
        last[moment.rank] = moment.column
        if moment.mate is not None:
            other = story.moments[moment.mate]
            assert (other.mate, other.rank, other.link) == (at, moment.rank, moment.link)
            assert {moment.edge, other.edge} == {"enter", "exit"}
    assert {m.edge for m in story.moments if m.mate is None} <= {"step", "enter", "fault"}


@pytest.mark.parametrize("name", RUNS)
def test_an_end_of_a_collective_stands_after_all_that_it_waits_for(name: str) -> None:
    story = of_run(name)
    begun = {(m.rank, m.link): m.column for m in story.moments if m.edge == "enter"}
    assert sum(m.edge == "exit" for m in story.moments) > 20
    for moment in story.moments:
        if moment.edge != "exit":
            continue
        assert moment.link is not None
        link = story.links[moment.link]
        needed = link.members if link.root is None or (moment.rank == link.root and "ack" in link.name) else [link.root]
        assert all(begun[rank, moment.link] < moment.column for rank in needed if (rank, moment.link) in begun)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("healthy/*")), ids=lambda path: path.name)
def test_a_healthy_recorded_run_is_a_path_of_the_model(path: Path) -> None:
    story = run_page.of_paths([path])
    assert story.walk is not None
    assert len(story.walk["spine"]) == len(story.moments) + 1


def test_ranks_that_wait_in_a_circle_still_get_columns() -> None:
    a, b = ("control", 1), ("control", 2)
    both = (0, 1)
    ends = [(a, "enter"), (a, "exit"), (b, "enter"), (b, "exit")]
    crossed = {
        0: [(op, edge, "all_reduce", None, both) for op, edge in ends],
        1: [(op, edge, "all_reduce", None, both) for op, edge in ends[2:] + ends[:2]],
    }
    found = columns(crossed)
    assert {rank: len(times) for rank, times in found.items()} == {0: 4, 1: 4}
    assert all(sorted(set(times)) == times for times in found.values())


def test_a_long_run_is_shown_around_its_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_page, "MAX_MOMENTS", 100)
    moments = [Moment(0, at, "go", "enter" if at % 2 else "exit", "A", "A", "", mate=at ^ 1) for at in range(200)]
    kept, focus = window(moments, 150)
    assert len(kept) == 100
    assert focus is not None
    assert kept[focus].column == 150
    assert all(kept[m.mate].column == m.column ^ 1 for m in kept if m.mate is not None)
    assert window(moments[:10], 3) == (moments[:10], 3)
    assert window(moments, None)[0][0].column == 0


def test_of_many_ranks_those_are_shown_that_the_verdict_names() -> None:
    divergence = {"rank": 400, "culprits": [399], "waiting": [{"rank": rank} for rank in range(100, 110)]}
    lanes = shown(range(512), {"divergence": divergence, "suspects": []})
    assert len(lanes) == MAX_LANES
    assert {400, 399, *range(100, 110)} < set(lanes)
    assert lanes == sorted(lanes)
    assert shown(range(3), {"divergence": None, "suspects": []}) == [0, 1, 2]


def test_the_page_is_one_file_and_its_data_is_no_markup() -> None:
    nasty = "</script><script>alert(1)</script><!-- \u2028"
    story = of_run("FM-04")
    moments = [story.moments[0]._replace(detail=nasty), *story.moments[1:]]
    text = html_of(replace(story, title=nasty, moments=moments))
    assert text.count("<script") == text.count("</script>") == 3
    assert not re.search(r'(src|href)\s*=\s*["\'](?!data:|#)', re.sub(r"<script>.*?</script>", "", text, flags=re.S))
    assert "Mike Bostock" in text
    assert html_of(story) == html_of(story)
    assert nasty in as_json(replace(story, moments=moments))["texts"]


def test_the_library_is_the_one_that_is_named() -> None:
    vendor = Path(html.__file__).parent / "vendor"
    told = (vendor / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256((vendor / "d3.min.js").read_bytes()).hexdigest() in told
    version = re.findall(r"https://d3js.org v([\d.]+) ", (vendor / "d3.min.js").read_text(encoding="utf-8")[:100])
    assert f"d3@{version[0]}" in told


# ── the model, worked out beforehand ────────────────────────────────────────────────────────────────


def test_a_walk_has_exactly_the_states_and_moves_of_a_search() -> None:
    network = Network(TP_V1_1, Scope(2, 1, 1))
    found = walk(network, [network.initial()], bound=100_000)
    result = check(network, [])
    assert found["complete"]
    assert len(found["waiting"]) == len(result.graph.states)
    assert len(found["moves"]) // 2 == sum(len(edges) for edges in result.graph.edges)
    assert found["starts"][-1] == len(found["moves"]) // 2
    assert max(found["moves"][1::2]) < len(found["waiting"])
    assert any(view[0] == CRASHED for view in found["views"])


def test_a_walk_stops_at_its_bound_and_says_so() -> None:
    network = Network(TP_V1_1, Scope(3, 1, 1))
    found = walk(network, [network.initial()], bound=200)
    assert not found["complete"]
    assert 200 <= len(found["waiting"]) < 230
    assert len(found["starts"]) == len(found["waiting"]) + 1
    assert max(found["moves"][1::2]) < len(found["waiting"])


@pytest.mark.parametrize("name", MUTANTS)
def test_the_spine_of_a_walk_is_the_counterexample(name: str) -> None:
    story = of_mutant(name)
    assert story.walk is not None
    found, ranks = story.walk, len(story.lanes)
    assert len(found["spine"]) == len(story.moments) + 1
    for at, moment in enumerate(story.moments):
        here, there = found["spine"][at : at + 2]
        moves = found["moves"][2 * found["starts"][here] : 2 * found["starts"][here + 1]]
        labels = [found["labels"][m] for m, target in zip(moves[::2], moves[1::2], strict=True) if target == there]
        assert (moment.rank, moment.name) in [label[:2] for label in labels]
        assert found["views"][found["locals"][there * ranks + moment.rank]][0] == moment.state


def test_steps_that_the_network_does_not_have_end_the_spine() -> None:
    report = run_check(Query("tp_v1.1", Scope(3, 1, 2), mutant="FM-04"))
    assert report.counterexample is not None
    whole = Network(TP_V1_1, Scope(3, 1, 2))
    taken = steps(report.counterexample)
    assert len(along(report.network, taken)) == len(taken) + 1
    assert len(along(whole, taken)) == 9, "the ninth step is by a row that the whole protocol does not have"


# ── the page in a browser ───────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--headless"])
        yield chromium
        chromium.close()


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a story; at the end, nothing was complained about and nothing fetched."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1400, "height": 900})

    def fetched(request: Request) -> None:
        if not request.url.startswith(("file:", "data:")):
            complaints.append(request.url)

    def open_(story: Story) -> Page:
        write(tmp_path / "page.html", story)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", fetched)
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield open_
    context.close()
    assert complaints == []


def step(page: Page) -> int:
    return int(page.evaluate("page.step"))


def lit(page: Page, role: str) -> dict[str, str]:
    """State to the ranks that are shown there."""
    found = page.evaluate(
        """role => [...document.querySelectorAll(`[data-role="${role}"] .lit`)]
             .map(node => [node.id, node.querySelector(".who").textContent])""",
        role,
    )
    return {name.removeprefix(f"{role}."): ranks for name, ranks in found}


@pytest.mark.parametrize("name", RUNS)
def test_a_newcomer_finds_rank_call_and_cause_without_a_click(opened: Open, name: str) -> None:
    page, story = opened(of_run(name)), of_run(name)
    finding = page.inner_text("#finding")
    assert RUNS[name] in finding
    assert story.finding is not None
    for told in (*(text for _, text in story.finding.facts), story.finding.seen, story.finding.why):
        assert " ".join(told.split()) in " ".join(finding.split())
    assert {"rank", "place", "call_id"} <= dict(story.finding.facts).keys()
    assert page.inner_text("#verdict") == "divergent"
    assert step(page) == story.focus
    stage, callout = page.locator("#stage").bounding_box(), page.locator("#callout").bounding_box()
    assert stage is not None
    assert callout is not None
    middle = (callout["x"] + callout["width"] / 2 - stage["x"]) / stage["width"]
    assert 0.25 < middle < 0.75
    assert story.finding.expected[0] in page.inner_text("#callout")
    marked = page.evaluate("[...document.querySelectorAll('.edge.expected')].map(node => node.id.split('.').at(-1))")
    known = [text.split()[0] for text in story.finding.expected]
    assert set(marked) == {name for name in known if name != "refuse"}, "a row that many states share is a note"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_counterexample_opens_at_its_cause(opened: Open, name: str) -> None:
    page = opened(of_mutant(name))
    assert page.inner_text("#verdict") == "violated"
    assert page.inner_text("#finding h2").startswith(name)
    assert page.inner_text("#now").startswith(MUTANTS[name][0])
    assert MUTANTS[name][1] in page.inner_text("#now")
    assert page.locator("#callout").is_visible()


def test_keys_and_slider_step_and_the_states_light_up(opened: Open) -> None:
    page, story = opened(of_run("FM-04")), of_run("FM-04")
    assert story.focus is not None
    page.keyboard.press("Home")
    assert (step(page), page.inner_text("#now").partition("step ")[2]) == (0, f"1 of {len(story.moments)}")
    for at in range(1, 12):
        page.keyboard.press("ArrowRight")
        assert step(page) == at
        moment = story.moments[at]
        assert page.inner_text("#now").startswith(f"rank{moment.rank} {moment.name}")
        assert f"rank{moment.rank}" in lit(page, "rank0" if moment.rank == 0 else "worker")[moment.state]
    page.keyboard.press("ArrowLeft")
    assert step(page) == 10
    rank = story.moments[10].rank
    page.keyboard.press("Shift+ArrowRight")
    assert story.moments[step(page)].rank == rank
    assert step(page) == next(at for at, m in enumerate(story.moments) if at > 10 and m.rank == rank)
    page.keyboard.press("End")
    assert step(page) == len(story.moments) - 1
    page.keyboard.press("d")
    assert step(page) == story.focus
    page.locator("#slider").fill("5")
    assert step(page) == 5
    page.click("#divergence")
    assert step(page) == story.focus
    page.locator("#steps li").first.click()
    assert step(page) < story.focus


def test_a_click_on_a_lane_goes_to_what_is_drawn_there(opened: Open) -> None:
    page = opened(of_run("FM-04"))
    x, y = page.evaluate("[view.x(page.run.column[data.focus] - 1) + 9, top_(page.run.lane[data.focus]) + 20]")
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + x, box["y"] + y)
    before = page.evaluate("page.run.place_[data.focus] - 1")
    assert page.evaluate("page.run.place_[page.step]") == before


def test_the_canvas_is_drawn_on_and_zooms(opened: Open) -> None:
    page = opened(of_run("FM-04"))
    pictures = [page.evaluate("canvas.toDataURL()")]
    near = page.evaluate("view.at.k")
    for key in "+", "0":
        page.keyboard.press(key)
        pictures.append(page.evaluate("canvas.toDataURL()"))
        assert page.evaluate("view.at.k") > near if key == "+" else True
    assert page.evaluate("view.x(page.run.columns) - view.x(0) <= view.width")
    blank = page.evaluate("(pen.clearRect(0, 0, canvas.width, canvas.height), canvas.toDataURL())")
    assert len({*pictures, blank}) == 4


def test_filter_leaves_what_fits_and_stepping_skips_the_rest(opened: Open) -> None:
    page, story = opened(of_run("FM-04")), of_run("FM-04")
    page.fill("#words", "generate")
    fitting = [at for at, m in enumerate(story.moments) if "generate" in f"{m.name} {m.before} {m.state}".lower()]
    listed = page.locator("#steps li").all_inner_texts()
    assert listed
    assert all("generat" in text.lower() for text in listed)
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert step(page) == fitting[2]
    page.fill("#words", "")
    page.select_option("#phase", "preflight")
    assert page.evaluate("page.matches.reduce((a, b) => a + b)") == sum(m.phase == "preflight" for m in story.moments)


def test_search_goes_to_the_first_event_of_a_call_and_on(opened: Open) -> None:
    page, story = opened(of_run("OM-03-fewer")), of_run("OM-03-fewer")
    wanted = [at for at, m in enumerate(story.moments) if m.call_id == 2]
    page.keyboard.press("/")
    page.keyboard.type("2")
    assert page.inner_text("#found") == f"{len(wanted)} events"
    assert step(page) == wanted[0]
    page.keyboard.press("Enter")
    assert step(page) == wanted[1]
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    assert step(page) == wanted[2]
    page.fill("#query", "99")
    assert page.inner_text("#found") == "none"


def choose(page: Page, rank: int, text: str) -> None:
    card = page.locator(f'#choices .rank:has(h2:text-matches("^rank{rank} "))')
    card.locator("button", has_text=text).first.click()


def test_the_model_is_walked_by_hand_what_if_rank2_dies_here(opened: Open) -> None:
    page = opened(check_page.of_protocol(TP_V1_1, bound=2000))
    assert page.locator("#choices .rank").count() == 3
    for rank in (0, 1):
        choose(page, rank, "exchange_parity")
    assert "rank0 waits in parity for rank2" in page.inner_text("#choices .waits")
    assert page.evaluate("document.activeElement.closest('.rank').querySelector('h2').textContent").startswith("rank1")
    choose(page, 2, "dies here")
    assert page.inner_text("#lanes li:nth-child(3)").split() == ["rank2", "CRASHED"]
    assert "what if" not in page.inner_text("#choices"), "the one fault is spent"
    choose(page, 0, "detection: peer_lost")
    assert lit(page, "rank0") == {"POISONED": "rank0"}
    choose(page, 0, "abort")
    choose(page, 1, "peer_lost")
    choose(page, 1, "abort")
    assert "Every rank has ended" in page.inner_text("#choices")
    moves = step(page)
    page.keyboard.press("ArrowLeft")
    assert step(page) == moves - 1
    assert lit(page, "worker") == {"POISONED": "rank1", "STARTUP": "✕ rank2"}


def test_a_counterexample_is_left_for_a_walk_and_come_back_to(opened: Open) -> None:
    page, story = opened(of_mutant("FM-04")), of_mutant("FM-04")
    page.locator("#slider").fill("11")
    page.click("#walk")
    assert step(page) == 11
    assert "send_header" in page.inner_text("#now")
    assert page.inner_text("#lanes li:nth-child(1)").split()[1] == story.moments[11].state
    choose(page, 0, "preflight_dtypes")
    assert step(page) == 12
    assert page.evaluate("page.run.count") == 13
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("page.run.count") == 12
    page.click("#watch")
    assert page.evaluate("page.run.count") == len(story.moments)


def test_a_recorded_run_is_left_at_its_divergence_for_what_the_model_would_have_done(opened: Open) -> None:
    page, story = opened(of_run("FM-04")), of_run("FM-04")
    page.click("#walk")
    assert step(page) == story.focus - 1 if story.focus else False
    for event in "preflight_dtypes", "preflight_materialise", "commit", "send_header", "send_header":
        choose(page, 0, event)
    choose(page, 1, "receive_header: header completes")
    pairs = page.evaluate("page.run.link.map((link, i) => [link, page.run.mate[i]]).slice(-3)")
    (sent, _), (_, _), (received, mate) = pairs
    assert sent == received, "rank1 takes the header that rank0 sent, not one of those before it"
    assert story.moments[mate].name == "receive_header"
    assert story.moments[mate].link == sent
    columns = page.evaluate("page.run.column")
    assert columns[-1] == max(columns)
    assert columns[-1] < 60


AUDIT: dict[str, Any] = {
    "schema": 1,
    "subject": "tp_v1.1",
    "shown": "on gloo",
    "verdict": "do not ship",
    "ship": False,
    "reasons": ["row:OM-01: a rank was left waiting"],
    "not_shown": [],
    "notes": [],
    "p0": [
        {
            "key": "P0-01",
            "claim": "nothing is sent early",
            "status": "FAIL",
            "missing": ["row:OM-02"],
            "failed": ["row:OM-01"],
        },
        {"key": "P0-02", "claim": "calls are counted", "status": "pass", "missing": [], "failed": []},
    ],
    "findings": {
        "row:OM-01": {"good": False, "says": "a rank was left waiting", "known": "gloo, 3 ranks"},
        "property:no_stranding": {"good": True, "says": "holds in 151,707 states", "known": "model"},
    },
}


SHOWN = {"verdict": "ship on what was shown", "ship": True, "not_shown": ["what these runs did not do"]}


def test_an_audit_is_a_checklist_with_its_evidence(opened: Open) -> None:
    page = opened(audit_page.story_of(AUDIT, bound=200))
    assert page.inner_text("#verdict") == "do not ship"
    assert page.inner_text("#notes") == "row:OM-01: a rank was left waiting"
    lines = page.locator("#items li")
    assert lines.count() == 4
    first = page.inner_text("#items li:first-child")
    assert all(
        text in first for text in ("P0-01", "FAIL", "row:OM-01 fails: a rank was left", "row:OM-02 was not shown")
    )
    page.check("#bad")
    assert lines.count() == 2
    page.fill("#sought", "om-01")
    assert lines.count() == 1
    assert page.locator("#choices .rank").count() == 3, "the protocol can be walked below"


def test_an_audit_of_runs_is_a_checklist_alone(opened: Open) -> None:
    page = opened(audit_page.story_of({**AUDIT, **SHOWN, "subject": "run1", "reasons": [], "p0": []}))
    assert page.inner_text("#verdict") == "ship on what was shown"
    assert page.inner_text("#notes") == "not shown: what these runs did not do"
    assert page.locator("#items li").count() == 2
    for part in "#controls", "#left", "#choices":
        assert not page.locator(part).is_visible()


def test_a_rank_without_an_event_has_an_empty_lane_and_the_page_opens_where_it_is_missed(opened: Open) -> None:
    story = run_page.of_paths([CORPUS / "struck" / "rank0-killed-before-exchange-parity"])
    assert list(story.lanes) == [0, 1, 2]
    assert {m.rank for m in story.moments} == {1, 2}
    assert story.focus is not None
    missed = story.moments[story.focus]
    assert (missed.name, missed.edge, missed.mate) == ("exchange_parity", "enter", None)
    page = opened(story)
    assert page.inner_text("#lanes li:first-child").split() == ["rank0", "no", "event"]
    assert page.locator("#callout").is_visible()


def test_everything_has_a_name_and_the_step_is_told(opened: Open) -> None:
    page = opened(of_run("FM-04"))
    live = page.locator("#now")
    assert live.get_attribute("aria-live") == "polite"
    for control in page.locator("button, input, select").all():
        if control.is_visible():
            assert control.get_attribute("aria-label") or control.inner_text(), control.evaluate(
                "node => node.outerHTML"
            )
    assert page.locator("#canvas").get_attribute("aria-describedby") == "now"
    assert page.locator('[aria-current="step"]').count() == 1
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"theme", "slider", "divergence", "canvas", "query"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_and_paper(opened: Open, scheme: Any) -> None:
    page = opened(of_run("FM-04"))
    page.emulate_media(color_scheme=scheme)
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    bright = "getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'"
    assert page.evaluate(bright) is (scheme == "light")
    page.keyboard.press("t")
    assert page.evaluate(bright) is (scheme == "dark")
    page.emulate_media(media="print")
    assert not page.locator("#controls").is_visible()
    assert page.locator("#finding").is_visible()
    assert page.locator("#steps").is_visible()
    assert len(page.pdf()) > 20_000


def test_without_dot_the_roles_are_lists(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    page = opened(of_run("FM-04"))
    assert page.locator(".role svg").count() == 0
    assert page.locator('li.lit[id="rank0.PREFLIGHT_4"], li.lit[id="rank0.COMMITTED"]').count() == 1
