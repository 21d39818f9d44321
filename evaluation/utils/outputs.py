"""Everything that an evaluation leaves in its output folder, and whether it is there already."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from common.config import ROOT
from common.data_files import file_hash
from common.errors import RunError
from common.models import ModelIdentity
from common.records import RunRecord, command_line, quarantine, read_json_file, versions, write_atomically
from evaluation.utils.analysis import ModelAnalysis
from evaluation.utils.report import Section, write_moved_pairs, write_report
from evaluation.utils.report_sections import build_sections, moved_sections
from evaluation.utils.summary import (
    KEY,
    LEGEND,
    NOTE,
    markdown_table,
    metric_name,
    plain,
    plot,
    read_summary,
    unscored_lines,
    update_summary,
)

TABLES = ("baselines.csv", "precision.csv", "shortlist.csv", "errors.csv")  # the numbers behind the report
FILES = ("table.md", "plot.png", "report.html", "report.md", "errors.html", *TABLES)
IRRELEVANT = ("overwrite", "output_dir", "update_model_card", "batch_size")  # keys that change no number


def fingerprint(config: dict[str, Any], identities: list[ModelIdentity], *files: str) -> str:
    """A hash of all that the results depend on: settings, models, files of the user's, libraries, and this code."""
    code = hashlib.sha1()
    for path in sorted([*(ROOT / "evaluation").rglob("*.*"), *(ROOT / "common").rglob("*.py")]):
        if path.suffix in (".py", ".j2", ".csv"):
            code.update(path.read_bytes())
    facts = {
        "config": {key: value for key, value in config.items() if key not in IRRELEVANT},
        "models": [[identity.name, identity.revision] for identity in identities],
        "files": list(files),
        "versions": versions(),
        "code": code.hexdigest(),
    }
    return hashlib.sha1(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def is_done(output_dir: Path, mark: str) -> bool:
    """Whether the folder holds the results of this very run, finished and as they were written; damaged ones are set aside."""
    if not output_dir.is_dir():
        return False
    with FileLock(output_dir / ".outputs.lock"):
        return _is_done(output_dir, mark)


def _is_done(output_dir: Path, mark: str) -> bool:
    record = read_json_file(output_dir / "run.json")
    written = record.get("outputs")
    if record.get("status") != "finished" or record.get("fingerprint") != mark or not isinstance(written, dict):
        return False
    try:
        read_summary(output_dir / "summary.csv")
    except (OSError, RunError):
        return False  # update_summary sets it aside
    whole = True
    for name, digest in written.items():
        path = output_dir / Path(name).name
        if path.exists() and file_hash(str(path)) != digest:
            quarantine(path, "its content has changed since it was written")
        whole = whole and path.exists()
    return whole


def write_outputs(
    output_dir: Path,
    models: list[ModelAnalysis],
    title: str,
    calibration: str | None,
    record: RunRecord,
    note: str = "",
    **facts: Any,
) -> str:
    """Update ``summary.csv``, write the table, the plot, the report and the tables behind it, and finish the record.

    Of several processes that do so in one folder, each writes all of them before the next begins.

    Args:
        note: A sentence for the table and the report.
        **facts: What else belongs into the record.

    Returns:
        The Markdown table of this run's scores.

    Raises:
        RunError: Nothing has a score.
    """
    with FileLock(output_dir / ".outputs.lock"):
        text = _write_outputs(output_dir, models, title, calibration, note)
        record.finish(
            outputs={name: file_hash(str(output_dir / name)) for name in FILES if (output_dir / name).exists()},
            **facts,
        )
    return text


def _write_outputs(
    output_dir: Path, models: list[ModelAnalysis], title: str, calibration: str | None, note: str
) -> str:
    unscored = [row for model in models for row in model.unscored]
    rows = [row for model in models for row in model.rows] + unscored
    if len(unscored) == len(rows):
        why = f": {unscored[0]['task']} {unscored[0]['subset']}: {unscored[0][NOTE]}" if unscored else ""
        raise RunError(f"there is no score to report{why}")
    summary = update_summary(output_dir / "summary.csv", rows)
    wanted = pd.DataFrame(rows)[KEY].drop_duplicates()
    table = wanted.merge(summary, on=KEY, how="left")  # in the order of this run, with what earlier runs knew
    text = markdown_table(table) + "".join(f"\n{plain(line)}\n" for line in unscored_lines(table))
    missing, table = table, table[table["score"].notna()]
    heading = f"# {metric_name(table)} × 100, by embedding dimension\n\n" + (f"{plain(note)}\n\n" if note else "")
    write_atomically(output_dir / "table.md", f"{heading}{text}\n{LEGEND}\n")
    plot(table, output_dir / "plot.png")
    for name, found in _tables(models).items():
        if found:
            write_atomically(output_dir / name, pd.DataFrame(found).to_csv(index=False))
        else:  # or one of an earlier run would stand beside this report
            (output_dir / name).unlink(missing_ok=True)

    made_with = {
        "Command": command_line(),
        "Models": "; ".join(f"{m.identity.name} at revision {m.identity.revision}" for m in models),
        "Data sets": "; ".join(
            f"{task} at {str(revision)[:12]}"
            for task, revision in dict(zip(table["task"], table["dataset_revision"], strict=True)).items()
        ),
        "Fitted on": calibration or "nothing: baselines, precisions and shortlists are left out",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    count = len({(m.identity.name, m.identity.revision) for m in models})
    subtitle = (
        f"{count} model{'s' * (count > 1)}, {len(table.groupby(['task', 'subset']))} test sets. Scores are × 100."
    )
    sections = build_sections([m for m in models if m.rows], table, calibration, made_with, note)
    if unscored:
        sections.insert(1, Section("unscored", "Without a score", paragraphs=unscored_lines(missing)))
    write_report(output_dir, title, subtitle, sections)
    write_moved_pairs(output_dir, moved_sections(models, table))
    return text


def _tables(models: list[ModelAnalysis]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each of ``TABLES``."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    for model in models:
        who = {"model": model.identity.name, "revision": model.identity.revision}
        found["baselines.csv"] += [who | row for row in model.baselines]
        found["shortlist.csv"] += [
            who | {"corpus": name} | row for name, rows in model.shortlists.items() for row in rows
        ]
        found["errors.csv"] += [who | row for row in model.errors]
        for (task, subset), estimates in model.estimates.items():
            for (dim, precision), estimate in estimates.items():
                low, high = (round(x, 6) for x in estimate.interval())
                found["precision.csv"].append(
                    who | {"task": task, "subset": subset, "dim": dim, "precision": precision, "score": estimate.value,
                           "ci_low": low, "ci_high": high}
                )  # fmt: skip
    return found
