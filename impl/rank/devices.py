"""Says which GPU an NCCL rank uses, and how several ranks share one, by the documentation of torch and NCCL.

NCCL takes two ranks on one device for one rank that was started twice, unless each names a host of its own, and then
they may use nothing but sockets between them. Needs no torch. Left out: more nodes than one sharing a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

SHARED = {
    "NCCL_NET": "Socket",
    "NCCL_IB_DISABLE": "1",
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
    "NCCL_MNNVL_ENABLE": "0",
    "NCCL_NVLS_ENABLE": "0",
}
"""Sets the environment of every rank that shares a GPU, beside its own NCCL_HOSTID."""


def gpus() -> int:
    """Return how many GPUs CUDA's driver shows to this process; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    well = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if well else 0


def sharing(rank: int, ranks_here: int, devices: int) -> Mapping[str, str]:
    """Return what rank `rank` must have in its environment before NCCL starts.

    That is nothing where each of the `ranks_here` ranks of its node has one of the `devices` GPUs to itself.
    """
    return {**SHARED, "NCCL_HOSTID": f"rank{rank}"} if ranks_here > devices else {}
