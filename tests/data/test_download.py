"""Downloads over a real HTTP server on this machine: ranges, broken connections, wrong files, no network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quatrain.core.errors import InputError, OfflineError, QuatrainError
from quatrain.core.reading import sha256_of
from quatrain.data import download as module
from quatrain.data.download import download

CONTENT = bytes(range(256)) * 8000  # 2 MB
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; what goes wrong is set per test."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str | None, str | None]] = []
        self.cuts: list[int] = []  # bytes after which each of the next answers breaks off
        self.statuses: list[int] = []  # statuses of the next answers
        self.ranges = True
        self.etag: str | None = '"one"'
        self.content = CONTENT
        self.url = f"http://127.0.0.1:{self.server_port}/file.txt"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((asked, self.headers.get("If-Range")))
        if server.statuses and (status := server.statuses.pop(0)) != 200:
            self.send_error(status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if asked and self.headers.get("If-Range") not in (None, server.etag):
            start = 0
        if start >= len(server.content) and start:
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(body)
        self.wfile.write(body[:cut])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("QUATRAIN_OFFLINE", raising=False)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_whole_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = download(server.url, tmp_path / "deep" / "a", sha256=SHA, progress=lambda *each: seen.append(each))
    assert path.read_bytes() == CONTENT and sha256_of(path) == SHA
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and seen == sorted(seen)
    assert names(path.parent) == ["a"]


@pytest.mark.parametrize("sha", [SHA, None])
def test_a_cut_connection_goes_on_where_it_broke(server: Server, tmp_path: Path, sha: str | None) -> None:
    server.cuts = [700_000, 600_000]
    path = download(server.url, tmp_path / "a", sha256=sha)
    assert path.read_bytes() == CONTENT
    assert [asked for asked, _ in server.requests] == [None, "bytes=700000-", "bytes=1300000-"]


def test_a_later_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 500]
    with pytest.raises(OfflineError, match="broke after") as caught:
        download(server.url, tmp_path / "a", sha256=SHA, tries=2, remedy="Put it somewhere")
    assert "Put it somewhere" in str(caught.value) and not (tmp_path / "a").exists()
    assert (tmp_path / "a.part").stat().st_size == 1500
    assert download(server.url, tmp_path / "a", sha256=SHA).read_bytes() == CONTENT
    assert server.requests[-1][0] == "bytes=1500-" and names(tmp_path) == ["a"]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.cuts, server.ranges = [1000], False
    assert download(server.url, tmp_path / "a", sha256=SHA).read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_starts_over(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000]
    with pytest.raises(OfflineError):
        download(server.url, tmp_path / "a", tries=1)
    server.content, server.etag = b"new" * 1000, '"two"'
    assert download(server.url, tmp_path / "a").read_bytes() == b"new" * 1000


def test_without_checksum_and_etag_nothing_is_glued(server: Server, tmp_path: Path) -> None:
    server.cuts, server.etag = [1000], None
    with pytest.raises(OfflineError):
        download(server.url, tmp_path / "a", tries=1)
    server.content = b"new" * 1000
    assert download(server.url, tmp_path / "a").read_bytes() == b"new" * 1000
    assert server.requests[-1] == (None, None)


def test_a_spoilt_part_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"x" * 5000)
    (tmp_path / "a.part.json").write_text(json.dumps({"url": server.url}))
    assert download(server.url, tmp_path / "a", sha256=SHA).read_bytes() == CONTENT
    (tmp_path / "b.part").write_bytes(b"x" * (len(CONTENT) + 9))
    (tmp_path / "b.part.json").write_text(json.dumps({"url": server.url}))
    assert download(server.url, tmp_path / "b", sha256=SHA).read_bytes() == CONTENT


def test_another_file_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(QuatrainError, match="not the one expected") as caught:
        download(server.url, tmp_path / "a", sha256="0" * 64)
    assert SHA in str(caught.value) and "0" * 64 in str(caught.value)
    assert len(server.requests) == 1
    assert "a" not in names(tmp_path) and "a.part" not in names(tmp_path)
    with pytest.raises(QuatrainError, match="expected 3"):
        download(server.url, tmp_path / "a", size=3)
    server.content = b""
    with pytest.raises(QuatrainError, match="empty"):
        download(server.url, tmp_path / "a")


def test_a_busy_server_is_asked_again_an_absent_file_not(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429, 200]
    assert download(server.url, tmp_path / "a", sha256=SHA).read_bytes() == CONTENT
    server.statuses = [404]
    with pytest.raises(OfflineError, match="404"):
        download(server.url, tmp_path / "b")
    assert len(server.requests) == 4


def test_the_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    server.statuses = [404, 200]
    urls = [server.url + "?old", server.url]
    assert download(urls, tmp_path / "a", sha256=SHA).read_bytes() == CONTENT


def test_nobody_there(tmp_path: Path, server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(OfflineError, match="could not be downloaded") as caught:
        download(server.url, tmp_path / "a", tries=2, timeout=2)
    assert "tried 2 times" in str(caught.value) and str(tmp_path / "a") in str(caught.value)


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_offline_forbids(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("QUATRAIN_OFFLINE", value)
    with pytest.raises(OfflineError, match="QUATRAIN_OFFLINE"):
        download(server.url, tmp_path / "a")
    assert server.requests == []
    monkeypatch.setenv("QUATRAIN_OFFLINE", "0")
    assert download(server.url, tmp_path / "a").exists()


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://example.org/a", "a.txt"])
def test_only_http(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="only http"):
        download(url, tmp_path / "a")


def test_a_disk_too_small_is_told_before(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda path: 1000)
    with pytest.raises(QuatrainError, match=r"needs 2\.0 MB and only 1\.0 kB"):
        download(server.url, tmp_path / "a")
