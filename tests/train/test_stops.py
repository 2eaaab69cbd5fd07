"""Signals: before, in and after training, once and twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from vlmtrain.stops import StopRequest

NUMBERS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(("number", "code"), NUMBERS)
def test_in_training_a_first_signal_is_remembered_and_a_second_ends(number, code, capfd) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop, stop.deferred():
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert (stop.signal, stop.exit_code) == (number, code)
        with pytest.raises(SystemExit) as caught:
            os.kill(os.getpid(), signal.SIGINT)
        assert caught.value.code == 130
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    out, err = capfd.readouterr()
    assert out == f"{number.name}: saving a checkpoint after this step; once more ends at once\n"
    assert err == "error: ended by SIGINT; --resume goes on from the last checkpoint\n"


@pytest.mark.parametrize(("number", "code"), NUMBERS)
def test_before_training_a_signal_ends_at_once(number, code, capfd) -> None:
    with pytest.raises(SystemExit) as caught, StopRequest():
        os.kill(os.getpid(), number)
    assert caught.value.code == code
    assert capfd.readouterr().err == f"error: ended by {number.name} before the first step\n"


def test_a_loader_worker_leaves_the_signal_to_its_parent() -> None:
    code = (
        "import os, signal\n"
        "from vlmtrain.stops import StopRequest\n"
        "with StopRequest():\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        os._exit(7)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("7\n", "")
