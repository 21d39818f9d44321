"""Mined negatives equal those of plain loops over all texts, and the written file can be trained on."""

from __future__ import annotations

import json
import re
import resource
import shutil

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from common.config import load_config
from common.errors import RunError
from common.models import identify
from tests.helpers import NLI, WORDS, record_of, scored, static_model, texts_of, triplets, write, write_dataset
from training.utils.data_loading import load_training_data
from training.utils.mining import Guide, mine, role_prompts
from training.utils.mining_options import MiningConfig
from training.utils.options import DatasetEntry

MINE = "training/mine_negatives.py"
OFF = {"relative_margin": None, "absolute_margin": None, "max_score": None}


def settings(**keys) -> MiningConfig:
    flags = [text for key, value in keys.items() for text in (f"--{key}", str(value))]
    return load_config(MiningConfig, "", ["model", "--path", "pairs.csv", *flags], positional="model_name")


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str]]:
    """Pairs that share anchors and positives, some written in another way, some of them in both directions."""
    texts = texts_of(120, seed=5)
    found = [(texts[i], " ".join([*texts[i].split()[:2], *texts[60 + i].split()[:3]])) for i in range(60)]
    found += [(found[0][0], texts[70]), (found[0][0].upper() + "!", texts[71]), (found[2][0], found[3][1])]
    found += [(found[5][1], found[5][0]), (texts[80], found[6][0]), (found[7][0], found[7][0].title())]
    found += [found[9], (found[9][0] + ".", found[9][1] + "?")]
    return found


def as_dataset(pairs) -> Dataset:
    return Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [p for _, p in pairs]})


def key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def cosines(model, anchors, candidates, prompts=("", "")) -> np.ndarray:
    first, second = (
        model.encode([prompt + text for text in texts], prompt="", normalize_embeddings=True).astype(np.float64)
        for prompt, texts in zip(prompts, (anchors, candidates), strict=True)
    )
    return first @ second.T


def expected(pairs, model, config, prompts=("", ""), guide=None) -> dict[tuple[str, str], list[str]]:
    """The negatives of each distinct pair, by loops over all texts, for --sampling_strategy top."""
    first = {}  # each text as it is first written
    rows = [tuple(first.setdefault(key(text), text) for text in pair) for pair in pairs]
    candidates = list(dict.fromkeys(positive for _, positive in rows))
    anchors = list(dict.fromkeys(anchor for anchor, _ in rows))
    near = cosines(model, anchors, candidates, prompts)
    judged = near if guide is None else cosines(guide, anchors, candidates)
    most = max(len({p for a, p in rows if a == anchor}) for anchor in anchors)
    result = {}
    for row, anchor in enumerate(anchors):
        own = [positive for a, positive in rows if a == anchor]
        limit = min(judged[row][candidates.index(positive)] for positive in own)
        # the library considers range_max texts, plus as many as the most positives of any anchor
        window = sorted(range(len(candidates)), key=lambda c: -near[row][c])[: config.range_max + most]
        kept = []
        for c in sorted((c for c in window if candidates[c] not in own), key=lambda c: -judged[row][c]):
            score = judged[row][c]
            if config.relative_margin is not None and score > limit - abs(limit) * config.relative_margin:
                continue
            if config.absolute_margin is not None and score > limit - config.absolute_margin:
                continue
            if config.max_score is not None and score > config.max_score:
                continue
            kept.append(candidates[c])
        never = [anchor, *(a for a, positive in rows if positive == anchor)]
        kept = [text for text in kept[config.range_min : config.range_max] if text not in never]
        for positive in own:
            result[anchor, positive] = kept[: config.num_negatives]
    return {pair: negatives for pair, negatives in result.items() if negatives}


def mined(pairs, model, config, guide=None) -> tuple[dict[tuple[str, str], list[str]], dict]:
    columns, counts = mine(as_dataset(pairs), model, config, guide)
    negatives = [name for name in columns if name.startswith("negative")]
    rows = list(zip(*(columns[name] for name in ("anchor", "positive", *negatives)), strict=True))
    assert len({row[:2] for row in rows}) == len(rows) == counts["rows"]
    result = {row[:2]: [text for text in row[2:] if text is not None] for row in rows}
    assert sum(map(len, result.values())) == counts["negatives"]
    return result, counts


