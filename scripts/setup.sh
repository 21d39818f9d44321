#!/usr/bin/env bash
# Create the virtual environment (.venv, or $VENV) and install a requirements file into it, again only after the requirements change.
#   bash scripts/setup.sh [requirements.txt]
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=${1:-requirements.txt}
venv=${VENV:-.venv}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is required, found $("$python" --version); set PYTHON to a newer interpreter" >&2; exit 1; }
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
stamp="$venv/.installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$(basename "$requirements")"
if [ ! -e "$stamp" ]; then
    echo "installing $requirements into $venv" >&2
    # torch first, so that the other packages keep this build
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    touch "$stamp"
fi
