"""Holds the Promela of `genlock export promela` for every protocol alike: transport, gates, faults, detection.

These are the rules of `docs/specification.md` once more. They share no code with `network.py`, and keep their state in
another form: of each group, how many of the unfinished collectives every rank has issued and how many it has left.

Left out: what a protocol is (the tables of `export.py`), and what Spin cannot be asked (see `docs/spin.md`).
"""

from __future__ import annotations

from collections.abc import Sequence

TABLES = """\
/* ---- the tables: locals, their steps, the ends of their collectives, contributions; each from number 1 ---------- */
"""

STATE = """\
/* ---- the state ------------------------------------------------------------------------------------------------- */

{at} at[R] = {{ {starts} }};   /* where each rank is: its number in the tables; 0: nowhere */
{contribution} put_in[G * D * R];   /* what each rank put into each unfinished collective; 0: nothing yet */
byte lost[G * D * R];   /* it was in there when it failed: nobody is bound to complete any more */
byte issued[G * R];   /* of the unfinished collectives of a group, how many a rank has issued, */
byte departed[G * R];   /* and how many of these it has left again */
{item} slot[SLOTS];   /* what is in each one-slot channel; 0: empty */
byte faults;   /* that have happened */

/* scratch, outside the state */
hidden int g, d, m, n, from;
hidden byte fits;
hidden byte known;   /* 0: somewhere where the tables have nothing to say; then the tables are wrong */
"""

