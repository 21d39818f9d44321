"""Does the main work of both evaluation scripts: scores models at every dimension, analyses the scores, and writes the results."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.config import as_dict
from common.dims import fit_dims
from common.errors import check_outside, check_writable
from common.models import ModelIdentity, check_devices, identify, unique_identities
from common.prompts import prompt_name, task_prompt
from common.records import RunRecord
from evaluation.utils.analysis.calibration import calibration_id, calibration_texts
from evaluation.utils.analysis.cost import encode_ms, search_times
from evaluation.utils.analysis.decision import decide
from evaluation.utils.analysis.model_analysis import ModelAnalysis, analyse, compare_with_first
from evaluation.utils.phases import Phases
from evaluation.utils.report.formatting import display_names
from evaluation.utils.report.model_card import update_model_cards
from evaluation.utils.report.outputs import is_done, run_fingerprint, write_outputs
from evaluation.utils.scoring.embeddings import open_store
from evaluation.utils.scoring.rows import ScoredModel

if TYPE_CHECKING:
    from evaluation.utils.options import EvalConfig
    from evaluation.utils.scoring.embeddings import EmbeddingStore
    from evaluation.utils.scoring.scorer import Scorer

logger = logging.getLogger(__name__)


def run_evaluation(config: EvalConfig, scorer: Scorer) -> None:
    """Evaluate the models in ``config`` with ``scorer``, and print the table of their scores.

    Raises:
        UsageError: A device, task, subset, file or dimension does not exist.
        RunError: A model or data set cannot be loaded, or nothing has a score.
    """
    output_dir, phases = Path(config.output_dir), Phases()
    check_writable("--output_dir", output_dir)

    # 1. The models, and whether their results already exist
    check_devices(config.device)
    check_outside("--output_dir", output_dir, [*config.model_name, config.baseline_model])
    compared = unique_identities([identify(name, config.max_seq_length, config.prompts) for name in config.model_name])
    baselines = (
        []
        if config.baseline_model is None
        else [identify(config.baseline_model, config.max_seq_length, config.prompts)]
    )
    identities = unique_identities(compared + baselines)
    fitted_on = None if config.calibration_data is None else calibration_id(config.calibration_data)
    fingerprint = run_fingerprint(as_dict(config), identities, str(fitted_on), *scorer.data_files)
    if is_done(output_dir, fingerprint) and not config.overwrite and not config.update_model_card:
        print((output_dir / "table.md").read_text(encoding="utf-8"))
        print(
            f"{output_dir}: these results already exist; use --overwrite to compute them again. The answer is in report.html"
        )
        return

    # 2. The test data, and the record of the run
    with phases.measure("test data"):
        datasets = scorer.load_data()
    _report_unused_prompts(config.prompts, scorer.encoded_as())
    names = display_names((identity.name, identity.revision) for identity in identities)
    record = RunRecord(
        output_dir / "run.json",
        as_dict(config),
        fingerprint=fingerprint,
        models={name: revision for (_, revision), name in names.items()},
        calibration=fitted_on,
        datasets=datasets,
    )

    # 3. Each model: its scores at every dimension, then intervals, baselines, precisions, shortlists, errors
    analyses: list[ModelAnalysis] = []
    texts_encoded: dict[str, Any] = {}
    for identity in identities:
        analysis, counts = _evaluate_model(config, scorer, identity, phases, baseline=identity not in compared)
        analyses.append(analysis)
        texts_encoded[names[identity.name, identity.revision]] = scorer.encoded_counts(*counts)

    # 4. What to deploy for the acceptable drop in score, and the cost of each dimension
    with phases.measure("analysis"):
        compare_with_first(analyses)
        decision = decide(analyses, config.max_loss)
        search = search_times({dim for analysis in analyses for dim in analysis.dims})
    costs = {
        "encode_ms": {names[a.identity.name, a.identity.revision]: a.encode_ms for a in analyses},
        "searched_vectors": search.vectors,
        "search_ms": {f"{dim} {precision}": ms for (dim, precision), ms in search.ms.items()},
    }

    # 5. Summary, table, plot, report, and the models' cards
    print(
        write_outputs(
            output_dir,
            analyses,
            decision,
            search,
            config.calibration_data,
            record,
            phases,
            scorer.warning,
            texts_encoded=texts_encoded,
            costs=costs,
        )
    )
    if config.update_model_card:
        update_model_cards(analyses, scorer.hub_datasets(), config.max_loss)
    if scorer.warning:
        print(scorer.warning)
    print(
        f"{output_dir} contains report.html and report.md (both open with the answer), summary.csv, table.md, plot.png, and "
        f"{scorer.result_files}"
    )


def _report_unused_prompts(prompts: str | dict[str, str] | None, encoded_as: list[tuple[str, str, str | None]]) -> None:
    if isinstance(prompts, dict):
        used = {prompt_name(prompts, *task) for task in encoded_as}
        for name in [name for name in prompts if name not in used]:
            tasks = ", ".join(dict.fromkeys(f"{task} ({task_type})" for task, task_type, _ in encoded_as))
            logger.warning("--prompts: %r matches none of the tasks: %s", name, tasks)


def encode_like_tasks(
    store: EmbeddingStore, texts: list[str], encoded_as: list[tuple[str, str, str | None]]
) -> np.ndarray:
    """Encode texts with the prompts and roles of the tasks. If these differ, each combination is applied to an equal share of the texts.

    Args:
        encoded_as: See :meth:`evaluation.utils.scoring.scorer.Scorer.encoded_as`.

    Returns:
        A float32 array of shape ``[texts, width]``; its rows may not be in the order of ``texts``.
    """
    ways = list(dict.fromkeys((task_prompt(store.model, *task), task[2]) for task in encoded_as))
    parts = [
        store.encode(texts[first :: len(ways)], prompt=prompt, role=role)
        for first, (prompt, role) in enumerate(ways[: len(texts)])
    ]
    return np.concatenate(parts)


def _evaluate_model(
    config: EvalConfig, scorer: Scorer, identity: ModelIdentity, phases: Phases, baseline: bool
) -> tuple[ModelAnalysis, tuple[int, int]]:
    """Score and analyse one model. Returns the analysis, and how many texts were encoded for scoring and for calibration."""
    scored_model = ScoredModel(identity, config.dtype)
    with phases.measure("models"):
        store = open_store(scored_model, config)
    with store:
        store.phases = phases
        dims = fit_dims(f"--dims with {identity.name}", config.dims, store.width, config.is_set("dims"))
        if config.overwrite:
            store.clear()
        with phases.measure("scores"):
            scores = scorer.score(store, scored_model, dims)
        for_scores = store.encoded

        def embed_calibration() -> np.ndarray:
            texts = calibration_texts(config.calibration_data, scores.test_texts)
            logger.info("for PCA and the int8 ranges: %d texts of %s", len(texts), config.calibration_data)
            return encode_like_tasks(store, texts, scorer.encoded_as())

        calibration = None if config.calibration_data is None else embed_calibration
        with phases.measure("analysis"):
            analysis = analyse(identity, dims, scores, calibration, baseline)
            analysis.encode_ms = encode_ms(store.model, scores.test_texts, config.batch_size)
    to_fit_on = store.encoded - for_scores
    logger.info(
        "%s: %s",
        identity.label,
        f"{store.encoded} texts encoded, {to_fit_on} of them for calibration"
        if store.encoded
        else "all texts had already been encoded",
    )
    return analysis, (for_scores, to_fit_on)
