"""The public SEM dataset: archives fetched from a loopback server, and read without unpacking."""

import hashlib
import io
import json
import subprocess
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from configuration_mvaema import CATEGORY_CAPTIONS
from mvaema.commands.build import main
from mvaema.micrographs.aversa import AversaSource, fetch_archives
from mvaema.micrographs.build import build
from mvaema.micrographs.schema import pixel_hash


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 12), dtype=np.uint8))


def archive(category: str, seeds: range) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for seed in seeds:
            file = io.BytesIO()
            picture(seed).save(file, "PNG")
            member = tarfile.TarInfo(f"{category}/L{seed:02} ü.png")
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def archives() -> dict[str, bytes]:
    return {
        f"{category}.tar": archive(category, range(3 * n, 3 * n + 3))
        for n, category in enumerate(CATEGORY_CAPTIONS)
    }


class Server(ThreadingHTTPServer):
    """A B2SHARE record on the loopback interface, with faults to order."""

    def __init__(self, archives: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archives, self.requests, self.cut_after = archives, [], {}
        self.checksums = {n: hashlib.md5(data).hexdigest() for n, data in archives.items()}
        self.ranges = True
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.record = f"{self.url}/api/records/1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.rpartition("/")[2]
        server.requests.append((name, self.headers.get("Range")))
        if name == "1":
            self.send_json({"links": {"files": f"{server.url}/api/records/1/files"}})
        elif name == "files":
            entries = [
                {
                    "key": key,
                    "size": len(data),
                    "checksum": f"md5:{server.checksums[key]}",
                    "links": {"content": f"{server.url}/content/{key}"},
                }
                for key, data in server.archives.items()
            ]
            self.send_json({"entries": entries})
        else:
            data, start = server.archives[name], 0
            if server.ranges and "Range" in self.headers:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            end = len(data)
            if cuts := server.cut_after.get(name):
                end = start + cuts.pop(0)
            self.wfile.write(data[start:end])  # the connection closes here

    def send_json(self, content: dict):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(archives, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server = Server(archives)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def downloads(server: Server) -> list[tuple]:
    return [request for request in server.requests if request[0].endswith(".tar")]


def test_archives_are_fetched_once_and_their_checksums_recorded(server, archives, tmp_path):
    paths = fetch_archives(tmp_path, server.record)
    assert {path.name: path.read_bytes() for path in paths} == archives
    assert len(downloads(server)) == 10
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, check=True)
    assert checked.returncode == 0
    fetch_archives(tmp_path, server.record)
    assert len(downloads(server)) == 10


def test_a_broken_download_goes_on_where_it_stopped(server, archives, tmp_path):
    server.cut_after["Tips.tar"] = [1000, 500]
    fetch_archives(tmp_path, server.record)
    ranges = [wanted for name, wanted in downloads(server) if name == "Tips.tar"]
    assert ranges == [None, "bytes=1000-", "bytes=1500-"]
    assert (tmp_path / "Tips.tar").read_bytes() == archives["Tips.tar"]


def test_what_a_killed_download_left_is_used(server, archives, tmp_path):
    (tmp_path / "Tips.tar.part").write_bytes(archives["Tips.tar"][:700])
    fetch_archives(tmp_path, server.record)
    assert ("Tips.tar", "bytes=700-") in server.requests
    assert (tmp_path / "Tips.tar").read_bytes() == archives["Tips.tar"]
    assert not list(tmp_path.glob("*.part"))


def test_a_server_without_ranges_starts_again(server, archives, tmp_path):
    server.ranges = False
    server.cut_after["Powder.tar"] = [1000]
    fetch_archives(tmp_path, server.record)
    assert (tmp_path / "Powder.tar").read_bytes() == archives["Powder.tar"]


def test_a_dead_connection_ends_with_what_came(server, archives, tmp_path):
    server.cut_after["Fibres.tar"] = [300] + [0] * 20
    with pytest.raises(OSError, match=r"300 of .* bytes are kept"):
        fetch_archives(tmp_path, server.record)
    assert (tmp_path / "Fibres.tar.part").read_bytes() == archives["Fibres.tar"][:300]
    server.cut_after.clear()
    fetch_archives(tmp_path, server.record)
    assert (tmp_path / "Fibres.tar").read_bytes() == archives["Fibres.tar"]


def test_a_wrong_checksum_is_refused(server, tmp_path):
    server.checksums["Powder.tar"] = "0" * 32
    with pytest.raises(ValueError, match="Powder"):
        fetch_archives(tmp_path, server.record)
    assert not list(tmp_path.glob("Powder*"))
    assert (tmp_path / "Particles.tar").is_file()  # what came before stays


def test_archives_become_a_dataset(archives, tmp_path):
    (tmp_path / "in").mkdir()
    for name, data in archives.items():
        (tmp_path / "in" / name).write_bytes(data)
    with tarfile.open(tmp_path / "in" / "Nanowires.tar") as tar:
        cut = tar.getmembers()[-1].offset_data + 10
    (tmp_path / "in" / "Nanowires.tar").write_bytes(archives["Nanowires.tar"][:cut])
    report = build(AversaSource(tmp_path / "in"), tmp_path / "out")
    assert report.failed["damaged-archive"] == 1
    assert report.rows == 29 and report.failed.total() == 2
    dataset = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    rows = {row["image_id"]: row for row in dataset}
    for number, category in enumerate(CATEGORY_CAPTIONS):
        row = rows[pixel_hash(picture(3 * number))]
        assert row["category"] == category and row["licence"] == "CC-BY-4.0"
        assert row["source"] == "Aversa et al. 2018"
    # Mended, only that archive is read again.
    (tmp_path / "in" / "Nanowires.tar").write_bytes(archives["Nanowires.tar"])
    report = build(AversaSource(tmp_path / "in"), tmp_path / "out")
    assert (report.rows, report.read, report.unchanged) == (30, 3, 27)
    assert not report.failed


def test_the_network_is_used_only_when_asked(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mvaema.micrographs.aversa.RECORD_URL", server.record)
    arguments = ["aversa", str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(arguments) == 1 and not server.requests
    assert "fetch them with --download" in capsys.readouterr().err
    assert main([*arguments, "--download"]) == 0
    assert len(downloads(server)) == 10
