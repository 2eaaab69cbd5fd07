"""Trains through Unsloth's code on a CPU, with and without compiled vision blocks: `unsloth_compiled.py --data …`.

torch traces here, which the other tests of this kind switch off, and its variable-length kernel has a stand-in, so that
blocks are traced as on a GPU, in one graph each; graphs then run operation by operation. Runs `fit` twice, into off/
and on/; traced.json gets the number of graphs of vision blocks.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import unsloth_on_cpu

os.environ["TORCHDYNAMO_DISABLE"] = "0"

import torch  # as the line above sets it up
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.attention import varlen

torch._dynamo.config.disable = False
_compile = torch.compile


def compile_quickly(function: Any = None, **options: Any) -> Any:
    """What Unsloth has compiled runs as it was traced: no kernels are made."""
    return _compile(function, **{"backend": "eager"} | {k: v for k, v in options.items() if k != "options"})


torch.compile = compile_quickly


def attend(
    query: Any,
    key: Any,
    value: Any,
    boundaries: Any,
    _keys: Any,
    _longest: int,
    _longest_keys: int,
    _causal: bool,
    scale: float,
    window: Any = None,
    *_: Any,
    **_options: Any,
) -> tuple[Any, ...]:
    """The forward pass of torch's operator; nobody reads the sums of the scores' exponents."""
    weights = _weigh(query, key, boundaries, scale, window)
    out = torch.einsum("hqk,khd->qhd", weights, _as_many(value, query))
    return out.contiguous(), torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def attend_backward(
    gradient: Any,
    query: Any,
    key: Any,
    value: Any,
    _out: Any,
    _sums: Any,
    boundaries: Any,
    _keys: Any,
    _longest: int,
    _longest_keys: int,
    _causal: bool,
    _state: Any,
    scale: float,
    window: Any = None,
    *_: Any,
    **_options: Any,
) -> tuple[Any, ...]:
    """The gradients of queries, keys and values."""
    weights = _weigh(query, key, boundaries, scale, window)
    by_value = torch.einsum("hqk,qhd->khd", weights, gradient)
    by_weight = torch.einsum("qhd,khd->hqk", gradient, _as_many(value, query))
    by_score = weights * (by_weight - (by_weight * weights).sum(-1, keepdim=True)) * scale
    by_key = torch.einsum("hqk,qhd->khd", by_score, query)
    by_query = torch.einsum("hqk,khd->qhd", by_score, _as_many(key, query))
    groups = query.shape[1] // key.shape[1]
    by_key, by_value = (each.unflatten(1, (-1, groups)).sum(2) for each in (by_key, by_value))
    return by_query.contiguous(), by_key.contiguous(), by_value.contiguous()


def _weigh(query: Any, key: Any, boundaries: Any, scale: float, window: Any) -> Any:
    scores = torch.einsum("qhd,khd->hqk", query, _as_many(key, query)) * scale
    rows = torch.bucketize(torch.arange(len(query)), boundaries[1:], right=True)
    seen = rows[:, None] == rows[None]
    if window is not None and tuple(window) == (-1, 0):
        seen &= torch.ones_like(seen).tril()
    return scores.masked_fill(~seen, float("-inf")).softmax(-1)


def _as_many(states: Any, query: Any) -> Any:
    return states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)


def main() -> None:
    """Trains without and with, and writes down what was traced."""
    unsloth_on_cpu.patch_trainer()
    from vlmtrain import arrangement
    from vlmtrain.speed import attention

    varlen._varlen_attn.register_kernel("cpu")(attend)
    varlen._varlen_attn_backward.register_kernel("cpu")(attend_backward)
    attention.kernel_obstacle = lambda device, dtype: None
    arrangement.kernel_obstacle = attention.kernel_obstacle
    graphs = 0

    def count(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return aot_eager(graph, inputs)

    arrangement.compile_vision_blocks = functools.partial(arrangement.compile_vision_blocks, backend=count)
    traced = {}
    for compiled in ("off", "on"):
        unsloth_on_cpu.cli.main(["fit", *sys.argv[1:], "--out", compiled, "--compile-vision", compiled])
        traced[compiled] = graphs
    Path("traced.json").write_text(json.dumps(traced), encoding="utf-8")


if __name__ == "__main__":
    main()
