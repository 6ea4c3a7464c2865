"""Names what stands where in the arrays of the fast search: facts of lanes, columns, options and contributions, the
fields of a packed state, and the keys of outcomes.

`state_encoding.py` writes them, `numba_search.py` and `numpy_search.py` read them. Left out: what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Number = TypeVar("Number", int, Array)


class Option(IntEnum):
    """Names what a step of a lane waits for."""

    FREE = 0
    DEVICE = 1
    COMPLETE = 2
    PUT = 3
    TAKE = 4
    MEET = 5
    FAULT = 6
    DETECT = 7
    CRASH = 8
    STALL = 9
    TOUCH = 10
    """Something is done to one place, if what is in it allows that: see `Touches`."""


class Memo(IntEnum):
    """Names what an outcome is looked up by: an option and what was delivered, a lane and how far it moves, …"""

    COMPLETED = 0
    TAKEN = 1
    SHIFTED = 2
    REBASED = 3
    JOINED = 4
    EXPANDED = 5
    """Not looked up: the lane's options are asked for."""
    TOUCHED = 6
    """What is in a place, and what is done to it."""


DETECTS, ADVANCES, ORDINARY, DROPS_FINISHED, NORMALISES, COSTS, CHECKED, LOOKS, PARTS, PARTS_FAILED = (
    1 << n for n in range(10)
)
"""Bits of an option. The first three are those of a packed edge. CHECKED: it is open only where none of its lane's
checks passes (see `Role.checks_pass`). LOOKS: what it leads to depends on what it is given. PARTS, PARTS_FAILED: the
rank has ended or failed, which changes what is on its links."""
ASKED_FOR = 1 << 10
"""Bit of an option for which the world outside asks."""
TAKES_PART = ORDINARY | DETECTS
"""No step is both ordinary and detection: both bits together say that it is ordinary, and that the rank takes part."""
TERMINAL, FAILED, STALLED, CLOSING, HASTY = 1, 2, 4, 8, 16
"""Bits of a lane. CLOSING: rank0 is on its way to STOPPED. HASTY: see `partial_order_reduction`."""
ROOT, ALL, OWN, BARRIER, ALONE, MADE, SHARE = range(7)
"""Says whose contributions a member waits for, and what it is given of them: the root's; everyone's, as a set; the
root's, nothing; everyone's, nothing; its own, nothing; everyone's, what is made of them; the root's, its share. Who
waits for all has an odd one."""
BIAS = 1 << 20
"""Makes a signed distance a key."""


class Tables(NamedTuple):
    """Holds all that a search needs to know of a network, in a few arrays: what stands where say the names below."""

    lanes: Array
    """[kind, lane, fact]; which kind of lanes a rank has says `Space.kinds`."""
    columns: Array
    """[kind, lane, group, ENTRIES + n]: the lane's entry in each unfinished collective."""
    options: Array
    """[option, fact]."""
    contributions: Array
    """[contribution, fact]."""
    keys: Array
    outcomes: Array
    """The outcome of each key; -1 where there is none."""
    taken: Array
    """[option]: 1 where some state's move was this option. Written by the search."""
    touched: Array
    """[outcome, AFTER …]: what is in a place afterwards, what was given, and whether it is bound to come."""
    strikes: Array
    """[kind, rank]: the points that let a crash or a stall strike; all bits are set where it strikes anywhere."""
    streams: Array
    """The groups of which a device may complete something by itself."""
    queues: Array
    """[queue, MEMBERS + n]: the group, how far a member may run ahead, how many members, and which."""
    seats: Array
    """[rank, group, SEAT or QUEUE]: the rank's place in its list of a group, and which queue that is; -1: none."""
    wires: Array
    """[rank, n, WIRE_AT …]: the fields of what is on its way to or from a rank, and what becomes of it with it."""


FLAGS, COUNTER, BASE, POINTS, WAITS_IN, CHECKS, FIRST, FAULTS, WATCHES, STRIKES, END, PEER = range(12)
"""Facts of a lane. WAITS_IN: the group, or -1. PEER: the rank that a send or receive is with, or -1. From FIRST (-1:
not worked out) to END its options: its own steps, from FAULTS on what faults do to it, from WATCHES on detection, from
STRIKES on crash and stall. From CHECKS to FIRST stand the rows with a `Take` that its VIOLATION rows come after; they
are no moves."""
LANE_FACTS = 16
LENGTH, EARLIEST, ENTRIES = range(3)
"""Facts of a column: how many entries, the first that is still waiting (-1: none), and the entries themselves."""
KIND, TARGET, BITS, A, B, C, STRIKING, SEES = range(8)
"""Facts of an option. A, B, C: group, place and contribution, or base, worker and value of a slot.
STRIKING: the ranks that a fault may strike. SEES: the properties that a ghost names."""
VALUE, WIRE, NAME, LOST, REDUCES, ROOT_RANK, TO_OTHERS, TO_ROOT = range(8)
"""Facts of a contribution. WIRE: equal where the backend pairs. TO_…: whose value a member is given."""


GROUP_OF, AHEAD_AT_MOST, SIZE, MEMBERS = range(4)
SEAT, QUEUE = range(2)
AFTER, GIVEN, BOUND = range(3)
WIRE_AT, ONCE_ENDED, ONCE_FAILED = range(3)


class Layout(NamedTuple):
    """Says where each field of a state lies: lanes by rank, then slots, then the faults."""

    word: Array
    shift: Array
    mask: Array
    words: int


def memo_key(memo: int, one: Number, other: Number) -> Number:
    """Return what an outcome is kept under."""
    return memo << 60 | one << 28 | other


def memo_parts(key: int) -> tuple[int, int, int]:
    """Return what the key was made of."""
    return key >> 60, key >> 28 & 0xFFFFFFFF, key & 0xFFFFFFF


def memo_place(key: int, size: int) -> int:
    """Return the place where a key is looked for first."""
    return (key * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> 32 & (size - 1)


def layout(widths: Sequence[int]) -> Layout:
    """Pack fields into 64-bit words, none across two."""
    word, shift, used, at = [], [], 0, 0
    for width in widths:
        if used + width > 64:
            at, used = at + 1, 0
        word.append(at)
        shift.append(used)
        used += width
    masks = [(1 << width) - 1 for width in widths]
    return Layout(np.array(word, np.int64), np.array(shift, np.uint64), np.array(masks, np.uint64), at + 1)


def in_place(ranks: int) -> np.uint64:
    """Return the order in which every worker's lane stays where it was, four bits a worker."""
    return np.uint64(sum(n << 4 * n for n in range(ranks - 1)) & (1 << 64) - 1)
