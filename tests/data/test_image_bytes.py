"""Images by path, bytes, data URI and URL: what is read, what is refused, and why."""

from __future__ import annotations

import base64
import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmdata.config import InputConfig
from vlmdata.sample import ImageRef, Problem
from vlmdata.sources import downloads
from vlmdata.sources.image_bytes import ImageLoader, LoadedImage
from vlmdata.sources.stamps import FileStamp

BODY = b"\xff\xd8\xff" + bytes(2000)


def make_loader(root: Path, max_bytes: int = 10_000, **options) -> ImageLoader:
    return ImageLoader(InputConfig(**{"url_timeout_s": 1.0, "url_retries": 2, **options}), root, max_bytes)


def load(loader: ImageLoader, location: str | None, data: bytes | None = None) -> LoadedImage | str:
    outcome = loader.load(ImageRef(location, data))
    return outcome.reason if isinstance(outcome, Problem) else outcome


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "sub" / "a.jpg").write_bytes(BODY)
    (tmp_path / "root-beside").mkdir()
    (tmp_path / "root-beside" / "secret.jpg").write_bytes(BODY)
    (tmp_path / "root" / "link-out.jpg").symlink_to(tmp_path / "root-beside" / "secret.jpg")
    (tmp_path / "root" / "link-in.jpg").symlink_to(tmp_path / "root" / "sub" / "a.jpg")
    os.mkfifo(tmp_path / "root" / "pipe.jpg")
    return tmp_path / "root"


def test_paths(root: Path) -> None:
    loader = make_loader(root)
    file = str((root / "sub" / "a.jpg").resolve())
    assert load(loader, "sub/a.jpg") == LoadedImage(BODY, "sub/a.jpg", file)
    assert load(loader, "link-in.jpg") == LoadedImage(BODY, "sub/a.jpg", file)
    assert load(loader, file) == LoadedImage(BODY, "sub/a.jpg", file)
    assert load(loader, "sub/absent.jpg") == "image_missing"
    assert load(loader, "sub/a.jpg/x") == "image_missing"
    assert load(loader, "a\0b") == "image_missing"
    assert load(loader, "") == "image_missing"
    assert load(loader, "sub") == "image_unreadable"
    assert load(loader, "pipe.jpg") == "image_unreadable"
    assert load(loader, "x" * 5000) == "image_unreadable"
    assert load(make_loader(root, 100), "sub/a.jpg") == "image_too_large_bytes"


@pytest.mark.parametrize(
    "location",
    ["../root-beside/secret.jpg", "sub/../../root-beside/secret.jpg", "link-out.jpg", "/etc/hostname", "../absent.jpg"],
)
def test_paths_stay_under_the_root(root: Path, location: str) -> None:
    assert load(make_loader(root), location) == "image_outside_root"
    allowed = load(make_loader(root, allow_outside_root=True), location)
    assert allowed == "image_missing" if "absent" in location else isinstance(allowed, LoadedImage)


def test_the_image_root_can_be_named(root: Path) -> None:
    wanted = LoadedImage(BODY, "a.jpg", str((root / "sub" / "a.jpg").resolve()))
    assert load(make_loader(root, image_root=root / "sub"), "a.jpg") == wanted
    assert load(make_loader(root, image_root=root / "sub"), "../link-in.jpg") == wanted


def test_stamps_tell_what_was_looked_for(root: Path) -> None:
    loader = make_loader(root)
    load(loader, "sub/a.jpg")
    load(loader, "sub/absent.jpg")
    status = (root / "sub" / "a.jpg").stat()
    assert list(loader.stamps.values()) == [
        FileStamp(str(root / "sub" / "a.jpg"), len(BODY), status.st_mtime_ns),
        FileStamp(str(root / "sub" / "absent.jpg"), -1, 0),
    ]


def test_bytes_and_data_uris(root: Path) -> None:
    loader = make_loader(root)
    encoded = base64.b64encode(BODY).decode()
    assert load(loader, "some/name.jpg", BODY) == LoadedImage(BODY, "name.jpg")
    assert load(loader, None, BODY) == LoadedImage(BODY, None)
    assert load(loader, f"data:image/jpeg;base64,{encoded}") == LoadedImage(BODY, None)
    assert load(loader, encoded) == LoadedImage(BODY, None)
    assert load(loader, "data:text/plain,a%20b") == LoadedImage(b"a b", None)
    assert load(loader, "data:image/jpeg;base64,!!!") == "image_bad_data_uri"
    assert load(loader, "data:image/jpeg;base64") == "image_bad_data_uri"
    assert load(make_loader(root, 100), f"data:image/jpeg;base64,{encoded}") == "image_too_large_bytes"


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://host/a.jpg", "s3://bucket/a.jpg", "http://", "http://["]
)
def test_other_schemes_are_refused(root: Path, location: str) -> None:
    assert load(make_loader(root, allow_outside_root=True), location) == "image_url_refused"


