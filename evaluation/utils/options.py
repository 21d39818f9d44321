"""The keys of the evaluation scripts. Their defaults are in ``configs/eval_config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from common.config import Config
from common.keys import Key

STS_TASKS = ("STS17", "STS22", "STS22.v2", "STSBenchmark")


@dataclass
class EvalConfig(Config):
    defaults_file: ClassVar[str] = "eval_config.json"

    model_name: Annotated[list[str], Key("models to score: names on the Hub or folders on disk", path=True)]
    subsets: Annotated[list[str], Key("subsets to score; a task that has none of them keeps its default ones")]
    dims: Annotated[
        list[int], Key("dimensions to score; the full width is always added, and defaults above it are dropped")
    ]
    output_dir: Annotated[
        str, Key("folder for the report, summary.csv, table.md, plot.png, run.json and the result files", path=True)
    ]
    trust_remote_code: Annotated[bool, Key("run Python code that comes with a model; only if you have read it")]
    allow_pickle: Annotated[
        bool,
        Key("read pickled weights, which can run any code, where a model has no safetensors; only if you trust it"),
    ]
    max_seq_length: Annotated[
        int | None, Key("truncate texts to N tokens; the model's own limit by default", minimum=1)
    ]
    prompts: Annotated[
        str | dict[str, str] | None,
        Key(
            "put this before each text, in place of the prompts that the models store: a string, or an object by mteb's task "
            'name or type, such as {"STS": "query: "} ("query" and "document" are for retrieval)'
        ),
    ]
    batch_size: Annotated[int, Key("texts in a forward pass", minimum=1)]
    device: Annotated[
        list[str], Key("devices to encode on, such as cuda:0 cuda:1; with several, each has its own process")
    ]
    dtype: Annotated[
        str, Key("precision of the weights and the forward pass", choices=("float32", "bfloat16", "float16"))
    ]
    baseline_model: Annotated[
        str | None,
        Key("a model to compare with, such as an untrained or non-Matryoshka twin; scored like the others", path=True),
    ]
    calibration_data: Annotated[
        str | None,
        Key(
            "texts that are not the test set, for PCA and quantisation: a file, or a Hub data set as path:config:split; "
            "without it there are no baselines, precisions and shortlists",
            path=True,
        ),
    ]
    max_loss: Annotated[
        float,
        Key(
            "points of the mean score that may be lost against the full width of the best model compared; the report recommends "
            "the smallest vector that is shown, with 95% confidence, to lose no more",
            minimum=0,
        ),
    ]
    update_model_card: Annotated[bool, Key("write the scores into the model-index of each local model's README.md")]
    overwrite: Annotated[bool, Key("compute everything again, including the embeddings")]


@dataclass
class MTEBConfig(EvalConfig):
    tasks: Annotated[list[str], Key("mteb tasks to score, by name")]
    benchmark: Annotated[str | None, Key("score all text tasks of this mteb benchmark instead")]
    languages: Annotated[
        list[str],
        Key(
            "only subsets with one of these languages (ISO 639-3: ara, eng); without --tasks and --benchmark, every text "
            "task of mteb that has them"
        ),
    ]


@dataclass
class STSConfig(EvalConfig):
    task: Annotated[str | None, Key("the mteb task to score", choices=STS_TASKS)]
    data: Annotated[
        str | None,
        Key(
            "your own pairs instead: CSV, TSV, JSONL or Parquet with the columns sentence1, sentence2, score and optionally subset",
            path=True,
        ),
    ]
