"""Updates a model's README.md: the scores at each dimension, in the Hugging Face Hub's ``model-index`` metadata, and the
recommended dimension."""

from __future__ import annotations

import logging
from pathlib import Path

from common.errors import RunError, one_line
from common.model_cards import with_recommendation
from common.records import write_atomically
from evaluation.utils.analysis.decision import decide
from evaluation.utils.analysis.model_analysis import ModelAnalysis
from evaluation.utils.report.formatting import METRIC_NAMES
from evaluation.utils.scoring.rows import ScoreRow, set_name

logger = logging.getLogger(__name__)


def update_model_cards(analyses: list[ModelAnalysis], hub_datasets: dict[str, str], max_loss: float) -> None:
    """Call :func:`update_model_card` for each model on disk that is not a baseline.

    Args:
        max_loss: The acceptable drop in score, in points, for which a dimension is recommended.
    """
    for analysis in analyses:
        source = Path(analysis.identity.source)
        if analysis.baseline:
            continue
        if analysis.identity.max_seq_length is not None or analysis.identity.prompts is not None:
            logger.warning(
                "%s: its card is not changed, because scores with --max_seq_length or --prompts do not belong there",
                source,
            )
        elif source.is_dir():
            option = decide([analysis], max_loss).option  # for this model alone, whatever it was compared with
            recommended = None if option is None else option.dim
            update_model_card(source, analysis.identity.name, analysis.scored_rows, hub_datasets, recommended)
        else:
            logger.warning("%s is not a folder on disk: its card is not changed", source)


def update_model_card(
    folder: Path, name: str, rows: list[ScoreRow], hub_datasets: dict[str, str], recommended: int | None = None
) -> Path:
    """Write scores into ``README.md``, keeping its text, its other metadata and the results of other tasks.

    The only text that changes is the section "Fewer dimensions", which training wrote: it now names the recommended dimension.

    The model's identity stays the same, because it does not depend on README.md.

    Args:
        folder: The model's folder.
        name: The model's name, used if the card does not state one.
        rows: The model's rows that have a score.
        hub_datasets: The Hub data set of each task. For a task that is not in it, the card states the task's name.
        recommended: The dimension to recommend, if any.

    Raises:
        RunError: The card's metadata cannot be read; the card is not changed.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    path = folder / "README.md"
    try:
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False) if path.exists() else None
    except Exception as error:  # the parsers of YAML and of the results can raise anything
        raise RunError(f"{path}: its metadata cannot be read ({one_line(error, 120)})") from None
    if card is None:
        card = ModelCard.from_template(
            ModelCardData(model_name=name), template_str="---\n{{ card_data }}\n---\n\n# {{ model_name }}\n"
        )
    results = []
    for row in rows:
        metric = METRIC_NAMES.get(row.metric, row.metric)
        results.append(
            EvalResult(
                task_type=_task_type(row.task_type),
                task_name=row.task_type,
                dataset_type=hub_datasets.get(row.task, row.task),
                dataset_name=set_name(row.task, row.subset),
                dataset_config=row.subset,
                dataset_revision=row.dataset_revision,
                metric_type=row.metric,
                metric_name=f"{metric}, {row.dim} dimensions",
                metric_args={"truncate_dim": int(row.dim)},
                metric_value=round(float(row.score), 6),
            )
        )

    def key_of(result: EvalResult) -> tuple[str | None, ...]:
        # the metric's name contains the dimension; scores on another revision of the data are replaced too
        return result.dataset_type, result.dataset_config, result.metric_name

    ours = set(map(key_of, results))
    card.data.eval_results = [r for r in card.data.eval_results or [] if key_of(r) not in ours] + results
    card.data.model_name = card.data.model_name or name
    text = str(card) if recommended is None else with_recommendation(str(card), recommended)
    write_atomically(path, text)
    logger.info("%s: %d results in its model-index", path, len(card.data.eval_results))
    return path


def _task_type(task_type: str) -> str:
    """Return the Hub's name of an mteb task type."""
    known = {"STS": "sentence-similarity", "PairClassification": "sentence-similarity", "Retrieval": "text-retrieval",
             "Reranking": "text-ranking", "Classification": "text-classification"}  # fmt: skip
    return known.get(task_type, "feature-extraction")
