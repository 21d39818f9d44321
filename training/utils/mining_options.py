"""The keys of ``training/mine_negatives.py``. Their defaults are in ``configs/mining_config.json``.

Arguments of sentence-transformers' ``mine_hard_negatives`` keep their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from common.config import Config
from common.data_files import is_local_path
from common.errors import UsageError, check_writable
from common.formats import table_name
from common.keys import Key
from common.prompts import DOCUMENT, DOCUMENT_PROMPTS, QUERY

TOP, RANDOM = "top", "random"


@dataclass
class MiningConfig(Config):
    defaults_file: ClassVar[str] = "mining_config.json"

    model_name: Annotated[
        str | None, Key("the model that finds the negatives (required): its folder, or its name on the Hub", path=True)
    ]
    path: Annotated[
        str | None,
        Key(
            "the pairs (required), with the columns anchor and positive (docs/options.md lists other recognised names): a data set on the "
            "Hub, or a file, a folder or a quoted glob of files",
            path=True,
        ),
    ]
    name: Annotated[str | None, Key("the configuration (subset) on the Hub")]
    split: Annotated[str, Key("the split on the Hub")]
    columns: Annotated[
        dict[str, str] | None,
        Key("the names of the columns that hold the anchors and the positives (config file only)"),
    ]
    max_train_samples: Annotated[int | None, Key("use only the first N rows", minimum=1)]
    drop_unusable_rows: Annotated[
        bool,
        Key(
            "drop rows of your own files that lack a text, or whose text is a list in brackets, instead of stopping with an error; such rows are always dropped from data sets on the Hub"
        ),
    ]
    output_file: Annotated[
        str | None, Key("the Parquet file to write; output/<data>-mined.parquet by default", path=True)
    ]
    overwrite: Annotated[bool, Key("replace output_file")]
    num_negatives: Annotated[
        int, Key("number of negatives for each pair; fewer if not enough candidates remain", minimum=1)
    ]
    range_min: Annotated[int, Key("skip the N nearest candidates that satisfy the margins", minimum=0)]
    range_max: Annotated[int, Key("the candidates are the N texts nearest to the anchor", minimum=1)]
    sampling_strategy: Annotated[
        str, Key("top: the nearest candidates; random: any of the candidates", choices=(TOP, RANDOM))
    ]
    relative_margin: Annotated[
        float | None,
        Key(
            "skip a candidate whose similarity to the anchor is above (1 - relative_margin) times the positive's, because it may be a false negative",
            minimum=0,
        ),
    ]
    absolute_margin: Annotated[
        float | None,
        Key(
            "skip a candidate whose similarity to the anchor is above the positive's minus absolute_margin; off by default",
            minimum=0,
        ),
    ]
    max_score: Annotated[
        float | None, Key("skip a candidate whose similarity to the anchor is above max_score; off by default")
    ]
    guide: Annotated[
        str | None,
        Key(
            "a second model, whose similarities are used for the margins, max_score and the order of the candidates",
            path=True,
        ),
    ]
    prompts: Annotated[
        str | dict[str, str] | None,
        Key(
            "prompt to put before each text, instead of the prompts stored in the model: a string, or an object such as "
            '{"query": "query: ", "document": "passage: "} (anchors are queries); the guide uses its own prompts'
        ),
    ]
    max_seq_length: Annotated[
        int | None, Key("truncate texts to N tokens; the model's own limit by default", minimum=1)
    ]
    batch_size: Annotated[int, Key("texts in a forward pass", minimum=1)]
    dev_data: Annotated[
        list[str],
        Key(
            "remove pairs that share a sentence with these dev sets: none, or one or more of: en (the STS-B validation and test sets), ar (the Arabic STS-B validation set), en-ar (the English-Arabic dev set of Tatoeba), files of graded pairs or translations; for data from the Hub, pairs that share a sentence with STS17 (ar-ar, en-ar, en-en), STS22.v2 (ar) or the STS-B test set are removed too",
            path=True,
        ),
    ]
    keep_leaks: Annotated[bool, Key("keep the pairs that share a sentence with the sets described at --dev_data")]
    seed: Annotated[int, Key("random seed, for --sampling_strategy random", minimum=0)]
    trust_remote_code: Annotated[
        bool,
        Key("run the Python code that comes with the model or the guide; do this only for code that you have read"),
    ]
    allow_pickle: Annotated[
        bool,
        Key(
            "load pickled weights, with PyTorch's restricted unpickler, if a model has no safetensors; do this only for models "
            "that you trust"
        ),
    ]


def check_mining(config: MiningConfig) -> None:
    """Raise :class:`UsageError` if the model or the data is missing, or if two keys contradict each other."""
    if not config.model_name:
        raise UsageError("MODEL is missing: set it to the model's folder or its name on the Hub")
    if not config.path:
        raise UsageError("--path is missing: set it to the pairs, which can be a data set on the Hub or a file")
    if (config.is_set("name") or config.is_set("split")) and is_local_path(config.path):
        raise UsageError(f"--name and --split are for data sets on the Hub, but {config.path} is a file")
    if config.num_negatives > config.range_max - config.range_min:
        raise UsageError(
            f"--num_negatives {config.num_negatives} is above the {max(0, config.range_max - config.range_min)} candidates between --range_min {config.range_min} and --range_max {config.range_max}: lower it, or raise --range_max"
        )
    names = config.prompts if isinstance(config.prompts, dict) else {}
    if unknown := [name for name in names if name not in (QUERY, *DOCUMENT_PROMPTS)]:
        raise UsageError(
            f"--prompts: unknown role {unknown[0]!r}; use {QUERY!r} for anchors and {DOCUMENT!r} for candidates (also accepted: {', '.join(DOCUMENT_PROMPTS[1:])})"
        )
    if config.guide is not None and config.relative_margin is config.absolute_margin is config.max_score is None:
        raise UsageError(
            "--guide has no effect without a limit: set --relative_margin, --absolute_margin or --max_score"
        )


def output_file(config: MiningConfig) -> Path:
    """Return the file to write: ``output_file``, or ``output/<data>-mined.parquet``.

    Raises:
        UsageError: The name does not end in .parquet, the folder is not writable, the file exists and --overwrite is not set,
            or it is the file that contains the pairs.
    """
    data = Path(config.path)
    stem = table_name(data) if is_local_path(config.path) else "-".join([data.name, *filter(None, [config.name])])
    path = Path(config.output_file or f"output/{stem}-mined.parquet")
    if path.suffix != ".parquet":
        raise UsageError(f"--output_file {path}: its name must end in .parquet")
    if path.is_dir():
        raise UsageError(f"--output_file {path} is a folder: choose a file name")
    check_writable("--output_file", path.parent)
    if path.exists() and path.resolve() == data.resolve():
        raise UsageError(f"--output_file {path} is the file that contains the pairs: choose another file")
    if path.exists() and not config.overwrite:
        raise UsageError(f"--output_file {path} already exists: choose another file, or replace it with --overwrite")
    return path
