"""A stand-in for the Hugging Face Hub on the loopback: repositories in memory, made, written in commits, and read."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(ThreadingHTTPServer):
    """`repositories` is name -> (private, commits), a commit being path -> content; `asked` is every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, tuple[bool, list[dict[str, bytes]]]] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.claimed: dict[str, int] = {}  # sizes that a HEAD tells instead of the true ones
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def answer(self, status: int, body: bytes | dict, **headers: str) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def note(self) -> list[str]:
        self.server.asked.append((self.command, self.path))
        self.server.tokens.add(self.headers.get("Authorization"))
        return self.path.split("?")[0].strip("/").split("/")

    def do_POST(self) -> None:
        parts = self.note()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts == ["api", "validate-yaml"]:
            self.answer(200, {"errors": [], "warnings": []})
        elif parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            known = name in self.server.repositories
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.server.repositories.setdefault(name, (private, [{}]))
            self.answer(409 if known else 200, {"url": f"{self.server.url}/{name}", "name": name})
        elif parts[4:5] == ["preupload"]:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif parts[4:5] == ["commit"]:
            commits = self.server.repositories["/".join(parts[2:4])][1]
            lines = [json.loads(line) for line in body.splitlines()]
            added = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}
            commits.append({**commits[-1], **added})
            url = f"{self.server.url}/{'/'.join(parts[2:4])}/commit/{commit_of(len(commits) - 1)}"
            self.answer(200, {"commitUrl": url, "commitOid": commit_of(len(commits) - 1), "success": True})
        else:
            self.answer(404, {"error": "no such address"})

    def do_GET(self) -> None:
        parts = self.note()
        if parts[:2] == ["api", "models"]:
            known = self.server.repositories.get("/".join(parts[2:4]))
            if known is None:
                self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            else:
                self.answer(200, {"id": "/".join(parts[2:4]), "sha": commit_of(len(known[1]) - 1), "siblings": []})
            return
        if len(parts) < 5 or parts[2] != "resolve" or "/".join(parts[:2]) not in self.server.repositories:
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return
        commits = self.server.repositories["/".join(parts[:2])][1]
        at = len(commits) - 1
        if parts[3] != "main":
            at = next((i for i in range(len(commits)) if commit_of(i) == parts[3]), -1)
        if at < 0:
            self.answer(404, {"error": "Revision not found"}, X_Error_Code="RevisionNotFound")
            return
        name = "/".join(parts[4:])
        if name not in commits[at]:
            self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit_of(at))
            return
        content = commits[at][name]
        extra = {"X_Linked_Size": str(self.server.claimed[name])} if name in self.server.claimed else {}
        self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit_of(at), **extra)

    do_HEAD = do_GET


def commit_of(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
