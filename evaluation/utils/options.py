"""The options of the evaluation scripts. Their defaults are in ``configs/eval_config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from common.config import Config
from common.keys import Key

STS_TASKS = ("STS17", "STS22", "STS22.v2", "STSBenchmark")


@dataclass
class EvalConfig(Config):
    defaults_file: ClassVar[str] = "eval_config.json"

    model_name: Annotated[list[str], Key("models to score (required): names on the Hub or folders on disk", path=True)]
    subsets: Annotated[
        list[str],
        Key(
            "subsets to score; a task that has none of them is scored on the default subsets that it has (only if it was chosen by name), or "
            "else on all its subsets. Without this option, tasks chosen by name are scored on the default subsets, and all other sets (those "
            "of --benchmark, of --languages without --tasks, and of --data) on all their subsets"
        ),
    ]
    dims: Annotated[
        list[int],
        Key("dimensions to score; the model's full width is always added, and default dimensions above it are skipped"),
    ]
    output_dir: Annotated[
        str, Key("folder for the report, summary.csv, table.md, plot.png, run.json and the result files", path=True)
    ]
    trust_remote_code: Annotated[
        bool, Key("run the Python code that comes with a model; do this only for code that you have read")
    ]
    allow_pickle: Annotated[
        bool,
        Key(
            "load pickled weights, with PyTorch's restricted unpickler, if a model has no safetensors; do this only for models "
            "that you trust"
        ),
    ]
    max_seq_length: Annotated[
        int | None, Key("truncate texts to N tokens; the model's own limit by default", minimum=1)
    ]
    prompts: Annotated[
        str | dict[str, str] | None,
        Key(
            "prompt to put before each text, instead of the prompts stored in the model: a string, or a JSON object keyed by mteb task "
            'name or type, such as {"STS": "query: "} (for retrieval: "query" and "document"; for evaluate_sts.py --data: "STS")'
        ),
    ]
    batch_size: Annotated[int, Key("texts in a forward pass", minimum=1)]
    device: Annotated[
        list[str],
        Key(
            "devices to encode on, such as cuda:0 cuda:1, with one process for each if there are several; by default a GPU if the machine has one"
        ),
    ]
    dtype: Annotated[
        str, Key("precision of the weights and the forward pass", choices=("float32", "bfloat16", "float16"))
    ]
    baseline_model: Annotated[
        str | None,
        Key(
            "a model to compare with, such as the untrained model or one trained without Matryoshka; scored like the others, but never recommended",
            path=True,
        ),
    ]
    calibration_data: Annotated[
        str | None,
        Key(
            "texts from outside the test sets, to fit PCA and the int8 ranges on: a file, a folder or a quoted glob of files, or a Hub data set as "
            "path, path:config or path:config:split (config may be empty; the default split is train); "
            "with 'none', the report compares no PCA or random projections, and has no quantised vectors or shortlists",
            path=True,
        ),
    ]
    max_loss: Annotated[
        float,
        Key(
            "largest acceptable drop in score, in points of the mean score, compared with the full width of the best model; the report "
            "recommends the smallest vector whose drop, with 95% confidence, is no larger than this",
            minimum=0,
        ),
    ]
    update_model_card: Annotated[bool, Key("write the scores into the model-index of each local model's README.md")]
    overwrite: Annotated[bool, Key("compute everything again, including the embeddings")]


@dataclass
class MTEBConfig(EvalConfig):
    tasks: Annotated[list[str], Key("mteb tasks to score, by name")]
    benchmark: Annotated[str | None, Key("score all text tasks of this mteb benchmark, instead of --tasks")]
    languages: Annotated[
        list[str],
        Key(
            "score only subsets in one of these languages (ISO 639-3 codes, such as: ara eng); without --tasks and --benchmark, score "
            "every text task of mteb that has such a subset"
        ),
    ]


@dataclass
class STSConfig(EvalConfig):
    task: Annotated[str | None, Key("the mteb task to score; give either this or --data", choices=STS_TASKS)]
    data: Annotated[
        str | None,
        Key(
            "your own graded pairs, instead of --task: a CSV, TSV, JSON, JSONL or Parquet file with the columns sentence1, sentence2, score "
            "and optionally subset",
            path=True,
        ),
    ]
