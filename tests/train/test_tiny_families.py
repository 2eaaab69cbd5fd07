"""The tiny models against `vlmdata.families`: chats, stop tokens, module names, token counts and sizes."""

import json
import random

import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmdata.families import FAMILIES, find_family, read_grid
from vlmtrain.tiny import TINY_FAMILIES, make_tiny

SIZES = [(112, 112), (1, 60), (60, 1), (300, 20), (20, 300), (113, 111), (224, 112), (337, 113), (1200, 9)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder_of(family):
        if family not in made:
            made[family] = make_tiny(family, tmp_path_factory.mktemp("families") / family)
        return made[family]

    return folder_of


@pytest.fixture(params=TINY_FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def processor(family, folders):
    return AutoProcessor.from_pretrained(folders(family.name))


def turn(role, *parts):
    kinds = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": kinds}


TWO_TURNS = [
    turn("user", None, "Which digit?"),
    turn("assistant", "7"),
    turn("user", "Sure?"),
    turn("assistant", "Yes."),
]


def render(processor, messages, **kwargs):
    return processor.apply_chat_template(messages, tokenize=False, **kwargs)


def test_every_family_has_a_tiny_model():
    assert set(TINY_FAMILIES) == set(FAMILIES)


def test_the_family_is_found_from_the_saved_config(family, folders):
    config = json.loads((folders(family.name) / "config.json").read_text())
    assert find_family(config) is family
    assert config["architectures"] == [family.transformers_class]


def test_the_named_modules_are_there_and_hold_linear_layers(family, folders):
    model = AutoModelForImageTextToText.from_pretrained(folders(family.name))
    for name in (family.vision_module, family.language_module, *family.connector_modules):
        modules = list(model.get_submodule(name).modules())
        # Gemma's connector is a bare matrix.
        assert any(isinstance(module, torch.nn.Linear) for module in modules) or name == "model.multi_modal_projector"
        assert sum(weight.numel() for module in modules for weight in module.parameters(recurse=False)) > 0


def test_the_markers_open_the_turns(family, processor):
    text = render(processor, TWO_TURNS)
    assert text.count(family.instruction_part) == 2
    assert text.count(family.response_part) == 2
    assert text.index(family.instruction_part) < text.index("Which digit?") < text.index(family.response_part)
    prompt = render(processor, TWO_TURNS[:1], add_generation_prompt=True)
    assert prompt.endswith(family.response_part) or prompt.rstrip().endswith(family.response_part)
    assert text.startswith(prompt)


def test_generation_stops_at_the_stop_tokens(family, folders, processor):
    config = json.loads((folders(family.name) / "generation_config.json").read_text())
    stops = config["eos_token_id"] if isinstance(config["eos_token_id"], list) else [config["eos_token_id"]]
    assert set(processor.tokenizer.convert_ids_to_tokens(stops)) == set(family.stop_tokens)
    assert processor.tokenizer.eos_token == family.stop_tokens[0]


def test_answers_end_in_a_stop_token_where_the_template_writes_one(family, processor):
    after_answer = render(processor, TWO_TURNS).split("Yes.")[1]
    assert any(after_answer.startswith(stop) for stop in family.stop_tokens) == family.template_ends_turns


QUOTED = {
    "qwen2-vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Which digit?<|im_end|>\n"
        "<|im_start|>assistant\n7<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    ),
    "qwen3-vl": (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Which digit?<|im_end|>\n"
        "<|im_start|>assistant\n7<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    ),
    "gemma3": (
        "<bos><start_of_turn>user\n<start_of_image>Which digit?<end_of_turn>\n<start_of_turn>model\n7<end_of_turn>\n"
        "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n"
    ),
    "llama3.2-vision": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>Which digit?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n7<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
    ),
    "pixtral": "<s>[INST][IMG]Which digit?[/INST]7</s>[INST]Sure?[/INST]Yes.</s>",
    "llava-1.5": "USER: <image>\nWhich digit? ASSISTANT: 7 USER: Sure? ASSISTANT: Yes. ",
    "llava-1.6": "[INST] <image>\nWhich digit? [/INST] 7</s> [INST] Sure? [/INST] Yes.</s> ",
}
QUOTED |= {"qwen2.5-vl": QUOTED["qwen2-vl"], "ministral3": QUOTED["pixtral"]}


def test_a_chat_reads_as_the_real_template_writes_it(family, processor):
    assert render(processor, TWO_TURNS) == QUOTED[family.name]


SYSTEM = turn("system", "Be brief.")
QUESTION = turn("user", "What is 2+2?")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen2.5-vl", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"),
        ("qwen3-vl", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"),
        ("gemma3", "<bos><start_of_turn>user\nBe brief.\n\nWhat is 2+2?<end_of_turn>\n"),
        (
            "llama3.2-vision",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
            "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWhat is 2+2?<|eot_id|>",
        ),
        ("pixtral", "<s>[INST]Be brief.\n\nWhat is 2+2?[/INST]"),
        ("ministral3", "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]What is 2+2?[/INST]"),
        ("llava-1.6", "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] What is 2+2? [/INST]"),
    ],
)
def test_a_system_turn_reads_as_the_real_template_writes_it(name, expected, folders):
    assert render(AutoProcessor.from_pretrained(folders(name)), [SYSTEM, QUESTION]) == expected


