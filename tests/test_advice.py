"""Advice: the rules as pure functions, the survey on small texts, what the command prints, and what a plan warns of."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.cli import InputError
from data_prep.text.corpus import Document
from pretrain.advice import cautions, command, machine, rules
from pretrain.advice import survey as surveys
from pretrain.advice.advice import ENGLISH, Advice, advise, advised
from pretrain.advice.machine import Machine
from pretrain.advice.survey import Survey, looked_into, summed_up, survey
from pretrain.advice.tables import found_in_words
from pretrain.settings.config import TrainConfig
from pretrain.settings.shape import PRESETS, Shape
from pretrain.sizes import parameters, token_flops
from tests.corpora import write

LAPTOP = Machine("CPU", 2, 100e9, 12e9, False, True, "fp32", 1.0, cores=2)  # 200 GFLOP/s: the machine of docs/log.md
# Words as frequent as in a language: the one of rank r occurs TEXT / r times.
ZIPF = tuple(int(1e5 / rank) for rank in range(1, 40_000))


def text(**changes: object) -> Survey:
    """8 MB of English."""
    usual: dict[str, object] = dict(
        sources=1, text_bytes=8e6, documents=2000.0, sentences=8e4, chars=8e6, alphabet=90, sample_bytes=8_000_000,
        frequent=ZIPF, lengths=tuple(3 + rank % 9 for rank in range(len(ZIPF))), signs=2e5, languages={"en": 1.0},
        capitals=0.03, told_by="py3langid",
    )  # fmt: skip
    return ENGLISH._replace(**usual | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "lang", "is_cased"),
    [
        (dict(), "en", False),
        (dict(), "de", True),  # nouns
        (dict(marks=0.03), "fr", True),  # accents
        (dict(marks=0.2, capitals=0.0), "hi", True),  # vowel signs are marks, which lower-casing strips
        (dict(marks=0.0, capitals=0.0, scripts={"Han": 1.0}), "zh", True),  # for the Latin words in it
        (dict(marks=0.0, capitals=0.0, scripts={"Georgian": 1.0}), "", False),
    ],
)
def test_case_is_kept_where_it_means_something(found, lang, is_cased):
    value, why = rules.cased(text(**found), lang)
    assert value is is_cased
    assert why


@pytest.mark.parametrize(
    ("scripts", "kind"),
    [({"Latin": 1.0}, "wordpiece"), ({"Han": 1.0}, "wordpiece"), ({"Thai": 0.9, "Latin": 0.1}, "unigram"),
     ({"Han": 0.5, "Hiragana": 0.4}, "unigram"), ({"Latin": 0.95, "Thai": 0.05}, "wordpiece")],
)  # fmt: skip
def test_scripts_without_spaces_get_a_vocabulary_that_finds_words(scripts, kind):
    assert rules.vocab_kind(text(scripts=scripts))[0] == kind


def test_the_vocabulary_grows_with_the_text_and_with_what_is_trained_on():
    sizes = [rules.vocab_size(text(text_bytes=8e6 * times))[0] for times in (0.02, 0.3, 1, 10, 1000)]
    assert sizes == [1024, 2048, 4096, 30528, 30528]
    large = text(text_bytes=8e9)
    assert rules.vocab_size(large, tokens=1e6)[0] < rules.vocab_size(large)[0]
    assert rules.vocab_size(large, shape=PRESETS["bert-mini"])[0] == 12288  # no more weights than in its layers
    assert rules.vocab_size(text(han=6000, scripts={"Han": 1.0}))[0] == 8192  # each character is an entry
    assert rules.vocab_size(ENGLISH)[0] == 30528


def test_tokens_are_counted_as_a_vocabulary_would_cut_words():
    # 10 words of 12 letters, each a thousand times, and 90,000 words of one letter: all of them in a large vocabulary.
    few = text(frequent=(90_000, *[1000] * 10), lengths=(1, *[12] * 10), signs=0.0, alphabet=20)
    assert rules.token_count(few, 8192) == pytest.approx(100_000)
    assert rules.token_count(few, 61) > 130_000
    assert rules.token_count(few, 8192) < rules.token_count(few, 61)


@pytest.mark.parametrize(
    ("hours", "megabytes", "name"),
    [(0.1, 90, "bert-tiny"), (3, 90, "bert-mini"), (24 * 7, 1000, "bert-small"), (24 * 7, 0.5, "bert-tiny")],
)
def test_the_model_is_the_largest_that_gets_the_tokens_it_wants_of_text_that_is_not_worn_out(hours, megabytes, name):
    tokens = megabytes * 1e6 / 4.2
    chosen, larger = rules.model(rules.paces(LAPTOP, hours, 8192, tokens))
    why = rules.why_model(chosen, larger, hours)
    assert chosen.model == name
    assert "tokens/s" in why


def test_large_machines_get_large_models():
    day = {ranks: advised(ENGLISH, machine.machine_named("a100", ranks), 24, tokens=11e9) for ranks in (1, 8)}
    assert [advice.settings["model"] for advice in day.values()] == ["bert-base", "bert-large"]
    eight = day[8].settings
    assert eight["global_batch"] == 4096
    assert eight["seq_len"] == 128
    assert eight["mask_rate"] == 0.4
    assert len(eight["phases"]) == 2
    assert "seq_len=512" in eight["phases"][1]
    assert eight["precision"] == "bf16"
    assert 1e-4 <= eight["lr"] <= 4e-4
    assert "--hours" not in day[8].commands[0][1]  # phases are steps
    for phase in eight["phases"]:
        numbers = dict(part.split("=") for part in phase.split(","))
        assert int(numbers["global_batch"]) % (8 * int(numbers["micro_batch"])) == 0


def test_repeated_text_is_worth_less_and_less():
    assert rules.worth(5, 10) == 5
    assert 35 < rules.worth(40, 10) < 40  # four passes are nearly as good as new (Muennighoff et al.)
    assert rules.worth(1e6, 10) == pytest.approx(10 + 10 * rules.HALF_WORTH)


def test_the_rate_goes_with_the_batch_between_published_points():
    assert rules.learning_rate("bert-mini", 4096)[0] == 1e-3
    assert rules.learning_rate("bert-base", 256 * 512)[0] == 1e-4  # Devlin et al.
    assert rules.learning_rate("bert-base", 8192 * 512)[0] == 6e-4  # Liu et al.
    assert rules.step_tokens(13e6)[0] == 4096
    assert rules.step_tokens(2e6)[0] == 2048
    assert rules.step_tokens(18e9)[0] == 1 << 19
    assert rules.dropout(0.5)[0] == 0.0
    assert rules.dropout(3.5)[0] == 0.1
    assert rules.seq_len(50e6, 500)[0] == 64
    assert rules.seq_len(1e9, 500)[0] == 128
    assert rules.seq_len(1e9, 15)[0] == 32


def test_a_cpu_with_bf16_units_trains_in_bf16_what_is_large_enough():
    modern = LAPTOP._replace(precision="bf16")
    chosen = {
        name: [
            advised(text(text_bytes=9e7), each, 3, corpus=["texts"], wanted={"model": name})
            for each in (LAPTOP, modern)
        ]
        for name in ("bert-tiny", "bert-mini")
    }
    for name, precision in (("bert-tiny", "fp32"), ("bert-mini", "bf16")):
        before, after = chosen[name]
        assert (before.settings["precision"], after.settings["precision"]) == ("fp32", precision)
        assert ("--precision bf16" in " ".join(dict(after.commands)["train"])) == (precision == "bf16")
    reasons = [advice.reasons["precision"] for advices in chosen.values() for advice in advices]
    assert reasons[0] == reasons[2] == "cores without units for bf16"
    assert reasons[1] == "so small a model is slower in bf16"
    assert reasons[3].startswith("these cores have units for it")
    plain, fast = (advice.settings["tokens_per_second"] for advice in chosen["bert-mini"])
    assert fast == pytest.approx(1.9 * plain, rel=0.01)
    asked = advised(
        text(text_bytes=9e7), modern, 3, corpus=["texts"], wanted={"model": "bert-mini", "precision": "fp32"}
    )
    assert (asked.settings["precision"], asked.settings["tokens_per_second"]) == ("fp32", plain)


@pytest.mark.parametrize(
    ("flags", "has"), [("fpu avx512f avx512_bf16", True), ("fpu amx_bf16", True), ("fpu avx512f", False)]
)
def test_bf16_units_are_told_by_the_flags_of_the_cpu(flags, has, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    assert machine.has_bf16_units() == has
    info.unlink()  # as on macOS
    assert not machine.has_bf16_units()


def test_what_does_not_fit_is_divided_or_said():
    small_gpu = Machine("X", 1, 1e14, 2e9, True, False, "bf16", 0.4)
    assert rules.stage_and_micro_batch("bert-large", small_gpu, 30528, 128, 64)[1] == 0  # 5.4 GB of state
    stage, micro = rules.stage_and_micro_batch("bert-large", small_gpu._replace(ranks=64), 30528, 128, 64)
    assert (stage, micro) == (3, 8)
    fitting = [pace.model for pace in rules.paces(small_gpu, 24, 30528, 1e10)]
    assert fitting == ["bert-tiny", "bert-mini", "bert-small", "bert-medium"]


def test_speeds_are_those_that_were_measured():
    # docs/log.md: two ranks made 5,500 to 6,100 tokens/s of bert-mini, and 23,000 of bert-tiny.
    speed = {name: LAPTOP.tokens_per_second(PRESETS[name], 8192, 120, 0.15) for name in ("bert-tiny", "bert-mini")}
    assert speed["bert-mini"] == pytest.approx(5800, rel=0.15)
    assert speed["bert-tiny"] == pytest.approx(20000, rel=0.3)
    # NVIDIA: 580 sequences of 128 tokens a second of BERT-large on an A100.
    a100 = machine.machine_named("A100").tokens_per_second(PRESETS["bert-large"], 30528, 128, 0.15)
    assert 0.7 * 580 * 128 < a100 < 580 * 128
    # A GPU cannot do more than a few hundred steps a second, however small they are.
    assert machine.machine_named("h200").tokens_per_second(PRESETS["bert-tiny"], 1024, 64, 0.15, 1024) < 200_000


def test_weights_are_counted_as_transformers_has_them():
    assert parameters(PRESETS["bert-base"], 30522) == 110_106_428  # bert-base-uncased with both heads
    assert token_flops(PRESETS["bert-base"], 30522, 128, 0.15) == pytest.approx(6 * 85e6, rel=0.1)


@pytest.mark.parametrize(
    ("driver", "sheet"),
    [("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA A100-SXM4-40GB", "a100-40"), ("NVIDIA H100 PCIe", "h100-pcie"),
     ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"), ("Tesla T4", "t4"),
     ("NVIDIA A10", "a10"), ("NVIDIA A10G", "a10g"), ("NVIDIA GeForce RTX 4090", "rtx4090")],
)  # fmt: skip
def test_a_gpu_is_known_by_the_name_its_driver_gives_it(driver, sheet):
    assert machine.sheet_of(driver) is machine.SHEETS[sheet]


def test_a_control_group_limits_cores_and_memory(monkeypatch):
    limits = {"cpu.max": "150000 100000", "memory.max": "1000000000"}
    monkeypatch.setattr(machine, "_control_group", lambda name: limits[name])
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine.usable_cores() == 2
    assert machine.usable_memory() == 1e9
    limits |= {"cpu.max": "max 100000", "memory.max": "max"}
    assert machine.usable_cores() == 8
    assert machine.usable_memory() > 1e9


WARNED = [
    (dict(text_bytes=2e5), 0.1, "too little"),
    (dict(text_bytes=2e6, frequent=ZIPF[:8000], lengths=(5,) * 8000), 300, "passes over the text"),
    (dict(text_bytes=8e9), 72, "on a CPU; one A100"),
    (dict(text_bytes=8e10), 3, "of the text, of which one pass"),
    (dict(text_bytes=2e5), 0.1, "entries of the vocabulary are rare"),
    (dict(one_sentence=0.9), 3, "one sentence: nsp and sop have no pairs"),
    (dict(documents=2.0), 3, "2 documents: none is held out"),
    (dict(languages={"en": 0.6, "de": 0.4}), 3, "several languages (de 40 % beside en)"),
    (dict(), 0.01, "steps are few"),
]


@pytest.mark.parametrize(("found", "hours", "what"), WARNED)
def test_what_is_amiss_is_said_with_a_remedy(found, hours, what):
    advice = advised(text(**found), LAPTOP, hours, corpus=["texts"])
    assert any(what in warning for warning in advice.warnings), advice.warnings


@pytest.mark.parametrize("text", ["  \n\n \n", ".,.,.\n!!\n"])
def test_a_corpus_without_a_word_is_refused(tmp_path, text):
    (tmp_path / "blank.txt").write_text(text)
    with pytest.raises(InputError, match=r"--corpus .*blank\.txt: no word was found"):
        advise([str(tmp_path / "blank.txt")], 1.0)


def test_long_samples_are_shared_by_all_ranks():
    assert rules.phases(1e12, 1e3, 128, 64, 1, 1000, 1e-3, ranks=8)
    assert not rules.phases(1e12, 1e3, 128, 72, 1, 1000, 1e-3, ranks=8)  # 18 long samples a step


def test_a_batch_that_is_asked_for_is_one_that_the_ranks_can_share():
    two = LAPTOP._replace(ranks=2)
    settings = advised(text(text_bytes=9e7), two, 3, corpus=["texts"], wanted={"micro_batch": 24}).settings
    assert settings["micro_batch"] == 24
    assert settings["global_batch"] % 48 == 0
    for wanted in ({"global_batch": 9}, {"global_batch": 8, "micro_batch": 8}):
        with pytest.raises(InputError, match=r"--global_batch \d cannot be dealt out to 2 ranks"):
            advised(text(text_bytes=9e7), two, 3, corpus=["texts"], wanted=wanted)


def test_a_good_plan_has_no_warning():
    assert advised(text(text_bytes=9e7), LAPTOP, 3, corpus=["texts"]).warnings == []


def test_another_language_than_asked_for_is_noticed():
    (warning,) = cautions.of_text(text(languages={"fr": 1.0}), "de", "de")
    assert "looks like fr" in warning
    busy = LAPTOP._replace(busy=3.0)
    assert "3.0 of the 2 cores" in advised(text(text_bytes=9e7), busy, 3, corpus=["texts"]).warnings[0]


def test_the_commands_are_those_of_the_project(tmp_path):
    task = tmp_path / "train.tsv"
    (tmp_path / "dev.tsv").write_text("")
    advice = advised(text(languages={"de": 1.0}), LAPTOP, 3, corpus=["my texts"], task=task, out=tmp_path / "out")
    assert [stage for stage, _ in advice.commands] == ["vocab", "shard", "train", "export", "finetune"]
    words = dict(advice.commands)
    assert "--cased" in words["vocab"]
    assert words["shard"][-2:] == ["--lang", "de"]
    assert words["finetune"][words["finetune"].index("--eval") + 1] == str(tmp_path / "dev.tsv")
    pasted = advice.to_json()["commands"]
    assert "--corpus 'my texts'" in pasted[0]
    assert pasted[2].startswith("RANKS=2 zerobert train --data ")
    options = dict(zip(words["train"][1::2], words["train"][2::2], strict=True))
    settings = {name.removeprefix("--"): value for name, value in options.items()}
    config = TrainConfig(data=("store",), out=Path("run"), model=settings["model"])  # type: ignore[arg-type]
    assert set(settings) <= set(config.to_json())
    assert float(settings["hours"]) == 3


def test_what_is_decided_already_is_taken():
    wanted = {"model": "bert-tiny", "vocab_size": 4096, "lr": 5e-4, "dropout": 0.2}
    advice = advised(text(text_bytes=9e7), LAPTOP, 3, corpus=["texts"], wanted=wanted)
    assert wanted.items() <= advice.settings.items()
    assert advice.reasons["lr"] == advice.reasons["dropout"] == "as asked"


def test_another_shape_and_an_average_are_counted():
    wanted = {"model": "bert-mini", "layers": 12, "hidden": 384, "vocab_size": 4096}
    averaged = wanted | {"average": "ema=.999"}
    plain, usual, more = (
        advised(text(text_bytes=9e7), LAPTOP, 3, corpus=["texts"], wanted=each)
        for each in (wanted, {"model": "bert-mini", "vocab_size": 4096}, averaged)
    )
    memory = plain.found["memory"]
    assert memory["parameters"] == parameters(Shape(12, 384, 6), 4096) > 3 * usual.found["memory"]["parameters"]
    assert plain.settings["tokens_per_second"] < usual.settings["tokens_per_second"] / 3
    ranks = LAPTOP.ranks
    assert more.found["memory"]["state_bytes"] - memory["state_bytes"] == 4 * memory["parameters"] // ranks
    words = dict(more.commands)["train"]
    assert "--layers 12 --hidden 384 --heads 6 --average ema=.999" in " ".join(words)
    assert "--layers" not in dict(usual.commands)["train"]
    assert any("bert-mini 12x384, 6 heads" in value for _, value in found_in_words(plain))
    with pytest.raises(InputError, match="cannot be shared by 5 heads"):
        advised(text(text_bytes=9e7), LAPTOP, 3, corpus=["texts"], wanted=wanted | {"heads": 5})


def documents(*texts: str, lines: bool = False) -> list[Document]:
    return [Document(f"x:{number}", one, lines) for number, one in enumerate(texts)]


def test_a_survey_tells_scripts_marks_and_language():
    german = "Die schöne Müllerin ging über die Brücke. Der Müller blieb im Haus, weil es regnete."
    found = summed_up(documents(german * 5), 1, 1000.0, 1.0)
    assert found.language == "de"
    assert 0.05 < found.marks < 0.1
    assert 0.05 < found.capitals < 0.12
    thai = summed_up(documents("น้ำใจคนไทยอยู่ที่นี่ เด็กไปโรงเรียนทุกวัน" * 5), 1, 1000.0, 1.0)
    assert thai.language == "th"
    assert thai.scripts["Thai"] == 1.0
    assert thai.marks > 0.1
    chinese = summed_up(documents("今天天气很好，我们去公园散步。" * 5), 1, 1000.0, 1.0)
    assert chinese.language == "zh"
    assert chinese.han == 12
    assert chinese.frequent == (10, *(5,) * 11)
    assert chinese.marks == 0


def test_without_py3langid_the_script_tells(monkeypatch):
    def missing() -> None:
        raise ImportError

    monkeypatch.setattr(surveys, "_identifier", missing)
    assert summed_up(documents("今天天气很好。" * 20), 1, 1e3, 1.0).languages == {"zh": 1.0}
    assert summed_up(documents("Anything in Latin letters, of any language." * 5), 1, 1e3, 1.0).languages == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A large file, and 150 small ones, some in another encoding; .6 MB of text."""
    folder = tmp_path_factory.mktemp("texts")
    sentence = "Über den Fluß ging die schöne Müllerin, und Nummer {} ging mit ihr. Dann kam der Winter ins Land."
    (folder / "large.txt").write_text("\n\n\n".join(" ".join([sentence.format(number)] * 4) for number in range(750)))
    for number in range(150):
        paragraphs = "\n\n".join(sentence.format(1000 * number + line) for line in range(20))
        (folder / f"small{number:03}.txt").write_bytes(paragraphs.encode("cp1252" if number % 7 == 0 else "utf-8"))
    return folder


