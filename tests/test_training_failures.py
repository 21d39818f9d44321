"""Non-finite numbers and a full disk end a training run with one line, and leave its checkpoints intact."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from common.errors import RunError, writing
from common.records import write_atomically
from tests.helpers import HYBRID, NLI, ROOT, classes, finished, triplets, weights_of, write
from training.utils.checkpoints import checkpoints, why_unusable

FLAGS = ("--precision", "fp32", "--per_device_train_batch_size", "8", "--dev_data", "none", "--eval_steps", "2")


@pytest.fixture
def poison(monkeypatch):
    """``poison(step, of, number)``: at that step the loss of a data set, or its gradient, is not finite."""
    from training.utils.trainer import MatryoshkaTrainer

    own = MatryoshkaTrainer.compute_loss

    def arrange(step: int, name: str | None = None, loss: float | None = None, gradient: float | None = None):
        def compute_loss(self, model, inputs, *args, **kwargs):
            found = inputs.get("dataset_name")
            inner = self.loss[found] if isinstance(self.loss, dict) else self.loss
            forward = type(inner).forward

            def spoilt(features, labels):
                value = forward(inner, features, labels)
                if self.state.global_step + 1 != step or found != name:
                    return value
                if gradient is not None:
                    value.register_hook(lambda g: g * gradient)
                return value if loss is None else value * loss

            inner.forward = spoilt
            return own(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(MatryoshkaTrainer, "compute_loss", compute_loss)

    return arrange


@pytest.fixture
def data(groups, tmp_path) -> Path:
    return write(tmp_path / "ranks.csv", triplets(groups[:48], "en"))


@pytest.mark.parametrize("accumulated", ["1", "2"])
@pytest.mark.parametrize(
    "spoilt, said, step, deferred",
    [
        ({"loss": float("nan")}, "the loss at step 4 is nan", 4, False),
        ({"loss": float("inf")}, "the loss at step 4 is inf", 4, False),
        ({"gradient": float("nan")}, "the gradient at step 4 is nan", 4, False),
        ({"gradient": 1e38}, "the gradient at step 4 is inf", 4, False),
        ({"loss": float("nan")}, "the loss at step 3 is nan", 3, True),  # found in the next step
        ({"gradient": float("nan")}, "the gradient at step 4 is nan", 4, True),  # found before the checkpoint
    ],
    ids=["nan loss", "inf loss", "nan gradient", "inf gradient", "nan loss on a GPU", "nan gradient on a GPU"],
)
def test_numbers_that_are_not_finite_end_the_run(
    fails, poison, data, groups, tiny_model, tmp_path, monkeypatch, spoilt, said, step, deferred, accumulated
):
    monkeypatch.setattr("training.utils.callbacks.FiniteCheck.deferred", deferred)
    poison(step, **spoilt)
    at = ("--gradient_accumulation_steps", accumulated, "--max_steps", "6", "--output_dir", tmp_path / "run")
    message = fails(1, said, NLI, tiny_model, "--train_data", data, *FLAGS, *at)
    where = "in 2 batches, the first of which" if "gradient" in said and accumulated == "2" else "in a batch that"
    words = re.findall(r"\w+", message.partition(f"{where} begins with ")[2])[:2]
    premises = [re.findall(r"\w+", group["premise_en"].lower())[:2] for group in groups[:48]]
    assert words in premises, message
    (kept,) = checkpoints(tmp_path / "run")
    assert message.endswith(f"the last complete checkpoint is {kept}") and why_unusable(kept) is None
    assert all(weight.isfinite().all() for weight in weights_of(kept).values())


def test_the_data_set_of_a_mixture_is_named(fails, poison, data, groups, tmp_path, static_flags):
    kinds = write(tmp_path / "kinds.csv", classes(groups[:20]))
    entries = {"ranks": {"path": str(data), "loss": "mnrl"}, "kinds": {"path": str(kinds), "loss": "softmax"}}
    (tmp_path / "mixture.json").write_text(
        json.dumps({"datasets": entries, "multi_dataset_batch_sampler": "round_robin"})
    )
    poison(4, name="kinds", loss=float("nan"))
    at = ("--config", tmp_path / "mixture.json", "--output_dir", tmp_path / "run")
    message = fails(
        1, "the loss of kinds at step 4 is nan, in a batch that begins with '", HYBRID, *static_flags, *FLAGS, *at
    )
    assert any(group["premise_en"].lower()[:20] in message for group in groups[:20])


@pytest.fixture
def static_flags() -> tuple[str, ...]:
    return ("static", "--static_embedding_dim", "64", "--static_vocab_size", "2000", "--matryoshka_dims", "16")


def test_the_gradient_of_a_head_counts_too(fails, monkeypatch, groups, tmp_path, static_flags):
    """It is not in the norm that the library logs."""
    from sentence_transformers.sentence_transformer.losses import SoftmaxLoss

    own = SoftmaxLoss.forward

    def forward(self, *args):
        if not getattr(self, "spoilt", False):
            self.classifier.bias.register_hook(lambda g: g * float("nan"))
            self.spoilt = True
        return own(self, *args)

    monkeypatch.setattr(SoftmaxLoss, "forward", forward)
    kinds = write(tmp_path / "kinds.csv", classes(groups[:20]))
    (tmp_path / "one.json").write_text(json.dumps({"datasets": {"kinds": {"path": str(kinds), "loss": "softmax"}}}))
    at = ("--config", tmp_path / "one.json", "--output_dir", tmp_path / "run")
    message = fails(
        1, "the gradient of a classification head of kinds at step 1 is not finite", HYBRID, *static_flags, *FLAGS, *at
    )
    assert message.endswith("there is no complete checkpoint yet")


def test_a_scaler_that_tries_too_large_a_scale_is_no_error(call, poison, monkeypatch, data, tiny_model, tmp_path):
    """fp16 skips the step; a loss that is not finite ends the run all the same."""
    from training.utils.trainer import MatryoshkaTrainer

    own = MatryoshkaTrainer.create_optimizer

    def with_scaler(self, *args, **kwargs):
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(MatryoshkaTrainer, "create_optimizer", with_scaler)
    flags = (NLI, tiny_model, "--train_data", data, *FLAGS, "--max_steps", "3", "--output_dir")
    poison(2, gradient=float("inf"))
    done = call(*flags, tmp_path / "one")
    finished(done, tmp_path / "one")
    assert "the run has only 3 steps" in done.err and "use a larger --max_steps" in done.err
    poison(2, loss=float("nan"))
    done = call(*flags, tmp_path / "two")
    assert done.code == 1 and "the loss at step 2 is nan" in done.err


# A full disk


def only_error(done) -> str:
    assert done.code == 1 and "Traceback" not in done.err, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.err.rstrip().endswith(line)
    return line


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_a_run_to_resume(call, warm, data, tmp_path, static_flags, file):
    """Safetensors and torch each report it in their own way."""
    command = (NLI, *static_flags, "--train_data", data, *FLAGS, "--max_steps", "4", "--output_dir")
    whole, folder = tmp_path / "whole", tmp_path / "run"
    finished(call(*command, whole), whole)
    shutil.copytree(whole, folder)  # what a run that died after step 2 leaves
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoint-4")
    size = (whole / "checkpoint-4" / file).stat().st_size - 5000
    message = only_error(warm(*command, folder, "--resume_from_checkpoint", "latest", file_size=size))
    assert f"{folder}/checkpoint-4 could not be written (" in message
    assert (
        f"the last complete checkpoint is {folder}/checkpoint-2; free some disk space and resume with: python "
        in message
    )
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2"] and why_unusable(
        folder / "checkpoint-2"
    ) is None

    _python, path, *args = shlex.split(message.partition("resume with: ")[2])
    finished(call(str(Path(path).relative_to(ROOT)), *args), folder)
    found, wanted = weights_of(folder / "final"), weights_of(whole / "final")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can mount")
def test_a_disk_that_is_really_full(call, cli, data, tmp_path, static_flags):
    """There is room for the first checkpoint, but not for the second."""
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = ("--static_vocab_size", "4000", "--static_embedding_dim", "512")
    command = (NLI, *static_flags, *flags, "--train_data", data, *FLAGS, "--max_steps", "4", "--output_dir")
    finished(call(*command, tmp_path / "whole"), tmp_path / "whole")
    one = sum(path.stat().st_size for path in (tmp_path / "whole/checkpoint-4").rglob("*") if path.is_file())
    size = f"size={int(1.9 * one) + 2**21}"  # the untrained model takes a third of a checkpoint
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = cli(*command, disk / "run")
        assert done.code == 1 and "Traceback" not in done.err, done.err[-3000:]
        line = done.err.rstrip().splitlines()[-1]
        assert "checkpoint-4 could not be written (no space left on the disk): the last complete checkpoint is " in line
        assert [why_unusable(path) for path in checkpoints(disk / "run")] == [None]
        subprocess.run(["mount", "-o", f"remount,size={4 * one}", disk], check=True)
        finished(cli(*command, disk / "run", "--resume_from_checkpoint", "latest"), disk / "run")
        found, wanted = weights_of(disk / "run/final"), weights_of(tmp_path / "whole/final")
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # the weights are still mapped


def test_a_file_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError) as caught:
            write_atomically(path, "new" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG and str(path) in str(caught.value)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "([Errno 122] Disk quota exceeded): free some disk space"),
        (
            RuntimeError("[enforce fail] PytorchStreamWriter failed"),
            "([enforce fail] PytorchStreamWriter failed): free",
        ),
        (Exception("File too large (os error 27)"), "(File too large (os error 27)): free some disk space"),
        (ValueError("the graph is wrong"), ": ValueError: the graph is wrong"),
        (KeyError("width"), ": KeyError: 'width'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_only_errors_about_the_disk_advise_to_free_space(tmp_path, error, message):
    with pytest.raises(RunError) as caught, writing(tmp_path / "file", "free some disk space"):
        raise error
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'file'} could not be written") and message in text
    assert ("free" in text) == ("free" in message)


def test_the_final_folder_appears_with_its_complete_card(fails, data, tiny_model, tmp_path, monkeypatch):
    """If the disk is full when the card is written, the run can be resumed, because it has no final model yet."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("training.utils.final_model.add_to_card", full)
    command = (NLI, tiny_model, "--train_data", data, *FLAGS, "--max_steps", "2", "--output_dir", tmp_path / "run")
    fails(1, "free some disk space and resume with", *command)
    assert not (tmp_path / "run/final").exists()
