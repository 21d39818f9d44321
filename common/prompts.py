"""Prompts: the text that a model expects before each input, such as ``query: `` (Wang et al., 2022,
https://arxiv.org/abs/2212.03533)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

QUERY, DOCUMENT = "query", "document"
DOCUMENT_PROMPTS = (DOCUMENT, "passage", "corpus")  # names under which models store a document's prompt


def set_prompts(model: SentenceTransformer, prompts: str | dict[str, str]) -> None:
    """Replace the prompts of a model.

    Args:
        prompts: A string, which becomes the default prompt for every text; or prompts by name, without a default.
    """
    if isinstance(prompts, str):
        model.prompts, model.default_prompt_name = {QUERY: prompts, DOCUMENT: prompts}, QUERY
    else:
        model.prompts, model.default_prompt_name = {QUERY: "", DOCUMENT: ""} | prompts, None


def document_prompt(model: SentenceTransformer) -> str | None:
    """Return the prompt that a model stores for documents, or None if it has none."""
    return next((text for name in DOCUMENT_PROMPTS if (text := model.prompts.get(name))), None)


def prompt_name(prompts: dict[str, str | None] | None, task: str, task_type: str, role: str | None) -> str | None:
    """Return the name of the prompt that mteb chooses for a task, or None if no prompt applies.

    Args:
        prompts: The model's prompts; empty prompts are ignored.
        task: The task's name, such as ``STS17``.
        task_type: The task's type, such as ``STS``.
        role: ``query`` or ``document`` in retrieval, None elsewhere.
    """
    order = [f"{task}-{role}", task, f"{task_type}-{role}", task_type, str(role)]
    return next((name for name in order if (prompts or {}).get(name)), None)


def task_prompt(model: SentenceTransformer, task: str, task_type: str, role: str | None) -> str | None:
    """Return the text of a model's prompt for a task, or None if no prompt applies; the arguments are those of :func:`prompt_name`."""
    name = prompt_name(model.prompts, task, task_type, role)
    return None if name is None else model.prompts[name]
