import hashlib
import os
import socket
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmdata.errors import ConfigError, ResourceError
from vlmtrain.tiny import TINY_FAMILIES, TinyOptions, make_tiny

QUESTION = "Which digit is this?"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small are slower on several threads, and much slower where these have to wait for other programs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each family's folder, made when it is first asked for."""
    made = {}

    def folder_of(family):
        if family not in made:
            made[family] = make_tiny(family, tmp_path_factory.mktemp("tiny") / family)
        return made[family]

    return folder_of


@pytest.fixture(params=TINY_FAMILIES)
def folder(request, folders):
    return folders(request.param)


def load(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def picture(width=112, height=112, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def chat(answer=None):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def encode(processor, messages, images, **kwargs):
    text = processor.apply_chat_template(messages, tokenize=False, **kwargs)
    return processor(text=text, images=images, return_tensors="pt", add_special_tokens=False)


def labels_of(model, batch):
    """Every token but those of images: Mllama's output head does not even have theirs."""
    labels = batch["input_ids"].clone()
    image_id = model.config.image_token_id
    labels[labels == image_id] = -100
    return labels


def is_used(name, folder):
    """LLaVA takes its picture features from the layer before the last one of its tower."""
    last = TinyOptions().vision_layers
    unused = (f"vision_tower.encoder.layers.{last}.", "post_layernorm.")
    return not (folder.name.startswith("llava") and any(part in name for part in unused))


def test_a_chat_with_an_image_has_a_loss_with_gradients_everywhere(folder):
    model, processor = load(folder)
    batch = encode(processor, chat("7"), [picture()])
    model.train()
    loss = model(**batch, labels=labels_of(model, batch)).loss
    loss.backward()
    assert 0 < loss.item() < 20
    grads = {name: weight.grad for name, weight in model.named_parameters() if is_used(name, folder)}
    assert not [name for name, grad in grads.items() if grad is None]
    vision = [grad.abs().max() > 0 for name, grad in grads.items() if "visi" in name or "visual" in name]
    assert sum(vision) > 0.9 * len(vision)


def test_the_answer_depends_on_the_image(folder):
    model, processor = load(folder)
    logits = []
    for seed in (0, 1):
        batch = encode(processor, chat(), [picture(seed=seed)], add_generation_prompt=True)
        with torch.no_grad():
            logits.append(model(**batch).logits[0, -1])
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)


def test_a_row_gives_the_same_logits_alone_and_in_a_padded_batch(folder):
    model, processor = load(folder)
    images = [picture(seed=0), picture(140, 90, seed=1)]
    texts = [processor.apply_chat_template(chat(answer), tokenize=False) for answer in ("7", "A longer answer.")]
    both = processor(
        text=texts,
        images=[[image] for image in images],
        padding=True,
        padding_side="right",
        return_tensors="pt",
        add_special_tokens=False,
    )
    with torch.no_grad():
        together = model(**both).logits
        for row, (text, image) in enumerate(zip(texts, images, strict=True)):
            alone = processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=False)
            logits = model(**alone).logits[0]
            assert torch.allclose(together[row, : len(logits)], logits, atol=2e-4)


def test_generation_answers_and_uses_the_cache_rightly(folder):
    model, processor = load(folder)
    batch = encode(processor, chat(), [picture()], add_generation_prompt=True)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        cached = model.generate(**batch, max_new_tokens=6, do_sample=False)
        plain = model.generate(**batch, max_new_tokens=6, do_sample=False, use_cache=False)
    assert cached.shape[1] == batch["input_ids"].shape[1] + 6
    assert torch.equal(cached, plain)


def test_saving_and_loading_again_changes_nothing(folder, tmp_path):
    model, processor = load(folder)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load(tmp_path)
    batch = encode(processor, chat("7"), [picture()])
    batch_again = encode(processor_again, chat("7"), [picture()])
    assert set(batch) == set(batch_again)
    assert all(torch.equal(batch[key], batch_again[key]) for key in batch)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch_again).logits)


def test_lora_attaches_to_both_towers_and_alone_gets_gradients(folder):
    model, processor = load(folder)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert all("lora_" in name for name in trained)
    assert any("visi" in name or "visual" in name for name in trained)
    for projection in ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"):
        assert any(
            f"language_model.layers.0.{block}.{projection}" in name
            for name in trained
            for block in ("self_attn", "mlp")
        )
    batch = encode(processor, chat("7"), [picture()])
    adapted(**batch, labels=labels_of(model, batch)).loss.backward()
    adapters = {name: weight for name, weight in adapted.named_parameters() if "lora_B" in name}
    assert not [name for name, weight in adapters.items() if weight.grad is None and is_used(name, folder)]


