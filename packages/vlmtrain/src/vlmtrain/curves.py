"""Learning curves of a run as a PNG: losses, metrics of answers, learning rate and gradient norm over the steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from vlmtrain.metrics import METRICS

__all__ = ["draw_curves", "smooth"]

_PANEL_INCHES = (5.4, 3.1)
_DOTS_PER_INCH = 160
_SMOOTH_FROM = 40
"""Points from which a running mean is drawn over the losses of single steps."""
_INK, _SOFT, _BLUE, _ORANGE, _GREEN = "#1d2330", "#aab4c4", "#3a6fb0", "#c8743a", "#2f8f5b"


def draw_curves(logs: Sequence[Mapping[str, Any]], *, best_step: int | None = None) -> bytes:
    """Draws what metrics.jsonl holds.

    Args:
        logs: Its lines.
        best_step: Is marked in the panels of losses and metrics.

    Returns:
        A PNG; its bytes depend on nothing but the arguments and matplotlib's version.
    """
    # without pyplot: no window system is looked for, and nothing is kept between two drawings
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = [name for name in METRICS if any(f"eval_{name}" in log for log in logs)]
    panels = 2 + bool(metrics) + 1
    rows = -(-panels // 2)
    figure = Figure(figsize=(2 * _PANEL_INCHES[0], rows * _PANEL_INCHES[1]), layout="constrained", facecolor="white")
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    _draw_losses(axes[0], logs, best_step)
    if metrics:
        _draw_metrics(axes[1], logs, metrics, best_step)
    for axis, key, title in zip(
        axes[1 + bool(metrics) :], ("learning_rate", "grad_norm"), ("learning rate", "gradient norm"), strict=False
    ):
        axis.plot(*_series(logs, key), color=_BLUE, linewidth=1.2)
        axis.set_title(title, loc="left", fontsize=10)
    for axis in axes:
        if not axis.has_data():
            axis.set_visible(False)
            continue
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8, colors=_INK)
        axis.grid(color=_SOFT, alpha=0.35, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(out, format="png", metadata={"Software": None}, dpi=_DOTS_PER_INCH)
    return out.getvalue()


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values at each place, of fewer at the beginning."""
    means = []
    for end in range(1, len(values) + 1):
        part = values[max(0, end - window) : end]
        means.append(sum(part) / len(part))
    return means


def _series(logs: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(log["step"], log[key]) for log in logs if key in log]
    return [step for step, _ in points], [value for _, value in points]


def _draw_losses(axis: Any, logs: Sequence[Mapping[str, Any]], best_step: int | None) -> None:
    steps, losses = _series(logs, "loss")
    if len(losses) >= _SMOOTH_FROM:
        window = len(losses) // 20
        axis.plot(steps, losses, color=_SOFT, linewidth=0.8, label="loss of a step")
        axis.plot(steps, smooth(losses, window), color=_BLUE, linewidth=1.6, label=f"mean of {window} steps")
    else:
        axis.plot(steps, losses, color=_BLUE, linewidth=1.4, label="loss of a step")
    steps, losses = _series(logs, "eval_loss")
    if losses:
        axis.plot(steps, losses, color=_ORANGE, marker="o", markersize=3.5, linewidth=1.4, label="val")
    _mark_best(axis, best_step)
    axis.set_title("loss", loc="left", fontsize=10)
    axis.legend(fontsize=8, frameon=False)


def _draw_metrics(axis: Any, logs: Sequence[Mapping[str, Any]], metrics: Sequence[str], best_step: int | None) -> None:
    for name in metrics:
        direction = "↑" if METRICS[name].higher_is_better else "↓"
        axis.plot(
            *_series(logs, f"eval_{name}"), marker="o", markersize=3.5, linewidth=1.4, label=f"{name} {direction}"
        )
    _mark_best(axis, best_step)
    axis.set_title("answers to val rows", loc="left", fontsize=10)
    axis.legend(fontsize=8, frameon=False)


def _mark_best(axis: Any, best_step: int | None) -> None:
    if best_step is not None:
        axis.axvline(best_step, color=_GREEN, linewidth=1, linestyle="--", label="kept")
