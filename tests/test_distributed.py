"""Two processes of batch B train like one of 2B: the contrastive loss uses all rows, and rows with the same anchor never share a step."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from datasets import Dataset

from tests.helpers import ROOT, write_pairs
from training.utils.sampling import GlobalBatchSampler, MixtureBatchSampler, deal

ROWS = 8


def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(warm, warm_python, tmp_path, tiny_model, groups):
    texts = [g[key] for key in ("premise_ar", "entailment_ar", "contradiction_ar") for g in groups[:ROWS]]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    (tmp_path / "model").symlink_to(tiny_model)
    done = warm("tests/distributed_worker.py", tmp_path, "0", env={"PYTHONPATH": str(ROOT)})
    assert done.code == 0, done.err
    command = [*warm_python, ROOT / "tests/distributed_worker.py", tmp_path, "0", "2"]  # in one go, and by GradCache
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    processes = []
    for rank in ("0", "1"):
        environment = os.environ | meeting | {"RANK": rank, "PYTHONPATH": str(ROOT)}
        words = [*map(str, command)]
        processes.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment))
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors[-2000:]
    one = torch.load(tmp_path / "gradients-1-0.pt", weights_only=True)
    scale = max(float(g.abs().max()) for g in one.values())
    for mini in (0, 2):
        two = torch.load(tmp_path / f"gradients-2-{mini}.pt", weights_only=True)
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-11 * scale, msg=f"{name}, {mini}")


def rows(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"anchor": texts, "positive": [f"{text}!" for text in texts]})


def sampler(dataset: Dataset, batch_size: int, processes: int) -> GlobalBatchSampler:
    return GlobalBatchSampler(dataset, batch_size, processes, False, generator=torch.Generator(), seed=3)


def test_rows_of_one_anchor_do_not_share_the_gathered_batch():
    dataset = rows([str(number // 3) for number in range(90)])  # each text three times
    batches = list(sampler(dataset, 4, 2))
    assert len(batches) % 2 == 0 and sum(map(len, batches)) == 90
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        texts = [dataset[row]["anchor"] for row in [*first, *second]]
        assert 0 < len(first) == len(second) <= 4
        assert len(set(texts)) == len(texts)


def test_each_epoch_has_another_order_and_the_same_seed_the_same():
    one, same = sampler(rows([str(n) for n in range(32)]), 4, 2), sampler(rows([str(n) for n in range(32)]), 4, 2)
    first = list(one)
    assert first == list(same)
    one.sampler.set_epoch(1)  # this is how accelerate passes the epoch on
    assert list(one) != first


def mixture(turns, processes: int = 2, sizes: tuple[int, ...] = (40, 12)) -> tuple[MixtureBatchSampler, list[int]]:
    datasets = [rows([f"{index}-{n}" for n in range(size)]) for index, size in enumerate(sizes)]
    samplers = [sampler(dataset, 2, processes) for dataset in datasets]
    mixed = MixtureBatchSampler(
        torch.utils.data.ConcatDataset(datasets),
        batch_samplers=samplers,
        turns=turns,
        generator=torch.Generator(),
        seed=5,
    )
    steps = list(mixed)
    return mixed, [0 if row < sizes[0] else 1 for batch in steps for row in batch[:1]]


@pytest.mark.parametrize("turns", ["proportional", "round_robin", [1.0, 3.0]], ids=str)
def test_all_processes_are_on_the_same_data_set_at_each_step(turns):
    mixed, sources = mixture(turns)
    assert len(sources) == len(mixed)
    assert sources[::2] == sources[1::2]
    for batch in mixed:
        assert len({row < 40 for row in batch}) == 1


def test_proportional_uses_each_row_once_and_round_robin_alternates():
    mixed, sources = mixture("proportional", processes=1)
    assert sorted(row for batch in mixed for row in batch) == list(range(52))
    assert mixture("round_robin", processes=1)[1] == [0, 1] * 6


def test_weights_hold_and_the_smallest_does_not_end_the_epoch():
    mixed, sources = mixture([1.0, 9.0], processes=1, sizes=(400, 40))
    assert len(sources) == 220
    assert 0.8 < sum(sources) / len(sources) < 0.97  # 0.9 expected; of 220 draws a standard deviation is 0.02
    drawn = [row for batch in mixed for row in batch if row >= 400]
    assert set(drawn) == set(range(400, 440)) and len(drawn) > 40  # all of the small set, again and again


def test_rows_are_dealt_in_equal_parts():
    assert deal(list(range(6)), 3) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.slow
def test_a_mixture_trains_on_every_row_that_two_processes_can_share(tmp_path, tiny_model):
    """Steps need not be full, and rows with different numbers of negatives have steps of their own."""
    anchors = [
        {"query": f"word{n}", "pos": [f"word{n + 30}"], "neg": [f"word{60 + 4 * n + k}" for k in range(n % 4)]}
        for n in range(24)
    ]
    graded = [{"sentence1": f"word{n}", "sentence2": f"word{n + 9}", "score": n % 5} for n in range(15)]
    datasets = {
        "anchors": {"path": str(write_pairs(tmp_path / "anchors.jsonl", anchors)), "loss": "mnrl"},
        "graded": {
            "path": str(write_pairs(tmp_path / "graded.jsonl", graded)),
            "loss": "cosent",
            "score_range": [0, 4],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps({"datasets": datasets}))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "training/hybrid_training.py", tiny_model, "--config", tmp_path / "config.json", "--output_dir", tmp_path / "run",
        "--dev_data", "none", "--precision", "fp32", "--matryoshka_dims", "16", "--per_device_train_batch_size", "4",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 15 rows are not used in the first epoch: 1 left over" in done.stderr
    assert "of 24 rows are not used" not in done.stderr and "drop_last" not in done.stderr
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (
        record["steps"] == 4 + 2
    )  # six anchors for each number of negatives, and 14 graded pairs, in steps of up to 8 rows
