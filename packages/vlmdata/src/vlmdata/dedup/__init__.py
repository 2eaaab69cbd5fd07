"""Duplicate rows: exact by pixels, near by perceptual hash and a second signal; each dropped row names the kept one."""

from __future__ import annotations

from vlmdata.dedup.duplicates import Duplicates, find_duplicates
from vlmdata.dedup.links import ImageLinks, link_images
from vlmdata.dedup.signatures import Signatures, hash_texts

__all__ = ["Duplicates", "ImageLinks", "Signatures", "find_duplicates", "hash_texts", "link_images"]
