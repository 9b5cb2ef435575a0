"""JSON-RPC over a Unix socket: results, every error that the specification names, batches, and notifications."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from example import Example, flood, run

from sockserve import testing


def call(method: str, params: Any = (), **more: Any) -> dict[str, Any]:
    """A request."""
    return {"jsonrpc": "2.0", "method": method, "params": params, "id": 7, **more}


def failed(code: int, message: str, request_id: Any = None) -> dict[str, Any]:
    """A failure."""
    return {"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": request_id}


THREE = {"jsonrpc": "2.0", "result": 3, "id": 7}
INVALID_REQUEST = failed(-32600, "Invalid Request")
INVALID_PARAMS = failed(-32602, "Invalid params", 7)
NOT_FOUND = failed(-32601, "Method not found", 7)

ANSWERS: list[tuple[Any, Any]] = [
    (call("add", [1, 2]), THREE),
    (call("add", {"b": 1, "a": 2}), THREE),
    (call("upper", ["ä"], id=None), {"jsonrpc": "2.0", "result": "Ä", "id": None}),
    (call("add", [1]), INVALID_PARAMS),
    (call("add", {"a": 1, "c": 2}), INVALID_PARAMS),
    (call("add", [1, "2"]), INVALID_PARAMS),
    (call("add", [1e308, 1e308]), INVALID_PARAMS),
    (call("add", "12"), INVALID_PARAMS),
    (call("subtract", [1, 2]), NOT_FOUND),
    (call("__class__"), NOT_FOUND),
    (call("crash"), failed(-32603, "Internal error", 7)),
    (call("add", [1, 2], jsonrpc="1.0"), INVALID_REQUEST),
    (call(["add"], [1, 2]), INVALID_REQUEST),  # type: ignore[arg-type]
    (1, INVALID_REQUEST),
    ([], INVALID_REQUEST),
    ([1, call("add", [1, 2])], [INVALID_REQUEST, THREE]),
]


def test_json_rpc(tmp_path: pathlib.Path) -> None:
    """Each line has its answer, in order; a notification has none."""
    address = f"unix:{tmp_path}/rpc"
    silent = {"jsonrpc": "2.0", "method": "add", "params": [1, 2]}
    questions = [question for question, _ in ANSWERS]
    lines = "".join(f"{json.dumps(each)}\n" for each in [silent, *questions, [silent, silent], {**silent, "params": 1}])
    with Example("json_rpc.py", address) as example:
        assert example.address() == address
        said = run(sys.executable, "-m", "sockserve.client", address, input=lines)
        assert [json.loads(line) for line in said.splitlines()] == [answer for _, answer in ANSWERS]
        assert "ZeroDivisionError" in example.says(r"(\w+Error): ")
        example.process.terminate()
        assert example.process.wait(20) == 0
    assert not (tmp_path / "rpc").exists()


def test_what_is_no_json(tmp_path: pathlib.Path) -> None:
    """A parse error, whatever it is instead; a line without an end is refused, and others are served meanwhile."""
    strange = [b"{", b"\xff", b"[" * 60_000, b"9" * 60_000, b"NaN", b"\0", b'{"jsonrpc": "2.0", "method": "\\ud800"}']
    with Example("json_rpc:JsonRpc", f"unix:{tmp_path}/rpc") as example:
        address = example.address()
        with testing.Stall(address, b'{"jsonrpc"'):
            said = testing.ask(address, b"\n".join(strange)).splitlines()
            before = example.peak_memory()
            for piece in (b"x", b"[", b"\0"):
                refusal, _ = flood(address, b"", piece, 32 * 2**20)
                assert json.loads(refusal) == failed(-32700, "A line has at most 65536 bytes")
            assert example.peak_memory() - before < 8 * 2**20
            assert testing.ask(address, json.dumps(call("add", [1, 2])).encode()) == json.dumps(THREE).encode() + b"\n"
        assert [json.loads(line)["error"]["code"] for line in said] == [-32700] * 4 + [-32600, -32700]
        example.end()
