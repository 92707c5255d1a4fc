"""The live page of a run, served to this machine alone."""

from __future__ import annotations

import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..files.numbers import to_json
from .live import live_state, shown
from .runs import ReportError
from .templates import fill

LOOPBACK = "127.0.0.1"
#: Names under which a browser on this machine asks; a page of elsewhere whose name leads here asks under its own.
_NAMES = ("127.0.0.1", "localhost", "::1")


def watch_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the page of the runs in ``folder``, bound to loopback; ``serve_forever`` starts it.

    It answers ``/`` and ``/state.json``, reads what the run wrote down, and writes nothing.

    Args:
        folder: of the run. port: 0 takes a free one (``server_port``).

    Raises:
        ReportError: no run to be watched. OSError: the port is taken.
    """
    live_state(folder)
    nonce = secrets.token_urlsafe(16)
    page = fill("watch.html", nonce=nonce).encode()

    class Handler(_Answers):
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        )

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if not self.is_asked_here():
                self.answer(403, "text/plain", b"this page is for the machine that it runs on")
            elif path == "/":
                self.answer(200, "text/html", page)
            elif path == "/state.json":
                self.answer_state(folder)
            else:
                self.answer(404, "text/plain", b"there is / and /state.json")

    return ThreadingHTTPServer((LOOPBACK, port), Handler)


class _Answers(BaseHTTPRequestHandler):
    """Answers with what they may be taken for, and no line of log for each."""

    policy: str

    def is_asked_here(self) -> bool:
        return urlsplit(f"//{self.headers.get('Host', '')}").hostname in _NAMES

    def answer_state(self, folder: Path) -> None:
        try:
            self.answer(200, "application/json", to_json(shown(live_state(folder))).encode())
        except (ReportError, OSError, ValueError) as error:
            self.answer(503, "text/plain", str(error).encode())

    def answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Content-Security-Policy", self.policy),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """The terminal is the run's."""
