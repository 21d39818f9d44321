"""Score models on MTEB tasks at every Matryoshka dimension, from one encode, and say which dimension to deploy.

    python evaluation/evaluate_mteb.py --model_name Omartificial-Intelligence-Space/GATE-AraBert-v0
    python evaluation/evaluate_mteb.py --model_name output/my-model/final --subsets ar-ar en-ar en-en
    python evaluation/evaluate_mteb.py --model_name A B --baseline_model C --tasks STS17 STSBenchmark
    python evaluation/evaluate_mteb.py --model_name A --benchmark "MTEB(Multilingual, v2)" --languages ara

Writes report.html and report.md, summary.csv, a table, a plot, and mteb's result files into --output_dir. Every score
equals that of SentenceTransformer(model, truncate_dim=d) in mteb.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.config import as_dict, default, load_config
from common.dims import check_dims
from common.errors import UsageError, run
from common.script import set_up_logging
from evaluation.utils.options import MTEBConfig


def main(argv: list[str] | None = None) -> None:
    config = load_config(MTEBConfig, __doc__, argv)
    if not config.model_name:
        raise UsageError("--model_name is missing: a model's name on the Hub or its folder")
    if config.benchmark is not None and config.is_set("tasks"):
        raise UsageError("--tasks and --benchmark exclude each other")
    if not config.tasks and config.benchmark is None and not config.languages:
        raise UsageError("--tasks is empty")
    check_dims("--dims", config.dims)
    set_up_logging()

    import logging

    from common.models import check_devices, identify, unique_identities
    from evaluation.utils.calibration import calibration_id, calibration_texts
    from evaluation.utils.evaluation_utils import check_subsets, choose_subsets, load_task_data
    from evaluation.utils.outputs import fingerprint, is_done, write_outputs

    logger = logging.getLogger(__name__)
    output_dir = Path(config.output_dir)

    # 1. Whose scores, and whether they are there already
    check_devices(config.device)
    compared = unique_identities([identify(name) for name in config.model_name])
    baseline = [] if config.baseline_model is None else [identify(config.baseline_model)]
    identities = unique_identities(compared + baseline)
    fitted_on = None if config.calibration_data is None else calibration_id(config.calibration_data)
    mark = fingerprint(as_dict(config), identities, str(fitted_on))
    if is_done(output_dir, mark) and not config.overwrite and not config.update_model_card:
        print((output_dir / "table.md").read_text(encoding="utf-8"))
        print(f"{output_dir}: these results were there already; --overwrite redoes them. The answer is in report.html")
        return

    import mteb  # noqa: F401  (imports take seconds: after the answer that needs none)

    from common.records import RunRecord
    from evaluation.utils.analysis import analyse, compare_with_first
    from evaluation.utils.embeddings import open_store
    from evaluation.utils.model_card import update_model_cards
    from evaluation.utils.mteb_scores import MTEBScorer, retrieval_embeddings
    from evaluation.utils.mteb_tasks import choose_tasks, label_of, pair_sets, size_of
    from evaluation.utils.summary import display_names

    # 2. Tasks and their data
    named = config.tasks if config.is_set("tasks") or not config.languages else []
    tasks = choose_tasks(
        named, config.benchmark, config.languages, config.subsets, default("eval_config.json", "subsets")
    )
    if config.is_set("subsets"):
        check_subsets(config.subsets, tasks)
        for task in tasks:  # those of a benchmark or a language too
            task.hf_subsets = choose_subsets(config.subsets, [], list(task.hf_subsets))
    for task in tasks:
        load_task_data(task)

    names = display_names((identity.name, identity.revision) for identity in identities)
    record = RunRecord(
        output_dir / "run.json",
        as_dict(config),
        fingerprint=mark,
        models={name: revision for (_, revision), name in names.items()},
        calibration=fitted_on,
        datasets={
            task.metadata.name: task.metadata.dataset
            | {
                "rows": {
                    label_of(task, s, split): size_of(task, s, split)
                    for s in task.hf_subsets
                    for split in task.eval_splits
                }
            }
            for task in tasks
        },
    )

    # 3. Each model: score at every dimension through mteb, then intervals, baselines, precisions, shortlists, errors
    models, encoded = [], {}
    for identity in identities:
        store, dims = open_store(identity, config, output_dir, config.is_set("dims"))
        scorer = MTEBScorer(store, identity, dims, config.dtype, output_dir, config.batch_size, config.overwrite)
        rows = scorer.score(tasks)
        missing = {(row["task"], row["subset"]) for row in scorer.unscored}
        scored, encoder = store.encoded, scorer.encoder()
        pairs = [found for task in tasks for found in pair_sets(task, encoder) if found.key not in missing]
        calibration = None
        if config.calibration_data is not None:
            tested = {text for one in pairs for text in (*one.sentence1, *one.sentence2)}
            calibration = lambda: store.encode(calibration_texts(config.calibration_data, tested))  # noqa: B023, E731
        queries = {key: found for task in tasks for key, found in scorer.query_estimates(task).items()}
        searches = (
            [] if calibration is None else [found for task in tasks for found in retrieval_embeddings(task, encoder)]
        )
        models.append(
            analyse(
                identity,
                dims,
                rows,
                pairs,
                calibration,
                queries,
                searches,
                baseline=identity not in compared,
                unscored=scorer.unscored,
            )
        )
        store.close()
        encoded[names[identity.name, identity.revision]] = {"tasks": scored, "calibration": store.encoded - scored}
        logger.info(
            "%s: %s",
            identity.label,
            f"{store.encoded} texts encoded, {store.encoded - scored} of them to fit on"
            if store.encoded
            else "all texts were encoded already",
        )
    compare_with_first(models)

    # 4. Summary, table, plot, report, and the models' cards
    title = f"Evaluation of {', '.join(identity.name for identity in identities)}"
    print(write_outputs(output_dir, models, title, config.calibration_data, record, texts_encoded=encoded))
    if config.update_model_card:
        update_model_cards(models, {task.metadata.name: task.metadata.dataset["path"] for task in tasks})
    print(
        f"{output_dir}: report.html and report.md open with the answer; summary.csv, table.md, plot.png; mteb's files under mteb/"
    )


if __name__ == "__main__":
    run(main)
