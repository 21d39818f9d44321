"""Score models on MTEB tasks at every Matryoshka dimension, from one encode.

    python evaluation/evaluate_mteb.py --model_name Omartificial-Intelligence-Space/GATE-AraBert-v0
    python evaluation/evaluate_mteb.py --model_name output/my-model/final --subsets ar-ar en-ar en-en

Writes mteb's result files, summary.csv, a table and a plot into --output_dir. Every score equals that of
SentenceTransformer(model, truncate_dim=d) in mteb.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.config import as_dict, check_dims, default, fit_dims, load_config
from common.errors import RunError, UsageError, run
from common.script import set_up_logging
from evaluation.utils.options import MTEBConfig, STSConfig


def main(argv: list[str] | None = None) -> None:
    config, chosen = load_config(MTEBConfig, "eval_config.json", __doc__, argv, siblings=(STSConfig,))
    if not config.model_name:
        raise UsageError("--model_name is missing: a model's name on the Hub or its folder")
    if not config.tasks:
        raise UsageError("--tasks is empty")
    check_dims("--dims", config.dims)
    set_up_logging()

    import logging

    import mteb

    from common.records import RunRecord
    from evaluation.utils.embeddings import EmbeddingStore, cache_folder
    from evaluation.utils.evaluation_utils import get_task, identify, load_model, load_task_data
    from evaluation.utils.mteb_encoder import TruncatedEncoder
    from evaluation.utils.summary import write_outputs

    logger = logging.getLogger(__name__)
    output_dir = Path(config.output_dir)
    identities = [identify(name) for name in config.model_name]
    default_subsets = default("eval_config.json", "subsets")
    tasks = [get_task(name, config.subsets, default_subsets) for name in config.tasks]
    for task in tasks:
        load_task_data(task)

    record = RunRecord(
        output_dir / "run.json",
        as_dict(config),
        models={identity.name: identity.revision for identity in identities},
        datasets={
            task.metadata.name: task.metadata.dataset
            | {"rows": {s: {k: len(v) for k, v in task.dataset[s].items()} for s in task.hf_subsets}}
            for task in tasks
        },
    )
    results = mteb.ResultCache(output_dir / "mteb")
    rows: list[dict] = []
    encoded = {}
    for identity in identities:
        model = load_model(identity.source, identity, config.dtype)
        dims = fit_dims(f"--dims with {identity.name}", config.dims, model.get_embedding_dimension(), "dims" in chosen)
        store = EmbeddingStore(model, cache_folder(output_dir, identity, config.dtype), config.batch_size)
        if config.overwrite:
            store.clear()
        for dim in dims:
            encoder = TruncatedEncoder(store, identity, dim, config.dtype)
            found = mteb.evaluate(
                encoder,
                tasks,
                cache=results,
                overwrite_strategy="always" if config.overwrite else "only-missing",
                encode_kwargs={"batch_size": config.batch_size},
                show_progress_bar=False,
                co2_tracker=False,
            )
            for task, result in zip(tasks, found.task_results, strict=True):
                for entry in next(iter(result.scores.values())):
                    if entry["hf_subset"] not in task.hf_subsets:
                        continue
                    if entry["main_score"] != entry["main_score"]:
                        raise RunError(
                            f"{identity.name} on {task.metadata.name} {entry['hf_subset']} at {dim}: the score is undefined (NaN)"
                        )
                    rows.append(
                        {
                            "model": identity.name,
                            "revision": identity.revision,
                            "dtype": config.dtype,
                            "task": task.metadata.name,
                            "subset": entry["hf_subset"],
                            "dim": dim,
                            "n": len(task.dataset[entry["hf_subset"]][next(iter(result.scores))]),
                            "dataset_revision": result.dataset_revision,
                            "mteb_version": result.mteb_version,
                            **{
                                key: value
                                for key, value in entry.items()
                                if key.startswith(("cosine_", "euclidean_", "manhattan_"))
                            },
                        }
                    )
        encoded[identity.name] = store.encoded
        logger.info(
            "%s: %s",
            identity.label,
            f"{store.encoded} texts encoded" if store.encoded else "all results were there already",
        )

    print(write_outputs(output_dir, rows))
    record.finish(texts_encoded=encoded)
    print(f"{output_dir}: summary.csv, table.md, plot.png, and mteb's result files under mteb/")


if __name__ == "__main__":
    run(main)
