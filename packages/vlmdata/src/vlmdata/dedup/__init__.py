"""Duplicate rows: exact by pixels, near by perceptual hash and a second signal; each dropped row names the kept one."""

from __future__ import annotations

from vlmdata.dedup.contamination import UNVERIFIED_DISTANCE, Contamination, EvaluationImages, find_contamination
from vlmdata.dedup.duplicates import Duplicates, find_duplicates
from vlmdata.dedup.links import ImageLinks, link_images
from vlmdata.dedup.signatures import Signatures, hash_texts

__all__ = [
    "UNVERIFIED_DISTANCE",
    "Contamination",
    "Duplicates",
    "EvaluationImages",
    "ImageLinks",
    "Signatures",
    "find_contamination",
    "find_duplicates",
    "hash_texts",
    "link_images",
]
