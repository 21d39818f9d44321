"""Writes all files in an evaluation's output directory, and checks whether they already exist."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from common.config import ROOT
from common.data_files import file_hash
from common.errors import RunError
from common.models import ModelIdentity
from common.records import RunRecord, command_line, quarantine, read_json_file, versions, write_atomically
from evaluation.utils.analysis.cost import SearchTimes
from evaluation.utils.analysis.decision import Decision
from evaluation.utils.analysis.model_analysis import ModelAnalysis
from evaluation.utils.phases import Phases
from evaluation.utils.report.formatting import join
from evaluation.utils.report.material import Material
from evaluation.utils.report.moved_pairs import write_moved_pairs
from evaluation.utils.report.render import write_report
from evaluation.utils.report.sections import SECTIONS, build_sections
from evaluation.utils.report.summary import KEY, read_summary, update_summary
from evaluation.utils.report.table import unscored_lines, write_plot, write_table

IRRELEVANT = ("overwrite", "output_dir", "update_model_card", "batch_size")  # keys that do not affect results


def run_fingerprint(config: dict[str, Any], identities: list[ModelIdentity], *files: str) -> str:
    """Return a hash of everything that the results depend on: settings, models, the user's files, libraries, and this code."""
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


def is_done(output_dir: Path, fingerprint: str) -> bool:
    """Return whether the output directory has the complete, unchanged results of this run. Corrupt files are set aside."""
    if not output_dir.is_dir():
        return False
    with FileLock(output_dir / ".outputs.lock"):
        record = read_json_file(output_dir / "run.json")
        hashes = record.get("outputs")
        if record.get("status") != "finished" or record.get("fingerprint") != fingerprint:
            return False
        if not isinstance(hashes, dict):
            return False
        try:
            read_summary(output_dir / "summary.csv")
        except (OSError, RunError):
            return False  # update_summary sets it aside
        complete = True
        for name, digest in hashes.items():
            path = output_dir / Path(name).name
            if path.exists() and file_hash(str(path)) != digest:
                quarantine(path, "its content has changed since it was written")
            complete = complete and path.exists()
        return complete


def write_outputs(
    output_dir: Path,
    analyses: list[ModelAnalysis],
    decision: Decision,
    search: SearchTimes,
    calibration: str | None,
    record: RunRecord,
    phases: Phases,
    warning: str = "",
    **facts: Any,
) -> str:
    """Update ``summary.csv``; write the table, the plot, the report and the tables behind it; and finish the record.

    Several processes may do this in one output directory: each writes all its files before the next one starts.

    Args:
        analyses: The analysis of each model; the other models are compared with the first.
        decision: The decision on what to deploy.
        search: Search times.
        calibration: The data on which PCA and the quantisation ranges were fitted.
        record: The record of the run; this function finishes it.
        phases: The time that the run has taken so far, by phase; the time for the report is added.
        warning: A sentence for the table and the report.
        **facts: Further values for the record.

    Returns:
        The Markdown table of this run's scores.

    Raises:
        RunError: Nothing has a score.
    """
    with FileLock(output_dir / ".outputs.lock"):
        with phases.measure("report"):
            text = _write_outputs(output_dir, analyses, decision, search, calibration, record, warning)
        hashes = {name: file_hash(str(output_dir / name)) for name in FILES if (output_dir / name).exists()}
        record.finish(outputs=hashes, seconds=phases.seconds, **facts)
    return text


