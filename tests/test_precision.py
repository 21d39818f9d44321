"""A precision that is slow on this processor is never chosen automatically, and choosing it causes a warning."""

from __future__ import annotations

import re
import timeit

import pytest
import torch

from common.precision import slowdown
from tests.helpers import scored, triplets, write

NLI, STS = "training/matryoshka_nli.py", "evaluation/evaluate_sts.py"

NOISE = 20  # allowed ratio, because other processes may slow down either measurement
SLOW = 4  # at this factor a warning is certain


@pytest.fixture(scope="module")
def factor() -> float:
    """Time in bfloat16 divided by time in float32: the fastest of many products, of another shape than ``slowdown`` uses."""
    fastest = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(128, 256, dtype=dtype)
        fastest.append(min(timeit.repeat(lambda matrix=matrix: matrix @ matrix.T, number=1, repeat=50)))
    return fastest[1] / fastest[0]


def test_the_slowdown_is_what_another_timer_measures(factor):
    assert factor / NOISE < slowdown(torch.bfloat16) < factor * NOISE
    assert slowdown(torch.float32) == 1


def warned(log: str, flag: str) -> float | None:
    """The factor that the warning on ``flag`` names."""
    found = re.search(rf"{flag}: matrix products take ([\d.]+) times as long as in float32 on this processor", log)
    return found and float(found[1])


def check(log: str, flag: str, factor: float) -> None:
    if factor > SLOW:
        assert factor / NOISE < warned(log, flag) < factor * NOISE
        assert log.count("times as long as in float32") == 1
    elif factor < 1 / SLOW:
        assert warned(log, flag) is None


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_training(precision, factor, groups, warm, tiny_model, tmp_path):
    data = write(tmp_path / "train.jsonl", triplets(groups, "en")[:16])
    flags = ("--train_data", data, "--dev_data", "none", "--max_steps", "1", "--per_device_train_batch_size", "4")
    done = warm(NLI, tiny_model, *flags, "--precision", precision, "--output_dir", tmp_path / "run")
    assert done.code == 0, done.err
    if precision == "bf16":
        check(done.err, "--precision bf16", factor)
    else:
        assert warned(done.err, "--precision auto") is None and "times as long" not in done.err
        if factor > SLOW:
            assert "training on cpu in fp32" in done.err


def test_evaluation(factor, pairs, warm, tiny_model, tmp_path):
    flags = (
        "--data",
        write(tmp_path / "pairs.jsonl", scored(pairs, "en-en", slice(20))),
        "--calibration_data",
        "none",
        "--output_dir",
        tmp_path / "out",
    )
    done = warm(STS, "--model_name", tiny_model, *flags, "--dtype", "bfloat16")
    assert done.code == 0, done.err
    check(done.err, "--dtype bfloat16", factor)
