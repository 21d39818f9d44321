"""Users' models: their kind according to their files, missing parts, and their limit of tokens."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from common.errors import RunError
from common.models import identify, load_model
from common.packing import pack
from common.text_inputs import token_limit
from tests.tiny_models import OTHER_KINDS, POSITIONS, SIZES, WORDS, bert_tokenizer, make_model, save_plain

STS, NLI = "evaluation/evaluate_sts.py", "training/matryoshka_nli.py"
LONG = " ".join(WORDS)  # 60 words: more than any of these models can take
SAYS = {
    "sparse": "a sparse encoder",
    "multi-vector": "a multi-vector model",
    "PyLate": "a multi-vector model",
    "HF_ColBERT": "a multi-vector model",
    "cross-encoder": "a cross-encoder or classifier",
    "cross-encoder of three classes": "a cross-encoder or classifier",
    "classifier": "according to config.json (BertForSequenceClassification, 3 labels)",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """``model("RoBERTa")``: the folder of a model of this kind, written once. Copy it before changing it."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str):
        path = root / kind.replace(" ", "-")
        return path if path.exists() else make_model(kind, path)

    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with ``pairs.jsonl`` (two words a text) and ``scored.jsonl`` (13 words a text, differing in first and last)."""
    root = tmp_path_factory.mktemp("data")
    pairs = [{"anchor": f"word{i} word7", "positive": f"word{i} word{i + 1}"} for i in range(16)]
    far = [f"word{i} {' '.join(WORDS[12:23])} word{30 + i}" for i in range(10)]
    scored = [{"sentence1": far[i], "sentence2": far[i * 3 % 10], "score": i} for i in range(10)]
    for name, rows in (("pairs", pairs), ("scored", scored)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


# Other kinds


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_are_refused_before_their_weights_are_read(model, tmp_path, kind):
    folder = shutil.copytree(model(kind), tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError) as refused:
        load_model(str(folder))
    assert SAYS[kind] in str(refused.value) and "use a dense embedding model" in str(refused.value)


def test_other_kinds_are_refused_by_both_commands(fails, model, data, tmp_path):
    for kind in ("sparse", "cross-encoder of three classes"):
        out = ("--output_dir", tmp_path / "out")
        said = fails(1, SAYS[kind], STS, "--model_name", model(kind), "--data", data / "scored.jsonl", *out)
        assert said == fails(
            1, SAYS[kind], NLI, model(kind), "--train_data", data / "pairs.jsonl", "--dev_data", "none", *out
        )


def test_a_kind_on_the_hub_is_known_without_its_weights(hub, model):
    shutil.copytree(model("sparse"), hub.root / "models/stranger/sparse")
    with pytest.raises(RunError, match="model stranger/sparse is a sparse encoder"):
        load_model("stranger/sparse")
    assert not any("stranger/sparse/resolve" in request and ".safetensors" in request for request in hub.requests)


def test_a_model_that_takes_no_text_is_refused(model, tmp_path):
    folder = shutil.copytree(model("encoder"), tmp_path / "m")
    path = folder / "sentence_bert_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"modality_config": {"image": values["modality_config"]["text"]}}))
    with pytest.raises(RunError, match="does not accept text, only image: use a text embedding model"):
        load_model(str(folder))


def test_an_embedding_model_made_from_a_classifier_is_none(model, tmp_path):
    """If there is a modules.json, the architecture only says where the weights came from."""
    folder = shutil.copytree(model("encoder"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    assert load_model(str(folder)).encode(["word1"]).shape == (1, 32)


def test_frozen_models_have_nothing_to_train(fails, model, data, tmp_path):
    folder = model("word vectors")
    out = tmp_path / "out"
    fails(1, "all of its weights are frozen", NLI, folder, "--train_data", data / "pairs.jsonl", "--output_dir", out)
    assert load_model(str(folder)).encode(["word1 word2"]).shape == (1, 32)


# Padding


@pytest.mark.parametrize("kind", ["LLaMA", "GPT-2"])
def test_the_end_of_text_token_pads_where_there_is_no_other(model, tmp_path, kind, caplog):
    with caplog.at_level("INFO"):
        loaded = load_model(str(model(kind)))
    assert "using its end-of-text token <end>" in caplog.text
    texts = ["word1", "word2 word3 word4", "word5 word6"]
    alone = np.concatenate([loaded.encode([text]) for text in texts])
    assert loaded.encode(texts) == pytest.approx(alone, abs=1e-5)
    loaded.save_pretrained(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")  # fails where the tokenizer cannot pad
    assert again.tokenizer.pad_token == "<end>"
    assert again.encode(texts) == pytest.approx(alone, abs=1e-5)


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(model, tmp_path):
    folder = shutil.copytree(model("LLaMA"), tmp_path / "m")
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    del values["eos_token"]
    path.write_text(json.dumps(values))
    with pytest.raises(RunError, match="no padding token, and no end-of-text token .*: set pad_token"):
        load_model(str(folder))


@pytest.mark.parametrize("kind", ["encoder", "Qwen3", "GPT-2"])
def test_a_model_without_tokenizer_files_is_refused(tmp_path, kind):
    """transformers makes an empty tokenizer for it, to which every word is unknown."""
    folder = make_model(kind, tmp_path / "m")
    for path in (*folder.glob("tokenizer*"), *folder.glob("vocab*"), *folder.glob("merges*")):
        path.unlink()
    with pytest.raises(
        RunError, match="its tokenizer has no vocabulary, so all texts would be alike: save the tokenizer"
    ):
        load_model(str(folder))


# Weights, token ids and widths


def change_weights(folder, change):
    """Replace the weights in a folder by ``change(weights)``."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("encoder", lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, "lack 37 .*such as embeddings.LayerNorm.bias"),
        ("encoder", lambda w: {k: v for k, v in w.items() if "layer.1." not in k}, "lack 16 .*encoder.layer.1.attention"),
        ("encoder", lambda w: {k: v for k, v in w.items() if "word_embeddings" not in k}, "lack 1 .*word_embeddings.weight"),
        ("encoder of transformers", lambda w: {f"module.{k}": v for k, v in w.items()}, "lack 37 "),
        ("Qwen3", lambda w: {k: v for k, v in w.items() if "q_norm" not in k}, "lack 2 .*layers.0.self_attn.q_norm.weight"),
        ("LLaMA", lambda w: {k: v for k, v in w.items() if "norm" not in k}, "lack 5 .*layers.0.input_layernorm.weight"),
    ],
)  # fmt: skip
def test_a_model_whose_files_lack_weights_is_refused(model, tmp_path, kind, change, message):
    """transformers would fill them with random numbers, and only log that."""
    folder = shutil.copytree(model(kind), tmp_path / "m")
    change_weights(folder, change)
    with pytest.raises(RunError, match=message):
        load_model(str(folder))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of peft, about the name of the base model
