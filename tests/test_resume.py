"""A killed training run resumes to the weights of an uninterrupted one; incomplete checkpoints are not trusted."""

from __future__ import annotations

import functools
import json
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import RunError
from common.records import RunRecord, read_record
from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
from tests.helpers import HYBRID, NLI, ROOT, classes, finished, last_state, record_of, triplets, weights_of, write
from training.utils.checkpoints import MANIFEST, checkpoints, find_checkpoint, seal, why_unusable
from training.utils.run_folder import check_unchanged

RESUME = ("--resume_from_checkpoint", "latest")
# logs between two checkpoints; several epochs, one of which ends at a checkpoint (step 6)
COMMON = ("--precision", "fp32", "--learning_rate", "1e-3", "--eval_steps", "2", "--logging_steps", "3", "--seed", "5")
ACCUMULATED = ("--gradient_accumulation_steps", "2", "--num_train_epochs", "3", "--per_device_train_batch_size", "8")


@pytest.fixture(scope="module")
def runs(groups, tiny_model, tmp_path_factory) -> dict[str, tuple]:
    """The command of each script, without --output_dir: triplets with accumulated gradients, and a mixture with a softmax loss."""
    folder = tmp_path_factory.mktemp("data")
    ranks = write(folder / "ranks.csv", triplets(groups[:48], "en"))
    kinds = write(folder / "kinds.csv", classes(groups[:20]))
    config = folder / "mixture.json"
    entries = {
        "ranks": {"path": str(ranks), "loss": "mnrl", "weight": 1},
        "kinds": {"path": str(kinds), "loss": "softmax", "weight": 2},
    }
    config.write_text(json.dumps({"datasets": entries}))
    mixed = ("--per_device_train_batch_size", "16", "--max_steps", "9", "--gradient_accumulation_steps", "2")
    return {
        NLI: (NLI, tiny_model, "--train_data", ranks, "--dev_data", "en", *COMMON, *ACCUMULATED),
        HYBRID: (HYBRID, tiny_model, "--config", config, "--dev_data", "en", *COMMON, *mixed),
    }


@pytest.fixture(scope="module")
def trained() -> dict[str, Path]:
    return {}


@pytest.fixture
def whole(runs, call, trained, tmp_path_factory):
    """``whole(script)``: the output directory of an uninterrupted run of the script."""

    def train(script: str) -> Path:
        if script not in trained:
            folder = tmp_path_factory.mktemp("whole") / "run"
            finished(call(*runs[script], "--output_dir", folder), folder)
            trained[script] = folder
        return trained[script]

    return train


@pytest.fixture(scope="module")
def kill(warm):
    """``kill(moment, command, folder)`` runs a command that dies at a moment (see killed.py). Returns how many changes it made if it survived."""

    def run(moment: str, command: tuple, folder: Path) -> int:
        done = warm("tests/killed.py", moment, ROOT / command[0], *command[1:], "--output_dir", folder)
        assert done.code in (-signal.SIGKILL, 0), done.err
        return int(done.out.splitlines()[-1]) if moment == "#0" else 0

    return run


