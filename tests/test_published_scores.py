"""A real model reproduces its published MTEB scores.

    PUBLISHED_MODEL=sentence-transformers/all-MiniLM-L6-v2 python -m pytest --slow tests/test_published_scores.py

The model is one of evaluation/published_results.csv, which names the source and the revision of each score. This test needs the
Hugging Face Hub, or a cache that has the model and STS17.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from evaluation.utils.analysis.published import published_results
from tests.helpers import ROOT, read_summary

TOLERANCE = 0.1  # points


@pytest.mark.slow
def test_the_scores_of_a_real_model_are_the_published_ones(pytestconfig, tmp_path):
    name = pytestconfig.environment.get("PUBLISHED_MODEL")
    if not name:
        pytest.skip("PUBLISHED_MODEL names no model of evaluation/published_results.csv")
    table = published_results()
    published = table[(table.model == name) & (table.task == "STS17") & (table.source == "mteb-results")]
    assert len(published), f"evaluation/published_results.csv has no scores of {name} on STS17"
    command = [sys.executable, str(ROOT / "evaluation/evaluate_mteb.py"), "--model_name", name, "--tasks", "STS17"]
    command += ["--subsets", *published.subset, "--calibration_data", "none", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, env=pytestconfig.environment | {"PYTHONPATH": ""}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    summary = read_summary(tmp_path / "out")
    full = summary[summary.dim == summary.dim.max()].set_index("subset").score
    for row in published.itertuples():
        assert 100 * full[row.subset] == pytest.approx(100 * row.cosine_spearman, abs=TOLERANCE), row.subset
    assert os.environ["HF_ENDPOINT"].startswith("http://127.0.0.1")  # the other tests stay on the tests' own Hub
