"""One process through Unsloth's own code: `python unsloth_session.py WORK` leaves there what test_unsloth.py looks at.

WORK holds `data`, `model`, `tiny/FAMILY`, `fit.yaml` and `conversations.json`; the results are a run, its export, and
three files of findings.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import unsloth_on_cpu

FLAGS = ("finetune_vision_layers", "finetune_language_layers", "finetune_attention_modules", "finetune_mlp_modules")


def collate_batches(out: Path) -> None:
    """Batches of Unsloth's collator over the training rows, with its masks."""
    from safetensors.torch import save_file

    from vlmdata.shards import open_folder
    from vlmtrain.backends import unsloth as backend
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.rows import open_rows
    from vlmtrain.source import find_model

    source = find_model("model")
    chat = load_chat_format(source, load_processor(source))
    loaded = backend.load_model(
        source,
        chat.processor,
        load_in="32bit",
        max_length=512,
        method="lora",
        checkpointing="on",
        trust_remote_code=False,
    )
    chat.processor.tokenizer.padding_side = "right"
    rows = [dict(row) for row in open_rows(open_folder("data").split("train"))]
    tensors = {}
    for last_turn_only in (False, True):
        collate = backend.make_collator(loaded, chat, max_length=512, last_turn_only=last_turn_only)
        for start in range(0, len(rows), 4):
            for name, tensor in collate(rows[start : start + 4]).items():
                tensors[f"{last_turn_only}.{start}.{name}"] = tensor.contiguous()
    save_file(tensors, out)


def mask_conversations(out: Path) -> None:
    """Labels of Unsloth's `train_on_responses_only` for every family's ids of a few conversations."""
    from unsloth_zoo.dataset_utils import train_on_responses_only

    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.source import find_model

    conversations = json.loads(Path("conversations.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for folder in sorted(Path("tiny").iterdir()):
        source = find_model(str(folder))
        chat = load_chat_format(source, load_processor(source))
        ids = [
            chat.processor.tokenizer(chat.render(messages), add_special_tokens=False)["input_ids"]
            for messages in conversations
        ]
        labels = {}
        for last_turn_only in (False, True):
            mask = train_on_responses_only(
                None,
                tokenizer=chat.processor,
                instruction_part=chat.markers.instruction_part,
                response_part=chat.markers.response_part,
                return_function=True,
                last_response_only=last_turn_only,
            )
            labels[str(last_turn_only)] = [list(mask({"input_ids": [row]})["labels"][0]) for row in ids]
        found[folder.name] = {"input_ids": ids, "labels": labels}
    out.write_text(json.dumps(found), encoding="utf-8")


def choose_layers(out: Path) -> None:
    """Names of the layers that Unsloth's expression matches, for every family and choice of flags."""
    from transformers import AutoModelForImageTextToText
    from unsloth_zoo.peft_utils import get_peft_regex

    found: dict[str, dict[str, list[str]]] = {}
    for folder in sorted(Path("tiny").iterdir()):
        model = AutoModelForImageTextToText.from_pretrained(folder)
        names = [name for name, _ in model.named_modules()]
        found[folder.name] = {}
        for values in itertools.product([True, False], repeat=4):
            if (values[0] or values[1]) and (values[2] or values[3]):
                flags = dict(zip(FLAGS, values, strict=True))
                expression = re.compile(get_peft_regex(model, **flags))
                found[folder.name][json.dumps(flags)] = [name for name in names if expression.fullmatch(name)]
    out.write_text(json.dumps(found), encoding="utf-8")


def name_attention(out: Path) -> None:
    """How every family's model attends, module by module, after it was loaded."""
    from vlmtrain.backends import unsloth as backend
    from vlmtrain.processors import load_processor
    from vlmtrain.source import find_model

    found: dict[str, list[str]] = {}
    for folder in sorted(Path("tiny").iterdir()):
        source = find_model(str(folder))
        options: dict[str, Any] = {"load_in": "16bit", "max_length": 512, "method": "lora", "checkpointing": "on"}
        model = backend.load_model(source, load_processor(source), **options, trust_remote_code=False).model
        attending = [module for name, module in model.named_modules() if name.endswith("attn")]
        found[folder.name] = sorted({module.config._attn_implementation for module in attending})
    out.write_text(json.dumps(found), encoding="utf-8")


def main(work: Path) -> None:
    os.chdir(work)
    unsloth_on_cpu.patch_trainer()
    unsloth_on_cpu.cli.main(["fit", "fit.yaml", "--backend", "unsloth", "--out", "unsloth"])
    unsloth_on_cpu.cli.main(["export", "unsloth", "--backend", "unsloth", "--out", "merged"])
    unsloth_on_cpu.cli.main(["eval", "unsloth", "--backend", "unsloth", "--rank", "--out", "ranked.jsonl"])
    collate_batches(Path("collated.safetensors"))
    mask_conversations(Path("masks.json"))
    choose_layers(Path("layers.json"))
    name_attention(Path("attention.json"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
