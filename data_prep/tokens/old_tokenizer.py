"""The tokenizer of a folder from before tokenizer.json: vocab.txt, and perhaps tokenizer_config.json.

    vocab = whole_tokenizer(folder, scratch)      `folder` itself where it has a tokenizer.json

Google's folders say nowhere whether a text is lower-cased. Their vocabularies do: an uncased one has no capitals.
"""

import json
import shutil
from pathlib import Path

from data_prep.cli import say
from data_prep.files import write_json
from data_prep.tokens.contract import CONFIG, missing_settings, tokenizer_of
from data_prep.tokens.sentencepieces import SPECIAL
from data_prep.tokens.wordpiece import read_vocab, write_tokenizer
from data_prep.untrusted import read_object

CASED_SHARE = 0.01  # of the entries, that have capitals; bert-base-cased has 41 %


def whole_tokenizer(folder: Path, scratch: Path) -> Path:
    """Return a tokenizer folder with tokenizer.json: `folder`, or one made in `scratch` of its vocab.txt.

    Raises
    ------
    InputError: vocab.txt is none of a BERT, or code stands beside it.
    """
    if (folder / "tokenizer.json").is_file():
        return folder
    made = scratch / "vocab"
    made.mkdir()
    if (folder / CONFIG).is_file():
        tokenizer = tokenizer_of(folder, "--vocab").tokenizer  # as transformers builds it
        config = read_object(folder / CONFIG)
        (made / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False), "utf-8")
        write_json(made / CONFIG, config | missing_settings(tokenizer, config), sync=False)
        shutil.copyfile(folder / "vocab.txt", made / "vocab.txt")
        return made
    entries = read_vocab(folder / "vocab.txt")
    capitals = sum(entry != entry.lower() for entry in entries if entry not in SPECIAL and entry[:1] != "[")
    cased = capitals > CASED_SHARE * len(entries)
    write_tokenizer(made, entries, cased)
    what = f"{capitals:,} of {len(entries):,} entries have capitals"
    say(
        f"{folder / 'vocab.txt'}: {'cased' if cased else 'uncased'}, as {what}; --vocab FOLDER with a "
        "tokenizer_config.json says otherwise (data_prep/vocab.py --from_vocab)"
    )
    return made
