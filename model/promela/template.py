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
{places}
/* scratch, outside the state */
hidden int g, d, m, n, from, l, h;
hidden byte fits;
hidden byte known;   /* 0: somewhere where the tables have nothing to say; then the tables are wrong */
"""

PLACES = """\
{item} box[BOXES];   /* what is in the channels, the first first */
byte fill[FIFOS];   /* and how much */
{item} board[CELLS] = {{ {board} }};   /* what each cell holds */
{item} wire[WAYS * W];   /* messages that no receive has ended with yet, from each rank to each on each link */
byte stray[WAYS * W];   /* its sender is gone: it may arrive, and need not */
byte sent[WAYS];   /* how many there are */
byte posted[WAYS];   /* the receiver waits for the next one */
"""

GATES_AND_COLLECTIVES = """\
/* ---- a collective, between its two ends ------------------------------------------------------------------------ */

#define IN(g, m) issued[(g) * R + (m)]
#define OUT(g, m) departed[(g) * R + (m)]
#define CELL(g, d, m) ((g) * D * R + (d) * R + (m))
/* of the earliest collective that `me` is in: whether m has issued it, what m put in, what `me` put in */
#define INSIDE(g, me) (OUT(g, me) < IN(g, me))
#define HAS(g, me, m) (IN(g, m) > OUT(g, me))
#define THEIRS(g, me, m) put_in[CELL(g, OUT(g, me), m)]
#define MINE(g, me) THEIRS(g, me, me)
/* the members of the list that `me` is in, each by its place, and whether that is the root's */
#define AMONG(g, me, m) (LIST[(g) * R + (m)] == LIST[(g) * R + (me)])
#define IS_ROOT(g, me, m) (SEAT[(g) * R + (m)] == ROOT[MINE(g, me)])
/* `me` depends on the root alone, on itself alone, or on everybody */
#define TOLD(g, me) (KIND[MINE(g, me)] == BROADCAST || KIND[MINE(g, me)] == SCATTER)
#define ON_ROOT(g, me) (TOLD(g, me) || (KIND[MINE(g, me)] == GATHER && !IS_ROOT(g, me, me)))
#define ON_SELF(g, me) (KIND[MINE(g, me)] == REDUCE && !IS_ROOT(g, me, me))
#define NEEDS(g, me, m) (ON_SELF(g, me) -> (m) == (me) : (!ON_ROOT(g, me) || IS_ROOT(g, me, m)))
#define PAIRS(g, me, m) (WIRE[THEIRS(g, me, m)] == WIRE[MINE(g, me)])
#define READY(g, me, m) (!NEEDS(g, me, m) || (HAS(g, me, m) && PAIRS(g, me, m)))
#define IN_REACH(g, me, m) (IN(g, m) + AHEAD[LIST[(g) * R + (me)]] > OUT(g, me))
#define MAY_LEAVE(g, me) (INSIDE(g, me) && ALL(READY, g, me) && ALL(IN_REACH, g, me))
#define ONLY_ONE(g, me) (OUT(g, me) + 1 == IN(g, me))
#define ODD(g, me, m) (HAS(g, me, m) && PAIRS(g, me, m) && (NAME[THEIRS(g, me, m)] != NAME[MINE(g, me)] || \\
  (FITS[MINE(g, me)] && VALUE[THEIRS(g, me, m)] != VALUE[MINE(g, me)])))
#define MISPAIRED(g, me) ANY(ODD, g, me)

/* whose value is delivered to `me`: the root's, nobody's, everybody's; and as it stands in the tables */
#define QUIET(g, me) (KIND[MINE(g, me)] == BARRIER || ON_SELF(g, me) || (ON_ROOT(g, me) && !TOLD(g, me)))
#define HEARD(g, me, m) (HAS(g, me, m) && (TOLD(g, me) -> IS_ROOT(g, me, m) : !QUIET(g, me)))
#define HEARD_FROM(g, me, m) (HEARD(g, me, m) && VALUE[THEIRS(g, me, m)] == n)
#define GIVEN_AT(g, m) GIVEN[d * R + SEAT[(g) * R + (m)]]
#define AS_GIVEN(g, me, m) (GIVEN_AT(g, m) == (HEARD(g, me, m) -> VALUE[THEIRS(g, me, m)] : 0))
#define IN_ITS_SEAT(g, me) (END_SEAT[d] == SEAT[(g) * R + (me)] + 1)

/* ---- who waits for whom ---------------------------------------------------------------------------------------- */