def _write_outputs(
    output_dir: Path,
    analyses: list[ModelAnalysis],
    decision: Decision,
    search: SearchTimes,
    calibration: str | None,
    record: RunRecord,
    warning: str,
) -> str:
    rows = sorted((row for analysis in analyses for row in analysis.rows), key=lambda row: row.score is None)
    if not rows or rows[0].score is None:
        why = f": {rows[0].task} {rows[0].subset}: {rows[0].note}" if rows else ""
        raise RunError(f"no score to report{why}")
    summary = update_summary(output_dir / "summary.csv", rows)
    keys = pd.DataFrame([row.as_columns() for row in rows])[KEY].drop_duplicates()
    table = keys.merge(summary, on=KEY, how="left")  # in the order of this run, with values from earlier runs
    text = write_table(output_dir / "table.md", table, warning)
    scored = table[table["score"].notna()]
    write_plot(output_dir / "plot.png", scored)
    for name, rows_of in TABLES.items():
        content = [
            {"model": a.identity.name, "revision": a.identity.revision} | row for a in analyses for row in rows_of(a)
        ]
        if content:
            write_atomically(output_dir / name, pd.DataFrame(content).to_csv(index=False))
        else:  # otherwise an earlier run's file would remain next to this report
            (output_dir / name).unlink(missing_ok=True)

    material = Material(
        models=[analysis for analysis in analyses if analysis.scored_rows],
        table=scored,
        decision=decision,
        search=search,
        hardware=_hardware(record.values["hardware"]),
        unscored=unscored_lines(table),
        calibration=calibration,
        provenance=_provenance(analyses, scored, calibration),
        warning=warning,
    )
    identities = dict.fromkeys((a.identity.name, a.identity.revision) for a in analyses)
    title = f"Evaluation of {join(analysis.identity.name for analysis in analyses)}"
    subtitle = (
        f"{len(identities)} model{'s' * (len(identities) > 1)}, {(sets := len(scored.groupby(['task', 'subset'])))} test set{'s' * (sets > 1)}. "
        "All scores are multiplied by 100."
    )
    write_report(output_dir, title, subtitle, build_sections(material), SECTIONS)
    write_moved_pairs(output_dir, material)
    return text


def _provenance(analyses: list[ModelAnalysis], table: pd.DataFrame, calibration: str | None) -> dict[str, str]:
    """Describe for the report how the run was made."""
    revisions = dict(zip(table["task"], table["dataset_revision"], strict=True))
    return {
        "Command": command_line(),
        "Models": "; ".join(_model_version(a.identity) for a in analyses),
        "Data sets": "; ".join(f"{task} at {str(revision)[:12]}" for task, revision in revisions.items()),
        "PCA and int8 ranges fitted on": calibration
        or "nothing (so there are no PCA, random projections, quantised vectors or shortlists)",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


def _model_version(identity: ModelIdentity) -> str:
    if identity.source == identity.name:
        return f"{identity.name} at revision {identity.revision}"
    return f"{identity.name} (the folder {identity.source}) with content hash {identity.revision}"


def _hardware(facts: dict[str, Any]) -> str:
    return ", ".join([facts["cpu"], f"{facts['cores']} cores", *facts.get("accelerators", [])])


def _precision_rows(analysis: ModelAnalysis) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for (task, subset), estimates in analysis.estimates.items():
        for (dim, precision), estimate in estimates.items():
            low, high = (round(x, 6) for x in estimate.interval())
            rows.append(
                {
                    "task": task,
                    "subset": subset,
                    "dim": dim,
                    "precision": precision,
                    "score": estimate.value,
                    "ci_low": low,
                    "ci_high": high,
                }
            )
    return rows


def _shortlist_rows(analysis: ModelAnalysis) -> list[dict[str, Any]]:
    return [{"corpus": name} | row for name, rows in analysis.shortlists.items() for row in rows]


def _baseline_rows(analysis: ModelAnalysis) -> list[dict[str, Any]]:
    return analysis.baselines


def _error_rows(analysis: ModelAnalysis) -> list[dict[str, Any]]:
    return analysis.errors


# The tables behind the report: each file, and the function that returns a model's rows in it
TABLES: dict[str, Callable[[ModelAnalysis], list[dict[str, Any]]]] = {
    "baselines.csv": _baseline_rows,
    "precision.csv": _precision_rows,
    "shortlist.csv": _shortlist_rows,
    "errors.csv": _error_rows,
}
FILES = ("table.md", "plot.png", "report.html", "report.md", "errors.html", *TABLES)
