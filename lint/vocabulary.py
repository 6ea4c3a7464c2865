"""Lists the names that mean something to the linter: collectives, what differs between ranks, what makes it agree.

Everything that is known about torch.distributed and the libraries on it stands here, as literals.
Left out: which group a name speaks of (`groups`).
"""

from __future__ import annotations

import re


def words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


# --- collectives ---

COLLECTIVES = words(
    """all_reduce allreduce all_reduce_coalesced allreduce_coalesced all_gather allgather all_gather_coalesced
    all_gather_into_tensor _all_gather_base all_gather_tensor all_gather_object allgather_fn reduce_scatter
    reduce_scatter_tensor _reduce_scatter_base reduce_scatter_fn all_to_all all_to_all_single alltoall broadcast
    broadcast_object_list broadcast_coalesced bcast gather gather_object scatter scatter_object_list reduce barrier
    monitored_barrier all_reduce_tensor allgather_object broadcast_object all_gather_into_tensor_coalesced
    reduce_scatter_tensor_coalesced inference_all_reduce"""
)
"""Functions of a module of collectives, and methods of a process group."""
MPI_COLLECTIVES = words(
    "Barrier barrier Bcast bcast Allreduce allreduce Allgather allgather Reduce Gather Scatter Alltoall"
)
UNMISTAKABLE = words(
    """all_gather_object broadcast_object_list monitored_barrier all_gather_into_tensor reduce_scatter_tensor
    all_to_all_single wait_for_everyone gather_for_metrics reduce_boolean_decision sync_global_devices
    scatter_object_list"""
)
"""Names that are collectives whatever stands before the dot."""
GROUP_CREATION = words("new_group new_subgroups new_subgroups_by_enumeration split_group init_device_mesh DeviceMesh")
METHODS = {
    "accelerator": words(
        """wait_for_everyone gather gather_for_metrics reduce pad_across_processes save_state load_state
        get_state_dict set_trigger check_trigger"""
    ),
    "strategy": words("barrier broadcast all_gather all_reduce reduce reduce_boolean_decision"),
    "fabric": words("barrier broadcast all_gather all_reduce save load"),
    "trainer": frozenset(["save_checkpoint"]),
    "engine": words("save_checkpoint load_checkpoint save_16bit_model save_fp16_model"),
    "dcp": words("save load async_save"),
    "dist_cp": words("save load async_save save_state_dict load_state_dict"),
    "hvd": COLLECTIVES,
}
"""Receiver, by the end of its name → methods that every rank must call."""
FUNCTIONS = {
    "accelerate.utils": words(
        "gather gather_object broadcast broadcast_object_list reduce pad_across_processes wait_for_everyone"
    ),
    "torch.distributed.checkpoint": words("save load async_save save_state_dict load_state_dict"),
    "torch.distributed.checkpoint.state_dict": words(
        """get_model_state_dict get_optimizer_state_dict get_state_dict set_model_state_dict
        set_optimizer_state_dict set_state_dict"""
    ),
    "jax.experimental.multihost_utils": words("sync_global_devices broadcast_one_to_all process_allgather"),
}
"""Module, once imports are followed → functions that every rank must call."""
PROPERTIES = frozenset(["progress_bar_metrics", "callback_metrics", "logged_metrics"])
"""Properties of a Lightning trainer that reduce metrics over all ranks when they are read."""
SAVES = words(
    """save_state load_state get_state_dict save_checkpoint load_checkpoint save_16bit_model save_fp16_model save load
    async_save save_state_dict load_state_dict get_model_state_dict get_optimizer_state_dict set_model_state_dict
    set_optimizer_state_dict set_state_dict progress_bar_metrics callback_metrics
    logged_metrics"""
)
"""Calls that hide a collective behind a harmless name."""
SHARDERS = frozenset(["FSDP", "FullyShardedDataParallel", "fully_shard"])
"""Makers of modules whose forward gathers parameters."""

MODULES_OF_COLLECTIVES = words(
    """distributed dist comm c10d distributed_c10d _functional_collectives funcol ft_c torch_dist tdist fs_dist
    collectives torch_distributed hvd"""
)
"""Last part of what stands before the dot."""
OF_ONE_PROCESS = ("torch.nn.parallel.comm", "torch.cuda.comm", "torch.cuda.nccl", "torch._C")
"""Modules with functions of such names among the devices of one process."""
GROUP_RECEIVER = re.compile(r"(^|[._])(pg|process_group|\w*_group|communicator|\w*_comm|comm|COMM_WORLD)(\(\))?$")
"""Receivers whose methods are collectives: process groups, coordinators, MPI communicators."""

