#!/usr/bin/env bash
# Score a model on the MTEB Arabic STS tasks at every dimension. All further arguments go to evaluate_mteb.py.
#   bash scripts/run_evaluation.sh output/my-model/final
#   bash scripts/run_evaluation.sh                          # the released GATE-AraBert-v0
#   bash scripts/run_evaluation.sh --dims 64                # the same, with an argument
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python)}
case ${1:-} in
    "") set -- Omartificial-Intelligence-Space/GATE-AraBert-v0 "${@:2}" ;;
    -*) set -- Omartificial-Intelligence-Space/GATE-AraBert-v0 "$@" ;;
esac
exec "$python" "$root/evaluation/evaluate_mteb.py" --model_name "$@"
