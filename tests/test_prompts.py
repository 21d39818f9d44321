"""Prompts: used in training, saved, used in evaluation, and part of a score's identity."""

from __future__ import annotations

import itertools
import json
from typing import ClassVar

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from common.errors import UsageError
from common.models import identify, load_model
from common.prompts import prompt_name
from evaluation.utils.evaluation_utils import encode_like_tasks
from tests.helpers import read_summary, static_model
from training.utils.options import MatryoshkaNLIConfig
from training.utils.prompts import choose_prompts

NLI, HYBRID, STS = "training/matryoshka_nli.py", "training/hybrid_training.py", "evaluation/evaluate_sts.py"


def dataset(*columns: str) -> Dataset:
    return Dataset.from_dict({column: ["word1", "word2"] for column in columns})


def chosen(prompts, datasets, model=None):
    model = model or static_model()
    config = MatryoshkaNLIConfig.__new__(MatryoshkaNLIConfig)
    config.prompts = prompts
    return choose_prompts(config, model, datasets), model.prompts, model.default_prompt_name


# The prompt that a task gets


def test_a_prompt_is_chosen_as_mteb_chooses_it():
    from mteb import get_task
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.types import PromptType

    metadata = get_task("STS17").metadata
    names = ["STS17-query", "STS17", "STS-query", "STS", "query", "document", "Retrieval", "passage"]
    for size in range(len(names) + 1):
        for some in itertools.combinations(names, size):
            prompts = {name: f"{name}: " for name in some}
            for role in (None, PromptType.query, PromptType.document):
                expected = get_prompt_name(prompts, metadata, role)
                assert prompt_name(prompts, "STS17", "STS", role.value if role else None) == expected


# Training


@pytest.mark.parametrize(
    ("prompts", "expected", "stored"),
    [
        ("q: ", {"anchor": "q: ", "positive": "q: "}, ("q: ", "q: ", "query")),
        ({"anchor": "q: ", "positive": "d: "}, {"anchor": "q: ", "positive": "d: "}, ("q: ", "d: ", "query")),
        ({"anchor": "q: "}, {"anchor": "q: "}, ("q: ", "", "query")),
        ({"positive": "d: "}, {"positive": "d: "}, ("", "d: ", None)),
    ],
)
def test_prompts_go_to_their_columns_and_stay_in_the_model(prompts, expected, stored):
    given, kept, default = chosen(prompts, {"data": dataset("anchor", "positive")})
    assert (given, (kept["query"], kept["document"], default)) == (expected, stored)


def test_the_start_model_s_other_prompts_are_removed():
    """With a prompt "STS" that it was not trained with, the model would be evaluated with that prompt."""
    stored = {"query": "old: ", "document": "old: ", "STS": "stale: "}
    for prompts, kept in (
        ("q: ", {"query": "q: ", "document": "q: "}),
        ({"anchor": "q: "}, {"query": "q: ", "document": ""}),
    ):
        model = static_model(prompts=stored, default_prompt_name="document")
        assert chosen(prompts, {"data": dataset("anchor", "positive")}, model)[1] == kept


def test_a_prompt_of_negatives_is_that_of_each_of_them():
    given, *_ = chosen({"negative": "d: "}, {"data": dataset("anchor", "positive", "negative_1", "negative_2")})
    assert given == {"negative_1": "d: ", "negative_2": "d: "}


@pytest.mark.parametrize(
    ("prompts", "of_negatives", "message"),
    [
        (
            {"positive": "d: "},
            ["d: ", "d: "],
            "the negatives (negative_1, negative_2) get the prompt of the positives, 'd: '",
        ),
        (
            {"positive": "d: ", "negative_1": "n: "},
            ["n: ", "d: "],
            "prompts: the negatives (negative_2) get the prompt of the positives",
        ),
        ({"positive": "d: ", "negative": ""}, ["", ""], None),
        ({"positive": "d: ", "negative": "n: "}, ["n: ", "n: "], None),
        ({"positive": "d: ", "negative_1": "m: ", "negative_2": "n: "}, ["m: ", "n: "], None),
        ({"anchor": "q: "}, [None, None], None),
    ],
)
def test_negatives_are_documents_as_positives_are(caplog, prompts, of_negatives, message):
    """A prompt that only the positives have would tell them apart from the negatives."""
    with caplog.at_level("INFO"):
        given, *_ = chosen(prompts, {"data": dataset("anchor", "positive", "negative_1", "negative_2")})
    assert [given.get(f"negative_{number}") for number in (1, 2)] == of_negatives
    assert given.get("positive") == prompts.get("positive") and given.get("anchor") == prompts.get("anchor")
    assert message in caplog.text if message else "prompt of the positives" not in caplog.text


