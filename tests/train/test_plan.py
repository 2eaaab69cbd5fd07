"""What `vlmtrain plan` says, from a config alone and from a set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from made_rows import make_row, write_folder
from vlmdata.errors import ConfigError, DataError
from vlmtrain.config import AdapterConfig, OptimizerConfig
from vlmtrain.plan import make_plan
from vlmtrain.plan_config import PlanConfig
from vlmtrain.plan_text import describe_plan


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory, measured_config: dict[str, Any]) -> Path:
    """config.json of a model of four billion parameters, and nothing beside it."""
    path = tmp_path_factory.mktemp("planned") / "config.json"
    path.write_text(json.dumps(measured_config), encoding="utf-8")
    return path


def plan(config_file: Path, *, adapter: AdapterConfig | None = None, batch_size: int = 2, **given):
    optimizer = OptimizerConfig(batch_size=batch_size, grad_accum=8 // batch_size)
    return make_plan(PlanConfig(model=str(config_file), **given), adapter or AdapterConfig(), optimizer)


def test_a_config_alone_is_enough(config_file: Path) -> None:
    made = plan(config_file, image=("1000x750",), text_tokens=256, rows=1000, gpu_memory_gb=24, tflops=165)
    assert (made.workload.image_tokens, made.workload.patches) == (972, 3888)
    assert (made.workload.step.tokens, made.workload.step.patches) == (2 * 1228, 2 * 3888)
    assert made.steps == 125
    words = describe_plan(made)
    assert "4.07 B parameters" in words
    assert "41.1 M of them are trained" in words
    assert "take 16bit with checkpointing " in words
    assert "125 optimizer steps of 8 rows, about " in words
    table = [line.split() for line in words.splitlines() if line.strip().startswith(("16bit", "8bit", "4bit"))]
    assert [row[:2] for row in table] == [
        [load_in, each] for load_in in ("16bit", "8bit", "4bit") for each in ("off", "selective", "full")
    ]
    for row in table:
        parts, total = [float(cell) for cell in row[2:6]], float(row[6])
        assert sum(parts) == pytest.approx(total, abs=0.21)
        assert ("does not fit" in " ".join(row)) == (float(row[7]) > 24 * 0.85)


def test_compiled_vision_blocks_are_counted_where_asked_for(config_file: Path) -> None:
    peaks = {
        choice: plan(config_file, compile_vision=choice).estimate("16bit", "off").peak
        for choice in ("auto", "on", "off")
    }
    assert peaks["on"] < peaks["auto"] == peaks["off"]
    compiled, plain = (f"{peaks[choice] / 2**30:.1f}" for choice in ("on", "off"))
    said = {choice: describe_plan(plan(config_file, compile_vision=choice)) for choice in peaks}
    tail = f"16bit off takes {compiled} GiB instead of {plain}"
    assert f"blocks of the vision tower: as they are; compiled, if fit chooses so, {tail}" in said["auto"]
    assert f"blocks of the vision tower: as they are; compiled, {tail}" in said["off"]
    assert f"compiled; as they are, 16bit off takes {plain} GiB instead of {compiled}" in said["on"]
    # a frozen tower keeps nothing either way
    frozen = plan(config_file, adapter=AdapterConfig(finetune_vision_layers=False))
    assert "blocks of the vision tower" not in describe_plan(frozen)


def test_what_to_change_is_worked_out_when_nothing_fits(config_file: Path) -> None:
    words = describe_plan(plan(config_file, batch_size=8, image=("3000x3000",), gpu_memory_gb=16, tflops=65))
    assert "nothing above fits. With 4bit and full checkpointing," in words
    changes = dict(line.strip().split(": ") for line in words.splitlines() if line.startswith("  "))
    sizes = {change: float(found.split()[0]) for change, found in changes.items()}
    assert sizes["--batch-size 1 --grad-accum 8"] < sizes["--batch-size 4 --grad-accum 2"] < sizes["as it is"]
    assert all(("fits" in found) == (sizes[change] <= 13.6) for change, found in changes.items())
    assert "--no-finetune-vision-layers" in sizes
    full = plan(config_file, adapter=AdapterConfig(method="full"), image=("3000x3000",), gpu_memory_gb=16)
    assert "--method lora" in describe_plan(full)


def test_a_set_gives_its_longest_rows(colours: Path, tiny_qwen: Path, chat_of) -> None:
    from vlmdata.families import FAMILIES
    from vlmdata.shards import open_folder
    from vlmtrain.lengths import measure_lengths

    made = plan(tiny_qwen, data=colours)
    lengths = measure_lengths(open_folder(colours).split("train"), chat_of("qwen2.5-vl"), FAMILIES["qwen2.5-vl"])
    assert made.workload.rows == 24
    assert made.workload.step.tokens == 2 * lengths.tokens.max()
    assert made.workload.step.patches == sum(sorted(lengths.patches.tolist())[-2:])
    # 56 x 56 px are 4 x 4 patches, and four of them a token
    assert (lengths.patches == 4 * lengths.image_tokens).all()
    assert "24 of " in describe_plan(made)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_broken_file_of_the_models_is_one_line(name: str, config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config_file.read_text())
    (tmp_path / name).write_text("{")
    with pytest.raises(DataError, match=f"{name}: cannot be read as JSON"):
        plan(tmp_path)


def test_a_split_without_rows_cannot_be_planned_for(tiny_qwen: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {"train": [make_row(1)], "val": []})
    with pytest.raises(DataError, match="split 'val' has no rows to plan for"):
        plan(tiny_qwen, data=folder, train_split="val")


def test_problems_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        PlanConfig(model="m", image=("100", "0x3"), rows=0)
    assert len(caught.value.problems) == 3


def test_a_set_is_planned_for_without_the_weights(colours: Path, tiny_qwen: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_qwen, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    adapter, optimizer = AdapterConfig(), OptimizerConfig()
    whole = make_plan(PlanConfig(model=str(tiny_qwen), data=colours), adapter, optimizer)
    for model in (bare, bare / "config.json"):
        planned = make_plan(PlanConfig(model=str(model), data=colours), adapter, optimizer)
        assert planned.workload == whole.workload
        assert planned.shape.parameters == whole.shape.parameters
    (bare / "processor_config.json").unlink()
    (bare / "preprocessor_config.json").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="a model without its processor"):
        make_plan(PlanConfig(model=str(bare), data=colours), adapter, optimizer)