@pytest.mark.parametrize("files", [48, 480])
def test_a_survey_of_a_part_tells_the_size_of_the_whole(folder, monkeypatch, files):
    monkeypatch.setattr(surveys, "FILES", files)
    found = survey([str(folder)])
    assert found.sources == 151
    assert found.text_bytes == pytest.approx(6.4e5, rel=0.05)
    assert found.documents == pytest.approx(900, rel=0.05)
    assert found.sentences == pytest.approx(2 * (750 * 4 + 150 * 20), rel=0.05)
    assert found.language == "de"
    assert found.alphabet < 60, "umlauts of other encodings are read as such"


def test_places_are_spread_over_all_bytes():
    assert looked_into([1e9]) == {0: 48}
    assert set(looked_into([1e9, 1e9, 10])) == {0, 1}
    many = looked_into([4000] * 10_000)
    assert len(many) == 48 * 32
    assert max(many) > 9900
    assert looked_into([]) == {}


def test_the_command_prints_what_scripts_rely_on(folder, capsys, monkeypatch):
    monkeypatch.setattr(machine, "here", lambda ranks=0: LAPTOP)
    command.main(command.AdviceConfig(corpus=(str(folder),), hours=3, json=True))
    found = json.loads(capsys.readouterr().out)
    assert {"model", "vocab_size", "seq_len", "global_batch", "lr", "commands", "reasons", "warnings"} <= found.keys()
    assert found["cased"]
    assert found["lang"] == "de"
    assert " -> " in found["reasons"]["cased"]
    command.main(command.AdviceConfig(tokens=11e9, hours=24, gpu="h100", ranks=8, price=2.5))
    told = capsys.readouterr().out
    for part in ("bert-large", "8 x H100", "assumed MFU 0.30", "480.00", "zerobert train", "RANKS=8"):
        assert part in told
    with pytest.raises(InputError, match=r"--gpu a9000 is not known; known are .*a100"):
        command.main(command.AdviceConfig(tokens=1e9, gpu="a9000"))
    with pytest.raises(InputError, match="nothing to plan for"):
        command.AdviceConfig()


def test_advice_needs_no_torch():
    code = (
        "import sys, pretrain.advice.command; sys.exit(bool({'torch', 'transformers', 'deepspeed'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_a_record_is_plain_json():
    advice = advised(text(), LAPTOP, 3, corpus=["texts"])
    assert isinstance(advice, Advice)
    assert json.loads(json.dumps(advice.to_json()))["found"]["text"]["documents"] == 2000


def test_what_is_read_whole_is_counted_as_a_store_counts_it(tmp_path):
    document = "\n\n".join(f"The paragraph {n} says a word or two about the town and its river." for n in range(90))
    write(tmp_path / "texts/a.txt", "\n\n\n".join([document] * 40))  # more than is read at a place
    for number in range(30):
        write(tmp_path / f"texts/{number}.txt", document)
    pq.write_table(pa.table({"text": [document] * 20 + [""] * 5}), tmp_path / "texts/b.parquet")
    assert survey([str(tmp_path / "texts")]).documents == 40 + 30 + 20
