"""Runs scripts without the time to import the libraries: in forks of a process that has imported them.

``python tests/warm.py serve SOCKET`` imports the libraries and waits. With SOCKET in the environment variable WARM_SOCKET,
``python tests/warm.py SCRIPT [ARGUMENT ...]`` then does what ``python SCRIPT [ARGUMENT ...]`` does. The script has the folder,
environment, streams and file size limit of this command, receives its SIGINT and SIGTERM, and ends it with its own exit
code or signal. The libraries have read their environment variables already (HF_HOME, HF_HUB_OFFLINE): a script that needs
other values must start on its own. The server computes nothing itself: a fork would lose the threads of a computation.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys


def run_script(request: dict, streams: list[int]) -> int:
    """Do in this process what the interpreter does with a script. Returns the exit code."""
    import runpy
    import traceback

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    resource.setrlimit(resource.RLIMIT_FSIZE, tuple(request["file_size"]))
    sys.argv = request["argv"]
    paths = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [os.path.dirname(os.path.abspath(sys.argv[0])), *filter(None, paths)]
    code: int | str | None = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def serve(path: str) -> None:
    """Fork a process for each connection, until standard input ends.

    A connection is answered with two lines: the process ID, and at the end the exit code, or -N for signal N.
    """
    import gc
    import selectors

    import mteb  # noqa: F401
    import sentence_transformers  # noqa: F401

    gc.freeze()  # the forks then share these pages, and no collection visits them
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)
    ended, wake = socket.socketpair()  # a byte arrives whenever a child ends
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    events = selectors.DefaultSelector()
    for source in (listener, ended, sys.stdin):
        events.register(source, selectors.EVENT_READ)
    connections: dict[int, socket.socket] = {}  # by child
    while True:
        sources = [key.fileobj for key, _ in events.select()]
        if sys.stdin in sources:
            return
        if listener in sources:
            connection, _ = listener.accept()
            message, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
            while not message.endswith(b"\n"):
                message += connection.recv(1 << 16)
            child = os.fork()
            if not child:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (listener, connection, *connections.values()):
                    other.close()
                os._exit(run_script(json.loads(message), streams))
            for stream in streams:
                os.close(stream)
            connections[child] = connection
            connection.sendall(f"{child}\n".encode())
        if ended in sources:
            ended.recv(1 << 16)
            for child in list(connections):
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    with connections.pop(child) as connection, contextlib.suppress(BrokenPipeError):
                        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def main() -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["WARM_SOCKET"])
    request = {"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}
    request["file_size"] = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = (json.dumps(request) + "\n").encode()
    connection.sendall(message[socket.send_fds(connection, [message], [0, 1, 2]) :])
    answers = connection.makefile()
    child = int(answers.readline())
    forwarded = (signal.SIGINT, signal.SIGTERM)
    for number in forwarded:
        signal.signal(number, lambda number, _: os.kill(child, number))
    code = int(answers.readline())
    for number in forwarded:
        signal.signal(number, signal.SIG_DFL)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        main()
