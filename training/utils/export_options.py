"""The keys of ``training/export_model.py``. Their defaults are in ``configs/export_config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from common.config import Config
from common.errors import UsageError, check_outside, check_writable
from common.keys import Key

SENTENCE_TRANSFORMERS, ONNX = "sentence-transformers", "onnx"
FLOAT32, INT8 = "float32", "int8"


@dataclass
class ExportConfig(Config):
    defaults_file: ClassVar[str] = "export_config.json"

    model_name: Annotated[
        str | None, Key("the model to export (required): its folder, or its name on the Hub", path=True)
    ]
    dim: Annotated[int | None, Key("width of the exported embeddings; the model's full width by default", minimum=1)]
    format: Annotated[
        str,
        Key(
            "sentence-transformers: a folder that SentenceTransformer loads; onnx: a file that does not need torch",
            choices=(SENTENCE_TRANSFORMERS, ONNX),
        ),
    ]
    weights: Annotated[
        str,
        Key(
            "precision of the weights; int8 is only for --format onnx, and its effect on the score is measured",
            choices=(FLOAT32, INT8),
        ),
    ]
    output_dir: Annotated[
        str | None,
        Key("the folder to create, which must not exist yet; output/<model>-<dim>[-onnx[-int8]] by default", path=True),
    ]
    data: Annotated[
        str | None,
        Key(
            "graded pairs for measuring how much int8 lowers the score: a CSV, TSV, JSON, JSONL or Parquet file with the "
            "columns sentence1, sentence2 and score; by default the validation set of STS-B, if the Hub can be reached",
            path=True,
        ),
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


def check_export(config: ExportConfig) -> None:
    """Raise :class:`UsageError` if the model is missing, or if two keys contradict each other."""
    if not config.model_name:
        raise UsageError("MODEL is missing: set it to the model's folder or its name on the Hub")
    if config.weights == INT8 and config.format != ONNX:
        raise UsageError("--weights int8 needs --format onnx, because sentence-transformers computes in floating point")
    if config.data is not None and config.weights != INT8:
        raise UsageError(
            "--data is for measuring the effect of int8: add --format onnx --weights int8, or remove --data"
        )


def output_folder(config: ExportConfig, model_name: str, dim: int) -> Path:
    """Return the folder to write: ``output_dir``, or ``output/<model>-<dim>[-onnx[-int8]]``.

    Raises:
        UsageError: The folder exists, or is inside the model's folder.
    """
    name = "-".join(
        [
            Path(model_name).name,
            str(dim),
            *([ONNX] if config.format == ONNX else []),
            *([INT8] if config.weights == INT8 else []),
        ]
    )
    folder = Path(config.output_dir or f"output/{name}")
    if folder.exists():
        raise UsageError(f"--output_dir {folder} already exists: choose another folder, or remove it")
    check_outside("--output_dir", folder, [config.model_name])
    check_writable("--output_dir", folder)
    return folder
