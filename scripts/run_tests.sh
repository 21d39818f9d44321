#!/usr/bin/env bash
# Set up if necessary, lint, and run the tests; --slow adds the long tests. Other arguments go to pytest.
#   bash scripts/run_tests.sh [--slow] [PYTEST_ARGUMENT ...]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh requirements-dev.txt
bin="${VENV:-.venv}/bin"
"$bin/ruff" check .
"$bin/ruff" format --check .
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the processes share the cores
exec "$bin/python" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
