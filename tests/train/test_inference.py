"""Answers: the same alone and in a batch, greedy or drawn, for prompts, pictures and files of requests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlmdata.errors import ConfigError, DataError
from vlmdata.families import FAMILIES
from vlmtrain.answers import answer_all, make_request, read_requests
from vlmtrain.inference import Request, load_answering_model
from vlmtrain.settings import GenerateConfig

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (245, 245, 245)}
QUESTION = "Which colour is this?"


@pytest.fixture(scope="module")
def model(full_run):
    return load_answering_model(str(full_run))


def ask(*colours: str, size=(56, 56), question: str = QUESTION) -> Request:
    content = [{"type": "image"} for _ in colours] + [{"type": "text", "text": question}]
    pictures = [Image.new("RGB", size, COLOURS[colour]) for colour in colours]
    return Request(messages=[{"role": "user", "content": content}], images=pictures)


@pytest.fixture
def requests():
    """Of different lengths: pictures of other sizes, several turns, more text, and none at all."""
    turns = [
        *ask("red").messages,
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "And in one word?"}]},
    ]
    text = [{"role": "user", "content": [{"type": "text", "text": "Which colour is snow?"}]}]
    return [
        ask("red"),
        ask("blue", size=(140, 112)),
        ask("green", question=f"Look at it well. {QUESTION}"),
        Request(messages=turns, images=ask("red").images),
        ask("white", "white"),
        Request(messages=text, images=[]),
        ask("blue"),
    ]


def test_a_trained_model_answers(model) -> None:
    answers = model.answer([ask(colour) for colour in COLOURS], max_new_tokens=8)
    assert answers == list(COLOURS)


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_a_batch_gives_the_answers_of_its_requests_alone(batch_size, model, requests) -> None:
    alone = model.answer(requests, max_new_tokens=12, batch_size=1)
    assert len(set(alone)) > 2
    assert model.answer(requests, max_new_tokens=12, batch_size=batch_size) == alone


@pytest.mark.parametrize("family", list(FAMILIES))
def test_padding_changes_no_familys_answers(family, tiny) -> None:
    model = load_answering_model(str(tiny(family)))
    requests = [ask("red", question="Look at it well, please. Which?"), ask("blue", size=(140, 112)), ask("green")]
    alone = model.answer(requests, max_new_tokens=6, batch_size=1)
    assert model.answer(requests, max_new_tokens=6, batch_size=3) == alone


def test_requests_are_padded_on_the_left(model, requests) -> None:
    batch = model.encode(requests[:3])
    mask = batch["attention_mask"]
    assert mask[:, -1].all()
    assert (mask.diff(dim=1) >= 0).all()
    assert mask.sum(dim=1).unique().numel() > 1
    tail = model.chat.processor.tokenizer(model.chat.markers.response_part, add_special_tokens=False)["input_ids"]
    assert batch["input_ids"][:, -len(tail) :].tolist() == [tail] * 3


def test_an_answer_ends_at_its_own_end_token(model, requests) -> None:
    # a batch runs on until its last answer ends
    for answer in model.answer(requests, max_new_tokens=64, batch_size=7):
        assert "<|" not in answer
        assert answer == answer.strip()
    [first] = model.answer(requests[:1], max_new_tokens=64)
    assert first == "red"


def test_the_longest_answer_is_bounded(model) -> None:
    output = model.answer([ask("white", question="x" * 50)], max_new_tokens=1)
    assert len(model.chat.processor.tokenizer(output[0])["input_ids"]) <= 1


def test_temperature_draws_by_the_seed(tiny_qwen) -> None:
    untrained = load_answering_model(str(tiny_qwen))
    drawn = [untrained.answer([ask("red")], max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = [untrained.answer([ask("red")], max_new_tokens=8, seed=seed) for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_a_models_own_sampling_settings_do_not_interfere(tiny_qwen) -> None:
    model = load_answering_model(str(tiny_qwen))
    plain = [model.answer([ask("red")], max_new_tokens=12, temperature=t, seed=3) for t in (0.0, 1.0)]
    # as in the generation config of Qwen2.5-VL: only the likeliest token, and repetition marked down
    settings = model.loaded.model.generation_config
    settings.do_sample, settings.top_k, settings.top_p, settings.repetition_penalty = True, 1, 0.001, 10.0
    again = [model.answer([ask("red")], max_new_tokens=12, temperature=t, seed=3) for t in (0.0, 1.0)]
    assert again == plain
    assert plain[0] != plain[1]


def test_nothing_to_ask(model) -> None:
    assert model.answer([], max_new_tokens=4) == []


@pytest.fixture
def pictures(tmp_path) -> Path:
    for colour, value in COLOURS.items():
        Image.new("RGB", (56, 56), value).save(tmp_path / f"{colour}.png")
    return tmp_path


def generate(run, **options) -> list:
    return list(answer_all(str(run), GenerateConfig(**options)))


@pytest.mark.parametrize("part", ["adapter", "base"])
def test_weights_that_were_cut_short_are_one_line(part, lora_run, tiny_qwen, tmp_path) -> None:
    """As a copy leaves them that was broken off."""
    source, file = (
        (lora_run / "adapter", "adapter_model.safetensors") if part == "adapter" else (tiny_qwen, "model.safetensors")
    )
    shutil.copytree(source, tmp_path / "model")
    (tmp_path / "model" / file).write_bytes((source / file).read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be loaded: Error while deserializing header"):
        load_answering_model(str(tmp_path / "model"), backend="transformers")


def test_a_prompt_and_a_picture(full_run, pictures) -> None:
    assert generate(full_run, prompt=QUESTION, image=(pictures / "blue.png",), max_new_tokens=8) == ["blue"]
    assert generate(full_run, prompt=QUESTION, image=(pictures / "red.png",) * 2, max_new_tokens=8)


def test_a_file_of_requests(full_run, pictures) -> None:
    lines = [
        {"prompt": QUESTION, "image": "red.png", "note": 1},
        {"prompt": QUESTION, "images": ["blue.png"]},
        {"prompt": "Which colour is\u2028snow?"},
        {"prompt": QUESTION, "image": "green.png", "system": "You are a helpful assistant."},
    ]
    batch = pictures / "batch.jsonl"
    batch.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    answered = generate(full_run, batch=batch, max_new_tokens=8, batch_size=3)
    assert [{key: value for key, value in line.items() if key != "answer"} for line in answered] == lines
    assert [line["answer"] for line in answered][:2] == ["red", "blue"]
    assert answered[3]["answer"] == "green"


def test_an_empty_file_of_requests_has_no_answers(full_run, tmp_path) -> None:
    (tmp_path / "batch.jsonl").write_text("\n")
    assert generate(full_run, batch=tmp_path / "batch.jsonl") == []


def test_a_system_text_is_a_turn_of_its_own() -> None:
    request = make_request("Which?", [], system="Be brief.")
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert make_request("Which?", []).messages[0]["role"] == "user"


def test_pictures_that_are_not_there_or_none(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.png: no such picture"):
        make_request("?", [tmp_path / "absent.png"])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConfigError, match=r"text\.png: not a readable picture"):
        make_request("?", [tmp_path / "text.png"])
    Image.effect_noise((200, 200), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with pytest.raises(ConfigError, match=r"cut\.png: not a readable picture"):
        make_request("?", [tmp_path / "cut.png"])


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"image": "red.png"}', '{"prompt": 3}', '{"prompt": "?", "image": 3}', '{"prompt": null}']
)
def test_a_line_that_is_no_request(line, pictures) -> None:
    batch = pictures / "batch.jsonl"
    batch.write_text(json.dumps({"prompt": "?", "image": "red.png"}) + "\n" + line)
    with pytest.raises(DataError, match=r"batch\.jsonl, line 2: not of the form"):
        read_requests(batch)


def test_a_file_that_cannot_be_read(pictures) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_requests(pictures / "absent.jsonl")
    with pytest.raises(ConfigError, match="cannot be read: "):
        read_requests(pictures / "red.png")
    (pictures / "batch.jsonl").write_text('{"prompt": "?", "image": "absent.png"}')
    with pytest.raises(ConfigError, match=r"absent\.png: no such picture"):
        read_requests(pictures / "batch.jsonl")


def test_pictures_of_a_file_are_held_one_batch_at_a_time(pictures, monkeypatch) -> None:
    batch = pictures / "batch.jsonl"
    batch.write_text("\n".join(json.dumps({"prompt": "?", "image": f"{name}.png"}) for name in COLOURS))
    _, requests = read_requests(batch)
    opened = []
    open_file = Image.open
    monkeypatch.setattr("PIL.Image.open", lambda path: opened.append(path.name) or open_file(path))
    assert len(requests) == 4
    assert [request.images[0].getpixel((0, 0)) for request in requests[1:3]] == [(30, 200, 30), (30, 30, 220)]
    assert opened == ["green.png", "blue.png"]
    assert requests[0].images[0].getpixel((0, 0)) == COLOURS["red"]


def test_pictures_are_shown_as_a_viewer_shows_them(tmp_path) -> None:
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.png", exif=exif)
    [upright] = make_request("?", [tmp_path / "turned.png"]).images
    assert upright.size == (20, 40)
    assert upright.getpixel((19, 0)) == (255, 0, 0)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    [shown] = make_request("?", [tmp_path / "clear.png"]).images
    assert (shown.mode, shown.getpixel((0, 0))) == ("RGB", (255, 255, 255))


def test_answering_needs_no_gradients(model, requests, monkeypatch) -> None:
    modes = []
    generate_tokens = model.loaded.model.generate

    def note(**inputs):
        modes.append((torch.is_grad_enabled(), model.loaded.model.training))
        return generate_tokens(**inputs)

    monkeypatch.setattr(model.loaded.model, "generate", note)
    model.answer(requests[:1], max_new_tokens=2)
    assert modes == [(False, False)]