RULES = """\
/* ---- a collective, between its two ends ------------------------------------------------------------------------ */

#define IN(g, m) issued[(g) * R + (m)]
#define OUT(g, m) departed[(g) * R + (m)]
#define CELL(g, d, m) ((g) * D * R + (d) * R + (m))
/* of the earliest collective that `me` is in: whether m has issued it, what m put in, what `me` put in */
#define INSIDE(g, me) (OUT(g, me) < IN(g, me))
#define HAS(g, me, m) (IN(g, m) > OUT(g, me))
#define THEIRS(g, me, m) put_in[CELL(g, OUT(g, me), m)]
#define MINE(g, me) THEIRS(g, me, me)
/* `me` depends on the root alone, not on everybody */
#define ON_ROOT(g, me) (KIND[MINE(g, me)] == BROADCAST || (KIND[MINE(g, me)] == GATHER && (me) != ROOT[MINE(g, me)]))
#define NEEDS(g, me, m) (!ON_ROOT(g, me) || (m) == ROOT[MINE(g, me)])
#define PAIRS(g, me, m) (WIRE[THEIRS(g, me, m)] == WIRE[MINE(g, me)])
#define READY(g, me, m) (!NEEDS(g, me, m) || (HAS(g, me, m) && PAIRS(g, me, m)))
#define IN_REACH(g, me, m) (IN(g, m) + AHEAD > OUT(g, me))
#define MAY_LEAVE(g, me) (INSIDE(g, me) && EVERY(READY, g, me) && EVERY(IN_REACH, g, me))
#define ONLY_ONE(g, me) (OUT(g, me) + 1 == IN(g, me))
#define ODD(g, me, m) (HAS(g, me, m) && PAIRS(g, me, m) && (NAME[THEIRS(g, me, m)] != NAME[MINE(g, me)] || \\
  (KIND[MINE(g, me)] == ALL_REDUCE && VALUE[THEIRS(g, me, m)] != VALUE[MINE(g, me)])))
#define MISPAIRED(g, me) SOME(ODD, g, me)

/* whose value is delivered to `me`: the root's, nobody's, everybody's */
#define HEARD(g, me, m) (HAS(g, me, m) && \\
  (KIND[MINE(g, me)] == BROADCAST -> (m) == ROOT[MINE(g, me)] : !ON_ROOT(g, me)))
#define HEARD_FROM(g, me, m) (HEARD(g, me, m) && VALUE[THEIRS(g, me, m)] == n)

/* ---- who waits for whom ---------------------------------------------------------------------------------------- */

#define GONE(m) TERMINAL[at[m]]
#define ABSENT(g, me, m) ((m) != (me) && !HAS(g, me, m))
#define AWAITED(g, me, m) (ABSENT(g, me, m) && NEEDS(g, me, m))
#define ODD_ONE(g, me, m) ((m) != (me) && (lost[CELL(g, OUT(g, me), m)] || !PAIRS(g, me, m)))
#define ABSENT_GONE(g, me, m) (ABSENT(g, me, m) && GONE(m))
#define AWAITED_GONE(g, me, m) (AWAITED(g, me, m) && GONE(m))
#define ODD_GONE(g, me, m) (ODD_ONE(g, me, m) && GONE(m))
#define WAITS_IN(g, me) (INSIDE(g, me) && (SOME(ABSENT, g, me) || SOME(ODD_ONE, g, me)))
#define ALONE_IN(g, me) (INSIDE(g, me) && (SOME(AWAITED, g, me) -> SOME(AWAITED_GONE, g, me) : \\
  (SOME(ABSENT, g, me) -> SOME(ABSENT_GONE, g, me) : SOME(ODD_GONE, g, me))))
#define ALONE(me) (WAITS[at[me]] -> ALONE_IN(WAITS[at[me]] - 1, me) : ALONE_ON_STREAM(me))
#define HAS_FAILED(g, me, m) FAILED[at[m]]
#define TROUBLE SOME(HAS_FAILED, 0, 0)

/* ---- when a rank may move -------------------------------------------------------------------------------------- */

#define ACTS(me) (!TERMINAL[at[me]] && !STALLED[at[me]])
#define CAUGHT_UP(g, me, m) (COUNTER[at[m]] >= COUNTER[at[me]])
#define AT_SLOT(n, me) slot[CHANNEL[n] + (WORKER[n] -> WORKER[n] : (me)) - 1]
#define GATE_OPEN(n, me) ((!SYNCS[n] || STREAMS_DRY(me)) && (GATE[n] == NONE || \\
  (GATE[n] == PUT && AT_SLOT(n, me) == 0) || (GATE[n] == TAKE && AT_SLOT(n, me) == ITEM[n]) || \\
  (GATE[n] == MEET && EVERY(CAUGHT_UP, 0, me))))
#define MAY_FAULT (faults < BUDGET)

#define OWN(k) (FIRST[at[_pid]] + (k))
#define FAULT(k) (FIRST[at[_pid]] + OWNS[at[_pid]] + (k))
#define DETECT(k) (FIRST[at[_pid]] + OWNS[at[_pid]] + FAULTS[at[_pid]] + (k))
#define OWN_MAY(k) (ACTS(_pid) && (k) < OWNS[at[_pid]] && GATE_OPEN(OWN(k), _pid))
#define FAULT_MAY(k) (ACTS(_pid) && (k) < FAULTS[at[_pid]] && MAY_FAULT && STRIKES(STRUCK_BY[FAULT(k)], _pid))
#define DETECT_MAY(k) (DETECTION && ACTS(_pid) && (k) < DETECTS[at[_pid]] && (TROUBLE || ALONE(_pid)))
#define COMPLETE_MAY (ACTS(_pid) && WAITS[at[_pid]] && MAY_LEAVE(WAITS[at[_pid]] - 1, _pid) && \\
  ONLY_ONE(WAITS[at[_pid]] - 1, _pid))
#define DEVICE_MAY(g) (MAY_LEAVE(g, _pid) && !(ONLY_ONE(g, _pid) && WAITS[at[_pid]] == (g) + 1))

/* ---- what a move does ------------------------------------------------------------------------------------------ */

#define BUSY(g, me, m) (IN(g, m) > 0)
#define IS_PAST(g, me, m) (OUT(g, m) > 0 || (IN(g, m) == 0 && GONE(m) && !FAILED[at[m]]))

inline tidy() {   /* drop the collectives that every member has left, or has ended without */
  for (g : 0 .. G - 1) {
    do
    :: SOME(BUSY, g, 0) && EVERY(IS_PAST, g, 0) ->
      for (d : 0 .. D * R - 1) {
        put_in[g * D * R + d] = (d < D * R - R -> put_in[g * D * R + d + R] : 0);
        lost[g * D * R + d] = (d < D * R - R -> lost[g * D * R + d + R] : 0)
      }
      for (m : 0 .. R - 1) {
        IN(g, m) = (IN(g, m) -> IN(g, m) - 1 : 0);
        OUT(g, m) = (OUT(g, m) -> OUT(g, m) - 1 : 0)
      }
    :: else -> break
    od
  }
}

inline walk_out(me) {   /* out of every collective; what was put in stays there, and is lost */
  for (g : 0 .. G - 1) {
    for (d : OUT(g, me) .. IN(g, me) - 1) { lost[CELL(g, d, me)] = 1 }
    OUT(g, me) = IN(g, me)
  }
}

inline issue(me, c) {
  g = GROUP[c];
  if
  :: IN(g, me) < D -> put_in[CELL(g, IN(g, me), me)] = c; IN(g, me) = IN(g, me) + 1
  :: else -> known = 0
  fi
}

inline rebase(me, by) {   /* count ids from the driver's own, which has moved on by itself */
  for (m : 0 .. R - 1) {
    if
    :: m != me -> at[m] = LATER[((by) - 1) * LOCALS + at[m]]; known = (at[m] -> known : 0)
    :: else
    fi
  }
  for (d : 0 .. G * D * R - 1) {
    if
    :: put_in[d] -> put_in[d] = PUT_LATER[((by) - 1) * CONTRIBUTIONS + put_in[d]]; known = (put_in[d] -> known : 0)
    :: else
    fi
  }
}

inline arrive(me, to, by, seen) {
  at[me] = to;
  if
  :: by -> rebase(me, by)
  :: else
  fi;
  printf("rank%d: %d -> %d\\n", me, from, at[me]);
  no_false_abort = FAILED[at[me]] && faults == 0;
  known = (at[me] -> known : 0);
  assert(known);
  assert(!no_false_abort);
  judge(seen)
}

inline take(me, s, cost) {   /* a step of the tables */
  n = s; from = at[me]; known = 1; faults = faults + cost;
  if
  :: PUTS[n] -> issue(me, PUTS[n])
  :: else ->
    if
    :: FAILED[TARGET[n]] -> walk_out(me)
    :: else
    fi
  fi;
  if
  :: GATE[n] == PUT -> AT_SLOT(n, me) = ITEM[n]; known = (ITEM[n] -> known : 0)
  :: GATE[n] == TAKE -> AT_SLOT(n, me) = 0
  :: else
  fi
}

inline complete(me) {   /* the host leaves the collective that it waits in: with which value, the tables are asked */
  from = at[me]; known = 1; g = WAITS[from] - 1;
  mispaired = MISPAIRED(g, me);
  d = ENDS_FIRST[from];
  do
  :: d == ENDS_FIRST[from] + ENDS[from] -> d = 0; break
  :: else ->
    fits = 1;
    for (m : 0 .. R - 1) {
      n = GIVEN[d * R + m];
      if
      :: n && !SOME(HEARD_FROM, g, me) -> fits = 0
      :: HEARD(g, me, m) && !IS_GIVEN(d, VALUE[THEIRS(g, me, m)]) -> fits = 0
      :: else
      fi
    }
    if
    :: fits -> break
    :: else -> d++
    fi
  od;
  n = d;
  OUT(g, me) = OUT(g, me) + 1;
  at[me] = END_TARGET[n];
  tidy();
  arrive(me, END_TARGET[n], END_BY[n], END_SEEN[n] | (mispaired << NO_MISPAIRING))
}

inline on_device(me, group) {   /* the earliest collective of a stream completes, while the host is elsewhere */
  from = at[me]; known = 1; n = MISPAIRED(group, me);
  OUT(group, me) = OUT(group, me) + 1;
  tidy();
  arrive(me, from, 0, n << NO_MISPAIRING)
}

inline die(me, cost) {
  from = at[me]; known = 1; faults = faults + cost;
  walk_out(me);
  at[me] = DEAD[from];
  tidy();
  arrive(me, DEAD[from], 0, 0)
}

inline switch_to(me, to, cost) {   /* stall and resume */
  from = at[me]; known = 1; faults = faults + cost;
  arrive(me, to, 0, 0)
}

/* each move is one step of Spin; the second of a pair is the one that ends the rank */
#define TAKE_STEP(may, s, cost) \\
  :: d_step { may && !TERMINAL[TARGET[s]] -> take(_pid, s, cost); arrive(_pid, TARGET[n], BY[n], SEEN[n]) }
#define TAKE_LAST(may, s, cost) \\
  :: d_step { may && TERMINAL[TARGET[s]] -> take(_pid, s, cost); at[_pid] = TARGET[n]; tidy(); \\
              arrive(_pid, TARGET[n], BY[n], SEEN[n]) }; goto ended
#define COMPLETE \\
  :: d_step { COMPLETE_MAY && !LAST[at[_pid]] -> complete(_pid) } \\
  :: d_step { COMPLETE_MAY && LAST[at[_pid]] -> complete(_pid) }; goto ended
#define ON_DEVICE(g) \\
  :: d_step { DEVICE_MAY(g) -> on_device(_pid, g) }
#define CRASH \\
  :: d_step { ACTS(_pid) && MAY_FAULT && CRASHES(_pid) -> die(_pid, 1) }; goto ended
#define STALL \\
  :: d_step { ACTS(_pid) && MAY_FAULT && STALLS(_pid) -> switch_to(_pid, STALLED_AS[at[_pid]], 1) } \\
  :: d_step { STALLED[at[_pid]] -> switch_to(_pid, RESUMED_AS[at[_pid]], 0) } \\
  :: d_step { STALLED[at[_pid]] && DETECTION -> die(_pid, 0) }; goto ended
"""


