"""Explains what a hung job leaves behind, what to switch on before, and what to fetch now (`genlock explain`).

Left out: reading it (`traces`), and what follows from it (`conformance`).
"""

from __future__ import annotations

from ..errors import UsageError

EVIDENCE = """\
What to have of a job that hangs, and how to get it. Put all of it into one folder and run `genlock replay FOLDER`:
each file is recognised by its content, logs, dumps and stacks may be mixed, packed or not, and nothing is executed.
`genlock collect` packs such a folder by itself, where the job still runs.

NOW, while it hangs (do not end the job yet): one command on each node, which leaves the job as it is
  genlock collect --out /shared/hang     Slurm: srun --jobid JOB --overlap --ntasks-per-node 1 genlock collect …
                                         Kubernetes: kubectl exec POD -- genlock collect --out /tmp; then kubectl cp
  genlock replay /shared/hang            the archives of all nodes together
It takes what there is of the following, and says what there is not. By hand:
  stacks   on each node, for each rank:  py-spy dump --pid PID > stack.rankR.txt      (twice, half a minute apart)
           the name must say the rank; with --native, which pauses the process, waits for the device show
  NCCL     2.24 and later, on one node:  ncclras -v; sleep 30; ncclras -v             (2.28.7 and later: -f json)
  dumps    torch 2.2: none before the time-out
           torch 2.3 and later, where TORCH_NCCL_DEBUG_INFO_PIPE_FILE=/tmp/fr_ was set and the recorder is on:
             echo 1 > /tmp/fr_RANK.pipe
           torch 2.4 and later, where TORCH_WORKER_SERVER_SOCKET was set and main() is under worker_main(): the handler
             dump_nccl_trace_pickle; from 2.6 on dump_nccl_trace_json; 2.13 has fr_trace_json, of any backend:
             curl -X POST --unix-socket SOCKET http://localhost/handler/fr_trace_json > trace_RANK.json
           torch 2.10 and later, where torch.distributed.debug.start_debug_server() was called, of rank 0:
             curl localhost:25999/fr_trace_json
  nothing was set: wait for the time-out instead of ending the job; it writes dumps, and lines that name the operation
  logs     of ALL nodes; whose lines are missing, nobody can clear
  nodes    dmesg -T | grep -iE 'xid|nvrm|oom'; ibstat; the scheduler's events

BEFORE the next run: Flight Recorder, a file a rank at the time-out
  torch 2.1 and earlier   there is none: log lines, py-spy and NCCL_DEBUG are all there is
  torch 2.2 to 2.6        TORCH_NCCL_TRACE_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1 TORCH_NCCL_ENABLE_TIMING=1
                          TORCH_NCCL_DEBUG_INFO_TEMP_FILE=/shared/$JOB/nccl_trace_rank_
  torch 2.7 to 2.10       the same; without the buffer's size no file is written, or one without entries
  torch 2.11 and later    on by default: TORCH_FR_DUMP_TEMP_FILE=/shared/$JOB/comm_lib_trace_rank_
                          TORCH_NCCL_ENABLE_TIMING=1, without which a device that never started cannot be told
  gloo, any backend       torch 2.8 and later: torch._C._distributed_c10d._dump_fr_trace()
  ended too early         torchrun ends ranks 30 s after the first; a dump takes up to 60 s: a longer grace (Kubernetes:
                          terminationGracePeriodSeconds 120), a shared folder, and no restart over the same names

BEFORE the next run: so that `genlock collect` finds all of it
  stacks                  pip install 'genlock[collect]' brings py-spy; in containers it needs CAP_SYS_PTRACE.
                          Without it: faulthandler.register(signal.SIGUSR1) in the program, its stderr in a file a rank,
                          and genlock collect --stack-signal SIGUSR1
  dumps, torch 2.3 on     TORCH_NCCL_DEBUG_INFO_PIPE_FILE=/tmp/fr_, and up to 2.10 TORCH_NCCL_TRACE_BUFFER_SIZE=2000
  a log a rank            torchrun --redirects 3 --log-dir logs: what goes into a pipe cannot be read afterwards

BEFORE the next run: logs that say more
  which rank wrote it     torchrun --redirects 3 --log-dir logs; srun -l; torch 2.2 and later writes [rankN]: by itself
  who is in which group   TORCH_CPP_LOG_LEVEL=INFO, once
  crashes                 PYTHONFAULTHANDLER=1
  unlike collectives      one short run with TORCH_DISTRIBUTED_DEBUG=DETAIL (slow), or
                          NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=INIT,COLL NCCL_DEBUG_FILE=/shared/%h.%p
  CUDA graphs             replays are in no counter: one run with --enforce-eager or --disable-cuda-graph

Or record it: `genlock record --out traces -- python train.py` writes each rank's operations as they happen, with no
time-out to wait for and no ring to overflow.
"""

TOPICS = {"evidence": EVIDENCE}


def explain(topic: str) -> str:
    """Return the text on a topic, or raise UsageError."""
    if topic not in TOPICS:
        raise UsageError(f"there is no topic `{topic}`", where="explain", do=f"choose one of {', '.join(TOPICS)}")
    return TOPICS[topic]
