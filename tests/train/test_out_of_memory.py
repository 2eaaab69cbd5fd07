"""Memory that runs out in the middle of a run: the same training in smaller pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from made_rows import make_conversation, turn
from vlmdata.errors import ResourceError
from vlmdata.families import FAMILIES
from vlmdata.shards import open_folder
from vlmtrain.backends import transformers as backend
from vlmtrain.collator import VisionCollator
from vlmtrain.out_of_memory import pictures_per_row, split_batch
from vlmtrain.rows import open_rows
from vlmtrain.speed import attention
from vlmtrain.speed.packing import PackedCollator, is_packed, row_bounds
from vlmtrain.speed.vision_inputs import VisionInputs
from vlmtrain.training import fit

QWEN = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"]


@pytest.fixture
def dataset(build) -> list[dict[str, Any]]:
    """Rows of unlike lengths: one without a picture, one with two."""
    ask, answer = turn("user", None, "Which?"), turn("assistant", "red")
    rows = [
        make_conversation(0, [ask, answer], [(56, 56)]),
        make_conversation(1, [turn("user", "Which word is it?"), answer]),
        make_conversation(2, [turn("user", None, None, "Same?"), answer], [(56, 56), (84, 56)], "blue"),
        make_conversation(3, [turn("user", None, "Which one?"), answer], [(56, 84)], "green"),
    ]
    return list(open_rows(open_folder(build(rows)).split("train")))


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_are_what_the_collator_makes_of_their_rows(name, chat_of, dataset) -> None:
    chat = chat_of(name)
    if name == "llama3.2-vision":
        # its processor takes no batch with and without pictures
        del dataset[1]
    collate = VisionCollator(chat, dtype=torch.float32)
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


def load_packed(name: str, tiny: Any, chat_of: Any) -> tuple[Any, VisionInputs]:
    """A family's tiny model and the collator of its packed rows."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(tiny(name), dtype=torch.float32).train()
    collate = PackedCollator(VisionCollator(chat_of(name), dtype=torch.float32), model)
    return model, VisionInputs(collate, model.config.vision_config)


@pytest.mark.parametrize("pieces", [2, 3, 8])
@pytest.mark.parametrize("name", QWEN)
def test_packed_pieces_are_what_the_collator_makes_of_their_rows(name, pieces, tiny, chat_of, dataset) -> None:
    _, collate = load_packed(name, tiny, chat_of)
    split = [collate.add(each) for each in split_batch(collate(dataset), pieces, chat_of(name).rules.never_ids)]
    members = {2: [[0, 1], [2, 3]], 3: [[0], [1, 2], [3]], 8: [[0], [1], [2], [3]]}[pieces]
    assert len(split) == len(members)
    for piece, numbers in zip(split, members, strict=True):
        alone = collate([dataset[number] for number in numbers])
        assert set(piece) == set(alone)
        # no row had a label on its first token, which follows on the row before
        for key, value in alone.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(piece[key], value), key
            else:
                assert piece[key] == value


@pytest.mark.parametrize("name", QWEN)
def test_packed_pieces_have_the_gradients_of_the_whole(name, tiny, chat_of, dataset) -> None:
    model, collate = load_packed(name, tiny, chat_of)
    attention.use_varlen_vision(model)

    def loss_and_gradients(batches: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
        total = 0.0
        for batch in batches:
            with attention.packed_language_attention(model, batch["position_ids"][0]):
                logits = model(**{key: each for key, each in batch.items() if key != "labels"}, use_cache=False).logits
                targets = batch["labels"][0, 1:]
                loss = torch.nn.functional.cross_entropy(logits[0, :-1], targets, reduction="sum")
                loss.backward()
            total += loss.item()
        gradients = {key: each.grad for key, each in model.named_parameters() if each.grad is not None}
        model.zero_grad(set_to_none=True)
        return total, gradients

    batch = collate(dataset)
    expected, gradients = loss_and_gradients([batch])
    pieces = split_batch(batch, 3, chat_of(name).rules.never_ids)
    for split in (pieces, [collate.add(piece) for piece in pieces]):
        actual, found = loss_and_gradients(split)
        assert actual == pytest.approx(expected, rel=1e-5)
        assert set(found) == set(gradients)
        largest = float(max(each.abs().max() for each in gradients.values()))
        for key, gradient in gradients.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-5 * largest, msg=key)


def test_what_cannot_be_told_apart_is_said() -> None:
    batch = {"input_ids": torch.tensor([[7, 7], [1, 2]]), "pixel_values": torch.zeros(3, 3)}
    with pytest.raises(ResourceError, match="which pictures belong to which row"):
        split_batch(batch, 2, [7])


def test_tokens_that_tell_different_things_tell_nothing() -> None:
    """Pixtral's line breaks, two in a picture of three rows of patches and one in one of two, beside its end tokens."""
    patch, line, end = 10, 12, 13
    tall, flat = [patch, line, patch, line, patch, end], [patch, end, patch, line, patch, end]
    assert pictures_per_row([tall, flat], 3, [line, end]) is None
    assert pictures_per_row([flat, flat], 4, [line, end]) == [2, 2]
    assert pictures_per_row([flat, [1, 2]], 2, [line, patch, end]) == [2, 0]