def by_first_spelling(rows, pairs):
    first = {}
    for text in (text for pair in pairs for text in pair):
        first.setdefault(key(text), text)
    return {tuple(first[key(text)] for text in pair): negatives for pair, negatives in rows.items()}


@pytest.mark.parametrize(
    "keys",
    [
        {"num_negatives": 1},
        {"num_negatives": 3, **OFF},
        {"num_negatives": 4, **OFF, "relative_margin": 0.3},
        {"num_negatives": 4, **OFF, "absolute_margin": 0.1},
        {"num_negatives": 2, **OFF, "max_score": 0.2},
        {"num_negatives": 2, "relative_margin": 0.2, "absolute_margin": 0.05, "max_score": 0.3, "range_min": 3},
        {"num_negatives": 5, **OFF, "range_min": 2, "range_max": 9},
    ],
    ids=str,
)
def test_the_negatives_are_those_of_plain_loops(rows, keys):
    config, model = settings(**keys), static_model()
    result, counts = mined(rows, model, config)
    wanted = expected(rows, model, config)
    assert by_first_spelling(result, rows) == wanted
    distinct = {(key(anchor), key(positive)) for anchor, positive in rows}
    assert counts["pairs"] == len(rows) and counts["duplicated_pairs"] == len(rows) - len(distinct) == 2
    assert counts["pairs_without_negatives"] == len(distinct) - len(wanted)
    assert counts["rows_with_fewer_negatives"] == sum(len(n) < config.num_negatives for n in wanted.values())


def test_margins_are_kept_and_the_mean_similarities_are_right(rows):
    config, model = settings(num_negatives=3, relative_margin=0.25), static_model()
    columns, counts = mine(as_dataset(rows[:60]), model, config)
    anchors, positives = columns["anchor"], columns["positive"]
    of_positives = np.diagonal(cosines(model, anchors, positives))
    for name in ("negative_1", "negative_2", "negative_3"):
        rows = [row for row, text in enumerate(columns[name]) if text is not None]
        scores = np.diagonal(cosines(model, [anchors[r] for r in rows], [columns[name][r] for r in rows]))
        limits = of_positives[rows] - 0.25 * np.abs(of_positives[rows])
        assert (scores <= limits + 1e-6).all()
    assert counts["mean_similarity"]["negatives"] < counts["mean_similarity"]["positives"] - 0.1


def test_a_text_is_no_negative_of_what_it_says_in_other_words():
    pairs = [("word1 word2", "word1 word3"), ("Word1, word2!", "word2 word4"), ("word9", "WORD1 word2."),
             ("word5 word6", "word6"), ("word1 word7", "word5 word6"), ("word8", "word1 word7")]  # fmt: skip
    result, _ = mined(pairs, static_model(), settings(num_negatives=6, **OFF))
    ours = {"word1 word3", "word2 word4", "word1 word2", "WORD1 word2."}
    assert set(result[pairs[0]]) == {"word6", "word5 word6", "word1 word7"} == set(result[pairs[1]])
    assert ours.isdisjoint(result[pairs[0]])
    # "word1 word7" has the positive "word5 word6", so it is not a negative for that either
    assert "word1 word7" not in result["word5 word6", "word6"] and "word1 word3" in result["word5 word6", "word6"]


def test_random_negatives_are_candidates_drawn_by_the_seed(rows):
    model, keys = static_model(), {"num_negatives": 3, **OFF, "range_max": 12}
    window = {
        pair: set(texts) for pair, texts in expected(rows, model, settings(**keys | {"num_negatives": 12})).items()
    }
    draws = []
    for seed in (1, 1, 2):
        result, _ = mined(rows, model, settings(**keys, sampling_strategy="random", seed=seed))
        result = by_first_spelling(result, rows)
        assert all(len(set(texts)) == 3 and set(texts) <= window[pair] for pair, texts in result.items())
        draws.append(result)
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != expected(rows, model, settings(**keys))