def assert_same_run(folder: Path, expected: Path) -> None:
    """To the last bit: the final model, the last checkpoint with its heads, the scores, and every loss that was logged."""
    assert sorted(path.name for path in checkpoints(folder)) == sorted(path.name for path in checkpoints(expected))
    last = checkpoints(expected)[-1].name
    for name in ("final", last):
        found, wanted = weights_of(folder / name), weights_of(expected / name)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), name
    if (expected / last / "loss.safetensors").exists():
        found, wanted = (load_file(path / last / "loss.safetensors") for path in (folder, expected))
        assert len(wanted) > 0 and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert record_of(folder)["scores"] == record_of(expected)["scores"]
    logs = [
        [
            {k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
            for entry in state["log_history"]
        ]
        for state in (last_state(folder), last_state(expected))
    ]
    assert logs[0] == logs[1]
    if record_of(folder)["status"] == "finished":
        assert not list(folder.glob(".*")), "leftovers"


def resume(call, command: tuple, folder: Path) -> str:
    """Do as a user would: repeat the command, and if it fails, repeat it with the flag that the message names; return the log."""
    done = call(*command, "--output_dir", folder)
    if done.code != 0:
        assert "contains an unfinished run" in done.err or "before its first complete checkpoint" in done.err, done.err
        flags = RESUME if "unfinished" in done.err else ("--overwrite_output_dir",)
        done = call(*command, "--output_dir", folder, *flags)
    finished(done, folder)
    return done.err


MOMENTS = {
    "while the third checkpoint is written": (NLI, "checkpoint-6/trainer_state.json"),
    "while an old checkpoint is removed": (HYBRID, "os.rmdir"),
}


@pytest.mark.parametrize("script, moment", MOMENTS.values(), ids=MOMENTS)
def test_a_killed_run_resumes_to_the_same_weights(call, kill, runs, whole, tmp_path, script, moment):
    folder = tmp_path / "run"
    kill(moment, runs[script], folder)
    assert not (folder / "final").exists()
    resume(call, runs[script], folder)
    assert_same_run(folder, whole(script))


@pytest.fixture(scope="module")
def lengths(runs, kill, tmp_path_factory):
    """``lengths(script)``: how many changes of its folder a run makes, and how many seconds it takes."""

    @functools.cache
    def measure(script: str) -> tuple[int, float]:
        begun = time.monotonic()
        changes = kill("#0", runs[script], tmp_path_factory.mktemp("lengths") / "run")
        return changes, time.monotonic() - begun

    return measure


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("script", [NLI, HYBRID])
def test_any_moment_will_do(call, kill, runs, whole, lengths, tmp_path, capsys, script, seed):
    """Killed at a change of the run's folder (nearly all are part of a checkpoint) or at a point in time."""
    changes, seconds = lengths(script)
    draw = random.Random(seed)
    moment = f"#{draw.randint(1, changes)}" if seed % 2 else f"{draw.uniform(0.4, 1) * seconds:.2f}"
    with capsys.disabled():
        print(f"\n{script}, seed {seed}: killed at {moment} of {changes} changes, {seconds:.2f} s")
    folder = tmp_path / "run"
    kill(moment, runs[script], folder)
    if not (folder / "final").exists():
        resume(call, runs[script], folder)
    assert_same_run(folder, whole(script))


@pytest.mark.slow
def test_where_the_final_model_is_there_its_scores_are_too(kill, runs, whole, lengths, tmp_path):
    """Killed just before the last change, which records that the run has finished."""
    folder = tmp_path / "run"
    kill(f"#{lengths(NLI)[0]}", runs[NLI], folder)
    assert record_of(folder)["status"] == "running"
    assert_same_run(folder, whole(NLI))


def test_a_run_that_died_after_its_last_step_finishes(call, runs, whole, tmp_path):
    """It ended in the middle of an epoch; no further step is trained."""
    folder = shutil.copytree(whole(HYBRID), tmp_path / "run")
    shutil.rmtree(folder / "final")
    (folder / ".final.partial").mkdir()
    resume(call, runs[HYBRID], folder)
    assert_same_run(folder, whole(HYBRID))
    assert record_of(folder)["resumed_at_step"] == 9


# Corrupt and incomplete checkpoints


def unfinished(folder: Path, copy: Path) -> Path:
    """What a run that died before its end leaves, with the checkpoints in `folder`."""
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "final")
    return copy


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated weights": (lambda c: truncate(c / "model.safetensors"), r"model.safetensors has \d+ bytes instead of"),
    "a flipped bit": (lambda c: flip(c / "optimizer.pt"), "optimizer.pt is corrupt"),
    "a missing file": (lambda c: (c / "rng_state.pth").unlink(), "rng_state.pth is missing"),
    "no manifest": (lambda c: (c / "manifest.json").unlink(), "it is not complete"),
    "an empty folder": (lambda c: (shutil.rmtree(c), c.mkdir()), "it is not complete"),
    "a broken manifest": (lambda c: truncate(c / "manifest.json"), "manifest.json cannot be read"),
    "an odd manifest": (lambda c: (c / "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
    "an empty manifest": (lambda c: (c / "manifest.json").write_text("{}"), "lacks trainer_state.json"),
}


@pytest.mark.parametrize("harm, said", DAMAGE.values(), ids=DAMAGE)
def test_a_corrupt_checkpoint_is_passed_over(whole, tmp_path, caplog, harm, said):
    folder = unfinished(whole(HYBRID), tmp_path / "run")
    older, newest = checkpoints(folder)
    assert find_checkpoint(folder, "latest") == newest
    harm(newest)
    assert find_checkpoint(folder, "latest") == older
    assert re.search(f"skipping {newest}: .*{said}", caplog.text)
    with pytest.raises(RunError, match=f"not a checkpoint|{said}"):
        find_checkpoint(folder, str(newest))
    harm(older)
    with pytest.raises(RunError, match="no intact checkpoint to resume from: start again"):
        find_checkpoint(folder, "latest")


def test_a_run_whose_newest_checkpoint_is_corrupt_resumes_to_the_same_weights(call, runs, whole, tmp_path):
    folder = unfinished(whole(HYBRID), tmp_path / "run")
    flip(checkpoints(folder)[-1] / "trainer_state.json")
    log = resume(call, runs[HYBRID], folder)
    assert "checkpoint-9: trainer_state.json is corrupt" in log
    assert_same_run(folder, whole(HYBRID))


def test_the_best_checkpoint_may_be_lost(call, runs, whole, tmp_path):
    """Then the best is chosen from the steps that follow."""
    folder = unfinished(whole(NLI), tmp_path / "run")
    best, last = checkpoints(folder)
    state = last_state(folder) | {  # whichever it was
        "best_global_step": int(best.name.split("-")[1]),
        "best_model_checkpoint": str(best),
        "best_metric": 2.0,
    }
    (last / "trainer_state.json").write_text(json.dumps(state))
    (last / MANIFEST).unlink()
    seal(last)
    truncate(best / "model.safetensors")
    log = resume(call, runs[NLI], folder)
    assert f"removing {best}: model.safetensors has" in log
    assert f"the best checkpoint so far, {best}, is no longer intact" in log
    final, kept = weights_of(folder / "final"), weights_of(last)
    assert all(torch.equal(final[key], kept[key]) for key in kept)


def test_a_run_that_was_moved_finds_its_best_checkpoint(call, runs, whole, tmp_path):
    folder = unfinished(whole(NLI), tmp_path / "elsewhere/run")
    resume(call, runs[NLI], folder)
    assert_same_run(folder, whole(NLI))


def test_a_run_without_a_complete_checkpoint_says_what_to_do(fails, runs, whole, tmp_path):
    folder = unfinished(whole(NLI), tmp_path / "run")
    for path in checkpoints(folder):
        (path / MANIFEST).unlink()
    at = (*runs[NLI], "--output_dir", folder)
    fails(1, "before its first complete checkpoint: start it again with --overwrite_output_dir", *at)
    fails(1, "no intact checkpoint to resume from: start again, with --overwrite_output_dir", *at, *RESUME)


def test_a_run_that_died_before_its_first_checkpoint_is_simply_started(call, runs, whole, tmp_path):
    folder = tmp_path / "run"
    (folder / ".untrained.partial").mkdir(parents=True)
    (folder / ".run.json.x1y2").write_text("{")
    (folder / "run.json").write_text(json.dumps(record_of(whole(NLI)) | {"status": "running"}))
    finished(call(*runs[NLI], "--output_dir", folder), folder)
    assert_same_run(folder, whole(NLI))


def test_a_checkpoint_that_cannot_be_read_is_corrupt(tmp_path):
    """A folder in place of a file, a file in place of the folder."""
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.write_text("")
    assert "not complete" in why_unusable(checkpoint)
    checkpoint.unlink()
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    seal(checkpoint)
    assert why_unusable(checkpoint) is None
    (checkpoint / "trainer_state.json").unlink()
    (checkpoint / "trainer_state.json").mkdir()
    assert "trainer_state.json is missing" in why_unusable(checkpoint)


# The same settings


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--seed", "6"), "seed was 5 and is now 6"),
        (("--learning_rate", "0.5", "--seed", "6"), "learning_rate was 0.001 and is now 0.5; seed was 5 and is now 6"),
        (("--per_device_train_batch_size", "4"), "per_device_train_batch_size was 8 and is now 4"),
        (("--matryoshka_dims", "64", "8"), "matryoshka_dims was [768, 512, 256, 128, 64] and is now [64, 8]"),
        (("--train_data", "data/sample/nli_groups.jsonl"), "train_data was"),
        (("--dev_data", "none"), 'dev_data was ["en"] and is now ["none"]'),
    ],
)
def test_a_run_resumes_with_its_original_settings(fails, runs, whole, tmp_path, flags, said):
    folder = unfinished(whole(NLI), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    message = fails(1, said, *runs[NLI], *flags, "--output_dir", folder, *RESUME)
    assert f"cannot resume, because settings differ from those in {folder}/run.json" in message
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_resumes_with_its_original_data(fails, whole, runs, groups, tmp_path):
    """The record has another revision of the same file."""
    folder = unfinished(whole(NLI), tmp_path / "run")
    record = record_of(folder)
    name = next(iter(record["datasets"]))
    record["datasets"][name]["revision"] = "0" * 40
    (folder / "run.json").write_text(json.dumps(record))
    fails(1, f'datasets.{name}.revision was "{"0" * 40}" and is now', *runs[NLI], "--output_dir", folder, *RESUME)


def test_a_secret_in_a_setting_is_the_same_secret(monkeypatch, tmp_path):
    """The record masks the secret, and unchanged settings still match it."""
    monkeypatch.setenv("SOME_TOKEN", "hunter2hunter2")
    settings = {"datasets": {"x": {"path": "/home/hunter2hunter2/x.csv"}}}
    RunRecord(tmp_path / "run.json", settings).write()
    before = read_record(tmp_path / "run.json")["config"]
    check_unchanged(tmp_path, before, settings)
    with pytest.raises(RunError, match=r'datasets.x.path was "/home/\*\*\*/x.csv" and is now "/home/\*\*\*/y.csv"'):
        check_unchanged(tmp_path, before, {"datasets": {"x": {"path": "/home/hunter2hunter2/y.csv"}}})


def test_what_does_not_matter_may_change(call, runs, whole, tmp_path):
    folder = unfinished(whole(NLI), tmp_path / "run")
    more = ("--save_total_limit", "5", "--logging_steps", "1", "--output_dir", folder, *RESUME)
    finished(call(*runs[NLI], *more), folder)
    found, wanted = weights_of(folder / "final"), weights_of(whole(NLI) / "final")
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


# Signals


@pytest.fixture
def start(warm_python):
    def start(script: str, *args: str | Path) -> subprocess.Popen:
        words = [*warm_python, ROOT / script, *args]
        return subprocess.Popen([*map(str, words)], stderr=subprocess.PIPE, text=True, cwd=ROOT)

    return start


def interrupt(process: subprocess.Popen, number: int, said: str) -> tuple[int, str]:
    """Send a signal once ``said`` is in the log; returns the exit code and the rest of the log."""
    before = []
    for line in process.stderr:
        before.append(line)
        if said in line:
            break
    else:
        pytest.fail(f"{said!r} was never said: {''.join(before)[:3000]}")
    process.send_signal(number)
    rest = process.stderr.read()
    return process.wait(timeout=120), rest


@pytest.mark.parametrize(
    "script, number, code", [(NLI, signal.SIGINT, 130), (HYBRID, signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_saves_a_checkpoint_and_says_how_to_resume(start, call, runs, tmp_path, script, number, code):
    steps = 24
    flags = ("--max_steps", str(steps), "--eval_steps", str(steps), "--dev_data", "none", "--logging_steps", "1")
    command = (*runs[script], *flags, "--output_dir")
    found, log = interrupt(start(*command, tmp_path / "a run"), number, "step 2 of")
    assert found == code
    last = log.rstrip().splitlines()[-1]
    name, step = re.match(rf"(SIG\w+): stopped after step (\d+) of {steps}; resume with: python ", last).groups()
    assert name == number.name and 2 <= int(step) < steps
    (saved,) = checkpoints(tmp_path / "a run")
    assert saved.name == f"checkpoint-{step}" and why_unusable(saved) is None
    assert "Traceback" not in log

    python, path, *args = shlex.split(last.partition("resume with: ")[2])
    finished(call(str(Path(path).relative_to(ROOT)), *args), tmp_path / "a run")
    finished(call(*command, tmp_path / "whole"), tmp_path / "whole")
    found, wanted = (weights_of(tmp_path / run / "final") for run in ("a run", "whole"))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_signal_behind_the_last_step_ends_the_run_too(call, runs, whole, tmp_path, monkeypatch):
    """It arrives while the last dev scores are computed."""
    score = MatryoshkaEvaluator.__call__

    def interrupted(self, model, *args, **kwargs):
        if kwargs["steps"] == last_state(whole(NLI))["max_steps"]:
            signal.raise_signal(signal.SIGTERM)
        return score(self, model, *args, **kwargs)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    expected, folder = whole(NLI), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(MatryoshkaEvaluator, "__call__", interrupted)
        done = call(*runs[NLI], "--output_dir", folder)
    for number, handler in before.items():
        signal.signal(number, handler)
    steps = last_state(expected)["max_steps"]
    assert done.code == 143 and f"stopped after step {steps} of {steps}; resume with" in done.err, done.err
    assert not (folder / "final").exists()
    finished(call(*runs[NLI], "--output_dir", folder, *RESUME), folder)
    assert_same_run(folder, expected)


@pytest.mark.slow
def test_a_signal_before_training_has_begun(start, runs, tmp_path):
    process = start(*runs[NLI], "--output_dir", tmp_path / "run")
    code, log = interrupt(process, signal.SIGTERM, "training on cpu")
    assert code == 143 and log.splitlines()[-1] == "terminated" and "Traceback" not in log
    assert not (tmp_path / "run/final").exists() and not checkpoints(tmp_path / "run")


def test_a_second_signal_ends_the_run_at_once(tmp_path):
    """The clean-up after the first signal is under way and does not end."""
    program = """
import sys, time
from common.errors import run
def main():
    try:
        print("begun", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        print("cleaning up", file=sys.stderr, flush=True)
        time.sleep(60)
run(main)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "cleaning up\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.read() == "" and process.wait(timeout=5) == -signal.SIGTERM


def test_a_signal_ends_an_evaluation_with_one_line(start, tiny_model, tmp_path):
    pairs = ROOT / "data/sample/sts_pairs.jsonl"
    process = start(
        "evaluation/evaluate_sts.py", "--model_name", tiny_model, "--data", pairs, "--output_dir", tmp_path / "r"
    )
    code, log = interrupt(process, signal.SIGTERM, "encoding")
    assert code == 143 and log.rstrip().splitlines()[-1] == "terminated" and "Traceback" not in log
    left = [path for path in (tmp_path / "r").rglob("*") if path.is_file() and "embeddings" not in path.parts]
    assert left == []


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_go_on(runs, tmp_path):
    """In the third epoch; SIGTERM goes to torchrun, which passes it on."""
    command = [*runs[HYBRID], "--gradient_accumulation_steps", "1", "--max_steps", "80", "--dev_data", "none"]
    command += ["--per_device_train_batch_size", "8"]
    command = [*map(str, command), "--eval_steps", "200", "--logging_steps", "1", "--output_dir"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def launch(folder: str, *more: str) -> subprocess.Popen:
        words = [*torchrun, *command, str(tmp_path / folder), *more]
        return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)

    _, log = interrupt(launch("broken"), signal.SIGTERM, "step 30 of")
    assert "resume with: torchrun --nproc_per_node 2 training/hybrid_training.py" in log
    (saved,) = checkpoints(tmp_path / "broken")
    assert why_unusable(saved) is None and 30 <= int(saved.name.split("-")[1]) < 80
    assert {path.name for path in saved.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    for process in (launch("broken", *RESUME), launch("whole")):
        log = process.communicate(timeout=300)[1]
        assert process.returncode == 0, log[-3000:]
    found, wanted = (weights_of(tmp_path / run / "final") for run in ("broken", "whole"))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
