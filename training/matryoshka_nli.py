"""Train a Matryoshka sentence embedding model on NLI triplets, or on your own triplets or pairs.

    python training/matryoshka_nli.py                                          # distilroberta-base on AllNLI
    python training/matryoshka_nli.py aubmindlab/bert-base-arabertv02 --language ar
    python training/matryoshka_nli.py MODEL --train_data my_triplets.csv

MultipleNegativesRankingLoss inside MatryoshkaLoss; the checkpoint with the best mean dev score over the dimensions becomes
<output_dir>/final, whose path is the last line of standard output.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.config import load_config
from common.dims import check_dims, fit_dims
from common.errors import run
from common.script import set_up_logging
from training.utils.option_checks import check_training
from training.utils.options import DatasetEntry, MatryoshkaNLIConfig


def main(argv: list[str] | None = None) -> None:
    # 1. The configuration: configs/training_config.json, then --config, then the flags
    config = load_config(MatryoshkaNLIConfig, __doc__, argv, positional="model_name")
    check_dims("--matryoshka_dims", config.matryoshka_dims)
    check_training(config)
    set_up_logging()

    from transformers import set_seed

    from common.packing import pack
    from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
    from training.utils.data_loading import NLI_TRIPLETS, load_training_data
    from training.utils.dev_data import load_development_data
    from training.utils.leaks import drop_leaks
    from training.utils.losses import make_loss
    from training.utils.model_utils import choose_precision, load_base_model, prepare_run_folder, run_folder
    from training.utils.prefix_map import add_prefix_map
    from training.utils.runs import finish, fit_weights, pairs_of, start_record, texts_of
    from training.utils.trainer import MatryoshkaTrainer, make_training_arguments

    folder = run_folder(config, "matryoshka_nli")
    checkpoint = prepare_run_folder(folder, config)
    set_seed(config.seed)

    # 2. The data: scored pairs to choose the best checkpoint on, and triplets (or pairs) that share nothing with them
    if config.train_data is not None:
        entry = DatasetEntry(config.train_data, "mnrl", scale=config.scale)
    else:
        entry = dataclasses.replace(NLI_TRIPLETS[config.language], scale=config.scale)
    train_dataset = load_training_data(entry, config.max_train_samples)
    dev_sets, test_sets, dev_check = load_development_data(config, config.language)
    kept, leaks = drop_leaks({entry.path: (entry, train_dataset)}, dev_sets | test_sets, config.keep_leaks)
    train_dataset = kept[entry.path]

    # 3. The model
    model = load_base_model(config, texts_of(train_dataset), pairs_of(train_dataset))
    model.model_card_data.language = [config.language]

    # 4. The dimensions: those named that the model has, and its full width
    width = model.get_embedding_dimension()
    dims = fit_dims("--matryoshka_dims", config.matryoshka_dims, width, config.is_set("matryoshka_dims"))
    weights = fit_weights(config, dims)

    # 5. The loss: the contrastive loss at every dimension
    loss = make_loss(
        model, entry, train_dataset, dims, weights, config.mini_batch_size, config.self_distillation_weight
    )

    # 6. The evaluator: dev scores at every dimension, and their mean
    evaluator = MatryoshkaEvaluator(dev_sets, dims) if dev_sets else None

    # 7. The training arguments
    metric = evaluator.primary_metric if evaluator else None
    precision = choose_precision(config.precision, model)
    pack(model, train_dtype=precision)
    args = make_training_arguments(config, folder, precision, metric)
    entries = {entry.path: (entry, train_dataset)}
    record = start_record(folder, config, model, dims, entries, dev_sets | test_sets, leaks | {"dev_sets": dev_check})

    # 8. Train
    trainer = MatryoshkaTrainer(model=model, args=args, train_dataset=train_dataset, loss=loss, evaluator=evaluator)
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    # 9. Rotate the prefixes where that is wanted, score the final model, save it with its card, and say where it is
    if config.prefix_map:
        add_prefix_map(trainer.model, texts_of(train_dataset), dims, weights, config.seed)
    finish(trainer, result, record, config, dims, dev_sets, test_sets)


if __name__ == "__main__":
    run(main)
