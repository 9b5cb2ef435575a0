"""An authoritative name server for one small zone, over UDP and TCP (RFC 1035), with the library dnspython.

    pip install dnspython
    python examples/name_server.py udp://127.0.0.1:5353 tcp://127.0.0.1:5353
    dig @127.0.0.1 -p 5353 www.example.test

Reading and writing messages is the library's business. The server's: it answers for its zone and refuses the rest,
since it resolves nothing for strangers; it never answers an answer; and over UDP it sends little, because the sender
may be a lie and the answer a flood for another host. A client that hears that something was cut off asks
again over TCP.
"""

from __future__ import annotations

import contextlib
import logging
import sys

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.zone

import sockserve

MOST_OVER_UDP = 1232
ORIGIN = dns.name.from_text("example.test.")
ZONE = dns.zone.from_text(
    f"""
@     3600 IN SOA   ns hostmaster 1 7200 900 1209600 300
@     3600 IN NS    ns
ns    3600 IN A     127.0.0.1
www   3600 IN A     192.0.2.1
www   3600 IN AAAA  2001:db8::1
alias 3600 IN CNAME www
large 3600 IN TXT   {'"a string of the answer that does not fit into a datagram" ' * 40}
""",
    origin=ORIGIN,
    relativize=False,
)
FORMAT_ERROR = b"\x80\x01" + bytes(8)


def answer_to(packet: bytes, *, over_udp: bool) -> bytes:
    """Return the answer to a question, none to what is no question."""
    try:
        query = dns.message.from_wire(packet)
        response = dns.message.make_response(query)
        ((name, kind, kind_of_network),) = ((each.name, each.rdtype, each.rdclass) for each in query.question)
    except (dns.exception.DNSException, ValueError):
        is_question = len(packet) >= 12 and packet[2] < 0x80
        return packet[:2] + FORMAT_ERROR if is_question else b""
    is_for_us = query.opcode() == dns.opcode.QUERY and kind_of_network == dns.rdataclass.IN
    if not is_for_us or not name.is_subdomain(ORIGIN) or dns.rdatatype.is_metatype(kind):
        response.set_rcode(dns.rcode.REFUSED)
    else:
        look_up(name, kind, response)
    most = min(MOST_OVER_UDP, max(512, query.payload)) if over_udp else 65535
    return response.to_wire(max_size=most, prefer_truncation=True)


def look_up(name: dns.name.Name, kind: dns.rdatatype.RdataType, response: dns.message.Message) -> None:
    """Put into the response what the zone says of a name."""
    response.flags |= dns.flags.AA
    # A client that gets an alias asks for what it stands for next.
    found = ZONE.get_rrset(name, kind) or ZONE.get_rrset(name, dns.rdatatype.CNAME)
    if found is not None:
        response.answer.append(found)
        return
    # For how long there is no such thing (RFC 2308).
    response.authority.append(ZONE.find_rrset(ORIGIN, dns.rdatatype.SOA))
    response.set_rcode(dns.rcode.NOERROR if ZONE.get_node(name) else dns.rcode.NXDOMAIN)


class NameServer(sockserve.BaseRequestHandler):
    """Answers a datagram, or the questions of a connection, each after its length in two bytes."""

    def handle(self) -> None:
        """Answer whatever is a question."""
        if isinstance(self.request, tuple):
            packet, shared_socket = self.request
            answer = answer_to(packet, over_udp=True)
            if answer and self.client_address:
                shared_socket.sendto(answer, self.client_address)
            return
        self.request.settimeout(10)
        with self.request.makefile("rb") as file, contextlib.suppress(TimeoutError):
            while length := int.from_bytes(file.read(2), "big"):
                packet = file.read(length)
                answer = answer_to(packet, over_udp=False)
                if len(packet) < length or not answer:
                    return
                self.request.sendall(len(answer).to_bytes(2, "big") + answer)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(NameServer, *(sys.argv[1:] or ["udp://127.0.0.1:0", "tcp://127.0.0.1:0"]))
