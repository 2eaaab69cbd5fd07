"""Memory that runs out in the middle of a run: the same training in smaller pieces."""

from __future__ import annotations

import json

import pytest
import torch

from vlmdata.errors import ResourceError
from vlmdata.families import FAMILIES
from vlmdata.shards import open_folder
from vlmtrain.backends import transformers as backend
from vlmtrain.collator import VisionCollator
from vlmtrain.out_of_memory import split_batch
from vlmtrain.rows import open_rows
from vlmtrain.training import fit


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_are_what_the_collator_makes_of_their_rows(name, chat_of, made, build) -> None:
    chat, turn = chat_of(name), made.turn
    ask, answer = turn("user", None, "Which?"), turn("assistant", "red")
    rows = [
        made.conversation(0, [ask, answer], [(56, 56)]),
        made.conversation(1, [turn("user", "Which word is it?"), answer]),
        made.conversation(2, [turn("user", None, None, "Same?"), answer], [(56, 56)] * 2, "blue"),
        made.conversation(3, [turn("user", None, "Which one?"), answer], [(56, 56)], "green"),
    ]
    if name == "llama3.2-vision":
        # its processor takes no batch with and without pictures
        del rows[1]
    collate = VisionCollator(chat, dtype=torch.float32)
    dataset = list(open_rows(open_folder(build(rows)).split("train")))
    pieces = split_batch(collate(dataset), 2, chat.rules.never_ids)
    middle = round(len(dataset) / 2)
    assert len(pieces) == 2
    for piece, members in zip(pieces, (dataset[:middle], dataset[middle:]), strict=True):
        alone = collate(members)
        assert set(piece) == set(alone)
        width = alone["input_ids"].shape[1]
        assert torch.equal(piece["input_ids"][:, :width], alone["input_ids"])
        assert torch.equal(piece["labels"][:, :width], alone["labels"])
        assert (piece["labels"][:, width:] < 0).all()
        for tensor in ("pixel_values", "image_grid_thw", "image_sizes", "aspect_ratio_ids"):
            if tensor in alone:
                ours = piece[tensor]
                assert torch.equal(ours[tuple(slice(size) for size in alone[tensor].shape)], alone[tensor])


def test_what_cannot_be_told_apart_is_said() -> None:
    batch = {"input_ids": torch.tensor([[7, 7], [1, 2]]), "pixel_values": torch.zeros(3, 3)}
    with pytest.raises(ResourceError, match="which pictures belong to which row"):
        split_batch(batch, 2, [7])


def exhaust(monkeypatch, rows_that_fit: int, *, in_backward: bool) -> None:
    """Makes a pass over more rows fail as CUDA does: before it, or when its gradients are half done."""
    usual = backend.trainer_class

    class Exhausted(usual()):
        def compute_loss(self, model, inputs, *args, **kwargs):
            # an evaluation keeps no activations
            too_many = model.training and len(inputs["input_ids"]) > rows_that_fit and self.state.global_step > 0
            if too_many and not in_backward:
                raise torch.OutOfMemoryError("CUDA out of memory")
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if too_many:
                loss.backward(retain_graph=True)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss

    monkeypatch.setattr(backend, "trainer_class", lambda: Exhausted)


def losses(run) -> list[float]:
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_losses_are_those_of_a_run_that_fits(settings, tmp_path, monkeypatch, capsys) -> None:
    values = {"batch_size": 4, "grad_accum": 2, "max_steps": 3, "eval_steps": 3, "lr": 1e-3}
    expected = losses(fit(settings(**values, out=tmp_path / "whole")))
    for in_backward in (False, True):
        with monkeypatch.context() as patch:
            exhaust(patch, 1, in_backward=in_backward)
            run = fit(settings(**values, out=tmp_path / f"pieces-{in_backward}"))
        assert losses(run) == pytest.approx(expected, rel=1e-4)
        said = capsys.readouterr().out
        assert "ran out with 4 rows at once: going on with 2 at once, the same rows in each optimizer step" in said
        assert said.count("ran out with 2 rows at once: going on with 1") == 1


def test_the_longest_batch_is_tried_first_and_leaves_no_trace(settings, colours, tmp_path, monkeypatch, capsys) -> None:
    from vlmtrain import training

    values = {"batch_size": 4, "grad_accum": 2, "max_steps": 2, "eval_steps": 2, "lr": 1e-3, "dropout": 0.1}
    expected = losses(fit(settings(**values, out=tmp_path / "untried")))
    assert "the longest batch is not tried before the first step: there is no GPU" in capsys.readouterr().out
    tried = []

    def longest(config, prepared, collate):
        rows = prepared.train.lengths.tokens.argsort()[-config.optimizer.batch_size :]
        tried.extend(prepared.train.lengths.tokens[rows].tolist())
        return lambda: collate([prepared.train.rows[int(row)] for row in rows])

    monkeypatch.setattr(training, "_longest_batch", longest)
    assert losses(fit(settings(**values, out=tmp_path / "tried"))) == expected
    assert f"longest batch tried: 4 rows of up to {max(tried)} tokens" in capsys.readouterr().out


def test_one_row_that_does_not_fit_ends_the_run(settings, monkeypatch) -> None:
    exhaust(monkeypatch, 0, in_backward=False)
    with pytest.raises(
        ResourceError, match=r"a forward pass that cannot be split \(one row, or packed rows\): try --load-in"
    ):
        fit(settings(batch_size=2, grad_accum=1, max_steps=2))
