"""The processes that train together, one for each device: how many, and which this is."""

from __future__ import annotations

import os


def get_world_size() -> int:
    """How many processes train together, as torchrun says it: the process group may not be up yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process is the one that writes to disk and to the log."""
    return int(os.environ.get("RANK", "0")) == 0
