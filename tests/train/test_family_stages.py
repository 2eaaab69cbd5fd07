"""Every family from a folder to an answering export: the stages of the benchmark, in one process on a CPU."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import GenerationConfig

import family_stages
from vlmdata.families import FAMILIES
from vlmtrain.processors import load_chat_format, load_processor
from vlmtrain.source import find_model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_through_all_stages(name, tiny, colours, tmp_path) -> None:
    stages = family_stages.run_stages(tiny(name), colours, tmp_path, backend="transformers", load_in="32bit")
    found = dict(stages)
    assert [stage for stage in found if not found[stage]["ok"]] == [], found
    assert list(found) == [stage for stage in family_stages.STAGES if stage != "losses"]
    assert found["check"]["longest_row_tokens"] > 20
    losses = found["fit"]["losses"]
    assert len(losses) == 4
    # logits of a fresh model are near chance
    assert 0 < min(losses) <= max(losses) < 20
    assert found["eval"]["rows"] == 4
    export = found["export"]
    # the last layer of LLaVA's CLIP is not used, so that its adapters stay at zero
    assert 0.8 * export["adapted_layers"] < export["changed_layers"] <= export["adapted_layers"]
    assert export["agreeing_tokens"] == export["clear_positions"]
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["family"] == name


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_stops_where_training_ended_answers(name, tiny) -> None:
    source = find_model(str(tiny(name)))
    chat = load_chat_format(source, load_processor(source))
    stops = GenerationConfig.from_pretrained(source.name).eos_token_id
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}
    text = chat.render([question, {"role": "assistant", "content": [{"type": "text", "text": "red"}]}])
    ids = chat.processor.tokenizer(text.partition("red")[2], add_special_tokens=False)["input_ids"]
    assert ids[0] in (stops if isinstance(stops, list) else [stops])


OWN_TEMPLATE = """\
{% for m in messages %}<{{ m.role }}>
{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}
{{ '</s>' if m.role == 'assistant' }}{% endfor %}{% if add_generation_prompt %}<assistant>
{% endif %}"""


def test_a_model_of_no_known_family_goes_through_all_stages(tiny, colours, tmp_path, capsys) -> None:
    model = shutil.copytree(tiny("llava-1.5"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    # LLaVA on another language model has another template, and is none of the families
    config["text_config"]["model_type"] = "mistral"
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (model / "chat_template.jinja").write_text(OWN_TEMPLATE, encoding="utf-8")
    assert find_model(str(model)).family is None
    found = dict(family_stages.run_stages(model, colours, tmp_path / "out", backend="transformers", load_in="32bit"))
    assert [stage for stage in found if not found[stage]["ok"]] == [], found
    said = capsys.readouterr().out
    assert "(family unknown)" in said
    assert "<assistant>\n⟦white" in said
