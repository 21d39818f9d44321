"""Score models on MTEB tasks at every Matryoshka dimension, encoding each text once, and recommend what to deploy.

    python evaluation/evaluate_mteb.py --model_name Omartificial-Intelligence-Space/GATE-AraBert-v0
    python evaluation/evaluate_mteb.py --model_name output/my-model/final --subsets ar-ar en-ar en-en
    python evaluation/evaluate_mteb.py --model_name A B --baseline_model C --tasks STS17 STSBenchmark
    python evaluation/evaluate_mteb.py --model_name A --benchmark "MTEB(Multilingual, v2)" --languages ara

Writes report.html and report.md, summary.csv, a table, a plot, and mteb's result files into --output_dir. Every score
equals the one that mteb computes for SentenceTransformer(model, truncate_dim=DIM).
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.config import load_config
from common.dims import check_dims
from common.errors import UsageError, run
from common.script import set_up_logging
from evaluation.utils.options import MTEBConfig


def main(argv: list[str] | None = None) -> None:
    # 1. The configuration: configs/eval_config.json, then --config, then the flags
    config = load_config(MTEBConfig, __doc__, argv)
    if not config.model_name:
        raise UsageError("--model_name is missing: set it to a model's Hub name or folder")
    if config.benchmark is not None and config.is_set("tasks"):
        raise UsageError("--tasks and --benchmark cannot be combined")
    if not config.tasks and config.benchmark is None and not config.languages:
        raise UsageError("--tasks is empty")
    check_dims("--dims", config.dims)
    set_up_logging()

    from evaluation.utils.evaluation_utils import run_evaluation
    from evaluation.utils.scoring.task_scorer import TaskScorer

    # 2. The test data: tasks chosen by name, benchmark or language. mteb scores each prefix of the embeddings
    scorer = TaskScorer(config)

    # 3. Encode each text once, score every dimension, analyse, compare, report
    run_evaluation(config, scorer)


if __name__ == "__main__":
    run(main)
