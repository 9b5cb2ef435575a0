r"""Finger (RFC 1288): one line asks, the answer ends with the connection.

    python examples/finger.py tcp://127.0.0.1:7979
    printf 'ada\r\n' | nc 127.0.0.1 7979
    finger ada@127.0.0.1                 if it listens on port 79, the only one that finger knows

The shape of many old protocols, and of small new ones. Whois (RFC 3912) is the same with another table. What is asked
for is looked up, never executed, never repeated in the answer, and never passed on to another host (RFC 1288, 3.2).
"""

from __future__ import annotations

import logging
import sys

import sockserve

LONGEST_QUERY = 512
PEOPLE = {
    "ada": ("Ada Lovelace", "The Analytical Engine weaves algebraical patterns."),
    "jon": ("Jon Postel", "Be conservative in what you send."),
}


class Finger(sockserve.StreamRequestHandler):
    """Tells of one user, or of all that are here."""

    client_speaks_first = True
    timeout = 10

    def handle(self) -> None:
        """Answer one query."""
        query = self.rfile.readline(LONGEST_QUERY + 1)
        if not query.endswith(b"\n"):
            answer = "A query is one line of at most 512 bytes."
        else:
            answer = self.look_up(query.decode("ascii", "replace").split())
        self.wfile.write(answer.replace("\n", "\r\n").encode() + b"\r\n")

    def look_up(self, words: list[str]) -> str:
        """Answer the query ``[/W] [name]``; /W asks for more words."""
        wants_all = words[:1] in (["/W"], ["/w"])
        name = " ".join(words[wants_all:])
        if not name:
            return "\n".join(f"{login:10}{full_name}" for login, (full_name, _) in PEOPLE.items())
        if "@" in name:
            return "Finger forwarding service denied."
        if name not in PEOPLE:
            return "No such user."
        full_name, plan = PEOPLE[name]
        return f"Login: {name}\nName: {full_name}" + (f"\nPlan: {plan}" if wants_all else "")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sockserve.serve(Finger, *(sys.argv[1:] or ["tcp://127.0.0.1:0"]))
