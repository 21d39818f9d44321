"""Adapts a tokenizer to another script: normalises Arabic, and adds word pieces for words that it splits into letters.

The tokenizer of an English model splits Arabic into single letters, which makes sentences long and hard to learn. Here the words of
the training texts become word pieces. If the training data has translations, the vector of a new piece is initialised from the
vectors of its translations, so that the model understands part of the new language before the first step.
"""

from __future__ import annotations

import json
import logging
import re
import struct
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, islice
from typing import TYPE_CHECKING

import numpy as np

from common.errors import RunError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

CONTINUES = "##"  # marks a WordPiece piece inside a word
# Letters that are written interchangeably in Arabic, and the tatweel, which only stretches a word
VARIANTS = {"\u0640": "", "أ": "ا", "إ": "ا", "آ": "ا", "ٱ": "ا", "ى": "ي"}
MARKS = "[\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed]"  # vowel signs and other marks above and below the letters
PRESENTATION_FORMS = ((0xFB50, 0xFDFF), (0xFE70, 0xFEFF))  # blocks A and B of Unicode
MAX_PAIRS = 100_000  # translations for learning the alignment
ROUNDS = 8  # iterations of expectation maximisation


def normalize_arabic(model: SentenceTransformer) -> None:
    """Make the model's tokenizer remove Arabic diacritics and the tatweel, replace every form of alef with the bare alef and alef
    maqsura with ya, and replace presentation forms (letters and ligatures in old software and PDF files) with ordinary letters.

    The rules become part of the tokenizer and are saved with the model, so that training and inference agree.

    Raises:
        RunError: The tokenizer is not one of the ``tokenizers`` library.
    """
    from tokenizers import Regex, normalizers

    backend = _backend(model, "--normalize_arabic")
    # marks first, because the table replaces a letter together with its mark
    rules = [normalizers.Replace(Regex(MARKS), ""), normalizers.Precompiled(character_table(presentation_forms()))]
    rules += [normalizers.Replace(letter, plain) for letter, plain in VARIANTS.items()]
    backend.normalizer = normalizers.Sequence([*rules, *([backend.normalizer] if backend.normalizer else [])])
    _keep_exactly_when_saved(model)


def presentation_forms() -> dict[str, str]:
    """Return the letters of each Arabic presentation form and ligature (their NFKC form), without marks or the tatweel."""
    forms = {}
    for first, last in PRESENTATION_FORMS:
        for form in map(chr, range(first, last + 1)):
            letters = unicodedata.normalize("NFKC", form)
            if letters != form:  # a mark without a letter is encoded as a mark over a space
                forms[form] = re.sub(f"^ (?={MARKS})|\u0640|{MARKS}", "", re.sub(f" (?={MARKS})", "", letters))
    return forms


def character_table(replacements: dict[str, str]) -> bytes:
    """Encode replacements of single characters for the ``Precompiled`` normalizer, as SentencePiece's ``precompiled_charsmap``.

    This normalizer replaces all characters in one pass; hundreds of ``Replace`` normalizers would take hundreds of passes. The
    format has three parts: the size of a trie in bytes; the trie, as a double array of 32-bit units
    (https://github.com/s-yata/darts-clone); and the replacements, each terminated by a zero byte.
    """
    paths = {character.encode(): index for index, character in enumerate(replacements)}
    texts = [text.encode() + b"\0" for text in replacements.values()]
    starts = [0, *accumulate(map(len, texts))]
    nodes = sorted({path[:length] for path in paths for length in range(len(path))})
    block = {
        node: 256 * place for place, node in enumerate(nodes, 1)
    }  # the children of a node are in its block, indexed by their byte
    units = [0] * (256 * (len(nodes) + 1))

    def link(at: int, to: int, byte: int, is_end: bool) -> int:  # an offset is relative to the unit (exclusive or)
        return (at ^ to) << 10 | is_end << 8 | byte

    units[0] = link(0, block[b""], 0, False)
    for node in nodes[1:]:
        at = block[node[:-1]] + node[-1]
        units[at] = link(at, block[node], node[-1], False)
    for path, index in paths.items():
        at = block[path[:-1]] + path[-1]
        units[at] = link(at, len(units), path[-1], True)
        units.append(starts[index] | 1 << 31)
    trie = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(trie)) + trie + b"".join(texts)


