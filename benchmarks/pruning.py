"""The effects of prune_vocabulary, before any training: size, memory, time of a step, scores, and how other texts are tokenised.

    python benchmarks/pruning.py intfloat/multilingual-e5-small --outside mteb/stsbenchmark-sts::test:sentence1

Prunes the vocabulary to the training texts of configs/multilingual.json. A training step contrasts 64 translations at every dimension.
Models with the full and the pruned vocabulary alternate, each in a new process. --outside names texts that are not in the training data, as
path:config:split:column; a second table shows how many of these keep their tokens, and how similar their embeddings are before and
after pruning. Writes pruning.json and pruning.md to --output_dir.
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
from typing import TYPE_CHECKING, Any

from benchmarks.skeleton import finish, make_parser, markdown_table, measure_in_new_process, start_record
from common.config import ROOT, load_config
from common.errors import run

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

RECIPE = ROOT / "configs" / "multilingual.json"
WARM_UP = 2  # steps that the time excludes
BATCH = 64
MOST_TEXTS = 1000  # outside texts per data set
SUBSETS = ("ar-ar", "en-ar", "en-en")  # of STS17


def load_recipe() -> tuple[Any, dict[str, Dataset]]:
    """Return the configuration of the recipe and its training data."""
    from training.utils.data_loading import load_training_data
    from training.utils.options import HybridConfig

    config = load_config(HybridConfig, "", ["--config", str(RECIPE)])
    return config, {name: load_training_data(entry) for name, entry in config.datasets.items()}


def load_one(model_name: str, pruned: bool, datasets: dict[str, Dataset]) -> SentenceTransformer:
    """Load a model, and prune its vocabulary to the texts of ``datasets`` if ``pruned``."""
    from common.models import load_model
    from training.utils.model_utils import texts_of
    from training.utils.prune_vocabulary import prune_vocabulary

    model = load_model(model_name)
    if pruned:
        prune_vocabulary(model, texts_of(datasets.values()))
    return model


def measure(model_name: str, pruned: bool, steps: int) -> dict[str, float]:
    """Return size, load time, peak memory and step time of a model, and its STS17 scores at the dimensions of the recipe."""
    import resource

    from transformers import TrainerCallback, set_seed

    from common.packing import pack
    from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
    from evaluation.utils.scoring.pairs import load_pairs
    from training.utils.losses import make_loss
    from training.utils.trainer import MatryoshkaTrainer
    from training.utils.training_arguments import make_training_arguments

    set_seed(1)
    config, datasets = load_recipe()
    name = next(name for name, entry in config.datasets.items() if entry.loss == "mnrl")
    model = load_one(model_name, pruned, datasets)
    pack(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        start = time.perf_counter()
        load_one(folder, False, {})
        load_s = time.perf_counter() - start
    _, pairs, _ = load_pairs("STS17", None, list(SUBSETS), list(SUBSETS), explicit=True)
    dims = config.matryoshka_dims
    scores = MatryoshkaEvaluator(pairs, dims)(model)

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

    config.max_steps, config.per_device_train_batch_size = steps + WARM_UP, BATCH
    with tempfile.TemporaryDirectory() as folder:
        import torch

        arguments = make_training_arguments(
            config, Path(folder), torch.float32, None, save_strategy="no", disable_tqdm=True
        )
        loss = make_loss(model, config.datasets[name], datasets[name], dims)
        trainer = MatryoshkaTrainer(
            model=model, args=arguments, train_dataset=datasets[name], loss=loss, callbacks=[Clock()]
        )
        trainer.train()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "size_mib": size / 2**20,
        "load_s": load_s,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "step_s": (times[-1] - times[WARM_UP - 1]) / steps,
        **{f"{subset} {dim}": scores[f"{subset}-{dim}_spearman_cosine"] for subset in SUBSETS for dim in dims},
    }


def compare_tokens(model_name: str, outside: list[str]) -> dict[str, dict[str, float]]:
    """Compare the tokens and embeddings of outside texts before and after pruning.

    Args:
        outside: Data sets as ``path:config:split:column``; an empty config is the default one.

    Returns:
        For each data set, the number of texts, the share with the same tokens, the tokens per text and the unknown tokens before
        and after pruning, and the mean cosine similarity of a text's two embeddings.
    """
    import numpy as np

    from common.data_files import load_hub_dataset
    from common.packing import pack
    from training.utils.prune_vocabulary import count_unknown

    _, datasets = load_recipe()
    complete, pruned = (pack(load_one(model_name, flag, datasets)) for flag in (False, True))
    results = {}
    for spec in outside:
        path, name, split, column = spec.split(":")
        texts = list(dict.fromkeys(load_hub_dataset(path, name or None, split)[column]))[:MOST_TEXTS]
        tokens = [[model.tokenizer.tokenize(text) for text in texts] for model in (complete, pruned)]
        before, after = (
            model.encode(texts, normalize_embeddings=True, show_progress_bar=False) for model in (complete, pruned)
        )
        results[spec] = {
            "texts": len(texts),
            "same_tokens": sum(a == b for a, b in zip(*tokens, strict=True)) / len(texts),
            "tokens_before": sum(map(len, tokens[0])) / len(texts),
            "tokens_after": sum(map(len, tokens[1])) / len(texts),
            "unknown_before": count_unknown(complete.tokenizer.backend_tokenizer, texts),
            "unknown_after": count_unknown(pruned.tokenizer.backend_tokenizer, texts),
            "cosine": float(np.mean(np.sum(before * after, axis=1))),
        }
    return results


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("model_name", help="model to prune")
    parser.add_argument("--outside", nargs="*", default=[], help="texts to tokenise, as path:config:split:column")
    parser.add_argument(
        "--steps", type=int, default=10, help="steps to time, after two to warm up (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each model (default: %(default)s)")
    options = parser.parse_args(argv)
    if wrong := [spec for spec in options.outside if spec.count(":") != 3]:
        parser.error(f"--outside {wrong[0]}: use path:config:split:column")

    record = start_record(__file__, options)
    runs: dict[str, list[dict[str, float]]] = {"complete": [], "pruned": []}
    for _ in range(options.repeats):
        for kind, of_kind in runs.items():
            arguments = {"model_name": options.model_name, "pruned": kind == "pruned", "steps": options.steps}
            of_kind.append(measure_in_new_process(measure, **arguments))
            logger.info("%s: %.2f s a step, %.2f GiB", kind, of_kind[-1]["step_s"], of_kind[-1]["peak_memory_gib"])
            record.write(runs=runs)
    outside = {}
    if options.outside:
        outside = measure_in_new_process(compare_tokens, model_name=options.model_name, outside=options.outside)
    finish(record, report(runs, outside), runs=runs, outside=outside)


def report(runs: dict[str, list[dict[str, float]]], outside: dict[str, dict[str, float]]) -> str:
    """Return the tables in Markdown: medians of the runs, and the outside texts."""
    medians = {
        kind: {key: statistics.median(run[key] for run in of_kind) for key in of_kind[0]}
        for kind, of_kind in runs.items()
    }
    lines = [
        ["parameters, millions", *(f"{m['parameters'] / 1e6:.1f}" for m in medians.values())],
        ["size on disk, MiB", *(f"{m['size_mib']:.0f}" for m in medians.values())],
        ["time to load, s", *(f"{m['load_s']:.2f}" for m in medians.values())],
        ["peak memory in training, GiB", *(f"{m['peak_memory_gib']:.2f}" for m in medians.values())],
        ["training step, s", *(f"{m['step_s']:.2f}" for m in medians.values())],
    ]
    lines += [
        [f"STS17 {key}", *(f"{100 * m[key]:.1f}" for m in medians.values())]
        for key in medians["complete"]
        if key.startswith(SUBSETS)
    ]
    text = markdown_table(["", "full vocabulary", "pruned vocabulary"], lines)
    if outside:
        head = [
            "data set",
            "texts",
            "texts with unchanged tokens",
            "tokens per text",
            "unknown tokens",
            "cosine",
        ]
        rows = [
            [
                spec,
                str(r["texts"]),
                f"{100 * r['same_tokens']:.0f}%",
                f"{r['tokens_before']:.1f} → {r['tokens_after']:.1f}",
                f"{r['unknown_before']} → {r['unknown_after']}",
                f"{r['cosine']:.3f}",
            ]
            for spec, r in outside.items()
        ]
        text += f"\n{markdown_table(head, rows)}\n"
        text += (
            "Texts that are not in the training data, before → after pruning. Cosine: the mean similarity of a text's embeddings before and "
            "after pruning.\n"
        )
    return text


if __name__ == "__main__":
    run(main)
