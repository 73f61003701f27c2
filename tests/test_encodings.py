"""Text of any encoding comes out as it was written, or is refused: nothing becomes garbage in silence."""

import io
import random
import tarfile
from collections import Counter

import numpy as np
import pytest

from data_prep import dedup, vocab
from data_prep.cli import InputError, parse
from data_prep.store import Store
from data_prep.text import discovery
from data_prep.text.cleaning import excluded_grams
from data_prep.text.corpus import read_documents
from data_prep.text.decoding import damaged_characters, find_encoding, named_encoding
from data_prep.text.discovery import find_sources
from tests.corpora import as_jsonl, files_of, shard, texts, tiny_vocab, write
from tests.dumps import HEAD, page

# A few sentences of a fairy tale, the same in many languages: what a detector has to go by.
TALES = {
    "de": "Früher lebte in einem kleinen Dorf am Fluß ein alter Müller, der hatte drei Söhne. Der "
    "älteste war groß und "
    "fleißig, der mittlere konnte schön singen, und der jüngste saß tagelang vor dem Wäldchen "
    "und hörte den Vögeln zu.",
    "fr": "Il était une fois un vieux meunier qui avait trois fils. L’aîné était fort et courageux, "
    "le deuxième savait "
    "chanter à merveille, et le plus jeune passait ses journées à écouter les oiseaux près de la forêt.",
    "pt": "Era uma vez um velho moleiro que tinha três filhos. O mais velho era forte e trabalhador, "
    "o segundo cantava "
    "muito bem e o mais novo passava os dias a ouvir os pássaros. Então os irmãos começaram a "
    "chorar, mas o pai sorriu com "
    "doçura. Amanhã não haverá pão nem água, disse ele.",
    "sv": "Det var en gång en gammal mjölnare som hade tre söner. Den äldste var stark och flitig, "
    "den mellersta kunde "
    "sjunga vackert och den yngste satt hela dagarna vid skogen och lyssnade på fåglarna.",
    "hu": "Egyszer volt, hol nem volt, volt egyszer egy öreg molnár, akinek három fia volt. A legidősebb erős és "
    "szorgalmas volt, a középső gyönyörűen énekelt, a legkisebb pedig egész nap az erdő szélén hallgatta a madarakat.",
    "th": "กาลครั้งหนึ่งนานมาแล้ว มีคนโม่แป้งแก่คนหนึ่งอาศัยอยู่ในหมู่บ้านเล็กๆ ริมแม่น้ำ เขามีลูกชายสามคน คนโตแข็งแรงและขยัน",
    "pl": "Dawno temu w małej wiosce nad rzeką żył stary młynarz, który miał trzech synów. Najstarszy był silny i "
    "pracowity, średni potrafił pięknie śpiewać, a najmłodszy całymi dniami siedział pod lasem i słuchał ptaków.",
    "tr": "Bir zamanlar küçük bir köyde yaşlı bir değirmenci yaşarmış. Üç oğlu varmış. En büyüğü "
    "güçlü ve çalışkanmış, "
    "ortancası güzel şarkı söylermiş, en küçüğü ise bütün gün ormanın kenarında oturup kuşları dinlermiş.",
    "ru": "Давным-давно в маленькой деревне у реки жил старый мельник, и было у него три сына. Старший был сильным и "
    "трудолюбивым, средний умел красиво петь, а младший целыми днями сидел у леса и слушал птиц.",
    "el": "Μια φορά κι έναν καιρό ζούσε σε ένα μικρό χωριό ένας γέρος μυλωνάς που είχε τρεις γιους. "
    "Ο μεγαλύτερος ήταν "
    "δυνατός και εργατικός, ο μεσαίος τραγουδούσε όμορφα.",
    "he": "לפני שנים רבות חי בכפר קטן ליד הנהר טוחן זקן ולו שלושה בנים. הבכור היה חזק וחרוץ, האמצעי "
    "ידע לשיר יפה, והצעיר ישב כל "
    "היום ליד היער והקשיב לציפורים.",
    "ar": "في قديم الزمان عاش في قرية صغيرة قرب النهر طحان عجوز له ثلاثة أبناء. كان الأكبر قويا ومجتهدا، وكان الأوسط "
    "يحسن الغناء، أما الأصغر فكان يجلس طول النهار قرب الغابة.",
    "hi": "बहुत समय पहले नदी के किनारे एक छोटे से गाँव में एक बूढ़ा चक्कीवाला रहता था। उसके तीन बेटे थे।",
    "ja": "昔々、ある小さな村の川のほとりに、年老いた粉屋が住んでいました。彼には三人の息子がいました"
    "。長男は力が強くて働き者で、"
    "次男は歌がとても上手で、末の息子は一日中森のそばに座って鳥の声を聞いていました。",
    "ko": "옛날 옛적에 강가의 작은 마을에 늙은 방앗간 주인이 살고 있었습니다. 그에게는 세 아들이 "
    "있었습니다. 맏아들은 힘이 세고 "
    "부지런했고, 둘째는 노래를 잘 불렀습니다.",
    "zh": "从前，在一个小村庄的河边，住着一位年老的磨坊主人，他有三个儿子。大儿子强壮又勤劳，二儿子很"
    "会唱歌，小儿子整天坐在森林"
    "旁边听鸟儿唱歌。",
    "tw": "從前，在一個小村莊的河邊，住著一位年老的磨坊主人，他有三個兒子。大兒子強壯又勤勞，二兒子很會唱歌。",
}
GUESSED = [
    *[("de", name) for name in ("latin-1", "cp1252", "iso8859-15", "cp850", "mac_roman")],
    *[("fr", name) for name in ("cp1252", "mac_roman")],
    *[("pt", "cp1252"), ("sv", "latin-1"), ("tr", "cp1254"), ("pl", "cp1250"), ("pl", "iso8859-2")],
    *[("ru", name) for name in ("cp1251", "koi8-r", "iso8859-5", "cp866")],
    *[("el", "cp1253"), ("el", "iso8859-7"), ("he", "cp1255"), ("ar", "cp1256"), ("ar", "iso8859-6")],
    *[("hu", "cp1250"), ("hu", "iso8859-2"), ("th", "cp874"), ("th", "tis-620")],
    *[("ja", name) for name in ("shift_jis", "euc-jp", "iso2022_jp")],
    *[("ko", "euc-kr"), ("ko", "iso2022_kr"), ("zh", "gb18030"), ("zh", "gbk"), ("tw", "big5")],
]
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
ENGLISH = "The merchant bought green valley in the morning. The doctor walked slowly under the bridge.\n" * 60


