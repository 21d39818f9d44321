"""Compares training speed, memory and quality with the plain sentence-transformers script: same model, data, seed and batch size.

    python benchmarks/train_throughput.py sentence-transformers/all-MiniLM-L6-v2          # 20 steps, 3 times each
    python benchmarks/train_throughput.py sentence-transformers/all-MiniLM-L6-v2 --epoch  # a full epoch

The plain script is SentenceTransformerTrainer with the library's MatryoshkaLoss and its defaults (float32). The runs alternate, each
in a new process on a CPU, and one after the other in this process on a GPU. Rates exclude the first two steps; ratios compare runs of
the same seed. After training, each model is scored on the STS-B test set at every dimension. --profile adds a table of where the time
of a step goes, from one more step of each run under PyTorch's profiler. Writes throughput.json (with the time and loss of every step;
on a GPU, the loss of every tenth) and throughput.md to --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import logging
import statistics
import tempfile
import time
from collections import Counter
from typing import TYPE_CHECKING

from benchmarks.skeleton import finish, make_parser, markdown_table, measure_in_new_process, start_record
from common.errors import run

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

KINDS = PLAIN, OURS_FP32, OURS = "plain", "ours fp32", "ours"
WARM_UP = 2  # steps that the rate excludes
LEARNING_RATE = 2e-5
LAST_LOSSES = 5  # the table shows their mean

# The parts of a step's time, each with substrings of the names of its operators
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "mkldnn", "flash"),
    "GELU, softmax, layer norm": ("gelu", "softmax", "layer_norm"),
    "dropout": ("dropout", "bernoulli"),
    "copies": ("aten::copy_", "aten::cat", "aten::index"),
    "embedding gradient": ("embedding_dense_backward", "embedding_backward"),
    "gradient clipping": ("linalg_vector_norm", "_foreach_norm", "_foreach_mul_"),
    "optimizer": ("_fused_adamw_", "addcdiv", "addcmul", "lerp"),
}


def matmul_ceiling(dtype, device: str, size: int = 2048) -> float:
    """Return the operations per second of a square matrix product, the median of five."""
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


def repeat(dataset: Dataset, rows: int) -> Dataset:
    """Repeat a data set of texts to ``rows`` rows. Each repetition puts its number in front of the texts, so that no text repeats."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset

    table = dataset.with_format("arrow")[:]
    copies = [table]
    for number in range(1, -(-rows // len(dataset))):
        columns = [pc.binary_join_element_wise(str(number), column, " ") for column in table.columns]
        copies.append(pa.table(columns, names=table.column_names))
    return Dataset(pa.concat_tables(copies)[:rows].combine_chunks())


def profile_parts(events, on_gpu: bool = False) -> dict[str, float]:
    """Return the share of each of ``PARTS`` in the self time of a profile's operators, the largest first.

    Args:
        events: The ``key_averages()`` of a profile.
        on_gpu: Count the time of the kernels that an operator launches on the GPU instead of its time on the CPU.
    """
    seconds: Counter[str] = Counter()
    for event in events:
        if on_gpu and event.device_type.name != "CPU":
            continue  # the kernels themselves, which their operators already count
        part = next((part for part, names in PARTS.items() if any(name in event.key for name in names)), "other")
        seconds[part] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(seconds.values())
    return {part: round(value / total, 4) for part, value in seconds.most_common()}


def train_once(
    model_name: str,
    kind: str,
    seed: int = 1,
    steps: int = 20,
    batch_size: int = 128,
    mini_batch_size: int | None = None,
    rows: int | None = None,
    epoch: bool = False,
    profile: bool = False,
) -> dict:
    """Train in this process and return ``{"triplets_per_s", "peak_memory_gib", "losses", "sts", ...}``.

    Args:
        model_name: The model to start from.
        kind: ``PLAIN``, ``OURS_FP32`` or ``OURS``.
        seed: The seed of the batches and of dropout.
        steps: Steps to time, after ``WARM_UP`` steps.
        batch_size: Triplets per step.
        mini_batch_size: Texts encoded at once under GradCache; None for no GradCache.
        rows: Repeat the data to this number of rows (see :func:`repeat`); None for the data as it is.
        epoch: Train for a full epoch instead of ``steps``.
        profile: Profile one more step; neither the rate nor the peak memory includes it.
    """
    import resource

    import torch
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses
    from transformers import TrainerCallback, set_seed

    from common.dims import fit_dims
    from common.packing import pack
    from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
    from training.utils.data_loading import NLI_TRIPLETS, load_dev_sets, load_training_data
    from training.utils.losses import make_loss
    from training.utils.model_utils import choose_precision
    from training.utils.trainer import MatryoshkaTrainer
    from training.utils.training_arguments import loader_arguments

    set_seed(seed)
    entry = NLI_TRIPLETS["en"]
    dataset = load_training_data(entry)
    if rows:
        dataset = repeat(dataset, rows)
    model = SentenceTransformer(model_name)
    device = model.device.type
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.set_float32_matmul_precision("highest")  # an earlier run of this process may have set another
    dims = fit_dims("dims", [768, 512, 256, 128, 64], model.get_embedding_dimension(), explicit=False)
    common = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": -1 if epoch else steps + WARM_UP + profile,
        "num_train_epochs": 1,
        "per_device_train_batch_size": batch_size,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0.1,
        "seed": seed,
        "logging_steps": 10 if on_gpu else 1,  # a GPU would wait for every loss that is logged
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
    }
    precision = torch.float32
    if kind == PLAIN:
        inner = losses.MultipleNegativesRankingLoss(model)
        loss = losses.MatryoshkaLoss(model, inner, dims)
        arguments = SentenceTransformerTrainingArguments(**common, batch_sampler="no_duplicates")
        trainer_class = SentenceTransformerTrainer
    else:
        precision = choose_precision("fp32" if kind == OURS_FP32 else "auto", model)
        pack(model, train_dtype=precision)
        loss = make_loss(model, entry, dataset, dims, None, mini_batch_size)
        arguments = SentenceTransformerTrainingArguments(
            **common, **loader_arguments(), bf16=precision == torch.bfloat16, fp16=precision == torch.float16
        )
        trainer_class = MatryoshkaTrainer

    tokens: list[torch.Tensor] = []  # of each step
    times: list[float] = []

    def peak_memory() -> float:
        if on_gpu:
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.tick()

        def on_step_begin(self, args, state, *_, **__):
            self.profiler = None
            if profile and state.global_step == steps + WARM_UP:
                self.finish()
                self.peak = peak_memory()
                self.profiler = torch.profiler.profile()
                self.profiler.start()

        def on_step_end(self, *_, **__):
            if self.profiler is None:
                self.tick()
            else:
                self.profiler.stop()
                self.parts = profile_parts(self.profiler.key_averages(), on_gpu)

        def on_train_end(self, *_, **__):
            if not profile:
                self.finish()

        def finish(self):
            if on_gpu:
                torch.cuda.synchronize()
                times[-1] = time.perf_counter()

        def tick(self):
            if on_gpu and len(times) == WARM_UP:  # between steps, the CPU may run ahead of the GPU
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    clock = Clock()

    trainer = trainer_class(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[clock])
    compute_loss = trainer.compute_loss

    def counting(model, inputs, *args, **kwargs):
        tokens.append(sum(value.sum() for key, value in inputs.items() if key.endswith("attention_mask")))
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = counting
    start = time.perf_counter()
    trainer.train()
    done_steps = len(times) - 1
    seconds = times[-1] - times[WARM_UP]
    peak = clock.peak if profile else peak_memory()
    matrices = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.ndim == 2 and "embedding" not in name and "pooler" not in name
    )
    measured = [int(of_step) for of_step in tokens[WARM_UP:done_steps]]
    operations = 6 * matrices * sum(measured)
    ceiling = matmul_ceiling(precision, device)
    _, test = load_dev_sets(["en"], "en")
    model.eval()
    sts = {k: round(v, 6) for k, v in MatryoshkaEvaluator(test, dims)(model).items() if "spearman" in k}
    return {
        "run": kind,
        "seed": seed,
        "device": device,
        "precision": str(precision).removeprefix("torch."),
        "steps": done_steps,
        "triplets_per_s": batch_size * (done_steps - WARM_UP) / seconds,
        "seconds_per_step": [round(b - a, 4) for a, b in zip(times, times[1:], strict=False)],
        "first_step_after_s": round(times[1] - start, 2),
        "peak_memory_gib": round(peak, 3),
        "tokens_per_triplet": round(sum(measured) / (batch_size * len(measured)), 2),
        "tflops": round(operations / seconds / 1e12, 4),
        "ceiling_tflops": round(ceiling / 1e12, 4),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "sts": sts,
        **({"profile": clock.parts} if profile else {}),
    }


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("model_name", help="the model to start from")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps to time, after two to warm up (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=128, help="triplets per step (default: %(default)s)")
    parser.add_argument(
        "--mini_batch_size", type=int, help="texts encoded at once under GradCache, in all but the plain runs"
    )
    parser.add_argument(
        "--rows",
        type=int,
        help="repeat the data to this number of rows, with the number of the repetition before each text",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds, one run of each kind each (default: 1 2 3)"
    )
    parser.add_argument("--epoch", action="store_true", help="train for a full epoch instead of --steps")
    parser.add_argument(
        "--runs",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        metavar="KIND",
        help=f"kinds of run, from {KINDS} (default: all)",
    )
    parser.add_argument("--profile", action="store_true", help="also profile one more step of each run")
    options = parser.parse_args(argv)
    if options.profile and options.epoch:
        parser.error("--profile and --epoch cannot be combined")

    import torch

    on_gpu = torch.cuda.is_available()
    record = start_record(__file__, options)
    shared = {k: v for k, v in vars(options).items() if k not in ("output_dir", "seeds", "runs")}
    results: list[dict] = []
    for seed in options.seeds:
        for kind in options.runs:
            arguments = {"kind": kind, "seed": seed, **shared}
            results.append(train_once(**arguments) if on_gpu else measure_in_new_process(train_once, **arguments))
            speed, memory = results[-1]["triplets_per_s"], results[-1]["peak_memory_gib"]
            logger.info("%s, seed %d: %.1f triplets/s, %.2f GiB", kind, seed, speed, memory)
            record.write(results=results)
    finish(record, report(options.model_name, options.batch_size, results))


