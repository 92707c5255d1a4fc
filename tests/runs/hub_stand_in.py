"""A hub on this machine: what huggingface_hub asks when it makes a repository, commits to it, and downloads from it."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories by name: whether private, and their files; and the token that may write."""

    def __init__(self):
        self.private, self.files, self.commits, self.token, self.address = {}, {}, [], "let-me", ""


@contextmanager
def serving():
    """A :class:`Hub` that answers at its ``address``."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body, path = self.rfile.read(int(self.headers.get("Content-Length", 0))), urlsplit(self.path).path
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer(401, {"error": "unauthorized"})
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                hub.private[name], hub.files[name] = (
                    asked.get("visibility") == "private" or bool(asked.get("private")),
                    {},
                )
                return self.answer(200, {"url": f"{hub.address}/{name}"})
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            name = "/".join(path.split("/")[3:5])
            if "/preupload/" in path:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files})
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "file":
                    hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            hub.commits.append(lines[0]["value"]["summary"])
            return self.answer(200, {"commitUrl": f"{hub.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            name = path.removeprefix("/api/models/") if path.startswith("/api/") else "/".join(path.split("/")[1:3])
            name = name.partition("/revision/")[0].partition("/tree/")[0]
            if name not in hub.files:
                return self.answer(404, {"error": "no such repository"}, **{"X-Error-Code": "RepoNotFound"})
            if path.startswith("/api/"):
                files = [{"rfilename": file} for file in hub.files[name]]
                described = {
                    "id": name,
                    "modelId": name,
                    "private": hub.private[name],
                    "siblings": files,
                    "sha": "0" * 40,
                }
                return self.answer(200, [] if "/tree/" in path else described)
            content = hub.files[name].get(path.partition("/resolve/")[2].partition("/")[2])
            if content is None:
                return self.answer(404, {"error": "no such file"}, **{"X-Error-Code": "EntryNotFound"})
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(200, content, **{"ETag": etag, "X-Repo-Commit": "0" * 40})

        do_HEAD = do_GET

        def answer(self, status, content, **headers):
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