#define GONE(m) TERMINAL[at[m]]
#define ABSENT(g, me, m) ((m) != (me) && !HAS(g, me, m))
#define AWAITED(g, me, m) (ABSENT(g, me, m) && NEEDS(g, me, m))
#define ODD_ONE(g, me, m) ((m) != (me) && (lost[CELL(g, OUT(g, me), m)] || !PAIRS(g, me, m)))
#define ABSENT_GONE(g, me, m) (ABSENT(g, me, m) && GONE(m))
#define AWAITED_GONE(g, me, m) (AWAITED(g, me, m) && GONE(m))
#define ODD_GONE(g, me, m) (ODD_ONE(g, me, m) && GONE(m))
#define WAITS_IN(g, me) (INSIDE(g, me) && (ANY(ABSENT, g, me) || ANY(ODD_ONE, g, me)))
#define ALONE_IN(g, me) (INSIDE(g, me) && (ANY(AWAITED, g, me) -> ANY(AWAITED_GONE, g, me) : \\
  (ANY(ABSENT, g, me) -> ANY(ABSENT_GONE, g, me) : ANY(ODD_GONE, g, me))))
#define ALONE(me) (INSIDE_OF[at[me]] -> GONE(PEER_OF[at[me]]) && !(END_OPEN(me) && END_BOUND(me)) : \\
  (WAITS[at[me]] -> ALONE_IN(WAITS[at[me]] - 1, me) : ALONE_ON_STREAM(me)))
#define HAS_FAILED(g, me, m) FAILED[at[m]]
#define TROUBLE SOME(HAS_FAILED, 0, 0)

/* ---- when a rank may move -------------------------------------------------------------------------------------- */

#define ACTS(me) (!TERMINAL[at[me]] && !STALLED[at[me]])
#define CAUGHT_UP(g, me, m) (COUNTER[at[m]] >= COUNTER[at[me]])
#define AT_SLOT(n, me) slot[CHANNEL[n] + (WORKER[n] -> WORKER[n] : (me)) - 1]
#define GATE_OPEN(n, me) ((!SYNCS[n] || STREAMS_DRY(me)) && (GATE[n] == NONE || \\
  (GATE[n] == PUT && AT_SLOT(n, me) == 0) || (GATE[n] == TAKE && AT_SLOT(n, me) == ITEM[n]) || \\
  (GATE[n] == MEET && EVERY(CAUGHT_UP, 0, me)) || (GATE[n] > MEET && PLACE_OPEN(n, me))))
#define MAY_FAULT (faults < BUDGET)

#define OWN(k) (FIRST[at[_pid]] + (k))
#define FAULT(k) (FIRST[at[_pid]] + OWNS[at[_pid]] + (k))
#define DETECT(k) (FIRST[at[_pid]] + OWNS[at[_pid]] + FAULTS[at[_pid]] + (k))
#define OWN_MAY(k) (ACTS(_pid) && (k) < OWNS[at[_pid]] && GATE_OPEN(OWN(k), _pid))
#define FAULT_MAY(k) (ACTS(_pid) && (k) < FAULTS[at[_pid]] && MAY_FAULT && STRIKES(STRUCK_BY[FAULT(k)], _pid))
#define DETECT_MAY(k) (DETECTION && ACTS(_pid) && (k) < DETECTS[at[_pid]] && (TROUBLE || ALONE(_pid)))
#define COMPLETE_MAY (ACTS(_pid) && WAITS[at[_pid]] && MAY_LEAVE(WAITS[at[_pid]] - 1, _pid) && \\
  ONLY_ONE(WAITS[at[_pid]] - 1, _pid))
#define END_MAY (ACTS(_pid) && INSIDE_OF[at[_pid]] && END_OPEN(_pid))
#define DEVICE_MAY(g) (MAY_LEAVE(g, _pid) && !(ONLY_ONE(g, _pid) && WAITS[at[_pid]] == (g) + 1))

"""

MOVES = """\
/* ---- what a move does ------------------------------------------------------------------------------------------ */

#define BUSY(g, me, m) (IN(g, m) > 0)
#define IS_PAST(g, me, m) (OUT(g, m) > 0 || (IN(g, m) == 0 && GONE(m) && !FAILED[at[m]]))