def median_of(results: list[dict], key: str) -> float:
    return statistics.median(result[key] for result in results)


def median_ratio(results: list[dict], plain: list[dict], key: str) -> str:
    """Return the median over the seeds of the ratio to the plain run's value."""
    return f"{statistics.median(a[key] / b[key] for a, b in zip(results, plain, strict=True)):.2f}"


def report(model_name: str, batch_size: int, results: list[dict]) -> str:
    """Return a report in Markdown: medians over the seeds, ratios to the plain run of the same seed, and STS-B scores."""
    by_kind: dict[str, list[dict]] = {}
    for result in results:
        by_kind.setdefault(result["run"], []).append(result)
    plain = by_kind.get(PLAIN)
    rows = []
    for kind, runs in by_kind.items():
        compared = kind != PLAIN and plain is not None
        share = statistics.median(run["tflops"] / run["ceiling_tflops"] for run in runs)
        rows.append(
            [
                kind,
                runs[0]["precision"],
                f"{median_of(runs, 'triplets_per_s'):.1f}",
                median_ratio(runs, plain, "triplets_per_s") if compared else "1",
                f"{median_of(runs, 'peak_memory_gib'):.2f}",
                median_ratio(runs, plain, "peak_memory_gib") if compared else "1",
                f"{100 * share:.0f}%",
                f"{statistics.median(statistics.mean(run['losses'][-LAST_LOSSES:]) for run in runs):.4f}",
            ]
        )
    head = ["run", "precision", "triplets/s", "speed relative to plain", "peak memory, GiB"]
    first = results[0]
    last = min(LAST_LOSSES, *(len(run["losses"]) for run in results))
    logged = "losses" if first["device"] == "cpu" else "logged losses"  # on a GPU only every tenth is logged
    head += ["memory relative to plain", "share of the matrix-product ceiling", f"mean of the last {last} {logged}"]
    number = len(by_kind[first["run"]])
    runs_of_each = f"{number} runs of each kind in turn" if number > 1 else "1 run of each kind"
    text = (
        f"{model_name}, {first['device'].upper()}, batch size {batch_size}, {first['steps'] - WARM_UP} timed steps, "
        f"{runs_of_each}, {first['tokens_per_triplet']} tokens per triplet. "
        f"Medians over the runs.\n\n{markdown_table(head, rows, text_columns=2)}"
    )
    if all("profile" in result for result in results):
        text += f"\n{profile_table(by_kind)}"
    if all(result["sts"] for result in results):
        text += f"\n{sts_table(by_kind)}"
    return text


