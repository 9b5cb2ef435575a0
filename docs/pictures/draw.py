"""Draws the pictures of the documents: ``python docs/pictures/draw.py`` writes the SVG files beside it.

A picture is a list of boxes, arrows and words on a grid of pixels, drawn for the width of a phone. It has a background
of its own, and follows the reader's ``prefers-color-scheme``.
"""

from __future__ import annotations

import html
import pathlib

WIDTH = 480
COLOURS = {
    "paper": ("#ffffff", "#131416"),
    "ink": ("#1f2933", "#e4e7eb"),
    "pale": ("#4b5864", "#a9b3bd"),
    "line": ("#7b8794", "#7b8794"),
    "loop": ("#d9eaf7", "#17384f"),
    "worker": ("#dff3e0", "#1d4023"),
    "base": ("#f1f3f5", "#2a2f35"),
    "warn": ("#fbe3d6", "#54301c"),
}
"""Of each name: on a light page, on a dark one."""


def _style() -> str:
    light = "".join(f".{name}{{fill:{colours[0]}}}" for name, colours in COLOURS.items())
    dark = "".join(f".{name}{{fill:{colours[1]}}}" for name, colours in COLOURS.items())
    return f"<style>{light}@media (prefers-color-scheme: dark){{{dark}}}</style>"


class Picture:
    """Collects shapes, and gives them as SVG."""

    def __init__(self, height: int, title: str) -> None:
        self._height = height
        place = 'viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto"'
        self._shapes = [
            f"<title>{html.escape(title)}</title>",
            _style(),
            f'<defs><marker id="tip" {place}><path d="M0 0 10 5 0 10z" class="line"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{height}" rx="12" class="paper"/>',
        ]

    def box(self, x: int, y: int, width: int, height: int, *, fill: str, lines: list[str]) -> None:
        """A box with its name, and below it what there is to say."""
        stroke = COLOURS["line"][0]
        self._shapes.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" class="{fill}" stroke="{stroke}"/>'
        )
        top = y + height / 2 - 8 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            self.text(x + width // 2, int(top + 16 * number), line, middle=True, bold=number == 0, pale=number > 0)

    def text(self, x: int, y: int, words: str, *, middle: bool = False, bold: bool = False, pale: bool = False) -> None:
        """A line of words; its left end, or its middle, is at x."""
        weight = ' font-weight="600"' if bold else ""
        anchor = ' text-anchor="middle"' if middle else ""
        style = f'font-size="{13 if bold else 12}" class="{"pale" if pale else "ink"}"{weight}{anchor}'
        self._shapes.append(f'<text x="{x}" y="{y}" {style}>{html.escape(words)}</text>')

    def arrow(self, *points: tuple[int, int], dashed: bool = False) -> None:
        """A line through the points, with a tip at its end."""
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        stroke = COLOURS["line"][0]
        self._shapes.append(
            f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="1.6"{dashes} marker-end="url(#tip)"/>'
        )

    def band(self, x: int, y: int, width: int, height: int, name: str, *, indent: int = 12) -> None:
        """A region with its name at its upper edge."""
        stroke = COLOURS["line"][0]
        self._shapes.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="none" stroke="{stroke}" '
            'stroke-dasharray="3 4"/>'
        )
        self.text(x + indent, y + 20, name, pale=True)

    def svg(self) -> str:
        """The picture as a file's text."""
        size = f'viewBox="0 0 {WIDTH} {self._height}" width="{WIDTH}" height="{self._height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif" role="img">'
        return "\n".join([head, *self._shapes, "</svg>", ""])


