"""The key-value server: Redis's own tools as clients, and clients that break the protocol."""

from __future__ import annotations

from example import Example, flood, host_and_port, run

from sockserve import testing


def test_key_value() -> None:
    """redis-cli sets, gets and deletes; redis-benchmark gets an answer to everything it asks."""
    with Example("key_value.py") as example:
        host, port = host_and_port(example.address())

        def redis(*words: str) -> str:
            return run("redis-cli", "-h", host, "-p", port, *words).strip()

        assert redis("PING") == "PONG"
        assert redis("set", "greeting", "hello\nyou") == "OK"
        assert redis("GET", "greeting") == "hello\nyou"
        assert redis("DEL", "greeting", "nothing") == "1"
        assert redis("GET", "greeting") == ""
        assert redis("FLUSHALL").startswith("ERR unknown command")
        load = ("-c", "20", "-n", "2000", "-P", "4", "-r", "100", "-t", "ping,set,get", "--csv")
        said = run("redis-benchmark", "-h", host, "-p", port, *load)
        assert [line.split(",")[0] for line in said.splitlines() if '"' in line][-4:] == [
            '"PING_INLINE"',
            '"PING_MBULK"',
            '"SET"',
            '"GET"',
        ]
        example.end()


def test_commands_arrive_as_they_like() -> None:
    """In one piece, byte by byte, or as a line of words that somebody typed."""
    question = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\n\0\n\r\nGET k\r\n\r\nping\n"
    with Example("key_value:KeyValue", "tcp://127.0.0.1:0") as example:
        address = example.address()
        assert testing.ask(address, question) == b"+OK\r\n$2\r\n\0\n\r\n+PONG\r\n"
        with testing.Trickle(address, question, interval=0.001) as client:
            answer = b""
            while not answer.endswith(b"+PONG\r\n"):
                answer += client.connection.recv(100)
        assert answer == b"+OK\r\n$2\r\n\0\n\r\n+PONG\r\n"
        example.end()


def test_what_is_no_command() -> None:
    """Each is refused in words, the connection ends, nothing was reserved for it, and others are served meanwhile."""
    refusals = {
        b"*1\r\n$4294967296\r\n": b"expected $ and a number up to 4096",
        b"*4294967296\r\n": b"expected * and a number up to 100",
        b"*-1\r\n": b"expected * and a number up to 100",
        b"*\xb2\r\n": b"expected * and a number up to 100",
        b"*1\r\n:1\r\n": b"expected $ and a number up to 4096",
        b"*1\r\n$4\r\nPINGPING\r\n": b"a string is longer than it says",
        b"*2\r\n$4\r\nPING\r\n": b"too long a line, or half of one",
        b"*1\r\n$4\r\nPI": b"a string is longer than it says",
        b"PING": b"too long a line, or half of one",
    }
    with Example("key_value:KeyValue", "tcp://127.0.0.1:0") as example:
        address = example.address()
        with testing.Stall(address, b"*1\r\n$4\r\nPI"):
            for data, reason in refusals.items():
                assert testing.ask(address, data) == b"-ERR Protocol error: " + reason + b"\r\n"
            before = example.peak_memory()
            for start, piece in ((b"", b"x"), (b"*1\r\n$9\r\n", b"x"), (b"", b"\xff\0")):
                answer, _ = flood(address, start, piece, 32 * 2**20)
                assert answer.startswith(b"-ERR Protocol error: ")
            assert example.peak_memory() - before < 8 * 2**20
            assert testing.ask(address, b"PING\r\n") == b"+PONG\r\n"
        assert "Exception" not in example.end()


def test_the_store_has_a_limit() -> None:
    """One key too many is refused; what is there can still be changed."""
    with Example("key_value:KeyValue", "tcp://127.0.0.1:0") as example:
        address = example.address()
        keys = b"".join(b"SET %d x\r\n" % number for number in range(10_001))
        assert testing.ask(address, keys) == b"+OK\r\n" * 10_000 + b"-ERR the store is full\r\n"
        assert testing.ask(address, b"SET 1 y\r\nGET 1\r\n") == b"+OK\r\n$1\r\ny\r\n"
        example.end()
