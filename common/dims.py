"""The rules for Matryoshka dimensions, shared by training and evaluation."""

from __future__ import annotations

from common.errors import UsageError


def check_dims(where: str, dims: list[int]) -> None:
    """Raise :class:`UsageError` unless ``dims`` are positive and distinct."""
    if not dims:
        raise UsageError(f"{where} is empty: set at least one dimension")
    for dim in dims:
        if dim <= 0:
            raise UsageError(f"{where}: a dimension must be positive, not {dim}")
        if dims.count(dim) > 1:
            raise UsageError(f"{where}: the dimension {dim} is duplicated")


def fit_dims(where: str, dims: list[int], width: int, explicit: bool) -> list[int]:
    """Return the dimensions to use for embeddings of ``width`` dimensions: largest first, always including the full width.

    Args:
        where: The name of the list in error messages: its flag.
        dims: The configured dimensions.
        width: The width of the model's embeddings.
        explicit: Whether the user chose the dimensions. Default dimensions above the width are dropped without an error.

    Raises:
        UsageError: The user chose a dimension above the width.
    """
    if explicit and max(dims) > width:
        raise UsageError(f"{where}: dimension {max(dims)} is above the model's width of {width}")
    return sorted({width, *(dim for dim in dims if dim <= width)}, reverse=True)