def house() -> Picture:
    """The folders: each stands on those below it and knows nothing above."""
    picture = Picture(556, "The folders of the package as layers")
    picture.text(14, 20, "imports", pale=True)
    picture.arrow((34, 28), (34, 540))
    x, width = 70, 394

    def floor(y: int, name: str, about: str, fill: str) -> None:
        picture.box(x, y, width, 48, fill=fill, lines=[name, about])

    floor(16, "__init__, __main__, dropin, client", "what people import or start", "base")
    floor(74, "testing, pytest_plugin", "tools for tests of handlers", "base")
    floor(132, "run", "serve(), signals, the command line", "base")
    floor(190, "greenlets, ready_made, http", "the combinations: ThreadingTCPServer …", "worker")
    picture.band(x, 248, width, 118, "concurrency: what runs the handler, or the loop")
    for number, (name, about) in enumerate(
        (("pool", "few threads"), ("cooperative", "greenlets"), ("prefork", "processes"))
    ):
        picture.box(x + 10 + 127 * number, 276, 120, 46, fill="worker", lines=[name, about])
    picture.box(x + 10, 328, 374, 28, fill="worker", lines=["dispatch, threads, forks, children"])
    floor(376, "http_keep_alive", "keep-alive for handlers of http.server", "loop")
    floor(434, "core", "the loop, a request's life, servers, handlers", "loop")
    picture.box(x, 492, 192, 48, fill="loop", lines=["net", "sockets"])
    picture.box(x + 202, 492, 192, 48, fill="warn", lines=["errors, log, seconds", "stand on nothing"])
    return picture


def request_life() -> Picture:
    """The nine words, and the line between the loop and the worker."""
    picture = Picture(668, "The life of a request")
    picture.band(10, 10, 460, 292, "the loop: nothing here waits for a client")
    picture.band(10, 314, 460, 276, "the worker: the loop, a thread, a child, a greenlet", indent=142)
    for y, name, hook in (
        (40, "1 wait", "full or paused: not watched"),
        (106, "2 accept", "get_request"),
        (172, "3 verify", "verify_request"),
        (238, "4 dispatch", "process_request"),
    ):
        picture.box(30, y, 220, 48, fill="loop", lines=[name, hook])
    picture.box(30, 346, 220, 48, fill="worker", lines=["5 prepare", "prepare_request: TLS"])
    picture.box(30, 418, 220, 60, fill="worker", lines=["6 handle", "setup, handle, finish"])
    picture.box(300, 346, 110, 48, fill="warn", lines=["7 error", "handle_error"])
    picture.box(300, 418, 110, 60, fill="base", lines=["parked", "no thread"])
    picture.box(30, 526, 380, 50, fill="worker", lines=["8 shutdown", "shutdown_request, close_request"])
    picture.box(30, 606, 380, 50, fill="loop", lines=["9 tick", "in the loop: timers, service_actions, ended workers"])
    for before, after in ((88, 106), (154, 172), (220, 238), (286, 346), (394, 418), (478, 526)):
        picture.arrow((140, before), (140, after))
    picture.text(262, 126, "an error: ignore it, pause,", pale=True)
    picture.text(262, 142, "or leave the loop", pale=True)
    picture.arrow((250, 196), (450, 196), (450, 560), (410, 560))
    picture.text(262, 188, "no", pale=True)
    picture.arrow((250, 366), (300, 366))
    picture.text(254, 358, "raised", pale=True)
    picture.arrow((250, 436), (272, 436), (272, 382), (300, 382))
    picture.arrow((250, 452), (300, 452), dashed=True)
    picture.arrow((300, 468), (250, 468), dashed=True)
    picture.text(168, 504, "keep_open(), and the client speaks", pale=True)
    picture.arrow((410, 370), (432, 370), (432, 540), (410, 540))
    return picture


