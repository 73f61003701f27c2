"""The files that make an encoder one of sentences: mean pooling, unit length, in each reader's own words.

    modules.json                          what follows what: encoder, pooling, normalisation
    1_Pooling/config.json                 mean pooling, said twice
    sentence_bert_config.json             where texts are cut
    config_sentence_transformers.json     cosine similarity, no prompts

Readers differ. sentence-transformers since 5.4 knows `pooling_mode` and drops the booleans beside it; earlier ones,
text-embeddings-inference, vLLM and llama.cpp's converter read the booleans, and take [CLS] where these are missing,
without a word. So both are written, and the names of classes are the old ones, which all know.
"""

from pathlib import Path

from data_prep.files import write_json
from data_prep.json_types import JsonObject

MODULES = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}  # by folder


def write_sentence_files(folder: Path, *, hidden: int, longest: int, has_pooler: bool) -> None:
    """Write them beside an encoder.

    hidden: size of a vector
    longest: tokens of a text, special ones included
    """
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
        for index, (path, name) in enumerate(MODULES.items())
    ]
    write_json(folder / "modules.json", modules)
    for path in filter(None, MODULES):
        (folder / path).mkdir()
    write_json(folder / "1_Pooling/config.json", pooling_of(hidden))
    settings: JsonObject = {"max_seq_length": longest, "do_lower_case": False}  # the tokenizer does that itself
    if not has_pooler:  # else a new one would be made, and reported, though nobody looks at it
        settings["model_args"] = {"add_pooling_layer": False}
    write_json(folder / "sentence_bert_config.json", settings)
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {},
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def pooling_of(hidden: int) -> JsonObject:
    """Return the settings of mean pooling, by the new keys and by the old."""
    others = ("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {
        "embedding_dimension": hidden,
        "word_embedding_dimension": hidden,
        "pooling_mode": "mean",
        "pooling_mode_mean_tokens": True,
        **{f"pooling_mode_{name}": False for name in others},
        "include_prompt": True,
    }
