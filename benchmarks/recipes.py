"""Measures recipes and their parts: trains models over several seeds and scores them on STS17 at every dimension.

    python benchmarks/recipes.py                              # every row of benchmarks/recipes.json
    python benchmarks/recipes.py --rows crosslingual          # these rows only; the others' models are kept
    python benchmarks/recipes.py --rows multilingual --seeds 1 2

A row is a model to train, with its script, configuration and seeds, or a model that is only scored. A row "of" another row is that
row with changes. Existing models are not trained again. All choices were based on dev sets; STS17 is only reported. Numbers are means
over the seeds. A row is compared with the one that it names in "against", on the same pairs. Results go to --output_dir: recipes.md
(overview), headline.md (the README's table), dimensions.md (every dimension, with intervals), dev.md (dev scores and training time),
agreement.md (dev, reserved and STS17 scores by seed), recipes.png, headline.png, kept.png, agreement.png, and recipes.json (all
numbers, and how each run was made).
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import subprocess
from typing import TYPE_CHECKING

from benchmarks.recipe_plots import (
    PUBLISHED,
    RESERVED,
    agreement,
    agreement_plot,
    agreement_text,
    dimensions_plot,
    headline_plot,
    kept_plot,
)
from benchmarks.skeleton import make_parser, markdown_table, start_record
from common.errors import run

if TYPE_CHECKING:
    from evaluation.utils.scoring.statistics import Estimate

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path(__file__).with_suffix(".json")
TASK, SUBSETS = "STS17", ("ar-ar", "en-ar", "en-en")
DIMS = (384, 256, 128, 64)
LOWEST = 0.1  # below this score in a subset, the share that a model keeps is not shown
DEV_SETS = {  # the dev sets in the tables, by their names in the runs' records
    "sts-en": "STS-B dev, en-en",
    "sts-ar": "Arabic-stsb dev, ar-ar",
    "translations-en-ar": "Tatoeba dev, en-ar",
    "en-ar": "STS-B dev, en-ar",
    "ar-ar": "STS-B dev, ar-ar",
}
Scores = dict[str, dict[str, list["Estimate"]]]  # by row and subset, one estimate for each dimension


def resolve(row: dict, rows: dict) -> dict:
    """Return a row's script and complete configuration.

    The configuration is that of the "of" row or of the file, updated with the row's own keys; data sets in "without" are removed.
    """
    if "of" in row:
        other = resolve(rows[row["of"]], rows)
    else:
        file = json.loads((ROOT / row["file"]).read_text(encoding="utf-8")) if "file" in row else {}
        other = {"script": row["script"], "config": file}
    config = other["config"] | row.get("config", {})
    if "datasets" in config:
        datasets = other["config"].get("datasets", {}) | config["datasets"]
        config["datasets"] = {name: entry for name, entry in datasets.items() if name not in row.get("without", ())}
    return {"script": other["script"], "config": config}


def train(name: str, rows: dict, seed: int, models: Path) -> Path:
    """Return the folder of a row's final model for a seed; train the model if it does not exist."""
    folder, file = models / f"{name}-{seed}", models / f"{name}.json"
    resolved = resolve(rows[name], rows)
    config = json.dumps(resolved["config"], indent=2)
    if folder.is_dir() and file.read_text(encoding="utf-8") != config:
        raise SystemExit(f"{folder} was trained with other settings; remove it, or choose another folder with --models")
    if not (folder / "final").is_dir():
        models.mkdir(parents=True, exist_ok=True)
        file.write_text(config, encoding="utf-8")
        command = [resolved["script"], "--config", str(file), "--seed", str(seed), "--output_dir", str(folder)]
        if any(folder.glob("checkpoint-*")):
            command += ["--resume_from_checkpoint", "latest"]
        print(" ".join(["python", *command]), file=sys.stderr)
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder / "final"


