"""Vision attention in one call and in windows on a GPU: no further from float32 than the loop they stand for."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_no_way_is_further_from_float32_than_the_loop() -> None:
    import attention_parity as script

    for case, shape in script.CASES.items():
        ways = {name: errors for name, errors, _ms in script.compare_ways(*shape)}
        loop = ways.pop("loop")
        assert ways
        for name, errors in ways.items():
            for error, of_loop in zip(errors, loop, strict=True):
                assert error <= 1.1 * of_loop < 0.02, (case, name)
