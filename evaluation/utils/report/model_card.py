"""What an evaluation writes into a model's README: the scores of each dimension as ``model-index`` metadata, as the Hugging
Face Hub reads it, and the recommended dimension."""

from __future__ import annotations

import logging
from pathlib import Path

from common.errors import RunError, one_line
from common.model_cards import with_recommendation
from common.records import write_atomically
from evaluation.utils.analysis.decision import decide
from evaluation.utils.analysis.model_analysis import ModelAnalysis
from evaluation.utils.scoring.rows import ScoreRow, set_name

logger = logging.getLogger(__name__)

METRIC_NAMES = {"cosine_spearman": "Spearman correlation (cosine)", "max_ap": "Average precision (best similarity)"}


def update_model_cards(analyses: list[ModelAnalysis], hub_datasets: dict[str, str], max_loss: float) -> None:
    """:func:`update_model_card` for each model on disk that is not there as a baseline.

    Args:
        max_loss: The loss, in points, for which a dimension is recommended.
    """
    for analysis in analyses:
        source = Path(analysis.identity.source)
        if analysis.baseline:
            continue
        if analysis.identity.max_seq_length is not None or analysis.identity.prompts is not None:
            logger.warning(
                "%s: scores with --max_seq_length or --prompts do not go into its card, which is left as it is", source
            )
        elif source.is_dir():
            option = decide([analysis], max_loss).option  # of this model by itself, whatever it was compared with
            recommended = None if option is None else option.dim
            update_model_card(source, analysis.identity.name, analysis.scored_rows, hub_datasets, recommended)
        else:
            logger.warning("%s is not a folder on disk: its card is left as it is", source)


def update_model_card(
    folder: Path, name: str, rows: list[ScoreRow], hub_datasets: dict[str, str], recommended: int | None = None
) -> Path:
    """Write scores into ``README.md``; its text, its other metadata and the results of other tasks stay.

    Of the text, only the section that training wrote on fewer dimensions changes: it names the recommended one.

    The model's identity does not change: it leaves README.md out.

    Args:
        folder: The model's folder.
        name: What to call the model where the card does not say.
        rows: The model's rows that have a score.
        hub_datasets: The Hub data set of each task; a task without one is named itself.
        recommended: The dimension to recommend, if any.

    Raises:
        RunError: The card's metadata cannot be read; the card is left as it is.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    path = folder / "README.md"
    try:
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False) if path.exists() else None
    except Exception as error:  # whatever the parsers of YAML and of the results raise
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
        # the metric's name holds the dimension; scores of another revision of the data are replaced too
        return result.dataset_type, result.dataset_config, result.metric_name

    ours = set(map(key_of, results))
    card.data.eval_results = [r for r in card.data.eval_results or [] if key_of(r) not in ours] + results
    card.data.model_name = card.data.model_name or name
    text = str(card) if recommended is None else with_recommendation(str(card), recommended)
    write_atomically(path, text)
    logger.info("%s: %d results in its model-index", path, len(card.data.eval_results))
    return path


def _task_type(task_type: str) -> str:
    """The Hub's word for an mteb task type."""
    known = {"STS": "sentence-similarity", "PairClassification": "sentence-similarity", "Retrieval": "text-retrieval",
             "Reranking": "text-ranking", "Classification": "text-classification"}  # fmt: skip
    return known.get(task_type, "feature-extraction")
