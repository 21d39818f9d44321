"""Values that the libraries refuse end in one line, before data is loaded and files are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from common.config import load_config
from common.errors import UsageError
from tests.helpers import NLI, static_model, write
from training.utils.options import MatryoshkaNLIConfig
from training.utils.training_arguments import check_training_arguments, loader_arguments, make_training_arguments


@pytest.fixture(autouse=True)
def without_deepspeed():
    """transformers keeps a DeepSpeed configuration that it refused, and would consult it for every model loaded later."""
    yield
    unset_hf_deepspeed_config()


def check(tmp_path: Path, arguments: dict, dev_data: list[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"training_arguments": arguments, "dev_data": dev_data}))
    config = load_config(MatryoshkaNLIConfig, "", ["--config", str(file)], positional="model_name")
    check_training_arguments(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            ("warmup_stable_decay", "lr_scheduler_kwargs", "num_decay_steps"),
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ("cosine_with_min_lr", "min_lr")),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"pwer": 2}}, ("polynomial", "pwer")),
        ({"lr_scheduler_type": "no-such"}, ("no-such", "cosine")),
        ({"lr_scheduler_kwargs": "x"}, ("lr_scheduler_kwargs",)),
        ({"optim": "adamw_bnb_8bit"}, ("adamw_bnb_8bit", "bitsandbytes")),
        ({"optim": "schedule_free_adamw"}, ("schedule_free_adamw", "schedulefree")),
        ({"optim": "no-such"}, ("no-such", "adafactor")),
        ({"optim_args": "rubbish"}, ("optim",)),
        ({"adam_beta1": 2.0}, ("beta",)),
        ({"accelerator_config": {"no_such": 1}}, ("no_such",)),
        ({"accelerator_config": "no-such.json"}, ("no-such.json",)),
        ({"deepspeed": "no-such.json"}, ("training_arguments",)),
        ({"eval_strategy": "epoch"}, ("eval_strategy", "dev")),
        ({"save_strategy": "epoch"}, ("save", "eval")),
        ({"dataloader_prefetch_factor": 2}, ("dataloader_num_workers",)),
    ],
)
def test_arguments_that_the_libraries_refuse_are_one_line(tmp_path, arguments, named):
    dev_data = ["none"] if "eval_strategy" in arguments else ["en"]
    with pytest.raises(UsageError) as refusal:
        check(tmp_path, arguments, dev_data)
    message = str(refusal.value)
    assert message.startswith("training_arguments") and len(message.splitlines()) == 1
    assert all(word in message for word in named), message


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 10}},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"optim": "adafactor"},
        {"metric_for_best_model": "sts-dev-64_spearman_cosine"},
    ],
)
def test_arguments_that_the_libraries_take_pass(tmp_path, arguments):
    check(tmp_path, arguments, ["en"])


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"ancor": "query"},
            "'router_mapping' names an unknown column 'ancor' (the columns are anchor, positive); did you mean anchor?",
        ),
        ({"anchor": "qeury"}, "No route found for task type 'qeury'"),
        ({"data": {"anchor": "query"}}, "'router_mapping' names an unknown data set 'data'"),
        ({"anchor": "query", "positive": "document"}, None),
    ],
)
def test_a_router_mapping_that_names_nothing_is_one_line(call, fails, tmp_path, mapping, message):
    router = Router.for_query_document(list(static_model(0).children()), list(static_model(1).children()))
    SentenceTransformer(modules=[router], device="cpu").save_pretrained(str(tmp_path / "m"))
    rows = write(tmp_path / "rows.jsonl", [{"anchor": f"word{i}", "positive": f"word{i + 40}"} for i in range(8)])
    (tmp_path / "c.json").write_text(json.dumps({"training_arguments": {"router_mapping": mapping}}))
    flags = ("--config", tmp_path / "c.json", "--train_data", rows, "--dev_data", "none", "--matryoshka_dims", "32")
    flags += ("--per_device_train_batch_size", "4", "--max_steps", "1", "--output_dir", tmp_path / "run")
    if message:
        fails(2, message, NLI, tmp_path / "m", *flags)
    else:
        done = call(NLI, tmp_path / "m", *flags)
        assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("gpu", "cores", "processes", "loaders"),
    [
        (False, 16, 1, 0),
        (True, 16, 1, 8),
        (True, 64, 1, 8),
        (True, 64, 8, 4),
        (True, 4, 1, 2),
        (True, 1, 1, 1),
        (True, 8, 8, 1),
    ],
)
def test_each_gpu_gets_loaders_from_its_share_of_the_cores(gpu, cores, processes, loaders, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    arguments = loader_arguments()
    assert arguments.pop("accelerator_config", None) == ({"non_blocking": True} if gpu else None)
    assert arguments == {"dataloader_num_workers": loaders, "dataloader_persistent_workers": gpu}


@pytest.mark.parametrize(("chosen", "expected"), [({}, False), ({"dataloader_drop_last": True}, True)])
def test_several_processes_drop_incomplete_batches_only_on_request(tmp_path, monkeypatch, chosen, expected):
    """sentence-transformers would always set it. Our samplers give every process the same number of rows."""
    monkeypatch.setattr("training.utils.training_arguments.get_world_size", lambda: 2)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"training_arguments": chosen}))
    config = load_config(MatryoshkaNLIConfig, "", ["--config", str(file)], positional="model_name")
    arguments = make_training_arguments(config, tmp_path / "run", torch.float32, None)
    assert arguments.dataloader_drop_last is expected
