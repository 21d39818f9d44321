"""mteb's result files: writes them atomically, and sets corrupt ones aside."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import mteb

from common.errors import one_line
from common.records import quarantine


class AtomicResultCache(mteb.ResultCache):
    """mteb's result files, written atomically."""

    def save_to_cache(self, task_result: Any, model_name: Any, *args: Any, **kwargs: Any) -> None:
        target = self.get_task_result_path(task_name=task_result.task_name, model_name=model_name).parent
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".") as partial:
            other = mteb.ResultCache(partial)
            folder = other.get_task_result_path(task_name=task_result.task_name, model_name=model_name).parent
            folder.mkdir(parents=True)
            for path in target.glob("run_settings.jsonl"):  # mteb adds results to an existing file
                shutil.copy(path, folder)
            other.save_to_cache(task_result, model_name, *args, **kwargs)
            for path in folder.iterdir():
                path.replace(target / path.name)

    def set_aside_corrupt(self, task: Any, meta: Any) -> None:
        """Set aside a task's result file that mteb cannot read. mteb itself would end with a traceback."""
        try:
            known = self.load_task_result(task.metadata.name, meta)
            of_another = known is not None and known.task_name != task.metadata.name
            reason = f"it belongs to the task {known.task_name}" if of_another else None
        except Exception as error:  # a corrupt file can make the parsers raise anything
            reason = one_line(error, 100)
        if reason:
            quarantine(self.get_task_result_path(task_name=task.metadata.name, model_name=meta), reason)
