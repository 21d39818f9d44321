"""Runs a script that dies by SIGKILL: python tests/killed.py MOMENT SCRIPT [ARGUMENT ...]

A change is a file or folder in the output directory that is created, opened for writing, renamed or removed (CHANGES). MOMENT is

- a part of "EVENT PATH": the script dies just before the first change whose event and path contain it;
- ``#n``: it dies just before the n-th change; with ``#0`` it survives and prints the number of changes;
- a number: it dies after as many seconds.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    moment, *sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(sys.argv[0])
    folder = os.path.abspath(sys.argv[sys.argv.index("--output_dir") + 1])
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in CHANGES or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        path = os.fspath(arguments[0]) if isinstance(arguments[0], (str, os.PathLike)) else ""
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # a name relative to an open folder
            path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), path)
        path = os.path.abspath(path)
        if path.startswith(folder + os.sep):
            seen += 1
            if (moment == f"#{seen}") if moment.startswith("#") else (moment in f"{event} {path}"):
                die()

    if moment.replace(".", "").isdigit():
        timer = threading.Timer(float(moment), die)
        timer.daemon = True
        timer.start()
    else:
        sys.addaudithook(watch)
    runpy.run_path(sys.argv[0], run_name="__main__")
    print(seen)


if __name__ == "__main__":
    main()
