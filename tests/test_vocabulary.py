"""Arabic in the tokenizer of an English model: normalisation, the added word pieces, and their initial vectors."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import defaultdict

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import normalizers

from common.errors import RunError
from tests.helpers import sentence_model, write_bert
from training.utils.vocabulary import (
    MARKS,
    ROUNDS,
    align,
    character_table,
    extend_vocabulary,
    learn_pieces,
    normalize_arabic,
    presentation_forms,
    words_in_letters,
)

ENGLISH = ["the", "moon", "sun", "sea", "bird", "house", "river", "is", "near", "far"]
ARABIC = ["القمر", "شمس", "بحر", "طير", "بيت", "نهر", "قريب", "بعيد"]
TRANSLATION = dict(zip(["moon", "sun", "sea", "bird", "house", "river", "near", "far"], ARABIC, strict=True))


@pytest.fixture
def english_model(tmp_path):
    """A tiny BERT that knows ten English words, and of Arabic only letters."""
    from transformers import BertTokenizerFast

    letters = sorted(set("abcdefghijklmnopqrstuvwxyz") | set("".join(ARABIC)) | set("أإآٱىيكتبلوم"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ENGLISH, *letters, *(f"##{letter}" for letter in letters)]
    torch.manual_seed(0)
    write_bert(
        tmp_path / "bert", BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=64)
    )
    return sentence_model(tmp_path / "bert")


def translated(count: int) -> list[tuple[str, str]]:
    """Sentences of four English words and their translations, in another order and without "the" and "is"."""
    draw = random.Random(5)
    found = []
    for _ in range(count):
        words = draw.sample(list(TRANSLATION), 4)
        others = [TRANSLATION[word] for word in words]
        draw.shuffle(others)
        found.append((f"the {words[0]} is {words[1]} {words[2]} the {words[3]}", " ".join(others)))
    return found


def tokens(model, text):
    return model.tokenizer.tokenize(text)


def test_writings_of_one_word_get_the_same_tokens_in_the_saved_model_too(english_model, tmp_path):
    assert tokens(english_model, "كتـــاب") != tokens(english_model, "كتاب")
    normalize_arabic(english_model)
    english_model.save_pretrained(str(tmp_path / "saved"))
    for model in (english_model, SentenceTransformer(str(tmp_path / "saved"), device="cpu")):
        for one, other in (("كَتَبَ", "كتب"), ("كتـــاب", "كتاب"), ("أكل", "اكل"), ("إلى", "الي"), ("آكل ٱكل", "اكل اكل")):
            assert tokens(model, one) == tokens(model, other), one
        assert tokens(model, "The Moon") == ["the", "moon"]
        assert model.tokenizer("moon")["input_ids"][0] == model.tokenizer.cls_token_id
        assert model.max_seq_length == 64
    assert np.array_equal(english_model.encode("كَتَبَ moon"), model.encode("كتب moon"))


def test_arabic_words_become_pieces_and_english_keeps_its_tokens(english_model, tmp_path):
    pairs = translated(40)
    before = tokens(english_model, pairs[0][0])
    added = extend_vocabulary(english_model, [text for pair in pairs for text in pair], 100)
    assert added > 0
    english_model.save_pretrained(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    for model in (english_model, loaded):
        assert tokens(model, pairs[0][0]) == before
        assert tokens(model, " ".join(ARABIC)) == ARABIC
        assert len(model.tokenizer) == model[0].auto_model.get_input_embeddings().num_embeddings
    assert np.array_equal(english_model.encode(pairs[0][1]), loaded.encode(pairs[0][1]))


def test_added_tokens_keep_their_ids(english_model):
    english_model.tokenizer.add_tokens(["[URL]"])
    english_model[0].auto_model.resize_token_embeddings(len(english_model.tokenizer), mean_resizing=False)
    url = english_model.tokenizer.convert_tokens_to_ids("[URL]")
    pairs = translated(40)
    added = extend_vocabulary(english_model, [pair[1] for pair in pairs], 100, pairs)
    ids = list(english_model.tokenizer.get_vocab().values())
    assert english_model.tokenizer("[URL]", add_special_tokens=False)["input_ids"] == [url]
    assert len(set(ids)) == len(ids) == url + 1 + added
    assert english_model[0].auto_model.get_input_embeddings().num_embeddings == len(ids)


def test_the_same_texts_give_the_same_pieces_and_at_most_so_many():
    texts = [pair[1] for pair in translated(40)]
    assert learn_pieces(texts, 100) == learn_pieces(iter(texts), 100)
    assert len(learn_pieces(texts, 30)) <= 30


def test_words_in_letters(english_model):
    find = words_in_letters(english_model.tokenizer.backend_tokenizer)
    assert find("The sun is شَمس, بحر 12 x!") == ["شمس", "بحر"]
    assert find("the moon") == []


def test_without_translations_a_piece_starts_from_the_letters_it_was_broken_into(english_model):
    vectors = english_model[0].auto_model.get_input_embeddings().weight.detach().clone()
    letters = english_model.tokenizer("شمس", add_special_tokens=False)["input_ids"]
    extend_vocabulary(english_model, [pair[1] for pair in translated(40)], 100)
    weights = english_model[0].auto_model.get_input_embeddings().weight
    assert torch.equal(weights[: len(vectors)], vectors)
    piece = english_model.tokenizer.convert_tokens_to_ids("شمس")
    assert torch.allclose(weights[piece], vectors[letters].mean(dim=0), atol=1e-6)


def test_with_translations_a_piece_starts_near_the_word_that_it_translates(english_model):
    pairs = translated(200)
    # the translations are found among pairs of one language, whichever side is the new one
    mixed = [("the moon", "the sun"), *((b, a) for a, b in pairs[:100]), ("شمس", "بحر"), *pairs[100:]]
    extend_vocabulary(english_model, [pair[1] for pair in pairs], 100, mixed)
    weights = torch.nn.functional.normalize(english_model[0].auto_model.get_input_embeddings().weight.detach(), dim=1)
    find = english_model.tokenizer.convert_tokens_to_ids
    for english, arabic in TRANSLATION.items():
        similarities = weights[find(arabic)] @ weights[[find(word) for word in ENGLISH]].T
        assert ENGLISH[similarities.argmax()] == english


def test_the_alignment_is_that_of_ibm_model_1(english_model):
    pairs = translated(12)
    extend_vocabulary(english_model, [pair[1] for pair in pairs], 100)
    english_model.tokenizer.backend_tokenizer.no_padding()
    find = english_model.tokenizer.convert_tokens_to_ids
    found = align(english_model.tokenizer.backend_tokenizer, pairs)

    probability = defaultdict(lambda: 1.0)  # of e given f, a pair at a time
    for _ in range(ROUNDS):
        counts, of_f, of_e = defaultdict(float), defaultdict(float), defaultdict(float)
        for english, arabic in pairs:
            sources = {*arabic.split(), None}
            for e in english.split():
                total = sum(probability[e, f] for f in sources)
                for f in sources:
                    share = probability[e, f] / total
                    counts[e, f] += share
                    of_f[f] += share
                    of_e[e] += share
        for e, f in counts:
            probability[e, f] = counts[e, f] / of_f[f]
    for (e, f), count in counts.items():
        if f is not None:
            assert found[find(f), find(e)] == pytest.approx((probability[e, f] * count / of_e[e]) ** 0.5)


def test_a_tokenizer_without_word_pieces_or_without_need_is_refused(hub, tiny_model):
    roberta = SentenceTransformer(str(hub.root / "models/distilroberta-base"), device="cpu")
    with pytest.raises(RunError, match="--extend_vocabulary needs a WordPiece tokenizer.*BPE"):
        extend_vocabulary(roberta, ["كتب الولد"], 100)
    with pytest.raises(RunError, match="splits no word"):
        extend_vocabulary(SentenceTransformer(str(tiny_model), device="cpu"), ["The boy wrote", "12 ..."], 100)


def test_presentation_forms_are_folded_and_nothing_else_changes():
    forms = presentation_forms()
    fold = normalizers.Precompiled(character_table(forms)).normalize_str
    for code in (*range(0xFB50, 0xFE00), *range(0xFE70, 0xFF00)):
        form, letters = chr(code), unicodedata.normalize("NFKC", chr(code))
        letters = re.sub(f"^ (?={MARKS})|\u0640|{MARKS}", "", re.sub(f" (?={MARKS})", "", letters))
        assert fold(form) == (letters if form in forms else form), hex(code)
        assert fold(f"x{form}y") == f"x{fold(form)}y"
    others = [
        chr(c) for c in range(0x10000) if not (0xFB50 <= c <= 0xFDFF or 0xFE70 <= c <= 0xFEFF or 0xD800 <= c <= 0xDFFF)
    ]
    for start in range(0, len(others), 500):
        text = " ".join(others[start : start + 500])
        assert fold(text) == text
    assert fold("ﻣﺮﺣﺒﺎ ﷲ ﻻ ﬁ Ａ") == "مرحبا الله لا ﬁ Ａ", "ligatures of other scripts and full width stay"


def test_presentation_forms_get_the_tokens_of_the_letters_in_the_saved_model_too(english_model, tmp_path):
    normalize_arabic(english_model)
    english_model.save_pretrained(str(tmp_path / "saved"))
    for model in (english_model, SentenceTransformer(str(tmp_path / "saved"), device="cpu")):
        for forms, letters in (
            ("ﻛﺘﺐ", "كتب"),
            ("ﻛَﺘَﺐ", "كتب"),
            ("ﻛﹷﺘﺐ", "كتب"),
            ("ﻷﻛﻞ", "لاكل"),
            ("ﺇﻟﻰ", "الي"),
            ("the ﺑﺤﺮ", "the بحر"),
        ):
            assert tokens(model, forms) == tokens(model, letters), forms
            assert "[UNK]" not in tokens(model, forms)