def test_positions_are_told_from_rows_by_their_axes() -> None:
    """Three rows have as many entries as positions have axes."""
    batch = {"input_ids": torch.zeros(3, 5, dtype=torch.long), "position_ids": torch.arange(45).view(3, 3, 5)}
    pieces = split_batch(batch, 3, [])
    for row, piece in enumerate(pieces):
        torch.testing.assert_close(piece["position_ids"], batch["position_ids"][:, row : row + 1])


def exhaust(monkeypatch, rows_that_fit: int, *, in_backward: bool, after_passes: int = 1) -> None:
    """Makes a pass over more rows fail as CUDA does: before it, or when its gradients are half done."""
    usual = backend.trainer_class
    passes = 0

    class Exhausted(usual()):
        def compute_loss(self, model, inputs, *args, **kwargs):
            nonlocal passes
            passes += model.training
            rows = len(row_bounds(inputs["position_ids"])) - 1 if is_packed(inputs) else len(inputs["input_ids"])
            # an evaluation keeps no activations
            too_many = model.training and rows > rows_that_fit and passes > after_passes
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


def test_a_packed_run_learns_the_same_when_memory_runs_out(settings, tmp_path, monkeypatch, capsys) -> None:
    values = {"batch_size": 4, "grad_accum": 2, "max_steps": 3, "eval_steps": 3, "lr": 1e-3, "batching": "packed"}
    values |= {"attention": "varlen"}
    whole = fit(settings(**values, out=tmp_path / "whole"))
    expected = load_file(whole.weights / "adapter_model.safetensors")
    for in_backward in (False, True):
        with monkeypatch.context() as patch:
            # in the second pass of the second step: the first, over other rows, is done again
            exhaust(patch, 1, in_backward=in_backward, after_passes=3)
            run = fit(settings(**values, out=tmp_path / f"pieces-{in_backward}"))
        assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
        adapter = load_file(run.weights / "adapter_model.safetensors")
        assert set(adapter) == set(expected)
        for name, weight in expected.items():
            # a step of AdamW moves a weight by 1e-3 at first, where its gradient is rounding too
            torch.testing.assert_close(adapter[name], weight, rtol=1e-3, atol=5e-5, msg=name)
        said = capsys.readouterr().out
        assert "ran out with 4 rows at once: going on with 2 at once, the same rows in each optimizer step" in said
        assert said.count("ran out with 2 rows at once: going on with 1") == 1


@pytest.mark.parametrize("batching", ["plain", "packed"])
def test_the_longest_batch_is_tried_first_and_leaves_no_trace(
    batching, settings, tmp_path, monkeypatch, capsys
) -> None:
    from vlmtrain import training

    values = {"batch_size": 4, "grad_accum": 2, "max_steps": 2, "eval_steps": 2, "lr": 1e-3, "dropout": 0.1}
    values["batching"] = batching
    expected = losses(fit(settings(**values, out=tmp_path / "untried")))
    assert "the longest batch is not tried before the first step: there is no GPU" in capsys.readouterr().out
    tried = []

    def longest(config, train, arrangement, collate):
        rows = train.lengths.tokens.argsort()[-config.optimizer.batch_size :]
        tried.extend(train.lengths.tokens[rows].tolist())
        return lambda: arrangement.collate([train.rows[int(row)] for row in rows])

    monkeypatch.setattr(training, "_longest_batch", longest)
    assert losses(fit(settings(**values, out=tmp_path / "tried"))) == expected
    tokens = f" of up to {max(tried)} tokens" if batching == "plain" else f", {sum(tried)} tokens in all"
    assert f"longest batch tried: 4 rows{tokens}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "rows"),
    [({}, 4), ({"micro_batch": 2}, 2), ({"batching": "packed", "batch_tokens": 400}, None)],
)
def test_the_longest_batch_is_one_that_the_run_could_have(how, rows, settings, colours, chat_of, monkeypatch) -> None:
    """As many rows as a pass has, not as --batch-size says; with a limit of tokens, the heaviest pass there is."""
    from vlmdata.families import FAMILIES
    from vlmdata.shards import open_folder
    from vlmtrain import training
    from vlmtrain.preflight import check_split
    from vlmtrain.speed.batches import BatchPlan
    from vlmtrain.speed.trainer import Arrangement

    config = settings(batch_size=4, grad_accum=2, gradient_checkpointing="on", **how)
    train = check_split(open_folder(colours).split("train"), config.data, chat_of("qwen2.5-vl"), FAMILIES["qwen2.5-vl"])
    tokens = config.speed.batch_tokens
    plan = BatchPlan(lengths=train.lengths.tokens, rows=rows or 4, passes=2, tokens=tokens, packed=tokens is not None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    make = training._longest_batch(config, train, Arrangement(plan=plan, collate=list), list)
    batch = make()
    if tokens is None:
        assert len(batch) == rows
    else:
        lengths = train.lengths.tokens
        taken = [next(i for i, each in enumerate(train.rows) if each["messages"] == row["messages"]) for row in batch]
        assert len(batch) == len(plan.heaviest(4)) > 4
        assert 300 < sum(int(lengths[row]) for row in taken) <= tokens


@pytest.mark.parametrize("batching", ["plain", "packed"])
def test_one_row_that_does_not_fit_ends_the_run(batching, settings, monkeypatch) -> None:
    exhaust(monkeypatch, 0, in_backward=False)
    with pytest.raises(ResourceError, match=r"ran out on a forward pass of a single row: try --load-in"):
        fit(settings(batch_size=2, grad_accum=1, max_steps=2, batching=batching))
