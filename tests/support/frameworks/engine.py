"""vLLM's offline engine on CPU, two workers, a tiny random Llama; worker 1 does what the way says while it generates.

    python engine.py KIND WAY

The model is made in build/llama, unless it is there. Strikes come from inside of the worker, at its fifth step.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

WAY, FOLDER = sys.argv[2], Path(__file__).parents[3] / "build"
BAD, AT, REQUESTS = 1, 5, 6

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # for `arm`
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "HF_HUB_OFFLINE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def arm(worker: Any, way: str, number: int, at: int) -> None:
    """Have one worker strike in a step to come."""
    if worker.rank != number:
        return
    import os
    import signal
    import time

    runner, steps = worker.model_runner, [0]
    run = runner.execute_model

    def execute_model(*given: Any, **named: Any) -> Any:
        steps[0] += 1
        if steps[0] == at:
            print(f"STRIKE {time.time()}", flush=True)
            if way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if way == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if way == "raise":
                raise ValueError("bad block")  # LINE raise
        return run(*given, **named)

    runner.execute_model = execute_model


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
        engine.collective_rpc(arm, args=(WAY, BAD, AT))
    parameters = SamplingParams(max_tokens=8, detokenize=False)
    for _ in range(REQUESTS):
        engine.generate([{"prompt_token_ids": [1, 5, 6, 7]}], parameters, use_tqdm=False)
    print(f"DONE {time.time()}", flush=True)


if __name__ == "__main__":
    main()
