"""Exports a model, truncated to a given dimension, to one ONNX file that returns normalised embeddings; adds its tokenizer."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import RunError, one_line
from common.models import ModelIdentity
from training.utils.export import EMBEDDING, TRIAL_TEXTS, check_equal, prefixes
from training.utils.model_utils import is_static

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

MODEL, TOKENIZER, PROMPTS = "model.onnx", "tokenizer.json", "prompts.json"
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "embeddings"
NO_LIMIT = 10**6  # tokens; transformers writes a huge number if a tokenizer has no limit
LARGEST = 2**31 - 2**20  # the most bytes of weights that fit into one ONNX file


def require_packages() -> None:
    """Raise :class:`RunError` if a package that the export needs is missing."""
    from importlib.util import find_spec

    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise RunError(f"--format onnx needs {', '.join(missing)}: run `pip install -r requirements-export.txt`")


class Embedder(nn.Module):
    """Maps token ids ``[batch, sequence]`` and their mask to unit vectors ``[batch, dim]``."""

    def __init__(self, parts: list[nn.Module], dim: int):
        super().__init__()
        self.parts, self.dim = nn.ModuleList(parts), dim

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        for part in self.parts:
            features = part(features)
        return nn.functional.normalize(features[EMBEDDING][:, : self.dim], dim=-1)


class StaticMean(nn.Module):
    """Averages static embeddings over padded texts. EmbeddingBag takes concatenated texts, which have no batch dimension to export."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = features["attention_mask"].unsqueeze(-1).to(self.weight.dtype)
        total = (nn.functional.embedding(features["input_ids"], self.weight) * mask).sum(1)
        return features | {EMBEDDING: total / mask.sum(1).clamp(min=1)}