@pytest.fixture(scope="module")
def vocab_folder(tmp_path_factory):
    return tiny_vocab(tmp_path_factory.mktemp("vocab") / "v")


def read(path, **options):
    return [
        document.text
        for source in find_sources([str(path)], "prose", **options)
        for document in read_documents(source, "text", Counter())
    ]


class TestFinding:
    @pytest.mark.parametrize(("language", "encoding"), GUESSED)
    def test_a_guess_reads_what_was_written(self, tmp_path, capsys, language, encoding):
        path = write(tmp_path / "a.txt", TALES[language].encode(encoding))
        assert read(path) == [TALES[language]]
        assert "a.txt" in capsys.readouterr().err

    @pytest.mark.parametrize("encoding", WIDE)
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_wide_text_is_known_by_its_mark_or_its_zeros(self, tmp_path, encoding, mark):
        for language, tale in TALES.items():
            path = write(tmp_path / f"{language}.txt", f"{mark}{tale}\n".encode(encoding))
            assert read(path) == [tale]
            assert find_sources([str(path)])[0].encoding == encoding

    def test_utf8_stays_utf8_with_and_without_a_mark_and_with_broken_bytes(self, tmp_path):
        draw = random.Random(0)
        for language, tale in TALES.items():
            for mark in (b"", b"\xef\xbb\xbf"):
                source = find_sources([str(write(tmp_path / "a.txt", mark + tale.encode()))])[0]
                assert (source.encoding, source.is_stream) == ("", False)
            broken = bytearray(tale.encode() * 20)
            for _ in range(5):
                broken[draw.randrange(len(broken))] = draw.randrange(128, 256)
            assert find_encoding([bytes(broken)]).encoding == "", language
        for raw in (b"Good line.\nBad \xff line.\n", b"Nul \x00 and\x00.\n\nNext.\n", b"cut \xe2\x80", b"", b"\n"):
            assert find_encoding([raw]) == ("", "")

    def test_a_few_letters_among_much_english_are_enough(self):
        for extra, encoding in (("für Grüße. ", "latin-1"), ("It’s a “café”. ", "cp1252")):
            raw = (ENGLISH + extra + ENGLISH).encode(encoding)
            assert raw.decode(find_encoding([raw]).encoding) == ENGLISH + extra + ENGLISH

    @pytest.mark.parametrize("sign", "£20|5 µg|20 m²|½ cup|§5|5 ± 2|2×3|5\xa0mg|38°|“so”|¿Que?|20 €|®".split("|"))
    def test_signs_among_english_are_signs_and_not_chinese(self, sign):
        for text in (f"It was {sign} then. {ENGLISH}" * 30, f"{sign} for the patient", f"The patient had {sign}"):
            for encoding in ("latin-1", "cp1252", "iso8859-15"):
                raw = text.encode(encoding, "ignore")
                assert raw.decode(find_encoding([raw], whole=True).encoding or "utf-8") == raw.decode(encoding)

    @pytest.mark.parametrize(
        ("language", "encoding"), [("el", "cp1253"), ("pl", "cp1250"), ("pl", "iso8859-2"), ("ru", "iso8859-5")]
    )
    def test_capitals_that_are_utf8_by_chance_are_guessed_too(self, language, encoding):
        raw = TALES[language].upper().encode(encoding)
        assert raw.decode(find_encoding([raw]).encoding) == raw.decode(encoding)

    @pytest.mark.parametrize(
        ("language", "encoding"), [("ru", "cp1251"), ("he", "cp1255"), ("el", "cp1253"), ("th", "cp874")]
    )
    def test_files_of_two_encodings_put_together_are_damage(self, language, encoding):
        tale = TALES[language]
        raw = tale.encode() + b"\n" + b"\n".join([tale.encode(encoding)] * 5)
        assert find_encoding([raw]).encoding == ""

    def test_a_word_at_the_very_ends_of_a_text_counts(self):
        for text in ("Ein altes Café", "“Hello,", "für"):
            assert find_encoding([text.encode("cp1252")], whole=True).encoding == "cp1252"

    def test_two_encodings_in_one_file_are_damage_not_a_guess(self):
        raw = "It’s a “café”. ".encode() + "It’s a “café”. ".encode("cp1252")
        assert find_encoding([raw]).encoding == ""

    def test_what_only_later_pieces_show_counts_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr(discovery, "HEAD_BYTES", 2000)
        path = write(tmp_path / "a.txt", (ENGLISH + TALES["de"] + "\n" + ENGLISH).encode("cp1252"))
        assert find_sources([str(path)])[0].encoding == "cp1252"

    def test_pieces_are_cut_within_characters(self, tmp_path, monkeypatch):
        for size in range(900, 903):
            monkeypatch.setattr(discovery, "HEAD_BYTES", size)
            monkeypatch.setattr(discovery, "PROBE_BYTES", size)
            for language, encoding in (("zh", "utf-8"), ("zh", "gb18030"), ("ja", "shift_jis"), ("ru", "utf-16-le")):
                path = write(tmp_path / "a.txt", ((TALES[language] + "\n") * 30).encode(encoding))
                assert " ".join(read(path)).replace("\n", " ") == " ".join([TALES[language]] * 30)


