"""A run looks at the pictures: rows that their texts cannot tell apart are learned by heart, and not without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


@pytest.mark.slow  # two models are trained for a minute or two
@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_32_rows_are_learned_by_their_pictures() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "overfit.py"), str(SHARED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines()[1:]] == ["1.000", "1.000"]