def extend_vocabulary(
    model: SentenceTransformer, texts: Iterable[str], size: int, pairs: Iterable[tuple[str, str]] = ()
) -> int:
    """Add word pieces, with vectors, for the words of ``texts`` that the tokenizer splits into single letters.

    The vector of a new piece is the mean of the vectors of the pieces that it is aligned with in the translations among ``pairs``
    (see :func:`align`), weighted by the alignment and scaled to the usual length. Without an alignment, it is the mean of the
    vectors of the pieces that the tokenizer split it into. Text that the tokenizer already splits into words keeps its tokens.
    Minixhofer et al. (WECHSEL, 2022, https://arxiv.org/abs/2112.06598) initialise new rows from translations, with static
    embeddings and a dictionary.

    Args:
        size: The largest number of word pieces to add.
        pairs: Pairs of sentences. A pair is treated as a translation if exactly one side has words split into letters.

    Returns:
        The number of pieces added.

    Raises:
        RunError: The tokenizer is not WordPiece (as in BERT), or splits no word of ``texts`` into letters.
    """
    import torch
    from tokenizers import Tokenizer

    backend = _backend(model, "--extend_vocabulary")
    state = json.loads(backend.to_str())
    if state["model"]["type"] != "WordPiece" or state["model"]["continuing_subword_prefix"] != CONTINUES:
        raise RunError(
            f"--extend_vocabulary needs a WordPiece tokenizer, as in BERT; this model's is {state['model']['type']}: remove the flag"
        )
    before = _unpadded(backend)
    in_letters = words_in_letters(before)
    # added tokens become part of the vocabulary; otherwise loading would renumber them to follow the new pieces
    vocabulary = state["model"]["vocab"] = backend.get_vocab(with_added_tokens=True)
    old = len(vocabulary)
    for piece in learn_pieces((" ".join(words) for text in texts if (words := in_letters(text))), size):
        vocabulary.setdefault(piece, len(vocabulary))
    added = list(vocabulary)[old:]
    if not added:
        raise RunError(
            "--extend_vocabulary: the tokenizer splits no word of the training texts into letters: remove the flag"
        )
    model.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))

    transformer = model[0].auto_model
    transformer.resize_token_embeddings(len(vocabulary), mean_resizing=False)
    weights = transformer.get_input_embeddings().weight
    old_pieces = before.encode_batch([piece.removeprefix(CONTINUES) for piece in added], add_special_tokens=False)
    translations = list(islice(_translations(pairs, in_letters), MAX_PAIRS))
    with torch.no_grad():
        vectors = weights[:old].cpu().numpy()
        initial = np.stack([vectors[encoding.ids].mean(axis=0) for encoding in old_pieces])
        aligned = np.zeros(len(added), dtype=bool)
        if translations:
            alignment = align(_unpadded(model.tokenizer.backend_tokenizer), translations)[old:, :old]
            total = np.asarray(alignment.sum(axis=1)).ravel()
            aligned = total > 0
            mean = (alignment @ vectors)[aligned] / total[aligned, None]
            # a mean of many vectors is shorter than each of them, and the model expects the usual length
            length = np.linalg.norm(vectors, axis=1).mean()
            initial[aligned] = mean * (length / np.linalg.norm(mean, axis=1, keepdims=True))
        weights[old:] = torch.from_numpy(initial)
    logger.info(
        "vocabulary: %d word pieces and %d new ones; %d of the new ones are initialised from their translations in %d sentence pairs",
        old,
        len(added),
        aligned.sum(),
        len(translations),
    )
    return len(added)


def _translations(
    pairs: Iterable[tuple[str, str]], in_letters: Callable[[str], list[str]]
) -> Iterator[tuple[str, str]]:
    """Yield the pairs in which exactly one side has words split into letters; that side comes second."""
    for first, second in pairs:
        if bool(in_letters(first)) != bool(in_letters(second)):
            yield (second, first) if in_letters(first) else (first, second)


