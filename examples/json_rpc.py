"""JSON-RPC 2.0 over a Unix socket: a request is a line, and so is its answer.

    python examples/json_rpc.py unix:/tmp/rpc.sock
    python -m sockserve.client unix:/tmp/rpc.sock --line '{"jsonrpc":"2.0","method":"add","params":[1,2],"id":1}'

The methods are a table: what is not in it cannot be called, whatever its name. Everything that a caller can get wrong
has an error of its own (https://www.jsonrpc.org/specification, 5.1); what went wrong inside is for our log, and not
for the caller.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import sockserve

LONGEST_LINE = 65536
METHODS: dict[str, Callable[..., Any]] = {"add": lambda a, b: a + b, "upper": str.upper, "crash": lambda: 1 // 0}

log = logging.getLogger("json_rpc")


def failed(code: int, message: str, request_id: Any = None) -> dict[str, Any]:
    """Make an error object."""
    return {"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": request_id}


def call(name: str, params: Any, request_id: Any) -> dict[str, Any]:
    """Call a method; make its result, or what went wrong, an answer."""
    if name not in METHODS:
        return failed(-32601, "Method not found", request_id)
    if not isinstance(params, dict | list):
        return failed(-32602, "Invalid params", request_id)
    try:
        result = METHODS[name](**params) if isinstance(params, dict) else METHODS[name](*params)
        # JSON knows no infinity.
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError):
        return failed(-32602, "Invalid params", request_id)
    except Exception:
        log.exception("%s failed", name)
        return failed(-32603, "Internal error", request_id)
    return {"jsonrpc": "2.0", "result": result, "id": request_id}


def answer_one(request: Any) -> dict[str, Any] | None:
    """Answer one request; a notification, which has no id, gets no answer."""
    if not isinstance(request, dict) or request.get("jsonrpc") != "2.0" or not isinstance(request.get("method"), str):
        return failed(-32600, "Invalid Request")
    answer = call(request["method"], request.get("params", []), request.get("id"))
    return answer if "id" in request else None


def answer_line(line: bytes) -> Any:
    """Answer a request, or a batch of them; None: there is nothing to be said."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return failed(-32700, "Parse error")
    if not isinstance(message, list) or not message:
        return answer_one(message)
    return [answer for answer in map(answer_one, message) if answer is not None] or None


class JsonRpc(sockserve.StreamRequestHandler):
    """Answers requests, line by line."""

    client_speaks_first = True
    timeout = 60

    def handle(self) -> None:
        """Answer until the client leaves, or a line does not end."""
        while line := self.rfile.readline(LONGEST_LINE + 1):
            is_too_long = len(line) > LONGEST_LINE
            answer = failed(-32700, f"A line has at most {LONGEST_LINE} bytes") if is_too_long else answer_line(line)
            if answer is not None:
                self.wfile.write(json.dumps(answer).encode() + b"\n")
            if is_too_long:
                return


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    with tempfile.TemporaryDirectory() as directory:
        sockserve.serve(JsonRpc, *(sys.argv[1:] or [f"unix:{directory}/rpc.sock"]))
