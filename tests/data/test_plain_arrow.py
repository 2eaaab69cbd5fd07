"""Arrow does its work without pandas, and finds it when somebody asks for it."""

import subprocess
import sys

import pytest

CODE = """
import sys
import numpy as np
import pyarrow as pa
from vlmdata.plain_arrow import leave_pandas_out

leave_pandas_out()
pa.array(np.arange(3)), np.asarray(pa.array([1.5])), pa.array([True]).to_numpy(zero_copy_only=False)
assert "pandas" not in sys.modules, "imported for nothing"
assert pa.table({"a": [1, 2]}).to_pandas()["a"].sum() == 3
"""


def test_pandas_is_imported_only_where_it_is_asked_for() -> None:
    pytest.importorskip("pandas")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
