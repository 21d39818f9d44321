"""A pruned vocabulary: texts of kept pieces have bit-identical embeddings, and all other texts can still be tokenised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from common.errors import RunError
from tests.helpers import sentence_model, unigram_bert
from tests.tiny_models import make_model
from training.utils.prune_vocabulary import count_unknown, prune_vocabulary, used_ids


@pytest.fixture(scope="module")
def texts(groups) -> list[str]:
    return [text for group in groups[:200] for text in (group["premise_en"], group["premise_ar"])]


@pytest.fixture(scope="module", params=["Unigram", "WordPiece"])
def model_folder(request, hub, texts, tmp_path_factory) -> Path:
    if request.param == "WordPiece":
        return hub.root / "models/aubmindlab/bert-base-arabertv02"
    return unigram_bert(tmp_path_factory.mktemp("unigram"), texts)


def encode(model: SentenceTransformer, rows: list[str]) -> torch.Tensor:
    return model.encode(rows, batch_size=1, convert_to_tensor=True)  # one by one: padding changes the last bit


def test_texts_of_kept_pieces_have_the_same_embeddings_to_the_bit_also_after_saving(model_folder, texts, tmp_path):
    kept, rows = texts[:120], texts[:40]
    model = sentence_model(model_folder)
    expected = encode(model, rows)
    result = prune_vocabulary(model, iter(kept))
    assert result.pieces_after < 0.9 * result.pieces_before
    width = model[0].auto_model.config.hidden_size
    assert result.parameters_before - result.parameters_after == width * (result.pieces_before - result.pieces_after)
    assert torch.equal(encode(model, rows), expected)

    model.save_pretrained(str(tmp_path / "pruned"))
    saved = SentenceTransformer(str(tmp_path / "pruned"), device="cpu")
    assert torch.equal(encode(saved, rows), expected)
    config = json.loads((tmp_path / "pruned/config.json").read_text())
    table = saved[0].auto_model.get_input_embeddings()
    assert config["vocab_size"] == len(table.weight) == len(saved.tokenizer) == result.pieces_after
    assert config["pad_token_id"] == saved.tokenizer.pad_token_id
    for token in saved.tokenizer.all_special_tokens:
        assert saved.tokenizer.convert_ids_to_tokens(saved.tokenizer.convert_tokens_to_ids(token)) == token
    assert not {path.name for path in (tmp_path / "pruned").iterdir()} & {"vocab.txt", "sentencepiece.bpe.model"}


def test_the_words_of_the_texts_alone_and_in_other_cases_keep_their_pieces(model_folder, texts):
    model = sentence_model(model_folder)
    forms = ["dog", "Dog", "DOG"]
    expected = encode(model, forms)
    prune_vocabulary(model, ["a dog. ", *texts[:20]])
    assert torch.equal(encode(model, forms), expected)


def test_a_text_of_removed_pieces_is_read_in_smaller_ones(model_folder, texts):
    model = sentence_model(model_folder)
    before = model.tokenizer.backend_tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    others = texts[200:]
    prune_vocabulary(model, texts[:4])
    after = model.tokenizer.backend_tokenizer
    lengths = [sum(len(e.ids) for e in t.encode_batch(others)) for t in (before, after)]
    assert lengths[1] > lengths[0]
    assert count_unknown(after, others) == count_unknown(before, others)
    assert torch.isfinite(encode(model, others[:3])).all()


def test_without_single_characters_new_unknown_tokens_are_counted(model_folder, texts):
    model = sentence_model(model_folder)
    before = count_unknown(model.tokenizer.backend_tokenizer, texts)
    prune_vocabulary(model, ["a dog"], keep_characters=False)
    assert count_unknown(model.tokenizer.backend_tokenizer, texts) > before
    assert count_unknown(model.tokenizer.backend_tokenizer, ["a dog"]) == 0


def test_a_unigram_model_keeps_its_piece_of_lowest_score_so_that_unknown_characters_cost_the_same(texts, tmp_path):
    model = sentence_model(unigram_bert(tmp_path, texts))
    scores = json.loads(model.tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    prune_vocabulary(model, ["a dog"], keep_characters=False)
    remaining = json.loads(model.tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    assert min(score for _, score in remaining) == min(score for _, score in scores)
    assert len(remaining) < 60


def test_used_ids_are_those_of_the_texts_and_their_word_forms(hub):
    tokenizer = sentence_model(hub.root / "models/aubmindlab/bert-base-arabertv02").tokenizer.backend_tokenizer
    ids = {
        i
        for text in ["A dog", "A", "a", "dog", "Dog", "DOG"]
        for i in tokenizer.encode(text, add_special_tokens=False).ids
    }
    assert used_ids(tokenizer, ["A dog"]) == ids


def test_byte_level_bpe_is_refused_in_one_line(hub):
    with pytest.raises(RunError, match="Unigram or WordPiece tokenizer, but this model's is byte-level BPE"):
        prune_vocabulary(sentence_model(hub.root / "models/distilroberta-base"), ["a dog"])


def test_a_tokenizer_of_words_is_refused_in_one_line(tmp_path):
    model = sentence_model(make_model("encoder", tmp_path / "m"))
    message = (
        r"--prune_vocabulary needs a Unigram or WordPiece tokenizer, but this model's is WordLevel: remove the flag"
    )
    with pytest.raises(RunError, match=message):
        prune_vocabulary(model, iter(["word1"]))


def test_the_key_prunes_the_model_that_is_trained(warm, hub, tmp_path):
    folder = tmp_path / "run"
    done = warm(
        "training/matryoshka_nli.py", "aubmindlab/bert-base-arabertv02", "--prune_vocabulary", "--language", "ar",
        "--max_steps", "1", "--per_device_train_batch_size", "8", "--output_dir", folder,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "pieces kept" in done.err
    rows = SentenceTransformer(str(folder / "final"), device="cpu")[0].auto_model.get_input_embeddings().weight
    full = json.loads((hub.root / "models/aubmindlab/bert-base-arabertv02/config.json").read_text())["vocab_size"]
    assert len(rows) < full
