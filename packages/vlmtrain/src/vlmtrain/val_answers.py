"""Answers to a fixed sample of held-out rows in the middle of training, and their scores."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmdata.shards import Split
from vlmtrain.backends import Backend
from vlmtrain.chat import ChatFormat
from vlmtrain.held_out import EvalRow, Questions, answer_limit, read_eval_rows
from vlmtrain.inference import AnsweringModel
from vlmtrain.loaded import LoadedModel
from vlmtrain.metrics import find_metrics
from vlmtrain.processes import gather, is_main_process, process_count, process_index

__all__ = ["ValAnswers", "with_answer_metrics"]


class ValAnswers:
    """Answers the same rows at each evaluation, each process its share of them.

    Args:
        backend: Switches the model between training and generation.
        loaded: The model that is trained.
        chat: Its chat format.
        split: The rows are from here.
        samples: Most rows, drawn by the seed.
        seed: Of the draw.
        metrics: Names of `vlmtrain.metrics.METRICS`.
        batch_size: Rows answered at once.
        log: JSON-lines file that gets a line for each answer.
    """

    def __init__(
        self,
        backend: Backend,
        loaded: LoadedModel,
        chat: ChatFormat,
        split: Split,
        *,
        samples: int,
        seed: int,
        metrics: Sequence[str],
        batch_size: int,
        log: Path,
    ) -> None:
        self.rows = read_eval_rows(split, limit=samples, seed=seed)
        self._model = AnsweringModel(loaded=loaded, backend=backend, chat=chat)
        self._metrics = find_metrics(metrics)
        self._batch_size = batch_size
        self._log = log
        self._limit = answer_limit(self._model, self.rows)
        own = self.rows[process_index() :: process_count()]
        self._questions = Questions(split, own) if own else None

    def answer(self, step: int) -> list[str]:
        """Answers the sample with the weights as they are, and puts the answers into the log.

        Neither the random numbers of training nor its mode are disturbed.

        Args:
            step: Optimizer step, for the log.

        Returns:
            One answer a row, in every process those of all.
        """
        shares = gather(self._answer_own())
        answers = [shares[row % len(shares)][row // len(shares)] for row in range(len(self.rows))]
        if is_main_process():
            with self._log.open("a", encoding="utf-8") as file:
                for row, answer in zip(self.rows, answers, strict=True):
                    file.write(json.dumps(_describe(step, row, answer), ensure_ascii=False) + "\n")
        return answers

    def answer_result(self, step: int) -> None:
        """Answers the sample once, when training is over; the log holds nothing else then.

        Args:
            step: Of the checkpoint that became the result.
        """
        if is_main_process():
            self._log.unlink(missing_ok=True)
        self.answer(step)

    def score(self, step: int) -> dict[str, float]:
        """Answers and scores; the keys are those of a trainer's evaluation: `eval_exact_match`."""
        started = time.monotonic()
        answers = self.answer(step)
        references = [row.references for row in self.rows]
        scores: dict[str, float] = {}
        for name, metric in self._metrics.items():
            counts = metric.counts(answers, references)
            scores[f"eval_{name}"] = float(metric.combine(counts.sum(axis=0)))
        return scores | {"eval_answers_runtime": round(time.monotonic() - started, 3)}

    def _answer_own(self) -> list[str]:
        import torch

        if self._questions is None:
            return []
        loaded, backend = self._model.loaded, self._model.backend
        tokenizer = self._model.chat.processor.tokenizer
        side = tokenizer.padding_side
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            backend.prepare_inference(loaded)
            try:
                return self._model.answer(self._questions, max_new_tokens=self._limit, batch_size=self._batch_size)
            finally:
                backend.prepare_training(loaded)
                tokenizer.padding_side = side


def _describe(step: int, row: EvalRow, answer: str) -> dict[str, Any]:
    return {"step": step, "id": row.id, "row": row.position, "references": row.references, "answer": answer}


def with_answer_metrics(base: type, answers: ValAnswers | None) -> type:
    """A trainer whose evaluations have the metrics of answers beside the loss.

    Args:
        base: A transformers Trainer.
        answers: What to answer, or None for the loss alone.
    """
    if answers is None:
        return base
    val_answers = answers

    class AnsweringTrainer(base):  # type: ignore[misc]  # its class is known when it runs
        """Adds to the metrics before they are logged, and the best checkpoint is chosen by them."""

        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            """Transformers' own, and then the answers."""
            output = super().evaluation_loop(*args, **kwargs)
            output.metrics.update(val_answers.score(self.state.global_step))
            return output

    return AnsweringTrainer
