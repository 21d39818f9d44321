#!/usr/bin/env bash
# From a fresh clone to a trained and evaluated Matryoshka model, on the sample that ships with the repository: no GPU, no Hub.
#   bash scripts/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
python="${VENV:-.venv}/bin/python"

echo "== Training a 768-dimensional static embedding model from scratch on data/sample/ ==" >&2
model=$("$python" training/hybrid_training.py --config configs/quickstart.json --overwrite_output_dir "$@" | tail -n 1)

echo "== Scoring the model and its untrained copy at every dimension ==" >&2
"$python" evaluation/evaluate_sts.py --model_name "$model" --baseline_model "$(dirname "$model")/untrained" --data data/sample/sts_pairs.jsonl --output_dir results/quickstart
echo "Table and plot: results/quickstart/table.md, results/quickstart/plot.png. The model: $model"
