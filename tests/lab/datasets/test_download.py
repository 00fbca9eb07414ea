"""Downloads against a server on loopback that serves ranges, breaks off and lies."""

from __future__ import annotations

import hashlib
import http.server
import threading

import pytest

from neural_polarizer import InputError
from neural_polarizer.lab.datasets import cifar
from neural_polarizer.lab.datasets.download import Source, fetch
from neural_polarizer.lab.datasets.registry import load_dataset

from . import official

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several chunks


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        content, start = server.content, 0
        if "Range" in self.headers and server.ranges:
            start = int(self.headers["Range"].split("=")[1].rstrip("-"))
            server.resumed.append(start)
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = server.stop_at if server.stop_at is not None else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.content, found.ranges, found.stop_at, found.resumed = CONTENT, True, None, []
        found.url = f"http://127.0.0.1:{found.server_address[1]}/data.bin"
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def source(server, content=CONTENT):
    return Source(server.url, hashlib.md5(content, usedforsecurity=False).hexdigest())


def test_downloaded_with_its_checksum(server, tmp_path):
    path = fetch(source(server), tmp_path / "new", download=True, progress=False)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]
    server.shutdown()
    assert fetch(source(server), tmp_path / "new", download=True) == path, "what is there is not fetched again"


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server, ranges, tmp_path):
    server.ranges, server.stop_at = ranges, 3_000_000
    with pytest.raises(InputError, match=r"could not be downloaded .*try again to go on, or fetch http.* by hand"):
        fetch(source(server), tmp_path, download=True, progress=False)
    part = tmp_path / "data.bin.part"
    assert 0 < part.stat().st_size <= 3_000_000
    assert not (tmp_path / "data.bin").exists()
    had = part.stat().st_size
    server.stop_at = None
    assert fetch(source(server), tmp_path, download=True, progress=False).read_bytes() == CONTENT
    assert server.resumed == ([had] if ranges else [])


def test_a_finished_part_is_only_checked(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert fetch(source(server), tmp_path, download=True, progress=False).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(InputError, match="with MD5 .* wanted .*; it was removed"):
        fetch(source(server), tmp_path, download=True, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_offline_says_what_to_fetch_and_where_to_put_it(tmp_path):
    away = Source("http://127.0.0.1:9/data.bin", "0" * 32)
    for download, words in ((False, "pass --download, or fetch"), (True, "could not be downloaded")):
        with pytest.raises(InputError, match=words) as error:
            fetch(away, tmp_path, download=download, progress=False)
        assert away.url in str(error.value)
        assert str(tmp_path / "data.bin") in str(error.value)


def test_a_data_set_through_its_download(server, tmp_path, monkeypatch):
    archive = official.tar_gz(tmp_path / "made.tar.gz", official.cifar10_binary()).read_bytes()
    server.content = archive
    url = server.url.replace("data.bin", "cifar-10-binary.tar.gz")
    found = Source(url, hashlib.md5(archive, usedforsecurity=False).hexdigest())
    monkeypatch.setitem(cifar.BINARY, 10, found)
    data = load_dataset("cifar10", tmp_path / "data", download=True, progress=False)
    assert len(data.train) == 60
    assert (tmp_path / "data" / "cifar-10-binary.tar.gz").exists()
