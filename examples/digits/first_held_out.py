"""Prints the file name of the first picture of a split: `python first_held_out.py FOLDER SPLIT`."""

from __future__ import annotations

import sys

from vlmdata.shards import open_folder

if __name__ == "__main__":
    folder, split = sys.argv[1:]
    print(open_folder(folder).split(split)[0]["images"][0]["path"])