def test_the_base_of_an_adapter_must_have_all_weights(model, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    base = shutil.copytree(model("encoder"), tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["query"], base_model_name_or_path=str(base))
    get_peft_model(AutoModel.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    change_weights(base, lambda weights: {k: v for k, v in weights.items() if "layer.1." not in k})
    with pytest.raises(RunError, match=f"model {base}: its files lack 16 of its weights"):
        load_model(str(tmp_path / "adapter"))


def test_both_commands_refuse_a_model_with_more_layers_than_weights(fails, model, data, tmp_path):
    folder = shutil.copytree(model("encoder"), tmp_path / "m")
    change_json(folder / "config.json", num_hidden_layers=3)
    message = (
        "its files lack 16 of its weights, such as encoder.layer.2.attention.output.LayerNorm.bias, which would be"
    )
    out = ("--output_dir", tmp_path / "out")
    fails(1, message, STS, "--model_name", folder, "--data", data / "scored.jsonl", *out)
    fails(1, message, NLI, folder, "--train_data", data / "pairs.jsonl", "--dev_data", "none", *out)


@pytest.mark.parametrize(("kind", "unused"), [("encoder", "pooler."), ("LLaMA", "lm_head.")])
def test_weights_that_embeddings_do_not_use_may_be_missing(model, tmp_path, kind, unused):
    folder = shutil.copytree(model(kind), tmp_path / "m")
    change_weights(folder, lambda weights: {k: v for k, v in weights.items() if not k.startswith(unused)})
    assert load_model(str(folder)).encode(["word1"]) == pytest.approx(load_model(str(model(kind))).encode(["word1"]))


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering"])
def test_models_without_a_pooler_have_all_weights_that_embeddings_need(tmp_path, name):
    save_plain(bert_tokenizer(), name, tmp_path, **SIZES, max_position_embeddings=POSITIONS)
    assert not any("pooler" in key for key in load_file(tmp_path / "model.safetensors"))
    loaded, again = load_model(str(tmp_path)), load_model(str(tmp_path))
    assert loaded.encode(["word1 word2"]) == pytest.approx(again.encode(["word1 word2"]), abs=1e-7)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in loaded.parameters())


def test_a_pooler_that_embeddings_use_must_not_be_missing(tmp_path):
    """The module that loads the transformer may return the output of the pooler as the embedding."""
    encoder = make_model("encoder", tmp_path / "m")
    modality = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
    change_json(
        encoder / "sentence_bert_config.json", modality_config=modality, module_output_name="sentence_embedding"
    )
    (encoder / "modules.json").write_text(json.dumps(json.loads((encoder / "modules.json").read_text())[:1]))
    assert load_model(str(encoder)).encode(["word1"]).shape == (1, 32)
    change_weights(encoder, lambda weights: {k: v for k, v in weights.items() if "pooler" not in k})
    with pytest.raises(RunError, match="lack 2 of its weights, such as pooler.dense.bias"):
        load_model(str(encoder))


def test_loading_leaves_transformers_as_it_was(model):
    from transformers import PreTrainedModel

    before = PreTrainedModel.__dict__["from_pretrained"]
    load_model(str(model("encoder")))
    assert PreTrainedModel.__dict__["from_pretrained"] is before


@pytest.mark.parametrize("kind", ["encoder", "Qwen3", "OPT", "static"])
def test_token_ids_above_the_embedding_table_are_refused(model, tmp_path, kind):
    folder = shutil.copytree(model(kind), tmp_path / "m")
    assert load_model(str(folder)).encode(["word59"]).shape == (1, 32)
    if kind == "static":
        name = next((folder).rglob("tokenizer.json"))
        words = Tokenizer.from_file(str(name))
        rows = words.get_vocab_size()
        words.add_tokens(["new"])
        words.save(str(name))
    else:
        words = AutoTokenizer.from_pretrained(folder)
        rows = len(words)
        words.add_tokens(["new", "newer"])
        words.save_pretrained(folder)
    largest = rows if kind == "static" else rows + 1
    message = f"token ids up to {largest}, but its embedding table has only {rows} rows: .*embeddings.{largest + 1}.,"
    with pytest.raises(RunError, match=message):
        load_model(str(folder))


def test_both_commands_refuse_token_ids_above_the_table(fails, model, data, tmp_path):
    folder = shutil.copytree(model("encoder"), tmp_path / "m")
    key = "embeddings.word_embeddings.weight"
    change_weights(folder, lambda weights: weights | {key: weights[key][:50].clone()})
    change_json(folder / "config.json", vocab_size=50)
    message = "its tokenizer has token ids up to 64, but its embedding table has only 50 rows"
    out = ("--output_dir", tmp_path / "out")
    fails(1, message, STS, "--model_name", folder, "--data", data / "scored.jsonl", *out)
    fails(1, message, NLI, folder, "--train_data", data / "pairs.jsonl", "--dev_data", "none", *out)
    fails(1, message, "training/export_model.py", folder, "--dim", "8", *out)


def test_tables_may_be_larger_than_the_vocabulary_and_ids_may_be_unused(model, tmp_path):
    """Tables are often rounded up to a multiple of 64; other vocabularies have gaps."""
    folder = shutil.copytree(model("encoder"), tmp_path / "m")
    loaded = load_model(str(folder))
    path = folder / "tokenizer.json"
    words = json.loads(path.read_text())
    for word in WORDS[:30]:
        del words["model"]["vocab"][word]
    path.write_text(json.dumps(words))
    assert load_model(str(folder)).encode(["word59"]) == pytest.approx(loaded.encode(["word59"]), abs=1e-6)


def test_a_model_without_a_table_of_tokens_is_loaded(tmp_path):
    """CANINE's ids are code points, which it hashes."""
    from transformers import CanineConfig, CanineModel, CanineTokenizer

    sizes = SIZES | {"local_transformer_stride": 16, "max_position_embeddings": 64, "downsampling_rate": 4}
    CanineModel(CanineConfig(**sizes, num_hash_buckets=64, num_hash_functions=4)).save_pretrained(tmp_path)
    CanineTokenizer(model_max_length=64).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).encode(["a word of ours"]).shape == (1, 32)


