"""Functions for several test files: they write rows, files and tiny models, and read results, records and weights.

Libraries are imported where they are used: conftest.py imports this file before it has pointed them at the tests' Hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
NLI, HYBRID = "training/matryoshka_nli.py", "training/hybrid_training.py"
TRIPLET = ("premise", "entailment", "contradiction")
WORDS = [f"word{i}" for i in range(300)]


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[dict]) -> Path:
    import pandas as pd

    frame = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def write_pairs(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_summary(folder: Path) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(folder / "summary.csv", dtype={"revision": str}, keep_default_na=False, na_values=[""])


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def last_state(folder: Path) -> dict:
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return json.loads((checkpoints[-1] / "trainer_state.json").read_text())


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(next(model.rglob("model.safetensors")))


def finished(done, folder: Path, cwd: Path = ROOT) -> Path:
    """Check that a run succeeded, and return its final model, whose path must be all of standard output."""
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    final = Path(done.out.splitlines()[-1])
    assert done.out == f"{final}\n"
    assert (cwd / final).resolve() == (folder / "final").resolve()
    return folder / "final"


def no_nan(out: Path) -> None:
    for path in out.rglob("*"):
        if path.suffix in (".csv", ".json", ".md", ".html"):
            text = path.read_text(encoding="utf-8").lower()
            for word in ("nan", "infinity"):
                assert not [
                    w
                    for w in text.replace(",", " ").replace(">", " ").replace("<", " ").split()
                    if w.strip('":|*') == word
                ], path


def says(message: str, wanted: str) -> bool:
    """Return whether a message contains every part of ``wanted``; " … " separates the parts, and any words may lie between them."""
    return all(part in message for part in wanted.split(" … "))


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
    """Return graded pairs of a subset, reordered in strides of seven so that any slice has a range of scores."""
    chosen = [p for p in pairs if p["subset"] == subset]
    chosen = [p for start in range(7) for p in chosen[start::7]][of]
    return [
        {"sentence1": p["sentence1"], "sentence2": p["sentence2"], "score": shift + scale * p["score"], **more}
        for p in chosen
    ]


def texts_of(n, seed=0):
    import numpy as np

    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 5)) for _ in range(n)]


def pairs_of(n: int = 40, subset: str = "default", seed: int = 0) -> list[dict]:
    import numpy as np

    texts, scores = texts_of(2 * n, seed), np.random.default_rng(seed).random(n)
    return [
        {"sentence1": texts[2 * i], "sentence2": texts[2 * i + 1], "score": float(score), "subset": subset}
        for i, score in enumerate(scores)
    ]


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
    from tokenizers import ByteLevelBPETokenizer
    from transformers import BertTokenizerFast, RobertaConfig, RobertaModel, RobertaTokenizerFast

    from training.utils.vocabulary import learn_pieces

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
    pieces = learn_pieces([text.lower() for text in texts], 1500)
    write_bert(bert, BertTokenizerFast(vocab=wordpiece_vocabulary(pieces), model_max_length=128))
    sentence_model(bert).save_pretrained(str(folder / "tiny/sentence-bert"))

    english = folder / "tiny/english-bert"  # its tokenizer breaks Arabic into letters
    letters = sorted({letter for text in texts for letter in text if "\u0600" <= letter <= "\u06ff"})
    pieces = learn_pieces([text.lower() for text in texts if text.isascii()], 1000)
    vocabulary = wordpiece_vocabulary([*pieces, *letters, *(f"##{letter}" for letter in letters)])
    write_bert(english, BertTokenizerFast(vocab=vocabulary, model_max_length=128))
    sentence_model(english).save_pretrained(str(folder / "sentence-transformers/all-MiniLM-L6-v2"))
    sentence_model(unigram_bert(folder / "tiny/unigram-bert", texts)).save_pretrained(
        str(folder / "intfloat/multilingual-e5-small")
    )


def wordpiece_vocabulary(pieces: list[str]) -> dict[str, int]:
    """Number the pieces, after the special tokens and followed by the letters that continue a word but start none, such as commas."""
    starts = [piece.removeprefix("##") for piece in pieces if len(piece.removeprefix("##")) == 1]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return {piece: i for i, piece in enumerate(dict.fromkeys([*special, *pieces, *starts]))}


def unigram_bert(folder: Path, texts: list[str]) -> Path:
    """A tiny BERT with the tokenizer of XLM-RoBERTa: <s>, <pad>, </s>, <unk> first, <mask> last, and rows that no piece uses."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    # the trainer gives the rarest letters the lowest scores, 0.0001 apart, in random order
    pieces = [[piece, round(score, 2)] for piece, score in vocabulary[len(special) :]]
    pieces.sort(key=lambda item: (-item[1], item[0]))
    state["model"]["vocab"] = [*vocabulary[: len(special)], *pieces, ["<mask>", 0.0]]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    names = {
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size() + 35,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
        pad_token_id=1,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def static_model(seed=0, width=32, **arguments):
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(seed).standard_normal((len(WORDS) + 1, width)).astype(np.float32)
    return SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu", **arguments
    )


class Counting:
    """Counts the texts that a model encodes."""

    def __init__(self, model):
        self.model, self.texts = model, []
        for name in ("encode", "encode_query", "encode_document"):
            setattr(model, name, self.counted(getattr(model, name)))

    def counted(self, encode):
        def wrapped(texts, **arguments):
            self.texts += list(texts)
            return encode(texts, **arguments)

        return wrapped


def tokens_seen(model: SentenceTransformer, texts: list[str]) -> int:
    """How many positions the first layer's matrix products work on."""
    import torch
    from transformers.pytorch_utils import Conv1D  # GPT-2's

    seen = []
    layer = next(
        module
        for name, module in model[0].auto_model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and "embedding" not in name
    )
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output[..., 0].numel()))
    model.encode(texts, batch_size=64)
    handle.remove()
    return sum(seen)
