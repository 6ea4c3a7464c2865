"""A small causal language model over several ranks, served by Genlock: a generator that has nothing to do with video.

    torchrun --nproc-per-node 2 examples/language_model.py out/words [gloo|nccl]
    genlock replay out/words

The model knows nothing of Genlock. What serving it takes is below the line, in `build` and `converse`. A chunk is a few
tokens: `conditioning_embeds` is the prompt, which rank0 alone can read; `latents` the noise of sampling, so that no
rank draws random numbers; a step is a token; `current_start_frame` counts tokens in the cache. Its weights are random,
and so is what it says.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from genlock.impl.chunk.parity import Posture
from genlock.impl.rank.serve import Driver, RankModel, chunk_fields, serve
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, BYTES, NEAR = 96, 6, 3, 256, 32
PROMPTS = ("once upon a time", "and then")


class Layer(nn.Module):
    """Attention and FFN of this rank's heads and columns; two all-reduces."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        rank, world = group.rank(), group.size()
        qkv = torch.randn(3, WIDTH, WIDTH).chunk(world, 1)[rank].flatten(0, 1)
        up = torch.randn(4 * WIDTH, WIDTH).chunk(world, 0)[rank]
        self.group, self.heads = group, HEADS // world
        self.qkv, self.up = nn.Parameter(qkv / WIDTH**0.5), nn.Parameter(up / WIDTH**0.5)
        self.out = nn.Parameter(torch.randn(WIDTH, WIDTH).chunk(world, 1)[rank] / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(WIDTH, 4 * WIDTH).chunk(world, 1)[rank] / WIDTH)
        self.cache = torch.empty(2, self.heads, 0, WIDTH // HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(F.layer_norm(x, (WIDTH,)), self.qkv).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        self.cache = torch.cat([self.cache, torch.stack([k, v])], 2)
        every = self.cache.shape[2]
        distance = torch.arange(every) - torch.arange(every - len(x), every)[:, None]
        bias = torch.where(distance > 0, -torch.inf, distance / NEAR)
        attended = F.scaled_dot_product_attention(q, self.cache[0], self.cache[1], bias).transpose(0, 1).flatten(1)
        x = x + self._sum(F.linear(attended, self.out))
        return x + self._sum(F.linear(F.gelu(F.linear(F.layer_norm(x, (WIDTH,)), self.up)), self.down))

    def _sum(self, x: Tensor) -> Tensor:
        dist.all_reduce(x, group=self.group)
        return x


class LanguageModel(nn.Module):
    """Bytes in, the next byte out."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(BYTES, WIDTH))
        self.stack = [Layer(group) for _ in range(LAYERS)]
        self.layers = nn.ModuleList(self.stack)  # which makes their weights those of the model
        self.start, self.last = 0, torch.tensor(0)

    def indices(self) -> tuple[int, int, int]:
        """Where the chunk began, and tokens in the cache: as none is ever evicted, that is where the next one goes."""
        tokens = self.stack[0].cache.shape[2]
        return self.start, tokens, tokens

    def forget(self) -> None:
        for layer in self.stack:
            layer.cache = layer.cache[:, :, :0]

    def again(self) -> Tensor:
        """The last byte, as input."""
        return self.table[self.last][None]

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        for layer in self.stack:
            x = layer(x)
        self.last = (F.linear(F.layer_norm(x[-1], (WIDTH,)), self.table) / 40 + noise).argmax()
        return self.last


# ── all that serving it takes ───────────────────────────────────────────────────────────────────────


def build(group: dist.ProcessGroup, device: torch.device) -> RankModel:
    torch.set_default_device(device)
    model = LanguageModel(group).requires_grad_(False)

    def chunk(fields: Mapping[str, Any]) -> Generator[None, None, Tensor]:
        if fields["init_cache"]:
            model.forget()
        model.start, said = fields["current_start_frame"], []
        x = fields["conditioning_embeds"][0].float() if fields["conditioning_embeds_updated"] else model.again()
        for noise in fields["latents"][0].float():
            said.append(model(x, noise))
            x = model.again()
            yield
        return torch.stack(said)

    posture = Posture(
        dtype="float32", attention_backend="math", kv_bias_backend="math", compile="off", recompute_schedule="never"
    )
    shard, replica = dict(model.layers.named_parameters()), {"table": model.table}
    return RankModel(chunk=chunk, indices=model.indices, posture=posture, shard=shard, replica=replica)


def converse(driver: Driver) -> None:
    encode, steps, tokens = nn.Embedding(BYTES, WIDTH, dtype=torch.bfloat16).requires_grad_(False), torch.arange(8), 0
    nobody = encode(torch.zeros(1, 4).long())
    driver.warm_up(chunk_fields(torch.zeros(1, 8, BYTES).bfloat16(), steps, nobody, 0, updated=True))
    for prompt, new in ((prompt, new) for prompt in PROMPTS for new in (True, False)):
        ids, noise = torch.tensor([list(prompt.encode())]), -torch.empty(1, 8, BYTES).exponential_().log()
        said = driver.chunk(chunk_fields(noise.bfloat16(), steps, encode(ids), tokens, updated=new))
        print(prompt if new else "", bytes(said.tolist()), flush=True)
        tokens += len(steps) + (ids.shape[1] - 1 if new else 0)


if __name__ == "__main__":
    sys.exit(serve(build, converse, out=sys.argv[1], backend="".join(sys.argv[2:3]) or "gloo"))
