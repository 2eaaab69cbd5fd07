"""The program from outside: its chain of commands, exit codes, one line an error, and answering --help at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from made_rows import make_conversation, turn, write_folder
from vlmdata.errors import DataError
from vlmtrain.cli import cli, main

COMMANDS = ("fit", "check", "preview", "plan", "models", "eval", "generate", "export", "tiny")


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def places(colours, tiny, tiny_qwen, lora_run, tmp_path) -> dict[str, str]:
    """Names in the command lines below, and what they stand for."""
    text_first = make_conversation(0, [turn("user", "Which?", None), turn("assistant", "red")], [(56, 56)])
    (tmp_path / "unbuilt").mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_qwen / file, bare)
    (tmp_path / "wrong.yaml").write_text("max_stesp: 3\n")
    (tmp_path / "broken.yaml").write_text("max_steps: [\n")
    unfinished = tmp_path / "unfinished"
    (unfinished / "checkpoints").mkdir(parents=True)
    (unfinished / "config.yaml").touch()
    return {
        "DATA": str(colours),
        "MODEL": str(tiny_qwen),
        "TEXT_FIRST": str(write_folder(tmp_path / "text-first", {"train": [text_first]})),
        "LLAVA": str(tiny("llava-1.5")),
        "RUN": str(lora_run),
        "OUT": str(tmp_path / "out"),
        "NOWHERE": str(tmp_path / "nowhere"),
        "UNBUILT": str(tmp_path / "unbuilt"),
        "BARE": str(bare),
        "UNFINISHED": str(unfinished),
        "WRONG": str(tmp_path / "wrong.yaml"),
        "BROKEN": str(tmp_path / "broken.yaml"),
        "CUT": str(cut_short(colours, tmp_path / "cut")),
    }


def cut_short(folder: Path, copy: Path) -> Path:
    """The same set with a shard that ends too early."""
    shutil.copytree(folder, copy)
    shard = next((copy / "train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:4096])
    return copy


FIT = ["fit", "--data", "DATA", "--model", "MODEL", "--out", "OUT"]


def fit_with(**values: str) -> list[str]:
    command = list(FIT)
    for name, value in values.items():
        command[command.index(f"--{name}") + 1] = value
    return command


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (fit_with(data="NOWHERE"), 3, "no manifest.json (the folder does not exist); run `vlmdata build"),
        (fit_with(data="UNBUILT"), 3, "no manifest.json (the build did not finish, or this is no built folder)"),
        (fit_with(data="CUT"), 3, "data-00000-of-00001.arrow: 4096 bytes, the manifest says "),
        ([*FIT, "--report-to", "wandb"], 4, "report_to wandb: not installed; pip install wandb"),
        (
            [*FIT, "--best-metric", "cer"],
            2,
            "best_metric 'cer' is not computed in the run: choose from loss, or add it",
        ),
        ([*FIT, "--val-split", "dev"], 3, "--val-split dev needs rows in a split 'dev', and there are none"),
        ([*FIT, "--gpus", "0"], 2, "gpus must be positive, not 0"),
        (fit_with(model="BARE"), 2, "a model without its processor (no processor_config.json)"),
        (fit_with(model="NOWHERE"), 2, "no such model folder, and not a hub id"),
        (fit_with(model="UNBUILT"), 2, "no model here"),
        (fit_with(model="UNFINISHED"), 3, "the run did not finish"),
        (fit_with(data="TEXT_FIRST", model="LLAVA"), 3, "template of LLaVA 1.5 would move the image to the front"),
        (fit_with(out="UNFINISHED"), 2, "a run is here and was begun and did not finish; --resume goes on with it"),
        (["fit", "WRONG", *FIT[1:]], 2, "unknown key 'max_stesp'; did you mean 'max_steps'?"),
        (["fit", "BROKEN", *FIT[1:]], 2, "not a YAML file"),
        (["fit", "NOWHERE", *FIT[1:]], 2, "cannot read the config file"),
        ([*FIT, "--backend", "unsloth"], 4, "but no GPU is visible to torch; use --backend transformers"),
        (
            [*FIT, "--load-in", "4bit"],
            4,
            "load_in '4bit' needs a GPU, and none is visible to torch; use 32bit or 16bit",
        ),
        ([*FIT, "--load-in", "8bit"], 4, "load_in '8bit' needs a GPU"),
        ([*FIT, "--load-in", "4bit", "--method", "full"], 2, "quantised weights cannot be trained"),
        ([*FIT, "--load-in", "5bit"], 2, "'5bit' is not one of"),
        ([*FIT, "--max-length", "20"], 3, "24 of 24 rows are longer than --max-length 20"),
        ([*FIT, "--train-split", "training"], 3, "no split 'training'; it has 'train', 'val'"),
        ([*FIT, "--resume"], 3, "no run to resume here"),
        ([*FIT, "--resume", "--overwrite"], 2, "pass one of them"),
        ([*FIT, "--instruction-part", "###"], 2, "go together: pass both or neither"),
        ([*FIT, "--max-stesp", "3"], 2, "No such option '--max-stesp'"),
        ([*FIT, "--lr", "fast"], 2, "'fast' is not a valid float"),
        (["fit", "--data", "DATA", "--model", "MODEL"], 2, "--out is missing"),
        (["check", "--data", "TEXT_FIRST", "--model", "LLAVA"], 3, "train: 1 rows (rows 0) have text before an image"),
        (["eval", "NOWHERE"], 2, "no such model folder"),
        (["eval", "MODEL"], 2, "--data is missing"),
        (["eval", "RUN", "--split", "test"], 3, "no split 'test'"),
        (["eval", "RUN", "--metrics", "accuracy"], 2, "unknown metric 'accuracy'"),
        (["generate", "RUN"], 2, "pass either --prompt (with --image) or --batch"),
        (["generate", "RUN", "--prompt", "?", "--image", "NOWHERE"], 2, "no such picture"),
        (["generate", "RUN", "--prompt", "?", "--backend", "unsloth"], 4, "use --backend transformers"),
        (["eval", "RUN", "--precision", "4bit,16bit"], 4, "load_in '4bit' needs a GPU"),
        (["eval", "RUN", "--precision", "5bit"], 2, "precision: '5bit' is not one of 4bit, 8bit, 16bit, 32bit"),
        (["eval", "RUN", "--rank", "--swap-images"], 2, "--rank asks for no answers"),
        (["export", "RUN"], 2, "--out is missing"),
        (["export", "RUN", "--out", "OUT", "--format", "merged_4bit"], 4, "needs a GPU, and none is visible"),
        (
            ["export", "RUN", "--out", "OUT", "--format", "gguf", "--llama-cpp", "UNBUILT"],
            2,
            "name the folder of a llama",
        ),
        (["export", "RUN", "--out", "OUT", "--push", "colours"], 2, "not a repository of the form OWNER/NAME"),
        (["export", "RUN", "--out", "OUT", "--public"], 2, "--public goes with --push"),
        (["export", "MODEL", "--out", "OUT", "--format", "adapter"], 2, "has no adapter to export"),
        (["export", "RUN", "--out", "MODEL", "--overwrite"], 2, "holds the model that is to be exported"),
        (["tiny", "qwen9-vl", "OUT"], 2, "unknown family 'qwen9-vl'"),
        (["tiny", "qwen2.5-vl", "OUT", "--hidden-size", "33"], 2, "hidden_size must be a positive multiple of 32"),
        (["tiny", "qwen2.5-vl", "BROKEN"], 5, "broken.yaml: cannot be written: File exists"),
        (["fly"], 2, "No such command 'fly'"),
    ],
)
def test_an_error_is_one_line_and_a_code(arguments, code, message, places, capsys) -> None:
    found, _, err = run(capsys, *[places.get(each, each) for each in arguments])
    # what the libraries below say is theirs; what this program says is one line
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (found, len(said)) == (code, 1), err
    assert message in said[0]
    assert "Traceback" not in err
    assert not Path(places["OUT"]).exists()


def test_every_mistake_of_a_config_is_a_line(places, tmp_path, capsys) -> None:
    (tmp_path / "fit.yaml").write_text("max_stesp: 3\nlr: fast\n")
    code, _, err = run(capsys, "fit", tmp_path / "fit.yaml")
    assert code == 2
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["error"] * 2
    code, _, err = run(capsys, "fit", "--r", "0", "--eval-rows", "0")
    assert len(err.splitlines()) == 5


def test_no_command_is_usage(capsys) -> None:
    code, _, err = run(capsys)
    assert code == 2
    assert err.startswith("Usage: vlmtrain")


def test_the_chain(colours, tmp_path, capsys) -> None:
    model, out, merged = tmp_path / "model", tmp_path / "run", tmp_path / "merged"
    code, text, _ = run(capsys, "tiny", "qwen2.5-vl", model, "--hidden-size", 64, "--layers", 2)
    assert (code, text) == (0, f"{model}: a tiny qwen2.5-vl model\n")
    code, text, _ = run(capsys, "check", "--data", colours, "--model", model)
    assert code == 0
    assert text.endswith("checked: this set can be trained on\n")
    config = tmp_path / "fit.yaml"
    config.write_text(f"data: {colours}\nmodel: {model}\nmax_steps: 9\nbatch_size: 2\ngrad_accum: 1\nlr: 1e-2\n")
    # what is given on the command line wins over the file
    code, text, _ = run(capsys, "fit", config, "--out", out, "--max-steps", 2)
    assert code == 0
    assert text.endswith(f"done: {out / 'adapter'}\n")
    assert json.loads((out / "run.json").read_text())["config"]["max_steps"] == 2
    code, text, _ = run(capsys, "eval", out, "--metrics", "exact_match", "--metrics", "cer", "--rows", 3)
    assert code == 0
    assert text.startswith(f"val: 3 rows of {colours}, weights in 32bit\n")
    assert json.loads((out / "eval-val.json").read_text())["rows"] == 3
    code, text, _ = run(capsys, "export", out, "--out", merged)
    assert code == 0
    assert f"{merged}: merged_16bit, checked on 6 rows" in text
    Image.new("RGB", (56, 56), "red").save(tmp_path / "red.png")
    code, text, _ = run(
        capsys, "generate", merged, "--image", tmp_path / "red.png", "--prompt", "Which?", "--max-new-tokens", 4
    )
    assert code == 0
    (tmp_path / "batch.jsonl").write_text('{"prompt": "Which?", "image": "red.png"}\n')
    _, lines, _ = run(capsys, "generate", merged, "--batch", tmp_path / "batch.jsonl", "--max-new-tokens", 4)
    assert json.loads(lines) == {"prompt": "Which?", "image": "red.png", "answer": text.rstrip("\n")}
    # a run's own config repeats it
    code, _, _ = run(capsys, "fit", out / "config.yaml", "--out", tmp_path / "again")
    assert code == 0
    reports = [json.loads((folder / "run.json").read_text()) for folder in (out, tmp_path / "again")]
    assert reports[0]["last_loss"] == reports[1]["last_loss"]


def test_a_bug_is_a_traceback(places, monkeypatch) -> None:
    monkeypatch.setattr("vlmtrain.preparation.prepare", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["check", "--data", places["DATA"], "--model", places["MODEL"]])


def test_ctrl_c_is_a_line(places, monkeypatch, capsys) -> None:
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlmtrain.preparation.prepare", interrupt)
    code, _, err = run(capsys, "check", "--data", places["DATA"], "--model", places["MODEL"])
    # click ends the line of the terminal's ^C first
    assert (code, err) == (130, "\nerror: interrupted\n")


def test_an_error_of_the_data_is_not_taken_apart(places, monkeypatch, capsys) -> None:
    def fail(_):
        raise DataError("first; second")

    monkeypatch.setattr("vlmtrain.preparation.prepare", fail)
    arguments = ["check", "--data", places["DATA"], "--model", places["MODEL"]]
    assert run(capsys, *arguments) == (3, "", "error: first; second\n")


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    assert set(COMMANDS) == set(cli.commands)
    heavy = {
        "torch",
        "transformers",
        "peft",
        "trl",
        "unsloth",
        "datasets",
        "numpy",
        "pyarrow",
        "PIL",
        "huggingface_hub",
    }
    code = f"""
        import sys
        from vlmtrain.cli import main
        for arguments in [["--help"], *([name, "--help"] for name in {COMMANDS!r})]:
            main(arguments)
            assert not {heavy!r} & set(sys.modules), (arguments, {heavy!r} & set(sys.modules))
    """
    out = run_python(code)
    for option in ("--data", "--over-long", "--finetune-vision-layers", "--swap-images", "--check-rows", "--batch"):
        assert f"  {option}" in out
    assert "[default: 16]" in out


def test_the_package_is_light_until_it_is_used() -> None:
    code = """
        import sys, vlmtrain
        assert "torch" not in sys.modules
        print(sorted(vlmtrain.__all__) == sorted(name for name in vlmtrain.__all__ if getattr(vlmtrain, name)))
        try:
            vlmtrain.nothing
        except AttributeError as error:
            print(error)
    """
    assert run_python(code).splitlines() == ["True", "module 'vlmtrain' has no attribute 'nothing'"]