def two_axes() -> Picture:
    """What runs the loop, against what runs the handler."""
    picture = Picture(344, "Two questions, two hooks")
    for x, words, hook in (
        (16, "What runs the loop?", "serve_forever"),
        (250, "What runs the handler?", "process_request"),
    ):
        picture.text(x, 30, words, bold=True)
        picture.text(x, 50, hook, pale=True)
    left = [["the calling thread"], ["ThreadPoolMixIn", "N threads on one poller"], ["PreForkMixIn", "N processes"]]
    right = [
        ["the loop itself"],
        ["ThreadingMixIn", "a thread"],
        ["ForkingMixIn", "a child"],
        ["GreenletMixIn", "a greenlet"],
    ]
    for number, lines in enumerate(left):
        picture.box(16, 64 + 58 * number, 214, 48, fill="loop", lines=lines)
    for number, lines in enumerate(right):
        picture.box(250, 64 + 58 * number, 214, 48, fill="worker", lines=lines)
    picture.text(16, 312, "A pool's threads run the handler as well;", pale=True)
    picture.text(16, 330, "worker processes go with all but forks.", pale=True)
    return picture


def pool() -> Picture:
    """Leader and followers: what wakes up serves."""
    picture = Picture(424, "A pool of threads")
    picture.box(
        16,
        16,
        210,
        60,
        fill="loop",
        lines=["the loop's thread", "coordinator: timers, drain,", "grows and shrinks the pool"],
    )
    picture.box(
        254, 16, 210, 60, fill="base", lines=["poller", "epoll, shared by all workers:", "one event wakes one of them"]
    )
    picture.box(254, 110, 98, 44, fill="loop", lines=["listener", "new clients"])
    picture.box(366, 110, 98, 44, fill="base", lines=["parking", "silent ones"])
    picture.arrow((303, 110), (303, 76))
    picture.arrow((415, 110), (415, 76))
    picture.band(16, 176, 448, 232, "workers: threads that do all of this themselves, max_workers at most")
    picture.box(36, 208, 180, 46, fill="worker", lines=["1 wait", "on the poller"])
    picture.box(264, 208, 180, 46, fill="worker", lines=["2 take", "accept, or a parked one"])
    picture.box(264, 284, 180, 46, fill="worker", lines=["3 serve", "prepare, handle"])
    picture.box(264, 350, 180, 46, fill="worker", lines=["4 shutdown", "without keep_open()"])
    picture.box(36, 284, 180, 46, fill="worker", lines=["4 park", "after keep_open()"])
    picture.arrow((216, 231), (264, 231))
    picture.arrow((354, 254), (354, 284))
    picture.arrow((264, 307), (216, 307))
    picture.arrow((354, 330), (354, 350))
    picture.arrow((126, 284), (126, 254))
    picture.arrow((264, 373), (26, 373), (26, 231), (36, 231))
    picture.arrow((120, 208), (120, 46 + 30), dashed=True)
    picture.text(128, 164, "woken when none is idle", pale=True)
    return picture


def cooperative() -> Picture:
    """Greenlets take turns in the loop's thread."""
    picture = Picture(392, "Greenlets in one thread")
    picture.band(16, 12, 448, 250, "one thread: one of these runs at a time")
    picture.box(36, 44, 170, 60, fill="loop", lines=["the loop", "epoll, timers,", "accepts"])
    picture.box(274, 44, 170, 60, fill="base", lines=["turns", "greenlets that are told", "something go on"])
    picture.arrow((206, 64), (274, 64))
    picture.arrow((274, 86), (206, 86))
    picture.text(216, 58, "ready", pale=True)
    picture.text(222, 102, "all wait", pale=True)
    for number, words in enumerate(("handler", "handler", "handler")):
        x = 36 + 142 * number
        picture.box(x, 140, 124, 46, fill="worker", lines=[words, "a greenlet each"])
        picture.box(x, 204, 124, 44, fill="base", lines=["channel", "waits, is told"])
        picture.arrow((x + 62, 186), (x + 62, 204))
    picture.arrow((359, 104), (359, 140))
    picture.arrow((330, 104), (240, 140))
    picture.arrow((310, 104), (110, 140))
    picture.box(16, 284, 214, 48, fill="warn", lines=["watchdog, a thread", "logs a turn that is too long"])
    picture.box(250, 284, 214, 48, fill="worker", lines=["blocking_calls, threads", "what run_in_thread() is given"])
    picture.text(16, 360, "The hub runs them on when the loop has ended:", pale=True)
    picture.text(16, 378, "drain(), server_close(), the interpreter's end.", pale=True)
    return picture


