"""The sample that ships with the repository: its size, its format and its sentences."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import pytest

from tests.helpers import ROOT

PARTS = ("premise", "entailment", "neutral", "contradiction")
SUBSETS = ("ar-ar", "en-ar", "en-en")
ARABIC, LATIN = re.compile("[\u0600-\u06ff]"), re.compile("[A-Za-z]")
FILES = sorted((ROOT / "data/sample").glob("*.jsonl"))


def normalise(text: str) -> str:
    """Letters and digits only, without case and without optional marks and spelling variants of Arabic."""
    text = unicodedata.normalize("NFKD", text).casefold()
    text = text.replace("\u0640", "").replace("ى", "ي").replace("ة", "ه")
    return "".join(c for c in text if unicodedata.category(c)[0] in "LN")


def group_sentences(groups):
    return [(group[f"{part}_{language}"], language) for group in groups for part in PARTS for language in ("en", "ar")]


def pair_sentences(pairs):
    return [(pair[f"sentence{side + 1}"], pair["subset"].split("-")[side]) for pair in pairs for side in (0, 1)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_are_plain_utf8_in_nfc(path):
    content = path.read_bytes()
    assert not content.startswith(b"\xef\xbb\xbf") and b"\r" not in content and content.endswith(b"\n")
    text = content.decode("utf-8")
    assert unicodedata.is_normalized("NFC", text)
    odd = {c for c in text if unicodedata.category(c) in ("Cf", "Co", "Cn", "Cs") or c in "\ufffd\u0640"}
    assert not odd, {hex(ord(c)) for c in odd}


def test_there_are_groups_enough_with_every_key(groups):
    assert len(groups) >= 200
    keys = {"topic", *(f"{part}_{language}" for part in PARTS for language in ("en", "ar"))}
    for number, group in enumerate(groups, 1):
        assert set(group) == keys, number
        assert all(isinstance(value, str) and value == value.strip() and value for value in group.values()), number


def test_there_are_pairs_enough_in_each_direction(pairs):
    count = Counter(pair["subset"] for pair in pairs)
    assert set(count) == set(SUBSETS) and min(count.values()) >= 100
    for number, pair in enumerate(pairs, 1):
        assert set(pair) == {"subset", "topic", "sentence1", "sentence2", "score"}, number
        assert type(pair["score"]) is float and 0 <= pair["score"] <= 5, number
        assert all(pair[key] == pair[key].strip() and pair[key] for key in ("sentence1", "sentence2")), number


def test_scores_are_spread_over_their_range(pairs):
    for subset in SUBSETS:
        scores = [pair["score"] for pair in pairs if pair["subset"] == subset]
        share = Counter(round(score) for score in scores)
        assert set(share) == set(range(6))
        assert max(share.values()) < 2 * min(share.values())


def test_arabic_is_arabic_and_english_is_english(groups, pairs):
    for text, language in [*group_sentences(groups), *pair_sentences(pairs)]:
        letters = len(ARABIC.findall(text)) + len(LATIN.findall(text))
        own = len((ARABIC if language == "ar" else LATIN).findall(text))
        assert own >= 0.7 * letters > 0, text


def test_the_pairs_across_languages_are_made_of_the_two_others(pairs):
    by_subset = {subset: [p for p in pairs if p["subset"] == subset] for subset in SUBSETS}
    assert len({len(rows) for rows in by_subset.values()}) == 1
    for arabic, across, english in zip(*(by_subset[subset] for subset in SUBSETS), strict=True):
        assert across["sentence1"] == english["sentence1"]
        assert across["sentence2"] == arabic["sentence2"]
        assert arabic["score"] == across["score"] == english["score"]


def test_no_sentence_of_the_groups_is_duplicated(groups):
    count = Counter(normalise(text) for text, _ in group_sentences(groups))
    assert [text for text, n in count.items() if n > 1] == []


def test_no_pair_is_duplicated_and_none_pairs_a_sentence_with_itself(pairs):
    found = [(p["subset"], *sorted(map(normalise, (p["sentence1"], p["sentence2"])))) for p in pairs]
    assert [pair for pair, n in Counter(found).items() if n > 1] == []
    assert [pair for pair in found if pair[1] == pair[2]] == []


def test_the_parts_share_no_sentence(groups, pairs):
    trained = {normalise(text) for text, _ in group_sentences(groups)}
    scored = {normalise(text) for text, _ in pair_sentences(pairs)}
    assert not trained & scored


def test_the_checks_would_notice():
    assert normalise("قطعَ أخي فرعًا.") == normalise("قطع أخي فرعا")
    assert normalise("A dog, running!") == normalise("a dog running")
    assert normalise("a dog") != normalise("a cat")
