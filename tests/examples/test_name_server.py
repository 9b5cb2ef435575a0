"""The name server: asked by dig, over UDP and TCP, and by those who ask something else."""

from __future__ import annotations

import re
import socket

from example import Example, host_and_port, run
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import name_server
from sockserve import testing

SOA = "example.test. 3600 IN SOA ns.example.test. hostmaster.example.test. 1 7200 900 1209600 300"
WWW = bytes.fromhex("1234 0000 0001 0000 0000 0000 03777777 076578616d706c65 0474657374 00 0001 0001")
"""The question for www.example.test's address, from a client that takes 512 bytes (RFC 1035)."""
LARGE = WWW.replace(b"\3www", b"\5large").replace(b"\0\1\0\1", b"\0\x10\0\1")


def test_name_server() -> None:
    """What is there, what is elsewhere, what is not there, and what is not its business."""
    with Example("name_server.py") as example:
        host, port = host_and_port(example.address())

        def dig(*question: str) -> str:
            said = run("dig", f"@{host}", "-p", port, "+norecurse", *question)
            status = re.findall(r"status: (\w+)|(Transfer failed)", said)
            records = re.findall(r"^[^;\n].*\s.*$", said, re.MULTILINE)
            return " ".join(["".join(status[0]), *(" ".join(record.split()) for record in records)])

        # The TCP address is another port: only UDP is asked here.
        assert dig("www.example.test") == "NOERROR www.example.test. 3600 IN A 192.0.2.1"
        assert dig("WWW.example.test", "AAAA") == "NOERROR WWW.example.test. 3600 IN AAAA 2001:db8::1"
        alias = "alias.example.test. 3600 IN CNAME www.example.test."
        assert dig("alias.example.test") == f"NOERROR {alias}"
        assert dig("alias.example.test", "CNAME") == f"NOERROR {alias}"
        assert dig("www.example.test", "MX") == f"NOERROR {SOA}"
        assert dig("nowhere.example.test") == f"NXDOMAIN {SOA}"
        assert dig("www.example.org") == "REFUSED"
        assert dig("www.example.test", "ANY", "+notcp") == "REFUSED"
        assert dig("-c", "CH", "version.bind", "TXT") == "REFUSED"
        assert dig("+opcode=2", "www.example.test") == "REFUSED"
        assert "flags: qr aa tc" in run("dig", f"@{host}", "-p", port, "+ignore", "large.example.test", "TXT")
        (_, port) = host_and_port(example.address())
        assert dig("+tcp", "large.example.test", "TXT").count("a string of the answer") == 40
        example.end()


def test_a_client_that_takes_little() -> None:
    """Who does not say that it takes more gets at most 512 bytes, and is told that there would be more."""
    with Example("name_server:NameServer", "udp://127.0.0.1:0") as example:
        address = example.address()
        assert testing.ask(address, WWW)[-4:] == bytes([192, 0, 2, 1])
        answer = testing.ask(address, LARGE)
        assert len(answer) <= 512
        assert answer[2] & 0x02
        example.end()


def test_what_is_no_question() -> None:
    """Half a question is an error; an answer, or less than a header, is not answered; others are still served."""
    with Example("name_server:NameServer", "udp://127.0.0.1:0", "tcp://127.0.0.1:0") as example:
        datagrams, stream = example.address(), example.address()
        assert testing.ask(datagrams, WWW[:-1]) == WWW[:2] + b"\x80\x01" + bytes(8)
        host, port = host_and_port(datagrams)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.connect((host, int(port)))
            client.settimeout(20)
            for silent in (WWW[:11], b"", WWW[:2] + b"\x80" + WWW[3:], bytes([255]) * 65507):
                client.send(silent)
            client.send(b"\xab" + WWW[1:])
            assert client.recv(512)[0] == 0xAB
        with testing.Stall(stream, b"\xff\xffhalf"):
            question = len(WWW).to_bytes(2, "big") + WWW
            answers = testing.ask(stream, question * 2 + b"\xff\xff" + WWW)
        assert answers.count(bytes([192, 0, 2, 1])) == 2
        assert "Exception" not in example.end()


@settings(deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda rest: WWW[:12] + rest))
def test_any_bytes_have_an_answer_or_none(packet: bytes) -> None:
    """Whatever comes, there is an answer with its identity, or none, and no exception."""
    answer = name_server.answer_to(packet, over_udp=True)
    assert answer == b"" or (answer[:2] == packet[:2] and answer[2] & 0x80)