inline tidy() {   /* drop the collectives that every member has left, or has ended without */
  for (l : 1 .. LISTS) {
    g = LIST_OF[l]; h = FIRST_OF[l];
    do
    :: ANY(BUSY, g, h) && ALL(IS_PAST, g, h) ->
      for (m : 0 .. R - 1) {
        if
        :: AMONG(g, h, m) ->
          for (d : 0 .. D - 1) {
            put_in[CELL(g, d, m)] = (d < D - 1 -> put_in[CELL(g, d + 1, m)] : 0);
            lost[CELL(g, d, m)] = (d < D - 1 -> lost[CELL(g, d + 1, m)] : 0)
          }
          IN(g, m) = (IN(g, m) -> IN(g, m) - 1 : 0);
          OUT(g, m) = (OUT(g, m) -> OUT(g, m) - 1 : 0)
        :: else
        fi
      }
    :: else -> break
    od
  }
}

inline walk_out_of(group, me) {   /* what was put in stays there, and is lost */
  g = group;
  for (d : OUT(g, me) .. IN(g, me) - 1) { lost[CELL(g, d, me)] = 1 }
  OUT(g, me) = IN(g, me)
}

inline walk_out(me) {   /* out of every collective */
  for (l : 0 .. G - 1) { walk_out_of(l, me) }
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
  judge(seen);
  claim()
}

inline take(me, s, cost) {   /* a step of the tables */
  n = s; from = at[me]; known = 1; faults = faults + cost;
  if
  :: PUTS[n] -> issue(me, PUTS[n])
  :: else ->
    if
    :: FAILED[TARGET[n]] -> walk_out(me)
    :: !FAILED[TARGET[n]] && INTERRUPTS[n] && WAITS[from] -> walk_out_of(WAITS[from] - 1, me)
    :: else
    fi
  fi;
  if
  :: GATE[n] == PUT -> AT_SLOT(n, me) = ITEM[n]; known = (ITEM[n] -> known : 0)
  :: GATE[n] == TAKE -> AT_SLOT(n, me) = 0
  :: GATE[n] > MEET -> touch(me)
  :: else
  fi;
  hang_up(me, TARGET[n])
}

inline complete(me) {   /* the host leaves the collective that it waits in: with which value, the tables are asked */
  from = at[me]; known = 1; g = WAITS[from] - 1;
  mispaired = MISPAIRED(g, me);
  d = ENDS_FIRST[from];
  do
  :: d == ENDS_FIRST[from] + ENDS[from] -> d = 0; break
  :: else ->
    fits = 1;
    if
    :: END_SEAT[d] -> fits = IN_ITS_SEAT(g, me) && ALL(AS_GIVEN, g, me)
    :: else ->
      for (m : 0 .. R - 1) {
        n = GIVEN[d * R + m];
        if
        :: n && !ANY(HEARD_FROM, g, me) -> fits = 0
        :: AMONG(g, me, m) && HEARD(g, me, m) && !IS_GIVEN(d, VALUE[THEIRS(g, me, m)]) -> fits = 0
        :: else
        fi
      }
    fi;
    if
    :: fits -> break
    :: else -> d++
    fi
  od;
  n = d;
  OUT(g, me) = OUT(g, me) + 1;
  at[me] = END_TARGET[n];
  tidy();
  hang_up(me, END_TARGET[n]);
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
  hang_up(me, DEAD[from]);
  arrive(me, DEAD[from], 0, 0)
}

inline switch_to(me, to, cost) {   /* stall and resume */
  from = at[me]; known = 1; faults = faults + cost;
  arrive(me, to, 0, 0)
}

/* each move is one step of Spin; the second of a pair is the one that ends the rank */
#define TAKE_STEP(may, s, cost) \\
  :: d_step { may && !TERMINAL[TARGET[s]] -> TOOK(_pid, !(cost) && !ASKED[s]); take(_pid, s, cost); \\
              arrive(_pid, TARGET[n], BY[n], SEEN[n]) }
#define TAKE_LAST(may, s, cost) \\
  :: d_step { may && TERMINAL[TARGET[s]] -> TOOK(_pid, !(cost) && !ASKED[s]); take(_pid, s, cost); \\
              at[_pid] = TARGET[n]; tidy(); arrive(_pid, TARGET[n], BY[n], SEEN[n]) }; goto ended
#define COMPLETE_WHERE(is) \\
  :: d_step { COMPLETE_MAY && is -> TOOK(_pid, MUST(WAITS[at[_pid]] - 1, _pid)); complete(_pid) }
#define COMPLETE \\
  COMPLETE_WHERE(!LAST[at[_pid]]) \\
  COMPLETE_WHERE(LAST[at[_pid]]); goto ended
#define END_WHERE(is) \\
  :: d_step { END_MAY && is -> TOOK(_pid, END_BOUND(_pid)); finish(_pid) }
#define END \\
  END_WHERE(!LAST[at[_pid]]) \\
  END_WHERE(LAST[at[_pid]]); goto ended
#define ON_DEVICE(g) \\
  :: d_step { DEVICE_MAY(g) -> TOOK(R + _pid, MUST(g, _pid)); on_device(_pid, g) }
#define CRASH \\
  :: d_step { ACTS(_pid) && MAY_FAULT && CRASHES(_pid) -> TOOK(_pid, 0); die(_pid, 1) }; goto ended
#define STALL \\
  :: d_step { ACTS(_pid) && MAY_FAULT && STALLS(_pid) -> TOOK(_pid, 0); switch_to(_pid, STALLED_AS[at[_pid]], 1) } \\
  :: d_step { STALLED[at[_pid]] -> TOOK(_pid, 0); switch_to(_pid, RESUMED_AS[at[_pid]], 0) } \\
  :: d_step { STALLED[at[_pid]] && DETECTION -> TOOK(_pid, 1); die(_pid, 0) }; goto ended
"""

AT_PLACES = """\
/* ---- channels, cells, links ------------------------------------------------------------------------------------ */

#define PLACE_AT(n, me) (PLACE[n] -> PLACE[n] - 1 : OWN_PLACE[SHARED[n] * R + (me)])
#define WAY(link, one, other) ((link) * R * R + (one) * R + (other))
#define WAY_AT(n, me) (GATE[n] == RECEIVE -> WAY(SHARED[n], PEER[n], me) : WAY(SHARED[n], me, PEER[n]))
#define UNASKED(w) (sent[w] - posted[w])
#define PLACE_OPEN(n, me) (GATE[n] == SET || GATE[n] == POST || GATE[n] == SEND || GATE[n] == RECEIVE || \\
  (GATE[n] == INTO && fill[PLACE_AT(n, me)] < CAPACITY[PLACE_AT(n, me)]) || \\
  (GATE[n] == OUT_OF && box[BOX[PLACE_AT(n, me)]] == ITEM[n]) || \\
  (GATE[n] == SEE && board[PLACE_AT(n, me)] == ITEM[n]) || \\
  (GATE[n] == SENT && UNASKED(WAY_AT(n, me)) <= 0))
/* the way of the message that `me` is sending, or waits for */
#define ITS_WAY(me) (INSIDE_OF[at[me]] == RECEIVE -> WAY(LINK_OF[at[me]], PEER_OF[at[me]], me) : \\
  WAY(LINK_OF[at[me]], me, PEER_OF[at[me]]))
#define END_OPEN(me) (INSIDE_OF[at[me]] == SEND -> UNASKED(ITS_WAY(me)) <= BUFFER[LINK_OF[at[me]]] : \\
  sent[ITS_WAY(me)] > 0)
#define PLACE_ANSWER(n) if \\
  :: ASKS[n] == FILL_OF -> d = fill[WHOM[n]] \\
  :: ASKS[n] == IN_BOX -> d = box[WHOM[n]] \\
  :: ASKS[n] == ON_BOARD -> d = board[WHOM[n]] \\
  fi
#define END_BOUND(me) (INSIDE_OF[at[me]] == SEND || !stray[ITS_WAY(me) * W])

#define SAID known = (ITEM[n] -> known : 0)

inline touch(me) {   /* what a step of the tables does to a channel, cell or link */
  if
  :: GATE[n] == INTO -> d = PLACE_AT(n, me); box[BOX[d] + fill[d]] = ITEM[n]; fill[d] = fill[d] + 1; SAID
  :: GATE[n] == OUT_OF && ITEM[n] ->
    d = PLACE_AT(n, me); fill[d] = fill[d] - 1;
    for (m : BOX[d] .. BOX[d] + fill[d] - 1) { box[m] = box[m + 1] }
    box[BOX[d] + fill[d]] = 0
  :: GATE[n] == SET -> board[PLACE_AT(n, me)] = ITEM[n]; SAID
  :: GATE[n] == SEND || GATE[n] == POST ->
    d = WAY_AT(n, me); SAID;
    if
    :: sent[d] < W -> wire[d * W + sent[d]] = ITEM[n]; sent[d] = sent[d] + 1
    :: else -> known = 0
    fi
  :: GATE[n] == RECEIVE -> posted[WAY_AT(n, me)] = 1
  :: else
  fi
}

