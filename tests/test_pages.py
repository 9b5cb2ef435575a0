"""The documents as a reader sees them: built, and opened in a browser at the width of a screen and of a phone."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import logging
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import snowballstemmer
from support.log_watch import ExpectLog
from support.programs import START_LIMIT
from support.under_test import LIMIT

import sockserve
from sockserve.pytest_plugin import Running

ROOT = pathlib.Path(sockserve.__file__).parent.parent
LOOK = pathlib.Path(__file__).parent / "support/look_at_pages.html"
WIDTHS = (1280, 390)
BUILD_LIMIT = 10 * START_LIMIT

SEARCHED = (
    *("metrics", "prometheus", "access", "log", "haproxy", "nginx", "tls", "certificate", "graceful", "shutdown"),
    *("systemd", "slowloris", "drain", "reload", "restart", "timeout", "ipv6", "docker", "kubernetes", "backlog"),
    *("keepalive", "backpressure", "zombie", "benchmark", "asyncio", "gevent", "twisted", "gunicorn", "greenlet"),
    *("slow", "rate", "limit", "multicast", "mtls", "starttls", "sni", "deadline", "health", "readiness", "watchdog"),
)
"""What users type."""

LOOKED_UP = (
    *("metrics", "Prometheus", "access log", "JSON", "HAProxy", "nginx", "TLS", "certificate", "mTLS", "graceful"),
    *("systemd", "socket activation", "slowloris", "rate limit", "timeout", "IPv6", "multicast", "UDP", "Unix socket"),
    *("health check", "Kubernetes", "Docker", "rolling restart", "reload", "keep-alive", "PROXY protocol", "drain"),
)
"""What users look for in the list of how-tos."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The documents as HTML, every warning an error."""
    place = tmp_path_factory.mktemp("documents")
    options = ["-b", "html", "-W", "--keep-going", "-n", "-q", "-d", f"{place}/doctrees"]
    command = [sys.executable, "-m", "sphinx", *options, ROOT / "docs", f"{place}/html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return place / "html"


class Pages(sockserve.HTTPKeepAliveMixIn, http.server.SimpleHTTPRequestHandler):
    """Serves them, and takes what the browser found."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    timeout = 60
    special: dict[str, bytes]
    found: queue.SimpleQueue[bytes]

    def do_GET(self) -> None:
        """A file of the documents, or what the look itself needs."""
        body = self.special.get(self.path)
        if body is None:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path.endswith("html") else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """What was found."""
        self.found.put(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(sockserve.ThreadPoolMixIn, http.server.HTTPServer):
    """Of them."""

    max_workers = 2
    drain_timeout = 0.0


@contextlib.contextmanager
def browser(url: str, profile: pathlib.Path) -> Iterator[None]:
    """Chromium without a window, with a page open; all of its processes are gone at the end."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None and os.environ.get("CI") != "true":
        pytest.skip("there is no chromium on this machine")
    assert program is not None, "chromium is missing"
    # It asks for nothing from outside, and shows nothing.
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu")
    options = [*(f"--disable-{name}" for name in quiet), "--no-first-run", "--headless", "--no-sandbox"]
    process = subprocess.Popen(
        [program, *options, f"--user-data-dir={profile}", "--remote-debugging-port=0", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(LIMIT)


def test_no_page_is_cut_at_the_width_of_a_screen_or_of_a_phone(
    built: pathlib.Path, running: Running, tmp_path: pathlib.Path, expect_log: ExpectLog
) -> None:
    """Nothing is beyond the edge, cut off, or scrolls without a sign of it; each picture is there and has its words."""
    # The server stops as soon as the browser is killed: the end of a connection may not have arrived yet.
    expect_log(logging.WARNING, "cut ", at_least=0)
    pages = sorted(path.relative_to(built).as_posix() for path in built.rglob("*.html"))
    assert len(pages) > 40
    Pages.found = queue.SimpleQueue()
    asked = json.dumps({"pages": pages, "widths": WIDTHS}).encode()
    Pages.special = {"/look.html": LOOK.read_bytes(), "/pages.json": asked, "/favicon.ico": b""}
    server = running(Server(("127.0.0.1", 0), functools.partial(Pages, directory=str(built))))
    with browser(f"http://127.0.0.1:{server.server_address[1]}/look.html", tmp_path):
        found = json.loads(Pages.found.get(timeout=BUILD_LIMIT))
    assert not found, json.dumps(found, indent=1)


def test_the_search_finds_what_users_type(built: pathlib.Path) -> None:
    """Its index has each of the words, by its stem."""
    stem = snowballstemmer.stemmer("english").stemWord
    index = (built / "searchindex.js").read_text("utf-8")
    found = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    assert not [word for word in SEARCHED if stem(word) not in found["terms"] | found["titleterms"]]


def test_the_list_of_how_tos_has_the_words_that_users_look_for() -> None:
    """In the first column of its table, each in a row that leads to a page; and each how-to can be reached."""
    text = (ROOT / "docs/how-to/index.md").read_text("utf-8")
    rows = re.findall(r"^\| (.+) \| (.*\]\(.+\).*) \|$", text, re.MULTILINE)
    words = " ".join(found for found, _ in rows).casefold()
    assert not [word for word in LOOKED_UP if word.casefold() not in words]
    pages = {path.stem for path in (ROOT / "docs/how-to").glob("*.md")} - {"index"}
    assert not pages - set(text.split())


def test_the_readme_and_the_first_page_tell_of_the_same() -> None:
    """The tables of what there is, and of where users come from, are the same but for the place of their links."""
    sections = ("What a service finds here", "Where you come from")
    readme, first = (
        [
            (ROOT / name).read_text("utf-8").partition(f"\n## {section}\n\n")[2].partition("\n\n")[0]
            for section in sections
        ]
        for name in ("README.md", "docs/index.md")
    )
    assert all(readme)
    assert [table.replace("](docs/", "](") for table in readme] == first
