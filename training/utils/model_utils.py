"""The model to train, the folder of its run, and the precision that the hardware is good at."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import as_dict
from common.errors import RunError, writing
from common.models import identify, load_model
from common.records import read_record
from common.redact import redact_values
from training.utils.checkpoints import checkpoints, damage, find_checkpoint, remove_damaged, resume_command
from training.utils.option_checks import check_static
from training.utils.options import STATIC, TrainingConfig, loading_options
from training.utils.prune_vocabulary import prune_vocabulary
from training.utils.vocabulary import extend_vocabulary, normalize_arabic

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

FINAL = "final"
UNTRAINED = "untrained"
PARTIAL = ".partial"
# what a resumed run may have otherwise: where it writes and what it reports, but not what it learns
MAY_CHANGE = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "push_to_hub",
    "hub_model_id",
}


def load_base_model(
    config: TrainingConfig, texts: Iterable[str], pairs: Iterable[tuple[str, str]] = ()
) -> SentenceTransformer:
    """The model to start from: one from the Hub or a folder, or a static one, made from the training ``texts``.

    A transformer without pooling gets mean pooling over its tokens. ``--extend_vocabulary`` starts its new word pieces from the
    translations among the ``pairs``.
    """
    if config.model_name == STATIC:
        return make_static_model(texts, config.static_embedding_dim, config.static_vocab_size, config.seed)
    model = load_model(config.model_name, identify(config.model_name), **loading_options(config))
    if is_static(model):
        check_static(config)
    if config.max_seq_length is not None:
        limit = model.max_seq_length
        if limit is not None and config.max_seq_length > limit:
            raise RunError(
                f"--max_seq_length {config.max_seq_length} is above the {limit} tokens that {config.model_name} can take"
            )
        model.max_seq_length = config.max_seq_length
    if config.normalize_arabic:
        normalize_arabic(model)
    if config.extend_vocabulary and config.prune_vocabulary:
        texts = list(texts)  # gone through twice
    if config.extend_vocabulary:
        extend_vocabulary(model, texts, config.extend_vocabulary, pairs if config.align_vocabulary else ())
    if config.prune_vocabulary:
        prune_vocabulary(model, texts)
    return model


def make_static_model(texts: Iterable[str], embedding_dim: int, vocab_size: int, seed: int) -> SentenceTransformer:
    """Static embeddings with random weights: a text's embedding is the mean of its word pieces' vectors.

    Trains in minutes without a GPU (Aarsen, 2025, https://huggingface.co/blog/static-embeddings). The word pieces are
    learnt from ``texts``, so that nothing needs to be downloaded.

    Args:
        texts: What to learn the word pieces from.
        embedding_dim: Width of the embeddings.
        vocab_size: How many word pieces at most.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    # Byte-pair encoding with a mark before each word: unlike WordPiece's trainer, its one gives the same pieces every time.
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    # NFKD splits letters from their accents and Arabic vowel signs, which then go, as does the tatweel.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Replace("\u0640", ""), normalizers.Lowercase()]
    )
    mark = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), mark])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(tokenizer.get_vocab_size(), embedding_dim, generator=generator)
    logger.info("static embeddings: %d word pieces of %d dimensions", *weights.shape)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def is_static(model: SentenceTransformer) -> bool:
    return type(model[0]).__name__ == "StaticEmbedding"


def choose_precision(wanted: str, model: SentenceTransformer) -> torch.dtype:
    """The data type of the matrix products in training for ``--precision``.

    ``auto`` takes bfloat16 where the processor multiplies it natively, float16 on older GPUs, and float32 elsewhere and for
    static embeddings, which multiply nothing. The weights, and evaluation, stay in float32.

    Raises:
        RunError: The hardware cannot do what was asked for.
    """
    import torch

    device = model.device.type
    if wanted == "auto":
        if is_static(model):
            wanted = "fp32"
        elif device == "cuda":
            wanted = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            wanted = "bf16" if device == "cpu" and cpu_has_bfloat16() else "fp32"
    if wanted == "fp16" and device != "cuda":
        raise RunError(f"--precision fp16 needs a GPU, and the device is {device}: use bf16 or fp32")
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where there is
    logger.info("training on %s in %s", device, wanted)
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]


def cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 products (AVX512-BF16 or AMX)."""
    import torch

    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def run_folder(config: TrainingConfig, script: str) -> Path:
    """The folder of the run: ``output_dir``, or ``output/<script>-<model>``."""
    return Path(config.output_dir or f"output/{script}-{Path(config.model_name).name}")


def prepare_run_folder(folder: Path, config: TrainingConfig) -> Path | None:
    """Make sure that no earlier run is lost, and find the checkpoint to go on from.

    Returns:
        The checkpoint to resume from, or None for a fresh start.

    Raises:
        RunError: The folder holds a finished or an unfinished run and the flags do not say what to do with it.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--output_dir {folder} is a file")
    found = checkpoints(folder)
    if others := sorted(path.name for path in folder.glob("checkpoint-*") if path.is_dir() and path not in found):
        raise RunError(
            f"{folder} holds {others[0]}, which is not a checkpoint of a run: move it away, since transformers deletes the oldest checkpoint-*"
        )
    if config.resume_from_checkpoint is not None:
        if (folder / FINAL).exists():
            raise RunError(
                f"{folder} holds a finished run: there is nothing to resume; --overwrite_output_dir starts it anew"
            )
        checkpoint = find_checkpoint(folder, config.resume_from_checkpoint)
        check_same_settings(checkpoint.parent / "run.json", config)
        return checkpoint
    if config.overwrite_output_dir:
        pass  # remove_earlier_run follows, once this run is sure to begin
    elif (folder / FINAL).exists():
        raise RunError(
            f"{folder} holds a finished run: choose another --output_dir, or replace it with --overwrite_output_dir"
        )
    elif any(damage(path, contents=False) is None for path in found):
        raise RunError(
            f"{folder} holds an unfinished run: resume it with `{resume_command()}`, or replace it with --overwrite_output_dir"
        )
    elif found:
        raise RunError(
            f"{folder} holds a run that died before it had a whole checkpoint: start it anew with --overwrite_output_dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return None


def remove_earlier_run(folder: Path) -> None:
    """Remove what a run leaves in its folder; files of any other name stay."""
    for path in (folder / FINAL, folder / UNTRAINED, folder / "run.json", folder / "eval", *checkpoints(folder)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_same_settings(path: Path, config: TrainingConfig) -> None:
    """Make sure that a run goes on with the settings that it began with, which its ``run.json`` at ``path`` holds.

    Raises:
        RunError: A setting differs that the weights depend on; the message names all of these.
    """
    before = read_record(path)
    if before is None:
        logger.warning("%s cannot be read, so whether the run began with the same settings is not checked", path)
        return
    after = as_dict(config)
    check_unchanged(path, {key: before["config"].get(key, after[key]) for key in after}, after)


def check_unchanged(path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Raise :class:`RunError` where what a run began with, as ``path`` has it, differs in what its weights depend on."""
    old, new = flatten(before), flatten(redact_values(json.loads(json.dumps(after, default=str))))  # as a record is
    changed = [
        f"{key} was {json.dumps(old.get(key), ensure_ascii=False)} and is {json.dumps(new.get(key), ensure_ascii=False)}"
        for key in {**old, **new}
        if key not in MAY_CHANGE and old.get(key) != new.get(key)
    ]
    if changed:
        raise RunError(
            f"{path}: the run to resume began otherwise: {'; '.join(changed)}. Give the same, or begin anew in another --output_dir"
        )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def save_whole(model: SentenceTransformer, folder: Path, name: str, advice: str) -> Path:
    """Save the model, with its card, as ``<folder>/<name>``; it appears there whole or not at all.

    Raises:
        RunError: It could not be written; the message ends with ``advice``.
    """
    partial, whole = folder / f".{name}{PARTIAL}", folder / name
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(whole, advice):
            model.save_pretrained(str(partial))
            shutil.rmtree(whole, ignore_errors=True)
            partial.rename(whole)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return whole


def remove_leftovers(folder: Path) -> None:
    """Remove what a run that was killed was about to write, and its checkpoints that are not whole."""
    for name in (FINAL, UNTRAINED):
        shutil.rmtree(folder / f".{name}{PARTIAL}", ignore_errors=True)
    for path in folder.glob(".run.json.*"):
        path.unlink()
    remove_damaged(folder)