class TestNaming:
    def test_a_named_encoding_is_that_of_all_files_but_those_with_a_mark(self, tmp_path, capsys):
        write(tmp_path / "a.txt", TALES["sv"].encode("latin-1"))
        write(tmp_path / "b.txt", ("\ufeff" + TALES["sv"]).encode())
        write(tmp_path / "c.txt", ("\ufeff" + TALES["sv"]).encode("utf-16-le"))
        assert read(tmp_path, encoding="ISO_8859-1") == [TALES["sv"]] * 3
        assert "a guess" not in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["utf-9", "rot13", "base64", "idna", "unicode_escape", "", "a\x1bb"])
    def test_unknown_names_are_refused(self, tmp_path, name):
        with pytest.raises(InputError, match=r"--encoding .*is (not known|no encoding of texts)"):
            find_sources([str(write(tmp_path / "a.txt", "text"))], encoding=name)

    def test_a_named_encoding_is_read_strictly(self, vocab_folder, tmp_path):
        write(tmp_path / "c/a.txt", ENGLISH.encode() + b"Bad \x81 line.\n")
        arguments = (tmp_path / "c", vocab_folder, tmp_path / "store", "--encoding", "cp1252")
        done = shard(*arguments)
        assert done.returncode == 2
        assert "a.txt, read as cp1252: 0.02 % of its characters are damaged" in done.stderr
        assert not (tmp_path / "store/manifest.json").exists()
        assert shard(*arguments, "--max_damaged", "0.001").returncode == 0
        assert Store.open(tmp_path / "store").manifest.counts.invalid_utf8 == 1

    @pytest.mark.parametrize("share", ["nan", "-0.1", "1.5", "inf"])
    def test_a_limit_that_is_no_share_is_refused(self, vocab_folder, tmp_path, share):
        write(tmp_path / "c/a.txt", ENGLISH)
        done = shard(tmp_path / "c", vocab_folder, tmp_path / "store", "--max_damaged", share)
        assert (done.returncode, f"--max_damaged {share} must lie in [0, 1]" in done.stderr) == (2, True)

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
    def test_utf16_and_utf32_can_be_named_without_an_order_of_bytes(self, tmp_path, encoding):
        write(tmp_path / "a.txt", TALES["de"].encode(encoding))
        write(tmp_path / "marked.txt", f"\ufeff{TALES['zh']}".encode(encoding))
        assert read(tmp_path, encoding=encoding[:6]) == [TALES["de"], TALES["zh"]]

    def test_utf8_can_be_named(self):
        assert [named_encoding(name) for name in ("UTF8", "utf_8_sig", "U8")] == ["utf-8"] * 3


