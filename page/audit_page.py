"""Makes the page of an audit: each line of the checklist with what it rests on, and the protocol to walk by hand.

Left out: what is audited; this reads what `audit --format json` prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..model.protocols.load import PROTOCOLS
from .check_page import of_protocol
from .explorer import BOUND
from .view_model import Item, Story

STATUS = {True: "as claimed", False: "FAILS", None: "not shown"}
"""The word for a piece of evidence, by `good`."""


def story_of(audit: Mapping[str, Any], bound: int = BOUND) -> Story:
    """Return the page of `audit`; of a built-in protocol, at most `bound` states of it can be walked by hand."""
    findings: Mapping[str, Any] = audit["findings"]
    lines = [
        Item(
            line["key"],
            line["claim"],
            line["status"],
            line["status"] == "pass",
            (
                *(f"{name} fails: {findings[name]['says']}" for name in line["failed"]),
                *(f"{name} was not shown here" for name in line["missing"]),
            ),
        )
        for line in audit["p0"]
    ]
    told = [
        Item(name, found["says"], STATUS[found["good"]], found["good"] is True, (found["known"],))
        for name, found in findings.items()
    ]
    known = audit["subject"] in PROTOCOLS
    story = of_protocol(PROTOCOLS[audit["subject"]], bound) if known else Story(
        title="", verdict="walk", summary="", lanes=(), moments=()
    )  # fmt: skip
    good = sum(item.good for item in told)
    return replace(
        story,
        title=f"Audit of {audit['subject']}",
        verdict=audit["verdict"],
        summary="; ".join(filter(None, (audit["shown"], f"{good:,} of {len(told):,} findings are as claimed"))),
        notes=[*audit["reasons"], *(f"not shown: {what}" for what in audit["not_shown"]), *audit["notes"]],
        checklist=[*lines, *told],
    )
