"""A signal of the same kind comes while the note of one that is deferred is taken away."""

from __future__ import annotations

import signal

import pytest

from sockserve.core.deferral import Deferral, set_handler


class Interrupted(list[int]):
    """Notes; the next look whether one is there is followed by a signal, before what was seen is used."""

    is_armed = False

    def __contains__(self, signum: object) -> bool:
        found = super().__contains__(signum)
        self._interrupt()
        return found

    def remove(self, signum: int, /) -> None:
        """Take a note away, after a signal."""
        self._interrupt()
        super().remove(signum)

    def _interrupt(self) -> None:
        if self.is_armed:
            self.is_armed = False
            signal.raise_signal(signal.SIGUSR1)


@pytest.mark.parametrize("how", ["another comes", "another handler is set"])
def test_a_note_that_a_nested_signal_took_is_no_error(how: str) -> None:
    """The nested one runs the handler for the note; the other is noted, and none raises ValueError."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        with Deferral() as deferral:
            notes = deferral._came = Interrupted()
            signal.raise_signal(signal.SIGUSR1)
            notes.is_armed = True
            if how == "another comes":
                signal.raise_signal(signal.SIGUSR1)
                assert heard == [signal.SIGUSR1]
            else:
                set_handler(signal.SIGUSR1, lambda *_: None)
                assert heard == [signal.SIGUSR1]
            assert not notes.is_armed
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1] * (2 if how == "another comes" else 1)
