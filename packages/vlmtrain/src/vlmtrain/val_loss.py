"""The evaluation loss: the mean over all supervised tokens of the val sample, however it is cut into batches."""

from __future__ import annotations

from typing import Any

from vlmtrain.masks import IGNORE_INDEX
from vlmtrain.processes import gather, process_count, process_index

__all__ = ["measure_loss", "with_token_mean_loss"]


def measure_loss(trainer: Any) -> float:
    """The loss of a trainer's model on its evaluation rows, each process its share of them.

    transformers takes the mean of the batches' means, in which a token of a short answer weighs more, and of several
    processes counts the rows that fill the last batch twice.

    Args:
        trainer: Whose model, collator and precision to use.
    """
    import torch

    arguments = trainer.args
    rows = trainer.eval_dataset.select(range(process_index(), len(trainer.eval_dataset), process_count()))
    loader = torch.utils.data.DataLoader(
        rows,
        batch_size=arguments.per_device_eval_batch_size,
        collate_fn=trainer.data_collator,
        num_workers=arguments.dataloader_num_workers,
    )
    trainer.model.eval()
    total, tokens = 0.0, 0
    across_devices = arguments.average_tokens_across_devices
    # the processes' numbers of batches differ: nothing may be exchanged between two of them
    arguments.average_tokens_across_devices = False
    try:
        for batch in loader:
            count = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            loss, _, _ = trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
            total += float(loss) * count
            tokens += count
    finally:
        arguments.average_tokens_across_devices = across_devices
    sums = gather((total, tokens))
    return sum(part for part, _ in sums) / max(sum(part for _, part in sums), 1)


def with_token_mean_loss(base: type) -> type:
    """A trainer that evaluates by `measure_loss`.

    Args:
        base: A transformers Trainer.
    """
    from transformers.trainer_utils import EvalLoopOutput

    class TokenMeanTrainer(base):  # type: ignore[misc]  # its class is known when it runs
        """Puts the loss where transformers puts its own."""

        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            """The loss of all evaluation rows, and no predictions."""
            metrics = {"eval_loss": measure_loss(self)}
            return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(self.eval_dataset))

    return TokenMeanTrainer
