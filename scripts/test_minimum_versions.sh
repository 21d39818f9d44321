#!/usr/bin/env bash
# Run the tests with the oldest supported sentence-transformers and transformers, in a separate environment (.venv-minimum).
#   bash scripts/test_minimum_versions.sh [PYTEST_ARGUMENT ...]
set -euo pipefail
cd "$(dirname "$0")/.."
export VENV=${VENV:-.venv-minimum}
bash scripts/setup.sh requirements-dev.txt
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "sentence-transformers==6.0.0" "transformers==5.17.0" >&2
exec "$VENV/bin/python" -m pytest "$@"
