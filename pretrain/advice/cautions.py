"""What is amiss with a plan, each in one line with its remedy; nothing where all is well.

Shared by the advice before there is a store, and by the plan of a run (pretrain/monitor/plan.py).
"""

from collections.abc import Iterator

from data_prep.sharding.held_out import FEWEST
from pretrain.advice import rules
from pretrain.advice.survey import Survey
from pretrain.formatting import bytes_in_words, counted, duration

MIXED = 0.1  # share of the text in a second language that is worth a word
BUSY = 0.5  # of the cores, by other programs
LITTLE_OF_IT = 0.1  # of a pass


def of_text(text: Survey, language: str, asked: str) -> Iterator[str]:
    """Yield what is amiss with a corpus by itself; `asked` is the language that the user named, if any."""
    if text.text_bytes < rules.LITTLE_TEXT:
        yield (
            f"{bytes_in_words(text.text_bytes)} of text is too little to learn a language from: give 10 MB or "
            "more, or let a trained model go on with it (train --init_from HF_FOLDER)"
        )
    if text.documents < FEWEST:
        what = f"{text.documents:.0f} document{'s' * (text.documents >= 1.5)}"
        yield (
            f"{what}: none is held out, so the run cannot say how well it learns; put blank lines between documents "
            f"(two in prose), or give {FEWEST} files or more"
        )
    if text.one_sentence > rules.ONE_SENTENCE:
        yield (
            f"{100 * text.one_sentence:.0f} % of the documents are one sentence: nsp and sop have no pairs there, so "
            "keep --objective mlm; if they are longer in truth, put blank lines between documents only, or say "
            "--txt prose"
        )
    if asked and text.languages and asked not in text.languages:
        yield f"--lang {asked}, but the text looks like {text.language} (by {text.told_by}); is it the right text?"
        return
    others = {name: share for name, share in text.languages.items() if name != language and share > MIXED}
    if others:
        told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in others.items())
        yield (
            f"the text is in several languages ({told} beside {language}), which a small model learns at each other's "
            f"cost: shard --only_lang {language} leaves the others out"
        )


def rare_entries(vocab_size: int, met_by_half: float, remedy: str) -> Iterator[str]:
    """Yield the caution about a vocabulary of which half the entries are met so often, or less."""
    if met_by_half < rules.LEAST_SEEN:
        met = f"met {counted(met_by_half)} times or less" if met_by_half >= 1 else "met hardly ever"
        yield (
            f"most of the {vocab_size:,} entries of the vocabulary are rare, {met}: hardly anything is learnt of them; "
            f"{remedy}"
        )


def many_passes(passes: float, enough: str) -> Iterator[str]:
    """Yield the caution about a run over so little text; `enough` is the option that would do, if there is one."""
    if passes > rules.MANY_PASSES:
        yield (
            f"{counted(passes)} passes over the text, and after {rules.MANY_PASSES} another teaches hardly anything: "
            + (f"{enough} would do, or give more text" if enough else "give more text")
        )


def days_on_a_cpu(seconds: float, on_a_gpu: float) -> Iterator[str]:
    """Yield the caution about a run that takes so long here, and so long on an A100."""
    if seconds >= 86400 * rules.CPU_DAYS:
        yield (
            f"{duration(seconds)} on a CPU; one A100 takes about {duration(on_a_gpu)} for as many tokens (--gpu a100 "
            "plans for it); else a smaller model, or fewer tokens"
        )


def little_of_it(passes: float, seconds: float) -> Iterator[str]:
    """Yield the caution about a run that does not come far into the text."""
    if passes < LITTLE_OF_IT:
        yield (
            f"{duration(seconds)} meet only {100 * passes:.2g} % of the text, of which one pass takes "
            f"{duration(seconds / passes)} here: give a part of it to --corpus, or take a GPU"
        )


def few_steps(steps: int, enough: str) -> Iterator[str]:
    """Yield the caution about a run that ends on the plateau; `enough` is the option that leads beyond it."""
    if steps < rules.PLATEAU:
        yield (
            f"{steps:,} steps are few: which words are frequent is learnt in the first {rules.PLATEAU:,}, what goes "
            f"with what only then; give {enough} or more"
        )


def too_large(model: str, memory: float) -> str:
    """Return the caution about a model that no ZeRO stage brings into the memory."""
    return (
        f"{model} does not fit into {memory / 1e9:.0f} GB per rank: give more --ranks, among which ZeRO divides its "
        "state, or train with --checkpoint_activations"
    )


def busy(used: float, cores: int, so: str) -> Iterator[str]:
    """Yield the caution about a machine on which others compute, and what follows from that."""
    if used > BUSY * cores:
        yield f"other programs wanted {used:.1f} of the {cores} cores when this was planned: {so}"
