"""Triton kernels for attention within short sequences, with the rotation of queries and keys in them.

One program takes one head of one sequence, which fits into a multiprocessor whole: queries, keys and values are read
once from where the projection wrote them, scores never leave the chip, and the backward pass forms them again.
Channels are taken in two halves, since a rotation turns each channel of the first half with one of the second.
"""

# Triton's language has types of its own, which Python's do not describe.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["run_backward", "run_forward"]

_WARPS = 4


@triton.jit
def _load_half(states, rows, columns, mask, row_stride, first):
    return tl.load(states + rows[:, None] * row_stride + first + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _store_half(states, rows, columns, mask, row_stride, first, values):
    place = states + rows[:, None] * row_stride + first + columns[None, :]
    tl.store(place, values.to(states.dtype.element_ty), mask=mask)


@triton.jit
def _rotate(first, second, cos, sin, kind: tl.constexpr):
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (a * cos - b * sin).to(kind), (b * cos + a * sin).to(kind)


@triton.jit
def _weigh(
    qkv, cos, sin, boundaries, scale,
    HEADS: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What both ways begin with: where the program's head and sequence are, its queries and keys, and the weights.

    Returns:
        Rows and columns of the sequence, which of them there are, the first channel of the queries, queries and keys
        by halves, rotated, and `(TOKENS, TOKENS)` float32 probabilities.
    """
    head, sequence = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    start = tl.load(boundaries + sequence).to(tl.int64)
    length = tl.load(boundaries + sequence + 1).to(tl.int64) - start
    tokens, columns = tl.arange(0, TOKENS), tl.arange(0, COLUMNS)
    rows, mask = start + tokens, (tokens < length)[:, None] & (columns < HALF)[None, :]
    width: tl.constexpr = HEADS * 2 * HALF
    query = head * 2 * HALF
    key = query + width
    kind: tl.constexpr = qkv.dtype.element_ty

    c = _load_half(cos, rows, columns, mask, 2 * HALF, 0).to(tl.float32)
    s = _load_half(sin, rows, columns, mask, 2 * HALF, 0).to(tl.float32)
    q1 = _load_half(qkv, rows, columns, mask, 3 * width, query)
    q2 = _load_half(qkv, rows, columns, mask, 3 * width, query + HALF)
    k1 = _load_half(qkv, rows, columns, mask, 3 * width, key)
    k2 = _load_half(qkv, rows, columns, mask, 3 * width, key + HALF)
    q1, q2 = _rotate(q1, q2, c, s, kind)
    k1, k2 = _rotate(k1, k2, c, s, kind)
    scores = (tl.dot(q1, tl.trans(k1)) + tl.dot(q2, tl.trans(k2))) * scale
    scores = tl.where(tokens[None, :] < length, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return rows, columns, mask, query, q1, q2, k1, k2, weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _forward(
    qkv, cos, sin, boundaries, out, scale,
    HEADS: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows, columns, mask, query, _q1, _q2, _k1, _k2, weights = _weigh(
        qkv, cos, sin, boundaries, scale, HEADS, HALF, TOKENS, COLUMNS
    )
    width: tl.constexpr = HEADS * 2 * HALF
    weights = weights.to(qkv.dtype.element_ty)
    for half in tl.static_range(2):
        v = _load_half(qkv, rows, columns, mask, 3 * width, query + 2 * width + half * HALF)
        _store_half(out, rows, columns, mask, width, query + half * HALF, tl.dot(weights, v))


@triton.jit
def _backward(
    qkv, cos, sin, boundaries, d_out, d_qkv, scale,
    HEADS: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows, columns, mask, query, q1, q2, k1, k2, weights = _weigh(
        qkv, cos, sin, boundaries, scale, HEADS, HALF, TOKENS, COLUMNS
    )
    width: tl.constexpr = HEADS * 2 * HALF
    key, value = query + width, query + 2 * width
    kind: tl.constexpr = qkv.dtype.element_ty
    # rows past the end have no gradient: what is loaded for them is zero
    d_weights = tl.zeros((TOKENS, TOKENS), tl.float32)
    for half in tl.static_range(2):
        v = _load_half(qkv, rows, columns, mask, 3 * width, value + half * HALF)
        d = _load_half(d_out, rows, columns, mask, width, query + half * HALF)
        d_weights += tl.dot(d, tl.trans(v))
        d_v = tl.dot(tl.trans(weights.to(kind)), d)
        _store_half(d_qkv, rows, columns, mask, 3 * width, value + half * HALF, d_v)
    d_scores = weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None])
    d_scores = (d_scores * scale).to(kind)
    # Turned back by the angle by which they were turned, read once more: kept, it would push others out of registers.
    c = _load_half(cos, rows, columns, mask, 2 * HALF, 0).to(tl.float32)
    s = _load_half(sin, rows, columns, mask, 2 * HALF, 0).to(tl.float32)
    d_q1, d_q2 = _rotate(tl.dot(d_scores, k1), tl.dot(d_scores, k2), c, -s, tl.float32)
    _store_half(d_qkv, rows, columns, mask, 3 * width, query, d_q1)
    _store_half(d_qkv, rows, columns, mask, 3 * width, query + HALF, d_q2)
    back = tl.trans(d_scores)
    d_k1, d_k2 = _rotate(tl.dot(back, q1), tl.dot(back, q2), c, -s, tl.float32)
    _store_half(d_qkv, rows, columns, mask, 3 * width, key, d_k1)
    _store_half(d_qkv, rows, columns, mask, 3 * width, key + HALF, d_k2)


def run_forward(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, boundaries: torch.Tensor, scale: float, longest: int
) -> torch.Tensor:
    """Attends within each sequence.

    Args:
        qkv: `(T, 3, H, D)` contiguous queries, keys and values as projected; D even, at most 128.
        cos: `(T, D)` contiguous cosines of the rotation, both halves of D alike.
        sin: `(T, D)` contiguous sines, likewise.
        boundaries: `(N + 1,)` beginnings of the sequences and their end.
        scale: Of the scores.
        longest: Most tokens of a sequence, a power of two.

    Returns:
        `(T, H, D)`.
    """
    tokens, _, heads, channels = qkv.shape
    out = qkv.new_empty(tokens, heads, channels)
    _launch(_forward, (qkv, cos, sin, boundaries, out, scale), heads, channels, longest)
    return out


def run_backward(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    boundaries: torch.Tensor,
    scale: float,
    longest: int,
    d_out: torch.Tensor,
) -> torch.Tensor:
    """The gradient of queries, keys and values; see `run_forward`.

    Args:
        qkv: As it went forward.
        cos: As it went forward.
        sin: As it went forward.
        boundaries: As they went forward.
        scale: As it went forward.
        longest: As it went forward.
        d_out: `(T, H, D)` contiguous gradient of what came out.

    Returns:
        `(T, 3, H, D)`.
    """
    _, _, heads, channels = qkv.shape
    d_qkv = torch.empty_like(qkv)
    _launch(_backward, (qkv, cos, sin, boundaries, d_out, d_qkv, scale), heads, channels, longest)
    return d_qkv


def _launch(kernel: Any, arguments: tuple[Any, ...], heads: int, channels: int, longest: int) -> None:
    half, programs = channels // 2, heads * (len(arguments[3]) - 1)
    # a matrix product takes 16 rows and columns or more
    sizes = {"TOKENS": max(16, longest), "COLUMNS": max(16, triton.next_power_of_2(half))}
    kernel[(programs,)](*arguments, HEADS=heads, HALF=half, **sizes, num_warps=_WARPS)
