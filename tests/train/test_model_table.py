"""`vlmtrain models`: every family and hub model, the figures of the processor, and nothing heavy imported for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from PIL import Image

from vlmdata.errors import ConfigError
from vlmdata.families import FAMILIES
from vlmtrain.cli import cli
from vlmtrain.model_table import describe_families, family_facts


def test_the_table_has_every_family_in_one_line() -> None:
    lines = describe_families().splitlines()
    for family in FAMILIES.values():
        [line] = [each for each in lines if each.startswith(f"{family.name} ")]
        assert family.transformers_class in line
        assert family.hub_models[0].id in line
    assert max(map(len, lines)) <= 132


@pytest.mark.parametrize("name", FAMILIES)
def test_all_that_is_known_of_a_family(name) -> None:
    family = FAMILIES[name]
    text = describe_families([name])
    words = " ".join(text.split())
    for known in (family.title, repr(family.response_part), family.vision_module, *family.connector_modules):
        assert known in words
    for model in family.hub_models:
        [line] = [each for each in text.splitlines() if model.id in each]
        assert f"{model.vram_4bit_gb:.1f} GB" in line
    assert ("added to the template" in words) == (not family.template_ends_turns)
    assert max(map(len, text.splitlines())) <= 132


@pytest.mark.parametrize("name", ["qwen3-vl", "ministral3"])
def test_the_example_is_what_the_processor_does(name, chat_of) -> None:
    # these tiny models have the numbers of the real processors
    processor = chat_of(name).processor
    picture = Image.new("RGB", (1000, 750))
    placeholder = processor.image_token
    ids = processor(text=[placeholder], images=[[picture]], add_special_tokens=False)["input_ids"][0]
    assert len(ids) == family_facts(FAMILIES[name])["example"]["tokens"]


def test_an_unknown_family_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gemma3'"):
        describe_families(["gemma"])


def test_the_json_has_all_of_it() -> None:
    shown = json.loads(CliRunner().invoke(cli, ["models", "--json"]).output)
    assert [each["family"] for each in shown] == list(FAMILIES)
    assert shown == [json.loads(json.dumps(family_facts(family))) for family in FAMILIES.values()]


def test_nothing_heavy_is_imported_for_it() -> None:
    heavy = ("torch", "transformers", "datasets", "PIL", "numpy", "pyarrow")
    code = "import sys; from vlmtrain.cli import cli; cli(['models'], standalone_mode=False); "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
