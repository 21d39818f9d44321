"""A long training run does not grow."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.train_memory import growth, measure, sample
from tests.helpers import ROOT, triplets, write
from training.utils.model_utils import cpu_has_bfloat16
from training.utils.trainer import trim_heap

SHAPES = """
import os, sys, torch
from sentence_transformers import SentenceTransformer
from benchmarks.train_memory import sample
from common.packing import pack

model = pack(SentenceTransformer(sys.argv[1], device="cpu"), train_dtype=torch.bfloat16).train()
for words in range(300):
    features = model.preprocess(["word"] * 20 + ["word " * (words % 60)] * (words // 60 + 1))
    model(features)["sentence_embedding"].sum().backward()
    if words in (99, 299):
        print(sample(os.getpid(), 0)["mib"])
"""


@pytest.mark.slow
def test_a_run_does_not_grow(groups, hub, tmp_path):
    data = write(tmp_path / "ranks.csv", triplets(groups, "en"))
    static = ("static", "--static_embedding_dim", "256", "--static_vocab_size", "2000")
    samples = measure(
        (*static, "--train_data", str(data), "--per_device_train_batch_size", "64", "--eval_steps", "100"), 600
    )
    assert [entry["step"] for entry in samples] == list(range(1, 601))
    found = growth(samples)
    assert found["growth_percent"] < 2, found
    assert found["files"] == found["files_at_the_end"] and found["threads"] == found["threads_at_the_end"], found


def test_growth_is_from_the_first_to_the_last_quarter_after_the_warm_up():
    samples = [{"step": s, "mib": 900.0 if s <= 20 else 100.0 + s, "files": 4, "threads": 2} for s in range(1, 101)]
    found = growth(samples)
    assert found["mib"] == 130.5 and found["mib_at_the_end"] == 190.5  # medians of steps 21 to 40, 81 to 100
    assert found["growth_percent"] == pytest.approx(100 * (190.5 / 130.5 - 1), abs=0.01)


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="the processor has no bfloat16 products")
def test_kernels_for_batches_of_ever_other_shapes_do_not_pile_up(tiny_model):
    done = subprocess.run(
        [sys.executable, "-c", SHAPES, str(tiny_model)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    early, late = map(float, done.stdout.split())
    assert late - early < 40  # 108 with the caches as they come


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc"
)
def test_free_memory_goes_back_to_the_system():
    tensors = [torch.ones(25_000) for _ in range(2_000)]  # 100 kB each, from the heap
    last = torch.ones(25_000)
    tensors.clear()
    before = sample(os.getpid(), 0)["mib"]
    trim_heap()
    assert before - sample(os.getpid(), 0)["mib"] > 150
    assert last.sum() == 25_000