def prefork() -> Picture:
    """A supervisor and its workers."""
    picture = Picture(476, "A supervisor and its worker processes")
    picture.band(16, 12, 448, 196, "supervisor: takes no request; owns the listeners")
    picture.box(36, 44, 128, 60, fill="loop", lines=["supervisor", "starts, replaces,", "ends workers"])
    picture.box(176, 44, 128, 60, fill="loop", lines=["places", "a listener and", "a worker each"])
    picture.box(316, 44, 128, 60, fill="warn", lines=["hang_detection", "heartbeats that", "are too old"])
    picture.box(36, 136, 128, 56, fill="base", lines=["storms, pauses", "restarts slow down"])
    picture.box(176, 136, 128, 56, fill="base", lines=["worker_handle", "one process, seen", "from outside"])
    picture.box(316, 136, 128, 56, fill="base", lines=["ending", "drain, cut,", "SIGKILL"])
    picture.arrow((100, 104), (100, 136))
    picture.arrow((240, 104), (240, 136))
    picture.arrow((380, 104), (380, 136))
    picture.text(240, 232, "protocol: words over a socket pair,", middle=True, pale=True)
    picture.text(240, 248, "heartbeats in shared memory", middle=True, pale=True)
    for x in (16, 250):
        side = x + 20 if x < 100 else x + 178
        picture.arrow((side, 208), (side, 268))
        picture.arrow((side + 16, 268), (side + 16, 208))
        picture.band(x, 268, 214, 192, "worker process")
        picture.box(
            x + 16,
            300,
            182,
            62,
            fill="worker",
            lines=["worker_main", "worker_link: control", "thread, obeys and tells"],
        )
        picture.box(x + 16, 372, 182, 28, fill="worker", lines=["worker_commands"])
        picture.box(x + 16, 410, 182, 38, fill="loop", lines=["the server's own loop"])
    return picture


def http() -> Picture:
    """Keep-alive: a connection between two requests of a browser."""
    picture = Picture(300, "Keep-alive for handlers of http.server")
    picture.box(16, 20, 200, 48, fill="base", lines=["parked", "no thread; timeout runs"])
    picture.box(264, 20, 200, 48, fill="worker", lines=["handle()", "one request: do_GET …"])
    picture.arrow((216, 36), (264, 36))
    picture.text(222, 28, "bytes", pale=True)
    picture.box(264, 108, 200, 48, fill="worker", lines=["is the body read?", "Content-Length, chunks"])
    picture.arrow((364, 68), (364, 108))
    picture.box(16, 108, 200, 48, fill="worker", lines=["keep_open()", "both sides want it"])
    picture.arrow((264, 132), (216, 132))
    picture.text(228, 124, "yes", pale=True)
    picture.arrow((116, 108), (116, 68))
    picture.box(264, 206, 200, 48, fill="loop", lines=["shutdown", "half-close, close"])
    picture.arrow((364, 156), (364, 206))
    picture.text(372, 186, "no", pale=True)
    picture.arrow((116, 156), (116, 230), (264, 230))
    picture.text(124, 222, "draining, or the", pale=True)
    picture.text(124, 250, "client said close", pale=True)
    picture.text(16, 286, "What is left of a body is never taken for the next request.", pale=True)
    return picture


PICTURES = {
    "house": house,
    "request-life": request_life,
    "two-axes": two_axes,
    "pool": pool,
    "cooperative": cooperative,
    "prefork": prefork,
    "http": http,
}


def main() -> None:
    """Write them all."""
    for name, draw in PICTURES.items():
        (pathlib.Path(__file__).parent / f"{name}.svg").write_text(draw().svg(), "utf-8")


if __name__ == "__main__":
    main()
