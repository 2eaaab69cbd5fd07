"""The search for kernels that race finds the pattern of Gemma 3's gradients, where it races and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import kernel_readback

# What inductor of torch 2.11 makes of the gradient of a normalised head, shortened: the product with the weight is
# written in 32 bit while it is summed up, and read back once the sum is known.
KERNEL = """
import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties, ReductionHint
triton_helpers.set_driver_to_gpu()

@triton_heuristics.reduction(
    size_hints={'x': 16384, 'r0_': 256},
    reduction_hint=ReductionHint.INNER,
    filename=__file__,
    triton_meta={'signature': {'in_ptr0': '*bf16', 'in_out_ptr0': '*bf16', 'out_ptr0': '*fp32', 'xnumel': 'i32',
        'r0_numel': 'i32', 'XBLOCK': 'constexpr', 'R0_BLOCK': 'constexpr'},
        'device': DeviceProperties(type='cuda', index=0, multi_processor_count=132, cc=90, major=9,
            regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, warp_size=32),
        'constants': {}, 'configs': [{(n,): [['tt.divisibility', 16]] for n in range(5)}]},
    inductor_meta={'num_load': 4, 'num_store': 2, 'num_reduction': 1, 'kernel_name': 'triton_red_norm'}
)
@triton.jit
def triton_red_norm(
    in_ptr0, in_out_ptr0, out_ptr0, xnumel, r0_numel, XBLOCK: tl.constexpr, R0_BLOCK: tl.constexpr
):
    r0_numel = 256
    x = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]
    xmask = x < xnumel
    total = tl.full([XBLOCK, R0_BLOCK], 0, tl.float32)
    for r0_offset in tl.range(0, r0_numel, R0_BLOCK):
        r0 = r0_offset + tl.arange(0, R0_BLOCK)[None, :]
        mask = (r0 < r0_numel) & xmask
        gradient = tl.load(in_ptr0 + (r0 + 256*x), mask, other=0.0).to(tl.float32)
        state = tl.load(in_out_ptr0 + (r0 + 256*x), mask, other=0.0).to(tl.float32)
        total = tl.where(mask, total + gradient * state, total)
        tl.store(out_ptr0 + (r0 + 256*x), gradient, mask)
    total = tl.sum(total, 1)[:, None]
    for r0_offset in tl.range(0, r0_numel, R0_BLOCK):
        r0 = r0_offset + tl.arange(0, R0_BLOCK)[None, :]
        mask = (r0 < r0_numel) & xmask
        # BARRIER
        gradient = tl.load(out_ptr0 + (r0 + 256*x), mask, other=0.0)
        state = tl.load(in_out_ptr0 + (r0 + 256*x), mask, other=0.0).to(tl.float32)
        tl.store(in_out_ptr0 + (r0 + 256*x), (gradient + state * total).to(tl.bfloat16), mask)
"""


def test_wide_rows_are_read_back_by_threads_that_did_not_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made.py").write_text(KERNEL, encoding="utf-8")
    for options, verdict in (
        ([], "BY OTHERS"),
        (["--channels", "256", "128"], "same threads"),
    ):
        monkeypatch.setattr(sys, "argv", ["kernel_readback.py", str(tmp_path), *options])
        kernel_readback.main()
        out = capsys.readouterr().out
        assert out.count("%out_ptr0 is read") == 1
        assert verdict in out
        assert "1 of 1 looped kernels" in out


def test_a_barrier_between_is_seen() -> None:
    [(_, _, buffer, writer, reader, waits)] = kernel_readback.compare_layouts(
        KERNEL.replace("# BARRIER", "tl.debug_barrier()")
    )
    assert (buffer, waits) == ("%out_ptr0", True)
    assert writer != reader


def test_kernels_that_read_nothing_back_are_passed_over() -> None:
    assert kernel_readback.reads_back(KERNEL)
    assert not kernel_readback.reads_back(KERNEL.replace("tl.store(out_ptr0", "tl.store(out_ptr1"))
