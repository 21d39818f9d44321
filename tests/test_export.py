"""An exported model returns the first numbers of the original's embeddings, normalised, wherever it is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import (
    BoW,
    Dense,
    Normalize,
    Pooling,
)
from tokenizers import Tokenizer

from common.models import identify
from evaluation.utils.scoring.similarity import sts_scores
from tests.helpers import ROOT, sentence_model, static_model
from tests.tiny_models import bert_tokenizer, make_model, save_plain
from training.utils.export import prefixes
from training.utils.export_card import loss_table
from training.utils.export_loss import load_scored_pairs, measure_loss
from training.utils.onnx_export import portable_tokenizer

EXPORT = "training/export_model.py"
DIM = 16
TEXTS = [
    "The sky is clear today",
    "السماء صافية اليوم",
    "a",
    "more words than the model can take " * 60,
    "two  spaces,\nand a line break",
]


def expected(
    model: Path | SentenceTransformer, dim: int = DIM, texts: list[str] = TEXTS, prompt: str = ""
) -> np.ndarray:
    if isinstance(model, Path):
        model = SentenceTransformer(str(model), device="cpu")
    prefix = model.encode(texts, prompt=prompt)[:, :dim].astype(np.float64)
    return prefix / np.linalg.norm(prefix, axis=1, keepdims=True)


def in_a_fresh_process(code: str, cwd: Path, python: Sequence[str] = (sys.executable,)) -> np.ndarray:
    """Run ``code`` in a process without this repository and its environment variables, and return its ``embeddings``."""
    (cwd / "texts.json").write_text(json.dumps(TEXTS))
    program = f"import json, sys\ntexts = json.load(open('texts.json'))\n{code}\n"
    program += f"assert {str(ROOT)!r} not in sys.path\n"
    program += "import numpy; numpy.save('embeddings.npy', embeddings)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))} | {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "program.py"
        script.write_text(program)
        done = subprocess.run([*python, script], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(cwd / "embeddings.npy")


WITHOUT_TORCH = "for name in ('torch', 'transformers', 'sentence_transformers'): sys.modules[name] = None\n"


def example_of(folder: Path) -> str:
    """Return the code in the card, without its example texts."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    lines = code.splitlines()
    assert len(lines) <= 26
    return "\n".join(line for line in lines if not line.startswith(("print(", "embeddings = ")))


@pytest.fixture(scope="session")
def static(hub, groups, tmp_path_factory) -> Path:
    from training.utils.model_utils import make_static_model

    folder = tmp_path_factory.mktemp("static") / "model"
    texts = [text for group in groups for key, text in group.items() if key != "topic"]
    make_static_model(iter(texts), 48, 800, seed=1).save_pretrained(str(folder))
    return folder


