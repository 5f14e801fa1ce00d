"""A hub on loopback: the few endpoints that making a repository and uploading a folder need, with what was sent in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

LARGE = 100_000  # Bytes from which a file goes through LFS.


@dataclass
class Repo:
    """A repository: whether it is private, and its files."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


class HubServer:
    """Serves on a free port. `repos` maps "models/owner/name" or "datasets/owner/name"; `refuse` answers all with a status."""

    def __init__(self, refuse: int | None = None) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status: int, value: Any = None, **headers: str) -> None:
                body = json.dumps(value if value is not None else {}).encode()
                self.send_response(status)
                for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name.replace("_", "-"), text)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                hub.asked.append(f"{self.command} {path}")
                hub.tokens.add(self.headers.get("Authorization"))
                if refuse is not None:
                    return self.answer(refuse, {"error": "you may not"}, X_Error_Message="you may not")
                for method, form, act in ROUTES:
                    if method == self.command and (match := re.fullmatch(form, path)):
                        return act(hub, self, body, *match.groups())
                return self.answer(404, {"error": f"no such endpoint: {path}"})

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

            def log_message(self, *arguments: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def info(hub: HubServer, handler: Any, body: bytes, kind: str, name: str) -> None:
    repo = hub.repos.get(f"{kind}/{name}")
    if repo is None:
        return handler.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
    return handler.answer(200, {"id": name, "sha": "a" * 40, "private": repo.private, "siblings": [], "tags": []})


def create(hub: HubServer, handler: Any, body: bytes) -> None:
    asked = json.loads(body)
    name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
    kind = f"{asked.get('type') or 'model'}s"
    private = asked.get("private") or asked.get("visibility") == "private"
    hub.repos[f"{kind}/{name}"] = Repo(bool(private))
    handler.answer(200, {"url": f"{hub.url}/{'' if kind == 'models' else kind + '/'}{name}", "name": name})


def validate(hub: HubServer, handler: Any, body: bytes) -> None:
    """As the hub does, which refuses a card without a readable front matter, and warns of one without a licence."""
    content = json.loads(body)["content"]
    front = yaml.safe_load(content.split("---\n")[1])
    errors = [] if isinstance(front, dict) else [{"message": "no front matter"}]
    handler.answer(
        400 if errors else 200, {"errors": errors, "warnings": [] if "license" in (front or {}) else [{"message": "license"}]}
    )


def preupload(hub: HubServer, handler: Any, body: bytes, kind: str, name: str) -> None:
    files = [
        {"path": each["path"], "uploadMode": "lfs" if each["size"] > LARGE else "regular", "shouldIgnore": False}
        for each in json.loads(body)["files"]
    ]
    handler.answer(200, {"files": files})


def batch(hub: HubServer, handler: Any, body: bytes, name: str) -> None:
    objects = [{**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}} for each in json.loads(body)["objects"]]
    handler.answer(200, {"transfer": "basic", "objects": objects})


def put(hub: HubServer, handler: Any, body: bytes, oid: str) -> None:
    if hashlib.sha256(body).hexdigest() != oid:
        return handler.answer(400, {"error": "another content"})
    hub.objects[oid] = body
    return handler.answer(200)


def commit(hub: HubServer, handler: Any, body: bytes, kind: str, name: str) -> None:
    repo = hub.repos[f"{kind}/{name}"]
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            repo.files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            repo.files[value["path"]] = hub.objects[value["oid"]]
    prefix = "" if kind == "models" else f"{kind}/"
    url = f"{hub.url}/{prefix}{name}/commit/{'b' * 40}"
    handler.answer(200, {"success": True, "commitUrl": url, "commitOid": "b" * 40})


ROUTES = [
    ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)", info),
    ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)/revision/main", info),
    ("POST", r"/api/repos/create", create),
    ("POST", r"/api/validate-yaml", validate),
    ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/main", preupload),
    ("POST", r"/(?:datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", put),
    ("POST", r"/api/(models|datasets)/([^/]+/[^/]+)/commit/main", commit),
]
