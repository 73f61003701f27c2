"""How many texts of a labelled file stand in the corpus, too: a score on these would measure memory.

    told = overlap_in_words(config, [found, eval_file])      a warning with its remedy, or ""

Texts are compared by their sentences: in lower case, letters and digits alone. A text stands in the corpus where each
of its sentences does; what is shorter than LEAST says nothing. Of a large corpus a part of each file is looked at.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO

from data_prep.cli import InputError
from data_prep.text.corpus import read_documents
from data_prep.text.discovery import find_sources
from launch.labelled import Found
from launch.settings import MakeConfig

LEAST = 24  # bytes of a sentence
SAMPLE_BYTES = 32 << 20  # of the corpus, about: seconds
_REST = re.compile(r"[^\w.!?…\u3002\uff01\uff1f\n]+|_+")  # spaces, quotes, commas
_ENDS = re.compile(r"[.!?…\u3002\uff01\uff1f\n]+")


def overlap_in_words(config: MakeConfig, files: Sequence[Found]) -> str:
    """Say how many texts of `files` stand in the corpus, too, and what to do; "" where none do, or where what to do is
    done already."""
    shard = config.wanted.get("shard", {})
    if "exclude" in shard or not files:
        return ""
    texts = [set(_sentences(text)) for found in files for text in _texts_of(found)]
    texts = [sentences for sentences in texts if sentences]
    wanted = set().union(*texts)
    seen, is_whole = _seen(config.corpus, wanted, shard.get("column", "text"))
    count = sum(sentences <= seen for sentences in texts)
    if not count:
        return ""
    names = [str(found.path) for found in files]
    option = shlex.quote(f"shard.exclude={shlex.join(names)}")
    return (
        f"warning: {'' if is_whole else 'at least '}{count:,} of {len(texts):,} texts of {' and '.join(names)} "
        f"({100 * count / len(texts):.3g} %) stand in the corpus, too: on these a score measures memory; measure on "
        "others (--eval FILE), or leave out the documents of the corpus that share 8 words in a row with them: "
        f"--set {option}"
    )


def _texts_of(found: Found) -> Iterator[str]:
    """Yield the text of each row; both of a pair, or the words, joined."""
    for row in found.rows:
        values = (row[name] for name in ("text", "text_a", "text_b", "tokens") if name in row)
        yield "\n".join(" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)


def _sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text as they are compared: 'Yes, I "do". Ok!' -> yesido (and ok, were it long
    enough)."""
    for sentence in _ENDS.split(_REST.sub("", text.lower())):
        if len(sentence.encode("utf-8", "replace")) >= LEAST:
            yield sentence


def _seen(corpus: Sequence[str], wanted: set[str], column: str) -> tuple[set[str], bool]:
    """Return which of these sentences stand in the corpus, and whether all of it was looked at."""
    with redirect_stderr(StringIO()):  # the stages say it
        sources = [source for source in find_sources(corpus, column=column) if source.bytes]
        budget = SAMPLE_BYTES / sum(source.bytes for source in sources)
        seen: set[str] = set()
        is_whole = True
        for source in sources:
            left = max(1.0, budget * source.bytes)
            try:
                for document in read_documents(source, column, Counter()):
                    seen.update(wanted.intersection(_sentences(document.text)))
                    left -= len(document.text)
                    if left < 0 and budget < 1:
                        is_whole = False
                        break
            except InputError:  # a stage will say it
                continue
    return seen, is_whole
