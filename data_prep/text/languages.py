# ruff: noqa: RUF001
"""Languages: the one table of what a code means for vocabulary and sentences, and what a vocabulary would lose.

    defaults("de")          -> German, Latin script, cased: nouns begin with capitals, ...; Punkt has "german"
    defaults("zh-Hant-TW"), defaults("ger"), defaults("German") likewise: regions and scripts in a code add nothing
    what_uncased_loses(["Das ist schön, aber schon alt."])  -> 1 of 23 letters; schön -> schon

A code is one of ISO 639: of two letters, or three where there are no two; `mul` stands for several languages, `und` for
none in particular. Abbreviations, after which a dot ends no sentence, are in `RULES`; how the stops of scripts work is
told in sentences.py, which needs no code for it.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Literal, NamedTuple

from data_prep.errors import InputError


class LanguageDefaults(NamedTuple):
    """What is sensible for texts of one language, and why."""

    code: str  # of two letters, where there are two
    name: str
    script: str
    cased: bool  # whether a vocabulary shall keep case and accents
    why: str  # what an uncased one would lose; of one that may be uncased, why so
    vocab_kind: Literal["wordpiece", "unigram"]  # unigram where no spaces part words
    sentences: str  # what ends one
    abbreviations: bool  # whether the splitter knows some
    punkt: str  # name of Punkt's model; "": it has none


class _Script(NamedTuple):
    """What all languages of a script have in common."""

    loses: str  # what is lost without case and accents
    sentences: str  # what ends a sentence
    languages: str  # "CODE THREE [THREE] NAME", parted by commas
    spaced: bool = True  # whether spaces part words


_LATIN_STOPS = "a dot, ! or ? before a space and no small letter"
_SIGNS = "vowel signs and the virama are marks, which an uncased vocabulary takes off"
_NO_CASE = "the script has no capitals, and marks stay as they are; Latin words among it keep their case"
_DANDA = "। and ॥, also ! and ?"

_SCRIPTS = {
    "Latin": _Script(
        "accents tell words apart",
        _LATIN_STOPS,
        "ace ace Acehnese, af afr Afrikaans, an arg Aragonese, ast ast Asturian, az aze Azerbaijani, bm bam "
        "Bambara, br bre Breton, bs bos Bosnian, bcl bcl Central Bikol, ca cat Catalan, ceb ceb Cebuano, co cos "
        "Corsican, cs ces cze Czech, cy cym wel Welsh, da dan Danish, de deu ger German, ee ewe Ewe, en eng "
        "English, eo epo Esperanto, es spa Spanish, et est Estonian, eu eus baq Basque, ff ful Fulah, fi fin "
        "Finnish, fil fil Filipino, fo fao Faroese, fr fra fre French, fur fur Friulian, fy fry Western Frisian, "
        "ga gle Irish, gd gla Scottish Gaelic, gl glg Galician, gn grn Guarani, gsw gsw Swiss German, ha hau "
        "Hausa, haw haw Hawaiian, hr hrv Croatian, hsb hsb Upper Sorbian, ht hat Haitian Creole, hu hun "
        "Hungarian, ia ina Interlingua, id ind Indonesian, ig ibo Igbo, is isl ice Icelandic, it ita Italian, jv "
        "jav Javanese, ki kik Kikuyu, kl kal Greenlandic, ku kur Kurdish, la lat Latin, lb ltz Luxembourgish, lg "
        "lug Ganda, li lim Limburgish, ln lin Lingala, lt lit Lithuanian, lv lav Latvian, mg mlg Malagasy, mi mri "
        "mao Maori, ms msa may Malay, mt mlt Maltese, nb nob Norwegian Bokmål, nds nds Low German, nl nld dut "
        "Dutch, nn nno Norwegian Nynorsk, no nor Norwegian, kab kab Kabyle, lij lij Ligurian, ltg ltg Latgalian, "
        "pcm pcm Nigerian Pidgin, vec vec Venetian, crh crh Crimean Tatar, ext ext Extremaduran, gcf gcf "
        "Guadeloupean Creole, gcr gcr Guianese Creole, guw guw Gun, nr nbl South Ndebele, nso nso Northern Sotho, "
        "nv nav Navajo, ny nya Chichewa, oc oci Occitan, om orm Oromo, pl pol Polish, pt por Portuguese, qu que "
        "Quechua, rm roh Romansh, rn run Rundi, ro ron rum Romanian, rw kin Kinyarwanda, sc srd Sardinian, se sme "
        "Northern Sami, sk slk slo Slovak, sl slv Slovenian, sm smo Samoan, sn sna Shona, so som Somali, sq sqi "
        "alb Albanian, ss ssw Swati, st sot Southern Sotho, su sun Sundanese, sv swe Swedish, sw swa Swahili, tk "
        "tuk Turkmen, tl tgl Tagalog, tn tsn Tswana, to ton Tongan, tr tur Turkish, ts tso Tsonga, uz uzb Uzbek, "
        "ve ven Venda, vi vie Vietnamese, vo vol Volapük, wa wln Walloon, wo wol Wolof, xh xho Xhosa, yo yor "
        "Yoruba, zu zul Zulu",
    ),
    "Cyrillic": _Script(
        "й and ё are letters of their own, which become и and е",
        _LATIN_STOPS,
        "ab abk Abkhazian, av ava Avaric, ba bak Bashkir, be bel Belarusian, bg bul Bulgarian, ce che Chechen, cu "
        "chu Church Slavic, cv chv Chuvash, kk kaz Kazakh, ky kir Kyrgyz, mk mkd mac Macedonian, mn mon "
        "Mongolian, os oss Ossetian, ru rus Russian, sah sah Yakut, sr srp Serbian, tg tgk Tajik, tt tat Tatar, "
        "uk ukr Ukrainian",
    ),
    "Greek": _Script("accents tell words apart (ή, η)", _LATIN_STOPS, "el ell gre Greek, grc grc Ancient Greek"),
    "Arabic": _Script(
        "hamza, madda and vowel points are taken off: سأل becomes سال",
        "؟ and ۔, also a dot or ! before a space",
        "ar ara Arabic, arz arz Egyptian Arabic, ckb ckb Central Kurdish, fa fas per Persian, ks kas Kashmiri, ps "
        "pus Pashto, sdh sdh Southern Kurdish, sd snd Sindhi, ug uig Uyghur, ur urd Urdu",
    ),
    "Hebrew": _Script("vowel points are taken off", _LATIN_STOPS, "he heb Hebrew, yi yid Yiddish"),
    "Devanagari": _Script(
        _SIGNS,
        _DANDA,
        "bho bho Bhojpuri, gom gom Konkani, hi hin Hindi, mai mai Maithili, mr mar Marathi, ne nep Nepali, "
        "sa san Sanskrit",
    ),
    "Bengali": _Script(_SIGNS, _DANDA, "as asm Assamese, bn ben Bengali"),
    "of India": _Script(
        _SIGNS,
        "।, also a dot, ! or ? before a space",
        "gu guj Gujarati, kn kan Kannada, ml mal Malayalam, or ori Odia, pa pan Punjabi, si sin Sinhala, ta tam "
        "Tamil, te tel Telugu",
    ),
    "Han": _Script(
        _NO_CASE,
        "。！？ wherever they stand",
        "lzh lzh Classical Chinese, wuu wuu Wu Chinese, yue yue Cantonese, zh zho chi Chinese",
    ),
    "Japanese": _Script(
        "kana lose their voiced mark: が becomes か", "。！？ wherever they stand", "ja jpn Japanese", False
    ),
    "Hangul": _Script("syllables are taken apart into their letters", _LATIN_STOPS, "ko kor Korean"),
    "Thai": _Script("vowels and tones are marks, which are taken off", "a paragraph is one", "th tha Thai", False),
    "Lao": _Script("vowels and tones are marks, which are taken off", "a paragraph is one", "lo lao Lao", False),
    "Khmer": _Script(_SIGNS, "។ and ៕", "km khm Khmer", False),
    "Burmese": _Script(_SIGNS, "။", "my mya bur Burmese", False),
    "Tibetan": _Script(_SIGNS, "།", "bo bod tib Tibetan, dz dzo Dzongkha"),
    "Thaana": _Script(_SIGNS, "a dot, ! or ؟ before a space", "dv div Dhivehi"),
    "Georgian": _Script(_NO_CASE, _LATIN_STOPS, "ka kat geo Georgian"),
    "Armenian": _Script("capitals are lost, which names begin with", "։", "hy hye arm Armenian"),
    "Ethiopic": _Script(_NO_CASE, "። ፧ ፨", "am amh Amharic, ti tir Tigrinya"),
    "of its own": _Script(
        "some of its signs are marks, which are taken off",
        "the stops of the script wherever they stand",
        "chr chr Cherokee, cr cre Cree, ii iii Sichuan Yi, iu iku Inuktitut, mni mni Manipuri, nqo nqo N'Ko, "
        "sat sat Santali, syr syr Syriac",
    ),
    "of several languages": _Script(
        "case and accents mean something in most languages", _LATIN_STOPS, "mul mul several languages, und und any"
    ),
}
# Languages of the Latin script whose words have accents seldom, and capitals at the beginnings of names only.
_PLAIN = set("ace bcl ceb en fil id jv ms nr ny om pcm rn rw sn so ss st su sw tl ts xh zu".split())
_OF_THEIR_OWN = {
    "de": "nouns begin with capitals, and umlauts tell words apart",
    "gsw": "nouns begin with capitals, and umlauts tell words apart",
    "lb": "nouns begin with capitals, and accents tell words apart",
    "nds": "nouns begin with capitals, and umlauts tell words apart",
    "nl": "accents and capitals tell some words apart (één, een), and Dutch models keep them",
    "tr": "accents tell words apart, and I is the capital of ı, not of i",
    "az": "accents tell words apart, and I is the capital of ı, not of i",
    "vi": "tones are accents: without them most words become others",
    "yo": "tones are accents: without them most words become others",
    "sr": "й and ћ are letters of their own, or in Latin letters č, ć, š and ž",
}
# Codes of old, and of parts of a language.
_OTHER_CODES = {"iw": "he", "in": "id", "ji": "yi", "sh": "sr", "cmn": "zh", "arb": "ar", "ary": "ar", "pes": "fa"} | {
    "gug": "gn", "hbo": "he", "fuv": "ff", "uzs": "uz", "uzn": "uz", "swh": "sw", "zsm": "ms", "khk": "mn"
}  # fmt: skip
# Codes of countries, which are often taken for those of languages.
_COUNTRIES = dict(at="de", cn="zh", cz="cs", dk="da", ee="et", gb="en", gr="el", il="he", ir="fa", jp="ja", kr="ko",
                  lk="si", np="ne", pk="ur", rs="sr", tw="zh", ua="uk", us="en", vn="vi")  # fmt: skip
_PUNKT = dict(
    cs="czech", da="danish", de="german", el="greek", en="english", es="spanish", et="estonian", fi="finnish",
    fr="french", it="italian", nl="dutch", no="norwegian", nb="norwegian", pl="polish", pt="portuguese", ru="russian",
    sl="slovene", sv="swedish", tr="turkish",
)  # fmt: skip


_HANGUL = re.compile(r"[\u1100-\u11ff]")  # its letters, of which NFC makes syllables
_SHOWN = re.compile(r"(?=.*[^\x00-\x7f]).{2,16}")  # words in a message: not too long, and not of ASCII


class Rules(NamedTuple):
    """What a dot after a word means in one language. Words are lower case, without their last dot."""

    never: frozenset[str] = frozenset()  # does not end a sentence: Mr. Pym
    numbered: frozenset[str] = frozenset()  # does not before a number: No. 5
    seldom: frozenset[str] = frozenset()  # does only before one of `starters`: Smith & Co. The ...
    starters: frozenset[str] = frozenset()
    ordinals: bool = False  # "am 3. Mai": a dot after one or two digits is no stop


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMON = Rules()
RULES = {
    "en": Rules(
        never=_words(
            "mr mrs ms messrs mm mme mlle dr prof rev revd hon st ste gen col capt lt maj sgt cmdr adm gov sen rep "
            "pres supt mt ft vs viz cf approx dept eg ie e.g i.e ca bp abp"
        ),
        numbered=_words(
            "no nos p pp vol vols ch chap sec sect fig figs eq art bk pt l ll v vv "
            "jan feb mar apr jun jul aug sep sept oct nov dec"
        ),
        seldom=_words("inc ltd co corp bros jr sr etc al esq ed eds op cit ibid a.m p.m"),
        starters=_words(
            "the a an he she it we they i you this that these those there his her their our my its in on at by from "
            "with of for to as if when while after before since but and or so yet however then thus what who where why "
            "how not no yes all some many most one here now"
        ),
    ),
    "de": Rules(
        never=_words(
            "dr prof hr fr frl st hl bzw vgl ca evtl geb gest ggf inkl exkl sog mag dipl ing z.b z u.a u d.h d o.ä "
            "i.d.r v.a mr mme mlle"
        ),
        numbered=_words("nr s bd abs art kap abb tab aufl"),
        seldom=_words("usw etc jr sen str tel co"),
        starters=_words("der die das er sie es wir ich ihr und aber da wenn als in im am auf mit nach ein eine so"),
        ordinals=True,
    ),
    "ru": Rules(never=_words("г гг т.е т.д т.п ул им проф др стр рис см"), numbered=_words("с ст п гл")),
    "fr": Rules(
        never=_words("m mm mme mmes mlle mlles dr pr me st ste mgr av apr env c.-à-d p.ex"),
        numbered=_words("n no nos p pp art chap fig vol t éd"),
        seldom=_words("etc"),
        starters=_words("le la les un une des il elle ils elles on ce cette ces je nous vous mais et en dans pour"),
    ),
    "es": Rules(
        never=_words("sr sra sres sras srta dr dra dres d dña ud uds vd vds prof gral cap lic ing sto sta p.ej ee.uu"),
        numbered=_words("n núm p pág págs art cap fig vol t"),
        seldom=_words("etc cía"),
        starters=_words("el la los las un una lo se en de por para con pero y no es este esta yo él ella su"),
    ),
    "it": Rules(
        never=_words("sig sigg sig.ra sig.na dott dott.ssa prof prof.ssa avv ing arch on mons s.s p.es cfr"),
        numbered=_words("n nn p pp pag art cap fig vol"),
        seldom=_words("ecc"),
        starters=_words("il lo la i gli le un una in di per con ma e non si è questo questa io lui lei"),
    ),
    "pt": Rules(
        never=_words("sr sra srs sras srta dr dra drs d exmo exma prof profa eng av p.ex v.ex"),
        numbered=_words("n núm p pág págs art cap fig vol"),
        seldom=_words("etc cia ltda"),
        starters=_words("o a os as um uma em de por para com mas e não se é este esta eu ele ela"),
    ),
    "nl": Rules(
        never=_words("dhr mevr mw mej dr drs ir mr prof ds st bijv bv ca jl resp d.w.z o.a m.a.w t.a.v i.v.m"),
        numbered=_words("nr nrs p pp blz art hfst fig afb"),
        seldom=_words("enz etc"),
        starters=_words("de het een hij zij ze we wij ik en maar dat dit die in op van voor er"),
    ),
    "pl": Rules(
        never=_words("dr prof mgr inż ks św ul al im np tzw tj tzn m.in ok płk gen hab"),
        numbered=_words("nr s str art pkt poz rys tab"),
        seldom=_words("itd itp r w"),
        starters=_words("w na z do to nie i a ale on ona oni jest był była jego jej tak po"),
    ),
    "sv": Rules(
        never=_words("dr prof fru hr s.k t.ex bl.a d.v.s dvs m.m f.d st ca kap"),
        numbered=_words("nr s sid fig"),
        seldom=_words("etc osv"),
        starters=_words("det den de han hon vi jag men och i på en ett som när"),
    ),
}


def defaults(code: str) -> LanguageDefaults:
    """Return what is sensible for a language, by a code of ISO 639, with or without script and region, or its English
    name.

    Raises
    ------
    InputError: there is no such language here; the message names those that are near.
    """
    table, names = _table(), _names()
    wanted = code.strip().lower().replace("_", "-")
    found = names.get(wanted) or names.get(re.split(r"[-.@]", wanted)[0])
    if found is None:
        near = [_COUNTRIES[wanted]] if wanted in _COUNTRIES else difflib.get_close_matches(wanted, names, 5)
        shown = dict.fromkeys(f"{names[name]} ({table[names[name]].name})" for name in near)
        what = f"meant may be {', '.join(shown)}" if shown else f"known are {', '.join(sorted(table))}"
        raise InputError(f"--lang {code!r} is no language that is known here: {what}; others take mul")
    return table[found]


def with_punkt() -> list[str]:
    """Return codes of the languages for which Punkt has a model."""
    return sorted(_PUNKT)


class _Entry(NamedTuple):
    """A language as its script lists it."""

    codes: tuple[str, ...]  # of two letters where there are two, then of three
    name: str
    script: str


@cache
def _entries() -> tuple[_Entry, ...]:
    """Return all languages: "de deu ger German" has three codes and a name."""
    entries = []
    for script, common in _SCRIPTS.items():
        for listed in common.languages.split(", "):
            parts = re.fullmatch(r"(\w+(?: [a-z]{3})+) (.+)", listed)
            assert parts is not None, listed
            entries.append(_Entry(tuple(parts[1].split(" ")), parts[2], script))
    return tuple(entries)


@cache
def _table() -> dict[str, LanguageDefaults]:
    """Return all languages by their codes."""
    return {entry.codes[0]: _defaults(entry) for entry in _entries()}


def _defaults(entry: _Entry) -> LanguageDefaults:
    code, common = entry.codes[0], _SCRIPTS[entry.script]
    is_plain = code in _PLAIN
    why = "accents are rare, and capitals begin names and sentences only" if is_plain else common.loses
    return LanguageDefaults(
        code=code,
        name=entry.name,
        script=entry.script,
        cased=not is_plain,
        why=_OF_THEIR_OWN.get(code, why),
        vocab_kind="wordpiece" if common.spaced else "unigram",
        sentences=common.sentences,
        abbreviations=code in RULES,
        punkt=_PUNKT.get(code, ""),
    )


@cache
def _names() -> dict[str, str]:
    """Return the code that is meant by any name of a language, in lower case."""
    names = {entry.name.lower(): entry.codes[0] for entry in _entries()}
    for entry in _entries():
        names |= dict.fromkeys(entry.codes, entry.codes[0])
    return names | _OTHER_CODES


class Lost(NamedTuple):
    """What an uncased vocabulary takes off a text, as BERT's does: accents, vowel signs, all else that is a mark."""

    share: float  # of the letters and their marks
    words: tuple[tuple[str, str], ...]  # words of the text and what they become, the most telling first

    @property
    def example(self) -> str:
        """The first of the words, as "schön -> schon"; "" where none changes."""
        return f"{self.words[0][0]} -> {self.words[0][1]}" if self.words else ""


