"""LoRA compared with training all weights: parameters trained, memory, speed, and dev scores at every dimension.

    python benchmarks/train_lora.py intfloat/multilingual-e5-small
    python benchmarks/train_lora.py MODEL --lora_r 64 --lora_learning_rate 1e-4 --steps 50

The runs alternate, each in a new process, on the same English NLI triplets in the same batches. Rates exclude the first two steps.
Both learning rates are fixed, not tuned. The scores are those of the merged model on the STS-B dev set after these steps.
Writes lora.json and lora.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import re
import statistics
import tempfile
import time

from benchmarks.skeleton import finish, make_parser, markdown_table, measure_in_new_process, start_record
from common.errors import run

logger = logging.getLogger(__name__)

BEFORE, FULL, LORA = "before training", "all weights", "LoRA"
WARM_UP = 2  # steps that the rate excludes
KEYS = "triplets_per_s", "peak_memory_gib"


def train_once(model_name: str, lora_r: int, learning_rate: float, steps: int, batch_size: int, seed: int) -> dict:
    """Train in this process and return ``{"trained", "parameters", "triplets_per_s", "peak_memory_gib", "scores"}``.

    Args:
        lora_r: The rank; 0 trains all weights.
        steps: Steps to time, after ``WARM_UP`` steps; 0 trains nothing.
    """
    import resource

    import torch
    from transformers import TrainerCallback, set_seed

    from common.adapters import adapter_of, merge
    from common.config import load_config
    from common.dims import fit_dims
    from common.packing import pack
    from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
    from training.utils.data_loading import NLI_TRIPLETS, load_dev_sets, load_training_data
    from training.utils.losses import make_loss
    from training.utils.model_utils import choose_precision, load_base_model
    from training.utils.options import MatryoshkaNLIConfig
    from training.utils.trainer import MatryoshkaTrainer
    from training.utils.training_arguments import make_training_arguments

    flags = {
        "model_name": model_name,
        "lora_r": lora_r,
        "learning_rate": learning_rate,
        "max_steps": max(steps, 1) + WARM_UP,
        "per_device_train_batch_size": batch_size,
        "seed": seed,
    }
    config = load_config(
        MatryoshkaNLIConfig, "", [text for key, value in flags.items() for text in (f"--{key}", str(value))]
    )
    set_seed(seed)
    entry = NLI_TRIPLETS["en"]
    dataset = load_training_data(entry)
    dev_sets, _ = load_dev_sets(["en"], "en")
    model = load_base_model(config, dataset)
    precision = choose_precision(config.precision, model)
    pack(model, train_dtype=precision)
    dims = fit_dims("dims", config.matryoshka_dims, model.get_embedding_dimension(), explicit=False)
    loss = make_loss(model, entry, dataset, dims)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = {"trained": trained, "parameters": sum(p.numel() for p in model.parameters())}
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.on_step_end()

        def on_step_end(self, *_, **__):
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    if steps:
        arguments = make_training_arguments(
            config, Path(tempfile.mkdtemp()), precision, None, save_strategy="no", disable_tqdm=True
        )
        MatryoshkaTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[Clock()]).train()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if model.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
        result |= {
            "device": model.device.type,
            "precision": str(precision).removeprefix("torch."),
            "triplets_per_s": batch_size * steps / (times[-1] - times[WARM_UP]),
            "peak_memory_gib": round(peak, 3),
        }
    if adapter_of(model) is not None:
        merge(model)
    metrics = MatryoshkaEvaluator(dev_sets, dims)(model.eval())
    scores = {re.search(r"-(\d+)_spearman_cosine$", name): value for name, value in metrics.items()}
    return result | {"scores": {match[1]: round(value, 6) for match, value in scores.items() if match}}


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("model_name", help="the model to start from")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps to time, after two to warm up (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=64, help="triplets per step (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds, two runs each (default: 1 2 3)")
    parser.add_argument("--lora_r", type=int, default=16, help="rank of the adapter (default: %(default)s)")
    parser.add_argument(
        "--learning_rate", type=float, default=2e-5, help="for training all weights (default: %(default)s)"
    )
    parser.add_argument(
        "--lora_learning_rate", type=float, default=2e-4, help="for training the adapter (default: %(default)s)"
    )
    options = parser.parse_args(argv)

    record = start_record(__file__, options)
    shared = {key: getattr(options, key) for key in ("model_name", "batch_size")}
    kinds = {FULL: (0, options.learning_rate), LORA: (options.lora_r, options.lora_learning_rate)}
    results = []
    for seed in options.seeds:
        for kind, (rank, rate) in (kinds if results else {BEFORE: kinds[FULL]} | kinds).items():
            steps = 0 if kind == BEFORE else options.steps
            run_flags = {"lora_r": rank, "learning_rate": rate, "seed": seed, "steps": steps}
            results.append({"run": kind} | run_flags | measure_in_new_process(train_once, **shared, **run_flags))
            logger.info("%s, seed %d: %s", kind, seed, {key: results[-1].get(key) for key in KEYS})
            record.write(results=results)
    finish(record, report(options, results), results=results)


def report(options, results: list[dict]) -> str:
    """The medians over the seeds, in Markdown."""
    dims = sorted(results[0]["scores"], key=int, reverse=True)
    head = ["run", "learning rate", "parameters trained", "triplets/s", "peak memory, GiB"]
    rows = []
    for kind in (BEFORE, FULL, LORA):
        runs = [result for result in results if result["run"] == kind]
        rows.append([kind, *measured_cells(runs, kind), *score_cells(runs, dims)])
    table = markdown_table([*head, *dims], rows)
    return (
        f"{options.model_name}, rank {options.lora_r}, batch size {options.batch_size}, {options.steps} timed steps after {WARM_UP} of "
        f"warm-up; the runs alternate. Medians over the seeds ({', '.join(map(str, options.seeds))}). Scores: STS-B dev, Spearman × 100, "
        f"by dimension.\n\n{table}"
    )


def measured_cells(runs: list[dict], kind: str) -> list[str]:
    if kind == BEFORE:
        return ["–"] * 4
    trained, total = runs[0]["trained"], runs[0]["parameters"]
    speed, memory = (statistics.median(result[key] for result in runs) for key in KEYS)
    return [
        f"{runs[0]['learning_rate']:g}",
        f"{trained:,} ({100 * trained / total:.2f}%)",
        f"{speed:.1f}",
        f"{memory:.2f}",
    ]


def score_cells(runs: list[dict], dims: list[str]) -> list[str]:
    return [f"{100 * statistics.median(result['scores'][dim] for result in runs):.2f}" for dim in dims]


if __name__ == "__main__":
    run(main)
