"""Runs the inner loop of the fast search, compiled by numba: states in, successors out, each new one kept once.

It follows `Network.successors` option by option, so that states are met in the order in which the reference
meets them. Parents are taken a few at a time: the places of all their successors in the hash table are fetched before
any of them is looked up, so that the cache misses overlap.

Its parts, in order: the hash table; outcomes that were worked out before; what a collective allows; the moves of a
state; the search. All of it is one module: what numba keeps compiled is made anew only when the outermost function's
file changes. So numbers that are imported here stay what they were until then (CONTRIBUTING.md).

Left out: everything that grows. The loop stops where an array is full or an outcome is missing, says so, and is
called again.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from . import layout as names
from .layout import (
    AFTER,
    AHEAD_AT_MOST,
    ALL,
    ALONE,
    BARRIER,
    BASE,
    BIAS,
    BITS,
    BOUND,
    CHECKED,
    CHECKS,
    COSTS,
    COUNTER,
    DROPS_FINISHED,
    EARLIEST,
    END,
    ENTRIES,
    FAILED,
    FAULTS,
    FIRST,
    FLAGS,
    GIVEN,
    GROUP_OF,
    HASTY,
    KIND,
    LANE_FACTS,
    LENGTH,
    LOOKS,
    LOST,
    MEMBERS,
    NAME,
    NORMALISES,
    ONCE_ENDED,
    ONCE_FAILED,
    OWN,
    PARTS,
    PARTS_FAILED,
    PEER,
    POINTS,
    QUEUE,
    REDUCES,
    ROOT,
    ROOT_RANK,
    SEAT,
    SEES,
    SIZE,
    STRIKES,
    STRIKING,
    TAKES_PART,
    TARGET,
    TERMINAL,
    TO_OTHERS,
    TO_ROOT,
    VALUE,
    WAITS_IN,
    WATCHES,
    WIRE,
    WIRE_AT,
    Array,
    Layout,
    Memo,
    Option,
    Tables,
)
from .search import (
    AHEAD,
    BUDGET,
    DONE,
    EDGES,
    FALLEN,
    FULL,
    FULL_EDGES,
    FULL_STATES,
    FULL_TABLE,
    IN_PLACE,
    ISSUED,
    LATE,
    MISPAIRED,
    MISSED,
    MISSES,
    NEXT,
    NOBODY,
    NOTHING,
    PAUSED,
    REACH,
    SEEN,
    STATES,
    SYMMETRIC,
    UNTIL,
    Arrays,
)

A, B, C = names.A, names.B, names.C
DEVICE, COMPLETE, PUT, TAKE = int(Option.DEVICE), int(Option.COMPLETE), int(Option.PUT), int(Option.TAKE)
MEET, FAULT, DETECT, CRASH = int(Option.MEET), int(Option.FAULT), int(Option.DETECT), int(Option.CRASH)
STALL, TOUCH = int(Option.STALL), int(Option.TOUCH)
COMPLETED, TAKEN, SHIFTED, REBASED, JOINED, EXPANDED, TOUCHED = (int(m) for m in Memo)
FRUITLESS, PATIENCE = 64, 16
"""States that are looked at for more misses after one that had some, for each miss so far, and for how many at most."""
GROUP = 4
"""Cells of the hash table that are looked at together."""
REHASHED = 16
"""States whose places in a new table are fetched ahead."""

_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)


class Shape(NamedTuple):
    """Holds how many there are of each: what is read through `_data` does not know its own length."""

    lanes: int
    groups: int
    entries: int
    """Numbers in a column."""
    streams: int
    keys: int
    ranks: int
    fields: int
    cells: int
    misses: int
    queues: int
    queue: int
    """Numbers in a row of the table of queues."""
    wires: int
    """Places on the links of a rank."""
    by_rank: tuple[int, ...]
    """Of two items where each rank has lanes of its own, and is in groups of its own: known when this is compiled."""


# ── arrays and the hash table ──────────────────────────────────────────────────────────────────────────────────────


@intrinsic
def _data(typing, array):
    """Return the place where an array begins.

    Reading from it counts no references and checks no index: half of a search.
    """

    def first(context, builder, signature, arguments):
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), first


@intrinsic
def _prefetch(typing, data, index):
    def ask(context, builder, signature, arguments):
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        takes = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [place.type], takes)
        builder.call(prefetch, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(data, types.int64), ask


@njit(cache=True, inline="always")
def _hash(words, row, count):
    h = np.uint64(0)
    for k in range(count):
        h = (h ^ words[row + k]) * _ODD
        h ^= h >> np.uint64(29)
    h *= _MIX
    return h ^ (h >> np.uint64(32))


@njit(cache=True, inline="always")
def _looked_up(table, group, words, rows, row):
    """Return what stands under a state in a group of four cells, or 0, and how many of the four are taken: no branch.

    A group has the four first words, the four second ones, and so on: of one word it is a cache line.
    """
    last, found, taken = words * GROUP, np.uint64(0), 0
    for cell in range(GROUP):
        number, same = table[group + last + cell], True
        for k in range(words):
            same &= table[group + k * GROUP + cell] == rows[row + k]
        found |= number if same else np.uint64(0)
        taken += number != 0
    return found, taken


@njit(cache=True, inline="always")
def _at(width, word, field):
    """Return the word of a state in which a field lies.

    `width` has one item a word: its length is known when this is compiled.
    """
    return 0 if len(width) == 1 else word[field]


# ── outcomes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@njit(cache=True, inline="always")
def _find(keys, outcomes, shape, key):
    """Return the outcome under this key; -2 where it is not known."""
    last = shape.keys - 1
    at = np.int64((np.uint64(key) * _ODD) >> np.uint64(32)) & last
    while True:
        if keys[at] == key:
            return np.int64(outcomes[at])
        if keys[at] < 0:
            return np.int64(-2)
        at = (at + 1) & last


@njit(cache=True, inline="always")
def _outcome(keys, outcomes, shape, control, misses, memo, one, other):
    """Return the outcome; -2 where it has to be worked out first, which is then asked for."""
    found = _find(keys, outcomes, shape, (memo << 60) | (one << 28) | other)
    if found == -2:
        _miss(shape, control, misses, memo, one, other)
    return found


@njit(cache=True)
def _miss(shape, control, misses, memo, one, other):
    """Ask for an outcome; where there is no room for it, it will be missed again."""
    n = control[MISSES]
    if n < shape.misses:
        misses[n], control[MISSES] = (memo << 60) | (one << 28) | other, n + 1


@njit(cache=True)
def _once(control, misses, known, asked):
    """Leave those misses, from number `known` on, that were not asked for before. Return how many there are."""
    count, last = known, asked.size - 1
    for n in range(known, control[MISSES]):
        at = np.int64((np.uint64(misses[n]) * _ODD) >> np.uint64(32)) & last
        while asked[at] >= 0 and asked[at] != misses[n]:
            at = (at + 1) & last
        if asked[at] < 0:
            asked[at] = misses[count] = misses[n]
            count += 1
    control[MISSES] = count
    return count


# ── collectives, as in `semantics/transport.py` ────────────────────────────────────────────────────────────────────


@njit(cache=True, inline="always")
def _kind(shape, rank):
    """Return which kind of lanes a rank has."""
    return rank if len(shape.by_rank) == 2 else (1 if rank else 0)


@njit(cache=True, inline="always")
def _lane(shape, lanes, rank):
    """Return the place of a rank's lane among those of all kinds."""
    return lanes[rank] + (rank * shape.lanes if len(shape.by_rank) == 2 else (shape.lanes if rank else 0))


