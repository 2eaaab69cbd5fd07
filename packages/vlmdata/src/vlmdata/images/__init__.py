"""Encoded files of any kind become upright 8-bit sRGB pictures of a wanted size, decoded once each."""

from __future__ import annotations

from vlmdata.images.outcome import ImageProblem, PreparedImage
from vlmdata.images.prepare import prepare_image, prepare_pages

__all__ = ["ImageProblem", "PreparedImage", "prepare_image", "prepare_pages"]