inline finish(me) {   /* a send or receive ends: with which message, the tables are asked */
  from = at[me]; known = 1; n = ENDS_FIRST[from];
  if
  :: INSIDE_OF[from] == RECEIVE ->
    d = ITS_WAY(me);
    do
    :: n == ENDS_FIRST[from] + ENDS[from] -> n = 0; break
    :: n < ENDS_FIRST[from] + ENDS[from] && END_ITEM[n] == wire[d * W] -> break
    :: else -> n++
    od;
    posted[d] = 0; sent[d] = sent[d] - 1;
    for (m : d * W .. d * W + sent[d] - 1) { wire[m] = wire[m + 1]; stray[m] = stray[m + 1] }
    wire[d * W + sent[d]] = 0; stray[d * W + sent[d]] = 0
  :: else
  fi;
  at[me] = END_TARGET[n];
  if
  :: FAILED[at[me]] -> walk_out(me)
  :: else
  fi;
  if
  :: TERMINAL[at[me]] -> tidy()
  :: else
  fi;
  hang_up(me, END_TARGET[n]);
  arrive(me, END_TARGET[n], END_BY[n], END_SEEN[n])
}

inline hang_up(me, to) {   /* what one that is gone has sent comes as far as its link let it; if it failed, may */
#if LINKS
  if
  :: FAILED[to] || TERMINAL[to] ->
    for (l : 0 .. LINKS - 1) {
      for (m : 0 .. R - 1) {
        d = WAY(l, me, m); h = (FAILED[to] -> 0 : posted[d] + BUFFER[l]);
        for (g : h .. sent[d] - 1) { stray[d * W + g] = 1 }
        posted[WAY(l, m, me)] = 0
      }
    }
  :: else
  fi
#else
  skip
#endif
}
"""
NO_PLACES = """\
#define PLACE_OPEN(n, me) 0
#define END_OPEN(me) 0
#define END_BOUND(me) 0
#define PLACE_ANSWER(n) skip
inline touch(me) { skip }
inline finish(me) { skip }
inline hang_up(me, to) { skip }
"""

FAIRNESS = """\
/* ---- what is owed ---------------------------------------------------------------------------------------------- */

#define HOLDS_UP(g, me, m) (!HAS(g, me, m) || lost[CELL(g, OUT(g, me), m)] || !PAIRS(g, me, m))
#define MUST(g, me) (!ANY(HOLDS_UP, g, me))
#ifdef FAIR
byte took;   /* by whom the last move was, if it was owed: 1 + a rank, or R + 1 + a rank, its device; 0: it was not */
byte owed[2 * R] = {{ {owed} }};   /* whether a rank has a move that is owed; after all ranks: its device */
#define TOOK(who, is) took = ((is) -> (who) + 1 : 0)
#define KEPT byte

inline weigh() {{
  for (l : 0 .. R - 1) {{
    owed[l] = (STALLED[at[l]] && !TERMINAL[at[l]] && DETECTION); owed[R + l] = 0;
    if
    :: ACTS(l) ->
      for (h : FIRST[at[l]] .. FIRST[at[l]] + OWNS[at[l]] - 1) {{
        if
        :: !ASKED[h] && GATE_OPEN(h, l) -> owed[l] = 1
        :: else
        fi
      }}
      if
      :: DETECTION && DETECTS[at[l]] && (TROUBLE || ALONE(l)) -> owed[l] = 1
      :: else
      fi;
      if
      :: INSIDE_OF[at[l]] && END_OPEN(l) && END_BOUND(l) -> owed[l] = 1
      :: else
      fi;
      if
      :: WAITS[at[l]] ->
        g = WAITS[at[l]] - 1;
        if
        :: MAY_LEAVE(g, l) && ONLY_ONE(g, l) && MUST(g, l) -> owed[l] = 1
        :: else
        fi
      :: else
      fi
    :: else
    fi{devices}
  }}
  l = 0   /* a d_step may not end with a loop */
}}
#else
#define TOOK(who, is) skip
#define KEPT hidden byte
#define weigh() skip
#endif
"""
DEVICE_OWES = """;
    if
    :: MAY_LEAVE({0}, l) && !(ONLY_ONE({0}, l) && WAITS[at[l]] == {0} + 1) && MUST({0}, l) -> owed[R + l] = 1
    :: else
    fi"""
IDLE = """\
#ifdef FAIR
active proctype nobody() {   /* a run may stand still where nothing is owed */
  do
  :: d_step { true -> took = 0 }
  od
}
#endif
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
            f"#define ALL(P, g, me) ({joined('(!AMONG(g, me, {0}) || P(g, me, {0}))', ' && ')})",
            f"#define ANY(P, g, me) ({joined('(AMONG(g, me, {0}) && P(g, me, {0}))', ' || ')})",
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
