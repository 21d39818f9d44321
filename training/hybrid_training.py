"""Train a Matryoshka model on a mixture of data sets, each with its own loss.

    python training/hybrid_training.py                                  # the mixture of configs/training_config.json
    python training/hybrid_training.py --config configs/quickstart.json
    python training/hybrid_training.py MODEL --config my_mixture.json

The key "datasets" of the configuration lists the data sets, each with its loss and how often it is drawn. Every loss applies
at every dimension. The softmax loss trains a classifier head for each dimension; the heads are not part of the final model. The
path of the final model is the last line of standard output.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.config import load_config
from common.dims import check_dims, fit_dims
from common.errors import run
from common.script import set_up_logging
from training.utils.option_checks import check_mixture, check_training
from training.utils.options import LOSSES, HybridConfig, loading_options


def main(argv: list[str] | None = None) -> None:
    # 1. The configuration: configs/training_config.json, then --config, then the flags
    config = load_config(HybridConfig, __doc__, argv, positional="model_name")
    check_dims("--matryoshka_dims", config.matryoshka_dims)
    check_training(config)
    check_mixture(config)
    set_up_logging()

    from datasets import DatasetDict
    from transformers import set_seed

    from common.packing import pack
    from evaluation.utils.dev_evaluator import MatryoshkaEvaluator
    from training.utils.crosslingual import with_translations
    from training.utils.data_loading import load_training_data
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
    from training.utils.teacher import add_targets
    from training.utils.trainer import MatryoshkaTrainer
    from training.utils.training_arguments import check_training_arguments, make_training_arguments
    from training.utils.weight_averaging import average_weights, copy_weights

    folder = run_folder(config, "hybrid_training")
    check_training_arguments(config, folder)
    checkpoint = prepare_run_folder(folder, config)
    set_seed(config.seed)

    # 2. The data: the mixture, and dev and test sets; training rows that share a sentence with a dev or test row are removed
    train_datasets = DatasetDict(
        {
            name: with_translations(
                load_training_data(entry, config.max_train_samples, config.drop_unusable_rows), entry
            )
            for name, entry in config.datasets.items()
        }
    )
    dev_sets, test_sets, dev_check = load_development_data(config, "en")
    entries = {name: (entry, train_datasets[name]) for name, entry in config.datasets.items()}
    kept, leaks = drop_leaks(entries, dev_sets | test_sets, config.keep_leaks)
    train_datasets = DatasetDict(kept)

    # 3. The model, packed so that it does not process padding
    model = load_base_model(config, *train_datasets.values())
    precision = choose_precision(config.precision, model)
    pack(model, train_dtype=precision)

    # 4. The dimensions: the configured ones up to the model's width, and its full width
    width = model.get_embedding_dimension()
    dims = fit_dims("--matryoshka_dims", config.matryoshka_dims, width, config.is_set("matryoshka_dims"))
    weights = fit_weights(config, dims)
    if config.prefix_map:
        check_prefix_map(model, train_datasets.values(), dims)

    # 5. For the data sets with a distillation loss, the teacher's embeddings
    for name, entry in config.datasets.items():
        if "teacher" in LOSSES[entry.loss].keys:
            teacher = entry.teacher or config.model_name
            same_width = width if entry.target == "embeddings" else None
            train_datasets[name] = add_targets(train_datasets[name], teacher, same_width, **loading_options(config))

    # 6. The loss of each data set, at every dimension
    losses = {
        name: make_loss(
            model,
            entry,
            train_datasets[name],
            dims,
            weights,
            config.mini_batch_size,
            config.self_distillation_weight,
            **loading_options(config),
        )
        for name, entry in config.datasets.items()
    }

    # 7. The evaluator: dev scores at every dimension, and their mean
    evaluator = MatryoshkaEvaluator(dev_sets, dims) if dev_sets else None

    # 8. The prompts and the training arguments, and how the data sets are mixed
    metric = evaluator.primary_metric if evaluator else None
    prompts = choose_prompts(config, model, train_datasets)
    args = make_training_arguments(config, folder, precision, metric, prompts=prompts)
    weights_of_sets = [entry.weight for entry in config.datasets.values()]
    mixing = config.multi_dataset_batch_sampler if None in weights_of_sets else weights_of_sets

    # 9. The output directory: remove an earlier run if --overwrite_output_dir is set, then write the run's record
    entries = {name: (entry, train_datasets[name]) for name, entry in config.datasets.items()}
    record = make_record(folder, config, model, dims, entries, dev_sets | test_sets, leaks | {"dev_sets": dev_check})
    clear_run_folder(folder, config)
    write_initial_files(record, model, config)

    # 10. Train
    start = copy_weights(model) if config.start_share else None
    trainer = MatryoshkaTrainer(
        model=model,
        args=args,
        train_dataset=train_datasets,
        loss=losses,
        evaluator=evaluator,
        mixing=mixing,
        early_stopping_patience=config.early_stopping_patience,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)

    # 11. Average the trained and the initial weights; rotate the embeddings for better prefixes
    if start is not None:
        average_weights(trainer.model, start, config.start_share)
    if config.prefix_map and trainer.is_world_process_zero():
        add_prefix_map(trainer.model, train_datasets.values(), dims, weights, config.seed)

    # 12. Score the final model, save it with its card, and print its path
    finish(trainer, result, record, config, dims, dev_sets, test_sets)


if __name__ == "__main__":
    run(main)