def variant(name: str, tiny_model: Path, hub, folder: Path) -> SentenceTransformer:
    """Models that end in different ways."""
    torch.manual_seed(3)
    base = sentence_model(hub.root / "models/distilroberta-base") if name == "roberta" else sentence_model(tiny_model)
    transformer, pooling = base[0], base[1]
    width = pooling.get_embedding_dimension()
    ends = {
        "normalised": [pooling, Normalize()],
        "roberta": [pooling],
        "cls": [Pooling(width, pooling_mode="cls")],
        "lasttoken": [Pooling(width, pooling_mode="lasttoken")],
        "two poolings": [Pooling(width, pooling_mode=("mean", "max"))],
        "dense": [pooling, Dense(width, 40, activation_function=torch.nn.Tanh())],
        "dense, normalised": [
            pooling,
            Dense(width, 40, bias=False, activation_function=torch.nn.Identity()),
            Normalize(),
        ],
        "softmax": [pooling, Dense(width, 40, activation_function=torch.nn.Softmax(dim=-1))],
        "residual": [pooling, Dense(width, width, use_residual=True)],
    }
    model = SentenceTransformer(modules=[transformer, *ends[name]], device="cpu")
    if name == "normalised":
        model.prompts = {"query": "what is: ", "document": ""}
    model.save_pretrained(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


ENDS = [
    "normalised",
    "roberta",
    "cls",
    "lasttoken",
    "two poolings",
    "dense",
    "dense, normalised",
    "softmax",
    "residual",
]
# input and output width of the last Dense module: truncated where it could be, otherwise added
DENSE_OF = {"dense": (64, DIM), "dense, normalised": (64, DIM), "softmax": (40, DIM), "residual": (64, DIM)}


@pytest.mark.parametrize("name", ENDS)
def test_a_folder_for_sentence_transformers(name, tiny_model, hub, call, tmp_path):
    model = variant(name, tiny_model, hub, tmp_path / "model")
    done = call(EXPORT, tmp_path / "model", "--dim", DIM, "--output_dir", tmp_path / "out")
    assert done.code == 0, done.err
    assert done.out == f"{tmp_path / 'out'}\n"
    exported = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert exported.get_embedding_dimension() == DIM and exported.truncate_dim is None
    embeddings = exported.encode(TEXTS)
    np.testing.assert_allclose(embeddings, expected(model), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    kinds = [type(module).__name__ for module in exported]
    assert kinds[-1] == "Normalize" and kinds.count("Normalize") == 1 and kinds[-2] == "Dense"
    last = exported[-2]
    if name in DENSE_OF:
        assert (last.in_features, last.out_features) == DENSE_OF[name]
    assert kinds.count("Dense") == (2 if name in ("softmax", "residual") else 1)
    assert exported.prompts == model.prompts
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("name", ["normalised", "roberta", "lasttoken"])
def test_one_onnx_file(name, tiny_model, hub, call, tmp_path):
    model = variant(name, tiny_model, hub, tmp_path / "model")
    done = call(EXPORT, tmp_path / "model", "--dim", DIM, "--format", "onnx", "--output_dir", tmp_path / "out")
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "model.onnx",
        "tokenizer.json",
        "prompts.json",
    }
    code = WITHOUT_TORCH + example_of(tmp_path / "out")
    code += "\nembeddings = np.stack([embed(texts), embed(texts, 'query')])"
    prompt = "what is: " if name == "normalised" else ""
    both = np.stack([expected(model), expected(model, prompt=prompt)])
    np.testing.assert_allclose(in_a_fresh_process(code, tmp_path / "out"), both, atol=1e-5)


def test_a_trained_model_in_both_formats(trained, call, warm_python, tmp_path):
    for form in ("sentence-transformers", "onnx"):
        done = call(EXPORT, trained, "--dim", "32", "--format", form, "--output_dir", tmp_path / form)
        assert done.code == 0, done.err
    code = "from sentence_transformers import SentenceTransformer\nembeddings = SentenceTransformer('.').encode(texts)"
    of_folder = in_a_fresh_process(code, tmp_path / "sentence-transformers", warm_python)
    code = WITHOUT_TORCH + example_of(tmp_path / "onnx") + "\nembeddings = embed(texts)"
    of_onnx = in_a_fresh_process(code, tmp_path / "onnx")
    for embeddings in (of_folder, of_onnx):
        assert embeddings.shape == (len(TEXTS), 32) and embeddings.dtype == np.float32
        np.testing.assert_allclose(embeddings, expected(trained, 32), atol=1e-5)
    config = json.loads((tmp_path / "sentence-transformers/config.json").read_text())
    assert config["matryoshka_dimensions"] == [32, 16]  # of 64, 32 and 16
    for form in ("sentence-transformers", "onnx"):
        card = (tmp_path / form / "README.md").read_text()
        assert "matryoshka" in ModelCard(card).data.tags
        for path in filter(Path.is_file, (tmp_path / form).rglob("*")):  # no path of this machine is exported
            for place in (tmp_path, ROOT, Path(torch.__file__).parents[1]):
                assert str(place).encode() not in path.read_bytes(), path


def test_static_embeddings_in_both_formats(static, call, tmp_path):
    texts = [*TEXTS, ""]
    for form in ("sentence-transformers", "onnx"):
        done = call(EXPORT, static, "--dim", DIM, "--format", form, "--output_dir", tmp_path / form)
        assert done.code == 0, done.err
    exported = SentenceTransformer(str(tmp_path / "sentence-transformers"), device="cpu")
    assert exported[0].embedding.weight.shape[1] == DIM and len(list(exported.children())) == 2  # the table is cut
    np.testing.assert_allclose(exported.encode(TEXTS), expected(static), atol=1e-5)
    assert not exported.encode(texts)[-1].any()
    code = (
        WITHOUT_TORCH + example_of(tmp_path / "onnx") + "\nembeddings = embed(texts)\nassert not embed(['', '']).any()"
    )
    np.testing.assert_allclose(in_a_fresh_process(code, tmp_path / "onnx"), expected(static), atol=1e-5)


def test_int8_is_smaller_and_its_loss_is_measured(hub, tiny_model, call, tmp_path):
    """By default on the validation set of STS-B, and at the full width."""
    flags = ("--format", "onnx", "--weights", "int8", "--output_dir", tmp_path / "int8")
    done = call(EXPORT, "tiny/sentence-bert", *flags)
    assert done.code == 0, done.err
    exact_size = (tiny_model / "model.safetensors").stat().st_size
    int8_size = (tmp_path / "int8/model.onnx").stat().st_size  # the weights at a quarter of their size, and the graph
    assert int8_size < 0.5 * exact_size

    path = hub.root / "datasets/sentence-transformers/stsb/default/validation-00000-of-00001.parquet"
    rows = pd.read_parquet(path)
    texts, n = [*rows["sentence1"], *rows["sentence2"]], len(rows)
    (tmp_path / "int8/mine.json").write_text(json.dumps(texts))
    code = WITHOUT_TORCH + example_of(tmp_path / "int8") + "\nembeddings = embed(json.load(open('mine.json')))"
    sides = [expected(tiny_model, 64, texts), in_a_fresh_process(code, tmp_path / "int8")]
    scores = [100 * spearmanr((e[:n] * e[n:]).sum(1), rows["score"]).statistic for e in sides]
    card = ModelCard.load(tmp_path / "int8/README.md")
    [row] = [line for line in card.text.splitlines() if line.startswith(f"| STS-B validation | {n} |")]
    before, after, difference = row.strip("| ").split(" | ")[2:]
    assert float(before) == pytest.approx(scores[0], abs=0.006)
    # how a text's activations are rounded depends on the other texts in its batch
    assert float(after) == pytest.approx(scores[1], abs=2)
    shown, low, high = map(float, re.findall(r"[-+]\d+\.\d+", difference))
    assert shown == pytest.approx(float(after) - float(before), abs=0.011) and low <= shown <= high
    assert card.data.base_model == "tiny/sentence-bert" and card.data.base_model_relation == "quantized"
    assert "64 dimensions" in card.text


def test_int8_is_measured_with_the_default_prompt_and_ties_as_an_evaluation_has_them(monkeypatch):
    model = static_model(prompts={"query": "word1 word2 "})
    model.default_prompt_name = "query"
    rows = {"sentence1": [f"word{n} word3" for n in range(20)], "sentence2": [f"word{n % 7} word3" for n in range(20)]}
    rows["score"] = [float(n % 4) for n in range(20)]
    plain = SentenceTransformer(modules=list(model))
    exact = SimpleNamespace(encode=lambda texts: prefixes(plain, texts, 8))
    monkeypatch.setattr("training.utils.export_loss.OnnxModel", lambda _: exact)
    [loss] = measure_loss(model, Path("unused"), 8, {"mine": rows})
    first, second = (model.encode(rows[column])[:, :8] for column in ("sentence1", "sentence2"))
    expected = 100 * sts_scores(first, second, rows["score"])["cosine_spearman"]
    assert loss.before == pytest.approx(expected, abs=1e-4) and loss.after == pytest.approx(expected, abs=1e-4)


def test_the_pairs_to_measure_int8_on(hub, pairs, tmp_path, caplog):
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    sets = load_scored_pairs(str(tmp_path / "mine.jsonl"))
    assert {name: len(rows["score"]) for name, rows in sets.items()} == {
        f"mine {s}": 252 for s in ("ar-ar", "en-ar", "en-en")
    }
    with hub.fail("/api/datasets/sentence-transformers/stsb", 404):
        assert load_scored_pairs(None) == {}
    assert "the effect of int8 on the score is not measured" in caplog.text
    assert "Not measured" in loss_table([])


def test_the_licence_and_languages_are_taken_over(trained, call, tmp_path):
    shutil.copytree(trained, tmp_path / "model")
    card = ModelCard.load(tmp_path / "model/README.md")
    card.data.license, card.data.language = "apache-2.0", ["ar", "en"]
    card.save(tmp_path / "model/README.md")
    assert call(EXPORT, tmp_path / "model", "--dim", DIM, "--output_dir", tmp_path / "out").code == 0
    data = ModelCard.load(tmp_path / "out/README.md").data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", ["ar", "en"], "sentence-transformers")


def test_the_default_folder_is_named_after_the_model(trained, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(EXPORT, trained, "--dim", DIM)
    assert done.code == 0 and done.out == "output/run-16\n"
    assert (tmp_path / "output/run-16/model.safetensors").exists()


@pytest.mark.parametrize(("dim", "warns"), [("24", True), ("32", False), ("64", False)])
def test_a_dimension_that_was_not_trained_is_exported_with_a_warning(dim, warns, trained, call, tmp_path):
    done = call(EXPORT, trained, "--dim", dim, "--output_dir", tmp_path / "exported")
    assert done.code == 0, done.err
    assert ("the model was trained for 64, 32, 16 dimensions, not for 24: measure" in done.err) == warns


def test_wrong_use_ends_in_one_line(trained, fails, tmp_path):
    fails(2, "MODEL is missing", EXPORT, "--dim", "8")
    fails(
        2, "--dim 65 is above the model's width of 64", EXPORT, trained, "--dim", "65", "--output_dir", tmp_path / "out"
    )
    fails(2, "--dim must be at least 1", EXPORT, trained, "--dim", "0")
    fails(2, "--format must be one of", EXPORT, trained, "--format", "gguf")
    fails(2, "--weights int8 needs --format onnx", EXPORT, trained, "--weights", "int8")
    fails(2, "--data is for measuring the effect of int8", EXPORT, trained, "--data", "pairs.csv")
    (tmp_path / "there").mkdir()
    fails(2, f"{tmp_path / 'there'} already exists", EXPORT, trained, "--dim", "8", "--output_dir", tmp_path / "there")
    fails(2, "is inside the model's folder", EXPORT, trained, "--dim", "8", "--output_dir", Path(trained) / "small")
    fails(1, "no such folder", EXPORT, tmp_path / "nothing", "--dim", "8")
    flags = ("--dim", "8", "--format", "onnx", "--weights", "int8", "--output_dir", tmp_path / "out")
    fails(2, "pairs.csv: no such file", EXPORT, trained, *flags, "--data", tmp_path / "pairs.csv")
    assert {path.name for path in tmp_path.iterdir()} == {"there"}


def test_what_cannot_be_exported_is_refused_in_one_line_and_leaves_nothing(tiny_model, fails, tmp_path, hub):
    bag = SentenceTransformer(modules=[BoW(["sky", "clear", "today"]), Dense(3, 8)], device="cpu")
    bag.save_pretrained(str(tmp_path / "bag"))
    flags = ("--dim", "4", "--output_dir", tmp_path / "out")
    fails(1, "cannot be exported to ONNX", EXPORT, tmp_path / "bag", *flags, "--format", "onnx")

    model = variant("cls", tiny_model, hub, tmp_path / "prompted")
    model.prompts = {"query": "query: "}
    model.set_pooling_include_prompt(False)
    model.save_pretrained(str(tmp_path / "prompted"))
    fails(1, "excludes its prompts from the pooling", EXPORT, tmp_path / "prompted", *flags, "--format", "onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"bag", "prompted"}


def test_models_that_do_not_become_one_onnx_graph_are_refused(fails, call, tmp_path):
    """A router has one encoder for queries and one for documents; the graph of Mamba accepts only texts of one length."""
    words = bert_tokenizer()
    torch.manual_seed(3)
    towers = []
    for name in ("query", "document"):
        encoder = SentenceTransformer(str(make_model("encoder", tmp_path / name)), device="cpu")
        for parameter in encoder.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        towers.append(list(encoder.children()))
        shutil.rmtree(tmp_path / name)
    router = SentenceTransformer(modules=[Router.for_query_document(*towers)], device="cpu")
    router.save_pretrained(str(tmp_path / "router"))
    save_plain(words, "Mamba", tmp_path / "mamba", hidden_size=32, num_hidden_layers=1, state_size=4)
    flags = ("--dim", DIM, "--output_dir", tmp_path / "out")
    message = "(Router), but an ONNX file holds only one: use --format sentence-transformers"
    fails(
        1,
        f"router has an encoder for each kind of text {message}",
        EXPORT,
        tmp_path / "router",
        *flags,
        "--format",
        "onnx",
    )
    message = "mamba: MambaModel cannot be exported to ONNX ( … use --format sentence-transformers"
    assert "disk" not in fails(1, message, EXPORT, tmp_path / "mamba", *flags, "--format", "onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"router", "mamba"}
    assert call(EXPORT, tmp_path / "router", *flags).code == 0
    both = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    for encode, original in ((both.encode_query, router.encode_query), (both.encode_document, router.encode_document)):
        prefix = original(TEXTS)[:, :DIM]
        np.testing.assert_allclose(encode(TEXTS), prefix / np.linalg.norm(prefix, axis=1, keepdims=True), atol=1e-5)


def test_an_export_that_differs_is_refused(trained, fails, tmp_path, monkeypatch):
    """A wrong cut, here of the last numbers instead of the first, does not become a folder."""
    monkeypatch.setattr(torch, "eye", lambda n, m: torch.ones(n, m).cumsum(1).flip(1))
    message = fails(
        1,
        "cannot be exported: its embeddings would differ",
        EXPORT,
        trained,
        "--dim",
        "8",
        "--output_dir",
        tmp_path / "out",
    )
    assert str(trained) in message and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(trained, fails, tmp_path):
    (tmp_path / "file").write_text("")
    fails(2, "--output_dir … file is a file", EXPORT, trained, "--dim", "8", "--output_dir", tmp_path / "file/out")
    # root may write anywhere, and fails later
    code, message = (1, "could not be written") if os.access("/proc", os.W_OK) else (2, "/proc is not writable")
    fails(code, message, EXPORT, trained, "--dim", "8", "--output_dir", "/proc/out")


def test_the_tokenizer_has_truncation_and_padding(trained):
    model = SentenceTransformer(str(trained), device="cpu")
    model.max_seq_length = 12
    encoded = Tokenizer.from_str(portable_tokenizer(model, identify(str(trained)))).encode_batch(TEXTS)
    assert {len(text.ids) for text in encoded} == {12}
    features = model.preprocess(TEXTS)
    assert [text.ids for text in encoded] == features["input_ids"].tolist()
    assert [text.attention_mask for text in encoded] == features["attention_mask"].tolist()