def words_in_letters(tokenizer: Tokenizer) -> Callable[[str], list[str]]:
    """Return a function that finds the normalised words of a text that ``tokenizer`` splits into single letters or does not know."""
    known: dict[str, bool] = {}

    def broken(word: str) -> bool:
        if word not in known:
            tokens = tokenizer.encode(word, add_special_tokens=False).tokens
            letters = all(len(token.removeprefix(CONTINUES)) == 1 for token in tokens)
            known[word] = word.isalpha() and len(word) > 1 and (letters or (len(tokens) == 1 and tokens[0] != word))
        return known[word]

    def find(text: str) -> list[str]:
        words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        return [word for word, _ in words if broken(word)]

    return find


def learn_pieces(words: Iterable[str], size: int) -> list[str]:
    """Learn word pieces for the words of some texts, deterministically.

    Uses byte-pair encoding with a mark before each word, and converts the pieces to the notation of WordPiece, which marks
    continuations instead. The trainer of WordPiece itself is not used, because it numbers its pieces at random.

    Args:
        words: Strings of one or more words, separated by spaces.
        size: The largest number of pieces.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    learner.train_from_iterator(words, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    pieces = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    marked = (piece[1:] if piece.startswith("▁") else CONTINUES + piece for piece, _ in pieces)
    return [piece for piece in marked if piece]


def align(tokenizer: Tokenizer, pairs: list[tuple[str, str]]):
    """Estimate how likely each token is to translate each other token: IBM Model 1 (Brown et al., 1993, https://aclanthology.org/J93-2003).

    Expectation maximisation estimates how often a token ``e`` of the first sentences is generated by a token ``f`` of the
    second. These counts give p(e | f) and p(f | e), whose geometric mean is large only if both are.

    Args:
        pairs: A sentence and its translation.

    Returns:
        The geometric means, a sparse matrix of shape ``[vocabulary, vocabulary]``: rows are tokens ``f`` of the second
        sentences, columns ``e``.
    """
    from scipy.sparse import csr_matrix

    size = tokenizer.get_vocab_size()
    firsts, seconds = (
        [encoding.ids for encoding in tokenizer.encode_batch([pair[side] for pair in pairs], add_special_tokens=False)]
        for side in (0, 1)
    )
    # every token of a first sentence with every token of the second, and with an empty word for tokens without a counterpart
    seconds = [np.unique([size, *ids]) for ids in seconds]
    first = np.concatenate([np.repeat(ids, len(other)) for ids, other in zip(firsts, seconds, strict=True)]).astype(
        np.int64
    )
    second = np.concatenate([np.tile(other, len(ids)) for ids, other in zip(firsts, seconds, strict=True)])
    # for each token of a first sentence: the number of tokens that it is paired with
    partners = np.concatenate([np.full(len(ids), len(other)) for ids, other in zip(firsts, seconds, strict=True)])
    token = np.repeat(np.arange(len(partners)), partners)

    cells, cell = np.unique(first * (size + 1) + second, return_inverse=True)
    e, f = np.divmod(cells, size + 1)
    likely = np.ones(len(cells))
    for _ in range(ROUNDS):
        chance = likely[cell]
        chance /= np.bincount(token, chance)[token]
        counts = np.bincount(cell, chance, minlength=len(cells))
        likely = counts / np.bincount(f, counts, minlength=size + 1)[f]
    both = np.sqrt(likely * counts / np.bincount(e, counts, minlength=size + 1)[e])
    return csr_matrix((both, (f, e)), shape=(size + 1, size + 1))[:size, :size]


def _backend(model: SentenceTransformer, flag: str) -> Tokenizer:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise RunError(
            f"{flag} needs a tokenizer of the `tokenizers` library; this model's is {type(model.tokenizer).__name__}"
        )
    return backend


def _keep_exactly_when_saved(model: SentenceTransformer) -> None:
    """Replace the model's tokenizer with one that loads exactly as saved; transformers rebuilds BERT's from its vocabulary alone."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = model.tokenizer
    model[0].processor = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        **tokenizer.special_tokens_map,
    )


def _unpadded(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that neither pads nor truncates."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy
