"""Score models on a sentence similarity task, or on your own pairs, with four similarity measures at every dimension.

    python evaluation/evaluate_sts.py --model_name output/my-model/final --task STS17
    python evaluation/evaluate_sts.py --model_name output/my-model/final --data my_pairs.csv

Encodes each text once and computes Spearman and Pearson correlations for the cosine similarity, the dot product, and the
Euclidean and Manhattan distances, on truncated embeddings that are not normalised again. Recommends what to deploy. Writes
report.html and report.md, summary.csv, a table, a plot and result files into --output_dir.
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
from evaluation.utils.options import STS_TASKS, STSConfig


def main(argv: list[str] | None = None) -> None:
    # 1. The configuration: configs/eval_config.json, then --config, then the flags
    config = load_config(STSConfig, __doc__, argv)
    if not config.model_name:
        raise UsageError("--model_name is missing: set it to a model's Hub name or folder")
    if (config.task is None) == (config.data is None):
        raise UsageError(f"give either --task ({', '.join(STS_TASKS)}) or --data FILE")
    check_dims("--dims", config.dims)
    set_up_logging()

    from evaluation.utils.evaluation_utils import run_evaluation
    from evaluation.utils.scoring.pair_scorer import PairScorer

    # 2. The test data: the pairs of an STS task or of a file. Four similarity measures are scored on each prefix of the embeddings
    scorer = PairScorer(config)

    # 3. Encode each text once, score every dimension, analyse, compare, report
    run_evaluation(config, scorer)


if __name__ == "__main__":
    run(main)
