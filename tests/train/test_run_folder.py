"""When a run's folder may be written to, gone on with, or cleared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from made_rows import make_row
from vlmdata.errors import ConfigError, DataError, ResourceError
from vlmdata.manifest import hash_file
from vlmdata.options import read_yaml
from vlmtrain.config import SECTIONS, FitConfig
from vlmtrain.run_folder import RunFolder, check_run_folder, drop_lines_after, open_run_folder
from vlmtrain.training import fit


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_holds_every_setting(settings) -> None:
    config = settings(r=8, epochs=2.5)
    run = open_run_folder(config, resume=False, overwrite=False)
    assert FitConfig.from_values(read_yaml(run.config, SECTIONS)) == config
    assert yaml.safe_load(run.config.read_text())["r"] == 8
    assert run.path.is_absolute()
    assert run.weights.name == "adapter"
    assert open_run_folder(settings(method="full"), resume=False, overwrite=True).weights.name == "model"


@pytest.mark.parametrize(
    ("finished", "state"),
    [(False, "did not finish; --resume goes on"), (True, "is finished; name another --out")],
)
def test_a_folder_with_a_run_is_left_alone(settings, finished, state) -> None:
    run = open_run_folder(settings(), resume=False, overwrite=False)
    if finished:
        run.finish({"weights": "adapter"})
    before = files_in(run.path)
    with pytest.raises(ConfigError, match=f"a run is here and .*{state}"):
        open_run_folder(settings(), resume=False, overwrite=False)
    assert files_in(run.path) == before


def test_overwrite_removes_what_a_run_writes_and_nothing_else(settings) -> None:
    run = open_run_folder(settings(), resume=False, overwrite=False)
    for name in ("checkpoints/checkpoint-1/model.bin", "adapter/weights", "model/weights", "notes.txt", "mine/data"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).touch()
    run.metrics.touch()
    run.finish({})
    run = open_run_folder(settings(), resume=False, overwrite=True)
    assert files_in(run.path) == {"config.yaml", "notes.txt", "mine/data"}
    assert run.checkpoints.is_dir()


def test_overwrite_of_a_folder_without_a_run_removes_nothing(settings) -> None:
    out = settings().run.out
    (out / "model").mkdir(parents=True)
    (out / "model" / "weights").touch()
    open_run_folder(settings(), resume=False, overwrite=True)
    assert files_in(out) == {"config.yaml", "model/weights"}


def test_resume_needs_a_run_and_its_settings(settings) -> None:
    with pytest.raises(DataError, match="no run to resume here"):
        open_run_folder(settings(), resume=True, overwrite=False)
    open_run_folder(settings(), resume=False, overwrite=False)
    with pytest.raises(ConfigError) as caught:
        open_run_folder(settings(lr=1e-3, seed=5), resume=True, overwrite=False)
    words = str(caught.value)
    assert "a resumed run keeps its settings; changed: lr was 0.01, now 0.001, seed was 3407, now 5" in words
    open_run_folder(settings(workers=2, keep_checkpoints=5, log_steps=3), resume=True, overwrite=False)


def test_resume_and_overwrite_exclude_each_other(settings) -> None:
    open_run_folder(settings(), resume=False, overwrite=False)
    with pytest.raises(ConfigError, match="pass one of them"):
        check_run_folder(settings(), resume=True, overwrite=True)


def test_a_resumed_run_is_no_longer_finished(settings) -> None:
    run = open_run_folder(settings(), resume=False, overwrite=False)
    run.finish({})
    assert not open_run_folder(settings(), resume=True, overwrite=False).report.exists()


def test_a_folder_that_cannot_be_written(settings, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot be written: .*file is no folder"):
        open_run_folder(settings(out=tmp_path / "file" / "run"), resume=False, overwrite=False)


def test_the_newest_whole_checkpoint(tmp_path) -> None:
    run = RunFolder(path=tmp_path, method="lora")
    assert run.last_checkpoint() is None
    for step in (2, 10, 9):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (run.checkpoints / f"checkpoint-{step}" / "trainer_state.json").touch()
    (run.checkpoints / "checkpoint-11").mkdir()
    (run.checkpoints / "checkpoint-12-kept").mkdir()
    (run.checkpoints / "checkpoint-12-kept" / "trainer_state.json").touch()
    last = run.last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-10"


def test_a_log_keeps_lines_whose_texts_hold_other_line_ends(tmp_path) -> None:
    log = tmp_path / "answers.jsonl"
    lines = [json.dumps({"step": step, "answer": "a\u2028b\x85c"}, ensure_ascii=False) for step in (1, 2, 3)]
    log.write_text("\n".join(lines) + '\n{"step": 3, "ans', encoding="utf-8")
    drop_lines_after(log, 2)
    assert log.read_text(encoding="utf-8") == "\n".join(lines[:2]) + "\n"


def test_a_moved_runs_best_checkpoint_is_found_again(tmp_path) -> None:
    run = RunFolder(path=tmp_path, method="lora")
    checkpoint = run.checkpoints / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    state = checkpoint / "trainer_state.json"
    state.write_text(json.dumps({"best_model_checkpoint": "/elsewhere/checkpoints/checkpoint-2", "global_step": 4}))
    run.adopt_checkpoint(checkpoint)
    expected = {"best_model_checkpoint": str(run.checkpoints / "checkpoint-2"), "global_step": 4}
    assert json.loads(state.read_text()) == expected
    state.write_text(json.dumps({"best_model_checkpoint": None}))
    run.adopt_checkpoint(checkpoint)
    assert json.loads(state.read_text()) == {"best_model_checkpoint": None}


def test_a_set_that_was_built_anew_is_not_gone_on_with(settings, build, tmp_path) -> None:
    data = build([make_row(i) for i in range(4)])
    run = fit(settings(data=data, max_steps=1))
    inputs = json.loads(run.inputs.read_text())
    assert inputs["data_manifest_sha256"] == hash_file(data / "manifest.json")
    assert inputs["environment"]["packages"]["trl"]
    build([make_row(i) for i in range(5)])
    with pytest.raises(DataError, match=r"the set was built anew since the run began \(manifest.json was"):
        fit(settings(data=data, max_steps=1), resume=True)
    # nothing but the finished run's mark is gone
    assert json.loads(run.inputs.read_text()) == inputs


def test_inputs_that_cannot_be_read_are_one_line(settings) -> None:
    run = fit(settings(max_steps=1, report=False))
    run.inputs.write_text("{")
    with pytest.raises(DataError, match=r"inputs\.json: cannot be read as JSON"):
        fit(settings(max_steps=1, report=False), resume=True)


def test_a_refused_fit_leaves_the_folder_as_it_was(settings) -> None:
    config = settings(max_length=10)
    with pytest.raises(DataError, match="are longer than --max-length 10"):
        fit(config)
    assert not config.run.out.exists()
    run = open_run_folder(settings(), resume=False, overwrite=False)
    run.finish({"weights": "adapter"})
    before = files_in(run.path)
    with pytest.raises(DataError, match="are longer than --max-length 10"):
        fit(config, overwrite=True)
    assert files_in(run.path) == before


def test_a_place_where_no_folder_can_be_made_is_refused_before_the_model_is_loaded(settings, tmp_path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ResourceError, match=f"{out}: cannot be written: .*file is no folder"):
            check_run_folder(settings(out=out), resume=False, overwrite=False)
    check_run_folder(settings(out=tmp_path / "new" / "run"), resume=False, overwrite=False)


def test_a_run_does_not_go_into_its_set_or_its_model(settings, colours, tiny_qwen) -> None:
    for out, option in ((colours / "train" / "..", "data"), (tiny_qwen, "model")):
        with pytest.raises(ConfigError, match=f"is the folder of --{option}: name another for the run"):
            settings(out=out)
