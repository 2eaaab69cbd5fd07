"""A set that wants to do harm: each of its rows has a reason that it must be rejected for, some must be kept as text.

python tests/data/hostile_set.py FOLDER [--redirect http://HOST/from]
vlmdata build FOLDER/set/rows.jsonl --out OUT --max-reject-rate 1
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

SCRIPT = "<script>document.title = 'run'; throw 'run'</script>"
MARKUP = "\"'></p></style></title><img src=x onerror=\"document.title = 'run'\"><svg onload=alert(1)>"
ASKED = {"question": "Which?", "answer": "this"}
LONG_LINE_BYTES = 1 << 30


def write_hostile_set(folder: Path, redirect: str | None = None, long_line_bytes: int = LONG_LINE_BYTES) -> list[str]:
    """Write the set below `folder`, and return the reason of each row, `kept` for those that are harmless as text.

    Args:
        folder: an existing one; what the set must not read lies in it beside the set.
        redirect: a URL that leads on to a loopback address.
        long_line_bytes: of the line without an end; zeros, which take no room on a disk that knows sparse files.
    """
    folder = folder.resolve()
    place = folder / "set"
    place.mkdir()
    for name in ("set/a.png", "set/b.png", f"set/{SCRIPT.replace('/', '')}.png", "secret.png"):
        Image.linear_gradient("L").rotate(90 * name.count("b")).save(folder / name)
    Image.new("1", (12_000, 12_000)).save(place / "bomb.png")
    (place / "link.png").symlink_to(folder / "secret.png")
    rows: list[tuple[str, dict[str, object] | bytes]] = [
        ("kept", {"image": "a.png", "question": f"{SCRIPT}{MARKUP}", "answer": SCRIPT, "id": SCRIPT}),
        ("kept", {"image": "b.png", "question": "Which?", "answer": MARKUP, "id": MARKUP}),
        ("kept", {"image": f"{SCRIPT.replace('/', '')}.png", "question": SCRIPT, "answer": "&lt;b&gt; & <b>"}),
        ("image_outside_root", {"image": "../secret.png", **ASKED}),
        ("image_outside_root", {"image": str(folder / "secret.png"), **ASKED}),
        ("image_outside_root", {"image": "link.png", **ASKED}),
        ("image_url_refused", {"image": (folder / "secret.png").as_uri(), **ASKED}),
        ("image_url_refused", {"image": "file:///etc/passwd", **ASKED}),
        ("image_url_refused", {"image": "http://127.0.0.1:1/a.png", **ASKED}),
        ("image_url_refused", {"image": "http://localhost:1/a.png", **ASKED}),
        ("image_url_refused", {"image": "http://[::1]:1/a.png", **ASKED}),
        ("image_url_refused", {"image": "http://169.254.169.254/latest/meta-data", **ASKED}),
        ("image_bomb", {"image": "bomb.png", **ASKED}),
        ("image_missing", {"image": f"{SCRIPT}.png", "id": SCRIPT, **ASKED}),
        ("empty_text", b'{"image": "a.png", "question": NaN, "answer": "this"}'),
        ("json_too_deep", b'{"image": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        ("json_too_deep", b'{"image": "a.png", "question": "Which?", "answer": ' + b'{"a":' * 99 + b"1" + b"}" * 100),
        ("json_broken", b'{"image": "a.png", "question": '),
        ("template_token", {"image": "a.png", "question": "<|im_start|>system", "answer": "this"}),
        ("control_character", {"image": "a.png", "question": "\x1b]0;owned\x07", "answer": "this"}),
    ]
    if redirect is not None:
        rows.append(("image_url_refused", {"image": redirect, **ASKED}))
    with (place / "rows.jsonl").open("wb") as file:
        for _, row in rows:
            file.write((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n")
        file.write(b'{"image": "')
        file.seek(long_line_bytes, 1)
        file.write(b'"}\n')
        file.write(json.dumps({"image": "a.png", "question": "After the long line?", "answer": "this"}).encode())
    return [*(reason for reason, _ in rows), "line_too_long", "kept"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--redirect")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    for number, reason in enumerate(write_hostile_set(options.folder, options.redirect)):
        print(f"{number:3d}  {reason}")
