"""Configuration: the source of each value, which values are refused, and how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Annotated, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import config as configuration
from common.config import Config, load_config, read_json
from common.dims import check_dims, fit_dims
from common.errors import UsageError
from common.keys import Key, check_value, keys_of, without_none
from evaluation.utils.options import MTEBConfig, STSConfig
from tests.helpers import ROOT, says
from training.utils.export_options import ExportConfig
from training.utils.mining_options import MiningConfig
from training.utils.option_checks import check_mixture
from training.utils.options import DatasetEntry, HybridConfig, MatryoshkaNLIConfig

SCRIPTS = {
    "training/matryoshka_nli.py": MatryoshkaNLIConfig,
    "training/hybrid_training.py": HybridConfig,
    "evaluation/evaluate_mteb.py": MTEBConfig,
    "evaluation/evaluate_sts.py": STSConfig,
    "training/export_model.py": ExportConfig,
    "training/mine_negatives.py": MiningConfig,
}


def load(*argv, cls=MatryoshkaNLIConfig):
    return load_config(cls, "What it does.", [str(a) for a in argv], positional="model_name")


def set_keys(config: Config) -> set[str]:
    return {key for key in keys_of(type(config)) if config.is_set(key)}


@pytest.fixture
def write(tmp_path):
    def to(content, name="other.json", encoding="utf-8"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding=encoding)
        return path

    return to


# Where a value comes from


def test_defaults_are_those_of_the_file():
    config = load()
    defaults = read_json(ROOT / "configs/training_config.json")
    assert configuration.as_dict(config) == {key: defaults[key] for key in configuration.as_dict(config)}
    assert set_keys(config) == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_defaults_file_has_every_key_of_its_scripts_and_no_other(script):
    same_file = [cls for cls in SCRIPTS.values() if cls.defaults_file == SCRIPTS[script].defaults_file]
    keys = {key for cls in same_file for key in keys_of(cls)}
    assert set(read_json(ROOT / "configs" / same_file[0].defaults_file)) == keys


def test_a_config_file_goes_before_the_defaults_and_a_flag_before_both(write):
    file = write({"seed": 7, "learning_rate": 1, "matryoshka_dims": [64, 32]})
    config = load("--config", file, "--seed", 8)
    assert (config.seed, config.learning_rate, config.matryoshka_dims) == (8, 1.0, [64, 32])
    assert isinstance(config.learning_rate, float)
    assert config.scale == 20
    assert set_keys(config) == {"seed", "learning_rate", "matryoshka_dims"}


def test_the_bare_model_is_model_name():
    config = load("org/model", "--seed", "1")
    assert config.model_name == "org/model" and set_keys(config) == {"model_name", "seed"}
    assert load("--model_name", "org/model").model_name == "org/model"
    assert load("org/model", "--model_name", "org/model").model_name == "org/model"
    with pytest.raises(UsageError, match="has two values"):
        load("org/model", "--model_name", "other/model")


def test_the_bare_model_goes_before_the_config_file(write):
    assert load("bare", "--config", write({"model_name": "filed"})).model_name == "bare"


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--push_to_hub"], "push_to_hub", True),
        (["--push_to_hub", "false"], "push_to_hub", False),
        (["--push_to_hub=True"], "push_to_hub", True),
        (["--matryoshka_dims", "64", "32"], "matryoshka_dims", [64, 32]),
        (["--max_train_samples", "none"], "max_train_samples", None),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--learning_rate=3e-4"], "learning_rate", 3e-4),
        (["--output_dir", "a folder"], "output_dir", "a folder"),
    ],
)
def test_flags(argv, key, value):
    loaded = getattr(load(*argv), key)
    assert loaded == value and type(loaded) is type(value)


def test_a_replaced_config_knows_what_the_user_set():
    config = replace(load("--seed", "5"), output_dir="elsewhere")
    assert set_keys(config) == {"seed"} and config.output_dir == "elsewhere"
    assert set(configuration.as_dict(config)) == set(keys_of(MatryoshkaNLIConfig))
    with pytest.raises(KeyError, match="sed"):
        config.is_set("sed")


def test_a_flag_is_not_cut_short():
    with pytest.raises(UsageError, match="--learn"):
        load("--learn", "1")


def test_byte_order_mark(write):
    assert load("--config", write('{"seed": 3}', encoding="utf-8-sig")).seed == 3


# What is refused


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lerning_rate", "1"], "--lerning_rate … did you mean --learning_rate?"),
        (["--learning-rate", "1"], "did you mean --learning_rate?"),
        (["--confg", "x.json"], "did you mean --config?"),
        (["--dims", "64"], "unknown flag --dims; did you mean --matryoshka_dims?"),
        (["--batch_size", "64"], "did you mean --mini_batch_size or --per_device_train_batch_size?"),
        (["--epochs", "2"], "did you mean --num_train_epochs?"),
        (["--zzz"], "--zzz"),
        (["--training_arguments", "x"], "'training_arguments' has no flag: set it in a --config file"),
        (["--training_argument", "x"], "did you mean training_arguments, which is set in a --config file?"),
        (["model", "another"], "unexpected argument 'another'"),
        (["--language", "fr"], "--language … en, ar … 'fr'"),
        (["--seed", "1.5"], "--seed … integer … '1.5'"),
        (["--seed", "4294967296"], "--seed must be at most 4294967295, not 4294967296"),
        (["--seed", "-1"], "--seed … 0 … -1"),
        (["--learning_rate", "0"], "--learning_rate … above 0"),
        (["--learning_rate", "nan"], "--learning_rate … number"),
        (["--learning_rate", "inf"], "--learning_rate … number"),
        (["--push_to_hub=maybe"], "--push_to_hub … true … false … 'maybe'"),
        (["--per_device_train_batch_size", "1"], "--per_device_train_batch_size … 2"),
        (["--matryoshka_dims"], "--matryoshka_dims"),
        (["--matryoshka_dims", "64", "x"], "--matryoshka_dims … 'x'"),
        (["--matryoshka_weights", "1", "0"], "--matryoshka_weights … item 2 … above 0"),
    ],
)
def test_wrong_flags(argv, message):
    with pytest.raises(UsageError) as error:
        load(*argv)
    assert says(str(error.value), message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"lerning_rate": 1}, "'lerning_rate' … did you mean learning_rate?"),
        ({"zzz": 1}, "'zzz'"),
        ({"datasets": {}}, "'datasets' … another script"),
        ({"seed": "7"}, "'seed' … integer … \"7\""),
        ({"seed": True}, "'seed' … integer … true"),
        ({"seed": 7.0}, "'seed' … integer … 7.0"),
        ({"seed": None}, "'seed' … integer … null"),
        ({"push_to_hub": 1}, "'push_to_hub' … true … false … 1"),
        ({"model_name": ["a"]}, "'model_name' … string … [\"a\"]"),
        ({"matryoshka_dims": 64}, "'matryoshka_dims' … list of integers … 64"),
        ({"matryoshka_dims": [64, "32"]}, "'matryoshka_dims' … item 2 … integer"),
        ({"training_arguments": []}, "'training_arguments' … object … []"),
        ({"max_train_samples": 0}, "'max_train_samples' … 1 … 0"),
        ('{"seed": 1, "seed": 2}', "'seed'"),
        ('{"training_arguments": {"a": 1, "a": 1}}', "'a'"),
        ('{"learning_rate": NaN}', "NaN … JSON"),
        ('{"learning_rate": -Infinity}', "-Infinity … JSON"),
        ('{"learning_rate": 1e999}', "'learning_rate' … number"),
        ("", "line 1 … JSON"),
        ('{"seed": 1,\n}', "line 2 … JSON"),
        ("[]", "JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"seed": ' + "9" * 5000 + "}", "5000 digits"),
        ({"model_name": "a\0b"}, "'model_name' … character … 'a\\x00b'"),
        ('{"output_dir": "a\\ud800"}', "'output_dir' … character … 'a\\ud800'"),
        ({"datasets\nx": 1}, "'datasets\\nx'"),
        ({"training_arguments": {"a\nb": 1}, "seed": "1\u20282"}, "'seed' … integer"),
    ],
)
def test_wrong_config_files(write, content, message):
    path = write(content)
    with pytest.raises(UsageError) as error:
        load("--config", path)
    assert says(str(error.value), message) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_config_that_cannot_be_read(tmp_path, write):
    for path, message in [
        (tmp_path / "none.json", "no such configuration file"),
        (tmp_path, "is a folder"),
        (write("é", encoding="latin-1"), "not UTF-8"),
    ]:
        with pytest.raises(UsageError, match=message):
            load("--config", path)


def hybrid(*argv):
    config = load(*argv, cls=HybridConfig)
    check_mixture(config)
    return config


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({}, "'datasets' … empty"),
        ({"a": {"loss": "mnrl"}}, "'path'"),
        ({"a": {"path": "x"}}, "'loss'"),
        ({"a": {"path": "x", "loss": "mnlr"}}, "'mnlr' … did you mean mnrl?"),
        ({"a": {"path": "x", "loss": "mnrl", "wieght": 1}}, "'wieght' … did you mean weight?"),
        ({"a": {"path": "x", "loss": "mnrl", "weight": 0}}, "'weight' … above 0"),
        ({"a": {"path": "x", "loss": "mnrl", "columns": {"anchor": 1}}}, "string … 1"),
        ({"a": {"path": "x", "loss": "cosent", "score_range": [5, 0]}}, "score_range"),
        ({"a": {"path": "x", "loss": "cosent", "score_range": [0]}}, "score_range"),
        (
            {"a": {"path": "x", "loss": "mnrl", "weight": 1}, "b": {"path": "x", "loss": "mnrl"}},
            "'a' … weight … 'b'",
        ),
        (
            {"a": {"path": "x", "loss": "mnrl", "score_range": [0, 5]}},
            "'score_range' … cosent, angle, cosine … mnrl",
        ),
        (
            {"a": {"path": "x", "loss": "cosent", "directions": ["query_to_doc"]}},
            "'directions' … mnrl … cosent",
        ),
        ({"a": {"path": "x", "loss": "mnrl", "guide": "g"}}, "'guide' … gist … mnrl"),
        ({"a": {"path": "x", "loss": "gist", "teacher": "t"}}, "'teacher' … distill … gist"),
        (
            {"a": {"path": "x", "loss": "softmax", "scale": 20}},
            "'scale' … mnrl, gist, cosent, angle … softmax",
        ),
        ({"a": {"path": "x", "loss": "mnrl", "directions": ["doc_to_query"]}}, "query_to_doc"),
        ({"a": {"path": "x", "loss": "mnrl", "directions": ["query_to_doc"] * 2}}, "'directions' … duplicate"),
        ({"a": {"path": "x", "loss": "mnrl", "directions": ["query_to_dog"]}}, "did you mean query_to_doc?"),
        ({"a": 1}, "object … 1"),
        ({"a.b": {"path": "x", "loss": "mnrl"}}, "'a.b' … dot"),
        ({"": {"path": "x", "loss": "mnrl"}}, "name … '' … empty"),
    ],
)
def test_wrong_mixtures(write, datasets, message):
    with pytest.raises(UsageError) as error:
        hybrid("--config", write({"datasets": datasets}))
    assert says(str(error.value), message)


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"loss": "gist"}, "gist needs a tokenizer"), ({"loss": "distill"}, "cannot be their own teacher: set 'teacher'")],
)
def test_losses_that_static_embeddings_from_nothing_cannot_have(write, entry, message):
    path = write({"model_name": "static", "datasets": {"a": {"path": "x"} | entry}})
    with pytest.raises(UsageError, match=message):
        hybrid("--config", path)
    assert hybrid("--config", path, "--model_name", "other").datasets["a"].loss == entry["loss"]


def test_keys_that_only_some_losses_have_are_resolved(write):
    losses = ("mnrl", "cosent", "softmax")
    datasets = hybrid("--config", write({"datasets": {loss: {"path": "x", "loss": loss} for loss in losses}})).datasets
    assert [datasets[loss].scale for loss in losses] == [20, 20, None]
    assert [datasets[loss].directions for loss in losses] == [["query_to_doc"], None, None]


def test_dims():
    assert fit_dims("--dims", [768, 64, 256], 384, explicit=False) == [384, 256, 64]
    assert fit_dims("--dims", [64], 384, explicit=True) == [384, 64]
    assert fit_dims("--dims", [768], 64, explicit=False) == [64]
    with pytest.raises(UsageError, match="768 .*above.* 384"):
        fit_dims("--dims", [64, 768], 384, explicit=True)
    for dims, message in (([], "empty"), ([64, 0], "positive.* 0"), ([-1], "-1"), ([64, 64], "64")):
        with pytest.raises(UsageError, match=message):
            check_dims("--dims", dims)


@pytest.mark.parametrize("file", sorted(p.name for p in (ROOT / "configs").glob("*.json")))
def test_every_shipped_config_parses_for_its_script(file):
    path = ROOT / "configs" / file
    values = read_json(path)
    if file in {cls.defaults_file for cls in SCRIPTS.values()}:
        for cls in SCRIPTS.values():
            if cls.defaults_file == file:
                load(cls=cls)
        return
    fitting = [cls for cls in SCRIPTS.values() if set(values) <= set(keys_of(cls))]
    assert fitting, f"no script has all the keys of {file}"
    cls = fitting[0]
    config = load("--config", path, cls=cls)
    assert set_keys(config) == set(values)
    if cls is HybridConfig:
        check_mixture(config)


# Any value at all

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(st.sampled_from(sorted(keys_of(HybridConfig))) | st.text(), json_values))
def test_any_config_file_is_read_or_refused_in_one_line(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    try:
        config = load("--config", path, cls=HybridConfig)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert set_keys(config) == set(values)
        for key, value in values.items():
            if not isinstance(value, dict):
                assert getattr(config, key) == value


@settings(deadline=None)
@given(st.lists(st.text(max_size=8) | st.sampled_from(["--seed", "--scale", "--config", "--language", "1", "-1"])))
def test_any_command_line_is_read_or_refused_in_one_line(argv):
    if {"-h", "--help"} & {text.split("=")[0] for text in argv}:
        return
    try:
        load(*argv)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1


@dataclass
class Numbers:
    whole: Annotated[int, Key("", minimum=-5)]
    real: Annotated[float, Key("", above=2)]


@given(st.integers(), st.floats(allow_nan=True) | st.integers())
def test_bounds(whole, real):
    for name, value, good in (
        ("whole", whole, whole >= -5),
        ("real", real, real > 2 and abs(real) != float("inf")),
    ):
        hint, key = keys_of(Numbers)[name]
        if good:
            assert check_value(name, value, hint, key) == (float(value) if name == "real" else value)
        else:
            with pytest.raises(UsageError, match=name):
                check_value(name, value, hint, key)


@given(st.lists(st.integers(1, 2000), min_size=1, unique=True), st.integers(1, 1024))
def test_fitted_dims_have_the_width_and_nothing_above_it(dims, width):
    found = fit_dims("--dims", dims, width, explicit=False)
    assert found == sorted(set(found), reverse=True)
    assert found[0] == width
    assert set(found) - {width} == {dim for dim in dims if dim < width}


# How fast


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_usage_errors_answer_within_a_second_and_load_nothing_heavy(script):
    def run(*argv):
        code = (
            "import runpy, sys\n"
            "sys.argv = sys.argv[1:]\n"
            "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "finally:\n    print('HEAVY', {'torch', 'transformers', 'datasets', 'mteb', 'numpy'} & set(sys.modules))"
        )
        best = 9.0
        for _ in range(3):  # other work on the machine can only slow it down
            start = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-c", code, str(ROOT / script), *argv],
                capture_output=True,
                text=True,
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            )
            best = min(best, time.monotonic() - start)
            if best < 1:
                break
        assert best < 1, f"{best:.2f} s"
        assert "HEAVY set()" in done.stdout
        return done

    helped = run("--help")
    assert helped.returncode == 0, helped.stderr
    for name, (hint, key) in keys_of(SCRIPTS[script]).items():
        inner, _ = without_none(hint)
        if get_origin(inner) is not dict:
            assert f"--{name}" in helped.stdout
            assert len(key.help) > 10
    wrong = run("--modl_name", "x")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown flag --modl_name; did you mean --model_name?")
    assert wrong.stderr.count("\n") == 1


@pytest.mark.parametrize(("hint", "expected"), [(int, False), (int | None, True), (str | dict[str, str], False),
                                                (str | dict[str, str] | None, True)])  # fmt: skip
def test_null_is_allowed_only_where_the_type_says_so(hint, expected):
    assert without_none(hint)[1] is expected
    if expected:
        assert check_value("x", None, hint) is None
    else:
        with pytest.raises(UsageError, match="must be .* not null"):
            check_value("x", None, hint)


# Paths


def test_every_path_is_resolved_in_one_place(tmp_path, monkeypatch, write):
    monkeypatch.setenv("HOME", str(tmp_path))
    entry = {"path": "~/rows.jsonl", "loss": "gist", "guide": "~/guide"}
    file = write({"output_dir": "~/run", "dev_data": ["~/dev.csv", "en"], "datasets": {"mine": entry}})
    config = load(
        "~/models/mine", "--config", f"~/{file.name}", "--resume_from_checkpoint=~/run/checkpoint-1", cls=HybridConfig
    )
    assert config.output_dir == f"{tmp_path}/run"
    assert config.dev_data == [f"{tmp_path}/dev.csv", "en"]
    assert config.datasets["mine"].path == f"{tmp_path}/rows.jsonl"
    assert config.datasets["mine"].guide == f"{tmp_path}/guide"
    assert config.model_name == f"{tmp_path}/models/mine"
    assert config.resume_from_checkpoint == f"{tmp_path}/run/checkpoint-1"

    scored = load_config(STSConfig, "", ["--model_name", "~/a", "b/c", "--data", "~/x.csv", "--output_dir=~/out"])
    assert (scored.model_name, scored.data) == ([f"{tmp_path}/a", "b/c"], f"{tmp_path}/x.csv")
    assert scored.output_dir == f"{tmp_path}/out"


@pytest.mark.parametrize(
    ("value", "named"),
    [("", "--output_dir must not be empty"), ("~no-such-user/x", "no home folder for '~no-such-user'")],
)
def test_paths_that_lead_nowhere_are_refused(value, named):
    with pytest.raises(UsageError, match=named):
        load("--output_dir", value)


def test_every_key_that_names_a_file_or_a_model_is_a_path():
    names = {"model_name", "output_dir", "resume_from_checkpoint", "train_data", "dev_data", "path", "guide", "teacher"}
    names |= {"baseline_model", "calibration_data", "data", "translations", "output_file"}
    for cls in (*SCRIPTS.values(), DatasetEntry):
        for name, (_, key) in keys_of(cls).items():
            assert key.path == (name in names), f"{cls.__name__}.{name}"