@njit(cache=True, inline="always")
def _column(shape, lanes, rank, group):
    """Return the place where the column of a rank begins."""
    return (_lane(shape, lanes, rank) * shape.groups + group) * shape.entries


@njit(cache=True, inline="always")
def _queue(seats, shape, rank, group):
    """Return where the rank's list of a group stands in the table of queues."""
    return seats[(rank * shape.groups + group) * 2 + QUEUE] * shape.queue if len(shape.by_rank) == 2 else 0


@njit(cache=True, inline="always")
def _seat(seats, shape, rank, group):
    """Return the place of a rank in its list of a group."""
    return seats[(rank * shape.groups + group) * 2 + SEAT] if len(shape.by_rank) == 2 else rank


@njit(cache=True, inline="always")
def _size(queues, shape, queue):
    return queues[queue + SIZE] if len(shape.by_rank) == 2 else shape.ranks


@njit(cache=True, inline="always")
def _member(queues, shape, queue, seat):
    return queues[queue + MEMBERS + seat] if len(shape.by_rank) == 2 else seat


@njit(cache=True, inline="always")
def _gives(contributions, mine, seat):
    """Return whom a rank at this position waits for, and what it is given: see `layout`. Odd: it waits for all."""
    at = mine * 8
    return contributions[at + (TO_ROOT if seat == contributions[at + ROOT_RANK] else TO_OTHERS)]


@njit(cache=True, inline="always")
def _waits_for_root(shape, gives):
    return len(shape.by_rank) != 2 or gives != ALONE


