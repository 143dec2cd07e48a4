"""A Hugging Face Hub on loopback: enough of its HTTP interface to create, upload to and load from.

What is special about it: it keeps every byte that it receives, decoded, so that a test can search
everything that has left the machine.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_lettersofatoken"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """The server; `running_hub` starts and stops one.

    Attributes:
        repositories: id to {"private": bool, "files": {name: content}}.
        received: (path, decoded content) of every request.
        refuse: path to the status that requests below it get.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.received, self.refuse, self.blobs = {}, [], {}, {}

    def files(self, repo_id: str) -> dict[str, bytes]:
        return self.repositories[repo_id]["files"]


@contextmanager
def running_hub():
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *args):
        pass

    def reply(self, value=None, status: int = 200, content: bytes | None = None, **headers):
        body = json.dumps({} if value is None else value).encode() if content is None else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, header in headers.items():
            self.send_header(name.replace("_", "-"), header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_request(self):
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.received.append((self.path, body))
        for prefix, status in self.server.refuse.items():
            if path.startswith(prefix):
                return self.reply({"error": "refused by the test"}, status)
        parts = path.strip("/").split("/")
        lfs = parts[0] == "lfs"
        if not lfs and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if lfs:
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self.server.blobs[parts[1]] = body
            return self.reply()
        api = parts[0] == "api"
        repo_id = "/".join(parts[2:4] if api else parts[:2]).removesuffix(".git")
        if repo_id not in self.server.repositories:
            return self.reply({"error": "no such repository"}, 404, X_Error_Code="RepoNotFound")
        if "/info/lfs/objects/batch" in path:
            return self.batch(json.loads(body))
        if not api:
            return self.resolve(repo_id, "/".join(parts[4:]))
        action = parts[4] if len(parts) > 4 else None
        if action == "preupload":
            return self.preupload(json.loads(body))
        if action == "commit":
            return self.commit(repo_id, body)
        files = self.server.files(repo_id)
        if action == "tree" and len(parts) > 6:
            return self.reply({"error": "no such folder"}, 404, X_Error_Code="EntryNotFound")
        if action == "tree":
            return self.reply(
                [{"type": "file", "path": n, "size": len(c), "oid": ""} for n, c in files.items()]
            )
        return self.reply(
            {
                "id": repo_id,
                "sha": COMMIT,
                "private": self.server.repositories[repo_id]["private"],
                "siblings": [{"rfilename": name} for name in files],
            }
        )

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self, wanted: dict):
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if repo_id in self.server.repositories else 200
        private = wanted.get("visibility") == "private"
        self.server.repositories.setdefault(repo_id, {"private": private, "files": {}})
        self.reply({"url": f"{self.server.url}/{repo_id}"}, status)

    def preupload(self, wanted: dict):
        modes = []
        for file in wanted["files"]:
            self.server.received.append((file["path"], base64.b64decode(file["sample"])))
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self.reply({"files": modes})

    def batch(self, wanted: dict):
        def actions(oid):
            return {"upload": {"href": f"{self.server.url}/lfs/{oid}"}}

        self.reply(
            {
                "transfer": "basic",
                "objects": [
                    {**file, "actions": actions(file["oid"])} for file in wanted["objects"]
                ],
            }
        )

    def commit(self, repo_id: str, body: bytes):
        files = self.server.files(repo_id)
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.server.received.append((value["path"], files[value["path"]]))
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        self.reply(
            {"commitUrl": f"{self.server.url}/{repo_id}/commit/{COMMIT}", "commitOid": COMMIT}
        )

    def resolve(self, repo_id: str, name: str):
        content = self.server.files(repo_id).get(name)
        if content is None:
            return self.reply({"error": "no such file"}, 404, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.reply(content=content, ETag=etag, X_Repo_Commit=COMMIT)
