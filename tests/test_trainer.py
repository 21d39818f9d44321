"""The private methods that the trainer overrides exist in the installed libraries."""

from __future__ import annotations

import inspect

from sentence_transformers import SentenceTransformerTrainer

from training.utils.trainer import PRIVATE_OVERRIDES, MatryoshkaTrainer


def test_the_private_methods_that_are_overridden_exist_and_are_called_as_expected():
    for name, arguments in PRIVATE_OVERRIDES.items():
        method = getattr(SentenceTransformerTrainer, name, None)
        assert method is not None, f"the libraries no longer have {name}, which MatryoshkaTrainer overrides"
        missing = arguments - set(inspect.signature(method).parameters)
        assert not missing, f"{name} is no longer called with {missing}"


def test_every_private_method_that_is_overridden_is_listed():
    own = {
        name
        for name, value in vars(MatryoshkaTrainer).items()
        if inspect.isfunction(value) and name[:2].count("_") == 1
    }
    assert {name for name in own if hasattr(SentenceTransformerTrainer, name)} == set(PRIVATE_OVERRIDES)


def test_the_private_attributes_that_are_read_are_still_set():
    source = "".join(inspect.getsource(cls) for cls in SentenceTransformerTrainer.__mro__ if cls is not object)
    for name in ("_load_from_checkpoint", "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"):
        assert f"def {name}(" in source or f"self.{name} = " in source, f"the libraries no longer have {name}"
