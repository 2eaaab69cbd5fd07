"""One process through Unsloth: `python export_session.py WORK` trains in 4 bit, and leaves what test_exports.py reads.

WORK holds `data` and `model`; the results are a run, its scores in three precisions, three exports, and their scores.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from vlmtrain import cli

FIT = ["--data", "data", "--model", "model", "--out", "run", "--backend", "unsloth", "--load-in", "4bit"]
FIT += ["--max-steps", "100", "--batch-size", "8", "--grad-accum", "1", "--lr", "1e-2", "--eval-steps", "100"]
METRICS = ["--metrics", "exact_match", "--metrics", "cer"]


def main(work: Path) -> None:
    os.chdir(work)
    cli.main(["fit", *FIT])
    cli.main(["eval", "run", *METRICS, "--precision", "4bit,8bit,16bit", "--swap-images", "--compare", "model"])
    cli.main(["eval", "run", "--rank", "--split", "train"])
    for form in ("adapter", "merged_16bit", "merged_4bit"):
        cli.main(["export", "run", "--format", form, "--out", form])
        cli.main(["eval", form, "--data", "data", *METRICS])
    (work / "done").write_text(json.dumps(sys.argv))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
