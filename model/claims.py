"""Defines what a protocol of one's own claims of its whole state: what must always, sometimes or in the end hold.

A claim is a predicate of the whole state (`semantics.whole.Whole`). It watches and never steers.

Left out: how claims are judged (`checker.claims`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Predicate = Callable[[Any], bool]
"""Given the whole state, says yes or no."""


class Fair(StrEnum):
    """Names what a run owes, for what it must come to in the end."""

    RANKS = "ranks"
    """A rank that can go on by a step of its own all the time does so in the end; so does whoever notices a failure."""
    PROGRESS = "progress"
    """As long as some rank can go on by a step of its own, some rank does."""


@dataclass(frozen=True)
class Invariant:
    """Claims that a predicate holds in every state."""

    name: str
    text: str
    holds: Predicate


@dataclass(frozen=True)
class Sometimes:
    """Claims that a predicate holds in some state: without it the protocol is vacuous."""

    name: str
    text: str
    seen: Predicate


@dataclass(frozen=True)
class LeadsTo:
    """Claims that every fair run that comes to `when` comes to `then`, at once or later.

    It must come to `when` at all: that is one more claim, `NAME.when`, of something that is sometimes seen.
    """

    name: str
    text: str
    when: Predicate
    then: Predicate
    fair: Fair = Fair.RANKS


Claim = Invariant | Sometimes | LeadsTo