@njit(cache=True)
def _meet(columns, contributions, queues, seats, shape, lanes, rank, group, place, mine, reach):
    """Return (may complete, must complete, mispaired) for a collective that `rank` is in: as in `transport`."""
    own, queue = mine * 8, _queue(seats, shape, rank, group)
    gives = _gives(contributions, mine, _seat(seats, shape, rank, group))
    root, everyone, one = contributions[own + ROOT_RANK], gives & 1 != 0, _waits_for_root(shape, gives)
    may, must, mispaired, slowest = True, True, False, 1 << 30
    if len(shape.by_rank) == 2:
        reach = np.int64(queues[queue + AHEAD_AT_MOST])
    for seat in range(_size(queues, shape, queue)):
        column = _column(shape, lanes, _member(queues, shape, queue, seat), group)
        slowest = min(slowest, columns[column + LENGTH])
        entry = columns[column + ENTRIES + place]
        needed = everyone or (seat == root and one)
        if entry == 0:
            must = False
            may &= not needed
            continue
        other = abs(entry) * 8
        must &= not contributions[other + LOST]
        if contributions[other + WIRE] != contributions[own + WIRE]:
            must = False
            may &= not needed
        elif contributions[other + NAME] != contributions[own + NAME] or (
            contributions[own + REDUCES] and contributions[other + VALUE] != contributions[own + VALUE]
        ):
            mispaired = True
    return may and place + 1 - slowest <= reach, must, mispaired


@njit(cache=True)
def _delivered(
    columns, contributions, keys, outcomes, queues, seats, shape, lanes, rank, group, place, mine, control, misses
):  # fmt: skip
    """Return the number of what a member is given; -2 where it has to be worked out first."""
    own, queue = mine * 8, _queue(seats, shape, rank, group)
    root = np.int64(contributions[own + ROOT_RANK])
    gives = _gives(contributions, mine, _seat(seats, shape, rank, group))
    if gives == OWN or (len(shape.by_rank) == 2 and gives in (BARRIER, ALONE)):
        return control[NOTHING]
    if gives == ROOT:
        entry = columns[_column(shape, lanes, _member(queues, shape, queue, root), group) + ENTRIES + place]
        return np.int64(contributions[abs(entry) * 8 + VALUE])
    made = len(shape.by_rank) == 2 and gives != ALL
    found = control[ISSUED] if made else control[NOBODY]
    for seat in range(_size(queues, shape, queue)):
        member = _member(queues, shape, queue, seat)
        entry = np.int64(abs(columns[_column(shape, lanes, member, group) + ENTRIES + place]))
        if entry or made:
            found = _outcome(keys, outcomes, shape, control, misses, JOINED, found, entry)
            if found < 0:
                break
    return found


@njit(cache=True, inline="always")
def _terminal(facts, shape, lanes, rank):
    return (facts[_lane(shape, lanes, rank) * LANE_FACTS + FLAGS] & TERMINAL) != 0


@njit(cache=True)
def _gone_in(facts, columns, contributions, queues, seats, shape, lanes, rank, group, place):
    """Return (it waits for somebody, one of those is gone) for a collective that `rank` has issued."""
    mine, queue = columns[_column(shape, lanes, rank, group) + ENTRIES + place], _queue(seats, shape, rank, group)
    gives = _gives(contributions, mine, _seat(seats, shape, rank, group))
    root, everyone, one = contributions[mine * 8 + ROOT_RANK], gives & 1 != 0, _waits_for_root(shape, gives)
    for needed_only in (True, False):
        waits, gone = False, False
        for seat in range(_size(queues, shape, queue)):
            member = _member(queues, shape, queue, seat)
            asked = member != rank and (everyone or (seat == root and one) or not needed_only)
            if asked and columns[_column(shape, lanes, member, group) + ENTRIES + place] == 0:
                waits = True
                gone |= _terminal(facts, shape, lanes, member)
        if waits:
            return True, gone
    waits, gone = False, False
    for seat in range(_size(queues, shape, queue)):
        member = _member(queues, shape, queue, seat)
        other = abs(columns[_column(shape, lanes, member, group) + ENTRIES + place]) * 8
        if contributions[other + LOST] or contributions[other + WIRE] != contributions[mine * 8 + WIRE]:
            waits = True
            gone |= _terminal(facts, shape, lanes, member)
    return waits, gone


@njit(cache=True)
def _gone_for(facts, columns, contributions, streams, queues, seats, shape, lanes, rank):
    """Return whether a member that `rank` waits for is no longer there to come: as `Network._gone_for`."""
    if len(shape.by_rank) == 2:
        peer = facts[_lane(shape, lanes, rank) * LANE_FACTS + PEER]
        if peer >= 0:
            return _terminal(facts, shape, lanes, peer)
    group = facts[_lane(shape, lanes, rank) * LANE_FACTS + WAITS_IN]
    if group >= 0:
        place = columns[_column(shape, lanes, rank, group) + EARLIEST]
        return (
            place >= 0 and _gone_in(facts, columns, contributions, queues, seats, shape, lanes, rank, group, place)[1]
        )
    for n in range(shape.streams):
        group = streams[n]
        place = columns[_column(shape, lanes, rank, group) + EARLIEST]
        if place >= 0:
            waits, gone = _gone_in(facts, columns, contributions, queues, seats, shape, lanes, rank, group, place)
            if waits:
                return gone
    return False


