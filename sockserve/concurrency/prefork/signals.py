"""What signals mean to a supervisor while it runs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator

from sockserve.concurrency.prefork.supervisor import Supervisor
from sockserve.core.deferral import get_handler
from sockserve.core.taken_signals import taking

__all__ = ["handling_signals"]

MEANINGS: dict[int, Callable[[Supervisor], None]] = {
    signal.SIGTERM: Supervisor.stop,
    signal.SIGHUP: Supervisor.roll,
    signal.SIGTTIN: Supervisor.more,
    signal.SIGTTOU: Supervisor.fewer,
}
"""As of gunicorn and uWSGI."""


@contextlib.contextmanager
def handling_signals(supervisor: Supervisor) -> Generator[None]:
    """Give signals that have their default meaning the one that they have for a supervisor, until the block ends.

    No effect in another thread than the main one, where Python allows no handlers.
    """
    is_main = threading.current_thread() is threading.main_thread()
    free = [signum for signum in MEANINGS if is_main and get_handler(signum) == signal.SIG_DFL]
    with taking(dict.fromkeys(free, lambda signum: MEANINGS[signum](supervisor))):
        yield
