"""What the tests share: a loopback Hub with small data and tiny models, and ways to run the scripts against it.

The data is drawn from ``data/sample/``. The models have random weights; what matters here is that they have the names, the
files and the architectures that the scripts ask for.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.hub import Hub

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import BertTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
TRIPLET = ("premise", "entailment", "contradiction")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: give --slow to run it"))


def pytest_configure(config):
    """Point the client libraries at the tests' Hub before any of them is imported, here and in subprocesses alike."""
    config.workplace = Path(tempfile.mkdtemp(prefix="matryoshka-tests-"))
    config.hub = Hub(config.workplace / "hub")
    for name in list(os.environ):
        if name.startswith(("HF_", "MTEB_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOG_LEVEL"):
            del os.environ[name]
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"]))
    os.environ.update(
        HF_ENDPOINT=config.hub.url,
        HF_HOME=str(config.workplace / "hf_home"),
        MTEB_CACHE=str(config.workplace / "mteb_cache"),
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HUB_RETRY_WAIT="0.02",
        NO_PROXY=direct,
        no_proxy=direct,
    )


def pytest_unconfigure(config):
    if hasattr(config, "hub"):
        config.hub.shutdown()
        config.hub.server_close()
        shutil.rmtree(config.workplace, ignore_errors=True)


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def groups() -> list[dict]:
    """The premise groups of the sample: ``{premise,entailment,neutral,contradiction}_{en,ar}``."""
    return read_jsonl(ROOT / "data/sample/nli_groups.jsonl")


@pytest.fixture(scope="session")
def pairs() -> list[dict]:
    """The scored pairs of the sample: ``subset, sentence1, sentence2, score``."""
    return read_jsonl(ROOT / "data/sample/sts_pairs.jsonl")


def write_dataset(folder: Path, configs: dict[str, dict[str, list[dict]]]) -> None:
    """A data set repository: ``{config: {split: rows}}`` as Parquet, declared in its card."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    card = ["---", "configs:"]
    for config, splits in configs.items():
        card += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
            card += [f"  - split: {split}", f"    path: {path.relative_to(folder).as_posix()}"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))


def triplets(groups: list[dict], language: str) -> list[dict]:
    keys = ("anchor", "positive", "negative")
    return [{k: g[f"{part}_{language}"] for k, part in zip(keys, TRIPLET, strict=True)} for g in groups]


def classes(groups: list[dict], language: str = "en") -> list[dict]:
    parts = ("entailment", "neutral", "contradiction")
    return [
        {"premise": g[f"premise_{language}"], "hypothesis": g[f"{part}_{language}"], "label": label}
        for g in groups
        for label, part in enumerate(parts)
    ]


def scored(pairs: list[dict], subset: str, of: slice, scale: float = 1.0, shift: float = 0.0, **more) -> list[dict]:
    """Every seventh pair comes next, so that a slice has scores of all kinds."""
    chosen = [p for p in pairs if p["subset"] == subset]
    chosen = [p for start in range(7) for p in chosen[start::7]][of]
    return [
        {"sentence1": p["sentence1"], "sentence2": p["sentence2"], "score": shift + scale * p["score"], **more}
        for p in chosen
    ]


def write_datasets(folder: Path, groups: list[dict], pairs: list[dict]) -> None:
    parts = {"train": groups[:96], "dev": groups[96:126], "test": groups[126:156]}
    write_dataset(
        folder / "sentence-transformers/all-nli",
        {
            "triplet": {split: triplets(rows, "en") for split, rows in parts.items()},
            "pair-class": {split: classes(rows) for split, rows in parts.items()},
        },
    )
    # the first 60 pairs of each subset are STS17, and the next 50 Arabic ones STS22
    sts_parts = {"train": slice(176, 252), "validation": slice(96, 136), "test": slice(136, 176)}
    arabic_sts_parts = {"train": slice(150, 246), "validation": slice(110, 150)}
    write_dataset(
        folder / "sentence-transformers/stsb",
        {"default": {split: scored(pairs, "en-en", of, 1 / 5) for split, of in sts_parts.items()}},
    )
    write_dataset(
        folder / "mteb/stsbenchmark-sts",
        {"default": {split: scored(pairs, "en-en", of) for split, of in sts_parts.items()}},
    )
    arabic = folder / "Omartificial-Intelligence-Space"
    splits = {"train": "train", "dev": "validation"}
    write_dataset(
        arabic / "Arabic-NLi-Triplet", {"default": {splits[s]: triplets(parts[s], "ar") for s in ("train", "dev")}}
    )
    write_dataset(
        arabic / "Arabic-NLi-Pair-Class",
        {"default": {splits[s]: classes(parts[s], "ar") for s in ("train", "dev")}},
    )
    write_dataset(
        arabic / "Arabic-stsb",
        {"default": {split: scored(pairs, "ar-ar", of, 1 / 5) for split, of in arabic_sts_parts.items()}},
    )
    parallel = [{"english": g["premise_en"], "non_english": g["premise_ar"]} for g in groups]
    write_dataset(
        folder / "sentence-transformers/parallel-sentences-tatoeba",
        {"en-ar": {"train": parallel[156:252], "dev": parallel[252:292]}},
    )
    sts17 = [row for lang in ("ar-ar", "en-ar", "en-en") for row in scored(pairs, lang, slice(0, 60), lang=lang)]
    write_dataset(folder / "mteb/sts17-crosslingual-sts", {"default": {"test": sts17}})
    sts22 = scored(pairs, "ar-ar", slice(60, 110), 3 / 5, 1, lang="ar")
    write_dataset(folder / "mteb/sts22-crosslingual-sts", {"default": {"test": sts22}})


def write_bert(path: Path, tokenizer: BertTokenizerFast) -> None:
    """A tiny BERT with random weights."""
    from transformers import BertConfig, BertModel

    tokenizer.save_pretrained(path)
    BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=128,
        )
    ).save_pretrained(path)


def sentence_model(bert: Path) -> SentenceTransformer:
    """A transformer with mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(bert))
    return SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())], device="cpu")


