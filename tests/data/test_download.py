"""Whatever a network does, a download ends in the whole file or in one sentence."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from napari_pancreas_seg.data import download as module
from napari_pancreas_seg.data.download import download
from napari_pancreas_seg.errors import PancreasSegError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PORTAL = b"<!doctype html><html><title>Hotel</title>Please log in</html>"


class Handler(BaseHTTPRequestHandler):
    """Serves the content, or goes wrong in the way that the path says."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        way = self.path.rpartition("/")[2]
        if way == "error":
            return self.send_error(503)
        if way in ("loop", "unencrypted", "file", "fine"):
            to = {"loop": "/loop", "unencrypted": "http://example.org/x", "file": "file:///etc/x"}
            self.send_response(302)
            self.send_header("Location", to.get(way, "/whole"))
            return self.end_headers()
        if way == "silent":
            self.server.over.wait(20)
            return None
        self.send_response(200)
        if way == "endless":
            self.end_headers()
            return self._endlessly(1 << 16, 0)
        body = PORTAL if way == "portal" else CONTENT
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html" if way == "portal" else "application/zip")
        self.end_headers()
        if way == "stalls":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.over.wait(20)
        elif way == "trickles":
            self._endlessly(1, 0.02)
        elif way == "cut":
            self.wfile.write(body[: len(body) // 2])
        else:
            self.wfile.write(body)
        return None

    def _endlessly(self, size: int, pause: float) -> None:
        try:
            while not self.server.over.wait(pause):
                self.wfile.write(bytes(size))
                self.wfile.flush()
        except OSError:
            pass  # the client has had enough

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.asked, http.over = [], threading.Event()
        http.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield http
        http.over.set()
        http.shutdown()
        thread.join()


def fetch(url: str, folder: Path, timeout_s: float = 30.0, sha256: str = SHA256) -> Path:
    return download(url, sha256, folder / "cache" / "m.zip", "the model", timeout_s=timeout_s)


def left(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.rglob("*") if item.is_file())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("cut", "broke off"),
        ("stalls", "broke off"),
        ("silent", "broke off"),
        ("trickles", "too slow"),
        ("endless", "sends more than"),
        ("portal", "login page"),
        ("error", "503"),
        ("loop", "without end"),
        ("unencrypted", r"http://example\.org' is not encrypted"),
        ("file", "not encrypted"),
    ],
)
@pytest.mark.parametrize("old", [None, b"damaged"])
def test_a_bad_network_leaves_nothing_half(
    server: Any,
    tmp_path: Path,
    way: str,
    says: str,
    old: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LARGEST", 1 << 22)
    if old is not None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "m.zip").write_bytes(old)
    start = time.monotonic()
    with pytest.raises(PancreasSegError, match=says) as caught:
        fetch(f"{server.url}/{way}", tmp_path, timeout_s=0.4)
    assert time.monotonic() - start < 8
    assert len(str(caught.value).splitlines()) == 1
    assert left(tmp_path) == ([] if old is None else ["m.zip"])
    if old is not None:
        assert (tmp_path / "cache" / "m.zip").read_bytes() == old
    # And as soon as the network is well again, it works.
    assert fetch(f"{server.url}/whole", tmp_path).read_bytes() == CONTENT


def test_the_name_of_a_model_is_left_as_it_is(server: Any, tmp_path: Path) -> None:
    with pytest.raises(PancreasSegError, match="The model MyPDAC-Net could not be downloaded"):
        download(server.url + "/cut", SHA256, tmp_path / "m.zip", "the model MyPDAC-Net")


def test_redirections_are_followed_where_they_are_safe(server: Any, tmp_path: Path) -> None:
    assert fetch(f"{server.url}/fine", tmp_path).read_bytes() == CONTENT
    assert server.asked == ["/fine", "/whole"]


@pytest.mark.parametrize("url", ["http://example.org/m.zip", "ftp://example.org/m", "file:///m"])
def test_nothing_but_tls(url: str, tmp_path: Path) -> None:
    with pytest.raises(PancreasSegError, match="not encrypted"):
        fetch(url, tmp_path)
    assert left(tmp_path) == []


def test_the_proxy_of_the_environment_is_used(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("http_proxy", server.url)
    assert fetch("http://localhost:1/behind/the/proxy/whole", tmp_path).read_bytes() == CONTENT
    assert server.asked == ["http://localhost:1/behind/the/proxy/whole"]
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(PancreasSegError, match="Check the network"):
        fetch("http://localhost:1/behind/the/proxy/whole", tmp_path / "other")


def test_a_proxy_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with pytest.raises(PancreasSegError, match="Check the network"):
        fetch("https://example.org/m.zip", tmp_path, timeout_s=2)
    assert left(tmp_path) == []


def test_a_full_disk(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, *args: Any) -> None:
            self.file, self.room = open(*args), 100_000  # noqa: SIM115

        def write(self, data: bytes) -> None:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(data)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

    monkeypatch.setattr(module, "open", Full, raising=False)
    with pytest.raises(PancreasSegError, match="No space left"):
        fetch(f"{server.url}/whole", tmp_path)
    assert left(tmp_path) == []


@pytest.mark.slow
def test_two_processes_at_once(server: Any, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from napari_pancreas_seg.data.download import download\n"
        "url, sha256, target = sys.argv[1:]\n"
        "print(download(url, sha256, Path(target), 'the model'))\n"
    )
    target = tmp_path / "cache" / "m.zip"
    command = [sys.executable, "-c", code, f"{server.url}/whole", SHA256, str(target)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    for child in children:
        said, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        assert said.strip() == str(target)
    assert target.read_bytes() == CONTENT
    assert left(tmp_path) == ["m.zip"]


@pytest.mark.slow
def test_killed_in_the_middle(server: Any, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from napari_pancreas_seg.data.download import download\n"
        "download(sys.argv[1], sys.argv[2], Path(sys.argv[3]), 'the model')\n"
    )
    target = tmp_path / "cache" / "m.zip"
    child = subprocess.Popen(
        [sys.executable, "-c", code, f"{server.url}/stalls", SHA256, str(target)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 60
    while not server.asked and time.monotonic() < deadline:
        server.over.wait(0.02)
    server.over.wait(0.1)
    child.kill()
    child.wait()
    assert not target.exists()
    assert fetch(f"{server.url}/whole", tmp_path).read_bytes() == CONTENT
