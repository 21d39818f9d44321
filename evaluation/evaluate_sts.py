"""Score models on a sentence similarity task, or on your own pairs, with four similarities at every dimension.

    python evaluation/evaluate_sts.py --model_name output/my-model/final --task STS17
    python evaluation/evaluate_sts.py --model_name output/my-model/final --data my_pairs.csv

Spearman and Pearson correlation for cosine, dot product, Euclidean and Manhattan distance, on the raw prefix of each
embedding, from one encode. Writes result files, summary.csv, a table and a plot into --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.config import as_dict, check_dims, default, fit_dims, load_config
from common.errors import RunError, UsageError, run
from common.script import set_up_logging
from evaluation.utils.options import STS_TASKS, MTEBConfig, STSConfig


def main(argv: list[str] | None = None) -> None:
    config, chosen = load_config(STSConfig, "eval_config.json", __doc__, argv, siblings=(MTEBConfig,))
    if not config.model_name:
        raise UsageError("--model_name is missing: a model's name on the Hub or its folder")
    if (config.task is None) == (config.data is None):
        raise UsageError(f"give either --task ({', '.join(STS_TASKS)}) or --data FILE")
    check_dims("--dims", config.dims)
    set_up_logging()

    import logging

    from common.records import RunRecord, versions
    from evaluation.utils.embeddings import EmbeddingStore, cache_folder
    from evaluation.utils.evaluation_utils import identify, load_model, load_pairs, sts_scores
    from evaluation.utils.summary import write_outputs, write_result

    logger = logging.getLogger(__name__)
    output_dir = Path(config.output_dir)
    identities = [identify(name) for name in config.model_name]
    default_subsets = default("eval_config.json", "subsets")
    task, subsets, dataset_revision = load_pairs(
        config.task, config.data, config.subsets, default_subsets, "subsets" in chosen
    )

    record = RunRecord(
        output_dir / "run.json",
        as_dict(config),
        models={identity.name: identity.revision for identity in identities},
        datasets={
            task: {"revision": dataset_revision, "rows": {name: len(pairs["score"]) for name, pairs in subsets.items()}}
        },
    )
    rows: list[dict] = []
    encoded = {}
    for identity in identities:
        model = load_model(identity.source, identity, config.dtype)
        dims = fit_dims(f"--dims with {identity.name}", config.dims, model.get_embedding_dimension(), "dims" in chosen)
        store = EmbeddingStore(model, cache_folder(output_dir, identity, config.dtype), config.batch_size)
        if config.overwrite:
            store.clear()
        for dim in dims:
            entries = []
            for subset, pairs in subsets.items():
                first, second = (store.encode(pairs[column], dim) for column in ("sentence1", "sentence2"))
                try:
                    scores = sts_scores(first, second, pairs["score"])
                except RunError as error:
                    raise RunError(f"{identity.name} on {task} {subset} at {dim}: {error}") from None
                entries.append({"hf_subset": subset, "n": len(pairs["score"]), **scores})
            shared = {"dataset_revision": dataset_revision, "mteb_version": versions().get("mteb")}
            path = (
                output_dir
                / "sts"
                / identity.name.replace("/", "__")
                / identity.revision
                / f"embed_dim_{dim}"
                / f"{task}.json"
            )
            write_result(path, {"task_name": task, "model": identity.name, "revision": identity.revision, "embed_dim": dim,
                                "dtype": config.dtype, **shared, "scores": entries})  # fmt: skip
            for entry in entries:
                rows.append(
                    {
                        "model": identity.name,
                        "revision": identity.revision,
                        "dtype": config.dtype,
                        "task": task,
                        "subset": entry["hf_subset"],
                        "dim": dim,
                        **shared,
                        **{key: value for key, value in entry.items() if key != "hf_subset"},
                    }
                )
        encoded[identity.name] = store.encoded
        logger.info(
            "%s: %s",
            identity.label,
            f"{store.encoded} texts encoded" if store.encoded else "all texts were encoded already",
        )

    note = "" if config.task else f"The scores are of {config.data}, not of MTEB."
    print(write_outputs(output_dir, rows, note))
    if note:
        print(note)
    record.finish(texts_encoded=encoded)
    print(f"{output_dir}: summary.csv, table.md, plot.png, and a result file for each dimension under sts/")


if __name__ == "__main__":
    run(main)
