"""The collector: one group of servers over TCP, UDP and a Unix socket."""

from __future__ import annotations

import pathlib

from example import Example

from sockserve import testing


def test_collector(tmp_path: pathlib.Path) -> None:
    """What comes by all three ways is one sum, and what is no report is answered with 0."""
    with Example("collector.py", f"{tmp_path}/s") as example:
        addresses = [example.address() for _ in range(3)]
        for address in addresses:
            assert testing.ask(address, b"jobs 2\nerrors 1\nnonsense\n") == b"2\n"
            assert testing.ask(address, b"x" * 150 + b" 1\n" + b"jobs -1\n") == b"0\n"
        said = example.end()
        assert said.endswith("errors 3\njobs 6\n")
    assert not pathlib.Path(f"{tmp_path}/s").exists()


def test_a_client_that_waits_is_drained_at_the_end(tmp_path: pathlib.Path) -> None:
    """What it has reported counts, and it is answered."""
    with Example("collector.py", f"{tmp_path}/s") as example:
        address = example.address()
        with testing.connect(address) as client:
            client.sendall(b"jobs 2\n")
            # Accepted after the other: that one is no longer in the backlog, which the end of the listener resets.
            assert testing.ask(address, b"") == b"0\n"
            said = example.end()
            assert client.recv(10) == b"1\n"
        assert said.endswith("jobs 2\n")