def stores_of(folder, vocab_folder, tmp_path, *options):
    """The shards made by one worker and by two, which are the same."""
    made = []
    for workers in (1, 2):
        out = tmp_path / f"{folder.name}-{workers}"
        done = shard(folder, vocab_folder, out, "--shard_mb", "0.02", *options, workers=workers)
        assert done.returncode == 0, done.stderr
        made.append(files_of(out))
    assert made[0] == made[1]
    return made[0], Store.open(tmp_path / f"{folder.name}-1")


def tokens_of(store):
    return np.concatenate([part.tokens for part in store.shards]).tolist()


class TestStores:
    @pytest.mark.slow
    def test_the_same_text_in_any_encoding_and_compression_gives_the_same_tokens(self, vocab_folder, tmp_path, capfd):
        text = as_jsonl([["Über naïve Müller, der saß.", *document] for document in texts(300, seed=3)])
        text = text.replace("中文", "Zürich")  # which cp1252 has
        write(tmp_path / "utf8/a.jsonl", text)
        _, wanted = stores_of(tmp_path / "utf8", vocab_folder, tmp_path)
        assert not wanted.manifest.sources[0].encoding
        for encoding, suffix in (("utf-16", ""), ("cp1252", ""), ("cp1252", ".gz"), ("utf-16-be", ".zst")):
            folder = tmp_path / f"{encoding}{suffix}"
            write(folder / f"a.jsonl{suffix}", text.encode(encoding))
            _, store = stores_of(folder, vocab_folder, tmp_path)
            assert tokens_of(store) == tokens_of(wanted)
            read_as = {"utf-16": "utf-16-le"}.get(encoding, encoding)
            assert store.manifest.sources[0].encoding == read_as
            assert f"read as {read_as}: " in capfd.readouterr().err
            assert store.manifest.irregularities == {}

    def test_members_of_archives_have_encodings_of_their_own(self, vocab_folder, tmp_path, capfd):
        (tmp_path / "c").mkdir()
        with tarfile.open(tmp_path / "c/a.tar", "w") as archive:
            for name, encoding in (("de", "cp1252"), ("ru", "utf-16"), ("sv", "utf-8"), ("pl", "cp1250")):
                raw = TALES[name].encode(encoding)
                member = tarfile.TarInfo(f"{name}.txt")
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
        source = find_sources([str(tmp_path / "c")])[0]
        found = [document.text for document in read_documents(source, "text", Counter())]
        assert found == [TALES[name] for name in ("de", "ru", "sv", "pl")]
        assert shard(tmp_path / "c", vocab_folder, tmp_path / "store").returncode == 0
        said = capfd.readouterr().err
        assert "read as cp1252: a guess: c/a.tar/de.txt (--encoding NAME to say otherwise)" in said
        assert Store.open(tmp_path / "store").manifest.irregularities == {
            "c/a.tar": {"members_in_cp1250": 1, "members_in_cp1252": 1, "members_in_utf-16-le": 1}
        }

    def test_dumps_say_their_encoding(self, tmp_path):
        texts_of = {}
        for encoding in ("utf-8", "utf-16", "windows-1252", "gb18030", "shift_jis"):
            text = (
                f'<?xml version="1.0" encoding="{encoding}"?>\n' + HEAD + page(1, "Straße, Москва, 村") + "</mediawiki>"
            )
            texts_of[encoding] = read(write(tmp_path / f"{encoding}.xml", text.encode(encoding, "xmlcharrefreplace")))
        assert texts_of["utf-8"] == ["Seite 1\n\nStraße, Москва, 村"]
        assert all(found == texts_of["utf-8"] for found in texts_of.values())