# --- what makes ranks agree ---

AGREEING = frozenset(COLLECTIVES - {"reduce", "gather", "scatter", "all_to_all", "all_to_all_single", "alltoall"}) - {
    "reduce_scatter",
    "reduce_scatter_tensor",
    "barrier",
}
"""Collectives after which their result, or their first argument, is the same on every rank."""
AGREEING_NAME = re.compile(
    r"all_?reduce|broadcast|bcast|all_?gather|reduce_boolean|consensus|agree|synchronize_|sync_across|gather_object"
    r"|gather_for_metrics|check_trigger|reduce_max|reduce_min|global_(max|min|sum)"
)
"""Names of helpers that do the same, where their source is not at hand."""

# --- what differs between ranks ---

RANK_NAME = re.compile(r"^_*((?P<group>\w+?)_)?rank(_id)?(_in_(?P<inside>\w+))?$|^process_index$|^local_process_index$")
NO_RANK_OF_MINE = re.compile(
    r"(^|_)(src|dst|dest|source|target|root|peer|next|prev|from|to|lora|low|matrix|max|min|num|other|recv|send|first|last"
    r"|input|main|master|leader|default|each|every|sender|receiver|neighbor|rope|start|end|per|param|eff|full|new|old"
    r"|tensor|split|on|stage_to|r|by|get_r|bm25|mean|percentile|initial|init|modifier|driver|owner|expected|base|re|high|is)$"
)
"""Words before `_rank` that make it the rank of somebody else, or of a matrix."""
MAIN_PROCESS = re.compile(
    r"^_*(is|am|i_am)_*(the_)?(main|master|primary|leader|chief|coordinator|root|global_zero|rank_?(zero|0)"
    r"|global_rank_?(zero|0)|global_master|world_master|main_rank|log_rank|driver_rank)(_process|_rank|_worker|_node)?$"
    r"|^is_(world_process_zero|world_master|first_rank|rank_zero|rank0|distributed_master|master_node)$"
)
LOCAL_MAIN = re.compile(r"^is_(local_(main|master)(_process)?|local_process_zero|local_rank_?(zero|0)|node_master)$")
STAGE = re.compile(
    r"^is_(?P<group>\w*?)_?(?P<end>first|last)_(stage|rank)(_in_\w+)?$|^is_(?P<end2>first|last)_(?P<group2>pp|pipeline)_"
    r"(stage|rank)$|^has_(?P<end3>first|last)_stage$"
)
MEMBER = re.compile(r"^is_rank_in_(?P<group>\w+?)(_group)?$|^is_in_(?P<group2>\w+?)_group$")
PROGRESS_BAR = re.compile(r"progress|pbar|tqdm", re.IGNORECASE)
SHOWN = words("is_enabled is_disabled disable disabled")
"""Names of a progress bar, which one rank alone shows."""
RANK_VARIABLES = {
    "RANK": "world",
    "LOCAL_RANK": "local",
    "GROUP_RANK": "node",
    "NODE_RANK": "node",
    "SLURM_PROCID": "world",
    "SLURM_LOCALID": "local",
    "SLURM_NODEID": "node",
    "OMPI_COMM_WORLD_RANK": "world",
    "OMPI_COMM_WORLD_LOCAL_RANK": "local",
    "PMI_RANK": "world",
    "PMIX_RANK": "world",
    "MV2_COMM_WORLD_RANK": "world",
    "ROLE_RANK": "world",
}
HOST_CALLS = frozenset(["gethostname", "getfqdn", "getpid", "gethostbyname", "uuid4", "uuid1"])
CLOCKS = words(
    """time.time time.monotonic time.perf_counter time.process_time time.time_ns timeit.default_timer
    datetime.now datetime.utcnow datetime.datetime.now datetime.datetime.utcnow date.today"""
)
FILE_CALLS = words(
    """os.path.exists os.path.isfile os.path.isdir os.path.lexists os.path.getmtime os.path.getsize os.listdir
    os.scandir os.access os.stat glob.glob glob.iglob shutil.disk_usage path.exists path.isfile path.isdir
    exists isfile isdir listdir getmtime g_pathmgr.exists PathManager.exists"""
)
FILE_METHODS = words("exists is_file is_dir iterdir rglob")
KIND_OF_PATH = words("isfile isdir is_file is_dir")
FOLDER_ORDER = words("listdir scandir glob iglob iterdir rglob")
QUEUE_METHODS = words("empty qsize full get_nowait")
MEMORY_CALLS = words(
    """mem_get_info memory_allocated max_memory_allocated memory_reserved max_memory_reserved virtual_memory
    memory_stats memory_usage"""
)
LOCAL_VALUES = words("isnan isinf isfinite")
"""Tests of a tensor that is local unless something made it agree."""
SIZES = words("numel nelement data_ptr")
LOADER_NAME = re.compile(r"(data_?)?loader$|data_?iter(ator)?$|^batches$|_dl$")

