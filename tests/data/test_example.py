"""The download of the example CT, against a server on this machine."""

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from napari_pancreas_seg.data import example
from napari_pancreas_seg.data.download import cache_folder
from napari_pancreas_seg.data.example import example_ct_path
from napari_pancreas_seg.errors import PancreasSegError

CONTENT = b"not really a CT, but with a known hash" * 500
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        portal = b"<html>Please log in to this network</html>"
        body = portal if self.path == "/portal" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.requests = []
        http.url = f"http://127.0.0.1:{http.server_port}"
        # The default of half a second between two looks would make every shutdown wait.
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield http
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "example"


def files(folder):
    return sorted(path.name for path in folder.glob("**/*")) if folder.exists() else []


def test_downloads_once(server, folder):
    path = example_ct_path(server.url + "/ct", sha256=SHA256)
    assert path == folder / "example_ct.nii.gz"
    assert path.read_bytes() == CONTENT
    assert example_ct_path(server.url + "/ct", sha256=SHA256) == path
    assert server.requests == ["/ct"]
    assert files(folder) == ["example_ct.nii.gz"]


def test_replaces_a_damaged_copy(server, folder):
    folder.mkdir(parents=True)
    (folder / "example_ct.nii.gz").write_bytes(CONTENT[:100])
    assert example_ct_path(server.url + "/ct", sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("/missing", "answered with 404"),
        ("/portal", "login page"),
        ("/cut", "broke off"),
    ],
)
def test_what_a_server_can_do_wrong(server, folder, page, says):
    with pytest.raises(PancreasSegError, match=says):
        example_ct_path(server.url + page, sha256=SHA256)
    assert files(folder) == []


def test_wrong_hash_leaves_the_good_copy_alone(server, folder):
    good = example_ct_path(server.url + "/ct", sha256=SHA256)
    with pytest.raises(PancreasSegError, match="SHA-256 differs"):
        example_ct_path(server.url + "/ct", sha256="0" * 64)
    assert good.read_bytes() == CONTENT
    assert files(folder) == ["example_ct.nii.gz"]


def test_offline(server, folder):
    server.shutdown()
    server.server_close()
    with pytest.raises(PancreasSegError, match="Check the network"):
        example_ct_path(server.url + "/ct", sha256=SHA256)
    assert files(folder) == []


def test_cache_that_cannot_be_written(server, folder):
    folder.parent.write_text("a file where the folder should be")
    with pytest.raises(PancreasSegError, match="NAPARI_PANCREAS_SEG_CACHE"):
        example_ct_path(server.url + "/ct", sha256=SHA256)
    assert server.requests == []


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="rights bind neither the administrator nor Windows",
)
def test_read_only_cache(server, folder):
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    try:
        with pytest.raises(PancreasSegError, match="NAPARI_PANCREAS_SEG_CACHE"):
            example_ct_path(server.url + "/ct", sha256=SHA256)
    finally:
        folder.chmod(0o700)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NAPARI_PANCREAS_SEG_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("NAPARI_PANCREAS_SEG_CACHE")
    assert "napari-pancreas-seg" in str(cache_folder())


def test_address_names_a_fixed_commit_over_https():
    assert example.EXAMPLE_URL.startswith("https://")
    assert "/0e65a448d557382b1e925276212b3bec7f5aff83/" in example.EXAMPLE_URL
    assert len(bytes.fromhex(example.EXAMPLE_SHA256)) == 32
