"""Times a call of the video generator on one device, with its KV ring full.

    python bench/generator.py [--shape tiny|wan_14b] [--blocks 40] [--calls 5] [--format json]

`wan_14b` is 40 blocks of width 5120: 29 GB of bf16 weights, on a GPU or in memory; where there is less, one line says
so, and `--blocks` makes it smaller. Exit status 3 where it does not fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from statistics import median

LATENTS = {"tiny": (8, 12), "wan_14b": (60, 104)}
"""Rows and columns of a latent frame."""
TEXT_TOKENS = {"tiny": 16, "wan_14b": 512}
ROOM = 1.3
"""Memory of a call beside the weights, as a factor."""


def main() -> int:
    """Build it, if it fits, and time its calls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(LATENTS), default="tiny")
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    given = parser.parse_args()
    import torch
    from genlock.impl.video.config import tiny, wan_14b_shape, weight_table
    from genlock.impl.video.generator import Generator
    from genlock.impl.video.tensor_parallel import Solo

    config = tiny() if given.shape == "tiny" else wan_14b_shape()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    attention = config.attention if device.type == "cuda" else "flash"  # which has no room for all scores at once
    config = dataclasses.replace(config, blocks=given.blocks or config.blocks, attention=attention)
    weights = sum(math.prod(w.shape) for w in weight_table(config).values()) * config.torch_dtype.itemsize
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else available()
    if weights * ROOM > free:
        need = f"{config.blocks} blocks need {weights * ROOM / 1e9:.0f} GB"
        text = f"{need}, and {free / 1e9:.0f} GB are free on {device.type}; use --blocks with fewer"
        print(f"bench/generator.py: {text}", file=sys.stderr)
        return 3
    begin = time.perf_counter()
    comm = Solo()
    generator = Generator(config, comm, device=device)
    built = time.perf_counter() - begin
    latents = torch.randn(1, config.chunk_frames, config.latent_channels, *LATENTS[given.shape]).to(device)
    text_embeds = torch.randn(1, TEXT_TOKENS[given.shape], config.text_dim).to(device)
    times = []
    for number in range(math.ceil(config.cache_frames / config.chunk_frames) + given.calls):
        begin = time.perf_counter()
        comm.reset()
        out = generator(latents, 500, text_embeds, start_frame=number * config.chunk_frames)
        finite = bool(out.isfinite().all())  # which waits for the device
        times.append(time.perf_counter() - begin)
        generator.advance()
    result = {
        "shape": given.shape,
        "blocks": config.blocks,
        "width": config.width,
        "device": device.type,
        "weights_gb": weights / 1e9,
        "built_s": built,
        "call_ms": 1000 * median(times[-given.calls :]),
        "all_reduces": comm.observed,
        "finite": finite,
    }
    shown = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in result.items()
    )
    print(json.dumps(result) if given.format == "json" else shown)
    return 0 if finite else 1


def available() -> int:
    """Bytes of memory that Linux can give without swapping; all there is where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 2**63


if __name__ == "__main__":
    sys.exit(main())