def test_pixtral_drops_the_system_text_once_the_chat_ends_with_an_answer(folders):
    processor = AutoProcessor.from_pretrained(folders("pixtral"))
    assert "Be brief." not in render(processor, [SYSTEM, QUESTION, turn("assistant", "4")])


def test_llama_refuses_a_system_turn_beside_an_image(folders):
    processor = AutoProcessor.from_pretrained(folders("llama3.2-vision"))
    with pytest.raises(TemplateError, match="incompatible with system messages"):
        render(processor, [SYSTEM, *TWO_TURNS])


def test_the_template_keeps_images_in_place_where_the_family_says_so(family, processor):
    text = render(processor, [turn("user", "Before.", None, "After.")])
    before, _, after = text.partition("Before.")
    marks = ("<|image_pad|>", "<start_of_image>", "<|image|>", "[IMG]", "<image>")
    assert any(mark in after for mark in marks) == family.keeps_image_places
    assert any(mark in before for mark in marks) != family.keeps_image_places


def encode(processor, images):
    text = render(processor, [turn("user", *[None] * len(images), "?")])
    return processor(text=[text], images=[images], return_tensors="pt", add_special_tokens=False)


def random_sizes(count):
    rng = random.Random(7)
    return SIZES + [(round(2 ** rng.uniform(1, 9)), round(2 ** rng.uniform(1, 9))) for _ in range(count)]


IMAGE_TOKENS = {
    "gemma3": ["<image_soft_token>"],
    "llama3.2-vision": ["<|image|>"],
    "pixtral": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
    "ministral3": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
    "llava-1.5": ["<image>"],
    "llava-1.6": ["<image>"],
}


def test_image_tokens_and_patches_are_those_of_the_processor(family, folders, processor):
    grid = read_grid(family, json.loads((folders(family.name) / "processor_config.json").read_text()))
    assert read_grid(family, processor.to_dict()) == grid
    if family.name.startswith(("qwen", "pixtral", "ministral")):
        assert grid == family.grid
    tokens = IMAGE_TOKENS.get(family.name, ["<|image_pad|>"])
    token_ids = torch.tensor(processor.tokenizer.convert_tokens_to_ids(tokens))
    for width, height in random_sizes(25):
        if max(width, height) > 200 * min(width, height):
            continue
        batch = encode(processor, [Image.new("RGB", (width, height))])
        assert torch.isin(batch["input_ids"], token_ids).sum() == grid.image_tokens(width, height), (width, height)
        assert count_patches(family, batch) == grid.vision_patches(width, height), (width, height)
        assert find_processed_size(family, batch) in (None, grid.processed_size(width, height)), (width, height)


def count_patches(family, batch):
    """Positions in the vision tower, from what the processor hands the model."""
    pixels = batch["pixel_values"]
    if family.name.startswith("qwen"):
        return pixels.shape[0]
    if family.name in ("pixtral", "ministral3"):
        patch = family.grid.patch_px
        high, wide = batch["image_sizes"][0].tolist()
        return (high // patch) * (wide // patch)
    classes = 0 if family.name == "gemma3" else 1
    views = int(batch["aspect_ratio_mask"].sum()) if family.name == "llama3.2-vision" else pixels[..., 0, 0, 0].numel()
    return views * ((pixels.shape[-1] // 14) ** 2 + classes)


def find_processed_size(family, batch):
    """(width, height) as the processor shows it, or None where it does not (Llama's is tested below)."""
    if family.name.startswith("qwen"):
        _, rows, columns = batch["image_grid_thw"][0].tolist()
        return columns * family.grid.patch_px, rows * family.grid.patch_px
    if family.name in ("pixtral", "ministral3"):
        return tuple(batch["image_sizes"][0].tolist()[::-1])
    if family.name in ("gemma3", "llava-1.5"):
        return tuple(batch["pixel_values"].shape[:-3:-1])
    return None


def test_mllama_leaves_what_the_grid_says_to_padding(folders):
    family = FAMILIES["llama3.2-vision"]
    folder = folders(family.name)
    grid = read_grid(family, json.loads((folder / "processor_config.json").read_text()))
    processor = AutoProcessor.from_pretrained(folder)
    for width, height in random_sizes(25):
        batch = encode(processor, [Image.new("RGB", (width, height), "white")])
        columns, rows = grid.choose_canvas(width, height)
        tiles = batch["pixel_values"][0, 0, : rows * columns, 0]
        canvas = (
            tiles.reshape(rows, columns, grid.tile_px, grid.tile_px).permute(0, 2, 1, 3).flatten(2, 3).flatten(0, 1)
        )
        white = canvas > 0
        assert (int(white[0].sum()), int(white[:, 0].sum())) == grid.processed_size(width, height), (width, height)


def test_several_images_of_a_row_add_up(family, folders, processor):
    grid = read_grid(family, json.loads((folders(family.name) / "processor_config.json").read_text()))
    sizes = [(112, 112), (224, 60), (60, 200)]
    batch = encode(processor, [Image.new("RGB", size) for size in sizes])
    tokens = IMAGE_TOKENS.get(family.name, ["<|image_pad|>"])
    token_ids = torch.tensor(processor.tokenizer.convert_tokens_to_ids(tokens))
    assert torch.isin(batch["input_ids"], token_ids).sum() == sum(grid.image_tokens(*size) for size in sizes)
