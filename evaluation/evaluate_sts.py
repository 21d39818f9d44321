"""Score models on a sentence similarity task, or on your own pairs, with four similarities at every dimension.

    python evaluation/evaluate_sts.py --model_name output/my-model/final --task STS17
    python evaluation/evaluate_sts.py --model_name output/my-model/final --data my_pairs.csv

Spearman and Pearson correlation for cosine, dot product, Euclidean and Manhattan distance, on the raw prefix of each
embedding, from one encode, and which dimension to deploy. Writes report.html and report.md, summary.csv, a table, a plot
and result files into --output_dir.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.config import as_dict, default, load_config
from common.dims import check_dims
from common.errors import RunError, UsageError, run
from common.script import set_up_logging
from evaluation.utils.options import STS_TASKS, STSConfig


def main(argv: list[str] | None = None) -> None:
    config = load_config(STSConfig, __doc__, argv)
    if not config.model_name:
        raise UsageError("--model_name is missing: a model's name on the Hub or its folder")
    if (config.task is None) == (config.data is None):
        raise UsageError(f"give either --task ({', '.join(STS_TASKS)}) or --data FILE")
    check_dims("--dims", config.dims)
    set_up_logging()

    import logging

    import numpy as np

    from common.data_files import file_hash
    from common.models import check_devices, identify, unique_identities
    from evaluation.utils.calibration import calibration_id, calibration_texts
    from evaluation.utils.evaluation_utils import load_pairs, sts_scores
    from evaluation.utils.outputs import fingerprint, is_done, write_outputs

    logger = logging.getLogger(__name__)
    output_dir = Path(config.output_dir)

    # 1. Whose scores on what, and whether they are there already
    check_devices(config.device)
    compared = unique_identities([identify(name) for name in config.model_name])
    baseline = [] if config.baseline_model is None else [identify(config.baseline_model)]
    identities = unique_identities(compared + baseline)
    fitted_on = None if config.calibration_data is None else calibration_id(config.calibration_data)
    mark = fingerprint(as_dict(config), identities, str(fitted_on), str(file_hash(config.data)))
    if is_done(output_dir, mark) and not config.overwrite and not config.update_model_card:
        print((output_dir / "table.md").read_text(encoding="utf-8"))
        print(f"{output_dir}: these results were there already; --overwrite redoes them. The answer is in report.html")
        return

    from common.data_files import why_undefined
    from common.records import RunRecord, versions
    from evaluation.utils.analysis import analyse, compare_with_first
    from evaluation.utils.embeddings import open_store
    from evaluation.utils.model_card import update_model_cards
    from evaluation.utils.pairs import PairSet, languages_of_name
    from evaluation.utils.summary import display_names, write_result

    task, subsets, dataset_revision = load_pairs(
        config.task, config.data, config.subsets, default("eval_config.json", "subsets"), config.is_set("subsets")
    )
    names = display_names((identity.name, identity.revision) for identity in identities)
    record = RunRecord(
        output_dir / "run.json",
        as_dict(config),
        fingerprint=mark,
        models={name: revision for (_, revision), name in names.items()},
        calibration=fitted_on,
        datasets={
            task: {"revision": dataset_revision, "rows": {name: len(pairs["score"]) for name, pairs in subsets.items()}}
        },
    )
    shared = {"dataset_revision": dataset_revision, "mteb_version": versions().get("mteb")}
    tested = {text for pairs in subsets.values() for column in ("sentence1", "sentence2") for text in pairs[column]}

    # 2. Each model: four similarities at every dimension, then intervals, baselines, precisions, shortlists, errors
    models, encoded = [], {}
    for identity in identities:
        store, dims = open_store(identity, config, output_dir, config.is_set("dims"))
        who = {"model": identity.name, "revision": identity.revision, "dtype": config.dtype}
        rows, unscored, sets = [], [], []
        for subset, pairs in subsets.items():
            first, second = (store.encode(pairs[column]) for column in ("sentence1", "sentence2"))
            undefined, before = why_undefined(pairs["score"]), len(unscored)
            for dim in dims:
                row = who | {"task": task, "subset": subset, "dim": dim, "n": len(pairs["score"]), **shared,
                             "task_type": "STS", "metric": "cosine_spearman"}  # fmt: skip
                try:
                    if undefined:
                        raise RunError(undefined)
                    scores = sts_scores(first[:, :dim], second[:, :dim], pairs["score"])
                    rows.append(row | {"score": scores["cosine_spearman"], **scores})
                except RunError as error:
                    unscored.append(row | {"note": str(error)})
                    if dim == dims[0]:  # with no score at full width there is nothing to compare with
                        undefined = str(error)
            if len(unscored) == before:
                sets.append(PairSet(task, subset, languages_of_name(subset), "spearman", pairs["sentence1"], pairs["sentence2"],
                                    np.asarray(pairs["score"], dtype=float), first, second))  # fmt: skip
        results = output_dir / "sts" / identity.name.replace("/", "__") / identity.revision
        precision = "" if config.dtype == "float32" else f"dtype_{config.dtype}__"  # as mteb names them
        for dim in dims:
            folder = results / f"{precision}embed_dim_{dim}"
            entries = [{"hf_subset": r["subset"], "n": r["n"]} | {k: v for k, v in r.items() if k.endswith(("spearman", "pearson"))}
                       for r in rows if r["dim"] == dim]  # fmt: skip
            if entries:
                result = {"task_name": task, **who, "embed_dim": dim, **shared, "scores": entries}
                write_result(folder / f"{task}.json", result)
        calibration = None
        if config.calibration_data is not None:
            calibration = lambda: store.encode(calibration_texts(config.calibration_data, tested))  # noqa: B023, E731
        models.append(
            analyse(identity, dims, rows, sets, calibration, baseline=identity not in compared, unscored=unscored)
        )
        store.close()
        encoded[names[identity.name, identity.revision]] = store.encoded
        logger.info(
            "%s: %s",
            identity.label,
            f"{store.encoded} texts encoded" if store.encoded else "all texts were encoded already",
        )
    compare_with_first(models)

    # 3. Summary, table, plot, report, and the models' cards
    note = "" if config.task else f"These scores are of {config.data}, not of MTEB."
    title = f"Evaluation of {', '.join(identity.name for identity in identities)}"
    print(write_outputs(output_dir, models, title, config.calibration_data, record, note, texts_encoded=encoded))
    if config.update_model_card:
        update_model_cards(models, {})
    if note:
        print(note)
    print(
        f"{output_dir}: report.html and report.md open with the answer; summary.csv, table.md, plot.png; result files under sts/"
    )


if __name__ == "__main__":
    run(main)
