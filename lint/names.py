"""Tells what a name promises: a rank, a question that one rank answers alone, or a group of ranks.

Group keys are short words: `world`, `local` (the ranks of a host), `node`, a parallel dimension (`tp`, `dp`), the
name of a variable, or `?` for a group that the source does not tell.
"""

from __future__ import annotations

import re

from . import vocabulary
from .divergence import NOTHING, Atom, Confidence, Kind, Source, Value

WORLD, UNKNOWN = "world", "?"
ROW = "row of "
"""Before the key of a group all of whose members pass a test that compares their rank in it to another rank."""
_ALIASES = {
    "tensor_model_parallel": "tp",
    "tensor_parallel": "tp",
    "tensor": "tp",
    "model_parallel": "mp",
    "model": "mp",
    "mp": "mp",
    "pipeline_model_parallel": "pp",
    "pipeline_parallel": "pp",
    "pipeline": "pp",
    "pipe": "pp",
    "pipe_parallel": "pp",
    "data_parallel": "dp",
    "data": "dp",
    "dp_cp": "dp",
    "dp_world": "dp",
    "data_parallel_with_context_parallel": "dp",
    "data_context_parallel": "dp",
    "context_parallel": "cp",
    "context": "cp",
    "sequence_parallel": "sp",
    "seq": "sp",
    "expert_parallel": "ep",
    "expert_model_parallel": "ep",
    "expert": "ep",
    "moe": "ep",
    "global": WORLD,
    "world": WORLD,
    "distributed": WORLD,
    "default": WORLD,
    "machine": "node",
    "host": "node",
    "intra": "local",
    "local": "local",
    "intra_node": "local",
}
DIMENSIONS = frozenset(_ALIASES.values()) - {WORLD} | {"tp", "pp", "dp", "cp", "sp", "ep"}
_NOISE = re.compile(r"\b(self|cls|mpu|parallel_state|ps|parallel_context|torch|dist|distributed|args|config)\b\.?")
_AFFIXES = re.compile(
    r"^(get|current|my|the|my_own)_|_(process_group|group|groups|pg|comm|communicator|mesh|rank|gloo|nccl|cpu|device"
    r"|ranks|world_size)$|^(process|group|pg|comm|mesh|cpu|gloo|nccl|device|rank)$|_(process|handle|coll)$"
)


def key(text: str) -> str:
    """Return the group key of a name, an expression or a function: `get_tensor_parallel_group()` is `tp`."""
    word = text.strip()
    subscript = re.fullmatch(r".*\[['\"](\w+)['\"]\].*|.*get_group\(['\"](\w+)['\"]\)", word)
    if subscript:
        word = subscript[1] or subscript[2]
    if word in ("", "None") or re.search(r"\bWORLD\b", word):
        return WORLD
    word = _NOISE.sub("", re.sub(r"\(.*?\)|\.get_group|\.group$", "", word)).strip("._").rpartition(".")[2].lower()
    while True:
        shorter = _AFFIXES.sub("", word).strip("_")
        if shorter == word:
            break
        word = shorter
    return _ALIASES.get(word, word) or UNKNOWN


def rank_scope(prefix: str | None) -> str:
    """Return the group in which a rank counts, from the words before `_rank`: none is the world."""
    return key(prefix) if prefix else WORLD


def by_name(name: str, shown: str, line: int) -> Value:
    """Return the value that a name promises: a rank, or a question that one rank answers alone."""
    v = vocabulary
    if v.MAIN_PROCESS.match(name):
        return predicate(WORLD, "== 0", shown, line, single=True)
    if v.LOCAL_MAIN.match(name):
        return predicate("local", "== 0", shown, line, single=True)
    stage = v.STAGE.match(name)
    if stage:
        found = {key: value for key, value in stage.groupdict().items() if value}
        where = found.get("group") or found.get("group2")
        scope = key(where) if where else "pp"
        end = found.get("end") or found.get("end2") or found.get("end3")
        return predicate(scope, f"is {end}", shown, line)
    member = v.MEMBER.match(name)
    if member:
        group = key(member["group"] or member["group2"] or "")
        return predicate(WORLD, f"in {group}", shown, line, members=group)
    rank = v.RANK_NAME.match(name)
    if rank is None or (rank["group"] and v.NO_RANK_OF_MINE.search(rank["group"])):
        return NOTHING
    if "index" in name:
        return rank_of("local" if name.startswith("local") else WORLD, shown, line)
    return rank_of(rank_scope(rank["group"] or rank["inside"]), shown, line)


def rank_of(scope: str, shown: str, line: int) -> Value:
    """Return the value of a rank in the group `scope`."""
    return Value(sources=(Source(Kind.RANK, Confidence.CERTAIN, shown, line, scope),), rank=scope)


def predicate(scope: str, test: str, shown: str, line: int, single: bool = False, members: str = "") -> Value:
    """Return the value of a test of the rank in `scope`; `single` and `members` as in `Atom`."""
    source = Source(Kind.RANK, Confidence.CERTAIN, shown, line, scope)
    return Value(sources=(source,), formula=Atom(f"rank of {scope} {test}", (source,), shown, single, members))
