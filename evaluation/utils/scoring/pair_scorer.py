"""Scores models on sets of pairs with four similarity measures, for ``evaluate_sts.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from common.config import default
from common.data_files import file_hash, why_undefined
from common.errors import RunError
from common.prompts import task_prompt
from common.records import read_json_file, versions, write_atomically
from evaluation.utils.scoring.pairs import PairSet, languages_of_name, load_pairs
from evaluation.utils.scoring.rows import ScoredModel, ScoreRow
from evaluation.utils.scoring.scorer import ModelScores
from evaluation.utils.scoring.similarity import sts_scores

if TYPE_CHECKING:
    from evaluation.utils.options import STSConfig
    from evaluation.utils.scoring.embeddings import EmbeddingStore

METRIC = "cosine_spearman"
TASK_TYPE = "STS"  # also for the user's own pairs


class PairScorer:
    """Scores models on an STS task or the user's pairs. See :class:`evaluation.utils.scoring.scorer.Scorer`."""

    result_files = "result files under sts/"

    def __init__(self, config: STSConfig):
        self.config = config
        self.data_files = [str(file_hash(config.data))]
        self.warning = "" if config.task else f"These are scores on {config.data}, not on an MTEB task."
        self.mteb_version = versions().get("mteb")
        self.task, self.dataset_revision = "", ""
        self.subsets: dict[str, dict[str, list[Any]]] = {}

    def load_data(self) -> dict[str, dict[str, Any]]:
        config = self.config
        self.task, self.subsets, self.dataset_revision = load_pairs(
            config.task, config.data, config.subsets, default("eval_config.json", "subsets"), config.is_set("subsets")
        )
        rows = {subset: len(pairs["score"]) for subset, pairs in self.subsets.items()}
        return {self.task: {"revision": self.dataset_revision, "rows": rows}}

    def score(self, store: EmbeddingStore, scored_model: ScoredModel, dims: list[int]) -> ModelScores:
        scores = ModelScores(rows=[])
        prompt = task_prompt(store.model, *self.encoded_as()[0])
        for subset, pairs in self.subsets.items():
            pair_set = PairSet(
                task=self.task,
                subset=subset,
                languages=languages_of_name(subset),
                kind="spearman",
                sentence1=pairs["sentence1"],
                sentence2=pairs["sentence2"],
                gold=np.asarray(pairs["score"], dtype=float),
                first=store.encode(pairs["sentence1"], prompt=prompt),
                second=store.encode(pairs["sentence2"], prompt=prompt),
            )
            rows = self._score_subset(scored_model, pair_set, pairs["score"], dims)
            scores.rows += rows
            scores.test_texts |= {*pairs["sentence1"], *pairs["sentence2"]}
            if all(row.score is not None for row in rows):
                scores.pairs.append(pair_set)
        for dim in dims:
            self._write_results(scored_model, dim, [row for row in scores.rows if row.dim == dim])
        return scores

    def _score_subset(
        self, scored_model: ScoredModel, pairs: PairSet, gold: list[float], dims: list[int]
    ) -> list[ScoreRow]:
        """Return a row for each dimension, without a score if a correlation is undefined.

        If it is undefined at full width, the smaller dimensions have no score either, because there is nothing to compare with.
        """
        rows: list[ScoreRow] = []
        undefined = why_undefined(gold)
        for dim in dims:
            similarity_scores: dict[str, float] = {}
            note = undefined
            if undefined is None:
                try:
                    similarity_scores = sts_scores(pairs.first[:, :dim], pairs.second[:, :dim], gold)
                except RunError as error:
                    note = str(error)
            if dim == dims[0]:
                undefined = note
            rows.append(
                ScoreRow(
                    **scored_model.columns(),
                    task=self.task,
                    subset=pairs.subset,
                    dim=dim,
                    n=len(gold),
                    task_type=TASK_TYPE,
                    metric=METRIC,
                    score=similarity_scores.get(METRIC),
                    note=note,
                    dataset_revision=self.dataset_revision,
                    mteb_version=self.mteb_version,
                    similarity_scores=similarity_scores,
                )
            )
        return rows

    def _write_results(self, scored_model: ScoredModel, dim: int, rows: list[ScoreRow]) -> None:
        """Add the scores at a dimension to the task's result file."""
        identity = scored_model.identity
        entries = [
            {"hf_subset": row.subset, "n": row.n} | row.similarity_scores for row in rows if row.score is not None
        ]
        if not entries:
            return
        folder = Path(self.config.output_dir) / "sts" / identity.name.replace("/", "__") / identity.revision
        result = {
            "task_name": self.task,
            **scored_model.columns(),
            "embed_dim": dim,
            "dataset_revision": self.dataset_revision,
            "mteb_version": self.mteb_version,
            "scores": entries,
        }
        write_result(folder / scored_model.experiment_name(dim) / f"{self.task}.json", result)

    def encoded_as(self) -> list[tuple[str, str, str | None]]:
        # the name of the user's file must not select one of the model's prompts
        return [(self.task if self.config.task else TASK_TYPE, TASK_TYPE, None)]

    def encoded_counts(self, for_scores: int, for_calibration: int) -> int:
        return for_scores + for_calibration

    def hub_datasets(self) -> dict[str, str]:
        return {}


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result file, keeping its results on other subsets of the same data. Several processes may do this at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        known = read_json_file(path)
        ours = {entry["hf_subset"] for entry in result["scores"]}
        if known.get("dataset_revision") == result["dataset_revision"] and isinstance(known.get("scores"), list):
            kept = [e for e in known["scores"] if isinstance(e, dict) and e.get("hf_subset") not in ours]
            result = result | {"scores": kept + result["scores"]}
        write_atomically(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
