"""The package speaks of threads, processes, clients and sockets, and not of persons.

Its readers' English is often a second language: a sentence with a concrete subject needs no second reading.
"""

from __future__ import annotations

import ast
import pathlib
import re
import tokenize

import pytest

import sockserve

HOUSE = pathlib.Path(sockserve.__file__).parent

WORDS = {
    "nobody": "name what is missing: no thread, no client, no process",
    "no one": "as for nobody",
    "somebody": "say which: a thread, the peer, another process",
    "someone": "as for somebody",
    "anybody": "say which, or use the passive: must be remembered",
    "anyone": "as for anybody",
    "everybody": "name them: all threads, every client, the other handlers",
    "everyone": "as for everybody",
    "who": "name the thing, and say which or that: the thread that waits",
    "whom": "as for who",
    "whoever": "name the caller, the thread or the program",
    "whomever": "as for whoever",
    "he": "nothing in a server is a person: it, or the name once more",
    "him": "as for he",
    "his": "its; or the name once more",
    "himself": "itself",
    "she": "as for he",
    "her": "as for he",
    "hers": "as for he",
    "herself": "as for he",
}
"""What no docstring, comment, message of the log or text of an error contains, and what to write instead."""

FOUND = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)
FILES = sorted(path.relative_to(HOUSE).as_posix() for path in HOUSE.rglob("*.py"))


def prose(source: str) -> list[tuple[int, str]]:
    """The comments and the texts of a module, each with the number of its first line.

    Every text counts: one that looks like a name or a number today is a message tomorrow.
    """
    texts = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    lines = iter(source.splitlines(keepends=True))
    tokens = tokenize.generate_tokens(lambda: next(lines, ""))
    texts += [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    return texts


def persons(source: str) -> list[str]:
    """Each such word of a module with its line and the advice."""
    return [
        f"line {line + text.count(chr(10), 0, found.start())}: {found[0]!r}: {WORDS[found[0].lower()]}"
        for line, text in sorted(prose(source))
        for found in FOUND.finditer(text)
    ]


@pytest.mark.parametrize("name", FILES)
def test_no_person_does_anything(name: str) -> None:
    """No text of the module has a person as its subject."""
    assert persons((HOUSE / name).read_text("utf-8")) == []


def test_every_kind_of_text_is_read() -> None:
    """Docstrings, comments, plain and formatted messages are looked at; names and longer words are not."""
    source = '''
"""A table
of whoever waits."""

def he(who):
    # Somebody calls it.
    return f"{who}: nobody is there" or "the others whose turn it is"
'''
    assert [line.partition("': ")[0] for line in persons(source)] == [
        "line 3: 'whoever",
        "line 6: 'Somebody",
        "line 7: 'nobody",
    ]
