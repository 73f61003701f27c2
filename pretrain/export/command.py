"""Turn a checkpoint into a Hugging Face folder, and prove that it is the same model.

    python -m pretrain.export RUN OUT                        the newest whole checkpoint of a run
    python -m pretrain.export RUN/checkpoints/step-0001000 OUT --head mlm
    python -m pretrain.export RUN OUT --weights averaged     of a run with --average
    python -m pretrain.export DEEPSPEED_CHECKPOINT OUT --config HF_FOLDER --vocab HF_FOLDER     of another trainer
    python -m pretrain.export HF_FOLDER OUT --head base --dtype bf16
    python -m pretrain.export OLD_FOLDER OUT                 with pytorch_model.bin alone: safetensors
    python -m pretrain.export uncased_L-12_H-768_A-12/bert_model.ckpt OUT     Google's, of TensorFlow
    python -m pretrain.export ckpt_8601.pt OUT --config bert_config.json --vocab VOCAB     NVIDIA's
    python -m pretrain.export RUN OUT --format sentence-transformers     a text becomes a vector
    python -m pretrain.export TUNED OUT --format onnx --quantize int8     a fine-tuned folder, for ONNX Runtime

    OUT/config.json, model.safetensors      what transformers loads; or model.onnx
    OUT/tokenizer.json, ...                 the tokenizer that the store was made with
    OUT/README.md, provenance.json          model card; which run, step, data and settings it comes from

The folder is written aside, loaded again with transformers, and its outputs on real and random tokens are compared
with those of the trainer's own model and weights; only then does it get its name. DeepSpeed is not needed, and nothing
is unpickled but what pickles.py allows. A folder holds exactly one head's weights, since transformers reports
what it does not use; heads.py says what each is. Texts are cut at the length that positions were trained for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import tyro

from data_prep.cli import InputError
from data_prep.files import check_out
from data_prep.interpreter import importing
from data_prep.tokens.tokenizer_folder import TOKENIZER_FILES
from pretrain.export.origin import PROVENANCE, Dtype, Format, Head, Weights, check_origin
from pretrain.hf_files import forbid_network

# Files of an export before it listed them in PROVENANCE.
WRITTEN = (*TOKENIZER_FILES, PROVENANCE, "README.md", "config.json", "generation_config.json", "model.safetensors")


@dataclass(frozen=True)
class ExportConfig:
    """What to convert and where to."""

    source: tyro.conf.Positional[Path]
    """a run folder, one checkpoint of it, a DeepSpeed checkpoint folder, a Hugging Face folder (of safetensors or
    pytorch_model.bin), a .bin or .pt of torch.save, or Google's bert_model.ckpt"""
    out: tyro.conf.Positional[Path]
    """Hugging Face folder to write; an earlier export there is replaced"""
    head: Head | None = None
    """which head's weights the folder holds beside the encoder's; left out: what was trained, such as `pretraining`
    (both heads), or `mlm` of a run without sentence pairs. `base` is the encoder alone"""
    format: Format = "hf"
    """sentence-transformers: the encoder with mean pooling, which also text-embeddings-inference, vLLM and llama.cpp
    read; onnx: a graph for ONNX Runtime"""
    quantize: Literal["int8"] | None = None
    """of --format onnx: a second graph, a quarter of the size; what it changes is said"""
    dtype: Dtype = "fp32"
    """type of the weights; what rounding changes is said"""
    weights: Weights = "raw"
    """of a run with --average: the weights of the last step, or their average"""
    config: Path | None = None
    """Hugging Face folder, config.json or bert_config.json that says which BERT a checkpoint of others holds"""
    vocab: Path | None = None
    """its tokenizer's folder, with tokenizer.json or vocab.txt; left out: the folder of --config"""
    license: str | None = None
    """licence of the weights for the model card, such as apache-2.0"""
    json: bool = False
    """print one JSON object"""

    @staticmethod
    def check_given(given: Mapping[str, str]) -> None:
        """Refuse a wrong source before what is missing is asked for.

        Raises
        ------
        InputError: as said.
        """
        if "source" in given and not {"config", "vocab"} & {*given}:
            check_origin(Path(given["source"]), None, None)


def check_format(config: ExportConfig) -> None:
    """Refuse what a format cannot hold, or cannot be made of here.

    Raises
    ------
    InputError: as said.
    """
    if config.format == "sentence-transformers" and config.head not in (None, "base"):
        raise InputError(
            f"--head {config.head}: --format sentence-transformers holds the encoder alone; leave out --head"
        )
    if config.quantize and config.format != "onnx":
        raise InputError(f"--quantize {config.quantize} is of --format onnx; for the others there is --dtype bf16")
    if config.format != "onnx":
        return
    if config.dtype != "fp32":
        raise InputError(f"--dtype {config.dtype}: --format onnx is fp32, and with --quantize int8 in 8 bit too")
    if config.head in ("causal", "encoder-decoder"):
        raise InputError(
            f"--head {config.head} writes word after word, which --format onnx does not; choose another head"
        )
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise InputError(f"--format onnx needs the package {missing[0]}: pip install 'zerobert[onnx]'")


def main(config: ExportConfig) -> None:
    """Convert, compare, then put into place."""
    check_format(config)
    read = [path for path in (config.source, config.config, config.vocab) if path is not None]
    check_out(config.out, read, PROVENANCE, WRITTEN)
    check_origin(config.source, config.config, config.vocab, config.weights)
    forbid_network()
    # Behind all that can be refused at once: torch and transformers take seconds.
    with importing():
        from pretrain.export.hf_writer import Target, convert

    convert(
        config.source,
        config.out,
        Target(config.head, config.dtype, config.format, config.quantize is not None, config.license),
        config=config.config,
        vocab=config.vocab,
        weights=config.weights,
        as_json=config.json,
    )
