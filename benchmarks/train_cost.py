"""A cost model of a training step, fitted to measured points and checked on points that were not fitted.

    python benchmarks/train_cost.py sentence-transformers/all-MiniLM-L6-v2

Time and memory of a step of B triplets of texts of L tokens each, at D dimensions, on one device:

    seconds = t0 + t1 * tokens + t2 * tokens * L + t3 * B^2 * D         tokens = 3 * B * L
    GiB     = m0 + m1 * tokens + m2 * tokens * L + m3 * B^2 * D

Results go to --output_dir as cost.json and cost.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import statistics
import subprocess
import time

FITTED = [(32, 8), (32, 32), (32, 96), (128, 8), (128, 16), (128, 32), (128, 64), (256, 16), (512, 8), (512, 16)]
CHECKED = [(64, 48), (192, 24), (384, 12)]
REPEATS = 5


def measure(model_name: str, batch: int, length: int) -> dict:
    """The median time of a step of random tokens and the growth of the process's peak memory, in this process."""
    import resource

    import torch
    from sentence_transformers import SentenceTransformer

    from common.dims import fit_dims
    from common.packing import pack
    from training.utils.data_loading import NLI_TRIPLETS
    from training.utils.losses import make_loss
    from training.utils.model_utils import choose_precision

    torch.manual_seed(0)
    model = SentenceTransformer(model_name)
    precision = choose_precision("auto", model)
    pack(model, train_dtype=precision).train()
    dims = fit_dims("dims", [768, 512, 256, 128, 64], model.get_embedding_dimension(), explicit=False)
    loss = make_loss(model, NLI_TRIPLETS["en"], None, dims)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    vocabulary = model[0].auto_model.config.vocab_size

    def peak() -> float:
        if model.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def step(rows: int, tokens: int) -> None:
        ids = torch.randint(1000, vocabulary, (3, rows, tokens), device=model.device)
        columns = [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids]
        loss(columns, None).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    step(2, 4)  # the optimizer's state and the libraries' buffers, which every step shares
    before = peak()
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        step(batch, length)
        seconds.append(time.perf_counter() - start)
    return {
        "batch": batch,
        "length": length,
        "dims": sum(dims),
        "device": model.device.type,
        "precision": str(precision).removeprefix("torch."),
        "seconds": statistics.median(seconds[1:]),
        "gib": peak() - before,
    }


def features(point: dict) -> list[float]:
    batch, length = point["batch"], point["length"]
    tokens = 3 * batch * length
    return [1.0, tokens, tokens * length, batch**2 * point["dims"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_name", help="the model to measure")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("results/cost"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--point", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(options.model_name, *options.point)))
        return

    import numpy as np
    from scipy.optimize import nnls

    from common.records import RunRecord, write_atomically

    record = RunRecord(options.output_dir / "cost.json", {"model_name": options.model_name})
    points = {}
    for batch, length in FITTED + CHECKED:
        command = [sys.executable, __file__, options.model_name, "--point", str(batch), str(length)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        points[batch, length] = json.loads(output.splitlines()[-1])
        print(points[batch, length], file=sys.stderr)

    fits, lines = {}, []
    for quantity, unit in (("seconds", "s"), ("gib", "GiB")):
        matrix = np.array([features(points[p]) for p in FITTED])
        values = np.array([points[p][quantity] for p in FITTED])
        scale = 1 / values  # relative errors count, not absolute ones
        coefficients, _ = nnls(matrix * scale[:, None], values * scale)
        fits[quantity] = coefficients.tolist()
        lines += [
            f"{quantity} = "
            + " + ".join(
                f"{c:.3g} * {n}" for c, n in zip(coefficients, ("1", "tokens", "tokens*L", "B^2*D"), strict=True)
            ),
            "",
        ]
        lines += [
            f"| triplets | tokens a text | fitted | measured, {unit} | model, {unit} | error |",
            "|---:|---:|---|---:|---:|---:|",
        ]
        for point in FITTED + CHECKED:
            measured, modelled = points[point][quantity], float(np.dot(features(points[point]), coefficients))
            where = "yes" if point in FITTED else "no"
            lines.append(
                f"| {point[0]} | {point[1]} | {where} | {measured:.3f} | {modelled:.3f} | {100 * (modelled / measured - 1):+.0f}% |"
            )
        lines.append("")
    write_atomically(options.output_dir / "cost.md", "\n".join(lines))
    record.finish(points=list(points.values()), fits=fits)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
