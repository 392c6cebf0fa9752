"""Child processes of the harness: none outlives a killed command, none hears of Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def tie_to_parent() -> None:
    """End this child process at once when the process that runs the study is gone.

    Watching the parent is portable and survives a fork server: the kernel's parent-death signal
    follows the server, which lives as long as any child does. Ctrl-C is left to the parent, which
    ends its children, so that an interrupt is no run's failure.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="moge-bench parent watch").start()


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Start processes that never hear of Ctrl-C, not even before ``tie_to_parent``.

    It goes to every process of the terminal; in one that still imports it would be a traceback. A
    process starts with what its parent ignores. An interrupt that falls into this moment is lost.
    """
    if threading.current_thread() is not threading.main_thread():  # it may not set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
