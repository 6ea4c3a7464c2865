"""The types of the public names, which `__init__.py` imports when they are first used."""

from .api import as_json as as_json
from .api import as_text as as_text
from .api import check as check
from .api import diagnose as diagnose
from .api import load_protocol as load_protocol
from .api import load_traces as load_traces
from .api import replay as replay
from .conformance.diagnosis import Diagnosis as Diagnosis
from .conformance.diagnosis import Divergence as Divergence
from .errors import ContractViolation as ContractViolation
from .errors import Exit as Exit
from .errors import GenlockError as GenlockError
from .errors import ModelError as ModelError
from .errors import Refused as Refused
from .errors import UnreadableInput as UnreadableInput
from .errors import UsageError as UsageError
from .impl.chunk.parity import Posture as Posture
from .impl.chunk.schema import Mode as Mode
from .impl.rank.operation_beats import guard as guard
from .impl.rank.serve import Driver as Driver
from .impl.rank.serve import RankModel as RankModel
from .impl.rank.serve import chunk_fields as chunk_fields
from .impl.rank.serve import serve as serve
from .impl.recording.channel import Channel as Channel
from .impl.recording.channel import channel as channel
from .impl.recording.precheck import agree as agree
from .impl.recording.precheck import precheck as precheck
from .model.checker.report import Report as Report
from .model.claims import Fair as Fair
from .model.claims import Invariant as Invariant
from .model.claims import LeadsTo as LeadsTo
from .model.claims import Sometimes as Sometimes
from .model.semantics.run import Counterexample as Counterexample
from .model.semantics.run import Stuck as Stuck
from .model.semantics.run import TraceStep as TraceStep
from .model.semantics.whole import Whole as Whole
from .model.tables.collectives import Collective as Collective
from .model.tables.collectives import Group as Group
from .model.tables.collectives import Kind as Kind
from .model.tables.collectives import any_of as any_of
from .model.tables.collectives import each as each
from .model.tables.collectives import least as least
from .model.tables.collectives import mesh as mesh
from .model.tables.collectives import most as most
from .model.tables.collectives import total as total
from .model.tables.protocol import Protocol as Protocol
from .model.tables.roles import By as By
from .model.tables.roles import Role as Role
from .model.tables.roles import Row as Row
from .model.tables.roles import State as State
from .model.tables.scope import Scope as Scope
from .model.tables.scope import everyone as everyone
from .model.tables.shared import Cell as Cell
from .model.tables.shared import Fifo as Fifo
from .model.tables.shared import Link as Link
from .model.tables.shared import Meet as Meet
from .model.tables.shared import Poll as Poll
from .model.tables.shared import Post as Post
from .model.tables.shared import Put as Put
from .model.tables.shared import Receive as Receive
from .model.tables.shared import See as See
from .model.tables.shared import Send as Send
from .model.tables.shared import Sent as Sent
from .model.tables.shared import Set as Set
from .model.tables.shared import Slot as Slot
from .model.tables.shared import Take as Take
from .model.tables.shared import is_empty as is_empty
from .model.tables.shared import is_there as is_there
from .traces.collectives import Recording as Recording
from .traces.format import Trace as Trace

__version__: str
__all__ = [  # noqa: RUF022  # in the order of the manual
    "check",
    "Report",
    "Counterexample",
    "TraceStep",
    "Stuck",
    "replay",
    "load_traces",
    "diagnose",
    "Diagnosis",
    "Divergence",
    "Trace",
    "Recording",
    "as_text",
    "as_json",
    "load_protocol",
    "Protocol",
    "Role",
    "State",
    "Row",
    "By",
    "Scope",
    "Collective",
    "Kind",
    "Slot",
    "Put",
    "Take",
    "Meet",
    "Group",
    "mesh",
    "everyone",
    "Fifo",
    "Cell",
    "Link",
    "Poll",
    "Set",
    "See",
    "Send",
    "Receive",
    "Post",
    "Sent",
    "is_empty",
    "is_there",
    "total",
    "least",
    "most",
    "any_of",
    "each",
    "Invariant",
    "Sometimes",
    "LeadsTo",
    "Fair",
    "Whole",
    "channel",
    "Channel",
    "precheck",
    "agree",
    "guard",
    "serve",
    "RankModel",
    "Driver",
    "chunk_fields",
    "Posture",
    "Mode",
    "GenlockError",
    "UsageError",
    "UnreadableInput",
    "ModelError",
    "Refused",
    "ContractViolation",
    "Exit",
]
