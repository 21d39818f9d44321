"""Shared fixtures: a loopback Hub with small data and tiny models, and ways to run the scripts against it.

The data is drawn from ``data/sample/``. The models have random weights; what matters here is that they have the names, the
files and the architectures that the scripts ask for.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers import ROOT, read_jsonl, says, triplets, write, write_datasets, write_models
from tests.hub import Hub


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: give --slow to run it"))


def pytest_collection_finish():
    gc.freeze()  # the libraries have been imported: no collection need visit their objects again


def pytest_configure(config):
    """Point the client libraries at the tests' Hub before any of them is imported, here and in subprocesses alike."""
    config.environment = dict(os.environ)  # the user's own, for the test that needs the real Hub
    config.workplace = Path(tempfile.mkdtemp(prefix="matryoshka-tests-"))
    config.hub = Hub(config.workplace / "hub")
    for name in list(os.environ):
        if name.startswith(("HF_", "MTEB_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOG_LEVEL"):
            del os.environ[name]
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"]))
    os.environ.update(
        HF_ENDPOINT=config.hub.url,
        HF_HOME=str(config.workplace / "hf_home"),
        MTEB_CACHE=str(config.workplace / "mteb_cache"),
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HUB_RETRY_WAIT="0.02",
        NO_PROXY=direct,
        no_proxy=direct,
    )


def pytest_unconfigure(config):
    if hasattr(config, "hub"):
        config.hub.shutdown()
        config.hub.server_close()
        shutil.rmtree(config.workplace, ignore_errors=True)


@pytest.fixture(scope="session")
def groups() -> list[dict]:
    """The premise groups of the sample: ``{premise,entailment,neutral,contradiction}_{en,ar}``."""
    return read_jsonl(ROOT / "data/sample/nli_groups.jsonl")


@pytest.fixture(scope="session")
def pairs() -> list[dict]:
    """The graded pairs of the sample: ``subset, sentence1, sentence2, score``."""
    return read_jsonl(ROOT / "data/sample/sts_pairs.jsonl")


@pytest.fixture(scope="session")
def hub(request, groups, pairs) -> Hub:
    """The Hub, with its repositories written. Its address is in HF_ENDPOINT already."""
    hub: Hub = request.config.hub
    write_datasets(hub.root / "datasets", groups, pairs)
    texts = [value for row in [*groups, *pairs] for key, value in row.items() if isinstance(value, str)]
    write_models(hub.root / "models", texts)
    return hub


@pytest.fixture(scope="session")
def tiny_model(hub) -> Path:
    """The folder of a sentence-transformers model, 64 wide: a model on disk. Copy it before changing it."""
    return hub.root / "models/tiny/sentence-bert"


@pytest.fixture(scope="session")
def cli(hub):
    """``cli("training/x.py", "--flag", ...)`` runs a script as a user does; returns ``code``, ``out`` and ``err``."""

    def run(*args: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None, timeout: float = 300):
        first = [ROOT / args[0], *args[1:]] if str(args[0]).endswith(".py") else args
        done = subprocess.run(
            [sys.executable, *map(str, first)],
            cwd=cwd,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def warm_python(hub, tmp_path_factory) -> list[str]:
    """The start of a command that runs a script as ``python`` does, without the time for imports (see tests/warm.py)."""
    path = tmp_path_factory.mktemp("warm") / "socket"
    program = [sys.executable, str(ROOT / "tests/warm.py")]
    with subprocess.Popen([*program, "serve", str(path)], stdin=subprocess.PIPE) as server:
        while not path.exists() and server.poll() is None:
            time.sleep(0.05)
        os.environ["WARM_SOCKET"] = str(path)
        yield program
        server.stdin.close()


@pytest.fixture(scope="session")
def warm(warm_python):
    """Like ``cli``, but without the time for imports. No file can grow beyond ``file_size`` bytes, as on a full disk."""

    def run(
        script: str | Path,
        *args: str | Path,
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        file_size: int | None = None,
    ):
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

        done = subprocess.run(
            [*warm_python, *map(str, (ROOT / script, *args))],
            cwd=cwd,
            env=os.environ | (env or {}),
            preexec_fn=limit if file_size else None,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def trained(hub, tiny_model, groups, warm, tmp_path_factory) -> Path:
    """The final model of a short training at 64, 32 and 16 dimensions. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    data = write(folder / "triplets.jsonl", triplets(groups[:48], "en"))
    flags = ("--train_data", data, "--dev_data", "none", "--matryoshka_dims", "64", "32", "16", "--precision", "fp32")
    flags += ("--per_device_train_batch_size", "16", "--learning_rate", "1e-3", "--output_dir", folder / "run")
    done = warm("training/matryoshka_nli.py", tiny_model, *flags)
    assert done.code == 0, done.err
    return folder / "run/final"


@pytest.fixture
def call(hub, capsys, monkeypatch):
    """``call("training/x.py", "--flag", ...)`` runs a script's ``main`` in this process, which saves importing torch."""
    from common.errors import run
    from training.utils.run_folder import unlock_run_folder

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def invoke(script: str, *args: str | Path):
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        argv = [str(arg) for arg in args]
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *argv])
        capsys.readouterr()
        code = 0
        try:
            run(lambda: module.main(argv))
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            unlock_run_folder()  # as the end of the script's process would
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    yield invoke
    root.handlers, root.level = handlers, level


@pytest.fixture
def fails(call):
    """``fails(code, "part … part", script, *args)``: checks for that exit code, one error line (see ``says``) and no traceback."""

    def check(code: int, message: str, script: str, *args: str | Path) -> str:
        done = call(script, *args)
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert done.code == code, done.err
        assert len(errors) == 1 and says(errors[0], message), done.err
        assert done.err.rstrip().splitlines()[-1] == errors[0], "the error is not the last line"
        assert "Traceback" not in done.err
        return errors[0]

    return check
