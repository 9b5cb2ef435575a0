"""Draws the pictures of the documents: ``python docs/pictures/draw.py`` writes the SVG files beside it.

A picture is a list of boxes, arrows and words on a grid of pixels. It has a background of its own, so that it can be
read on a dark page too.
"""

from __future__ import annotations

import html
import pathlib

INK, PALE, LINE = "#1f2933", "#52606d", "#7b8794"
LOOP, WORKER, BASE, WARN = "#d9eaf7", "#dff3e0", "#f1f3f5", "#fbe3d6"


class Picture:
    """Collects shapes, and gives them as SVG."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._size = width, height
        tip = f'<path d="M0 0 10 5 0 10z" fill="{LINE}"/>'
        place = 'viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto"'
        self._shapes = [
            f"<title>{html.escape(title)}</title>",
            f'<defs><marker id="tip" {place}>{tip}</marker></defs>',
            f'<rect width="{width}" height="{height}" rx="12" fill="#ffffff"/>',
        ]

    def box(self, x: int, y: int, width: int, height: int, *, fill: str, lines: list[str]) -> None:
        """A box with its name, and below it what there is to say."""
        self._shapes.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{fill}" stroke="{LINE}"/>'
        )
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for number, line in enumerate(lines):
            self.text(x + width // 2, int(top + 18 * number), line, middle=True, bold=number == 0, pale=number > 0)

    def text(self, x: int, y: int, words: str, *, middle: bool = False, bold: bool = False, pale: bool = False) -> None:
        """A line of words; its left end, or its middle, is at x."""
        weight = ' font-weight="600"' if bold else ""
        anchor = ' text-anchor="middle"' if middle else ""
        size, color = (15 if bold else 13), (PALE if pale else INK)
        style = f'font-size="{size}" fill="{color}"{weight}{anchor}'
        self._shapes.append(f'<text x="{x}" y="{y}" {style}>{html.escape(words)}</text>')

    def arrow(self, *points: tuple[int, int], dashed: bool = False) -> None:
        """A line through the points, with a tip at its end."""
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self._shapes.append(
            f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6"{dashes} marker-end="url(#tip)"/>'
        )

    def band(self, x: int, y: int, width: int, height: int, name: str, *, indent: int = 12) -> None:
        """A region with its name at its upper edge."""
        self._shapes.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="none" stroke="{LINE}" '
            'stroke-dasharray="3 4"/>'
        )
        self.text(x + indent, y + 22, name, pale=True)

    def svg(self) -> str:
        """The picture as a file's text."""
        width, height = self._size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="system-ui, sans-serif" role="img">'
        )
        return "\n".join([head, *self._shapes, "</svg>", ""])


def house() -> Picture:
    """The layers: each stands on those below it and knows nothing above."""
    floors = [
        ("sockserve, __main__, dropin, client", "what people import or start", BASE),
        ("run, testing", "serve(), signals, the command line; tools for tests of handlers", BASE),
        ("greenlets, ready_made", "the combinations: ThreadingTCPServer and the like", WORKER),
        ("concurrency", "who runs the handler, who runs the loop", WORKER),
        ("core", "the loop, a request's life, servers, handlers, events", LOOP),
        ("net", "sockets: named, opened, judged, closed", LOOP),
        ("errors", "what can go wrong, and whose doing it is", WARN),
    ]
    picture = Picture(640, 40 + 64 * len(floors), "The layers of the package")
    for number, (name, about, fill) in enumerate(floors):
        picture.box(90, 24 + 64 * number, 520, 52, fill=fill, lines=[name, about])
    picture.arrow((48, 30), (48, 64 * len(floors) + 10))
    picture.text(20, 20, "imports", pale=True)
    return picture


def request_life() -> Picture:
    """The nine words, and the line between the loop and the worker."""
    picture = Picture(680, 690, "The life of a request")
    picture.band(16, 14, 648, 302, "the loop: nothing here waits for a client")
    picture.band(16, 334, 648, 278, "the worker: the loop itself, a thread, a child, a greenlet", indent=184)
    picture.box(50, 44, 270, 44, fill=LOOP, lines=["1 wait"])
    picture.box(50, 108, 270, 50, fill=LOOP, lines=["2 accept", "get_request"])
    picture.box(50, 180, 270, 50, fill=LOOP, lines=["3 verify", "verify_request"])
    picture.box(50, 252, 270, 50, fill=LOOP, lines=["4 dispatch", "process_request"])
    picture.box(50, 370, 270, 50, fill=WORKER, lines=["5 prepare", "prepare_request: TLS"])
    picture.box(50, 444, 270, 60, fill=WORKER, lines=["6 handle", "setup, handle, finish"])
    picture.box(400, 370, 130, 50, fill=WARN, lines=["7 error", "handle_error"])
    picture.box(400, 444, 130, 60, fill=BASE, lines=["parked", "no thread"])
    picture.box(50, 540, 480, 56, fill=WORKER, lines=["8 shutdown", "shutdown_request, close_request"])
    picture.box(
        50, 628, 480, 50, fill=LOOP, lines=["9 tick", "in the loop again: service_actions, timers, finished workers"]
    )
    for before, after in ((88, 108), (158, 180), (230, 252), (302, 370), (420, 444), (504, 540)):
        picture.arrow((185, before), (185, after))
    picture.text(334, 72, "full, suspended, backing off: nobody is watched", pale=True)
    picture.text(334, 138, "an error: ignore, back off, or leave the loop", pale=True)
    picture.arrow((320, 205), (600, 205), (600, 576), (530, 576))
    picture.text(334, 197, "no", pale=True)
    picture.arrow((320, 388), (400, 388))
    picture.text(330, 380, "raised", pale=True)
    picture.arrow((320, 454), (360, 454), (360, 408), (400, 408))
    picture.arrow((320, 472), (400, 472), dashed=True)
    picture.arrow((400, 492), (320, 492), dashed=True)
    picture.text(330, 524, "keep_open(), and the client speaks", pale=True)
    picture.arrow((530, 395), (575, 395), (575, 560), (530, 560))
    return picture


def two_axes() -> Picture:
    """Who runs the handler, against who runs the loop."""
    picture = Picture(680, 330, "Two questions, two hooks")
    picture.text(40, 36, "Who runs the loop?", bold=True)
    picture.text(40, 56, "serve_forever", pale=True)
    picture.text(360, 36, "Who runs the handler?", bold=True)
    picture.text(360, 56, "process_request", pale=True)
    for number, (name, about) in enumerate(
        (
            ("the thread that calls it", ""),
            ("ThreadPoolMixIn", "N threads on one poller"),
            ("PreForkMixIn", "N processes"),
        )
    ):
        picture.box(40, 74 + 62 * number, 260, 50, fill=LOOP, lines=[name, about] if about else [name])
    for number, (name, about) in enumerate(
        (
            ("the loop itself", ""),
            ("ThreadingMixIn", "a thread"),
            ("ForkingMixIn", "a child"),
            ("GreenletMixIn", "a greenlet"),
        )
    ):
        picture.box(360, 74 + 62 * number, 280, 50, fill=WORKER, lines=[name, about] if about else [name])
    picture.text(40, 290, "A pool's threads run the handler as well;", pale=True)
    picture.text(40, 308, "worker processes go with all but forks.", pale=True)
    return picture


PICTURES = {"house": house, "request-life": request_life, "two-axes": two_axes}


def main() -> None:
    """Write them all."""
    for name, draw in PICTURES.items():
        (pathlib.Path(__file__).parent / f"{name}.svg").write_text(draw().svg(), "utf-8")


if __name__ == "__main__":
    main()
