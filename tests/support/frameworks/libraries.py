"""Training libraries: accelerate, the Trainer of transformers, Lightning, DeepSpeed, Megatron-Core."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import way

rank = int(os.environ["RANK"])
RUNS = {}


def of(kind: str) -> Any:
    def keep(run: Any) -> Any:
        RUNS[kind] = run
        return run

    return keep


def wrong(step: int) -> bool:
    """Do what is wrong in this step; True where the step is left out."""
    import torch
    import torch.distributed as dist

    way.end(rank, step)
    if way.strikes(rank, step, "raise"):
        raise ValueError("bad sample")  # LINE raise
    if way.strikes(rank, step, "extra"):
        dist.barrier()  # LINE extra
    if way.strikes(rank, step, "other"):
        dist.broadcast(torch.ones(3), way.BAD)  # LINE other
    return way.strikes(rank, step, "skip", "other")


@of("accelerate")
def accelerate() -> None:
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    data = DataLoader(TensorDataset(torch.randn(4 * 3 * way.STEPS, 8)), batch_size=4)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    for step, (x,) in enumerate(data):
        if way.strikes(rank, step, "uneven"):
            break
        if wrong(step):
            continue
        loss = model(x).square().mean()  # LINE step
        accelerator.backward(loss)  # LINE step
        optimizer.step()
        optimizer.zero_grad()
        accelerator.gather_for_metrics(loss.detach())  # LINE step
    accelerator.wait_for_everyone()  # LINE step
    accelerator.end_training()


@of("trainer")
def trainer() -> None:
    import torch
    from torch.utils.data import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Data(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 64

        def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
            x = torch.randint(0, 64, (8,), generator=torch.Generator().manual_seed(at))
            return {"input_ids": x, "labels": x}

    class Strike(TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            wrong(state.global_step)
            if way.strikes(rank, state.global_step, "uneven", "skip"):
                control.should_training_stop = True  # LINE step

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **small))
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=2, max_steps=way.STEPS, logging_steps=2,
        save_strategy="no", use_cpu=True, report_to=[], disable_tqdm=True, ddp_backend="gloo",
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=Data(), callbacks=[Strike()]).train()  # LINE step


@of("lightning")
def lightning() -> None:
    import lightning
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 1)

        def training_step(self, batch: Any, step: int) -> Any:
            if wrong(step) or way.strikes(rank, step, "uneven"):
                return None  # LINE step
            loss = self.layer(batch[0]).square().mean()
            self.log("loss", loss, sync_dist=True)  # LINE step
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    data = DataLoader(TensorDataset(torch.randn(4 * 3 * way.STEPS, 8)), batch_size=4)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    fit = lightning.Trainer(
        accelerator="cpu", devices=3, strategy="ddp", max_epochs=1, enable_model_summary=False, **settings
    )
    fit.fit(Module(), data)  # LINE step


@of("deepspeed")
def deepspeed() -> None:
    import deepspeed
    import torch

    deepspeed.init_distributed("gloo")
    model = torch.nn.Linear(8, 1)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "SGD", "params": {"lr": 0.01}},
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    del config["optimizer"]
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for step in range(way.STEPS):
        if way.strikes(rank, step, "uneven"):
            break
        if wrong(step):
            continue
        loss = engine(torch.randn(4, 8)).square().mean()
        engine.backward(loss)  # LINE step
        engine.step()  # LINE step
    torch.distributed.barrier()  # LINE step
    torch.distributed.destroy_process_group()


@of("megatron")
def megatron() -> None:
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.model_parallel_config import ModelParallelConfig

    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=dist.get_world_size())
    config = ModelParallelConfig(
        tensor_model_parallel_size=dist.get_world_size(), use_cpu_initialization=True, perform_initialization=True
    )
    column = tensor_parallel.ColumnParallelLinear(
        12, 24, config=config, init_method=torch.nn.init.xavier_normal_, bias=False, gather_output=False
    )
    row = tensor_parallel.RowParallelLinear(
        24, 12, config=config, init_method=torch.nn.init.xavier_normal_, bias=False, input_is_parallel=True,
        skip_bias_add=False,
    )  # fmt: skip
    for step in range(way.STEPS):
        if way.strikes(rank, step, "uneven"):
            break
        if wrong(step):
            continue
        y, _ = row(column(torch.randn(4, 12, requires_grad=True))[0])  # LINE step
        y.square().mean().backward()  # LINE step
    dist.barrier()  # LINE step
    dist.destroy_process_group()


if __name__ == "__main__":
    RUNS[way.KIND]()
