"""The trainer class that arranges rows, keeps attention within them, and computes the loss where there is some."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from vlmtrain.masks import IGNORE_INDEX
from vlmtrain.speed.attention import packed_language_attention
from vlmtrain.speed.batches import BatchPlan, RowBatches
from vlmtrain.speed.checkpointing import LayerSwitches
from vlmtrain.speed.loss import keep_supervised, sum_of_losses
from vlmtrain.speed.timing import StepClock

__all__ = ["Arrangement", "Batch", "arrange_trainer"]

Batch = dict[str, Any]

_SUPERVISED = "supervised"
"""Name in a batch of what `keep_supervised` gives."""


class ScoreSupervised(Protocol):
    """A backend's way to the last hidden states of some positions, and the head that scores words."""

    def __call__(self, model: Any, inputs: Batch, positions: Any) -> tuple[Any, Any]:
        """`(B, K, H)` states and the head, or `(B, K, V)` scores and the identity."""


@dataclass(slots=True, kw_only=True)
class Arrangement:
    """How steps are run; what is None is left to the trainer."""

    plan: BatchPlan
    """Which rows go through together."""
    collate: Callable[[list[Batch]], Batch] | None = None
    """Rows to a batch in training, where it differs from evaluation."""
    add_vision_inputs: Callable[[Batch], Batch] | None = None
    """What `collate` adds to a batch for the vision tower, for parts of one."""
    score: ScoreSupervised | None = None
    """For the loss at supervised positions alone."""
    switches: LayerSwitches | None = None
    """Which layers are recomputed."""
    frozen: list[Any] = field(default_factory=list)
    """Layers that have no backward pass, and are never recomputed."""
    layers_may_idle: bool = True
    """Whether a trained layer may get no gradient in some pass, so that several processes must look for those."""

    @property
    def rows(self) -> int:
        """Rows of one forward pass on one device."""
        return self.plan.rows

    @property
    def passes(self) -> int:
        """Forward passes of one step on one device."""
        return self.plan.passes

    @property
    def packed(self) -> bool:
        """Whether rows come one after the other, without padding."""
        return self.plan.packed

    def set_recomputation(self) -> None:
        """Sets what each layer does; Unsloth resets them all whenever it changes between training and inference."""
        if self.switches is not None:
            self.switches.apply()
        for layer in self.frozen:
            layer.gradient_checkpointing = False

    def attention(self, model: Any, inputs: Batch) -> contextlib.AbstractContextManager[None]:
        """Within, forward and backward passes attend as the batch needs it."""
        if not self.packed:
            return contextlib.nullcontext()
        return packed_language_attention(model, inputs["position_ids"][0])

    def sum_of_losses(self, model: Any, inputs: Batch) -> tuple[torch.Tensor, int]:
        """The summed loss of a batch and the number of tokens that it is of; needs `score`."""
        assert self.score is not None
        inputs = self.find_supervised(inputs)
        positions, kept, targets = inputs[_SUPERVISED]
        seen = {name: value for name, value in inputs.items() if name not in ("labels", _SUPERVISED)}
        hidden, head = self.score(model, seen, positions)
        return sum_of_losses(hidden, head, kept, targets), len(targets)

    def find_supervised(self, inputs: Batch) -> Batch:
        """The batch with the positions that carry loss, where they are wanted and not in it already."""
        if self.score is None or _SUPERVISED in inputs:
            return inputs
        return inputs | {_SUPERVISED: keep_supervised(inputs["labels"])}


def arrange_trainer(base: type, arrangement: Arrangement) -> type:
    """Derives a trainer class.

    Args:
        base: trl's SFTTrainer, or Unsloth's.
        arrangement: How to run steps.
    """
    return type("ArrangedTrainer", (ArrangedSteps, base), {"arrangement": arrangement})


class ArrangedSteps:
    """What is put before a transformers Trainer: rows, loss and recomputation as arranged, and its steps timed."""

    arrangement: Arrangement
    args: Any
    accelerator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock = StepClock()
        if self.arrangement.score is not None:
            # so that nobody divides the loss a second time
            self.model_accepts_loss_kwargs = True

    @property
    def _base(self) -> Any:
        return super()

    def get_train_dataloader(self) -> Any:
        """Batches as planned."""
        workers = self.args.dataloader_num_workers
        # Not through accelerate, which would deal batches out by their number of rows: they are dealt out already.
        trainer: Any = self
        return DataLoader(
            trainer.train_dataset,
            batch_sampler=RowBatches(self.arrangement.plan, self.args.process_index),
            collate_fn=self.arrangement.collate or trainer.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *args: Any, **kwargs: Any) -> Any:
        """The forward passes of one step, and the supervised tokens of all of them on all devices.

        Counted here, as Unsloth gathers counts that are on the host still, which NCCL refuses. The tokens that the
        clock counts go along in the same exchange.
        """
        with self.clock.waiting():
            batches = list(itertools.islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        items = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
        counts = torch.tensor([[items, tokens]]).to(self.args.device, non_blocking=True)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts)
        items_of_all, tokens_of_all = counts.sum(0)
        self.clock.count_tokens(tokens_of_all)
        return batches, items_of_all

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The share of one forward pass in the step's loss; its own mean when it is evaluated alone."""
        if self.arrangement.score is None or return_outputs:
            return self._base.compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        total, tokens = self.arrangement.sum_of_losses(model, inputs)
        if num_items_in_batch is None:
            return total / tokens
        # gradients are averaged over processes, and the count is of all of them
        return total * self.accelerator.num_processes / num_items_in_batch

    def training_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """A forward and backward pass; recomputation in the latter needs the same attention as the former."""
        self.arrangement.set_recomputation()
        inputs = self.arrangement.find_supervised(inputs)
        with self.arrangement.attention(model, inputs):
            return self._base.training_step(model, inputs, *args, **kwargs)

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, torch.Tensor):
            # the host goes on while a batch is on its way
            return data.to(self.args.device, non_blocking=True)
        return self._base._prepare_input(data)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the time of the step to its line."""
        if "loss" in logs:
            logs = logs | self.clock.read()
            if torch.cuda.is_available():
                logs["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        self._base.log(logs, *args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        result = self._base._evaluate(*args, **kwargs)
        self.clock.restart()
        return result

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        result = self._base._save_checkpoint(*args, **kwargs)
        self.clock.restart()
        return result