@njit(cache=True)
def _over(facts, columns, queues, shape, lanes, queue, group, place):
    """Return whether a collective has been issued, and every member has left it or has come to its end without."""
    some = False
    for seat in range(_size(queues, shape, queue)):
        member = _member(queues, shape, queue, seat)
        column = _column(shape, lanes, member, group)
        if columns[column + LENGTH] > place:
            some = True
            if columns[column + ENTRIES + place] > 0:
                return False
        elif facts[_lane(shape, lanes, member) * LANE_FACTS + FLAGS] & (TERMINAL | FAILED) != TERMINAL:
            return False
    return some


@njit(cache=True)
def _drop_finished(facts, columns, keys, outcomes, queues, shape, lanes, control, misses):
    """Drop what every member has left or has ended without. False where a lane has to be worked out first."""
    for number in range(shape.queues if len(shape.by_rank) == 2 else shape.groups):
        queue = number * shape.queue
        group = np.int64(queues[queue + GROUP_OF]) if len(shape.by_rank) == 2 else number
        by = 0
        while _over(facts, columns, queues, shape, lanes, queue, group, by):
            by += 1
        if by:
            for seat in range(_size(queues, shape, queue)):
                member = _member(queues, shape, queue, seat)
                if columns[_column(shape, lanes, member, group) + LENGTH]:
                    lane = (lanes[member] << 5) | _kind(shape, member)
                    moved = _outcome(keys, outcomes, shape, control, misses, SHIFTED, lane, (group << 16) | by)
                    if moved < 0:
                        return False
                    lanes[member] = moved
    return True


@njit(cache=True)
def _rebase(facts, keys, outcomes, shape, lanes, control, misses):
    """Count ids from rank0's. False where a lane has to be worked out first."""
    by = BIAS - facts[lanes[0] * LANE_FACTS + BASE]
    if by != BIAS:
        for member in range(shape.ranks):
            moved = _outcome(
                keys, outcomes, shape, control, misses, REBASED, (lanes[member] << 5) | _kind(shape, member), by
            )
            if moved < 0:
                return False
            lanes[member] = moved
    return True


# ── moves ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@njit(cache=True)
def _sort(shape, lanes, order):
    """Sort the workers' lanes; returns where each went, four bits a worker."""
    for n in range(1, shape.ranks):
        lane, at = lanes[n], n
        while at > 1 and lanes[at - 1] > lane:
            lanes[at], order[at] = lanes[at - 1], order[at - 1]
            at -= 1
        lanes[at], order[at] = lane, n
    went = np.uint64(0)
    for n in range(1, shape.ranks):
        went |= np.uint64(n - 1) << np.uint64(4 * (order[n] - 1))
    return went


@njit(cache=True)
def _checks_pass(
    facts, options, keys, outcomes, touched, shape, control, misses, states, width, word, shift, mask, row, here, rank,
    takes,
):  # fmt: skip
    """Return -1 where no check of a lane passes, -2 where one has to be worked out first: see `Role.checks_pass`."""
    for option in range(facts[here + CHECKS], facts[here + FIRST]):
        touches = len(shape.by_rank) == 2 and options[option * 8 + KIND] == TOUCH
        whose = options[option * 8 + B]
        slot = shape.ranks + options[option * 8 + A] + (whose if whose else rank) - 1
        if touches:
            slot = options[option * 8 + A]
        held = np.int64((states[row + _at(width, word, slot)] >> shift[slot]) & mask[slot])
        if touches:
            found = _outcome(keys, outcomes, shape, control, misses, TOUCHED, held, whose)
            if found == -2:
                return found
            held = np.int64(touched[found * 3 + GIVEN]) if found >= 0 else -1
        if held >= 0 if touches else held != 0:
            wanted = _outcome(keys, outcomes, shape, control, misses, TAKEN, np.int64(option), held)
            if wanted != -1:
                return wanted
        elif not takes:
            return np.int64(0)
    return np.int64(-1)