def test_negatives_of_each_data_set_get_the_prompt_of_its_positives():
    datasets = {"one": dataset("anchor", "positive", "negative"), "two": dataset("anchor", "positive", "negative")}
    given, *_ = chosen({"one": {"positive": "d: "}, "two": {"anchor": "q: "}}, datasets)
    assert given == {"one": {"positive": "d: ", "negative": "d: "}, "two": {"anchor": "q: "}}


@pytest.mark.parametrize(
    "prompts", [{"pairs": {"anchor": "q: ", "positive": "d: "}}, {"anchor": "q: ", "positive": "d: "}]
)
def test_a_mixture_of_one_data_set_may_have_prompts_by_data_set(prompts):
    given, kept, _ = chosen(prompts, {"pairs": dataset("anchor", "positive")})
    assert given == {"anchor": "q: ", "positive": "d: "} and kept == {"query": "q: ", "document": "d: "}
    given, *_ = chosen({"pairs": "q: "}, {"pairs": dataset("anchor", "positive")})
    assert given == {"anchor": "q: ", "positive": "q: "}
    given, *_ = chosen({"anchor": "q: "}, {"anchor": dataset("anchor", "positive")})  # the name of a column, too
    assert given == {"anchor": "q: "}
    with pytest.raises(UsageError, match="no data set 'anchor'; choose from pairs"):
        chosen({"pairs": "q: ", "anchor": "d: "}, {"pairs": dataset("anchor", "positive")})


def test_the_prompt_of_documents_is_that_of_the_positives():
    """The second sentence of a graded pair is no document, whatever its prompt."""
    datasets = {"pairs": dataset("anchor", "positive", "negative"), "graded": dataset("sentence1", "sentence2")}
    prompts = {"anchor": "q: ", "positive": "d: ", "negative": "d: ", "sentence1": "q: ", "sentence2": "q: "}
    for order in (("pairs", "graded"), ("graded", "pairs")):
        _, kept, default = chosen(prompts, {name: datasets[name] for name in order})
        assert (kept, default) == ({"query": "q: ", "document": "d: "}, "query")


def test_prompts_that_the_model_does_not_keep_are_named(caplog):
    two = {"first": dataset("anchor", "positive"), "second": dataset("anchor", "positive")}
    _, kept, _ = chosen({"first": {"anchor": "q: ", "positive": "d: "}, "second": {"anchor": "q: "}}, two)
    assert kept == {"query": "q: ", "document": ""} and "first 'd: ', second ''" in caplog.text
    chosen({"first": {"anchor": "q: ", "positive": "e: "}, "second": "s: "}, two)
    assert "does not store the prompts of documents: first 'e: '" in caplog.text
    stored = {"query": "q: ", "passage": "p: "}
    chosen(None, two, static_model(prompts=stored, default_prompt_name="query"))
    assert "not with its prompt for documents, 'p: '" in caplog.text


def test_data_sets_may_have_prompts_of_their_own():
    datasets = {"pairs": dataset("anchor", "positive"), "scored": dataset("sentence1", "sentence2")}
    given, kept, default = chosen({"pairs": {"anchor": "q: "}, "scored": "s: "}, datasets)
    assert given == {"pairs": {"anchor": "q: "}, "scored": {"sentence1": "s: ", "sentence2": "s: "}}
    assert (kept["pairs"], kept["scored"], default) == ("q: ", "s: ", None)


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ({"ancor": "q: "}, "did you mean anchor"),
        ({"anchor": 3}, "'anchor' must be a string"),
        ({"pairs": {"ancor": "q: "}}, "prompts.pairs"),
        ({"pairs": "q: ", "sored": "s: "}, "did you mean scored"),
        ({"pairs": 3}, "must be a string or an object"),
    ],
)
def test_prompts_of_nothing_are_refused(prompts, named):
    with pytest.raises(UsageError, match=named):
        chosen(prompts, {"pairs": dataset("anchor", "positive"), "scored": dataset("sentence1", "sentence2")})


def test_a_model_is_trained_with_its_own_default_prompt():
    model = static_model(prompts={"query": "word5 ", "document": ""}, default_prompt_name="query")
    assert chosen(None, {"data": dataset("anchor", "positive")}, model)[0] == "word5 "
    model = static_model(prompts={"query": "word5 ", "document": ""})
    assert chosen(None, {"data": dataset("anchor", "positive")}, model)[0] is None