def profile_table(by_kind: dict[str, list[dict]]) -> str:
    """Return a table of where the time of a step goes: the median of each part's share over the seeds, by kind of run."""
    shares = {
        kind: {part: statistics.median(run["profile"].get(part, 0) for run in runs) for part in [*PARTS, "other"]}
        for kind, runs in by_kind.items()
    }
    rows = [[part, *(f"{100 * of_kind[part]:.1f}%" for of_kind in shares.values())] for part in [*PARTS, "other"]]
    return "Where the time of a step goes (median over one profiled step of each run):\n\n" + markdown_table(
        ["part", *shares], rows
    )


def sts_table(by_kind: dict[str, list[dict]]) -> str:
    """Return a table of the STS-B test scores of each kind of run, by dimension."""
    prefix, suffix = "sts-test-", "_spearman_cosine"
    scores = next(iter(by_kind.values()))[0]["sts"]
    dims = [key.removeprefix(prefix).removesuffix(suffix) for key in scores if key.startswith(prefix)]
    rows = []
    for kind, runs in by_kind.items():
        by_run = [[100 * run["sts"][f"{prefix}{dim}{suffix}"] for dim in dims] for run in runs]
        means = [statistics.mean(of_run) for of_run in by_run]
        cells = [f"{statistics.mean(of_dim):.2f}" for of_dim in zip(*by_run, strict=True)]
        rows.append([kind, *cells, f"{statistics.mean(means):.2f}", f"{min(means):.2f} to {max(means):.2f}"])
    return (
        "STS-B test, Spearman × 100, after these steps, mean over the seeds. Range: each seed has a mean over the dimensions; these are "
        "the lowest and the highest.\n\n" + markdown_table(["run", *dims, "mean", "range"], rows)
    )


if __name__ == "__main__":
    run(main)