@pytest.mark.parametrize("keys", [{"relative_margin": 0.1}, {**OFF, "absolute_margin": 0.2, "range_max": 20}], ids=str)
def test_a_guide_decides_on_the_candidates(rows, keys):
    config, model, guide = settings(num_negatives=3, **keys, guide="other"), static_model(), static_model(seed=1)
    alone, _ = mined(rows, model, config)
    guided, _ = mined(rows, model, config, guide)
    assert by_first_spelling(guided, rows) == expected(rows, model, config, guide=guide)
    assert guided != alone


def test_a_guide_scores_pairs_with_its_own_prompts():
    guide = static_model(prompts={"query": "word5 word6 ", "document": "word7 "})
    anchors, candidates = texts_of(6, seed=1), texts_of(8, seed=2)
    scores = Guide(guide, anchors, candidates, 4).predict([(anchors[2], candidates[7]), (anchors[0], candidates[0])])
    wanted = cosines(guide, anchors, candidates, ("word5 word6 ", "word7 "))
    np.testing.assert_allclose(scores.numpy(), [wanted[2, 7], wanted[0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("stored", "default", "wanted"),
    [
        ({}, None, ("", "")),
        ({"query": "q: ", "passage": "p: "}, None, ("q: ", "p: ")),  # the library prefers its own empty "document"
        ({"query": "q: ", "document": "d: ", "passage": "p: "}, None, ("q: ", "d: ")),
        ({"query": "q: "}, None, ("q: ", "")),
        ({"query": "q: ", "document": ""}, "query", ("q: ", "")),
        ({"query": "t: ", "document": "t: "}, "query", ("t: ", "t: ")),
        ({"sts": "s: "}, "sts", ("s: ", "s: ")),
        ({"sts": "s: "}, None, ("", "")),
    ],
)
def test_which_prompts_a_model_has_for_anchors_and_candidates(stored, default, wanted):
    prompts = role_prompts(static_model(prompts=stored, default_prompt_name=default))
    assert prompts == dict(zip(("query", "document"), wanted, strict=True))


def test_the_model_s_prompts_come_before_the_texts(rows):
    config = settings(num_negatives=2)
    prompts = {"query": "word250 word251 ", "passage": "word252 word253 word254 "}
    result, _ = mined(rows, static_model(prompts=prompts), config)
    wanted = expected(rows, static_model(), config, tuple(prompts.values()))
    assert by_first_spelling(result, rows) == wanted != expected(rows, static_model(), config)


def test_an_anchor_with_very_many_positives_is_not_mined_for(rows, caplog):
    many = [("word0", f"{word} word1") for word in WORDS[2:103]]
    result, counts = mined([*rows, *many], static_model(), settings(num_negatives=2))
    assert ("word0", "word2 word1") not in result and len(result) >= 50
    assert counts["pairs_without_negatives"] >= len(many)
    assert "1 anchors have more than 100 positives" in caplog.text
    with pytest.raises(RunError, match="no pair has a negative"):
        mine(as_dataset(many), static_model(), settings())


def test_similarities_that_are_not_finite_are_refused(rows):
    model = static_model()
    model[0].embedding.weight.data[7] = float("nan")
    with pytest.raises(RunError, match="NaN or infinite"):
        mine(as_dataset(rows), model, settings())


# The command


@pytest.fixture(scope="module")
def leaky(hub, groups, pairs) -> str:
    """A data set on the Hub whose first pair contains a sentence of STS17, and the second one of STS-B's dev set."""
    sts17 = scored(pairs, "en-en", slice(0, 60))[3]["sentence1"]
    dev = scored(pairs, "en-en", slice(96, 136))[3]["sentence2"]
    rows = [{"query": row["anchor"], "answer": row["positive"]} for row in triplets(groups[200:240], "en")]
    rows = [{"query": "one text", "answer": sts17.upper()}, {"query": dev + "!", "answer": "another text"}, *rows]
    write_dataset(hub.root / "datasets/tiny/leaky", {"default": {"train": rows}})
    return "tiny/leaky"


def test_pairs_of_the_hub_become_a_file_that_trains(leaky, warm, call, tiny_model, pairs, tmp_path):
    out = tmp_path / "deep/mined.parquet"
    flags = ("--path", leaky, "--num_negatives", "2", "--relative_margin", "none", "--output_file", out)
    done = warm(MINE, tiny_model, *flags)
    assert done.code == 0, done.err
    assert done.out == f"{out}\n" and "Traceback" not in done.err
    assert "2 of 42 rows share sentences with" in done.err
    table = pd.read_parquet(out)
    assert list(table) == ["anchor", "positive", "negative_1", "negative_2"] and len(table) == 40
    assert not table.isna().any(axis=None)
    # no sentence of the test and dev sets is anywhere, and each negative is another row's positive
    held = {key(row[side]) for row in pairs for side in ("sentence1", "sentence2")}
    assert held.isdisjoint(map(key, table.to_numpy().ravel()))
    assert set(table["negative_1"]) | set(table["negative_2"]) <= set(table["positive"])

    record = json.loads((tmp_path / "deep/mined.run.json").read_text())
    identity = identify(str(tiny_model))
    assert record["status"] == "finished"
    assert record["model"] == {
        "name": identity.name,
        "revision": identity.revision,
        "prompts": {"query": "", "document": ""},
    }
    assert record["leaks"]["rows"] == {leaky: {"sts-en-dev": 1, "STS17 en-ar": 1, "STS17 en-en": 1}}
    assert record["counts"]["rows"] == 40 and record["counts"]["negatives"] == 80
    assert record["config"]["num_negatives"] == 2 and re.fullmatch("[0-9a-f]{40}", record["data"]["revision"])
    assert sorted(path.name for path in out.parent.iterdir()) == ["mined.parquet", "mined.run.json"]

    again = tmp_path / "again.parquet"
    assert call(MINE, tiny_model, *flags[:-1], again).code == 0
    assert again.read_bytes() == out.read_bytes()

    run = tmp_path / "run"
    flags = ("--train_data", out, "--dev_data", "none", "--max_steps", "2", "--precision", "fp32", "--output_dir", run)
    done = call(NLI, tiny_model, *flags, "--per_device_train_batch_size", "8")
    assert done.code == 0, done.err
    assert "40 rows of anchor, positive, negative_1, negative_2; every column is used" in done.err
    (data,) = record_of(run)["datasets"].values()
    assert data["rows"] == 40 and data["columns"] == ["anchor", "positive", "negative_1", "negative_2"]


@pytest.mark.parametrize("count", [1, 4])
def test_rows_with_fewer_negatives_are_read_back_as_they_are(count, tiny_model, groups, call, tmp_path):
    path, out = tmp_path / "pairs.jsonl", tmp_path / "mined.parquet"
    rows = triplets(groups[:24], "en")
    write(path, [{"first": row["anchor"], "second": row["positive"], "negative": row["negative"]} for row in rows])
    (tmp_path / "my.json").write_text(json.dumps({"columns": {"anchor": "first", "positive": "second"}}))
    flags = ("--config", tmp_path / "my.json", "--path", path, "--dev_data", "none", "--output_file", out)
    done = call(MINE, tiny_model, *flags, "--num_negatives", count, "--relative_margin", "0.02")
    assert done.code == 0, done.err
    table = pd.read_parquet(out)
    names = [name for name in table if name.startswith("negative")]
    assert names == (["negative"] if count == 1 else [f"negative_{i + 1}" for i in range(count)])
    per_row = table[names].notna().sum(axis=1)
    assert (per_row > 0).all() and (count == 1 or (per_row < count).any()), "the test wants rows that have fewer"
    assert not set(table[names].stack()) & {row["negative"] for row in rows}, "the data's own negatives are not mined"
    dataset = load_training_data(DatasetEntry(str(out), "mnrl"))
    assert [[row[name] or None for name in dataset.column_names] for row in dataset] == [
        [None if pd.isna(value) else value for value in row]
        for row in table[dataset.column_names].itertuples(index=False)
    ]
    assert set(names) - set(dataset.column_names) == {name for name in names if table[name].isna().all()}


def test_a_guide_on_the_command_line(tiny_model, hub, groups, call, tmp_path):
    path, out = write(tmp_path / "pairs.csv", triplets(groups[:24], "en")), tmp_path / "mined.parquet"
    guide = hub.root / "models/sentence-transformers/all-MiniLM-L6-v2"
    flags = ("--path", path, "--dev_data", "none", "--num_negatives", "1", "--output_file")
    done = call(MINE, tiny_model, *flags, out, "--guide", "sentence-transformers/all-MiniLM-L6-v2")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "mined.run.json").read_text())
    assert record["guide"]["name"] == "sentence-transformers/all-MiniLM-L6-v2" and guide.is_dir()
    assert call(MINE, tiny_model, *flags, tmp_path / "alone.parquet").code == 0
    assert not pd.read_parquet(out).equals(pd.read_parquet(tmp_path / "alone.parquet"))