def without_marks(text: str) -> str:
    """Return a text in lower case without what BERT's uncased vocabularies take off; of Hangul the letters, blanks
    between."""
    parts = unicodedata.normalize("NFD", text.lower())
    bare = "".join(part for part in parts if unicodedata.category(part) != "Mn")
    return " ".join(bare) if _HANGUL.search(bare) else bare


def what_uncased_loses(texts: Iterable[str], shown: int = 3) -> Lost:
    """Return what a text loses without its marks. The most telling words are those that become others which occur,
    too."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(unicodedata.normalize("NFC", text).lower().split())
    words: Counter[str] = Counter()
    letters = lost = 0
    for token, count in counts.items():
        if token.isascii() and token.isalpha():
            words[token] += count
            letters += count * len(token)
        elif word := _trimmed(token):
            words[word] += count
            letters += count * sum(map(_is_letter, word))
            lost += count * sum(map(loses_mark, word))
    becomes = {word: without_marks(word) for word in words if _SHOWN.fullmatch(word)}
    changed = [word for word, bare in becomes.items() if bare and bare != word and _is_a_word(word)]
    changed.sort(key=lambda word: (-min(words[word], words[becomes[word]]), -words[word], word))
    return Lost(lost / max(letters, 1), tuple((word, becomes[word]) for word in changed[:shown]))


def _is_a_word(token: str) -> bool:
    return all(map(_is_letter, token))


@cache
def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


def _trimmed(token: str) -> str:
    """Return a word without the signs around it."""
    start, end = 0, len(token)
    while start < end and not token[start].isalpha():
        start += 1
    while end > start and not _is_letter(token[end - 1]):
        end -= 1
    return token[start:end]


@cache
def loses_mark(character: str) -> bool:
    """Whether an uncased vocabulary takes something off a character, or takes it apart, as syllables of Hangul."""
    parts = unicodedata.normalize("NFD", character)
    return len(parts) > 1 or unicodedata.category(parts) == "Mn"
