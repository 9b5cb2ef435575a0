"""How a program stands: ``/live``, ``/ready`` and ``/metrics`` over HTTP, and the word for HAProxy's agent-check.

Rule 1. The supervisor answers, from what it knows: no worker is asked, so that no answer waits behind a request.
Rule 2. Nothing can be changed here, and nothing of a client is told: the address may be open to a network.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from sockserve.concurrency.prefork.tally import Figures
from sockserve.run.answering import Ask, Reply
from sockserve.run.states import STATES, State, States

__all__ = ["Fleet", "agent", "health", "metrics"]

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Fleet(NamedTuple):
    """What is known of a program with worker processes."""

    states: States
    figures: Callable[[], Figures]
    began: float
    """When the program began, in seconds of ``time.time()``."""

    @classmethod
    def of(cls, states: States, figures: Callable[[], Figures]) -> Fleet:
        """One that begins now."""
        return cls(states, figures, time.time())

    def health(self) -> tuple[int, str]:
        """The status of ``/ready``, and why."""
        state = self.states.present
        status = STATES[state].health
        if status == 200 and not self.figures().serving:
            return 503, "no worker"
        return status, state.value

    def agent_word(self) -> str:
        """What HAProxy is told."""
        state = self.states.present
        serves = state not in (State.READY, State.RELOADING, State.UPGRADING) or self.figures().serving
        return STATES[state].agent if serves else "down"


def agent(fleet: Fleet) -> Ask:
    """One line at once, whatever is asked: the word for HAProxy's agent-check."""

    def ask(_client: socket.socket, _question: bytes, reply: Reply) -> bool:
        reply(fleet.agent_word().encode() + b"\n")
        return True

    return ask


def health(fleet: Fleet) -> Ask:
    """HTTP/1.0: ``/live``, ``/ready``, ``/metrics``."""

    def ask(_client: socket.socket, question: bytes, reply: Reply) -> bool:
        # An empty line ends the header (RFC 9112, 2.2: a recipient may take a single LF for a line's end).
        if b"\r\n\r\n" not in question and b"\n\n" not in question:
            return False
        reply(_answer(fleet, question))
        return True

    return ask


def _answer(fleet: Fleet, question: bytes) -> bytes:
    words = question.split(b"\n", 1)[0].split()
    if len(words) != 3 or not words[2].startswith(b"HTTP/"):
        return _response(400, "this is no request of HTTP/1\n")
    method, target, _ = words
    if method not in (b"GET", b"HEAD"):
        return _response(405, "GET or HEAD\n", more="Allow: GET, HEAD\r\n")
    kind = "text/plain; charset=utf-8"
    path = target.split(b"?", 1)[0]
    if path == b"/live":
        status, text = 200, "live\n"
    elif path == b"/ready":
        status, why = fleet.health()
        text = f"{why}\n"
    elif path == b"/metrics":
        status, text = 200, metrics(fleet)
        kind = "text/plain; version=0.0.4; charset=utf-8"
    else:
        status, text = 404, "there are /live, /ready and /metrics\n"
    return _response(status, text, kind, has_body=method == b"GET")


def _response(
    status: int, text: str, kind: str = "text/plain; charset=utf-8", *, more: str = "", has_body: bool = True
) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.0 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode() + (body if has_body else b"")


def metrics(fleet: Fleet) -> str:
    """All figures in Prometheus' text format, version 0.0.4."""
    now = fleet.figures()
    ends = {outcome.name.lower(): number for outcome, number in now.ends.items()}
    states = {state.value: int(state is fleet.states.present) for state in State}
    workers = {"starting": now.starting, "serving": now.serving, "leaving": now.leaving}
    requests = {"handled": now.handled, "refused": now.refused, "failed": now.failed}
    return "".join(
        (
            _family("requests_accepted_total", "counter", "Connections and datagrams that came in.", now.accepted),
            _family("requests_total", "counter", "Requests that ended, by how.", requests, "outcome"),
            _family("requests_in_progress", "gauge", "Requests that have not ended.", now.active),
            _family("requests_cut_total", "counter", "Requests that were cut because the time was up.", now.cut),
            _family(
                "accept_pauses_total", "counter", "How often accepting paused: full, or out of resources.", now.pauses
            ),
            _family("workers", "gauge", "Worker processes, by what they do.", workers, "state"),
            _family("workers_started_total", "counter", "Worker processes that were started.", now.begun),
            _family("worker_ends_total", "counter", "Worker processes that ended, by how.", ends, "outcome"),
            _family("worker_hangs_total", "counter", "Workers that were killed because they stood still.", now.hangs),
            _family("rolls_total", "counter", "Rolling restarts that were asked for.", now.rolls),
            _family("state", "gauge", "1 for the program's state.", states, "state"),
            _family("start_time_seconds", "gauge", "When the program began, in seconds since 1970.", fleet.began),
        )
    )


def _family(
    name: str,
    kind: str,
    text: str,
    values: dict[str, int] | float,
    label: str | None = None,
) -> str:
    lines = [f"# HELP sockserve_{name} {text}", f"# TYPE sockserve_{name} {kind}"]
    if isinstance(values, dict):
        lines += [f'sockserve_{name}{{{label}="{key}"}} {value}' for key, value in values.items()]
    else:
        lines.append(f"sockserve_{name} {values!r}")
    return "\n".join(lines) + "\n"
