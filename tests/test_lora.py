"""LoRA: what is trained, what is saved, and adapters as models to start from and to evaluate."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertForMaskedLM

from common.errors import RunError
from common.models import identify, load_model
from tests.helpers import ROOT
from tests.tiny_models import SIZES, bert_tokenizer, make_model, save_plain
from training.utils.lora import layer_pattern

STS, NLI = "evaluation/evaluate_sts.py", "training/matryoshka_nli.py"
TEXTS = ["word1 word2", "word3 word4 word5", "word6"]
RANK, ALPHA = 4, 12


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model("encoder", tmp_path_factory.mktemp("lora") / "base")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pairs = [{"anchor": f"word{i} word7", "positive": f"word{i} word{i + 1}"} for i in range(32)]
    scored = [{"sentence1": f"word{i}", "sentence2": f"word{3 * i % 10} word2", "score": i} for i in range(10)]
    for name, rows in (("pairs", pairs), ("scored", scored)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def command(base, data):
    """With dropout, so that a resumed run needs its random state, and a dev set, so that the best checkpoint is loaded."""
    return (
        NLI, base, "--train_data", data / "pairs.jsonl", "--dev_data", data / "scored.jsonl", "--precision", "fp32",
        "--lora_r", RANK, "--lora_alpha", ALPHA, "--lora_dropout", "0.1", "--learning_rate", "1e-2", "--keep_leaks",
        "--max_steps", "6", "--eval_steps", "2", "--per_device_train_batch_size", "8", "--matryoshka_dims", "16",
    )  # fmt: skip


@pytest.fixture
def run(command, call, tmp_path_factory):
    """The folder of the run that was never interrupted."""
    if not hasattr(run, "folder"):
        run.folder = tmp_path_factory.mktemp("run") / "run"
        done = call(*command, "--output_dir", run.folder)
        assert done.code == 0, done.err
        run.err = done.err
    return run.folder


def adapter_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_the_final_model_is_the_base_plus_the_product_of_the_matrices(run, base):
    """Against the formula, W + (alpha / r) B A, layer by layer; weights without an adapter equal the base's, bit by bit."""
    before, after = (load_file(folder / "model.safetensors") for folder in (base, run / "final"))
    matrices = adapter_weights(run / "final-adapter")
    assert before.keys() == after.keys()
    adapted = set()
    for name, weight in after.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{prefix}.lora_A.weight" in matrices:
            adapted.add(name)
            a, b = (matrices[f"{prefix}.lora_{part}.weight"] for part in "AB")
            assert a.shape[0] == b.shape[1] == RANK
            torch.testing.assert_close(weight, before[name] + ALPHA / RANK * b @ a, rtol=1e-6, atol=1e-6)
            assert not torch.equal(weight, before[name])
        else:
            assert torch.equal(weight, before[name]), name
    assert len(adapted) == len(matrices) // 2 == 2 * 6  # of each of 2 layers: query, key, value, and three more


def test_a_checkpoint_holds_the_adapter_alone(run):
    [checkpoint] = [path for path in run.glob("checkpoint-*") if path.name == "checkpoint-6"]
    assert not list(checkpoint.rglob("model.safetensors"))
    names = adapter_weights(checkpoint)
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert len(optimizer["state"]) == len(names)
    sizes = sorted(tuple(state["exp_avg"].shape) for state in optimizer["state"].values())
    assert sizes == sorted(tuple(value.shape) for value in names.values())


def test_a_killed_run_resumes_to_the_same_bits(run, command, call, warm, tmp_path):
    words = ("checkpoint-4/trainer_state.json", ROOT / command[0], *command[1:], "--output_dir", tmp_path / "run")
    done = warm("tests/killed.py", *words)
    assert done.code == -signal.SIGKILL, done.err
    done = call(*command, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", "latest")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run/run.json").read_text())["resumed_at_step"] == 2
    for name in ("final/model.safetensors", "final-adapter/adapter_model.safetensors"):
        expected, resumed = load_file(run / name), load_file(tmp_path / "run" / name)
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[key], resumed[key]) for key in expected), name
    records = [json.loads((folder / "run.json").read_text()) for folder in (run, tmp_path / "run")]
    assert records[0]["scores"] == records[1]["scores"]


