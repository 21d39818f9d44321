"""Mine hard negatives for pairs of an anchor and a positive, and write them with the pairs to a Parquet file for training.

    python training/mine_negatives.py sentence-transformers/all-MiniLM-L6-v2 --path sentence-transformers/all-nli --name pair
    python training/mine_negatives.py MODEL --path my_pairs.csv --output_file mined.parquet --num_negatives 2
    python training/matryoshka_nli.py MODEL --train_data mined.parquet

A negative is another anchor's positive that lies close to this anchor. Texts that may be positives too, judging by their
similarity to the anchor (--relative_margin, --absolute_margin, --max_score), are skipped. With --guide, these limits apply to the
similarities of a second model. The path of the file is the last line of standard output. The run's record is saved next to that file.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.config import as_dict, load_config
from common.errors import run
from common.script import set_up_logging
from training.utils.mining_options import MiningConfig, check_mining, output_file


def main(argv: list[str] | None = None) -> None:
    # 1. The configuration: configs/mining_config.json, then --config, then the flags
    config = load_config(MiningConfig, __doc__, argv, positional="model_name")
    check_mining(config)
    path = output_file(config)
    set_up_logging()

    from common.data_files import dataset_revision, file_hash
    from common.models import identify, load_model
    from common.packing import pack
    from common.records import RunRecord
    from training.utils.data_loading import load_dev_sets, load_training_data
    from training.utils.leaks import drop_leaks
    from training.utils.mining import mine, report, role_prompts, write_parquet
    from training.utils.options import DatasetEntry

    # 2. The pairs; any that share a sentence with a dev or test set are removed, so that no such sentence becomes a negative
    entry = DatasetEntry(config.path, "mnrl", name=config.name, split=config.split, columns=config.columns)
    dataset = load_training_data(entry, config.max_train_samples, config.drop_unusable_rows)
    revision = dataset_revision(config.path, dataset)
    dataset = dataset.select_columns(["anchor", "positive"])
    dev_sets, test_sets = load_dev_sets(config.dev_data, "en")
    kept, leaks = drop_leaks({config.path: (entry, dataset)}, dev_sets | test_sets, config.keep_leaks)

    # 3. The model that finds candidates and the guide that scores them, packed so that they do not process padding
    loading = {"trust_remote_code": config.trust_remote_code, "allow_pickle": config.allow_pickle}
    identity = identify(config.model_name, config.max_seq_length, config.prompts)
    model = pack(load_model(config.model_name, identity, **loading).eval())
    guide_identity = identify(config.guide) if config.guide is not None else None
    guide = pack(load_model(config.guide, guide_identity, **loading).eval()) if guide_identity is not None else None
    record = RunRecord(
        path.with_suffix(".run.json"),
        as_dict(config),
        model={"name": identity.name, "revision": identity.revision, "prompts": role_prompts(model)},
        guide=guide_identity and {"name": guide_identity.name, "revision": guide_identity.revision},
        data={"path": config.path, "revision": revision},
        leaks=leaks,
    )

    # 4. Mine
    columns, counts = mine(kept[config.path], model, config, guide)
    report(counts)

    # 5. Write the rows and the record
    write_parquet(columns, path)
    record.finish(counts=counts, sha1=file_hash(str(path)))
    print(path)


if __name__ == "__main__":
    run(main)
