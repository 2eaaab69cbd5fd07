"""The profile of some steps: whole, of a run that ends in the middle of them, and of one that never gets there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vlmdata.errors import MissingDependencyError
from vlmtrain.speed.profile import StepProfile
from vlmtrain.training import fit


class Profiler:
    """torch's, where there is no GPU: one kernel of 3 ms, launched twice a step."""

    def __init__(self, **_) -> None:
        self.running = False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        assert self.running
        self.running = False

    def key_averages(self) -> list:
        kernel = {"device_type": "DeviceType.CUDA", "self_device_time_total": 6000.0, "count": 4, "key": "multiply"}
        host = {**kernel, "device_type": "DeviceType.CPU", "key": "aten::mm"}
        return [SimpleNamespace(**kernel), SimpleNamespace(**host)]


def run(profile: StepProfile, steps: range) -> None:
    for step in steps:
        profile.on_step_begin(None, SimpleNamespace(global_step=step), None)
        profile.on_step_end(None, SimpleNamespace(global_step=step + 1), None)
    profile.on_train_end(None, SimpleNamespace(global_step=steps.stop), None)


@pytest.fixture
def profile(tmp_path, monkeypatch) -> StepProfile:
    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return StepProfile(tmp_path / "profile.txt", first=3, steps=2)


@pytest.mark.parametrize(("last", "busy"), [(8, "GPU busy 3.0 ms, 2 kernels"), (4, "GPU busy 6.0 ms, 4 kernels")])
def test_the_steps_that_were_profiled_are_averaged(last, busy, profile, capsys) -> None:
    run(profile, range(last))
    text = profile.out.read_text()
    assert text.startswith(f"a step: {busy} launched")
    assert "multiply" in text
    assert "aten::mm" not in text
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("steps", [range(3), range(4, 9)])
def test_no_profile_is_said(steps, profile, capsys) -> None:
    run(profile, steps)
    assert not profile.out.exists()
    assert capsys.readouterr().out == "profile: none was made, as step 4 is not among those just done\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_refused_at_once(settings) -> None:
    config = settings(profile_steps=2)
    with pytest.raises(MissingDependencyError, match="--profile-steps needs a GPU, and none is visible to torch"):
        fit(config)
    assert not config.run.out.exists()