def test_the_folder_is_whole_and_small(folder):
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"} <= files
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= files
    model, processor = load(folder)
    assert model.num_parameters() < 4_000_000
    assert model.get_input_embeddings().weight.shape[0] >= len(processor.tokenizer)
    assert hasattr(processor, "image_processor")


def test_a_turn_ends_with_its_own_token_and_padding_is_another(folder):
    model, processor = load(folder)
    tokenizer = processor.tokenizer
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    assert tokenizer.eos_token_id in stops
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("family", TINY_FAMILIES)
@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60))
def test_every_text_comes_back_from_the_tokenizer(folders, family, text):
    tokenizer = AutoProcessor.from_pretrained(folders(family)).tokenizer
    # Qwen's own tokenizer composes characters (NFC); nothing else may change.
    expected = unicodedata.normalize("NFC", text) if family.startswith("qwen") else text
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == expected


def test_the_same_seed_writes_the_same_bytes_and_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = make_tiny("qwen2.5-vl", tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before)
    second = make_tiny("qwen2.5-vl", tmp_path / "b")
    other = make_tiny("qwen2.5-vl", tmp_path / "c", seed=1)

    def digests(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    assert digests(first) == digests(second)
    changed = {name for name, digest in digests(other).items() if digests(first)[name] != digest}
    assert changed == {"model.safetensors"}


def test_sizes_are_adjustable(tmp_path):
    sizes = {
        "hidden_size": 64,
        "layers": 2,
        "vision_hidden_size": 32,
        "vision_layers": 1,
        "patch_size": 7,
        "vocab_size": 300,
    }
    model, processor = load(make_tiny("qwen2.5-vl", tmp_path, **sizes))
    assert model.config.text_config.hidden_size == 64
    assert model.config.text_config.num_hidden_layers == 2
    assert model.config.vision_config.depth == 1
    assert processor.image_processor.patch_size == 7
    assert len(processor.tokenizer) == 314
    batch = encode(processor, chat("7"), [picture()])
    assert batch["image_grid_thw"].tolist() == [[1, 16, 16]]
    assert torch.isfinite(model(**batch).logits).all()


def test_qwen2_5_vl_learns_to_tell_two_images_apart(folders):
    model, processor = load(folders("qwen2.5-vl"))
    images = [picture(56, 56, seed) for seed in (0, 1)]
    batches = [encode(processor, chat(answer), [image]) for answer, image in zip("38", images, strict=True)]
    answers = [batch["input_ids"][0, -3].item() for batch in batches]
    assert processor.batch_decode([[answer] for answer in answers]) == ["3", "8"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(20):
        for batch in batches:
            labels = torch.full_like(batch["input_ids"], -100)
            labels[0, -3:-1] = batch["input_ids"][0, -3:-1]
            model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    for answer, image in zip("38", images, strict=True):
        batch = encode(processor, chat(), [image], add_generation_prompt=True)
        written = model.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert processor.decode(written) == f"{answer}<|im_end|>"


def test_an_unknown_family_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(
        ConfigError, match=r"unknown family 'qwen25vl': did you mean 'qwen2.5-vl'\? known are .*qwen2.5-vl"
    ):
        make_tiny("qwen25vl", tmp_path)


def test_wrong_sizes_are_refused_all_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        make_tiny("qwen2.5-vl", tmp_path, hidden_size=100, layers=0, vocab_size=10)
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="unknown size 'depth'"):
        make_tiny("qwen2.5-vl", tmp_path, depth=3)
    assert TinyOptions().heads == 5


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="model: cannot be written: Not a directory"):
        make_tiny("qwen2.5-vl", tmp_path / "file" / "model")


def test_a_disk_that_is_full_is_one_clear_error(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fail)
    with pytest.raises(ResourceError, match=r"model: cannot be written: No space left on device$"):
        make_tiny("qwen2.5-vl", tmp_path / "model")


def test_importing_the_maker_needs_nothing_heavy():
    heavy = {"torch", "transformers", "tokenizers"}
    code = f"import sys, vlmtrain.tiny; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loading_reaches_for_no_network(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load(make_tiny(folder.name, folder.parent / f"{folder.name}-offline"))


def test_the_weights_of_a_real_model_are_not_replaced(tmp_path) -> None:
    shard = tmp_path / "model-00001-of-00002.safetensors"
    shard.touch()
    os.truncate(shard, 3_000_000_000)  # takes no room on the disk
    with pytest.raises(ConfigError, match=r"holds 3\.0 GB of weights, no tiny model's: name another folder"):
        make_tiny("gemma3", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [shard.name]
