"""Several processes: one error of many, signals handed on, nothing left behind, and the losses of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from made_rows import make_conversation, make_row, turn, write_folder
from vlmdata.errors import ConfigError
from vlmtrain.launch import in_group, launch
from vlmtrain.processes import claim_device

BEGIN = """
import os, signal, sys, time
from pathlib import Path
from vlmdata.errors import DataError
from vlmtrain import launch
rank = int(os.environ["RANK"])
def fail(error, code):
    launch.report_failure(error, [f"error: {error} ({rank})"], code)
    sys.exit(code)
"""


@pytest.fixture
def program(tmp_path):
    """A program that the processes run, in place of training."""

    def write(code: str) -> list[str]:
        path = tmp_path / "member.py"
        path.write_text(BEGIN + textwrap.dedent(code))
        return [sys.executable, str(path)]

    return write


def test_each_process_knows_its_place(program, capfd) -> None:
    assert launch(3, program("print(rank, os.environ['LOCAL_RANK'], os.environ['WORLD_SIZE'], launch.in_group())")) == 0
    # the first one speaks for all
    assert capfd.readouterr().out == "0 0 3 True\n"
    assert not in_group({})


def test_processes_agree_before_there_is_a_trainer(program, capfd) -> None:
    code = """
        from vlmtrain.processes import agree_on_largest, gather, leave_group
        print(gather(rank), agree_on_largest(rank))
        leave_group()
    """
    assert launch(2, program(code)) == 0
    assert capfd.readouterr().out == "[0, 1] 1\n"


def test_an_error_that_all_meet_is_said_once(program, capfd) -> None:
    assert launch(2, program("fail(DataError('no rows'), 3)")) == 3
    assert capfd.readouterr().err == "error: no rows (0)\n"


def test_the_error_that_the_others_died_of_is_the_one_shown(program, capfd) -> None:
    code = """
        if rank == 1:
            time.sleep(0.3)
            fail(DataError("disk full"), 5)
        time.sleep(0.1)
        fail(RuntimeError("[gloo] Connection closed by peer"), 1)
    """
    assert launch(2, program(code)) == 5
    assert capfd.readouterr().err == "error: disk full (1)\n"


def test_who_hangs_after_another_failed_is_ended(program, capfd, monkeypatch) -> None:
    monkeypatch.setattr("vlmtrain.launch._GRACE", 0.2)
    started = time.monotonic()
    assert launch(2, program("fail(DataError('no rows'), 3) if rank else time.sleep(60)")) == 3
    assert time.monotonic() - started < 20
    assert capfd.readouterr().err == "error: no rows (1)\n"


def test_a_process_that_the_system_ends_is_named(program, capfd, monkeypatch) -> None:
    monkeypatch.setattr("vlmtrain.launch._GRACE", 0.2)
    assert launch(2, program("os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)")) == 5
    expected = "error: process 1 of 2 was ended by SIGKILL (did the machine's memory run out?)\n"
    assert capfd.readouterr().err == expected


def test_a_bug_in_another_process_is_seen(program, capfd) -> None:
    assert launch(2, program("1 / 0 if rank else None")) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("other", ["time.sleep(60)", "fail(RuntimeError('[gloo] Connection closed by peer'), 1)"])
def test_a_process_that_left_by_itself_is_the_one_shown(other, program, capfd, monkeypatch) -> None:
    """As a signal to one process before the first step has it: a line on its own stderr, and no report."""
    monkeypatch.setattr("vlmtrain.launch._GRACE", 0.2)
    code = f"""
        if rank:
            sys.stderr.write("error: ended by SIGTERM before the first step\\n")
            sys.exit(143)
        time.sleep(0.3)
        {other}
    """
    assert launch(2, program(code)) == 143
    assert capfd.readouterr().err == "error: ended by SIGTERM before the first step\n"


def test_what_all_say_for_themselves_is_seen_once(program, capfd) -> None:
    code = """
        time.sleep(0.2 * (1 - rank))
        sys.stderr.write("error: ended by SIGTERM before the first step\\n")
        sys.exit(143)
    """
    assert launch(2, program(code)) == 143
    assert capfd.readouterr().err == "error: ended by SIGTERM before the first step\n"


WAIT = """
    stops = []
    signal.signal(signal.SIGTERM, lambda number, frame: stops.append(number))
    (Path(sys.argv[0]).parent / f"ready-{rank}").touch()
    while len(stops) < NEEDED:
        time.sleep(0.02)
    (Path(sys.argv[0]).parent / f"stopped-{rank}").touch()
    sys.exit(143)