# --- what code does not differ by ---

ALONE = re.compile(r"(^|_)(world_size|num_processes|nranks|n_ranks|num_ranks|n_gpus?|num_gpus|nprocs|size)(\(\))?$")
"""Counts of ranks: at 1, there is nobody to strand."""
COUNT_OF_RANKS = re.compile(r"(^|_)(world_size|num_processes|nranks|n_ranks|num_ranks|nprocs)$")
DISTRIBUTED = re.compile(
    r"^(is_initialized|is_available|is_distributed|is_dist|is_dist_avail_and_initialized|distributed|use_ddp"
    r"|is_torch_dist_initialized|is_distributed_initialized|has_initialized|model_parallel_is_initialized"
    r"|use_distributed|dist_initialized|is_dist_initialized|multi_gpu|torch_distributed_is_initialized)$"
)
RANK_ZERO_ONLY = re.compile(
    r"^(rank_zero_only|rank_zero_experiment|rank0_only|rank_0_only|on_main_process|on_local_main_process|master_only"
    r"|main_process_only|only_main_process|only_rank_zero|is_master_process|master_process_only|main_only"
    r"|run_on_rank_?(0|zero)|on_process|on_last_process|on_local_process|primary_rank_only|zero_rank_only)$"
)
PASS_THROUGH = words(
    """int float bool str abs len min max sum any all round tuple list sorted reversed range enumerate zip next iter
    tensor as_tensor Tensor LongTensor IntTensor full item tolist cpu cuda to long bool_ strip lower upper clone detach
    map filter repr Path getenv get"""
)
"""Calls whose result differs between ranks where their arguments or receiver do."""
RISKY = words(
    """open load load_state_dict read read_text read_bytes write write_text mkdir makedirs copy copytree copyfile
    copy2 move remove unlink rename replace rmtree symlink connect request urlopen download snapshot_download
    hf_hub_download from_pretrained save savez safe_open load_file save_file loads run check_call check_output
    Popen"""
)
"""Calls that fail on one rank alone: files, networks, programs."""
RISKY_ANYWHERE = words(
    """open read_text read_bytes write_text mkdir makedirs copytree copyfile unlink rename rmtree symlink urlopen
    snapshot_download hf_hub_download from_pretrained safe_open load_file save_file check_call check_output
    Popen"""
)
"""Those of them that are so whatever stands before the dot."""
RISKY_MODULES = words("torch json pickle np numpy os shutil yaml requests subprocess")
BROAD = words(
    """Exception BaseException OSError IOError FileNotFoundError RuntimeError ConnectionError TimeoutError EOFError
    PermissionError FileExistsError"""
)
EXITS = frozenset(["sys.exit", "os._exit", "exit", "quit", "os.abort"])
THREADS = frozenset(["Thread", "Timer", "submit", "run_in_executor", "start_new_thread"])
CALLBACKS = frozenset(["signal", "finalize"])
COMMON_METHODS = words(
    """get set add pop put close open read write run call step forward backward save load update reset start stop
    init setup build process apply send recv join append extend remove clear copy keys values items to cpu cuda eval
    train format split strip encode decode log info debug warning error __init__ __call__ state_dict load_state_dict
    parse register create wait flush result submit execute main"""
)
"""Methods of so many classes that the name alone does not tell which."""