@njit(cache=True)
def _bound(
    facts, options, keys, outcomes, touched, shape, control, misses, states, width, word, shift, mask, row, here
):  # fmt: skip
    """Return 1 where the send or receive that a lane is in is bound to end, 0 where not, -2 where that is not known."""
    for option in range(facts[here + FIRST], facts[here + FAULTS]):
        if options[option * 8 + KIND] == TOUCH:  # its end stands before all moves
            slot = options[option * 8 + A]
            held = np.int64((states[row + _at(width, word, slot)] >> shift[slot]) & mask[slot])
            found = _outcome(keys, outcomes, shape, control, misses, TOUCHED, held, options[option * 8 + B])
            return found if found == -2 else np.int64(found >= 0 and touched[found * 3 + BOUND] != 0)
    return np.int64(0)


@njit(cache=True)
def _successors(
    parent, end, facts, columns, options, contributions, keys, outcomes, taken_rows, touched, strikes, streams, queues,
    seats, wires, shape, control, states, width, word, shift, mask, misses, out, begins, label, seen, went, places,
    table, lanes, after, order,
):  # fmt: skip
    """Write the successors of some states, up to the first that misses something; returns how many are done.

    Those of the n-th stand from `begins[n]` on.
    """
    ranks, last, at, begin, words = shape.ranks, shape.fields - 1, 0, parent, len(width)
    size, wide = np.uint64(shape.cells // GROUP - 1), np.uint64((words + 1) * GROUP)
    symmetric = control[SYMMETRIC] != 0
    while parent < end:
        begins[parent - begin], row = at, parent * words
        faults = np.int64((states[row + _at(width, word, last)] >> shift[last]) & mask[last])
        flags, points, missed, hasty, behind = 0, 0, False, -1, np.int64(1 << 30)
        for rank in range(ranks):
            lanes[rank] = np.int64((states[row + _at(width, word, rank)] >> shift[rank]) & mask[rank])
            here = _lane(shape, lanes, rank) * LANE_FACTS
            flags |= facts[here + FLAGS]
            points |= facts[here + POINTS]
            behind = min(behind, np.int64(facts[here + COUNTER]))
            if facts[here + FIRST] < 0:
                _miss(shape, control, misses, EXPANDED, lanes[rank], _kind(shape, rank))
                missed = True
            elif hasty < 0 and facts[here + FLAGS] & HASTY:
                hasty = rank
        if missed:
            break
        may_fault, trouble = faults < control[BUDGET], (flags & FAILED) != 0
        for rank in range(ranks):
            if hasty >= 0 and rank != hasty:
                continue
            here = _lane(shape, lanes, rank) * LANE_FACTS
            option, over = facts[here + FIRST], facts[here + (END if hasty < 0 else FAULTS)]
            may_watch = trouble or (
                (flags & TERMINAL) != 0
                and facts[here + WATCHES] < facts[here + STRIKES]
                and _gone_for(facts, columns, contributions, streams, queues, seats, shape, lanes, rank)
            )
            if len(shape.by_rank) == 2 and may_watch and not trouble and facts[here + PEER] >= 0:
                coming = _bound(
                    facts, options, keys, outcomes, touched, shape, control, misses, states, width, word, shift, mask,
                    row, here,
                )  # fmt: skip
                missed |= coming == -2
                may_watch = coming == 0
            # in the order of the menu: moves, faults, detections, and a crash or a stall
            if may_fault:
                gap, beyond = facts[here + (STRIKES if may_watch else WATCHES)], facts[here + STRIKES]
            else:
                gap, beyond = facts[here + FAULTS], facts[here + WATCHES]
                if hasty < 0:
                    over = facts[here + (STRIKES if may_watch else FAULTS)]
            while option < over:
                if option == gap:
                    option = beyond
                    if option >= over:
                        break
                own = option * 8
                chosen, must, mispaired, slot, held, put = own, True, False, -1, 0, 0
                kind = options[own + KIND]
                option += 1
                if hasty >= 0 and kind == DEVICE:
                    continue
                if options[own + BITS] & CHECKED:
                    passes = _checks_pass(
                        facts, options, keys, outcomes, touched, shape, control, misses, states, width, word, shift,
                        mask, row, here, rank, kind == TAKE or (options[own + BITS] & LOOKS) != 0,
                    )  # fmt: skip
                    missed |= passes == -2
                    if passes != -1:
                        continue
                if kind == DEVICE or kind == COMPLETE:  # noqa: SIM109  numba compiles this to less
                    group, place, mine = options[own + A], options[own + B], options[own + C]
                    may, must, mispaired = _meet(
                        columns, contributions, queues, seats, shape, lanes, rank, group, place, mine, control[REACH]
                    )
                    if not may:
                        continue
                    if kind == COMPLETE:
                        chosen = _delivered(
                            columns,
                            contributions,
                            keys,
                            outcomes,
                            queues,
                            seats,
                            shape,
                            lanes,
                            rank,
                            group,
                            place,
                            mine,
                            control,
                            misses,
                        )
                        if chosen >= 0:
                            chosen = _outcome(keys, outcomes, shape, control, misses, COMPLETED, own >> 3, chosen) * 8
                        if chosen < 0:
                            missed = True
                            continue
                elif kind == PUT or kind == TAKE:  # noqa: SIM109
                    whose = options[own + B]
                    slot = ranks + options[own + A] + (whose if whose else rank) - 1
                    held = np.int64((states[row + _at(width, word, slot)] >> shift[slot]) & mask[slot])
                    if (held != 0) == (kind == PUT):
                        continue
                    if kind == PUT:
                        put = options[own + C]
                    else:
                        chosen = _outcome(keys, outcomes, shape, control, misses, TAKEN, own >> 3, held)
                        missed |= chosen == -2
                        if chosen < 0:
                            continue
                        chosen *= 8
                elif len(shape.by_rank) == 2 and kind == TOUCH:
                    slot = options[own + A]
                    held = np.int64((states[row + _at(width, word, slot)] >> shift[slot]) & mask[slot])
                    found = _outcome(keys, outcomes, shape, control, misses, TOUCHED, held, options[own + B])
                    missed |= found == -2
                    if found < 0:
                        continue
                    put, must = np.int64(touched[found * 3 + AFTER]), touched[found * 3 + BOUND] != 0
                    if options[own + BITS] & LOOKS:
                        given = np.int64(touched[found * 3 + GIVEN])
                        chosen = _outcome(keys, outcomes, shape, control, misses, TAKEN, own >> 3, given)
                        missed |= chosen == -2
                        if chosen < 0:
                            continue
                        chosen *= 8
                elif kind == MEET:
                    if behind < facts[here + COUNTER]:
                        continue
                elif kind == FAULT:
                    if not (options[own + STRIKING] >> rank) & 1:
                        continue
                elif kind == CRASH or kind == STALL:  # noqa: SIM109
                    where = strikes[(ranks if kind == STALL else 0) + rank]
                    if where != -1 and not where & points:
                        continue
                bits, target = options[chosen + BITS], options[chosen + TARGET]
                drops_finished = (bits & DROPS_FINISHED) != 0
                rebases = rank == 0 and (bits & NORMALISES) != 0 and facts[target * LANE_FACTS + BASE] != 0
                for k in range(words):
                    out[at * words + k] = states[row + k]
                if target == control[FALLEN + (1 if rank else 0)]:
                    for member in range(ranks):
                        fallen = control[FALLEN + (1 if member else 0)]
                        out[at * words + _at(width, word, member)] ^= np.uint64(lanes[member] ^ fallen) << shift[member]
                    if symmetric:
                        went[at] = np.uint64(control[IN_PLACE])
                elif drops_finished or rebases or symmetric:
                    for member in range(ranks):
                        after[member] = lanes[member]
                    after[rank] = target
                    if (
                        drops_finished
                        and not _drop_finished(facts, columns, keys, outcomes, queues, shape, after, control, misses)
                    ) or (
                        (bits & NORMALISES) != 0 and not _rebase(facts, keys, outcomes, shape, after, control, misses)
                    ):
                        missed = True
                        continue
                    if symmetric:
                        went[at] = _sort(shape, after, order)
                    for member in range(ranks):
                        if after[member] != lanes[member]:
                            out[at * words + _at(width, word, member)] ^= (
                                np.uint64(lanes[member] ^ after[member]) << shift[member]
                            )
                else:
                    out[at * words + _at(width, word, rank)] ^= np.uint64(lanes[rank] ^ target) << shift[rank]
                if slot >= 0:
                    out[at * words + _at(width, word, slot)] ^= np.uint64(held ^ put) << shift[slot]
                if len(shape.by_rank) == 2 and bits & (PARTS | PARTS_FAILED):
                    gone = ONCE_FAILED if bits & PARTS_FAILED else ONCE_ENDED
                    for n in range(shape.wires):
                        wire = (rank * shape.wires + n) * 3
                        slot = np.int64(wires[wire + WIRE_AT])
                        in_word = at * words + _at(width, word, slot)
                        held = np.int64((out[in_word] >> shift[slot]) & mask[slot])
                        if held:
                            action = np.int64(wires[wire + gone])
                            found = _outcome(keys, outcomes, shape, control, misses, TOUCHED, held, action)
                            if found < 0:
                                missed = True
                                break
                            out[in_word] ^= np.uint64(held ^ np.int64(touched[found * 3 + AFTER])) << shift[slot]
                    if missed:
                        continue
                if bits & COSTS:
                    out[at * words + _at(width, word, last)] ^= np.uint64(faults ^ (faults + 1)) << shift[last]
                if kind == DEVICE or kind == COMPLETE:  # noqa: SIM109
                    bits = bits | TAKES_PART if must else bits & ~TAKES_PART
                elif len(shape.by_rank) == 2 and not must:
                    bits &= ~TAKES_PART
                label[at] = (rank << 3) | (bits & 7)
                seen[at] = options[chosen + SEES] | (control[MISPAIRED] if mispaired else 0)
                places[at] = (_hash(out, at * words, words) & size) * wide
                _prefetch(table, np.int64(places[at]))
                taken_rows[chosen >> 3] = 1
                at += 1
        if missed:
            break
        parent += 1
    if parent == end:
        begins[parent - begin] = at
    return parent - begin


# ── the search ─────────────────────────────────────────────────────────────────────────────────────────────────────


@njit(cache=True)
def _search(
    facts, columns, options, contributions, keys, outcomes, taken_rows, touched, strikes, streams, queues, seats,
    wires, shape, control, states, parents, degrees, targets, labels, wents, table, width, word, shift, mask,
    first_seen, misses, late, asked, out, label, seen, went, begins, places, lanes, after, order,
):  # fmt: skip
    """Expand states from `control[NEXT]` on, until something is full, missing or `control[UNTIL]` is reached."""
    room, late_room, wide_edges = label.size, late.size, wents.size > 1
    most_states, most_edges, batch = parents.size, targets.size, begins.size - 2
    facts, columns, options, contributions = _data(facts), _data(columns), _data(options), _data(contributions)
    keys, outcomes, strikes, streams = _data(keys), _data(outcomes), _data(strikes), _data(streams)
    taken_rows, touched, queues = _data(taken_rows), _data(touched), _data(queues)
    seats, wires = _data(seats), _data(wires)
    control, states, parents, degrees = _data(control), _data(states), _data(parents), _data(degrees)
    targets, labels, wents, table = _data(targets), _data(labels), _data(wents), _data(table)
    word, shift, mask, first_seen = _data(word), _data(shift), _data(mask), _data(first_seen)
    misses, late, out, label = _data(misses), _data(late), _data(out), _data(label)
    seen, went, begins, places = _data(seen), _data(went), _data(begins), _data(places)
    lanes, after, order = _data(lanes), _data(after), _data(order)
    given = (
        facts, columns, options, contributions, keys, outcomes, taken_rows, touched, strikes, streams, queues, seats,
        wires, shape, control, states, width, word, shift, mask, misses, out, begins, label, seen, went, places, table,
        lanes, after, order,
    )  # fmt: skip
    words, one = len(width), np.uint64(1)
    cells, wide = shape.cells * (words + 1), (words + 1) * GROUP
    again, kept, known, enough, looking = 0, 0, 0, 0, False
    control[MISSES] = 0
    while looking or control[NEXT] < control[STATES]:
        if looking:
            # what is missing is worked out many at a time: another look at what missed before, then at what follows
            if again < control[LATE]:
                parent, again = late[again], again + 1
                if parent < control[NEXT]:
                    continue
            elif control[AHEAD] < min(control[STATES], enough) and kept < late_room and known < shape.misses // 2:
                parent = control[AHEAD]
                control[AHEAD] = parent + 1
            else:
                control[LATE] = kept
                return MISSED
            end = parent + 1
        else:
            parent = control[NEXT]
            if parent >= control[UNTIL]:
                return PAUSED
            if control[STATES] + room > most_states:
                return FULL_STATES
            if control[EDGES] + room > most_edges:
                return FULL_EDGES
            if (control[STATES] + room) * 8 > shape.cells * FULL:
                return FULL_TABLE
            end = min(parent + batch, control[STATES], control[UNTIL])
        # the successors of a batch: called at one place, so that it is compiled into this loop
        done = parent + _successors(parent, end, *given)
        if looking:
            if done < end:
                before, known = known, _once(control, misses, known, asked)
                late[kept], kept = parent, kept + 1
                if known > before:
                    enough = max(enough, parent + FRUITLESS * min(known, PATIENCE))
            continue
        # which of them are new
        n = begins[done - parent]
        edge, count = control[EDGES], control[STATES]
        for owner in range(parent, done):
            first, after_last = begins[owner - parent], begins[owner - parent + 1]
            degrees[owner] = after_last - first
            for m in range(first, after_last):
                group = np.int64(places[m])
                found, taken = _looked_up(table, group, words, out, m * words)
                while found == 0:
                    if taken < GROUP:
                        found = np.uint64(count) + one
                        for k in range(words):
                            table[group + k * GROUP + taken] = out[m * words + k]
                            states[count * words + k] = out[m * words + k]
                        table[group + words * GROUP + taken] = found
                        parents[count] = owner
                        count += 1
                        break
                    group += wide
                    if group == cells:
                        group = 0
                    found, taken = _looked_up(table, group, words, out, m * words)
                targets[edge + m] = found - one
                labels[edge + m] = label[m]
                if wide_edges:
                    wents[edge + m] = went[m]
                fresh = seen[m] & ~control[SEEN]
                if fresh:
                    for bit in range(62):
                        if (fresh >> bit) & 1:
                            first_seen[2 * bit], first_seen[2 * bit + 1] = owner, m - first
                    control[SEEN] |= fresh
        control[EDGES], control[STATES], control[NEXT] = edge + n, count, done
        if done < end:
            looking, control[AHEAD], asked[:] = True, max(control[AHEAD], done + 1), -1
            known = _once(control, misses, 0, asked)
            enough = control[AHEAD] + FRUITLESS * min(known, PATIENCE)
    return DONE


@njit(cache=True)
def _rehash(states, width, count, table):
    words, wide = len(width), (len(width) + 1) * GROUP
    cells, size, table = table.size, np.uint64(table.size // wide - 1), _data(table)
    for n in range(-REHASHED, count):
        ahead = n + REHASHED
        if ahead < count:
            _prefetch(table, np.int64(_hash(states, ahead * words, words) & size) * wide)
        if n < 0:
            continue
        group, taken = np.int64(_hash(states, n * words, words) & size) * wide, 0
        while taken < GROUP and table[group + words * GROUP + taken]:
            taken += 1
            if taken == GROUP:
                group, taken = (group + wide) % cells, 0
        for k in range(words):
            table[group + k * GROUP + taken] = states[n * words + k]
        table[group + words * GROUP + taken] = np.uint64(n) + np.uint64(1)


@njit(cache=True)
def _repack(states, count, words, word, shift, mask, to, new_words, new_word, new_shift):
    for n in range(count):
        for f in range(word.size):
            value = (states[n * words + word[f]] >> shift[f]) & mask[f]
            to[n * new_words + new_word[f]] |= value << new_shift[f]


# ── for `search.py` ────────────────────────────────────────────────────────────────────────────────────────────────


def rehash(states: Array, count: int, table: Array) -> None:
    """Fill an empty hash table with the first `count` states."""
    _rehash(states.reshape(-1), _width(states.shape[1]), count, table.reshape(-1))


def repack(states: Array, count: int, old: Layout, to: Array, new: Layout) -> None:
    """Write the first `count` states with other fields."""
    _repack(
        *(states.reshape(-1), count, old.words, old.word, old.shift, old.mask),
        *(to.reshape(-1), new.words, new.word, new.shift),
    )


def _width(words: int) -> tuple[int, ...]:
    """Return one item a word: what is compiled differs by the length of a tuple."""
    return (0,) * words


def _shape(arrays: Arrays, tables: Tables) -> Shape:
    return Shape(
        lanes=tables.lanes.shape[1],
        groups=tables.columns.shape[2],
        entries=tables.columns.shape[3],
        streams=len(tables.streams),
        keys=len(tables.keys),
        ranks=arrays.space.network.ranks,
        fields=len(arrays.layout.word),
        cells=len(arrays.table),
        misses=len(arrays.misses),
        queues=len(arrays.space.network.groups.lists),
        queue=tables.queues.shape[1],
        wires=tables.wires.shape[1],
        by_rank=(0, 0) if arrays.space.by_rank else (0,),
    )


def search(arrays: Arrays, tables: Tables) -> int:
    """Run the loop on these arrays; returns why it stopped."""
    status: int = _search(
        tables.lanes.reshape(-1),
        tables.columns.reshape(-1),
        tables.options.reshape(-1),
        tables.contributions.reshape(-1),
        tables.keys,
        tables.outcomes,
        tables.taken,
        tables.touched.reshape(-1),
        tables.strikes.reshape(-1),
        tables.streams,
        tables.queues.reshape(-1),
        tables.seats.reshape(-1),
        tables.wires.reshape(-1),
        _shape(arrays, tables),
        arrays.control,
        arrays.states.reshape(-1),
        arrays.parents,
        arrays.degrees,
        arrays.targets,
        arrays.labels,
        arrays.went,
        arrays.table.reshape(-1),
        _width(arrays.layout.words),
        arrays.layout.word,
        arrays.layout.shift,
        arrays.layout.mask,
        arrays.first_seen.reshape(-1),
        arrays.misses,
        arrays.late,
        arrays.asked,
        arrays.out.reshape(-1),
        arrays.label,
        arrays.seen,
        arrays.moved,
        arrays.begins,
        arrays.places,
        *arrays.scratch,
    )
    return status