"""


def start_launcher(command: list[str]) -> subprocess.Popen:
    code = f"import sys; from vlmtrain.launch import launch; sys.exit(launch(2, {command!r}))"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def await_files(folder: Path, pattern: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("needed", [1, 2])
def test_signals_are_handed_on(needed, program, tmp_path) -> None:
    with start_launcher(program(WAIT.replace("NEEDED", str(needed)))) as launcher:
        await_files(tmp_path, "ready-*", 2)
        for _ in range(needed):
            launcher.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert launcher.wait(60) == 143
    assert {path.name for path in tmp_path.glob("stopped-*")} == {"stopped-0", "stopped-1"}


def test_no_process_outlives_the_one_that_started_it(program, tmp_path) -> None:
    code = """
        launch.watch_parent()
        (Path(sys.argv[0]).parent / f"ready-{os.getpid()}").touch()
        time.sleep(60)
    """
    with start_launcher(program(code)) as launcher:
        await_files(tmp_path, "ready-*", 2)
        launcher.kill()
    deadline = time.monotonic() + 20
    for path in tmp_path.glob("ready-*"):
        while Path(f"/proc/{path.name.partition('-')[2]}/cmdline").exists():
            if "zombie" in Path(f"/proc/{path.name.partition('-')[2]}/status").read_text():
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_as_many_processes_as_asked_for(monkeypatch) -> None:
    with pytest.raises(
        ConfigError, match=r"gpus 2, but the run has 1 processes: start it with `vlmtrain fit --gpus 2`"
    ):
        claim_device(2)


def fit_in_processes(folder: Path, out: str, *options: object, count: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlmtrain", "fit", "fit.yaml", "--out", out, "--gpus", count, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, env=environment)


SETTINGS = {"backend": "transformers", "max_steps": 4, "lr": 1e-2, "batch_size": 2, "warmup": 0.0, "eval_steps": 2}


@pytest.fixture(scope="module")
def work(tiny, tmp_path_factory) -> Path:
    """Rows of one and two answers, with and without pictures, and a model whose last vision layer is idle."""
    folder = tmp_path_factory.mktemp("group")
    train = [make_row(i, turns=1 + (i % 3 == 0), images=1) for i in range(20)]
    train += [make_conversation(i, [turn("user", "Hello?"), turn("assistant", "Yes.")]) for i in range(20, 24)]
    write_folder(folder / "data", {"train": train, "val": [make_row(100 + i, turns=1 + 2 * (i % 2)) for i in range(5)]})
    settings = SETTINGS | {"data": "data", "model": str(tiny("llava-1.6")), "eval_metrics": ["exact_match", "cer"]}
    (folder / "fit.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def work_of_pictures(tiny_qwen, tmp_path_factory) -> Path:
    """The same where each row has pictures and each layer a gradient."""
    folder = tmp_path_factory.mktemp("group-of-pictures")
    train = [make_row(i, turns=1 + (i % 3 == 0), images=1 + i % 2) for i in range(24)]
    write_folder(folder / "data", {"train": train, "val": [make_row(100 + i) for i in range(5)]})
    settings = SETTINGS | {"data": "data", "model": str(tiny_qwen), "eval_metrics": ["exact_match", "cer"]}
    (folder / "fit.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return folder


IDLE = "processes: each looks in every step for layers without a gradient, which takes time (4 rows have no pictures)"


@pytest.mark.slow  # twice, three processes import torch and trl, some ten seconds each
@pytest.mark.parametrize(("folder", "idle"), [("work", True), ("work_of_pictures", False)])
def test_two_processes_learn_what_one_learns(folder, idle, request) -> None:
    from safetensors.torch import load_file

    work = request.getfixturevalue(folder)
    for count, passes in ((1, 4), (2, 2)):
        done = fit_in_processes(work, f"run-{count}", "--grad-accum", passes, count=count)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("error") == 0
        assert done.stdout.count("step 1/4: loss") == 1
        assert (IDLE in done.stdout) == ("processes: " in done.stdout) == (idle and count == 2)
    logs = [
        [json.loads(line) for line in (work / f"run-{count}" / "metrics.jsonl").read_text().splitlines()]
        for count in (1, 2)
    ]
    for alone, together in zip(*logs, strict=True):
        for key in {"loss", "eval_loss", "grad_norm", "eval_exact_match", "eval_cer", "learning_rate"} & set(alone):
            assert together[key] == pytest.approx(alone[key], rel=1e-4), (key, alone["step"])
        if "tokens_per_second" in alone:
            # the same rows in the same passes, whoever computes them
            tokens = [line["tokens_per_second"] * line["step_seconds"] for line in (alone, together)]
            assert tokens[1] == pytest.approx(tokens[0], rel=0.01)
    answers = [(work / f"run-{count}" / "answers.jsonl").read_text() for count in (1, 2)]
    assert answers[0] == answers[1]
    weights = [load_file(work / f"run-{count}" / "adapter" / "adapter_model.safetensors") for count in (1, 2)]
    # AdamW makes whole steps of gradients that are rounding alone; they are few
    apart = {name: float((each - weights[1][name]).norm() / each.norm()) for name, each in weights[0].items()}
    assert max(apart.values()) < 0.02, max(apart, key=apart.get)
    reports = [json.loads((work / f"run-{count}" / "run.json").read_text()) for count in (1, 2)]
    assert [report["processes"] for report in reports] == [1, 2]


@pytest.mark.slow  # as above
def test_two_processes_stop_together_and_go_on(work) -> None:
    command = [sys.executable, "-m", "vlmtrain", "fit", "fit.yaml", "--out", "stopped", "--gpus", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["--max-steps", "10", "--eval-steps", "10"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=work, env=environment, **pipes) as process:
        for line in process.stdout:
            if line.startswith("step 3/10: loss"):
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
        error = process.stderr.read()
    assert process.returncode == 143, error
    assert error.startswith("error: stopped by signal 15 after step ")
    assert error.count("\n") == 1
    last = (work / "stopped" / "checkpoints" / "last").resolve()
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"} <= {path.name for path in last.iterdir()}
    # one more step is enough to see that it goes on
    state = json.loads((last / "trainer_state.json").read_text())
    assert state["global_step"] < 10
    refused = fit_in_processes(work, "stopped", "--resume", "--max-steps", 11, "--eval-steps", 10, count=2)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: stopped: a resumed run keeps its settings; changed: max_steps was 10")
    assert refused.stderr.count("\n") == 1
    done = fit_in_processes(work, "stopped", "--resume", "--max-steps", 10, "--eval-steps", 10, count=2)
    assert done.returncode == 0, done.stderr
    assert f"resuming from {last.name}" in done.stdout
