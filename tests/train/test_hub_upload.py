"""Uploads through huggingface_hub's own client to a stand-in of the hub on the loopback."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlmdata.errors import ConfigError, DataError, ResourceError
from vlmtrain.exports import export
from vlmtrain.hub_upload import check_upload, upload_export
from vlmtrain.settings import ExportConfig


class StandIn(BaseHTTPRequestHandler):
    """What the client asks for an upload of small files."""

    hub: SimpleNamespace

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, value: object, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, content in headers.items():
            self.send_header(name.replace("_", "-"), content)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.hub.tokens.add(self.headers.get("Authorization"))
        if "/api/whoami-v2" in self.path:
            if self.headers.get("Authorization") != "Bearer hf_right":
                return self.reply(401, {"error": "Invalid user token."})
            return self.reply(200, {"name": "ann", "type": "user"})
        repository = self.path.removeprefix("/api/models/").partition("?")[0].partition("/revision/")[0]
        if repository not in self.hub.repositories:
            return self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        private = self.hub.repositories[repository]["private"]
        return self.reply(200, {"id": repository, "private": private, "sha": "0" * 40, "siblings": [], "tags": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'ann'}/{asked['name']}"
            if name in self.hub.repositories:
                return self.reply(409, {"error": "exists", "url": name})
            self.hub.repositories[name] = {
                "private": {"private": True, "public": False}[asked["visibility"]],
                "files": {},
            }
            return self.reply(200, {"url": f"{self.hub.address}/{name}"})
        if self.path.startswith("/api/validate-yaml"):
            return self.reply(200, {"errors": [], "warnings": []})
        name, _, action = self.path.removeprefix("/api/models/").partition("/")[2].partition("/")
        repository = f"{self.path.removeprefix('/api/models/').partition('/')[0]}/{name}"
        if action.startswith("preupload"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": files})
        if self.hub.full:
            return self.reply(507, {"error": "no room"})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.hub.repositories[repository]["files"][line["value"]["path"]] = content
        commit = {"commitUrl": f"{self.hub.address}/{repository}/commit/{'1' * 40}", "commitOid": "1" * 40}
        return self.reply(200, commit | {"success": True, "hookOutput": ""})


@pytest.fixture
def hub(monkeypatch) -> Iterator[SimpleNamespace]:
    """The hub's state: repositories with their files."""
    from huggingface_hub import constants

    state = SimpleNamespace(repositories={}, tokens=set(), full=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (StandIn,), {"hub": state}))
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", state.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def finished(tmp_path) -> Path:
    folder = tmp_path / "export"
    (folder / "deep").mkdir(parents=True)
    for name, content in [
        ("config.json", "{}"),
        ("README.md", "# A model\n"),
        ("export.json", "{}"),
        ("eval-val.html", "pictures"),
        ("rank-train.jsonl", "rows"),
    ]:
        (folder / name).write_text(content)
    (folder / "deep" / "weights.bin").write_bytes(bytes(range(256)))
    return folder


def test_a_new_repository_is_private_and_holds_the_files(hub, finished, capsys) -> None:
    check_upload("ann/colours", public=False)
    assert capsys.readouterr().out == "push: as ann to ann/colours\n"
    assert hub.repositories == {}
    address = upload_export(finished, "ann/colours", public=False)
    assert address.endswith("/ann/colours/commit/" + "1" * 40)
    repository = hub.repositories["ann/colours"]
    assert repository["private"] is True
    # what names folders of this machine or holds rows of the set stays here
    assert set(repository["files"]) == {"config.json", "README.md", "deep/weights.bin"}
    for name, content in repository["files"].items():
        assert content == (finished / name).read_bytes()
    assert "Bearer hf_right" in hub.tokens


def test_export_uploads_what_it_made_before(hub, finished, capsys) -> None:
    (finished / "export.json").write_text(json.dumps({"model": "run", "format": "merged_16bit"}))
    export("run", ExportConfig(out=finished, push="ann/colours"))
    assert set(hub.repositories["ann/colours"]["files"]) == {"config.json", "README.md", "deep/weights.bin"}
    assert f"pushed: {hub.address}/ann/colours/commit/" in capsys.readouterr().out


def test_a_broken_report_of_an_export_is_one_line(hub, finished) -> None:
    (finished / "export.json").write_text("{")
    with pytest.raises(DataError, match=r"export\.json: cannot be read as JSON"):
        export("run", ExportConfig(out=finished, push="ann/colours"))


@pytest.mark.parametrize("reason", ["another type", "trained anew"])
def test_another_export_is_not_taken_for_this_one(reason, hub, finished, tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    report = {"model": str(run), "format": "gguf", "gguf": {"model": "export-BF16.gguf"}}
    (finished / "export.json").write_text(json.dumps(report))
    config = ExportConfig(out=finished, push="ann/colours", format="gguf")
    export(str(run), config)
    assert hub.repositories.pop("ann/colours")["files"]
    if reason == "another type":
        config = ExportConfig(out=finished, push="ann/colours", format="gguf", gguf_type="q4_k_m")
    else:
        later = (finished / "export.json").stat().st_mtime + 1
        os.utime(run / "run.json", (later, later))
    # the export is made, for which this run is no run
    with pytest.raises(DataError, match="not the report of a run"):
        export(str(run), config)
    assert hub.repositories == {}


def test_public_only_where_asked(hub, finished) -> None:
    upload_export(finished, "ann/open", public=True)
    assert hub.repositories["ann/open"]["private"] is False
    with pytest.raises(ConfigError, match="this repository is public; pass --public to upload to it"):
        check_upload("ann/open", public=False)
    check_upload("ann/open", public=True)


def test_uploads_that_the_hub_does_not_take(hub, finished, monkeypatch) -> None:
    hub.full = True
    with pytest.raises(ResourceError, match=r"the hub refuses \(status 507\); the export in .* is whole, and the same"):
        upload_export(finished, "ann/colours", public=False)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ResourceError, match="the token is not accepted, or may not write there"):
        check_upload("ann/colours", public=False)


def test_nobody_logged_in_and_no_hub(hub, monkeypatch, tmp_path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ResourceError, match="nobody is logged in on this machine: hf auth login"):
        check_upload("ann/colours", public=False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match="the hub cannot be reached"):
        check_upload("ann/colours", public=False)


@pytest.mark.parametrize("name", ["colours", "a/b/c", "/colours", "ann/"])
def test_names_that_are_no_repository(name) -> None:
    with pytest.raises(ConfigError, match="not a repository of the form OWNER/NAME"):
        check_upload(name, public=False)
