"""Training speed, memory and quality beside the plain sentence-transformers script, on the same model, data, seed and batches.

    python benchmarks/train_throughput.py sentence-transformers/all-MiniLM-L6-v2          # 20 steps, 3 times each
    python benchmarks/train_throughput.py sentence-transformers/all-MiniLM-L6-v2 --epoch  # a whole epoch

The plain script is SentenceTransformerTrainer with the library's MatryoshkaLoss and its defaults (float32). The runs alternate,
each in a process of its own; rates leave out the first two steps, and ratios are of runs that followed one another. After
training, each model is scored on the STS-B test set at every dimension. Results go to --output_dir as throughput.json
(with every step's time and loss) and throughput.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time

PLAIN, OURS_FP32, OURS = "plain", "ours fp32", "ours"
WARM_UP = 2  # steps left out of the rate
LEARNING_RATE = 2e-5


def matmul_ceiling(dtype, device: str, size: int = 2048) -> float:
    """Operations a second of a square matrix product, the median of five."""
    import torch

    size = 8192 if device == "cuda" else size
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return statistics.median(rates)


def train_once(options: argparse.Namespace) -> dict:
    """One run, in this process: ``{"triplets_per_s", "peak_memory_gib", "losses", "sts", ...}``."""
    import torch
    from datasets import concatenate_datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses
    from transformers import TrainerCallback, set_seed

    from common.dims import fit_dims
    from common.packing import pack
    from common.script import set_up_logging
    from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
    from training.utils.data_loading import NLI_TRIPLETS, load_dev_sets, load_training_data
    from training.utils.losses import make_loss
    from training.utils.model_utils import choose_precision
    from training.utils.trainer import MatryoshkaTrainer

    set_up_logging()
    set_seed(options.seed)
    entry = NLI_TRIPLETS["en"]
    dataset = load_training_data(entry)
    if options.rows:
        dataset = concatenate_datasets([dataset] * -(-options.rows // len(dataset))).select(range(options.rows))
    model = SentenceTransformer(options.model_name)
    device = model.device.type
    dims = fit_dims("dims", [768, 512, 256, 128, 64], model.get_embedding_dimension(), explicit=False)
    common = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": -1 if options.epoch else options.steps + WARM_UP,
        "num_train_epochs": 1,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0.1,
        "seed": options.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
    }
    precision = torch.float32
    if options.run == PLAIN:
        inner = losses.MultipleNegativesRankingLoss(model)
        loss = losses.MatryoshkaLoss(model, inner, dims)
        arguments = SentenceTransformerTrainingArguments(**common, batch_sampler="no_duplicates")
        trainer_class = SentenceTransformerTrainer
    else:
        precision = choose_precision("fp32" if options.run == OURS_FP32 else "auto", model)
        pack(model, train_dtype=precision)
        loss = make_loss(model, entry, dataset, dims, None, options.mini_batch_size)
        arguments = SentenceTransformerTrainingArguments(
            **common, bf16=precision == torch.bfloat16, fp16=precision == torch.float16
        )
        trainer_class = MatryoshkaTrainer

    tokens: list[int] = []
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.on_step_end()

        def on_step_end(self, *_, **__):
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    trainer = trainer_class(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[Clock()])
    preprocess = trainer.data_collator.preprocess_fn

    def counting(*args, **kwargs):
        features = preprocess(*args, **kwargs)
        tokens.append(int(features["attention_mask"].sum()))
        return features

    trainer.data_collator.preprocess_fn = counting
    start = time.perf_counter()
    trainer.train()
    steps = len(times) - 1
    seconds = times[-1] - times[WARM_UP]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    matrices = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.ndim == 2 and "embedding" not in name and "pooler" not in name
    )
    columns = len(dataset.column_names)
    measured = [sum(tokens[i : i + columns]) for i in range(WARM_UP * columns, steps * columns, columns)]
    operations = 6 * matrices * sum(measured)
    ceiling = matmul_ceiling(precision, device)
    _, test = load_dev_sets(["en"], "en")
    model.eval()
    sts = {k: round(v, 6) for k, v in MatryoshkaEvaluator(test, dims)(model).items() if "spearman" in k}
    return {
        "run": options.run,
        "seed": options.seed,
        "device": device,
        "precision": str(precision).removeprefix("torch."),
        "steps": steps,
        "triplets_per_s": options.batch_size * (steps - WARM_UP) / seconds,
        "seconds_per_step": [round(b - a, 4) for a, b in zip(times, times[1:], strict=False)],
        "first_step_after_s": round(times[1] - start, 2),
        "peak_memory_gib": round(peak, 3),
        "tokens_per_triplet": round(sum(measured) / (options.batch_size * len(measured)), 2),
        "tflops": round(operations / seconds / 1e12, 4),
        "ceiling_tflops": round(ceiling / 1e12, 4),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "sts": sts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_name", help="the model to start from")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps to time, after two to warm up (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=128, help="triplets a step (default: %(default)s)")
    parser.add_argument("--mini_batch_size", type=int, default=None, help="GradCache for this repository's runs")
    parser.add_argument("--rows", type=int, default=None, help="repeat the data to so many rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run of each kind for each seed")
    parser.add_argument("--epoch", action="store_true", help="train a whole epoch instead")
    parser.add_argument("--runs", nargs="+", default=[PLAIN, OURS_FP32, OURS], help="which runs (default: all three)")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("results/throughput"),
        help="folder of the results (default: %(default)s)",
    )
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(train_once(options)))
        return

    from common.records import RunRecord, write_atomically

    record = RunRecord(
        options.output_dir / "throughput.json", {k: v for k, v in vars(options).items() if k not in ("run", "seed")}
    )
    results: list[dict] = []
    for seed in options.seeds:
        for run in options.runs:
            command = [sys.executable, __file__, *sys.argv[1:], "--run", run, "--seed", str(seed)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
            print(
                f"{run}, seed {seed}: {results[-1]['triplets_per_s']:.1f} triplets/s, {results[-1]['peak_memory_gib']:.2f} GiB",
                file=sys.stderr,
            )
            record.write(results=results)
    text = table(options, results)
    write_atomically(options.output_dir / "throughput.md", text)
    record.finish()
    print(text)


def table(options: argparse.Namespace, results: list[dict]) -> str:
    """The medians over the seeds, and the ratios to the plain run of the same seed, in Markdown."""
    by_run = {run: [r for r in results if r["run"] == run] for run in options.runs}
    lines = [
        f"{options.model_name}, {results[0]['device']}, batch {options.batch_size}, {results[0]['steps'] - WARM_UP} steps, "
        f"{len(options.seeds)} runs of each kind in turn; {results[0]['tokens_per_triplet']} tokens a triplet. Medians.",
        "",
        "| run | precision | triplets/s | × plain | peak memory, GiB | ÷ plain | share of the matrix-product ceiling | last loss |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for run, found in by_run.items():
        median = {
            key: statistics.median(r[key] for r in found) for key in ("triplets_per_s", "peak_memory_gib", "tflops")
        }
        speed = memory = "1"
        if run != PLAIN and PLAIN in by_run:
            pairs = list(zip(found, by_run[PLAIN], strict=True))
            speed = f"{statistics.median(a['triplets_per_s'] / b['triplets_per_s'] for a, b in pairs):.2f}"
            memory = f"{statistics.median(a['peak_memory_gib'] / b['peak_memory_gib'] for a, b in pairs):.2f}"
        share = statistics.median(r["tflops"] / r["ceiling_tflops"] for r in found)
        last = statistics.median(statistics.mean(r["losses"][-5:]) for r in found)
        lines.append(
            f"| {run} | {found[0]['precision']} | {median['triplets_per_s']:.1f} | {speed} | {median['peak_memory_gib']:.2f} | {memory} | "
            f"{100 * share:.0f}% | {last:.4f} |"
        )
    if all(result["sts"] for result in results):
        dims = [
            key.removeprefix("sts-test-").removesuffix("_spearman_cosine")
            for key in results[0]["sts"]
            if key.startswith("sts-test")
        ]
        lines += [
            "",
            "STS-B test, Spearman × 100, after these steps: the mean over the seeds, and the range of the mean over the dimensions.",
            "",
        ]
        lines += ["| run | " + " | ".join(dims) + " | mean | range |", "|---|" + "---:|" * (len(dims) + 2)]
        for run, found in by_run.items():
            cells = [
                f"{100 * statistics.mean(r['sts'][f'sts-test-{dim}_spearman_cosine'] for r in found):.2f}"
                for dim in dims
            ]
            means = [100 * statistics.mean(r["sts"][f"sts-test-{dim}_spearman_cosine"] for dim in dims) for r in found]
            lines.append(
                f"| {run} | "
                + " | ".join(cells)
                + f" | {statistics.mean(means):.2f} | {min(means):.2f} to {max(means):.2f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