def test_another_rank_is_not_resumed(run, command, fails, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("final*", "checkpoint-6"))
    flags = ("--output_dir", tmp_path / "run", "--resume_from_checkpoint", "latest", "--lora_r", "8")
    fails(1, "lora_r was 4 and is now 8", *command, *flags)


def test_the_final_model_loads_where_there_is_no_peft(run, warm, tmp_path):
    code = f"""
import sys
sys.modules["peft"] = None  # importing it fails
from sentence_transformers import SentenceTransformer
print(SentenceTransformer({str(run / "final")!r}, device="cpu").encode(["word1 word2"])[0, :4].tolist())
"""
    (tmp_path / "load.py").write_text(code)
    done = warm(tmp_path / "load.py")
    assert done.code == 0, done.err
    expected = load_model(str(run / "final")).encode(["word1 word2"])[0, :4]
    assert json.loads(done.out.splitlines()[-1]) == pytest.approx(expected.tolist(), abs=1e-6)


def test_peft_itself_loads_the_adapter(run, base):
    from peft import PeftModel

    ours = load_model(str(run / "final"))
    features = ours.preprocess(TEXTS)
    inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(base), run / "final-adapter")
    with torch.no_grad():
        states, expected = (m(**inputs).last_hidden_state for m in (adapted.eval(), ours[0].auto_model))
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


# Adapters as models


def test_an_adapter_is_evaluated_under_its_revision_and_its_base(run, base, data, call, tmp_path):
    done = call(STS, "--model_name", run / "final-adapter", run / "final", "--data", data / "scored.jsonl", "--dims", "16",
                "--calibration_data", "none", "--output_dir", tmp_path / "out")  # fmt: skip
    assert done.code == 0, done.err
    results = sorted((tmp_path / "out/sts").rglob("embed_dim_16/*.json"))
    adapted, final = (
        json.loads(path.read_text()) for path in sorted(results, key=lambda p: "final-adapter" not in str(p))
    )
    assert adapted["scores"] == final["scores"]
    assert adapted["model"] == "local/run-final-adapter"
    assert adapted["revision"].endswith(f"-on-{identify(str(base)).commit}")