def save_onnx(model: SentenceTransformer, folder: Path, identity: ModelIdentity, dim: int) -> None:
    """Write ``model.onnx``, ``tokenizer.json`` and ``prompts.json`` into ``folder`` and check them against ``model``.

    Raises:
        RunError: The architecture, the tokenizer or the pooling cannot be exported, or the embeddings differ.
    """
    from sentence_transformers.base.modules import Router

    if any(isinstance(module, Router) for module in model.children()):
        raise RunError(
            f"model {identity.source} has an encoder for each kind of text (Router), but an ONNX file holds only one: "
            "use --format sentence-transformers"
        )
    folder.mkdir(parents=True)
    tokenizer = portable_tokenizer(model, identity)
    prompts = {
        "prompts": {name: text or "" for name, text in model.prompts.items()},
        "default": model.default_prompt_name,
    }
    if any(prompts["prompts"].values()) and not all(getattr(part, "include_prompt", True) for part in model):
        raise RunError(
            f"model {identity.source} excludes its prompts from the pooling, which the ONNX export does not support: use --format sentence-transformers"
        )
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    if size > LARGEST:
        raise RunError(
            f"model {identity.source} has {size / 2**30:.1f} GiB of weights, but an ONNX file can hold at most 2 GiB: use --format sentence-transformers"
        )
    (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    (folder / PROMPTS).write_text(json.dumps(prompts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    export_graph(model, folder / MODEL, identity, dim)
    expected = prefixes(model, TRIAL_TEXTS, dim)
    try:
        embeddings = OnnxModel(folder).encode(TRIAL_TEXTS)
    except (
        Exception
    ) as error:  # onnxruntime has a dozen exception classes; some graphs accept only the shape of the example
        logger.debug("traceback:", exc_info=True)
        raise not_exportable(model, identity, error) from None
    check_equal(identity, expected, embeddings)


def portable_tokenizer(model: SentenceTransformer, identity: ModelIdentity) -> str:
    """Return the model's ``tokenizer.json``, with its truncation and padding settings."""
    from tokenizers import Tokenizer

    original = model.tokenizer
    if is_static(model):
        tokenizer = Tokenizer.from_str(json.dumps(json.loads(original.to_str()) | {"post_processor": None}))
        tokenizer.no_truncation()
        # any token will do, because the mask hides it
        tokenizer.enable_padding(pad_id=0, pad_token=tokenizer.id_to_token(0))
        return tokenizer.to_str(pretty=True)
    backend = getattr(original, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise RunError(
            f"model {identity.source} cannot be exported to ONNX: its tokenizer does not come from the tokenizers library"
        )
    tokenizer = Tokenizer.from_str(backend.to_str())
    limit = model.max_seq_length
    if limit is not None and limit < NO_LIMIT:
        tokenizer.enable_truncation(int(limit), direction=original.truncation_side)
    else:
        tokenizer.no_truncation()
    tokenizer.enable_padding(
        direction=original.padding_side,
        pad_id=original.pad_token_id,
        pad_type_id=original.pad_token_type_id,
        pad_token=original.pad_token,
    )
    return tokenizer.to_str(pretty=True)


def export_graph(model: SentenceTransformer, path: Path, identity: ModelIdentity, dim: int) -> None:
    """Write the ONNX file: inputs ``input_ids`` and ``attention_mask``, output ``embeddings``; any batch size, any length up to the limit."""
    parts = list(model.children())
    if is_static(model):
        parts[0] = StaticMean(parts[0].embedding.weight.detach().float())
    embedder = Embedder(parts, dim).eval()
    tokens = torch.arange(1, 19).reshape(2, 9)
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    limit = model.max_seq_length
    longest = {} if limit is None or limit >= NO_LIMIT or math.isinf(limit) else {"max": int(limit)}
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", **longest)}
    try:
        with quiet():
            torch.onnx.export(
                embedder,
                (tokens, mask),
                str(path),
                dynamo=True,
                external_data=False,
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes=dict.fromkeys(INPUTS, shape),
                verbose=False,
            )
        strip(path)
    except Exception as error:  # the exporter raises a dozen exception classes, some with messages of many lines
        logger.debug("traceback:", exc_info=True)
        raise not_exportable(model, identity, error.__cause__ or error) from None


def not_exportable(model: SentenceTransformer, identity: ModelIdentity, error: BaseException) -> RunError:
    kind = type(getattr(model[0], "auto_model", model[0])).__name__
    return RunError(
        f"model {identity.source}: {kind} cannot be exported to ONNX ({one_line(error, 160)}): "
        "use --format sentence-transformers"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of the exporter and the quantiser, which do not concern the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def strip(path: Path) -> None:
    """Remove the exporter's notes from an ONNX file, because they contain paths on this machine."""
    import onnx

    model = onnx.load(path)
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.initializer,
        *model.graph.value_info,
        *model.graph.output,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for function in model.functions:
        for node in (function, *function.node):
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    onnx.save(model, path)


def quantise(path: Path) -> None:
    """Quantise the weights of an ONNX file to int8, with a scale for each output channel; activations are quantised at run time.

    The range is reduced to 7 bits, because processors without VNNI overflow at 8.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    rounded = path.with_name(f"int8-{path.name}")
    with quiet():
        quantize_dynamic(path, rounded, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    rounded.replace(path)


class OnnxModel:
    """Embeds texts with an exported model, using only onnxruntime and tokenizers."""

    def __init__(self, folder: Path):
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # log errors only
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "0"
        )  # idle threads would otherwise spin at full load
        self.session = onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))

    def encode(self, texts: list[str], batch_size: int = 32) -> np.ndarray:
        """Return unit vectors, float32, shape ``[texts, dim]``. Texts of similar length share a batch."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        embeddings: dict[int, np.ndarray] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            encoded = self.tokenizer.encode_batch([texts[index] for index in batch])
            inputs: dict[str, Any] = {
                "input_ids": np.array([text.ids for text in encoded], dtype=np.int64),
                "attention_mask": np.array([text.attention_mask for text in encoded], dtype=np.int64),
            }
            embeddings |= zip(batch, self.session.run([OUTPUT], inputs)[0], strict=True)
        return np.stack([embeddings[index] for index in range(len(texts))])
