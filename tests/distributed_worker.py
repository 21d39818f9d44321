"""Run by test_distributed.py: writes the gradients of one step, in one process or several, for each size of GradCache's mini-batches."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from torch.nn.parallel import DistributedDataParallel

from common.packing import pack
from training.utils.losses import make_loss
from training.utils.options import DatasetEntry


def main() -> None:
    folder, sizes = Path(sys.argv[1]), map(int, sys.argv[2:])
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if processes > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for mini in sizes:
        gradients = one_step(folder, processes, rank, mini)
        if rank == 0:
            torch.save(gradients, folder / f"gradients-{processes}-{mini}.pt")
    if processes > 1:
        dist.barrier()
        os._exit(0)  # the teardown of gloo hangs now and then, which is not what is tested


def one_step(folder: Path, processes: int, rank: int, mini: int) -> dict[str, torch.Tensor]:
    """Return the gradients of a step on this process's part of the texts; ``mini`` 0 embeds the batch in one go."""
    texts = (folder / "texts.txt").read_text(encoding="utf-8").splitlines()
    model = pack(SentenceTransformer(str(folder / "model"), device="cpu").double()).train()  # rounding does not matter
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss = make_loss(model, DatasetEntry("-", "mnrl"), None, [16, 8], None, mini or None)
    rows = len(texts) // 3
    columns = [texts[start : start + rows] for start in (0, rows, 2 * rows)]
    part = slice(rank * rows // processes, (rank + 1) * rows // processes)
    if processes > 1:
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        loss.model = loss.loss.model = wrapped
        if mini:
            loss.loss.loss.model = wrapped
    features = [model.preprocess(column[part]) for column in columns]
    loss(features, None).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    main()
