"""Run by test_distributed.py under torchrun: the first of two processes writes the gradients of one step."""

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
    folder, texts, mini = (
        Path(sys.argv[1]),
        Path(sys.argv[2]).read_text(encoding="utf-8").splitlines(),
        int(sys.argv[3]),
    )
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if processes > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
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
    if rank == 0:
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        torch.save(gradients, folder / f"gradients-{processes}-{mini}.pt")
    if processes > 1:
        dist.barrier()
        os._exit(0)  # the teardown of gloo hangs now and then, which is not what is tested


if __name__ == "__main__":
    main()
