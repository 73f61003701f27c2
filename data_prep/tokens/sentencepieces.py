"""SentencePiece vocabularies, unigram or BPE, as one fast tokenizer that data preparation and transformers share.

    entries, tokenizer = train(sentences, "unigram", size=30528, cased=False)
    write(folder, tokenizer)              tokenizer.json, tokenizer_config.json

`sentencepiece` trains; what encodes, here and in the exported folder, is the tokenizer of `tokenizers` that is built
from its model. The two differ on a handful of strings in a thousand, where pieces have equal scores; since only one of
them ever encodes, that is of no account.

For scripts without spaces (Chinese, Japanese, Thai) and for many languages at once this needs no rules of words.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from data_prep.cli import InputError, say
from data_prep.files import write_json

Kind = Literal["unigram", "bpe"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
COVERAGE = 0.9995  # of the corpus' characters at least; the rarest become [UNK]
MAX_SENTENCES = 10_000_000  # the first so many are trained on
MAX_SENTENCE_BYTES = 4000  # the trainer leaves out, without a word, what is longer than its 4,192
RESERVED = "\u2585"  # ▅, the trainer's own sign: it leaves out every sentence that holds it
THREADS = 4  # one number everywhere: sums of floats depend on how they are split


def train(sentences: Iterable[str], kind: Kind, size: int, cased: bool, characters: Iterable[str] = ()) -> Tokenizer:
    """Return a tokenizer of `size` entries, or fewer where the corpus is too small for it; `characters` are among them.

    Raises
    ------
    InputError: the corpus holds no text, or too little of it.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    texts = (part for sentence in sentences for part in trainable(sentence))
    pad, unknown, begin, end, mask = SPECIAL
    settings: dict[str, Any] = dict(
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=COVERAGE,
        required_chars="".join(characters).replace(RESERVED, ""),
        max_sentence_length=MAX_SENTENCE_BYTES,
        # Case folding keeps accents, unlike BERT's uncased normalizer: they tell words apart in most languages.
        normalization_rule_name="nmt_nfkc" if cased else "nmt_nfkc_cf",
        num_threads=THREADS,
        minloglevel=2,
        **dict(pad_id=0, unk_id=1, bos_id=2, eos_id=3),
        **dict(pad_piece=pad, unk_piece=unknown, bos_piece=begin, eos_piece=end, control_symbols=[mask]),
    )
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=first_sentences(texts), model_writer=model, **settings
        )
    except (RuntimeError, OSError) as error:
        if needed := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
            least = f"{int(needed[1]):,}"
            raise InputError(
                f"--size {size:,} has no room for the {least} characters of this corpus; give more"
            ) from error
        raise InputError(f"sentencepiece cannot train on this corpus: {error}") from error
    proto: Any = getattr(sentencepiece_model_pb2, "ModelProto")()  # noqa: B009 - made at run time, unknown to checkers
    proto.ParseFromString(model.getvalue())
    return convert(proto, kind)


def trainable(sentence: str) -> Iterator[str]:
    """Yield a sentence as the trainer takes it whole: in parts of MAX_SENTENCE_BYTES at most, cut at white space where
    there is any, else between characters."""
    raw = sentence.replace(RESERVED, " ").encode()
    start = 0
    while len(raw) - start > MAX_SENTENCE_BYTES:
        stop = raw.rfind(b" ", start + 1, start + MAX_SENTENCE_BYTES)
        if stop < 0:
            stop = start + MAX_SENTENCE_BYTES
            while raw[stop] & 0b1100_0000 == 0b1000_0000:  # inside a character
                stop -= 1
        yield raw[start:stop].decode()
        start = stop
    yield raw[start:].decode()


def first_sentences(texts: Iterable[str]) -> Iterator[str]:
    """Yield the first MAX_SENTENCES texts; says so where there are more."""
    for index, text in enumerate(texts):
        if index == MAX_SENTENCES:
            say(f"trained on the first {MAX_SENTENCES:,} sentences; what follows them in the corpus is not counted")
            return
        yield text


def convert(proto: Any, kind: Kind) -> Tokenizer:
    """Return the fast tokenizer of a trained SentencePiece model."""
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    assert tuple(piece for piece, _ in pieces[: len(SPECIAL)]) == SPECIAL
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1, byte_fallback=False))
    else:
        ids = {piece: index for index, (piece, _) in enumerate(pieces)}
        tokenizer = Tokenizer(models.BPE(ids, merges_of(ids), unk_token="[UNK]", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    # A bracket stands alone, so that a literal "[MASK]" in a text can never be found in the vocabulary.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Split("[", behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return tokenizer


def merges_of(ids: dict[str, int]) -> list[tuple[str, str]]:
    """Return the merges behind the entries of a BPE: sentencepiece numbers entries in the order in which it made them,
    and an entry can be made of any two earlier ones."""
    merges = []
    for piece, token_id in ids.items():
        if piece in SPECIAL:
            continue
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
        merges += [(token_id, *pair) for pair in sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    return [(left, right) for _, left, right in sorted(merges, key=lambda merge: merge[0])]


def write(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the files of a tokenizer folder into `folder`."""
    content = json.loads(tokenizer.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    # model_input_names keeps token_type_ids: without it this class drops them, and sentence pairs are not told apart.
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 512,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            **{f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")},
        },
    )
