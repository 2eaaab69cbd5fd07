"""Writes scikit-learn's handwritten digits as picture files and a CSV, as a data team would hand them over.

Usage: python write_digits.py FOLDER
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDE_PX = 112


def main(folder: Path) -> None:
    """Writes `FOLDER/images/0000.png …` (112 × 112 px, black on white) and `FOLDER/digits.csv`."""
    digits = load_digits()  # 1,797 scans of 8 × 8 px with 17 levels of grey, shipped with the package
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "digits.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "digit"])
        for number, (ink, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            grey = np.round(255 - ink * 255 / 16).astype(np.uint8)
            picture = Image.fromarray(grey).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
            name = f"images/{number:04d}.png"
            picture.convert("RGB").save(folder / name)
            writer.writerow([name, label])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
