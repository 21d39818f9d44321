#!/usr/bin/env bash
# Train a model, then evaluate it. All arguments go to the training script.
#   bash scripts/run_training.sh aubmindlab/bert-base-arabertv02 --language ar
#   SCRIPT=training/hybrid_training.py bash scripts/run_training.sh --config my_mixture.json
#   NPROC_PER_NODE=8 bash scripts/run_training.sh                                           # 8 GPUs
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 NPROC_PER_NODE=8 bash scripts/run_training.sh    # on each of 2 machines
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python)}
script=${SCRIPT:-training/matryoshka_nli.py}
[[ $script == /* ]] || script=$root/$script
for argument in "$@"; do
    case $argument in -h | --help) exec "$python" "$script" --help ;; esac
done
processes=${NPROC_PER_NODE:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
nodes=${NNODES:-1}

launch=("$python")
if [ "$processes" -gt 1 ] || [ "$nodes" -gt 1 ]; then
    launch=("$python" -m torch.distributed.run --nproc_per_node "$processes" --nnodes "$nodes" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}")
fi
output=$("${launch[@]}" "$script" "$@")
printf '%s\n' "$output"
[ "${NODE_RANK:-0}" -eq 0 ] || exit 0
exec "$python" "$root/evaluation/evaluate_mteb.py" --model_name "$(printf '%s\n' "$output" | tail -n 1)"
