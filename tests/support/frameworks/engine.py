"""vLLM's offline engine on CPU, two workers, a tiny random Llama; worker 1 does what the way says while it generates.

    python engine.py KIND WAY

The model is made in build/llama, unless it is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import engine_strikes

WAY, FOLDER = sys.argv[2], Path(__file__).parents[3] / "build"
REQUESTS = 6

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # for `arm`
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def make_model() -> str:
    """Return the folder of a tiny random Llama."""
    place = FOLDER / "llama"
    if not (place / "config.json").exists():
        from transformers import LlamaConfig, LlamaForCausalLM

        small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **small)).save_pretrained(place)
    return str(place)


def main() -> None:
    model = make_model()
    from vllm import LLM, SamplingParams

    engine = LLM(
        model, skip_tokenizer_init=True, tensor_parallel_size=2, dtype="float32", max_model_len=48,
        enforce_eager=True, distributed_executor_backend="mp", max_num_seqs=2,
    )  # fmt: skip
    if WAY != "ok":
        engine.collective_rpc(engine_strikes.arm, args=(WAY,))
    parameters = SamplingParams(max_tokens=8, detokenize=False)
    for _ in range(REQUESTS):
        engine.generate([{"prompt_token_ids": [1, 5, 6, 7]}], parameters, use_tqdm=False)
    print(f"DONE {time.time()}", flush=True)


if __name__ == "__main__":
    main()
