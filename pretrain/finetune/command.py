"""Fine-tune a Hugging Face folder on labelled text and say how good it is.

    python -m pretrain.finetune hf --task classify --train train.tsv --eval dev.tsv --out tuned
    python -m pretrain.finetune hf --task classify --train train.tsv --eval dev.tsv --out tuned --seeds 5 --lr 2e-4
    python -m pretrain.finetune hf --task classify --train train.tsv --eval dev.tsv --out raw --seeds 5 --from_scratch
    python -m pretrain.finetune hf --task qa --train squad.json --eval dev.json --out reader --seq_len 384
    python -m pretrain.finetune hf --task choice --train swag.csv --eval dev.csv --out chooser --batch_size 8
    python -m pretrain.finetune hf --task seq2seq --decoder hf_de --train en_de.tsv --eval dev.tsv --out translator
    python -m pretrain.finetune --compare tuned raw          the difference of two results, with its interval

Files are .csv or .tsv (a header line; quoted as pandas and spreadsheets do, or a .tsv without quoting), .jsonl,
.parquet, or CoNLL (a word and its tags a line). Columns by task: classify: text, label. pair: text_a, text_b, label.
multilabel: either of both, label a|b or a list, or for each label a column of 0 and 1. regress: either of both, label a
number in any unit. tag: tokens, tags, both lists; tags as BIO, IOB1, BIOES, BILOU, BMES or without spans, or numbers
with --label_names. Other names are known, too (sentence, intent; question, sentence; sentence1, sentence2; premise,
hypothesis; ner_tags; Satz, Kategorie, ...); any other by --text, --pair and --label.

qa reads SQuAD's JSON (1.1, 2.0), or question, context and answers (.jsonl, .parquet); scores are those of SQuAD's
scripts. Where questions have no answer, one is withheld if none is likelier; best_f1 is F1 at the threshold that is
best for --eval, as SQuAD's script has it, and predict goes by that. seq2seq: source, target; text, summary; en, de; or
--text and --label; the half that reads and the half that writes begin as the two folders, and scores are sacrebleu's.

choice: what options go on from, the options, and which is right, as SWAG (sent1, sent2, ending0, ..., label), RACE
(article, question, options, answer), COPA (premise, question, choice1, choice2, label) and CommonsenseQA (question,
choices, answerKey) have them; or question, A, B, C, ..., answer. An answer is a letter, a number from 0 on, or what the
file calls the option. Rows may have any number of options, and each is read with the whole text: a step of --batch_size
32 with four options is one of 128 texts. Any other column by --text, --pair (a question about the text) and --label.

OUT holds the model of the first seed, for pretrain.predict or plain transformers, and results.json: the scores of
every seed, their mean, standard deviation and the half-width of the 95 % confidence interval. The first seed is kept,
not the best one: a model picked by its score on the evaluation file would no longer have that score elsewhere. So
--patience picks an epoch, and multilabel its threshold, by a tenth of the training file. predictions.jsonl holds each
example with its answers; confusion.png and curve.png are pictures of them and of the training loss.

Beside the score of classify and pair stand that of a bag of words on the same files, and that of always answering the
commonest label, beside that of choice always the commonest place, and guessing: what a model is worth is the distance
from these. Where it is no better than guessing, that is said.

A long fine-tuning is saved every --save_minutes in OUT.progress, and when SIGTERM or Ctrl-C comes (exit code 75): the
same command goes on from there, with the result that it would have had. Seeds that are done are not trained again.

The default --lr is 3e-4 for 128 to 256 units, 1e-4 for 512, 5e-5 for 768, 3e-5 above: small models need more, and a
weak encoder learns nothing from 5e-5. One seed of a small file says little; judge pretraining by 5 seeds against
--from_scratch.
"""

from contextlib import closing

from data_prep.interpreter import importing
from pretrain.finetune.config import FinetuneConfig as FinetuneConfig
from pretrain.finetune.examples import read_examples
from pretrain.finetune.learning.unfinished import Unfinished
from pretrain.hf_files import forbid_network
from pretrain.stop import StopRequests


def main(config: FinetuneConfig) -> None:
    """Fine-tune, write the folder, print the score.

    Raises
    ------
    InputError: a file, a folder or an option that does not fit, or another command under way for --out.
    SystemExit: of code 75, where it was asked to stop; what it has is saved then.
    """
    examples = read_examples(config)
    Unfinished(config).check()
    forbid_network()
    with closing(StopRequests(is_rank=False)) as stop:
        # Behind all that can be refused at once: torch, transformers and scikit-learn take seconds.
        with importing():
            from pretrain.finetune.trainer import fine_tune_and_report

        fine_tune_and_report(config, examples, stop)