def test_the_steps_see_the_prompt_and_the_final_model_has_it(call, monkeypatch, tmp_path, tiny_model):
    from training.utils.trainer import MatryoshkaTrainer

    seen, compute_loss = [], MatryoshkaTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        seen.extend(self.model.tokenizer.batch_decode(inputs["anchor_input_ids"], skip_special_tokens=True))
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(MatryoshkaTrainer, "compute_loss", spy)
    rows = [{"anchor": f"the man number {i}", "positive": f"man {i} the"} for i in range(12)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--train_data", data, "--dev_data", "none", "--max_steps", "1", "--per_device_train_batch_size", "4")
    flags += ("--matryoshka_dims", "16", "--output_dir", tmp_path / "run", "--prompts", "a dog ")
    done = call(NLI, tiny_model, *flags)
    assert done.code == 0, done.err
    assert len(seen) == 4 and all(text.startswith("a dog the man") for text in seen)
    final = SentenceTransformer(str(tmp_path / "run/final"))
    assert final.prompts[final.default_prompt_name] == "a dog "


# Evaluation


def test_prompts_are_part_of_the_identity(tmp_path):
    static_model().save_pretrained(str(tmp_path / "m"))
    source = str(tmp_path / "m")
    identities = [identify(source), identify(source, prompts="q: "), identify(source, prompts={"STS": "q: "})]
    assert len({identity.revision for identity in identities}) == 3
    assert all(identity.revision.startswith(identities[0].revision) for identity in identities)
    model = load_model(source, identities[1])
    assert (model.encode("word1") == model.encode("word1", prompt="q: ")).all()


@pytest.fixture
def scored_pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"sentence1": f"word{i} word{i + 1}", "sentence2": f"word{i} word{7 * i % 40}", "score": i % 6}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_name_of_a_file_selects_no_prompt(call, tmp_path, scored_pairs):
    """A file query.jsonl is a set of pairs like any other, although the model has a prompt of that name."""
    static_model(width=32, prompts={"query": "word3 word9 ", "document": ""}).save_pretrained(str(tmp_path / "m"))
    scored_pairs.rename(tmp_path / "query.jsonl")
    (tmp_path / "pairs.jsonl").write_text((tmp_path / "query.jsonl").read_text())
    flags = (
        "--model_name",
        tmp_path / "m",
        "--dims",
        "32",
        "--calibration_data",
        "none",
        "--output_dir",
        tmp_path / "out",
    )
    for name in ("query", "pairs"):
        assert call(STS, *flags, "--data", tmp_path / f"{name}.jsonl").code == 0
    scores = read_summary(tmp_path / "out").set_index("task")["score"]
    assert scores["query"] == scores["pairs"]


def test_calibration_texts_are_encoded_like_the_tasks_texts():
    class Store:
        model = static_model(prompts={"query": "q: ", "document": "d: ", "STS": "s: "})
        encoded: ClassVar[list[tuple]] = []

        def encode(self, texts, prompt=None, role=None):
            self.encoded.append((texts, prompt, role))
            return np.zeros((len(texts), 4), dtype=np.float32)

    tasks = [
        ("STS17", "STS", None),
        ("STS22", "STS", None),
        ("X", "Retrieval", "query"),
        ("X", "Retrieval", "document"),
    ]
    assert encode_like_tasks(Store(), list("abcde"), tasks).shape == (5, 4)
    assert Store.encoded == [(["a", "d"], "s: ", None), (["b", "e"], "q: ", "query"), (["c"], "d: ", "document")]


def test_scores_with_a_prompt_stand_next_to_those_without(call, tmp_path, scored_pairs):
    static_model(width=32).save_pretrained(str(tmp_path / "m"))
    flags = ("--model_name", tmp_path / "m", "--data", scored_pairs, "--dims", "32", "8", "--calibration_data", "none")
    flags += ("--output_dir", tmp_path / "out")
    for prompts in (None, "word3 word9 ", '{"STS": "word3 word9 ", "Retrieval": "word1 "}'):
        done = call(STS, *flags, *(() if prompts is None else ("--prompts", prompts)))
        assert done.code == 0, done.err
    assert "'Retrieval'" in done.err and "matches none of the tasks" in done.err
    scores = read_summary(tmp_path / "out").query("dim == 32").set_index("revision")["score"]
    assert len(scores) == 3
    plain, *prompted = scores
    assert prompted[0] == prompted[1] != plain
