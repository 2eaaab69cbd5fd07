"""What a name stands for: runs, adapters, models and hub ids; and every way in which it stands for nothing."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vlmdata.errors import ConfigError, DataError, ResourceError
from vlmtrain.processors import load_processor, save_processor
from vlmtrain.source import find_model


def test_a_model_folder(tiny_qwen) -> None:
    source = find_model(str(tiny_qwen))
    assert (source.name, source.processor) == (str(tiny_qwen.resolve()), str(tiny_qwen.resolve()))
    assert source.adapter is source.run is source.trained_in is None
    assert source.is_local
    assert source.family is not None
    assert source.family.name == "qwen2.5-vl"


def test_a_relative_folder_becomes_absolute(tiny_qwen, monkeypatch) -> None:
    # Unsloth looks `a/b` up on the hub
    monkeypatch.chdir(tiny_qwen.parent.parent)
    name = f"{tiny_qwen.parent.name}/{tiny_qwen.name}"
    assert find_model(name).name == str(tiny_qwen.resolve())


def test_a_run_and_its_adapter(lora_run, tiny_qwen, colours) -> None:
    run, adapter = find_model(str(lora_run)), find_model(str(lora_run / "adapter"))
    for source in (run, adapter):
        assert source.name == str(tiny_qwen.resolve())
        assert source.adapter == lora_run / "adapter"
        assert source.processor == str(lora_run / "adapter")
    assert (run.run, run.trained_in, run.data_or(None)) == (lora_run, "32bit", colours)
    assert run.data_or(Path("other")) == Path("other")
    assert adapter.run is None
    with pytest.raises(ConfigError, match="--data is missing"):
        adapter.data_or(None)


def test_a_run_of_all_weights(full_run) -> None:
    source = find_model(str(full_run))
    assert (source.name, source.adapter, source.run) == (str(full_run / "model"), None, full_run)


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "./out/run", "a/b/c", "my model/x"])
def test_no_folder_and_no_hub_id(name) -> None:
    with pytest.raises(ConfigError, match="no such model folder, and not a hub id"):
        find_model(name)


def test_a_folder_without_model(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no model here"):
        find_model(str(tmp_path))


def test_a_model_without_weights_or_processor(tiny_qwen, tmp_path) -> None:
    shutil.copy(tiny_qwen / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"no weights \(\*\.safetensors\)"):
        find_model(str(tmp_path))
    shutil.copy(tiny_qwen / "model.safetensors", tmp_path)
    with pytest.raises(ConfigError, match="a model without its processor"):
        find_model(str(tmp_path))


def test_a_broken_config(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "processor_config.json").touch()
    with pytest.raises(DataError, match="cannot be read as JSON"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(DataError, match="must hold a JSON object"):
        find_model(str(tmp_path))


def test_a_run_that_did_not_finish(lora_run, tmp_path) -> None:
    shutil.copytree(lora_run, tmp_path / "run", ignore=shutil.ignore_patterns("run.json"))
    with pytest.raises(DataError, match=r"did not finish .*--resume"):
        find_model(str(tmp_path / "run"))


def test_a_file_that_is_no_report(tmp_path) -> None:
    (tmp_path / "run.json").write_text('{"weights": "adapter"}')
    with pytest.raises(DataError, match=r"not the report of a run \(no load_in, data\)"):
        find_model(str(tmp_path))


def test_an_adapter_whose_base_is_gone(lora_run, tmp_path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(lora_run / "adapter", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/base"}))
    with pytest.raises(ConfigError, match="the adapter's base model is gone: /gone/base"):
        find_model(str(adapter))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="does not name the adapter's base model"):
        find_model(str(adapter))


def test_an_adapter_without_weights(lora_run, tmp_path) -> None:
    shutil.copy(lora_run / "adapter" / "adapter_config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"an adapter_config\.json but no weights"):
        find_model(str(tmp_path))


def test_an_adapter_without_processor_takes_its_bases(lora_run, tiny_qwen, tmp_path) -> None:
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(lora_run / "adapter" / file, tmp_path)
    assert find_model(str(tmp_path)).processor == str(tiny_qwen.resolve())


def raise_from_hub(monkeypatch, error: Exception) -> list[tuple]:
    calls = []

    def download(*arguments, **options):
        calls.append((arguments, options))
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return calls


RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://hub.example"))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (LocalEntryNotFoundError("offline"), ResourceError, "the hub cannot be reached"),
        (OSError("no route"), ResourceError, "the hub cannot be reached"),
        (RepositoryNotFoundError("404", response=RESPONSE), ResourceError, "no such model or wants a login"),
        (RevisionNotFoundError("404", response=RESPONSE), ResourceError, "no revision 'v9' of this model"),
        (RemoteEntryNotFoundError("404", response=RESPONSE), ResourceError, "has no config.json"),
        (HFValidationError("bad id"), ConfigError, "not a hub id: bad id"),
    ],
)
def test_what_the_hub_says_becomes_words(error, kind, words, monkeypatch) -> None:
    calls = raise_from_hub(monkeypatch, error)
    started = time.monotonic()
    with pytest.raises(kind, match=words) as caught:
        find_model("owner/name", revision="v9")
    assert time.monotonic() - started < 1
    assert str(caught.value).startswith("owner/name: ")
    assert calls == [(("owner/name", "config.json"), {"revision": "v9"})]


def test_a_hub_id_without_network_fails_at_once(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(ResourceError, match="the hub cannot be reached"):
        find_model("owner/no-such-model-here")
    assert time.monotonic() - started < 1


def test_an_id_of_an_older_guide_has_a_hint(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match=r"cannot be reached; did you mean unsloth/Ministral-3-8B-Instruct-2512\?"):
        find_model("unsloth/Ministral-8B-Vision-2507")


def test_a_hub_models_config_tells_its_family(tiny, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(tiny("gemma3") / "config.json"))
    source = find_model("owner/name", revision="v1")
    assert (source.name, source.processor, source.revision) == ("owner/name", "owner/name", "v1")
    assert not source.is_local
    assert source.family is not None
    assert source.family.name == "gemma3"


def test_the_processor_comes_from_the_models_revision(tiny, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(tiny("gemma3") / "config.json"))
    seen = {}
    monkeypatch.setattr(
        "transformers.AutoProcessor.from_pretrained", lambda name, **options: seen.update(name=name, **options)
    )
    load_processor(find_model("owner/name", revision="v1"))
    assert (seen["name"], seen["revision"]) == ("owner/name", "v1")


def test_a_processor_that_cannot_be_read(tiny_qwen, tmp_path) -> None:
    folder = shutil.copytree(tiny_qwen, tmp_path / "model")
    (folder / "processor_config.json").write_text("{")
    with pytest.raises(ConfigError, match="no usable processor"):
        load_processor(find_model(str(folder)))


def test_a_saved_processor_forgets_the_limits_of_its_last_call(tiny_qwen, tmp_path) -> None:
    source = find_model(str(tiny_qwen))
    save_processor(source, tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (saved["truncation"], saved["padding"]) == (None, None)