def test_a_file_that_exists_is_kept_unless_overwritten(tiny_model, groups, fails, call, tmp_path):
    path, out = write(tmp_path / "pairs.csv", triplets(groups[:16], "en")), tmp_path / "mined.parquet"
    out.write_text("mine")
    flags = (MINE, tiny_model, "--path", path, "--dev_data", "none", "--output_file", out)
    fails(2, f"--output_file {out} already exists … --overwrite", *flags)
    fails(2, f"--name and --split are for data sets on the Hub, but {path} is a file", *flags, "--split", "dev")
    fails(1, "no pair has a negative … range_max", *flags, "--overwrite", "--max_score", "-1")
    assert out.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        fails(1, f"{out} could not be written … choose another --output_file", *flags, "--overwrite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
    assert call(*flags, "--overwrite", "--relative_margin", "none").code == 0
    assert len(pd.read_parquet(out)) == 16


@pytest.mark.parametrize(
    ("code", "message", "flags"),
    [
        (2, "MODEL is missing", ["--path", "pairs.csv"]),
        (2, "--path is missing", ["MODEL"]),
        (2, "--num_negatives 5 is above the 2 candidates", ["MODEL", "--path", "pairs.csv", "--num_negatives", "5", "--range_min", "8", "--range_max", "10"]),
        (2, "--guide has no effect … --relative_margin", ["MODEL", "--path", "pairs.csv", "--guide", "x/y", "--relative_margin", "none"]),
        (2, "must end in .parquet", ["MODEL", "--path", "pairs.csv", "--output_file", "mined.csv"]),
        (2, "is a folder", ["MODEL", "--path", "pairs.csv", "--output_file", "folder.parquet"]),
        (2, "unknown role 'anchor' … 'query'", ["MODEL", "--path", "pairs.csv", "--prompts", '{"anchor": "q: "}']),
        (2, "pairs.csv is a file", ["MODEL", "--path", "pairs.csv", "--output_file", "pairs.csv/mined.parquet"]),
        (2, "is the file that contains the pairs", ["MODEL", "--path", "data.parquet", "--output_file", "data.parquet", "--overwrite"]),
        (2, "--relative_margin must be at least 0", ["MODEL", "--path", "pairs.csv", "--relative_margin", "-1"]),
        (2, "nothing.csv: no such file", ["MODEL", "--path", "nothing.csv"]),
        (1, "no column for 'anchor' … the columns are a, b", ["MODEL", "--path", "wrong.csv", "--dev_data", "none"]),
        (1, "row 2: column 'positive' is empty", ["MODEL", "--path", "empty.csv", "--dev_data", "none"]),
        (1, "model nobody/nothing", ["nobody/nothing", "--path", "pairs.csv", "--dev_data", "none"]),
        (1, "data set nobody/nothing", ["MODEL", "--path", "nobody/nothing"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_mistakes_are_one_line(code, message, flags, tiny_model, groups, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{name: row[name] for name in ("anchor", "positive")} for row in triplets(groups[:8], "en")]
    write(tmp_path / "pairs.csv", rows)
    write(tmp_path / "data.parquet", rows)
    write(tmp_path / "wrong.csv", [{"a": "x", "b": "y"}])
    (tmp_path / "empty.csv").write_text("anchor,positive\nx,y\nz,\n")
    (tmp_path / "folder.parquet").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    fails(code, message, MINE, *(str(tiny_model) if flag == "MODEL" else flag for flag in flags))
    assert {path.name for path in tmp_path.iterdir()} - {"output"} == before
    shutil.rmtree(tmp_path / "output", ignore_errors=True)
