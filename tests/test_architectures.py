"""Every architecture that users bring trains, is evaluated, resumes, and loads in plain sentence-transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from common.models import load_model
from common.packing import pack
from tests.tiny_models import MODELS, WORDS, make_model

STS, NLI = "evaluation/evaluate_sts.py", "training/matryoshka_nli.py"
LORA = ("--lora_r", "4")
# the model to start from, and more flags
TABLE = {kind: (kind, ()) for kind in MODELS if kind != "word vectors"}  # these are frozen
TABLE |= {
    "encoder, LoRA": ("encoder", LORA),
    "Qwen3, LoRA": ("Qwen3", LORA),
    "GPT-2, LoRA": ("GPT-2", LORA),
    "Dense and Normalize, LoRA": ("Dense and Normalize", LORA),
    "half precision, LoRA": ("half precision", LORA),
    "an adapter": ("encoder, LoRA", ()),
    "an adapter, LoRA": ("encoder, LoRA", LORA),
}
TEXTS = [f"word{i} word{i * 7 % 50} word3" for i in range(8)] + [" ".join(WORDS)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("architectures")
    pairs = [{"anchor": f"word{i} word7", "positive": f"word{i} word{i + 1}"} for i in range(16)]
    scored = [
        {"sentence1": f"word{i} word9", "sentence2": f"word{i * 3 % 10} word9 word2", "score": i * i % 7}
        for i in range(10)
    ]
    for name, rows in (("pairs", pairs), ("scored", scored)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def train(root, call):
    """``train(kind)`` trains a model for two steps, with a checkpoint after each, once; returns the folder of the run."""

    def run(kind: str, *more: str) -> Path:
        start, flags = TABLE[kind]
        folder = root / kind.replace(" ", "-").replace(",", "")
        if (folder / "final").exists():
            return folder
        base = root / f"base-{start.replace(' ', '-')}"
        if start in TABLE and TABLE[start][1]:
            base = run(start) / "final-adapter"
        elif not base.exists():
            make_model(start, base)
        (root / f"{folder.name}.txt").write_text(str(base))
        done = call(
            NLI, base, "--train_data", root / "pairs.jsonl", "--dev_data", "none", "--output_dir", folder, *flags, *more,
            "--max_steps", "2", "--eval_steps", "1", "--per_device_train_batch_size", "8", "--learning_rate", "1e-2",
            "--matryoshka_dims", "16", "--precision", "fp32",
        )  # fmt: skip
        assert done.code == 0, done.err
        assert done.out.splitlines()[-1] == str(folder / "final")
        return folder

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.relative_to(folder)}/{name}": value
        for path in sorted(folder.rglob("model.safetensors"))
        for name, value in load_file(path).items()
    }


@pytest.mark.parametrize("kind", TABLE)
def test_train(train, root, kind):
    folder = train(kind)
    before = load_model((root / f"{folder.name}.txt").read_text()).encode(TEXTS)
    after = load_model(str(folder / "final")).encode(TEXTS)
    assert np.isfinite(after).all() and after.shape == before.shape
    assert abs(after - before).max() > 1e-3 * abs(before).max(), "nothing was learnt"
    assert (folder / "final-adapter").exists() == bool(TABLE[kind][1])


@pytest.mark.parametrize("kind", TABLE)
def test_evaluate(train, root, call, tmp_path, kind):
    """The score at 16 dimensions is what scipy computes from embeddings of plain sentence-transformers, encoded text by text."""
    final = train(kind) / "final"
    done = call(STS, "--model_name", final, "--data", root / "scored.jsonl", "--dims", "16", "--calibration_data", "none",
                "--output_dir", tmp_path / "out")  # fmt: skip
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (root / "scored.jsonl").read_text().splitlines()]
    model = SentenceTransformer(str(final), device="cpu")
    first, second = (np.concatenate([model.encode([r[c]]) for r in rows])[:, :16] for c in ("sentence1", "sentence2"))
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    expected = spearmanr([row["score"] for row in rows], cosine).statistic
    [result] = (tmp_path / "out/sts").rglob("embed_dim_16/*.json")
    assert json.loads(result.read_text())["scores"][0]["cosine_spearman"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", TABLE)
def test_resume(train, root, kind):
    """A run that lost everything after its first step resumes to bit-identical weights."""
    folder = train(kind)
    expected = weights(folder / "final")
    kept = folder.with_name(f"{folder.name}-kept")
    folder.rename(kept)
    shutil.copytree(kept, folder, ignore=shutil.ignore_patterns("final*", "checkpoint-2"))
    train(kind, "--resume_from_checkpoint", "latest")
    assert json.loads((folder / "run.json").read_text())["resumed_at_step"] == 1
    resumed = weights(folder / "final")
    assert resumed.keys() == expected.keys() and resumed
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name
    shutil.rmtree(kept)


@pytest.mark.parametrize("kind", TABLE)
def test_load_in_plain_sentence_transformers(train, kind):
    """Packed batches give the embeddings that plain sentence-transformers gives for each text alone, that is, without padding."""
    folder = train(kind) / "final"
    plain, ours = SentenceTransformer(str(folder), device="cpu"), pack(load_model(str(folder)))
    alone = np.concatenate([plain.encode([text]) for text in TEXTS])
    assert ours.encode(TEXTS) == pytest.approx(alone, abs=1e-4 * float(abs(alone).max()))
    assert not any(path.name.startswith("adapter") for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", [kind for kind, (_, flags) in TABLE.items() if flags])
def test_the_adapter_of_a_run_is_its_final_model(train, kind):
    """``final-adapter`` loads to the same bits as ``final``, even if training started from another adapter."""
    folder = train(kind)
    final, adapted = (load_model(str(folder / name)).state_dict() for name in ("final", "final-adapter"))
    assert final.keys() == adapted.keys() and final
    for name, value in final.items():
        assert torch.equal(adapted[name], value), name