class _Handler(http.server.BaseHTTPRequestHandler):
    seen: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.seen.append(path)
        port = self.server.server_address[1]
        targets = {
            "/there": "/image",
            "/round": "/round",
            "/inside": f"http://127.0.0.2:{port}/image",
            "/file": "file:///etc/passwd",
        }
        if path in targets:
            self.send_response(302)
            self.send_header("Location", targets[path])
            self.end_headers()
        elif path == "/image" or (path == "/flaky" and self.seen.count("/flaky") > 2):
            self._send(200, BODY)
        elif path == "/flaky":
            self._send(503, b"")
        elif path == "/busy":
            self.send_response(429)
            self.send_header("Retry-After", "0")
            self.end_headers()
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(bytes(4096))
        elif path == "/drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            while True:
                self.wfile.write(b"x")
                time.sleep(0.02)
        elif path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(BODY)
        elif path == "/silent":
            time.sleep(1)
        else:
            self._send(404, b"")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up early is part of the tests."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (_Handler,), {"seen": []})
    with _Server(("0.0.0.0", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.seen
        server.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_FIRST_PAUSE_S", 0.01)


@pytest.mark.usefixtures("quick")
def test_urls(root: Path, server: tuple[str, list[str]]) -> None:
    url, seen = server
    loader = make_loader(root, allow_private_urls=True)
    assert load(loader, f"{url}/image?size=1") == LoadedImage(BODY, f"{url}/image")
    assert load(loader, f"{url}/there") == LoadedImage(BODY, f"{url}/there")
    assert load(loader, f"{url}/flaky") == LoadedImage(BODY, f"{url}/flaky")
    assert seen.count("/flaky") == 3
    assert load(loader, f"{url}/absent") == "image_download_failed"
    assert seen.count("/absent") == 1
    assert load(loader, f"{url}/busy") == "image_download_failed"
    assert seen.count("/busy") == 3
    assert load(loader, f"{url}/round") == "image_download_failed"
    assert load(loader, f"{url}/file") == "image_url_refused"
    assert load(loader, f"{url}/endless") == "image_too_large_bytes"
    assert load(loader, f"{url}/short") == "image_download_failed"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("path", ["drip", "silent"])
def test_slow_servers_are_given_up(root: Path, server: tuple[str, list[str]], path: str) -> None:
    loader = make_loader(root, allow_private_urls=True, url_timeout_s=0.1, url_retries=1)
    started = time.monotonic()
    assert load(loader, f"{server[0]}/{path}") == "image_download_failed"
    assert time.monotonic() - started < 3
    assert server[1].count(f"/{path}") == 2


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "10.0.0.1", "169.254.169.254", "[::ffff:127.0.0.1]", "2130706433"],
)
def test_private_addresses_are_refused(root: Path, server: tuple[str, list[str]], host: str) -> None:
    port = server[0].rpartition(":")[2]
    outcome = make_loader(root).load(ImageRef(f"http://{host}:{port}/image"))
    assert isinstance(outcome, Problem)
    assert outcome.reason in ("image_url_refused", "image_download_failed")
    assert server[1] == []


def test_redirects_are_checked_again(
    root: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_second(address: str) -> None:
        if address == "127.0.0.2":
            raise downloads._PrivateAddressError(address)

    monkeypatch.setattr(downloads, "_refuse_private", refuse_second)
    loader = make_loader(root)
    assert load(loader, f"{server[0]}/there") == LoadedImage(BODY, f"{server[0]}/there")
    outcome = loader.load(ImageRef(f"{server[0]}/inside?key=secret"))
    detail = f"'{server[0]}/inside': leads to 127.0.0.2, which is not a public address"
    assert outcome == Problem("image_url_refused", detail)
    assert server[1] == ["/there", "/image", "/inside"]


def test_a_name_that_changes_its_address_is_caught(
    root: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_refuse_private_host", lambda *_: None)
    assert load(make_loader(root), f"{server[0]}/image") == "image_url_refused"
    assert server[1] == []


def test_names_without_an_address(root: Path) -> None:
    assert load(make_loader(root, url_retries=0), "http://no-such-host.invalid/a.jpg") == "image_download_failed"


def test_names_that_are_not_utf8_are_refused_in_a_line(root: Path) -> None:
    os.makedirs(os.fsencode(root) + b"/b\xe4d")
    for name in (b"/b\xe4d/a.jpg", b"/b\xe4.jpg"):
        Path(os.fsdecode(os.fsencode(root) + name)).write_bytes(BODY)
    (root / "link-bad.jpg").symlink_to(os.fsdecode(b"b\xe4.jpg"))
    loader = make_loader(root)
    for location in ("b\udce4d/a.jpg", "b\udce4.jpg", "link-bad.jpg", "a\ud800.jpg", "\ud800/a.jpg", "http://x/\ud800"):
        outcome = loader.load(ImageRef(location))
        assert isinstance(outcome, Problem)
        assert outcome.reason == "bad_encoding"
        outcome.detail.encode()
    assert all(path.isprintable() for path in loader.stamps)
    # bytes that come with their row need no file: only the name is mended
    assert load(loader, "x/b\udce4.jpg", BODY) == LoadedImage(BODY, "b?.jpg")
