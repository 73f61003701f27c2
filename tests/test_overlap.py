"""Texts of a labelled file that stand in the corpus are told, whatever their spelling; others are not."""

from launch import labelled, overlap
from launch.settings import MakeConfig
from tests.corpora import write


def test_texts_that_stand_in_the_corpus_are_counted_and_the_remedy_can_be_pasted(tmp_path, monkeypatch):
    sentences = [f"The farmer number {n} went to the market in spring" for n in range(40)]
    for number in range(4):
        part = sentences[number * 5 : number * 5 + 5]
        write(tmp_path / f"texts/{number}.txt", "Something else.\n\n" + '. "'.join(part).upper() + '!"\n')
    rows = "\n".join(f'"{text}, really? No.",{n % 2}' for n, text in enumerate(sentences))
    task = write(tmp_path / "my task.csv", "text,label\n" + rows.replace(", really? No", "") + "\n")
    config = MakeConfig((str(tmp_path / "texts"),), tmp_path / "out", hours=1, task=task)
    told = overlap.overlap_in_words(config, [labelled.look_at(task)])
    assert told.startswith(f"warning: 20 of 40 texts of {task} (50 %) stand in the corpus, too")
    assert told.endswith("task.csv'\"'\"''")
    monkeypatch.setattr(overlap, "SAMPLE_BYTES", 300)
    assert ": at least " in overlap.overlap_in_words(config, [labelled.look_at(task)])
    clean = write(tmp_path / "clean.csv", "text,label\n" + rows + "\n")
    assert overlap.overlap_in_words(config, [labelled.look_at(clean)]) == ""
