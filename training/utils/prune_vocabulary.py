"""Prunes the vocabulary to the pieces that the training texts use. Single characters are kept too, so that
almost all other text can still be tokenised without unknown tokens.

Most parameters of a small multilingual model are the vectors of a vocabulary for a hundred languages: 96 of the 118 million of
multilingual-e5-small. A text whose pieces all remain is segmented as before, and its embedding is bit-identical. A text that used
removed pieces is segmented into smaller pieces. (Abdaoui et al., Load What You Need, 2020, https://arxiv.org/abs/2010.05609,
reduce multilingual BERT in this way.)
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from common.errors import RunError
from training.utils.vocabulary import CONTINUES, _backend, _keep_exactly_when_saved, _unpadded

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

STARTS = "▁"  # marks a Unigram piece that starts a word
BATCH = 10_000  # texts tokenised at a time
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Pruning:
    """The sizes before and after pruning.

    Attributes:
        pieces_before, pieces_after: Rows of the embedding table.
        parameters_before, parameters_after: Parameters of the model.
    """

    pieces_before: int
    pieces_after: int
    parameters_before: int
    parameters_after: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def prune_vocabulary(model: SentenceTransformer, texts: Iterable[str], keep_characters: bool = True) -> Pruning:
    """Remove the pieces that no text needs from the model's vocabulary, with their vectors.

    The following pieces remain: the pieces of ``texts``; the pieces of each word of ``texts`` on its own, as written, in lower
    case, capitalised and in capitals; all special and added tokens; by default, single-character pieces; and the Unigram piece
    with the lowest score, because the score of an unknown character is the lowest score minus a constant. Segmentation chooses
    the best (Unigram) or the longest (WordPiece) of the available pieces, so a segmentation into remaining pieces does not
    change.

    Args:
        model: A transformer with a Unigram or WordPiece tokenizer; it is changed in place.
        texts: The training texts.
        keep_characters: Keep every single-character piece, so that almost all text in other languages and
            scripts can still be tokenised without unknown tokens.

    Returns:
        The sizes before and after.

    Raises:
        RunError: The model has another kind of tokenizer.
    """
    import torch

    backend = _backend(model, "--prune_vocabulary")
    state = json.loads(backend.to_str())
    kind = state["model"].get("type")
    if kind not in ("Unigram", "WordPiece"):
        detail = "byte-level BPE" if kind == "BPE" and "ByteLevel" in json.dumps(state["pre_tokenizer"]) else kind
        reason = ", whose merges build on each other" if kind == "BPE" else ""
        raise RunError(
            f"--prune_vocabulary needs a Unigram or WordPiece tokenizer, but this model's is {detail}{reason}: "
            "remove the flag"
        )
    transformer = model[0].auto_model
    table = transformer.get_input_embeddings()
    before = sum(parameter.numel() for parameter in model.parameters())

    used = used_ids(_unpadded(backend), texts)
    used |= _always_kept(state, keep_characters)
    kept = sorted(index for index in used if index < len(table.weight))
    new_ids = {old: new for new, old in enumerate(kept)}

    state = _renumber(state, new_ids)
    rows = len(table.weight)
    smaller = torch.nn.Embedding(len(kept), table.embedding_dim, device=table.weight.device, dtype=table.weight.dtype)
    with torch.no_grad():
        smaller.weight.copy_(table.weight[torch.tensor(kept, device=table.weight.device)])
    smaller.padding_idx = new_ids.get(table.padding_idx)
    transformer.set_input_embeddings(smaller)
    config = transformer.config
    config.vocab_size = len(kept)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id"):
        if isinstance(value := getattr(config, name, None), int):
            setattr(config, name, new_ids.get(value))

    from tokenizers import Tokenizer

    model.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    _keep_exactly_when_saved(model)  # otherwise transformers rebuilds it from the original's files
    after = sum(parameter.numel() for parameter in model.parameters())
    logger.info(
        "vocabulary: %d of %d pieces kept, %.1f of %.1f million parameters", len(kept), rows, after / 1e6, before / 1e6
    )
    return Pruning(rows, len(kept), before, after)


def used_ids(tokenizer: Tokenizer, texts: Iterable[str]) -> set[int]:
    """Return the ids of the pieces in ``texts`` and in each of their words: as written, in lower case, capitalised, in capitals."""
    used: set[int] = set()
    words: set[str] = set()

    def add(batch: list[str]) -> None:
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            used.update(encoding.ids)

    remaining = iter(texts)
    while batch := list(islice(remaining, BATCH)):
        add(batch)
        for text in batch:
            words.update(WORD.findall(text))
    forms = sorted({form for word in words for form in (word, word.lower(), word.capitalize(), word.upper())})
    for start in range(0, len(forms), BATCH):
        add(forms[start : start + BATCH])
    return used


def count_unknown(tokenizer: Tokenizer, texts: Iterable[str]) -> int:
    """Count the unknown tokens that ``tokenizer`` produces for ``texts``."""
    state = json.loads(tokenizer.to_str())["model"]
    unknown = state.get("unk_id")
    if unknown is None:
        unknown = tokenizer.token_to_id(state.get("unk_token"))
    count, remaining = 0, iter(texts)
    while batch := list(islice(remaining, BATCH)):
        count += sum(e.ids.count(unknown) for e in tokenizer.encode_batch(batch, add_special_tokens=False))
    return count


def _always_kept(state: dict[str, Any], keep_characters: bool) -> set[int]:
    """Return the ids that always remain."""
    ids = {token["id"] for token in state["added_tokens"]}
    for token in _special_tokens(state):
        ids.update(token["ids"])
    vocabulary = state["model"]["vocab"]
    if state["model"]["type"] == "Unigram":
        if state["model"]["unk_id"] is not None:
            ids.add(state["model"]["unk_id"])
        ids.add(min(range(len(vocabulary)), key=lambda index: vocabulary[index][1]))
        pieces = [(piece.removeprefix(STARTS), index) for index, (piece, _) in enumerate(vocabulary)]
    else:
        ids.add(vocabulary[state["model"]["unk_token"]])
        pieces = [(piece.removeprefix(CONTINUES), index) for piece, index in vocabulary.items()]
    if keep_characters:
        ids.update(index for piece, index in pieces if len(piece) <= 1)
    return ids


def _special_tokens(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the special tokens that a template adds to each text."""
    processors = state["post_processor"] or {}
    processors = processors.get("processors", [processors])
    return [token for processor in processors for token in processor.get("special_tokens", {}).values()]


def _renumber(state: dict[str, Any], new_ids: dict[int, int]) -> dict[str, Any]:
    """Reduce a tokenizer's state to the pieces in ``new_ids``, with their new ids."""
    inner = state["model"]
    if inner["type"] == "Unigram":
        inner["vocab"] = [entry for index, entry in enumerate(inner["vocab"]) if index in new_ids]
        if inner["unk_id"] is not None:
            inner["unk_id"] = new_ids[inner["unk_id"]]
    else:
        inner["vocab"] = {piece: new_ids[index] for piece, index in inner["vocab"].items() if index in new_ids}
    for token in state["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    for token in _special_tokens(state):
        token["ids"] = [new_ids[index] for index in token["ids"]]
    post = state["post_processor"] or {}
    for processor in post.get("processors", [post]):
        for key in ("sep", "cls"):  # in the post-processors of BERT and RoBERTa
            if isinstance(processor.get(key), list):
                processor[key][1] = new_ids[processor[key][1]]
    return state
