"""Whatever browser this machine has, headless, looking at pages: what it measures, asks for and complains about.

Each page is shown in frames of the widths and colour schemes wanted, by a page of ours that sends back what it finds in
them; everything comes from a server on this machine that writes down what it was asked for.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
WIDTHS, SCHEMES = (390, 1100), ("light", "dark")
_SECONDS = 60
_PROBE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body><script>
const wanted = WANTED, found = [];
function look(page, width, scheme) {
  return new Promise(done => {
    const frame = document.createElement('iframe');
    frame.style = `border:0;width:${width}px;height:3000px;color-scheme:${scheme}`;
    frame.onload = () => {
      frame.onload = null;
      const d = frame.contentDocument, e = d.documentElement, w = frame.contentWindow;
      d.querySelectorAll('details').forEach(x => x.open = true);
      const drawn = [...d.querySelectorAll('svg')].map(s => {
        const r = s.getBoundingClientRect(), b = s.getBBox();
        return Math.min(r.width, r.height, b.width, b.height, width - r.right);
      });
      const texts = [...d.querySelectorAll('p, li, h1, h2, dd, figcaption')];
      found.push({page, width, scheme, drawn, overhang: e.scrollWidth - e.clientWidth,
        paper: w.getComputedStyle(d.body).backgroundColor, ink: w.getComputedStyle(d.body).color,
        cut: texts.filter(t => t.getBoundingClientRect().right > width).length,
        resources: w.performance.getEntriesByType('resource').map(r => r.name)});
      done();
    };
    frame.src = page;
    document.body.append(frame);
  });
}
(async () => {
  for (const each of wanted) await look(...each);
  await fetch('found', {method: 'POST', body: JSON.stringify(found)});
})();
</script>"""


@dataclass
class Look:
    """What a browser found on one page.

    Attributes:
        views: one for each width and colour scheme: the least of every drawing's sizes and its distance from the right
            edge, pixels by which the page is too wide, colours, texts that are cut off, resources that it loaded.
        asked: paths that the browser asked the server for, beside the page's own.
        complaints: what it wrote to its console.
    """

    views: list[dict] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def find_browser() -> str:
    """The path of a browser; skips the test where there is none."""
    for name in (*CHROMIUM, "firefox", "firefox-esr"):
        if path := shutil.which(name):
            return path
    pytest.skip("no browser on PATH (chromium, google-chrome, firefox): the page was not drawn")


def look_at(pages: Sequence[str]) -> list[Look]:
    """Shows every page at every width and colour scheme, in one sitting."""
    browser, arrived = find_browser(), threading.Event()
    looks = {f"page-{i}.html": Look() for i in range(len(pages))}
    wanted = [(name, width, scheme) for name in looks for width in WIDTHS for scheme in SCHEMES]
    answers = {"/probe.html": _PROBE.replace("WANTED", json.dumps(wanted))}
    answers |= {f"/{name}": page for name, page in zip(looks, pages, strict=True)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in answers:
                looks[self.headers["Referer"].rpartition("/")[2]].asked.append(self.path)
            self._answer(200 if self.path in answers else 404, answers.get(self.path, ""))

        def do_POST(self):
            for view in json.loads(self.rfile.read(int(self.headers["Content-Length"]))):
                looks[view["page"]].views.append(view)
            self._answer(200, "")
            arrived.set()

        def log_message(self, *_):
            pass

        def _answer(self, status, text):
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        output = Path(profile) / "stderr"
        with output.open("w") as errors:
            command = _command(browser, profile, f"http://127.0.0.1:{server.server_port}/probe.html")
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
            has_answered = arrived.wait(_SECONDS)
            process.terminate()
            process.wait(_SECONDS)
            server.shutdown()
            server.server_close()
        said = output.read_text(errors="replace")
    if not has_answered:
        raise RuntimeError(f"{browser} did not show the pages within {_SECONDS} s: {said[-500:]}")
    for name, look in looks.items():
        look.complaints = [line for line in said.splitlines() if "CONSOLE" in line and f"/{name}" in line]
    return list(looks.values())


def _command(browser: str, profile: str, address: str) -> list[str]:
    if "firefox" in Path(browser).name:
        return [browser, "--headless", "--no-remote", "--profile", profile, address]
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"]
    # nothing but this machine can be reached, so that the browser's own errands do not wait for an answer either
    options += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={profile}"]
    return [browser, *options, address]


def check(look: Look, drawings: int) -> None:
    """Fails where a page is cut off, unreadable, empty, or wants something from elsewhere."""
    assert [(view["width"], view["scheme"]) for view in look.views] == [(w, s) for w in WIDTHS for s in SCHEMES]
    for view in look.views:
        where = f"{view['width']} px, {view['scheme']}"
        assert (view["overhang"], view["cut"]) == (0, 0), f"{where}: wider than its window"
        assert len(view["drawn"]) == drawings and min(view["drawn"], default=1) > 0, (
            f"{where}: a drawing is empty or cut off"
        )
        paper, ink = _brightness(view["paper"]), _brightness(view["ink"])
        assert (paper > 200 and ink < 80) if view["scheme"] == "light" else (paper < 60 and ink > 200), where
        assert view["resources"] == [], f"{where}: loads {view['resources']}"
    assert look.asked == [] and look.complaints == []


def _brightness(colour: str) -> float:
    """Mean of the channels of a computed colour, ``rgb(r, g, b)``."""
    return sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 3