def unrolled(ranks: int, streams: Sequence[int]) -> str:
    """Return macros that loop in a condition, as Promela cannot: over the ranks, and over the groups on a stream."""

    def joined(text: str, by: str) -> str:
        return by.join(text.format(m) for m in range(ranks))

    alone = "0"
    for group in reversed(streams):
        alone = f"(WAITS_IN({group}, me) -> ALONE_IN({group}, me) : {alone})"
    dry = " && ".join(f"!INSIDE({group}, me)" for group in streams) or "1"
    return "\n".join(
        (
            f"#define EVERY(P, g, me) ({joined('P(g, me, {})', ' && ')})",
            f"#define SOME(P, g, me) ({joined('P(g, me, {})', ' || ')})",
            f"#define IS_GIVEN(d, v) ({joined('GIVEN[(d) * R + {}] == (v)', ' || ')})",
            f"#define ALONE_ON_STREAM(me) {alone}",
            f"#define STREAMS_DRY(me) ({dry})",
        )
    )


def judged(names: Sequence[str]) -> str:
    """Return the flags of the properties that are seen on a move, and what asserts them, each by its name."""
    flags = "\n".join(f"hidden byte {name};" for name in ("no_false_abort", "mispaired", *names))
    body = "\n".join(f"  {name} = ((seen) >> {n}) & 1; assert(!{name});" for n, name in enumerate(names))
    return f"{flags}\n\ninline judge(seen) {{\n{body}\n}}\n"


def process(name: str, count: int, options: Sequence[str], on_device: Sequence[str]) -> str:
    """Return `count` ranks of a role.

    They have `options` while they live (none: they never do), and `on_device` also when they have ended.
    """

    def loop(moves: Sequence[str]) -> str:
        return "\n".join(("  do", *(f"  {move}" for move in moves), "  od;"))

    lives = f"{loop([*on_device, *options])}\n" if options else ""
    ended = loop(on_device) if on_device else "  false"
    return f"active [{count}] proctype {name}() {{\n{lives}ended: end:\n{ended}\n}}\n"