@pytest.mark.parametrize("width", [99, 16])
def test_a_wrong_width_is_refused_by_all_commands(fails, model, data, tmp_path, width):
    """The configuration of the pooling was copied from another model."""
    folder = shutil.copytree(model("encoder"), tmp_path / "m")
    change_json(folder / "1_Pooling/config.json", embedding_dimension=width)
    message = f"model {folder} states {width} dimensions, but its embeddings have 32: correct the width"
    out = ("--output_dir", tmp_path / "out")
    fails(1, message, STS, "--model_name", folder, "--data", data / "scored.jsonl", "--dims", "16", *out)
    fails(1, message, NLI, folder, "--train_data", data / "pairs.jsonl", "--dev_data", "none", *out)
    fails(1, message, "training/export_model.py", folder, "--dim", "8", *out)


def test_a_model_without_pooling_is_refused(model, tmp_path):
    folder = shutil.copytree(model("encoder"), tmp_path / "m")
    path = folder / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))
    with pytest.raises(RunError, match=f"model {folder} has no pooling module: add one to its modules.json"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("kind", "name", "module"), [("encoder", "1_Pooling", "Pooling"), ("Dense and Normalize", "2_Dense", "Dense")]
)
def test_a_module_without_its_configuration_is_named(model, tmp_path, kind, name, module):
    folder = shutil.copytree(model(kind), tmp_path / "m")
    (folder / name / "config.json").unlink()
    with pytest.raises(
        RunError, match=f"model {folder} has no {name}/config.json, which its {module} module needs: copy it"
    ):
        load_model(str(folder))


