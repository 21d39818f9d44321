"""Imports the libraries once and runs scripts in forks: real commands without the import time.

Each line of standard input is ``{"argv": [script, ...], "cwd": ..., "env": {...}, "out": file, "err": file, "file_size": N}``.
With a file size, no file can grow beyond N bytes, as on a full disk. The answer is the exit code, or -N for signal N.
This process computes nothing itself: a fork would lose the threads of a computation.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import traceback


def run(request: dict) -> int:
    """Run a script in a child as ``python script ...`` would. Returns its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    if size := request["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    sys.argv = [os.fsdecode(text.encode("utf-8", "surrogateescape")) for text in request["argv"]]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import mteb  # noqa: F401
    import sentence_transformers  # noqa: F401

    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)