def write_models(folder: Path, texts: list[str]) -> None:
    import torch
    from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
    from transformers import BertTokenizerFast, RobertaConfig, RobertaModel, RobertaTokenizerFast

    torch.manual_seed(0)
    roberta = folder / "distilroberta-base"
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=1500, show_progress=False, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    RobertaTokenizerFast(tokenizer_object=bpe._tokenizer, model_max_length=128).save_pretrained(roberta)
    RobertaModel(
        RobertaConfig(
            vocab_size=bpe.get_vocab_size(),
            num_hidden_layers=1,
            intermediate_size=64,
            max_position_embeddings=130,
            type_vocab_size=1,
        )
    ).save_pretrained(roberta)

    bert = folder / "aubmindlab/bert-base-arabertv02"
    wordpiece = BertWordPieceTokenizer(strip_accents=False, lowercase=False)
    wordpiece.train_from_iterator(texts, vocab_size=1500, show_progress=False)
    write_bert(bert, BertTokenizerFast(tokenizer_object=wordpiece._tokenizer, model_max_length=128))
    sentence_model(bert).save_pretrained(str(folder / "tiny/sentence-bert"))

    english = folder / "tiny/english-bert"  # its tokenizer breaks Arabic into letters
    letters = sorted({letter for text in texts for letter in text if "\u0600" <= letter <= "\u06ff"})
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    wordpiece.train_from_iterator((text for text in texts if text.isascii()), vocab_size=1000, show_progress=False)
    pieces = [*wordpiece.get_vocab(), *letters, *(f"##{letter}" for letter in letters)]
    write_bert(english, BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=128))
    sentence_model(english).save_pretrained(str(folder / "sentence-transformers/all-MiniLM-L6-v2"))


@pytest.fixture(scope="session")
def hub(request, groups, pairs) -> Hub:
    """The Hub, with its repositories written. Its address is in HF_ENDPOINT already."""
    hub: Hub = request.config.hub
    write_datasets(hub.root / "datasets", groups, pairs)
    texts = [value for row in [*groups, *pairs] for key, value in row.items() if isinstance(value, str)]
    write_models(hub.root / "models", texts)
    return hub


@pytest.fixture(scope="session")
def tiny_model(hub) -> Path:
    """The folder of a sentence-transformers model, 64 wide: a model on disk. Copy it before changing it."""
    return hub.root / "models/tiny/sentence-bert"


@pytest.fixture(scope="session")
def cli(hub):
    """``cli("training/x.py", "--flag", ...)`` runs a script as a user does; returns ``code``, ``out`` and ``err``."""

    def run(*args: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None, timeout: float = 300):
        first = [ROOT / args[0], *args[1:]] if str(args[0]).endswith(".py") else args
        done = subprocess.run(
            [sys.executable, *map(str, first)],
            cwd=cwd,
            env=os.environ | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture(scope="session")
def warm(hub, tmp_path_factory):
    """As ``cli``, for a script, in a fork of a process that has imported the libraries (see tests/warm.py)."""
    folder = tmp_path_factory.mktemp("warm")
    command = [sys.executable, str(ROOT / "tests/warm.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:

        def run(script: str, *args: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None):
            out, err = folder / "out", folder / "err"
            request = {"argv": [str(ROOT / script), *map(str, args)], "cwd": str(cwd), "env": env or {}}
            request |= {"out": str(out), "err": str(err)}
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
            return SimpleNamespace(code=code, out=out.read_text(), err=err.read_text())

        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def trained(hub, tiny_model, groups, warm, tmp_path_factory) -> Path:
    """The final model of a short training at 64, 32 and 16 dimensions. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "triplets.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in triplets(groups[:48], "en")))
    flags = ("--train_data", data, "--dev_data", "none", "--matryoshka_dims", "64", "32", "16", "--precision", "fp32")
    flags += ("--per_device_train_batch_size", "16", "--learning_rate", "1e-3", "--output_dir", folder / "run")
    done = warm("training/matryoshka_nli.py", tiny_model, *flags)
    assert done.code == 0, done.err
    return folder / "run/final"


@pytest.fixture
def call(hub, capsys, monkeypatch):
    """``call("training/x.py", "--flag", ...)`` runs a script's ``main`` in this process, which saves importing torch."""
    from common.errors import run

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def invoke(script: str, *args: str | Path):
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        argv = [str(arg) for arg in args]
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *argv])
        capsys.readouterr()
        code = 0
        try:
            run(lambda: module.main(argv))
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    yield invoke
    root.handlers, root.level = handlers, level


@pytest.fixture
def fails(call):
    """``fails(code, "part of the message", script, *args)``: the script ends so, with one line and no traceback."""

    def check(code: int, message: str, script: str, *args: str | Path) -> str:
        done = call(script, *args)
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert done.code == code, done.err
        assert len(errors) == 1 and message in errors[0], done.err
        assert done.err.rstrip().splitlines()[-1] == errors[0], "the error is not the last line"
        assert "Traceback" not in done.err
        return errors[0]

    return check