@pytest.mark.parametrize("content", ['{"a": 1}', '[{"idx": 0}]', '["Pooling"]', '"modules"'])
def test_modules_that_are_no_list_of_modules_are_refused(model, tmp_path, content):
    folder = shutil.copytree(model("encoder"), tmp_path / "m")
    (folder / "modules.json").write_text(content)
    with pytest.raises(RunError, match="modules.json is not a list of modules, each with a type and a path"):
        load_model(str(folder))


# Limits


@pytest.mark.parametrize("kind", ["encoder", "RoBERTa", "Qwen3", "Gemma", "LLaMA", "GPT-2", "OPT"])
def test_every_architecture_takes_texts_up_to_its_limit(model, kind):
    loaded = load_model(str(model(kind)))
    assert token_limit(loaded[0]) == loaded.max_seq_length == POSITIONS
    assert loaded.preprocess([LONG])["input_ids"].shape == (1, POSITIONS)
    unpacked = loaded.encode([LONG, "word1"])
    assert pack(loaded).encode([LONG, "word1"]) == pytest.approx(unpacked, abs=1e-4)


def test_positions_of_images_are_no_limit_of_texts():
    from types import SimpleNamespace

    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    config = CLIPConfig(
        text_config=sizes | {"max_position_embeddings": 77, "vocab_size": 50},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},  # 17 positions
        projection_dim=16,
    )
    assert token_limit(SimpleNamespace(auto_model=CLIPModel(config))) == 77


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(33, "--max_seq_length 33 is above the 32 tokens"), (2, "--max_seq_length 2 leaves no room for text")],
)
def test_lengths_that_a_model_cannot_take_are_refused(fails, model, data, tmp_path, tokens, message):
    out = ("--output_dir", tmp_path / "out", "--max_seq_length", tokens)
    fails(1, message, STS, "--model_name", model("RoBERTa"), "--data", data / "scored.jsonl", *out)
    fails(1, message, NLI, model("RoBERTa"), "--train_data", data / "pairs.jsonl", "--dev_data", "none", *out)


def test_the_limit_of_a_tokenizer_may_be_raised_to_that_of_the_positions(model, tmp_path):
    """all-MiniLM-L6-v2, for example, is limited to 256 tokens and has positions for 512."""
    folder = shutil.copytree(model("encoder"), tmp_path / "m")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 8}))
    assert load_model(str(folder)).max_seq_length == 8
    raised = load_model(str(folder), identify(str(folder), 20))
    assert raised.preprocess([LONG])["input_ids"].shape == (1, 20)


def test_scores_of_shorter_texts_are_filed_apart(call, model, data, tmp_path):
    """In one folder: another length is another revision, with embeddings, result files and rows of its own."""
    flags = ("--model_name", model("encoder"), "--data", data / "scored.jsonl", "--calibration_data", "none")
    flags += ("--dims", "32", "--output_dir", tmp_path / "out")
    tables = []
    for more in ((), ("--max_seq_length", 20), ("--max_seq_length", 14), ("--max_seq_length", 20)):
        done = call(STS, *flags, *more)
        assert done.code == 0, done.err
        tables.append(pd.read_csv(tmp_path / "out/summary.csv").set_index("revision")["cosine_spearman"])
    commit = identify(str(model("encoder"))).commit
    assert sorted(tables[-1].index) == [commit, f"{commit}-14tokens", f"{commit}-20tokens"]
    assert tables[-1][commit] == tables[-1][f"{commit}-20tokens"] != tables[-1][f"{commit}-14tokens"]
    assert tables[0][commit] == tables[-1][commit]
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert f"{commit}-20tokens" in record["models"].values()
    for kind in ("embeddings", "sts"):
        names = {path.name for path in (tmp_path / "out" / kind).glob("*/*")}
        assert len(names) == 3, names


def test_scores_of_shorter_texts_do_not_go_into_the_models_card(call, model, data, tmp_path):
    folder = shutil.copytree(model("encoder"), tmp_path / "m")
    before = (folder / "README.md").read_bytes()
    flags = ("--model_name", folder, "--data", data / "scored.jsonl", "--calibration_data", "none", "--dims", "32")
    done = call(STS, *flags, "--output_dir", tmp_path / "out", "--max_seq_length", 20, "--update_model_card")
    assert done.code == 0, done.err
    assert "its card is not changed" in done.err and (folder / "README.md").read_bytes() == before
