"""Export a model at one dimension. The exported model needs no arguments to return normalised embeddings.

    python training/export_model.py output/my-model/final --dim 256
    python training/export_model.py MODEL --dim 256 --format onnx --output_dir output/my-model-onnx
    python training/export_model.py MODEL --dim 256 --format onnx --weights int8 --data my_pairs.csv

The embeddings are the first --dim numbers of the original model's embeddings, normalised. An ONNX file needs onnxruntime and
tokenizers, but not torch. A model that needs its own Python code can be exported only to ONNX. The README.md in the folder
shows how to use the exported model. The path of the folder is the last line of standard output.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the repository root, as `python -m` does
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.config import load_config
from common.errors import UsageError, run
from common.script import set_up_logging
from training.utils.export_options import INT8, ONNX, ExportConfig, check_export, output_folder


def main(argv: list[str] | None = None) -> None:
    # 1. The configuration: configs/export_config.json, then --config, then the flags
    config = load_config(ExportConfig, __doc__, argv, positional="model_name")
    check_export(config)
    set_up_logging()

    from common.models import identify, load_model
    from common.records import folder_atomically

    if config.format == ONNX:
        from training.utils import onnx_export
        from training.utils.export_loss import load_scored_pairs, measure_loss

        onnx_export.require_packages()

    from training.utils.export import dims_up_to, original_card_data, save_sentence_transformers, warn_if_untrained
    from training.utils.export_card import export_card

    # 2. The model, its dimension, and graded pairs for measuring how much int8 lowers the score
    identity = identify(config.model_name)
    model = load_model(
        config.model_name,
        identity,
        device="cpu",
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
    ).eval()
    width = model.get_embedding_dimension()
    dim = config.dim or width
    if dim > width:
        raise UsageError(f"--dim {dim} is above the model's width of {width}")
    folder = output_folder(config, identity.name, dim)
    warn_if_untrained(model, dim)
    pairs = load_scored_pairs(config.data) if config.weights == INT8 else {}

    with folder_atomically(folder, "free some disk space and run the command again") as partial:
        # 3. Export, and compare the result with the original
        if config.format == ONNX:
            onnx_export.save_onnx(model, partial, identity, dim)
        else:
            save_sentence_transformers(model, partial, identity, dim)

        # 4. Quantise the weights, and measure how much this lowers the score
        losses = []
        if config.weights == INT8:
            onnx_export.quantise(partial / onnx_export.MODEL)
            losses = measure_loss(model, partial, dim, pairs)

        # 5. The model card
        card = export_card(config, identity, original_card_data(identity), dim, dims_up_to(model, dim), losses)
        (partial / "README.md").write_text(card, encoding="utf-8")
    print(folder)


if __name__ == "__main__":
    run(main)
