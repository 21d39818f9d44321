"""Checks the prompts of a training run against the data, and stores them in the model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from common.data_files import text_columns
from common.errors import UsageError, shortened
from common.keys import suggest
from common.prompts import DOCUMENT, QUERY, document_prompt
from training.utils.options import TrainingConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

NOT_TEXT = ("score", "label")


def choose_prompts(
    config: TrainingConfig, model: SentenceTransformer, datasets: dict[str, Dataset]
) -> str | dict[str, Any] | None:
    """Return the prompts to train with, and store them in ``model``, for the dev scores and the saved model.

    If ``prompts`` is not set, the model's default prompt is returned, because encoding adds it to every text.

    Args:
        datasets: The data sets by their names in the mixture; a single data set by any name.

    Returns:
        The argument ``prompts`` of ``SentenceTransformerTrainingArguments``.

    Raises:
        UsageError: A key of ``prompts`` names neither a data set nor a column, or a prompt is not a string.
    """
    if config.prompts is None:
        return _own_default(model)
    columns = {
        name: [column for column in text_columns(dataset) if column not in NOT_TEXT]
        for name, dataset in datasets.items()
    }
    by_dataset = _by_dataset(config.prompts, columns)
    _save(model, by_dataset, columns)
    return by_dataset if len(datasets) > 1 else next(iter(by_dataset.values()))


def _own_default(model: SentenceTransformer) -> str | None:
    if model.default_prompt_name is not None:
        prompt = model.prompts[model.default_prompt_name]
        logger.info("training with the model's default prompt: %r", prompt)
        if (unused := document_prompt(model)) not in (None, prompt):
            logger.warning(
                "the model is trained with %r before every text, documents included, so not with its prompt for documents, %r; "
                "set 'prompts' to train with both",
                prompt,
                unused,
            )
        return prompt or None
    if stored := {name: text for name, text in model.prompts.items() if text}:
        logger.info(
            "training without a prompt, because the model has prompts (%s) but no default prompt; set 'prompts' to train with one",
            ", ".join(f"{name} {text!r}" for name, text in stored.items()),
        )
    return None


def _by_dataset(prompts: str | dict[str, Any], columns: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """Return, for each data set, the prompt of each column that has one."""
    if isinstance(prompts, str):
        return {name: dict.fromkeys(names, prompts) for name, names in columns.items()}
    known = list(dict.fromkeys(column for names in columns.values() for column in names))
    if any(key in columns and (len(columns) > 1 or key not in known) for key in prompts):
        if unknown := [key for key in prompts if key not in columns]:
            raise UsageError(
                f"prompts: no data set {unknown[0]!r}; choose from {', '.join(columns)}{suggest(unknown[0], columns)}"
            )
        return {
            name: _by_column(f"prompts.{name}", prompts.get(name, {}), columns[name], columns[name]) for name in columns
        }
    return {name: _by_column("prompts", prompts, names, known) for name, names in columns.items()}


def _by_column(where: str, prompts: Any, columns: list[str], known: list[str]) -> dict[str, str]:
    """Return the prompt of each column that has one. The key ``negative`` also applies to negative_1, negative_2 and so on.

    Without it, negatives get the prompt of the positives, because both are documents: a prompt that only positives have would
    tell them apart from negatives.
    """
    if isinstance(prompts, str):
        return dict.fromkeys(columns, prompts)
    if not isinstance(prompts, dict):
        raise UsageError(f"{where} must be a string or an object, not {shortened(prompts)}")
    negatives = [column for column in columns if column.startswith("negative")]
    for key, prompt in prompts.items():
        if key not in known and not (key == "negative" and negatives):
            raise UsageError(f"{where}: no column {key!r}; choose from {', '.join(known)}{suggest(key, known)}")
        if not isinstance(prompt, str):
            raise UsageError(f"{where}: {key!r} must be a string, not {shortened(prompt)}")
    of_negatives = {}
    if (prompt := prompts.get("negative", prompts.get("positive"))) is not None:
        of_negatives = dict.fromkeys(negatives, prompt)
    if prompt and "negative" not in prompts and (without := [name for name in negatives if name not in prompts]):
        logger.info(
            '%s: the negatives (%s) get the prompt of the positives, %r; to train with another, set the prompt of "negative"',
            where,
            ", ".join(without),
            prompt,
        )
    return of_negatives | {column: prompts[column] for column in columns if column in prompts}


def _save(model: SentenceTransformer, by_dataset: dict[str, dict[str, str]], columns: dict[str, list[str]]) -> None:
    """Replace the model's prompts: the first column's becomes the query and default prompt, the second's the document prompt.

    Where some data sets have positives, only these are documents: the second sentence of a graded pair is none. The model's
    other prompts are removed, because it is not trained with them. If the first columns of the data sets have different prompts,
    each of these is stored under its data set's name, there is no default, and the other columns' prompts are not stored.
    """

    def listed(prompts: dict[str, str]) -> str:
        return ", ".join(f"{name} {text!r}" for name, text in prompts.items())

    def prompts_of_column(index: int) -> dict[str, str]:
        return {name: by_dataset[name].get(names[index], "") for name, names in columns.items() if len(names) > index}

    if lost := sorted(name for name, text in model.prompts.items() if text and name not in (QUERY, DOCUMENT)):
        logger.info("the trained model does not keep these prompts of the original model: %s", ", ".join(lost))
    queries, documents = prompts_of_column(0), prompts_of_column(1)
    documents = {name: text for name, text in documents.items() if columns[name][1] == "positive"} or documents
    if len(set(queries.values())) > 1:
        model.prompts = {QUERY: "", DOCUMENT: ""} | queries
        model.default_prompt_name = None
        logger.warning(
            "the data sets have different prompts: the model stores each under its data set's name, without a default, "
            "so the dev scores use no prompt"
        )
        if dropped := {name: text for name, text in documents.items() if text != queries[name]}:
            logger.warning("the model does not store the prompts of documents: %s", listed(dropped))
        return
    query = next(iter(queries.values()))
    document = next(iter(documents.values())) if len(set(documents.values())) == 1 else ""
    if len(set(documents.values())) > 1:
        logger.warning(
            "the documents of the data sets have different prompts, so the model stores none for documents: %s",
            listed(documents),
        )
    model.prompts = {QUERY: query, DOCUMENT: document}
    model.default_prompt_name = QUERY if query else None
    logger.info("training with prompts, which the model keeps: queries %r, documents %r", query, document)