def main(argv: list[str] | None = None) -> None:
    parser = make_parser(__file__, __doc__)
    parser.add_argument("--rows", nargs="+", help="train and score these rows only (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="train with these seeds (default: each row's own seeds)")
    parser.add_argument(
        "--models", type=Path, default=Path("output/recipes"), help="folder of the models (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    every = json.loads(ROWS.read_text(encoding="utf-8"))
    if unknown := set(options.rows or ()) - every.keys():
        parser.error(f"no row {sorted(unknown)[0]!r}; choose from {', '.join(every)}")
    if options.seeds:
        every = {name: row if "model" in row else row | {"seeds": options.seeds} for name, row in every.items()}
    rows = {name: row for name, row in every.items() if options.rows is None or name in options.rows}

    from common.records import write_atomically

    record = start_record(__file__, options, rows=rows)
    pairs, reserved = load_pairs(), load_reserved()
    per_seed: dict[str, list[dict]] = {}
    scores: Scores = {}
    runs: dict[str, list[dict]] = {}
    for name, row in rows.items():
        seeds = row.get("seeds", [0])
        sources = [row.get("model") or str(train(name, every, seed, options.models)) for seed in seeds]
        scores[name], per_seed[name] = score(sources, row.get("pca", False), pairs, reserved)
        if "model" not in row:
            runs[name] = [summary_of_run(options.models / f"{name}-{seed}") for seed in seeds]
        record.write(scores=as_json(scores), per_seed=per_seed, runs=runs)

    text = glance(rows, scores)
    write_atomically(options.output_dir / "recipes.md", text)
    write_atomically(options.output_dir / "headline.md", headline(rows, scores))
    write_atomically(options.output_dir / "dimensions.md", every_dimension(rows, scores))
    write_atomically(options.output_dir / "dev.md", dev_table(every, runs))
    points = agreement(per_seed, runs)
    write_atomically(options.output_dir / "agreement.md", agreement_text(points, every))
    dimensions_plot(options.output_dir / "recipes.png", rows, as_json(scores), SUBSETS, DIMS)
    headline_plot(options.output_dir / "headline.png", rows, as_json(scores), SUBSETS, DIMS)
    kept_plot(options.output_dir / "kept.png", rows, as_json(scores), DIMS)
    if points:
        agreement_plot(options.output_dir / "agreement.png", points, every)
    record.finish()
    print(text)


def load_pairs() -> dict[str, tuple[list[str], list[str], list[float]]]:
    """Load the task's sentences and gold scores, by subset."""
    import mteb

    task = mteb.get_task(TASK, eval_splits=["test"], hf_subsets=list(SUBSETS))
    task.load_data()
    return {
        subset: tuple(list(task.dataset[subset]["test"][column]) for column in ("sentence1", "sentence2", "score"))
        for subset in SUBSETS
    }


def load_reserved() -> dict[str, tuple[list[str], list[str], list[float]]]:
    """Load the reserved pairs, on which no choices were based, if the Hub has them."""
    from common.data_files import load_hub_dataset
    from common.errors import RunError

    pairs = {}
    for name, where in RESERVED.items():
        try:
            rows = load_hub_dataset(*where)
        except RunError as error:
            print(f"{name} is not reported: {error}", file=sys.stderr)
            continue
        pairs[name] = tuple(list(rows[column]) for column in ("sentence1", "sentence2", "score"))
    return pairs


def score(
    sources: list[str], pca: bool, pairs: dict, reserved: dict
) -> tuple[dict[str, list[Estimate]], list[dict[str, dict[str, float]]]]:
    """Score the models of several seeds.

    Returns:
        For each subset and for their "mean", an estimate at each dimension of the mean over the models; and the scores of each
        model by subset (including the reserved sets) and dimension.
    """
    import numpy as np

    from common.models import load_model
    from common.packing import pack
    from evaluation.utils.scoring.similarity import pairwise_similarities
    from evaluation.utils.scoring.statistics import bootstrap, mean_estimate, paired_mean, spearman

    per_seed: dict[str, list[list[Estimate]]] = {subset: [] for subset in pairs}
    singles: list[dict[str, dict[str, float]]] = []
    for source in sources:
        model = pack(load_model(source))
        project = principal_axes(model) if pca else lambda embeddings: embeddings
        single: dict[str, dict[str, float]] = {}
        for subset, (first, second, gold) in (pairs | reserved).items():
            a, b = (project(model.encode(texts, show_progress_bar=False)) for texts in (first, second))
            cosines = [pairwise_similarities(a[:, :dim], b[:, :dim])["cosine"] for dim in DIMS]
            values = spearman(gold, cosines)(np.ones((len(gold), 1)))[:, 0]
            single[subset] = {str(dim): float(value) for dim, value in zip(DIMS, values, strict=True)}
            if subset in pairs:
                per_seed[subset].append(bootstrap(spearman(gold, cosines), len(gold), sample=subset))
        single["mean"] = {str(dim): float(np.mean([single[s][str(dim)] for s in pairs])) for dim in DIMS}
        singles.append(single)
    estimates = {subset: [paired_mean(seeds) for seeds in zip(*runs, strict=True)] for subset, runs in per_seed.items()}
    estimates["mean"] = [mean_estimate(subsets) for subsets in zip(*estimates.values(), strict=True)]
    return estimates, singles


def principal_axes(model):
    """Return a function that rotates embeddings to the principal axes of the English dev sentences, largest first."""
    import numpy as np

    from training.utils.data_loading import load_dev_sets

    dev, _ = load_dev_sets(["en"], "en")
    texts = list(dict.fromkeys(text for rows in dev.values() for text in [*rows["sentence1"], *rows["sentence2"]]))
    embeddings = model.encode(texts, show_progress_bar=False)
    mean = embeddings.mean(axis=0)
    _, _, axes = np.linalg.svd(embeddings - mean, full_matrices=False)
    return lambda embeddings: (embeddings - mean) @ axes.T


def summary_of_run(folder: Path) -> dict:
    """Return the parts of a run's record that the tables need."""
    values = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    kept = (
        "command",
        "seed",
        "steps",
        "best_step",
        "wall_time_s",
        "scores",
        "hardware",
        "versions",
        "git",
        "datasets",
        "leaks",
    )
    return {key: values.get(key) for key in kept}


def as_json(scores: Scores) -> dict:
    return {
        name: {
            subset: {
                str(dim): {"value": estimate.value, "interval": estimate.interval()}
                for dim, estimate in zip(DIMS, estimates, strict=True)
            }
            for subset, estimates in subsets.items()
        }
        for name, subsets in scores.items()
    }


def sign(difference: Estimate) -> str:
    """Return an arrow if a difference is significant."""
    return ("" if difference.p_value() >= 0.05 else " ▲" if difference.value > 0 else " ▼") if difference.value else ""


def glance(rows: dict, scores: Scores) -> str:
    """Return a table of the models at full width and the smallest dimension, and a table of the effects of changes."""
    models, changes = [], []
    for name, row in rows.items():
        of_row = scores[name]
        against = scores.get(row.get("against"))
        if "of" not in row or row.get("plot"):  # a model, not a change of one
            cells = []
            for subset in (*SUBSETS, "mean"):
                for i in (0, -1):
                    mark = sign(of_row[subset][i] - against[subset][i]) if against else ""
                    cells.append(f"{100 * of_row[subset][i].value:.1f}{mark}")
            kept = share_kept(of_row)
            label = row["label"] + (f" (▲▼ {rows[row['against']]['label']})" if against else "")
            models.append([label, str(len(row.get("seeds", [0]))), *cells, kept])
        elif against:
            cells = []
            for subset in (*SUBSETS, "mean"):
                for i in (0, -1):
                    difference = of_row[subset][i] - against[subset][i]
                    cells.append(f"{100 * difference.value:+.1f}{sign(difference)}")
            changes.append([row["label"], *cells])
    columns = [f"{subset} {DIMS[i]}" for subset in (*SUBSETS, "mean") for i in (0, -1)]
    text = markdown_table(["model", "seeds", *columns, "kept"], models)
    text += (
        f"\n{TASK}, Spearman × 100, 250 pairs per subset, {over_seeds(rows)}. ▲ ▼: significantly above or below the model named in "
        f"brackets (paired bootstrap over the pairs, p < 0.05). Kept: the mean at {DIMS[-1]} dimensions, as a percentage of the mean at "
        f"{DIMS[0]}."
    )
    if any(row[-1] == "–" for row in models):
        text += f" –: a subset's score at {DIMS[0]} is at most {100 * LOWEST:g}."
    text += "\n"
    if changes:
        text += "\n" + markdown_table(["change to the recipe", *columns], changes)
        text += "\nPoints gained or lost by each change (one seed, compared with the recipe's mean over its seeds). ▲ ▼: significant.\n"
    return text


def share_kept(scores_of_model: dict[str, list[Estimate]]) -> str:
    """Return the mean over the subsets at the smallest dimension, as a percentage of the mean at full width."""
    if min(scores_of_model[subset][0].value for subset in SUBSETS) <= LOWEST:
        return "–"
    return f"{100 * scores_of_model['mean'][-1].value / scores_of_model['mean'][0].value:.1f}%"


def headline(rows: dict, scores: Scores) -> str:
    """Return the README's table: the main models and the published ones of their size, at full width and the smallest dimension."""
    lines = [
        [name, *[cell for subset in SUBSETS for cell in (f"{values[subset]:.1f}", "–")], "–"]
        for name, values in PUBLISHED.items()
    ]
    for name, row in rows.items():
        if not row.get("plot"):
            continue
        cells = [f"{100 * scores[name][subset][i].value:.1f}" for subset in SUBSETS for i in (0, -1)]
        lines.append([row["label"], *cells, share_kept(scores[name])])
    return markdown_table(["model", *[f"{subset} {DIMS[i]}" for subset in SUBSETS for i in (0, -1)], "kept"], lines) + (
        f"\n{TASK}, Spearman × 100 at {DIMS[0]} and {DIMS[-1]} dimensions, {over_seeds(rows)}. Kept: the mean of the three subsets' scores "
        f"at {DIMS[-1]} dimensions, as a percentage of their mean at {DIMS[0]}. The first {len(PUBLISHED)} rows are published scores "
        "(model cards and mteb's results; multilingual-e5-small with mteb 1.12).\n"
    )


def over_seeds(rows: dict) -> str:
    """Return words that say whether the scores are of one seed or means over several."""
    return "one seed" if all(len(row.get("seeds", [0])) == 1 for row in rows.values()) else "mean over the seeds"


def every_dimension(rows: dict, scores: Scores) -> str:
    """Return a table for each subset: every row at every dimension, with intervals."""
    text = f"{TASK}, Spearman × 100, 250 pairs per subset: {over_seeds(rows)}, with 95% intervals (bootstrap over the pairs).\n"
    for subset in (*SUBSETS, "mean"):
        lines = []
        for name, row in rows.items():
            cells = []
            for estimate in scores[name][subset]:
                low, high = estimate.interval()
                cells.append(f"{100 * estimate.value:.2f} ({100 * low:.1f} to {100 * high:.1f})")
            lines.append([row["label"], str(len(row.get("seeds", [0]))), *cells])
        text += f"\n**{subset}**\n\n" + markdown_table(["model", "seeds", *map(str, DIMS)], lines)
    return text


def dev_table(rows: dict, runs: dict[str, list[dict]]) -> str:
    """Return a table of the dev scores that choices were based on, averaged over dimensions and seeds, and of the training time."""
    import numpy as np

    means: dict[str, dict[str, float]] = {}
    single_dim, translations = [], False
    for name, summaries in runs.items():
        values: dict[str, list[float]] = {}
        dims: set[str] = set()
        for summary in summaries:
            for key, value in summary["scores"].items():
                kind, _, metric = key.rpartition("-")  # "<set>-<dimension>_<metric>"
                if kind and "-test" not in kind and metric.endswith(("_spearman_cosine", "_mean_accuracy")):
                    values.setdefault(dev_set(kind.removesuffix("-dev"), name, rows), []).append(value)
                    dims.add(metric.split("_")[0])
                    translations = translations or metric.endswith("_accuracy")
        means[name] = {kind: 100 * float(np.mean(of_kind)) for kind, of_kind in values.items()}
        if len(dims) == 1:
            single_dim.append(rows[name]["label"])
    kinds = [kind for kind in DEV_SETS if any(kind in of_row for of_row in means.values())]
    kinds += [kind for kind in dict.fromkeys(k for of_row in means.values() for k in of_row) if kind not in DEV_SETS]
    lines = []
    for name, summaries in runs.items():
        minutes = np.mean([run["wall_time_s"] for run in summaries]) / 60
        cells = [f"{means[name][kind]:.1f}" if kind in means[name] else "" for kind in kinds]
        lines.append([rows[name]["label"], str(summaries[0]["steps"]), f"{minutes:.0f}", *cells])
    text = markdown_table(["model", "steps", "minutes", *(DEV_SETS.get(kind, kind) for kind in kinds)], lines)
    text += "\nSpearman × 100, mean over the seeds and over the dimensions that each model was trained at."
    if translations:
        text += f" {DEV_SETS['translations-en-ar']}: accuracy of finding translations × 100."
    if single_dim:
        labels = "; ".join(f'"{label}"' for label in single_dim)
        text += f" These models have scores at full width only, which are not comparable with the means: {labels}."
    return text + "\n"


def dev_set(name: str, row: str, rows: dict) -> str:
    """Return a name for a dev set of a run that does not depend on the run's other dev sets: "sts" becomes "sts-ar" or "sts-en"."""
    if name != "sts":
        return name
    dev_data = resolve(rows[row], rows)["config"].get("dev_data", ["auto"])
    return "sts-ar" if "ar" in dev_data else "sts-en"


if __name__ == "__main__":
    run(main)
