"""Checkpoints are whole or not there: a disk that fills up, a kill in the middle, and what goes on afterwards."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vlmdata.errors import ResourceError
from vlmtrain.training import fit
from vlmtrain.whole_folders import as_resource_error, is_write_failure, whole_folder


def tensors_of(folder: Path) -> dict:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


@contextlib.contextmanager
def largest_file(size: int):
    """Within it, the system refuses to write a file beyond this size: real failures of the real writers."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [50_000, 400_000], ids=["weights", "optimizer"])
def test_the_last_whole_checkpoint_survives_a_full_disk(size, settings, stop_at, lora_run) -> None:
    config = settings()
    with largest_file(size) as limit, stop_at(4, act=limit), pytest.raises(ResourceError) as caught:
        fit(config)
    words = str(caught.value)
    assert "checkpoint-4: cannot be written: " in words
    assert words.endswith("checkpoint-3 is whole: make room, and --resume goes on from it")
    assert "\n" not in words
    checkpoints = config.run.out / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} <= {"best", "last", *(f"checkpoint-{n}" for n in (1, 2, 3))}
    assert (checkpoints / "last").resolve().name == "checkpoint-3"
    assert not (config.run.out / "run.json").exists()
    resumed = fit(config, resume=True)
    expected = tensors_of(lora_run / "adapter")
    assert all(tensor.equal(expected[name]) for name, tensor in tensors_of(resumed.weights).items())


def test_a_disk_that_fills_up_with_the_result(settings, monkeypatch) -> None:
    from vlmtrain import training

    save = training._save_weights
    with largest_file(50_000) as limit:

        def save_on_full_disk(*arguments) -> None:
            limit()
            save(*arguments)

        monkeypatch.setattr(training, "_save_weights", save_on_full_disk)
        with pytest.raises(ResourceError, match=r"adapter: cannot be written: .*--resume finishes the run"):
            fit(settings(max_steps=1))
    out = settings().run.out
    assert not (out / "adapter").exists()
    assert not (out / "run.json").exists()
    monkeypatch.undo()
    run = fit(settings(max_steps=1), resume=True)
    assert tensors_of(run.weights)


def test_what_a_kill_left_is_cleared(settings, stop_at, lora_run) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    with stop_at(4, act=die), pytest.raises(Killed):
        fit(settings())
    checkpoints = settings().run.out / "checkpoints"
    shutil.copytree(checkpoints / "checkpoint-3", checkpoints / ".writing" / "checkpoint-4")
    resumed = fit(settings(), resume=True)
    assert not (checkpoints / ".writing").exists()
    expected = tensors_of(lora_run / "adapter")
    assert all(tensor.equal(expected[name]) for name, tensor in tensors_of(resumed.weights).items())


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path) -> None:
    target = tmp_path / "result"
    with whole_folder(target) as folder:
        (folder / "old").touch()

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), whole_folder(target) as folder:
        fail(folder)
    assert os.listdir(target) == ["old"]
    with whole_folder(target) as folder:
        (folder / "new").touch()
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["result"]
    # as a kill leaves it in the middle of such a replacement
    (tmp_path / ".writing" / "result.replaced" / "part").mkdir(parents=True)
    with whole_folder(target) as folder:
        (folder / "newest").touch()
    assert os.listdir(target) == ["newest"]
    assert os.listdir(tmp_path) == ["result"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written: Not a directory; try another"):
        with whole_folder(tmp_path / "file" / "result", "try another"):
            pass


def test_what_torch_says_of_a_full_disk_is_said_as_the_system_says_it() -> None:
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2162176 vs 2162064")
    assert is_write_failure(error)
    said = str(as_resource_error(error, Path("checkpoint-6"), "make room"))
    assert said == "checkpoint-6: cannot be written: No space left on device; make room"
