"""Fits a cost model of a training step to measured points, and checks it on other points.

    python benchmarks/train_cost.py sentence-transformers/all-MiniLM-L6-v2

Time and memory, on one device, of a step of B triplets whose texts have L tokens each, at dimensions that add up to D:

    seconds = t0 + t1 * tokens + t2 * tokens * L + t3 * B^2 * D         tokens = 3 * B * L
    GiB     = m0 + m1 * tokens + m2 * tokens * L + m3 * B^2 * D

Writes cost.json and cost.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import statistics
import time

from benchmarks.skeleton import finish, make_parser, markdown_table, measure_in_new_process, start_record
from common.errors import run

FITTED = [(32, 8), (32, 32), (32, 96), (128, 8), (128, 16), (128, 32), (128, 64), (256, 16), (512, 8), (512, 16)]
CHECKED = [(64, 48), (192, 24), (384, 12)]
REPEATS = 5
TERMS = ("1", "tokens", "tokens*L", "B^2*D")

logger = logging.getLogger(__name__)


def measure(model_name: str, batch: int, length: int) -> dict:
    """Measure in this process the median time of a step of random tokens, and the growth of the peak memory."""
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

    step(2, 4)  # allocates the optimizer's state and the libraries' buffers, which every step shares
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


def terms(point: dict) -> list[float]:
    """Return the values of ``TERMS`` at a measured point."""
    batch, length = point["batch"], point["length"]
    tokens = 3 * batch * length
    return [1.0, tokens, tokens * length, batch**2 * point["dims"]]


def fit(points: list[dict], quantity: str) -> list[float]:
    """Return the non-negative coefficients of ``TERMS`` that minimise the sum of squared relative errors."""
    import numpy as np
    from scipy.optimize import nnls

    matrix = np.array([terms(point) for point in points])
    values = np.array([point[quantity] for point in points])
    scale = 1 / values  # relative errors count, not absolute ones
    return nnls(matrix * scale[:, None], values * scale)[0].tolist()


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("model_name", help="the model to measure")
    options = parser.parse_args(argv)

    record = start_record(__file__, options)
    points = {}
    for batch, length in FITTED + CHECKED:
        points[batch, length] = measure_in_new_process(
            measure, model_name=options.model_name, batch=batch, length=length
        )
        logger.info("%s", points[batch, length])
        record.write(points=list(points.values()))

    fits = {quantity: fit([points[p] for p in FITTED], quantity) for quantity in ("seconds", "gib")}
    finish(record, report(points, fits), fits=fits)


def report(points: dict[tuple[int, int], dict], fits: dict[str, list[float]]) -> str:
    """Return the fitted formula of each quantity, and a table of its measured and predicted values, in Markdown."""
    sections = []
    for quantity, name, unit in (("seconds", "seconds", "s"), ("gib", "GiB", "GiB")):
        products = [
            f"{c:.3g} * {term}".removesuffix(" * 1") for c, term in zip(fits[quantity], TERMS, strict=True) if c
        ]
        head = [
            "batch size (B)",
            "tokens per text (L)",
            "used for the fit",
            f"measured, {unit}",
            f"predicted, {unit}",
            "error",
        ]
        rows = []
        for batch, length in FITTED + CHECKED:
            measured = points[batch, length][quantity]
            modelled = sum(c * x for c, x in zip(fits[quantity], terms(points[batch, length]), strict=True))
            fitted, error = "yes" if (batch, length) in FITTED else "no", 100 * (modelled / measured - 1)
            rows.append([str(batch), str(length), fitted, f"{measured:.3f}", f"{modelled:.3f}", f"{error:+.0f}%"])
        sections.append(f"{name} = {' + '.join(products)}\n\n{markdown_table(head, rows, text_columns=0)}")
    return "\n".join(sections)


if __name__ == "__main__":
    run(main)
