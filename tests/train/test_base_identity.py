"""A base that changed under its adapter is said; where the hub knows the commit, that commit is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vlmdata.errors import ConfigError, DataError
from vlmtrain.base_identity import describe_base_change, identify_base, pin_base, require_same_base
from vlmtrain.exports import export
from vlmtrain.inference import load_answering_model
from vlmtrain.settings import ExportConfig
from vlmtrain.source import find_model

COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def copied(lora_run, tiny_qwen, tmp_path) -> tuple[Path, Path]:
    """A run and its base where both may be changed."""
    base = shutil.copytree(tiny_qwen, tmp_path / "base")
    run = shutil.copytree(lora_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    return run, base


def test_a_run_records_its_base(lora_run, tiny_qwen) -> None:
    recorded = json.loads((lora_run / "run.json").read_text())["base"]
    assert recorded == identify_base(find_model(str(tiny_qwen)))
    assert (recorded["name"], recorded["commit"]) == (str(tiny_qwen.resolve()), None)


def test_a_moved_base_is_the_same_and_a_changed_one_is_said(copied, tmp_path, capsys) -> None:
    run, base = copied
    assert describe_base_change(find_model(str(run))) is None
    weights = base / "model.safetensors"
    data = bytearray(weights.read_bytes())
    for place in range(len(data) // 2, len(data), 64):
        data[place] ^= 1
    weights.write_bytes(data)
    change = describe_base_change(find_model(str(run)))
    assert f"its base model {base} is not the one it was trained on: fingerprint " in change
    with pytest.raises(DataError, match="restore that base, or train again on this one"):
        export(str(run), ExportConfig(out=tmp_path / "out", backend="transformers"))
    assert not (tmp_path / "out").exists()
    load_answering_model(str(run))
    assert f"warning: {change}" in capsys.readouterr().err
    shutil.rmtree(base)
    with pytest.raises(
        ConfigError, match=r"base model is gone: .*; where it was moved, write its new place as base_mo"
    ):
        find_model(str(run))


@pytest.fixture
def hub_cache(tiny_qwen, tmp_path, monkeypatch) -> Path:
    """A hub model in the local cache at two commits, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    repository = cache / "models--ann--colours"
    for commit in COMMITS:
        shutil.copytree(tiny_qwen, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository


def test_a_hub_base_is_told_by_its_commit_and_pinned(hub_cache, lora_run, tmp_path) -> None:
    identity = identify_base(find_model("ann/colours"))
    assert identity == {"name": "ann/colours", "revision": None, "commit": COMMITS[0], "fingerprint": None}
    adapter = shutil.copytree(lora_run / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "ann/colours", "revision": None}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "export.json").write_text(json.dumps({"base": identity}))
    require_same_base(find_model(str(adapter)))
    (hub_cache / "refs" / "main").write_text(COMMITS[1])
    with pytest.raises(DataError, match="commit bbbbbbbbbbbb instead of aaaaaaaaaaaa"):
        require_same_base(find_model(str(adapter)))
    # with the commit in the adapter's config, main may move
    pin_base(adapter, identity)
    source = find_model(str(adapter))
    assert source.revision == COMMITS[0]
    require_same_base(source)


def test_a_folder_has_no_commit_to_pin(tiny_qwen, tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    pin_base(tmp_path, identify_base(find_model(str(tiny_qwen))))
    assert (tmp_path / "adapter_config.json").read_text() == "{}"
