"""Train a Matryoshka sentence embedding model on NLI triplets, or on your own triplets or pairs.

    python training/matryoshka_nli.py                                          # distilroberta-base on AllNLI
    python training/matryoshka_nli.py aubmindlab/bert-base-arabertv02 --language ar
    python training/matryoshka_nli.py MODEL --train_data my_triplets.csv

Trains with MultipleNegativesRankingLoss inside MatryoshkaLoss. The checkpoint with the best mean dev score over the dimensions becomes
<output_dir>/final. The path of this folder is the last line of standard output.
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
from training.utils.option_checks import check_nli, check_training
from training.utils.options import DatasetEntry, MatryoshkaNLIConfig


def main(argv: list[str] | None = None) -> None:
    # 1. The configuration: configs/training_config.json, then --config, then the flags
    config = load_config(MatryoshkaNLIConfig, __doc__, argv, positional="model_name")
    check_dims("--matryoshka_dims", config.matryoshka_dims)
    check_training(config)
    check_nli(config)
    set_up_logging()

    from transformers import set_seed

    from common.data_files import hub_or_file
    from common.packing import pack
    from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
    from training.utils.data_loading import NLI_TRIPLETS, load_training_data
    from training.utils.dev_data import load_development_data
    from training.utils.final_model import finish
    from training.utils.leaks import drop_leaks
    from training.utils.losses import fit_weights, make_loss
    from training.utils.model_utils import choose_precision, load_base_model
    from training.utils.prefix_map import add_prefix_map, check_prefix_map
    from training.utils.prompts import choose_prompts
    from training.utils.run_folder import (
        clear_run_folder,
        make_record,
        prepare_run_folder,
        run_folder,
        write_initial_files,
    )
    from training.utils.trainer import MatryoshkaTrainer
    from training.utils.training_arguments import check_training_arguments, make_training_arguments
    from training.utils.weight_averaging import average_weights, copy_weights

    folder = run_folder(config, "matryoshka_nli")
    check_training_arguments(config, folder)
    checkpoint = prepare_run_folder(folder, config)
    set_seed(config.seed)

    # 2. The data: triplets (or pairs), and dev and test sets; training rows that share a sentence with a dev or test row are
    # removed
    if config.train_data is not None:
        path, name, split = hub_or_file(config.train_data, "train")
        entry = DatasetEntry(path, "mnrl", name=name, split=split, columns=config.columns, scale=config.scale)
    else:
        entry = dataclasses.replace(NLI_TRIPLETS[config.language], scale=config.scale)
    train_dataset = load_training_data(entry, config.max_train_samples, config.drop_unusable_rows)
    dev_sets, test_sets, dev_check = load_development_data(config, config.language)
    kept, leaks = drop_leaks({entry.path: (entry, train_dataset)}, dev_sets | test_sets, config.keep_leaks)
    train_dataset = kept[entry.path]

    # 3. The model, packed so that it does not process padding
    model = load_base_model(config, train_dataset)
    if config.train_data is None or config.is_set("language"):  # otherwise the language of the data is not known
        model.model_card_data.language = [config.language]
    precision = choose_precision(config.precision, model)
    pack(model, train_dtype=precision)

    # 4. The dimensions: the configured ones up to the model's width, and its full width
    width = model.get_embedding_dimension()
    dims = fit_dims("--matryoshka_dims", config.matryoshka_dims, width, config.is_set("matryoshka_dims"))
    weights = fit_weights(config, dims)
    if config.prefix_map:
        check_prefix_map(model, [train_dataset], dims)

    # 5. The loss: the contrastive loss at every dimension
    loss = make_loss(
        model, entry, train_dataset, dims, weights, config.mini_batch_size, config.self_distillation_weight
    )

    # 6. The evaluator: dev scores at every dimension, and their mean
    evaluator = MatryoshkaEvaluator(dev_sets, dims) if dev_sets else None

    # 7. The prompts, and the training arguments
    metric = evaluator.primary_metric if evaluator else None
    prompts = choose_prompts(config, model, {entry.path: train_dataset})
    args = make_training_arguments(config, folder, precision, metric, prompts=prompts)

    # 8. The output directory: remove an earlier run if --overwrite_output_dir is set, then write the run's record
    entries = {entry.path: (entry, train_dataset)}
    record = make_record(folder, config, model, dims, entries, dev_sets | test_sets, leaks | {"dev_sets": dev_check})
    clear_run_folder(folder, config)
    write_initial_files(record, model, config)

    # 9. Train
    start = copy_weights(model) if config.start_share else None
    trainer = MatryoshkaTrainer(
        model=model,
        args=args,
        train_dataset=train_dataset,
        loss=loss,
        evaluator=evaluator,
        early_stopping_patience=config.early_stopping_patience,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)

    # 10. Average the trained and the initial weights; rotate the embeddings for better prefixes
    if start is not None:
        average_weights(trainer.model, start, config.start_share)
    if config.prefix_map and trainer.is_world_process_zero():
        add_prefix_map(trainer.model, [train_dataset], dims, weights, config.seed)

    # 11. Score the final model, save it with its card, and print its path
    finish(trainer, result, record, config, dims, dev_sets, test_sets)


if __name__ == "__main__":
    run(main)
