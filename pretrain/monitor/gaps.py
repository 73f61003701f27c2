"""What a model puts into gaps, in words: the text of TensorBoard that shows that it learns.

gaps_in_words(batch, answers, vocab) -> Markdown, a paragraph a sample
"""

from tokenizers import Tokenizer

from pretrain.model import Answers, Batch

SAMPLES = 4
MARKUP = str.maketrans({sign: f"\\{sign}" for sign in "*_#<>`[]|"})


def gaps_in_words(batch: Batch, answers: Answers, vocab: Tokenizer) -> str:
    """Return the first samples of a batch: "the **cat** (dog, 12%) sat" where cat was hidden, taken for dog."""
    masked = batch.head_rows[batch.mlm_index].tolist()
    columns = (batch.mlm_labels.tolist(), answers.token.tolist(), answers.probability.tolist())
    hidden = dict(zip(masked, zip(*columns, strict=True), strict=True))
    ids, lines, first = batch.input_ids.tolist(), [], 0
    for length in batch.seqlens.lengths[:SAMPLES]:
        words = []
        for row in range(first, first + length):
            if row not in hidden:
                words.append(_word(vocab, ids[row]))
                continue
            true, guess, probability = hidden[row]
            taken = "right" if guess == true else _word(vocab, guess)
            words.append(f"**{_word(vocab, true)}** ({taken}, {probability:.0%})")
        lines.append(" ".join(words))
        first += length
    return "\n\n".join(lines)


def _word(vocab: Tokenizer, token: int) -> str:
    return (vocab.id_to_token(token) or "?").translate(MARKUP)
