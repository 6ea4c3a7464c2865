"""Makes every picture of the documents: `make pictures`. Needs `dot`, `rsvg-convert` and a Chromium.

The diagrams and charts come from `genlock render`, the screens from pages opened in Chromium.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

from genlock.cli.render import render
from genlock.contract.audit import TP, Audit, read_evidence
from genlock.contract.ship import ship
from genlock.page import audit_page
from genlock.page.html import write
from playwright.sync_api import ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "pictures"
CORPUS = ROOT / "traces" / "corpus" / "broken"
SIZE: ViewportSize = {"width": 1400, "height": 880}


class Drawn(NamedTuple):
    """Holds a picture of `genlock render PICTURE SUBJECT... [--diff OTHER]`."""

    name: str
    picture: str
    subjects: tuple[str, ...]
    other: str | None = None


class Screen(NamedTuple):
    """Holds a picture of a page, after some keys and clicks (a text that starts with `#` or `.` is clicked)."""

    name: str
    picture: str
    subjects: tuple[str, ...]
    acts: tuple[str, ...] = ()
    scheme: Literal["light", "dark"] = "light"


DRAWN = (
    Drawn("rank0.png", "states", ("tp_v1.1", "rank0")),
    Drawn("worker.png", "states", ("tp_v1.1", "worker")),
    Drawn("rank0-FM-04.png", "states", ("FM-04", "rank0"), "tp_v1.1"),
    Drawn("worker-v0-v1.1.png", "states", ("tp_v1.1", "worker"), "tp_v0"),
    Drawn("sequence.svg", "sequence", ("tp_v1.1", "acks_agree")),
    Drawn("FM-04.svg", "counterexample", ("FM-04",)),
    Drawn("FM-02.svg", "counterexample", ("FM-02",)),
    Drawn("FM-07-FM-04.svg", "counterexample", ("FM-07",), "FM-04"),
    Drawn("trace.svg", "trace", (str(CORPUS / "OM-03-fewer"),)),
    Drawn("trace-diff.svg", "trace", (str(CORPUS / "OM-03-more"),), str(CORPUS / "OM-03-fewer")),
    Drawn("waits.svg", "waits", (str(CORPUS / "OM-03-fewer"),)),
)
EVIDENCE = ROOT / "docs" / "contract" / "evidence.json"
SCREENS = (
    Screen("page-run.png", "trace", (str(CORPUS / "FM-04"),)),
    Screen("page-run-dark.png", "trace", (str(CORPUS / "OM-03-fewer"),), scheme="dark"),
    Screen("page-check.png", "counterexample", ("FM-02",)),
    Screen(
        "page-walk.png",
        "sequence",
        ("tp_v1.1", "acks_agree"),
        ("End", *["ArrowLeft"] * 18, "#walk", ".rank:nth-of-type(3) button.fault"),
    ),
    Screen("page-audit.png", "audit", ()),
)


def page_of(screen: Screen, file: Path) -> Path:
    """Write the page of a screen; an audit is that of the evidence beside the documents."""
    if screen.picture != "audit":
        return render(screen.picture, screen.subjects, "html", file)[0]
    ledger = read_evidence(EVIDENCE)
    write(file, audit_page.story_of(Audit(TP, ledger, ship(ledger)).as_json()))
    return file


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, picture, subjects, other in DRAWN:
        render(picture, subjects, Path(name).suffix[1:], FOLDER / name, other)
        print(FOLDER / name)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for screen in SCREENS:
            file = page_of(screen, Path(folder) / "page.html")
            context = chromium.new_context(viewport=SIZE, color_scheme=screen.scheme)
            page = context.new_page()
            page.goto(file.as_uri())
            for act in screen.acts:
                page.click(act) if act[0] in "#." else page.keyboard.press(act)
            page.screenshot(path=FOLDER / screen.name)
            context.close()
            print(FOLDER / screen.name)
        chromium.close()


if __name__ == "__main__":
    main()