class TestDamage:
    def test_characters_that_no_text_should_hold_are_counted(self):
        for text, count in (
            ("plain\ttext\n\r\x0c", 0),
            ("«é» \xa0", 0),
            ("a\x00b\x1bc\x7f", 3),
            ("\x93q\x94 \ufffd", 3),
        ):
            for longer in (text, text + "long enough for numpy " * 40):
                assert damaged_characters(longer, longer.encode()) == count

    def test_many_short_files_with_a_little_damage_each_are_much_together(self, vocab_folder, tmp_path):
        for number in range(20):
            write(tmp_path / f"c/{number}.txt", f"a stone \ufffd\ufffd\ufffd walked {number}")
        arguments = tmp_path / "c", vocab_folder, tmp_path / "store"
        done = shard(*arguments)
        assert (done.returncode, "the corpus as a whole, c/0.txt and others: " in done.stderr) == (2, True)
        with pytest.raises(InputError, match="the corpus as a whole"):
            vocab.main(parse(vocab.VocabConfig, None, ["--corpus", str(tmp_path / "c"), "--out", str(tmp_path / "v")]))
        assert shard(*arguments, "--max_damaged", "0.5").returncode == 0

    def test_a_file_that_is_mostly_damage_is_refused_at_once(self, vocab_folder, tmp_path):
        write(tmp_path / "c/a.txt", ENGLISH)
        write(tmp_path / "c/b.txt", random.Random(0).randbytes(50_000))
        done = shard(tmp_path / "c", vocab_folder, tmp_path / "store")
        assert done.returncode == 2
        assert "b.txt, read as " in done.stderr
        assert "--encoding NAME if it is another, or --max_damaged SHARE" in done.stderr
        assert not (tmp_path / "store").exists()

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    def test_damage_that_the_plan_did_not_see_is_refused_before_anything_is_finished(
        self, vocab_folder, tmp_path, monkeypatch, suffix
    ):
        monkeypatch.setattr(discovery, "HEAD_BYTES", 4000)
        monkeypatch.setattr(discovery, "PROBES", 0)
        write(tmp_path / f"c/a.txt{suffix}", ENGLISH.encode() + b"b\xc3\xc3d " * 400 + ENGLISH.encode())
        arguments = (tmp_path / "c", vocab_folder, tmp_path / "store")
        done = shard(*arguments)
        assert done.returncode == 2
        assert f"a.txt{suffix}, read as utf-8: " in done.stderr
        assert not (tmp_path / "store/manifest.json").exists()
        assert shard(*arguments, "--max_damaged", "0.2").returncode == 0
        assert Store.open(tmp_path / "store").manifest.counts.damaged_characters == 800
        config = ["--corpus", str(tmp_path / "c"), "--out", str(tmp_path / "v"), "--size", "256"]
        with pytest.raises(InputError, match="of its characters are damaged"):
            vocab.main(parse(vocab.VocabConfig, None, config))
        config = ["--corpus", str(tmp_path / "c"), "--out", str(tmp_path / "d.npz"), "--similar", "1", "--workers", "1"]
        with pytest.raises(InputError, match="of its characters are damaged"):
            dedup.main(parse(dedup.DedupConfig, None, config))

    def test_a_few_damaged_characters_of_a_short_text_are_no_reason(self, vocab_folder, tmp_path):
        write(tmp_path / "c/a.txt", b"Bad \xff line.")
        assert shard(tmp_path / "c", vocab_folder, tmp_path / "store").returncode == 0

    def test_latin1_for_what_is_cp1252_is_noticed(self, vocab_folder, tmp_path):
        write(tmp_path / "c/a.txt", ENGLISH.encode() + "“So”, he said.".encode("cp1252"))
        done = shard(tmp_path / "c", vocab_folder, tmp_path / "store", "--encoding", "latin-1")
        assert (done.returncode, "a.txt, read as iso8859-1: " in done.stderr) == (2, True)


def test_vocabularies_are_made_of_what_stores_are_made_of(tmp_path):
    entries = []
    for encoding in ("utf-8", "cp1251", "utf-16"):
        path = write(tmp_path / f"{encoding}.txt", ((TALES["ru"] + "\n\n") * 20).encode(encoding))
        out = tmp_path / encoding
        vocab.main(parse(vocab.VocabConfig, None, ["--corpus", str(path), "--out", str(out), "--size", "256"]))
        entries.append((out / "vocab.txt").read_text("utf-8"))
    assert entries[0] == entries[1] == entries[2]


def test_tests_that_are_kept_out_have_encodings_too(tmp_path):
    grams = []
    for encoding in ("utf-8", "cp1251", "utf-16"):
        for suffix in (".tsv", ".txt"):
            text = f"text\tlabel\n{TALES['ru']}\t1\n" if suffix == ".tsv" else TALES["ru"]
            grams.append(excluded_grams([write(tmp_path / f"{encoding}{suffix}", text.encode(encoding))]))
    assert grams[0]
    assert all(grams[0] <= found for found in grams)
