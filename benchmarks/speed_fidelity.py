"""Whether a fast build costs quality: its pictures against an exact LANCZOS resize of the full-size picture.

The exact way decodes at full size and resamples once, without reducing or decoding at a smaller scale first.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity

from vlmdata.config import ImageConfig
from vlmdata.images import PreparedImage, prepare_image
from vlmdata.images.decoding import decode

__all__ = ["measure_fidelity"]

_SAMPLES = 40
_LEAST_BEFORE, _MOST_LOST_AFTER = 0.99, 0.005


def measure_fidelity(folders: Mapping[str, Path]) -> list[str]:
    """Print the structural similarity before and after encoding, worst and mean; return the limits that are missed."""
    print("\nset       images  SSIM before  (worst)   after  exact after  most lost")
    missed = []
    for kind, folder in folders.items():
        paths = sorted((folder / "images").iterdir())
        figures = np.array([_compare(path.read_bytes()) for path in paths[:: max(1, len(paths) // _SAMPLES)]])
        before, after, exact_after = figures.T
        lost = (exact_after - after).max()
        print(
            f"{kind:8s}{len(figures):8d}{before.mean():13.4f}{before.min():9.4f}{after.mean():8.4f}"
            f"{exact_after.mean():13.4f}{lost:11.4f}",
            flush=True,
        )
        if before.min() < _LEAST_BEFORE or lost > _MOST_LOST_AFTER:
            missed.append(f"{kind}: SSIM {before.min():.4f} before encoding, {lost:.4f} lost after")
    return missed


def _compare(data: bytes) -> tuple[float, float, float]:
    """SSIM against the exact picture of: ours before encoding, ours as stored, the exact picture in the same codec."""
    config = ImageConfig()
    prepared = prepare_image(data, config)
    assert isinstance(prepared, PreparedImage)
    with Image.open(io.BytesIO(data)) as image:
        exact = image.convert("RGB")
    size = (prepared.width, prepared.height)
    if exact.size == size:
        # Stored as it was: nothing is encoded, so the same codec at its best is the file itself.
        stored = _similarity(exact, _open(prepared.data))
        return _similarity(exact, decode(data, config).picture), stored, 1.0
    exact = exact.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    options = {"quality": config.jpeg_quality, "subsampling": 0} if prepared.format == "JPEG" else {}
    exact.save(buffer, prepared.format, **options)
    ours = decode(data, config).picture
    return (
        _similarity(exact, ours),
        _similarity(exact, _open(prepared.data)),
        _similarity(exact, _open(buffer.getvalue())),
    )


def _open(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _similarity(first: Image.Image, second: Image.Image) -> float:
    """The mean SSIM of two RGB pictures as Wang and others defined it: Gaussian weights, sigma 1.5, per channel."""
    arrays = (np.asarray(each.convert("RGB")) for each in (first, second))
    return float(
        structural_similarity(
            *arrays, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )
