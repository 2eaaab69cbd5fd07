"""The search for near hashes at scale: random 256-bit codes, some planted near others, all of which must be found.

    python benchmarks/dedup_scale.py [--cases 1000000:15 10000000:15 1000000:31]

Each case runs in a process of its own, so that the peak of memory is its own. Prints one table; exits with 1 where a
planted neighbour is missed, a case takes over ten minutes or 4 GB, or ten times the codes take over 15 times as long.
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
MOST_SECONDS, MOST_GB, MOST_GROWTH = 600, 4, 15


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
        f"{count:12,d}{distance:10d}{len(wanted):10,d}{missing:10d}{len(keys):12,d}{seconds:10.2f}{peak_gb:10.2f}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", default=["1000000:15", "10000000:15", "1000000:31"], metavar="CODES:DISTANCE"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(*map(int, options.one.split(":")))
        return 0
    print(
        f"{'codes':>12s}{'distance':>10s}{'planted':>10s}{'missed':>10s}{'found':>12s}{'seconds':>10s}{'peak GB':>10s}",
        flush=True,
    )
    results = {case: run_case(case) for case in options.cases}
    too_much = [
        case for case, (missed, seconds, gb) in results.items() if missed or seconds > MOST_SECONDS or gb > MOST_GB
    ]
    if {"1000000:15", "10000000:15"} <= results.keys():
        growth = results["10000000:15"][1] / results["1000000:15"][1]
        print(f"ten times as many codes take {growth:.1f} times as long (limit {MOST_GROWTH})")
        too_much += ["growth"] if growth >= MOST_GROWTH else []
    print(f"limits missed: {', '.join(too_much)}" if too_much else "all limits are kept")
    return 1 if too_much else 0


def run_case(case: str) -> tuple[int, float, float]:
    """Print a case's row; return how many neighbours were missed, the seconds and the peak in GB."""
    row = subprocess.run([sys.executable, __file__, "--one", case], check=True, capture_output=True, text=True).stdout
    print(row, end="", flush=True)
    _, _, _, missed, _, seconds, peak_gb = row.replace(",", "").split()
    return int(missed), float(seconds), float(peak_gb)


if __name__ == "__main__":
    sys.exit(main())
