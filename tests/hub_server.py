"""A small server that speaks as much of the Hugging Face hub's protocol as an upload and a download need."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_for_tests"


@dataclass
class Repository:
    """A model's repository: what it holds, and how it came."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((self.commits, sorted(self.files.items()))).encode()).hexdigest()


@dataclass
class Hub:
    """What the server has, what it was asked, and what it should refuse."""

    url: str = ""
    models: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    refuse: str = ""
    """Requests whose path holds this are answered with an error."""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A running server, and its content."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.receive()
        if path is None:
            return
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            assert match[1] in self.hub.models
            told = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            self.answer(200, {"files": told})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404, {"error": f"unknown: {path}"})

    def do_GET(self) -> None:
        path = self.receive()
        if path is None:
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            repository = self.hub.models.get(match[1])
            if repository is None:
                self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return
            siblings = [{"rfilename": name} for name in repository.files]
            info = {"id": match[1], "private": repository.private, "sha": repository.sha, "siblings": siblings}
            self.answer(200, info | {"tags": [], "downloads": 0})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = self.hub.models[match[1]].files
            self.answer(200, [{"type": "file", "path": name, "size": len(c), "oid": name} for name, c in files.items()])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self.hub.models.get(match[1], Repository())
            content = repository.files.get(match[3])
            if content is None:
                self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            else:
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                self.answer(200, content, {"ETag": etag, "X-Repo-Commit": repository.sha})
        else:
            self.answer(404, {"error": f"unknown: {path}"})

    do_HEAD = do_GET

    def create(self, told: dict[str, Any]) -> None:
        name = f"{told['organization']}/{told['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.models:
            self.answer(409, {"error": "You already created this model repo", "url": url})
            return
        self.hub.models[name] = Repository(private=told.get("visibility") == "private" or told.get("private", False))
        self.answer(200, {"url": url, "name": name})

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.hub.models[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
            else:
                assert (line["key"], value["encoding"]) == ("file", "base64")
                repository.files[value["path"]] = base64.b64decode(value["content"])
        sha = repository.sha
        self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def receive(self) -> str | None:
        """The path asked for; None if it has been refused."""
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if self.hub.refuse and self.hub.refuse in path:
            self.answer(403, {"error": "no room for you\nhere"})
            return None
        return path

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
