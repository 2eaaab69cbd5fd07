"""The notebooks' training script as everybody copies it, with the steps timed: the peer that train_step.py measures.

Two of its lines differ from the notebooks', both in their favour as to what is compared: pictures are left at their
size (`resize="max"`) and the loss is on answers alone, so that pixels and masks are those of vlmtrain's run.

    python benchmarks/notebook_recipe.py --model DIR --data BUILT --out JSON [--batch-size 8] [--load-in-4bit]
"""

# The order of these statements matters: unsloth first.
# ruff: noqa: I001
import unsloth
from unsloth.trainer import UnslothVisionDataCollator

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import load_from_disk
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


def convert(row):
    """Pictures into the messages, as PIL objects, all of them in memory."""
    pictures = iter(row["images"])
    messages = [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "image": next(pictures)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in row["messages"]
    ]
    return {"messages": messages}


class Clock(TrainerCallback):
    """Time from log to log: the trainer reads the loss there, which waits for the GPU."""

    def __init__(self):
        self.began, self.steps = time.perf_counter(), []

    def on_log(self, args, state, control, logs, **kwargs):
        """Notes loss and time of a step."""
        if "loss" in logs:
            now = time.perf_counter()
            figures = {"loss": logs["loss"], "grad_norm": logs["grad_norm"], "step_seconds": now - self.began}
            self.steps.append(figures)
            print(f"step {state.global_step}: {figures}", flush=True)
            self.began = now


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--order", type=Path, help="JSON list of rows, in the order in which to train on them")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--grad-accum", type=int, default=1)
    parser.add_argument("--max-steps", type=int, default=30)
    parser.add_argument("--load-in-4bit", action="store_true")
    parser.add_argument("--gpu-memory-gb", type=float)
    parser.add_argument("--adapter", type=Path, help="save what was trained in this folder")
    parser.add_argument("--instruction-part", required=True)
    parser.add_argument("--response-part", required=True)
    options = parser.parse_args()
    if options.gpu_memory_gb:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.gpu_memory_gb * 2**30 / total)

    model, tokenizer = unsloth.FastVisionModel.from_pretrained(
        options.model,
        load_in_4bit=options.load_in_4bit,
        load_in_16bit=not options.load_in_4bit,
        use_gradient_checkpointing="unsloth",
    )
    model = unsloth.FastVisionModel.get_peft_model(
        model,
        finetune_vision_layers=True,
        finetune_language_layers=True,
        finetune_attention_modules=True,
        finetune_mlp_modules=True,
        r=16,
        lora_alpha=16,
        lora_dropout=0,
        bias="none",
        random_state=3407,
        use_rslora=False,
        loftq_config=None,
    )
    parts = {part: getattr(model.config, f"{part}_config")._attn_implementation for part in ("text", "vision")}
    print("attention: " + ", ".join(f"{part} {name}" for part, name in parts.items()), flush=True)
    rows = load_from_disk(str(options.data))["train"]
    order = json.loads(options.order.read_text()) if options.order else range(len(rows))
    dataset = [convert(rows[row]) for row in order]
    unsloth.FastVisionModel.for_training(model)
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        data_collator=UnslothVisionDataCollator(
            model,
            tokenizer,
            max_seq_length=32768,
            resize="max",
            train_on_responses_only=True,
            instruction_part=options.instruction_part,
            response_part=options.response_part,
        ),
        train_dataset=dataset,
        callbacks=[clock],
        args=SFTConfig(
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=options.grad_accum,
            warmup_steps=5,
            max_steps=options.max_steps,
            learning_rate=2e-4,
            logging_steps=1,
            optim="adamw_8bit",
            weight_decay=0.01,
            lr_scheduler_type="linear",
            seed=3407,
            bf16=True,
            train_sampling_strategy="sequential",
            output_dir=str(options.out.parent / "notebook"),
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataset_text_field="",
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=32768,
        ),
    )
    trainer.train()
    if options.adapter:
        model.save_pretrained(options.adapter)
        tokenizer.save_pretrained(options.adapter)
    result = {
        "steps": clock.steps,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
