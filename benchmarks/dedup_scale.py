"""The search for near hashes at scale: random 256-bit codes, some planted near others, all of which must be found.

python benchmarks/dedup_scale.py [--cases 1000000:15 10000000:15 1000000:31]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
import numpy.typing as npt

from vlmdata.dedup.search import neighbours_within

_SEED = 20_251_121


def planted_codes(count: int, planted: int, distance: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Random codes, and the (planted, 2) pairs of them that are at most `distance` bits apart by design."""
    rng = np.random.default_rng(_SEED)
    codes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    places = rng.choice(count, 2 * planted, replace=False)
    pairs = places.reshape(-1, 2)
    for source, copy in pairs.tolist():
        bits = np.unpackbits(codes[source])
        bits[rng.choice(256, rng.integers(0, distance + 1), replace=False)] ^= 1
        codes[copy] = np.packbits(bits)
    return codes, np.sort(pairs, axis=1)


def measure(count: int, distance: int) -> None:
    """Search once and print a row of the table."""
    codes, wanted = planted_codes(count, min(count // 100, 20_000), distance)
    started = time.perf_counter()
    found = neighbours_within(codes, distance)
    seconds = time.perf_counter() - started
    keys = found.pairs[:, 0] << 32 | found.pairs[:, 1]
    missing = int((~np.isin(wanted[:, 0] << 32 | wanted[:, 1], keys)).sum())
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{count:12,d}{distance:10d}{len(wanted):10,d}{missing:10d}{len(keys):12,d}{seconds:10.1f}{peak_gb:10.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", default=["1000000:15", "10000000:15", "1000000:31"], metavar="CODES:DISTANCE"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(*map(int, options.one.split(":")))
        return
    print(
        f"{'codes':>12s}{'distance':>10s}{'planted':>10s}{'missed':>10s}{'found':>12s}{'seconds':>10s}{'peak GB':>10s}",
        flush=True,
    )
    for case in options.cases:
        # Each in a process of its own, so that the peak of memory is its own.
        subprocess.run([sys.executable, __file__, "--one", case], check=True)


if __name__ == "__main__":
    main()