@pytest.mark.parametrize("revision", ["main", "v2", "0" * 40])
def test_a_base_in_a_folder_has_no_revision(run, base, tmp_path, caplog, revision):
    adapter = shutil.copytree(run / "final-adapter", tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": revision}))
    assert identify(str(adapter)).base.commit == identify(str(base)).commit and not caplog.text


def test_an_adapter_on_the_hub(hub, run, base):
    """Its base is on the Hub too, and both commits are part of its identity."""
    shutil.copytree(base, hub.root / "models/stranger/base")
    adapter = shutil.copytree(run / "final-adapter", hub.root / "models/stranger/adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "stranger/base"}))
    identity = identify("stranger/adapter")
    assert identity.revision == f"{identity.commit}-on-{identify('stranger/base').commit}"
    loaded = load_model("stranger/adapter", identity)
    assert loaded.encode(TEXTS) == pytest.approx(load_model(str(run / "final")).encode(TEXTS), abs=1e-6)


def test_an_adapter_without_the_files_of_sentence_transformers_has_its_bases_pooling(run, tmp_path):
    """This is how peft saves adapters, and how most are published on the Hub."""
    (tmp_path / "bare").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / "final-adapter" / name, tmp_path / "bare")
    loaded = load_model(str(tmp_path / "bare"))
    assert loaded.encode(TEXTS) == pytest.approx(load_model(str(run / "final")).encode(TEXTS), abs=1e-6)


def test_an_adapter_brings_its_pooling_tokenizer_and_prompts(run, tmp_path):
    adapter = shutil.copytree(run / "final-adapter", tmp_path / "m")
    pooling = adapter / "1_Pooling/config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"pooling_mode": "cls"}))
    for name, change in (
        ("config_sentence_transformers.json", {"prompts": {"query": "word9 "}, "default_prompt_name": "query"}),
        ("tokenizer_config.json", {"model_max_length": 7}),
    ):
        (adapter / name).write_text(json.dumps(json.loads((adapter / name).read_text()) | change))
    loaded, final = load_model(str(adapter)), load_model(str(run / "final"))
    assert loaded[1].pooling_mode == "cls" and loaded.max_seq_length == 7 and loaded.default_prompt_name == "query"
    final[1].pooling_mode = "cls"
    features = final.preprocess([f"word9 {text}" for text in TEXTS])
    with torch.no_grad():
        expected = final[0](features)["token_embeddings"][:, 0].numpy()
    assert loaded.encode(TEXTS) == pytest.approx(expected, abs=1e-5)


def inputs_of(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """The tokens of ``TEXTS``, as arguments of the transformer alone."""
    features = model.preprocess(TEXTS)
    return {name: features[name] for name in ("input_ids", "attention_mask")}


def test_an_adapter_of_a_model_with_a_head(tmp_path):
    """Its weights are named after the transformer's attribute in that model: ``bert.``, ``model.``."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    words = bert_tokenizer()
    headed = BertForMaskedLM(BertConfig(vocab_size=len(words), **SIZES, max_position_embeddings=32))
    for part in (headed, words):
        part.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=2, target_modules=["query"], init_lora_weights=False, base_model_name_or_path=str(tmp_path / "base")
    )
    adapted = get_peft_model(BertForMaskedLM.from_pretrained(tmp_path / "base"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(tmp_path / "adapter"))
    inputs = inputs_of(loaded)
    with torch.no_grad():
        states = loaded[0].auto_model(**inputs).last_hidden_state
        expected = adapted.eval().get_base_model().bert(**inputs).last_hidden_state
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["Qwen3", "OPT"])
@pytest.mark.parametrize("case", ["all linear layers", "saved modules", "added tokens", "embeddings"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of peft, about tied weights and about saving the embedding table
def test_an_adapter_of_a_causal_language_model(tmp_path, kind, case):
    """As usual for decoders, the adapter was trained on the model with its head, ``task_type`` is ``CAUSAL_LM``, and the table of
    embeddings may be trained, adapted or longer than that of the base model."""
    from peft import LoraConfig, get_peft_model

    base = make_model(kind, tmp_path / "base")
    torch.manual_seed(1)
    headed = AutoModelForCausalLM.from_pretrained(base)
    table = headed.get_input_embeddings()
    if case == "added tokens":
        headed.resize_token_embeddings(table.num_embeddings + 8)
    config = LoraConfig(
        r=2,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
        target_modules=["embed_tokens", "q_proj"] if case == "embeddings" else "all-linear",
        modules_to_save=["embed_tokens", "lm_head"] if case == "saved modules" else None,
    )
    adapted = get_peft_model(headed, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter.data, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(tmp_path / "adapter"))
    inputs = inputs_of(loaded)
    unadapted = load_model(str(base))[0].auto_model
    with torch.no_grad():
        states = loaded[0].auto_model(**inputs).last_hidden_state
        expected = adapted.eval().get_base_model().model(**inputs).last_hidden_state
        before = unadapted(**inputs).last_hidden_state
    words = inputs["attention_mask"].bool()
    torch.testing.assert_close(states[words], expected[words], rtol=1e-4, atol=1e-4)
    assert (states - before)[words].abs().max() > 0.1
    rows = loaded[0].auto_model.get_input_embeddings().num_embeddings
    assert rows - unadapted.get_input_embeddings().num_embeddings == (8 if case == "added tokens" else 0)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_an_adapter_with_biases(base, tmp_path, bias):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["value"], bias=bias, base_model_name_or_path=str(base))
    adapted = get_peft_model(AutoModel.from_pretrained(base), config)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "pooler" not in name:
            torch.nn.init.normal_(parameter.data, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(tmp_path / "adapter"))
    inputs = inputs_of(loaded)
    with torch.no_grad():
        states = loaded[0].auto_model(**inputs).last_hidden_state
        expected = adapted.eval()(**inputs).last_hidden_state
        before = load_model(str(base))[0].auto_model(**inputs).last_hidden_state
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    assert (states - before).abs().max() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"base_model_name_or_path": "/nowhere/base"},
            "is an adapter, and its base model cannot be loaded: model /nowhere/base",
        ),
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"base_model_name_or_path": "{folder}"}, "names the adapter itself as the base model"),
        ({"task_type": "SEQ_CLS"}, r"is a cross-encoder .*, according to adapter_config.json \(SEQ_CLS\)"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}, "of type PROMPT_TUNING cannot be merged"),
        ({"peft_type": "NOPE"}, "adapter_config.json has the peft_type 'NOPE', which the installed peft does not know"),
        ({"r": "four"}, "adapter_config.json has a wrong value, or is not for this base model: '<=' not supported"),
        (
            {"target_modules": ["q_proj"]},
            "has a wrong value, or is not for this base model: Target modules {'q_proj'} not",
        ),
        ({"r": 3}, "cannot be loaded"),
        ({"target_modules": ["query"]}, "the adapter's weights do not fit its base model: 0 of 4 are missing"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_adapters_that_cannot_be_used(run, tmp_path, change, message):
    adapter = shutil.copytree(run / "final-adapter", tmp_path / "m")
    path = adapter / "adapter_config.json"
    change = {key: str(adapter) if value == "{folder}" else value for key, value in change.items()}
    values = json.loads(path.read_text()) | change
    if "num_virtual_tokens" in change:
        values = {"base_model_name_or_path": values["base_model_name_or_path"], "task_type": None} | change
    path.write_text(json.dumps(values))
    with pytest.raises(RunError, match=message):
        load_model(str(adapter))


@pytest.mark.parametrize("script", [STS, NLI])
def test_a_corrupt_adapter_is_named(run, fails, tmp_path, script):
    adapter = shutil.copytree(run / "final-adapter", tmp_path / "m")
    model = (adapter,) if script == NLI else ("--model_name", adapter, "--task", "STS17")
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "x"')
    message = f"model {adapter}: adapter_config.json is not valid JSON: Expecting ',' delimiter"
    fails(1, message, script, *model, "--output_dir", tmp_path / "out")


def test_adapters_of_each_other_are_refused(run, tmp_path):
    for name, base in (("a", "b"), ("b", "a")):
        path = shutil.copytree(run / "final-adapter", tmp_path / name) / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / base)}))
    with pytest.raises(RunError, match="adapters name each other as their base model"):
        load_model(str(tmp_path / "a"))


def test_an_adapter_with_missing_or_pickled_weights(run, tmp_path):
    adapter = shutil.copytree(run / "final-adapter", tmp_path / "m")
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    for some in ({}, dict(list(weights.items())[:5])):
        save_file(some, path)
        with pytest.raises(RunError, match=f"{24 - len(some)} of 24 are missing and 0 are unknown"):
            load_model(str(adapter))
    torch.save(weights, adapter / "adapter_model.bin")
    path.unlink()
    (adapter / "adapter_model.bin").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(RunError, match=r"the adapter has no weights \(adapter_model.safetensors\)"):
        load_model(str(adapter))
    (tmp_path / "adapter_model.bin").rename(adapter / "adapter_model.bin")
    with pytest.raises(RunError, match="adapter_model.bin is pickled"):
        load_model(str(adapter))
    expected = load_model(str(run / "final")).encode(TEXTS)
    assert load_model(str(adapter), allow_pickle=True).encode(TEXTS) == pytest.approx(expected, abs=1e-6)


# Targets and keys


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("encoder", "dense key query value"),
        ("Qwen3", "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        ("GPT-2", "c_attn c_fc c_proj"),
        ("OPT", "fc1 fc2 k_proj out_proj q_proj v_proj"),
    ],
)
def test_the_targets_by_default_are_the_layers_that_repeat(tmp_path, kind, names):
    """Not the pooler, which is also called ``dense`` but does not contribute to the embedding."""
    from peft import LoraConfig, get_peft_model

    transformer = load_model(str(make_model(kind, tmp_path / "m")))[0].auto_model
    pattern = layer_pattern(transformer)
    assert pattern.endswith(f"({'|'.join(names.split())})")
    adapted = get_peft_model(transformer, LoraConfig(r=2, target_modules=pattern, fan_in_fan_out=kind == "GPT-2"))
    targets = adapted.targeted_module_names
    assert {name.rpartition(".")[2] for name in targets} == set(names.split())
    assert all(".0." in name or ".1." in name for name in targets)


def test_layers_that_peft_refuses_are_listed_without_its_own(fails, data, tmp_path):
    """peft adapts no output projection of Mamba, and has wrapped some layers when it finds one."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}
    save_plain(bert_tokenizer(), "Mamba", tmp_path / "mamba", **sizes)
    flags = (
        "--train_data",
        data / "pairs.jsonl",
        "--dev_data",
        "none",
        "--lora_r",
        "2",
        "--output_dir",
        tmp_path / "run",
    )
    said = fails(
        1,
        "error: --lora_r: … the model's linear layers are dt_proj, in_proj, out_proj, x_proj",
        NLI,
        tmp_path / "mamba",
        *flags,
    )
    assert said.endswith("x_proj")


def test_targets_may_be_part_of_a_path(base, data, call, tmp_path):
    flags = ("--lora_r", "2", "--lora_target_modules", "0.attention.self.query", "output.dense")
    flags += (
        "--train_data",
        data / "pairs.jsonl",
        "--dev_data",
        "none",
        "--max_steps",
        "1",
        "--output_dir",
        tmp_path / "run",
    )
    done = call(NLI, base, *flags, "--per_device_train_batch_size", "8", "--precision", "fp32")
    assert done.code == 0, done.err
    names = {
        key.partition("encoder.layer.")[2].partition(".lora")[0]
        for key in adapter_weights(tmp_path / "run/final-adapter")
    }
    dense = {f"{layer}.{part}output.dense" for layer in (0, 1) for part in ("", "attention.")}
    assert names == {"0.attention.self.query", *dense}


def test_named_targets_are_the_only_ones(base, data, call, tmp_path):
    done = call(
        NLI, base, "--train_data", data / "pairs.jsonl", "--dev_data", "none", "--max_steps", "1", "--lora_r", "2",
        "--lora_target_modules", "query", "value", "--per_device_train_batch_size", "8", "--output_dir", tmp_path / "run",
        "--precision", "fp32",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "LoRA of rank 2: 512 of" in done.err  # 2 layers, 2 targets, 2 matrices of 2 x 32
    config = json.loads((tmp_path / "run/final-adapter/adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["query", "value"]
    assert config["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize(
    ("code", "message", "flags"),
    [
        (
            1,
            "--lora_target_modules: the model has no layer called q_proj; its linear layers are dense, key, query, value",
            ("--lora_r", "2", "--lora_target_modules", "q_proj"),
        ),
        (
            1,
            "--lora_target_modules: the model has no layer called nope, uery; its linear layers are dense, key, query",
            ("--lora_r", "2", "--lora_target_modules", "query", "nope", "value", "uery"),
        ),
        (
            1,
            "--lora_target_modules: Target module LayerNorm … the model's linear layers are dense, key, query, value",
            ("--lora_r", "2", "--lora_target_modules", "query", "LayerNorm"),
        ),
        (2, "--lora_alpha is for LoRA adapters: also set --lora_r", ("--lora_alpha", "8")),
        (2, "--lora_dropout 1.5 would drop all inputs", ("--lora_r", "2", "--lora_dropout", "1.5")),
        (2, "--extend_vocabulary adds embeddings that need training", ("--lora_r", "2", "--extend_vocabulary", "9")),
        (2, "--lora_r is for transformers: static embeddings", ("--lora_r", "2", "--model_name", "static")),
        (2, "--lora_r must be at least 0", ("--lora_r", "-1")),
    ],
)
def test_keys_that_do_not_fit(base, data, fails, tmp_path, code, message, flags):
    model = () if "static" in flags else (base,)
    fails(code, message, NLI, *model, "--train_data", data / "pairs.jsonl", "--output_dir", tmp_path / "run", *flags)
    assert not list(tmp_path.rglob("final*"))


def test_lora_in_bfloat16_and_with_gradient_checkpointing(base, data, call, tmp_path):
    """The frozen embedding layer has no gradient; recomputed layers must not depend on one."""
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"training_arguments": {"gradient_checkpointing": True}}))
    done = call(
        NLI, base, "--config", config, "--train_data", data / "pairs.jsonl", "--dev_data", "none", "--max_steps", "2",
        "--lora_r", "2", "--precision", "bf16", "--learning_rate", "1e-2", "--per_device_train_batch_size", "8",
        "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    weights = adapter_weights(tmp_path / "run/final-adapter")
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert all(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)
    final = SentenceTransformer(str(tmp_path / "run/final"), device="cpu")
    assert np.isfinite(final.encode(TEXTS)).all()
