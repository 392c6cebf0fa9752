"""What a child process of the harness does first, so that none outlives a killed command."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


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
