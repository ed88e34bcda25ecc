"""`python -m stillhouse.tethered`: the command line in a process that stops when the one that started it does.

Its standard input is a pipe that its parent holds and never writes to. The pipe ends when the parent closes it or dies,
however it dies, and this process then stops as after Ctrl-C.
"""

import os
import signal
import threading

from stillhouse.cli import main


def _watch() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start background processes without it
    threading.Thread(target=_watch, daemon=True).start()
    main()
