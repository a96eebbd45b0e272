"""A stand-in for the Hugging Face hub: repositories in memory behind the parts of its HTTP interface that are used."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(BaseHTTPRequestHandler):
    """Answers to create, preupload, commit, revision and resolve."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, bytes]]

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.strip("/").split("/")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repositories.setdefault(name, {})
            return self.answer({"url": f"{self.base}/{name}", "name": name, "id": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name, kind = "/".join(parts[2:4]), parts[4]
        if name not in self.repositories:
            return self.answer({"error": "Repository not found"}, 404)
        if kind == "preupload":
            files = json.loads(body)["files"]
            return self.answer(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                        for file in files
                    ]
                }
            )
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.repositories[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self.answer({"commitUrl": f"{self.base}/{name}/commit/{self.sha(name)}", "commitOid": self.sha(name)})

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            name = "/".join(parts[2:4])
            if name not in self.repositories:
                return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            if parts[4] == "tree":
                files = self.repositories[name].items()
                return self.answer(
                    [{"type": "file", "path": p, "size": len(c), "oid": self.sha(name)} for p, c in files]
                )
            siblings = [{"rfilename": file} for file in self.repositories[name]]
            return self.answer({"id": name, "sha": self.sha(name), "siblings": siblings})
        name, file = "/".join(parts[:2]), "/".join(parts[4:])
        content = self.repositories.get(name, {}).get(file)
        if content is None:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.send(content, 200, {"ETag": etag, "X-Repo-Commit": self.sha(name)})

    do_HEAD = do_GET

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def sha(self, name: str) -> str:
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()

    def answer(self, values: dict | list, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(values).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Its address, and its repositories by name."""
    handler = type("OneHub", (Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.repositories
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
