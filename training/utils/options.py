"""The keys of the training scripts. Their defaults are in ``configs/training_config.json``.

Keys that exist in transformers' ``TrainingArguments`` have the same name here; its other arguments go under
``training_arguments``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from common.config import Config
from common.keys import Key

DIRECTIONS = ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")
STATIC = "static"  # the model_name for new static embeddings
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Loss:
    """The properties of a loss, apart from its computation, which :mod:`training.utils.losses` builds.

    Attributes:
        required: The columns that the loss reads, in this order, each with its other names in public data sets.
        optional: Further columns that the loss reads if a data set has them.
        keys: The keys of :class:`DatasetEntry` that it supports, in addition to those that every loss supports.
        varied: A column in which at least two rows must differ, because the loss learns nothing from equal values.
        contrastive: Whether the other rows of a batch are negatives. If so, no two rows of a batch may be false negatives of
            each other, and ``--mini_batch_size`` can embed the batch in parts.
    """

    required: dict[str, tuple[str, ...]]
    optional: dict[str, tuple[str, ...]] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    varied: str | None = None
    contrastive: bool = False

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        return self.required | self.optional


PAIRS = {"anchor": ("query", "premise", "english"), "positive": ("answer", "entailment", "non_english")}
NEGATIVE = {"negative": ("contradiction",)}
SENTENCES = {"sentence1": ("premise", "text1"), "sentence2": ("hypothesis", "text2")}
SCORED = SENTENCES | {"score": ("similarity_score", "similarity", "label")}
CLASSIFIED = SENTENCES | {"label": ("labels",)}
TAUGHT = {"sentence": ("english", "text")}
TRANSLATION = {"translation": ("non_english",)}
LOSSES = {
    "mnrl": Loss(PAIRS, NEGATIVE, keys=("scale", "directions"), contrastive=True),
    "gist": Loss(PAIRS, NEGATIVE, keys=("scale", "guide"), contrastive=True),
    "cosent": Loss(SCORED, keys=("scale", "score_range"), varied="score"),
    "angle": Loss(SCORED, keys=("scale", "score_range"), varied="score"),
    "cosine": Loss(SCORED, keys=("score_range",)),
    "softmax": Loss(CLASSIFIED, varied="label"),
    "distill": Loss(TAUGHT, TRANSLATION, keys=("teacher", "target")),
}
TARGETS = ("embeddings", "similarities")


def losses_with(key: str) -> list[str]:
    """Return the names of the losses that support a key of :class:`DatasetEntry`."""
    return [name for name, loss in LOSSES.items() if key in loss.keys]


@dataclass
class DevEntry:
    """A dev set: its location and its columns."""

    path: Annotated[str, Key("a data set on the Hub, or a file", path=True)]
    name: Annotated[str | None, Key("the data set's configuration on the Hub")] = None
    split: Annotated[str, Key("the data set's split on the Hub")] = "validation"
    columns: Annotated[
        dict[str, str] | None,
        Key(
            "for sentence1, sentence2 and score (or, for translations, source and target), the name of the column in the data set"
        ),
    ] = None


@dataclass
class TrainingConfig(Config):
    defaults_file: ClassVar[str] = "training_config.json"

    model_name: Annotated[
        str,
        Key("the model to start from: a name on the Hub, a folder, or 'static' for new static embeddings", path=True),
    ]
    trust_remote_code: Annotated[
        bool,
        Key(
            "run the Python code that comes with a model (or a guide or teacher); do this only for code that you have read"
        ),
    ]
    allow_pickle: Annotated[
        bool,
        Key(
            "load pickled weights, with PyTorch's restricted unpickler, if a model has no safetensors; do this only for models "
            "that you trust"
        ),
    ]
    matryoshka_dims: Annotated[
        list[int],
        Key("dimensions to train; the model's full width is always added, and default dimensions above it are skipped"),
    ]
    matryoshka_weights: Annotated[
        list[float] | None,
        Key("weight of the loss at each of matryoshka_dims, in the same order; 1 by default", above=0),
    ]
    output_dir: Annotated[
        str | None,
        Key("folder for checkpoints, run.json and the final model; output/<script>-<model> by default", path=True),
    ]
    overwrite_output_dir: Annotated[bool, Key("replace an earlier run in output_dir")]
    resume_from_checkpoint: Annotated[str | None, Key("resume from this checkpoint: a path, or 'latest'", path=True)]
    num_train_epochs: Annotated[float, Key("number of training epochs", above=0)]
    max_steps: Annotated[int, Key("stop after N steps; -1 to train for num_train_epochs", minimum=-1)]
    per_device_train_batch_size: Annotated[int, Key("rows in a batch, on each device", minimum=2)]
    mini_batch_size: Annotated[
        int | None,
        Key(
            "embed the batch N rows at a time (GradCache), so that memory depends on N, not on the batch size; only for the contrastive "
            "losses, which are mnrl (the loss of matryoshka_nli.py) and gist; by default the whole batch at once",
            minimum=1,
        ),
    ]
    gradient_accumulation_steps: Annotated[
        int, Key("number of batches to accumulate gradients over before each optimizer step", minimum=1)
    ]
    learning_rate: Annotated[float, Key("peak learning rate", above=0)]
    warmup_steps: Annotated[
        float, Key("steps over which the learning rate rises to its peak (below 1: a fraction of the run)", minimum=0)
    ]
    self_distillation_weight: Annotated[
        float,
        Key(
            "weight of the self-distillation loss, which pulls the similarities at each smaller dimension towards those at full width; 0 turns it off",
            minimum=0,
        ),
    ]
    max_train_samples: Annotated[
        int | None, Key("use only the first N rows of each data set; by default all", minimum=1)
    ]
    drop_unusable_rows: Annotated[
        bool,
        Key(
            "drop rows of your own files that lack a text (other than a negative), a label or a score, or whose text is a list in brackets, instead of stopping with an error; such rows are always dropped from data sets on the Hub"
        ),
    ]
    max_seq_length: Annotated[
        int | None, Key("truncate texts to N tokens; the model's own limit by default", minimum=1)
    ]
    normalize_arabic: Annotated[
        bool,
        Key(
            "remove Arabic diacritics and the tatweel, replace every form of alef with the bare alef and alef maqsura with ya, and replace presentation forms with ordinary letters; saved as part of the model's tokenizer"
        ),
    ]
    extend_vocabulary: Annotated[
        int,
        Key(
            "add up to N word pieces for words of the training texts that the tokenizer splits into single letters; 0 adds none",
            minimum=0,
        ),
    ]
    align_vocabulary: Annotated[
        bool,
        Key(
            "initialise the word pieces that --extend_vocabulary adds from their translations in the training data; pieces without a translation are initialised from their letters"
        ),
    ]
    prune_vocabulary: Annotated[
        bool,
        Key("remove the word pieces that the training texts do not use, and their vectors; single characters are kept"),
    ]
    start_share: Annotated[
        float,
        Key(
            "average the trained weights with the initial weights, which get this share (0.3: 30% initial, 70% trained); 0 turns it off",
            minimum=0,
        ),
    ]
    prefix_map: Annotated[
        bool,
        Key(
            "after training, rotate the embeddings so that shorter prefixes better preserve the full-width similarities, which do not change"
        ),
    ]
    lora_r: Annotated[
        int,
        Key(
            "rank of a LoRA adapter: only the adapter is trained, and at the end it is merged into the model; 0 trains all weights",
            minimum=0,
        ),
    ]
    lora_alpha: Annotated[
        int | None,
        Key(
            "LoRA alpha: the adapter's output is multiplied by lora_alpha / lora_r; twice lora_r by default", minimum=1
        ),
    ]
    lora_dropout: Annotated[
        float, Key("dropout probability of the adapter's inputs, at least 0 and below 1", minimum=0)
    ]
    lora_target_modules: Annotated[
        list[str] | None,
        Key(
            "names of the linear layers to adapt, such as: query value; by default all linear layers in the transformer blocks"
        ),
    ]
    prompts: Annotated[
        str | dict[str, Any] | None,
        Key(
            'prompt to put before each text: a string, or a JSON object with a prompt for each column ({"anchor": "query: "}), each data set, or each column of each data set; negatives get the prompt of positive unless negative has one; saved in the model in place of its own '
            "and used for the dev scores; by default the model's own default prompt"
        ),
    ]
    precision: Annotated[
        str,
        Key(
            "training precision; auto picks bf16 or fp16 where the hardware runs it fast, and fp32 elsewhere",
            choices=PRECISIONS,
        ),
    ]
    static_embedding_dim: Annotated[int, Key("width of new static embeddings", minimum=1)]
    static_vocab_size: Annotated[
        int, Key("vocabulary size of new static embeddings, learnt from the training texts", minimum=100)
    ]
    dev_data: Annotated[
        list[str],
        Key(
            "dev sets for choosing the best checkpoint: none, or one or more of: en, ar (graded pairs: the validation set of STS-B in "
            "English or Arabic); en-ar (translation retrieval: the English-Arabic dev set of Tatoeba); auto (en, or in matryoshka_nli.py "
            "the set of --language); a file of graded pairs or translations; a Hub data set as "
            "path, path:config or path:config:split (config may be empty; the default split is validation). If any set "
            "comes from the Hub, pairs that are also in STS17 (ar-ar, en-ar, en-en), STS22.v2 (ar) or the STS-B test set are removed",
            path=True,
        ),
    ]
    dev_datasets: Annotated[
        dict[str, DevEntry], Key("further dev sets by name, each with path, name, split and columns (config file only)")
    ]
    keep_leaks: Annotated[
        bool,
        Key(
            "keep training rows that share a sentence with a dev set (for en, also with the STS-B test set) or, if any training data comes from the Hub, with STS17 (ar-ar, en-ar, en-en), STS22.v2 (ar) or the STS-B test set"
        ),
    ]
    eval_steps: Annotated[
        float,
        Key("evaluate and save every N steps (below 1: a fraction of the run)", above=0),
    ]
    logging_steps: Annotated[float, Key("report the loss every N steps (below 1: a fraction of the run)", above=0)]
    early_stopping_patience: Annotated[
        int | None,
        Key("stop when the mean dev score has not improved for N evaluations in a row; off by default", minimum=1),
    ]
    save_total_limit: Annotated[int, Key("keep this many checkpoints", minimum=1)]
    seed: Annotated[int, Key("random seed", minimum=0, maximum=2**32 - 1)]
    report_to: Annotated[str, Key("experiment tracker to report to: none, all, tensorboard, wandb, ...")]
    push_to_hub: Annotated[bool, Key("upload the final model to the Hub")]
    hub_model_id: Annotated[
        str | None, Key("name of the uploaded model on the Hub; by default the last part of output_dir")
    ]
    hub_private_repo: Annotated[bool, Key("make the uploaded model private")]
    training_arguments: Annotated[
        dict[str, Any], Key("any other arguments of SentenceTransformerTrainingArguments (config file only)")
    ]


@dataclass
class MatryoshkaNLIConfig(TrainingConfig):
    language: Annotated[
        str,
        Key(
            "language of the training triplets and the dev set; with --train_data, only of the dev set and the model card",
            choices=("en", "ar"),
        ),
    ]
    train_data: Annotated[
        str | None,
        Key(
            "your own pairs, each with any number of negatives: a CSV, TSV, JSON, JSONL or Parquet file, a folder or quoted glob of such "
            "files, or a Hub data set as path, path:config or path:config:split (config may be empty; the default split is train); with the "
            "columns anchor, positive and optionally negative (or negative_1, negative_2, ...); by default NLI triplets in --language",
            path=True,
        ),
    ]
    columns: Annotated[
        dict[str, str] | None, Key("for each column that the loss reads, its name in train_data (config file only)")
    ]
    scale: Annotated[float, Key("inverse temperature of the contrastive loss", above=0)]


@dataclass
class DatasetEntry:
    """A data set of a mixture: its location, its columns, its loss, and how often it is drawn."""

    path: Annotated[str, Key("a data set on the Hub, or a file, a folder or a glob of files", path=True)]
    loss: Annotated[str, Key("the loss to train with", choices=tuple(LOSSES))]
    name: Annotated[str | None, Key("the configuration (subset) on the Hub")] = None
    split: Annotated[str, Key("the split on the Hub")] = "train"
    columns: Annotated[dict[str, str] | None, Key("for each column that the loss reads, its name in the data set")] = (
        None
    )
    weight: Annotated[
        float | None,
        Key(
            "how often the data set is drawn relative to the others; without weights, see multi_dataset_batch_sampler",
            above=0,
        ),
    ] = None
    score_range: Annotated[
        list[float] | None,
        Key(
            "lowest and highest possible score, for cosent, angle or cosine; scores are rescaled from this range to 0..1"
        ),
    ] = None
    scale: Annotated[
        float | None,
        Key("inverse temperature of mnrl, gist, cosent and angle; 20 by default", above=0),
    ] = None
    directions: Annotated[
        list[str] | None,
        Key(
            "what mnrl contrasts: query_to_doc (required, and the only one by default), doc_to_query, query_to_query, doc_to_doc",
            choices=DIRECTIONS,
        ),
    ] = None
    guide: Annotated[
        str | None,
        Key(
            "the model that identifies false negatives for gist; by default the model to train, as it is before training",
            path=True,
        ),
    ] = None
    teacher: Annotated[
        str | None,
        Key(
            "the model whose embeddings are the targets of distill; by default the model that training starts from",
            path=True,
        ),
    ] = None
    target: Annotated[
        str | None,
        Key(
            "what distill takes from the teacher: embeddings (each prefix learns the teacher's prefix of the same length; the default) or similarities (each prefix learns the similarities at the teacher's full width; the widths of the two models may differ)",
            choices=TARGETS,
        ),
    ] = None
    translations: Annotated[
        str | None,
        Key(
            "parallel sentences (a file, or a Hub data set as path, path:config or path:config:split, where config may be empty and the default split is train) for replacing texts of this data set with their translations, which makes its rows cross-lingual; rows without a translation are dropped",
            path=True,
        ),
    ] = None
    translate: Annotated[
        list[str] | None,
        Key(
            "which texts of a row to replace with their 'translations': first, others (all but the first) or all; each choice adds its own rows; by default first and others",
            choices=("first", "others", "all"),
        ),
    ] = None
    max_train_samples: Annotated[int | None, Key("use only the first N rows", minimum=1)] = None

    def __post_init__(self) -> None:
        if self.translate is None and self.translations is not None:
            self.translate = ["first", "others"]
        if self.target is None and "target" in LOSSES[self.loss].keys:
            self.target = "embeddings"
        if self.scale is None and "scale" in LOSSES[self.loss].keys:
            self.scale = 20.0
        if self.directions is None and "directions" in LOSSES[self.loss].keys:
            self.directions = ["query_to_doc"]


@dataclass
class HybridConfig(TrainingConfig):
    datasets: Annotated[dict[str, DatasetEntry], Key("the data sets of the mixture, by name")] = field(
        default_factory=dict
    )
    multi_dataset_batch_sampler: Annotated[
        str,
        Key(
            "how the data sets take turns when none has a weight: proportional (in proportion to their sizes, until all are used up) or round_robin (one after another, until the smallest is used up)",
            choices=("proportional", "round_robin"),
        ),
    ] = "proportional"


def loading_options(config: TrainingConfig) -> dict[str, bool]:
    """Return the permissions for loading every model of the run, guides and teachers included, as keyword arguments of
    :func:`load_model`.
    """
    return {"trust_remote_code": config.trust_remote_code, "allow_pickle": config.allow_pickle}
