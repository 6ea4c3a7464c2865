"""Keeps two tensors of a chunk beyond the moment in which they were received, each by a rule of its own.

The override lives for one reader. The conditioning lives until the next one of a newer epoch. Whatever else a
generator needs is handed to it as a direct argument, call by call, so that nothing stale can be found anywhere.
"""

from __future__ import annotations

import torch

from ...errors import Code, ContractViolation
from . import digest

PARTS = 8
"""One part in so many of the held conditioning is looked at in each chunk that relies on it."""


class Override:
    """Holds `context_frames_override` for one reader: reading empties it, whatever becomes of the chunk."""

    def __init__(self) -> None:
        self._tensor: torch.Tensor | None = None

    @property
    def full(self) -> bool:
        return self._tensor is not None

    def put(self, tensor: torch.Tensor | None) -> None:
        """Fill the slot, or leave it empty. Raises ContractViolation where nobody has read the last one."""
        if self.full:
            raise ContractViolation(
                "the override of an earlier chunk is still there",
                where="context_frames_override",
                do="clear it when it is read",
                code=Code.OVERRIDE,
                field="context_frames_override",
            )
        self._tensor = tensor

    def take(self, recompute: bool) -> torch.Tensor | None:
        """Return the override, which is gone from here. Raises ContractViolation unless it is there iff `recompute`."""
        tensor, self._tensor = self._tensor, None
        if (tensor is not None) != recompute:
            text = "there is none, and there is no fallback" if recompute else "it is there, and nobody asked for it"
            name = "context_frames_override"
            text = f"tp_do_kv_recompute is {recompute}: {text}"
            raise ContractViolation(text, where=name, code=Code.OVERRIDE, field=name)
        return tensor


class Conditioning:
    """Holds the conditioning of the current epoch, for the chunks of optimize mode that carry none."""

    def __init__(self) -> None:
        self.epoch = 0
        self._tensor: torch.Tensor | None = None
        self._parts: list[tuple[torch.Tensor, int]] = []
        """Views of it, and the digest that each had."""

    def adopt(self, epoch: int | None, tensor: torch.Tensor | None) -> None:
        """Keep a copy of what a committed chunk brought. In bring-up mode (`epoch` None) nothing is kept."""
        if epoch is None or tensor is None:
            return
        # of its own: the tensor is a view of a payload that is let go
        self.epoch, self._tensor = epoch, tensor.clone(memory_format=torch.contiguous_format)
        self._parts = [(part, digest.of_tensor(part)) for part in self._tensor.view(-1).chunk(PARTS)]

    def of(self, epoch: int) -> torch.Tensor:
        """Return the conditioning of `epoch`. Raises ContractViolation where another is held: there is no fallback."""
        if self._tensor is None or epoch != self.epoch:
            raise ContractViolation(
                f"the chunk goes by conditioning_epoch {epoch}, and {self.epoch} is held here",
                where="conditioning_embeds",
                do="send it with a new epoch",
                code=Code.CONDITIONING,
                field="conditioning_embeds",
            )
        return self._tensor

    def damage(self, turn: int) -> str | None:
        """Return what is wrong with what is held; None where it is what was received.

        One part of it is looked at in each turn, so that all of it is in PARTS turns in a row.
        """
        if self._tensor is None:
            return None
        at = turn % len(self._parts)
        part, was = self._parts[at]
        now = digest.of_tensor(part)
        if now == was:
            return None
        return (
            f"`conditioning_embeds`, held since conditioning_epoch {self.epoch}, has digest {digest.to_hex(now)} "
            f"in part {at + 1} of {len(self._parts)}, but {digest.to_hex(was)} was received: something wrote into it"
        )
