"""What fits these texts, this machine, these hours: settings with their reasons, warnings with remedies, commands.

    advice = advise(["texts/"], 3.0)
    advice.settings["model"], advice.reasons["model"], advice.commands, advice.warnings
    advice.to_json()                         what `zerobert plan --json` prints

The text is looked at (survey.py), the machine too (machine.py); the rules (rules.py) do the rest.
"""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from data_prep.sharding.held_out import FEWEST
from data_prep.text.languages import defaults
from pretrain.advice import cautions, rules
from pretrain.advice import machine as machines
from pretrain.advice.machine import Machine
from pretrain.advice.settings import AdviceSettings, Cost, Found, Memory
from pretrain.advice.survey import Survey, survey
from pretrain.formatting import counted, duration, two_digits
from pretrain.settings.averaging import OFF
from pretrain.settings.shape import PRESETS, Shape, model_in_words, shape_of
from pretrain.sizes import activation_bytes, parameters, state_bytes

UPPER_LIMIT = 1_000_000  # steps of a run that goes by the clock
ONE_MACHINE = 8  # ranks at most that need no list of hosts
AS_ASKED = "as asked"
EVALUATIONS = 20  # of a run
EVALUATED = 0.05  # of the time at most
ENGLISH = Survey(
    sources=0, text_bytes=0.0, documents=1e6, sentences=0.0, words=0.0, document_chars=3000, sentence_chars=100,
    sentence_words=18.0, one_sentence=0.0, scripts={"Latin": 1.0}, marks=0.0, capitals=0.03, languages={},
    told_by="nothing", chars=0.0, alphabet=0, han=0, sample_bytes=0, frequent=(), lengths=(), signs=0.0,
    unspaced_chars=0.0,
)  # fmt: skip


class Advice(NamedTuple):
    """What to do, and why."""

    settings: AdviceSettings
    commands: list[tuple[str, list[str]]]  # stage, and the words after `zerobert`
    reasons: dict[str, str]  # of settings, by their names
    warnings: list[str]  # each with its remedy
    found: Found

    def to_json(self) -> JsonObject:
        """Return it as JSON values."""
        return {
            **self.settings,
            "commands": [pasteable(words, self.settings) for _, words in self.commands],
            "reasons": self.reasons,
            "warnings": self.warnings,
            "found": self.found,
        }


def pasteable(words: Sequence[str], settings: AdviceSettings) -> str:
    """Return a command as one pastes it into a shell."""
    ranks = settings["ranks"] if words[0] == "train" else 1
    where = "" if ranks == 1 else f"RANKS={ranks} " if ranks <= ONE_MACHINE else 'DEEPSPEED_FLAGS="--hostfile HOSTS" '
    return f"{where}zerobert {shlex.join(words)}"


def advise(
    corpus: Sequence[str],
    hours: float,
    *,
    lang: str = "",
    task: Path | None = None,
    gpu: str = "",
    ranks: int = 0,
    tokens: float = 0,
    price: float = 0,
    out: Path = Path("runs/mine"),
    wanted: Mapping[str, Any] | None = None,
) -> Advice:
    """Look at texts and machine, and propose.

    `tokens` are those of a store that is elsewhere, `gpu` and `ranks` a machine that is; `price` is of a GPU-hour;
    `wanted` are settings that are decided already.

    Raises
    ------
    InputError: texts that cannot be read, an unknown GPU, nothing to plan for.
    """
    if not corpus and not tokens:
        raise InputError("nothing to plan for: give --corpus PATH..., or --tokens N of a store that is elsewhere")
    machine = machines.machine_named(gpu, ranks) if gpu else None
    text = survey(corpus, lang) if corpus else ENGLISH
    machine = machine or machines.here(ranks)
    return advised(
        text, machine, hours, corpus=corpus, lang=lang, task=task, tokens=tokens, price=price, out=out, wanted=wanted
    )


def advised(
    text: Survey,
    machine: Machine,
    hours: float,
    *,
    corpus: Sequence[str] = (),
    lang: str = "",
    task: Path | None = None,
    tokens: float = 0,
    price: float = 0,
    out: Path = Path("runs/mine"),
    wanted: Mapping[str, Any] | None = None,
) -> Advice:
    """Return what advise() would, of what is known already: nothing is looked at any more."""
    if corpus and not text.frequent:
        raise InputError(f"--corpus {' '.join(map(str, corpus))}: no word was found in it, only space or punctuation")
    chosen = _Choices(text, machine, hours, tokens, wanted or {})
    chosen.choose_vocabulary(lang)
    chosen.choose_model()
    chosen.choose_step()
    chosen.choose_length()
    settings = chosen.as_wanted()
    warnings = list(_warnings(text if corpus else None, machine, settings, lang, fits=chosen.fits))
    found: Found = {
        "text": text.to_json(), "machine": machines.machine_json(machine),
        "cost": _costs(machine, settings, hours, price), "memory": _memory(machine, settings),
    }  # fmt: skip
    commands = list(_commands(settings, [str(path) for path in corpus], out, task))
    return Advice(settings, commands, chosen.reasons, warnings, found)


class _Choices:
    """Settings with their reasons, as they are chosen one after another; what is wanted stands beside the rules."""

    def __init__(self, text: Survey, machine: Machine, hours: float, tokens: float, wanted: Mapping[str, Any]):
        """`tokens`: of a store that is elsewhere; 0: those of the text are reckoned."""
        self.text, self.hours, self.wanted = text, hours, wanted
        self.machine = machines.in_precision(machine, wanted.get("precision"))
        self.settings: JsonObject = {}
        self.reasons: dict[str, str] = {}
        self.shapes = _shapes(self.wanted)
        self.fits = True  # whether a sample fits into the memory at all
        self._tokens = tokens

    def _choose(self, name: str, choice: rules.Choice) -> Any:
        is_wanted = name in self.wanted
        self.settings[name], self.reasons[name] = (self.wanted[name], AS_ASKED) if is_wanted else choice
        return self.settings[name]

    def _text_tokens(self, vocab_size: int) -> float:
        return self._tokens or rules.token_count(self.text, vocab_size)

    def choose_vocabulary(self, lang: str) -> None:
        """Choose what the text alone decides: language, case, the kind of vocabulary."""
        language = self._choose("lang", _language(self.text, lang))
        self._choose("cased", rules.cased(self.text, language))
        self._choose("vocab_kind", rules.vocab_kind(self.text))

    def choose_model(self) -> None:
        """Choose the vocabulary's size and the model. The model's speed depends on the size, and how much of the text
        is met on the model: so there is a first model, of a vocabulary for all of the text."""
        wanted_model = self.wanted.get("model")
        size = self.wanted.get("vocab_size", rules.vocab_size(self.text)[0])
        first, _ = rules.model(rules.paces(self.machine, self.hours, size, self._text_tokens(size), self.shapes))
        shape = self.shapes[wanted_model or first.model]
        size = self._choose("vocab_size", rules.vocab_size(self.text, first.tokens, shape))
        self.in_text = self._text_tokens(size)
        paces = rules.paces(self.machine, self.hours, size, self.in_text, self.shapes)
        self.pace, self.larger = rules.model([each for each in paces if each.model == wanted_model] or paces)
        self.shape = self.shapes[self.pace.model]
        self.settings |= {"model": self.pace.model} | self.shape._asdict()

    def choose_step(self) -> None:
        """Choose what a sample and a step are.

        Raises
        ------
        InputError: a batch that is wanted cannot be dealt out to the ranks.
        """
        machine, settings, model = self.machine, self.settings, self.pace.model
        self._choose("objective", rules.objective(self.text))
        # What more passes add should not change the shape of a step.
        self.useful = min(self.pace.tokens, rules.MANY_PASSES * self.in_text)
        length = self._choose("seq_len", rules.seq_len(self.useful, self._document_tokens()))
        step_tokens, why = rules.step_tokens(self.useful)
        at_once = machine.ranks * self.wanted.get("micro_batch", 1)
        batch = self._choose("global_batch", (_multiple(step_tokens // length, at_once), why))
        if batch % at_once:
            raise InputError(
                f"--global_batch {batch} cannot be dealt out to {machine.ranks} ranks with a micro-batch of "
                f"{at_once // machine.ranks}: give a multiple of {at_once}, another --micro_batch, or other RANKS"
            )
        share = batch // machine.ranks
        settings["average"] = self.wanted.get("average", str(OFF))
        stage, micro = rules.stage_and_micro_batch(
            model, machine, settings["vocab_size"], length, share,
            shape=self.shape, has_average=settings["average"] != str(OFF),
        )  # fmt: skip
        micro = self.wanted.get("micro_batch", micro)
        self.fits, micro = micro > 0, max(1, micro)
        settings |= {"micro_batch": micro, "ranks": machine.ranks, "zero": stage}
        settings["precision"] = self.wanted.get("precision", machine.precision_of(self.shape))
        self.reasons["precision"] = rules.why_precision(machine, self.shape)
        self.reasons["micro_batch"] = rules.why_micro_batch(machine, micro, length, share)
        self._choose("lr", rules.learning_rate(model, batch * length))

    def _document_tokens(self) -> float:
        if not self.text.chars:
            return self.text.document_chars / rules.BYTES_PER_TOKEN
        return self.text.document_chars * self.in_text / self.text.chars

    def choose_length(self) -> None:
        """Choose what the hours hold: steps, passes, phases. Small steps do not fill a GPU, so that the speed is known
        only now."""
        machine, settings, reasons = self.machine, self.settings, self.reasons
        model, length, batch, micro = (settings[name] for name in ("model", "seq_len", "global_batch", "micro_batch"))
        rule = rules.MODEL_RULES[model]
        speed = machine.tokens_per_second(self.shape, settings["vocab_size"], length, rule.mask_rate, micro * length)
        trained = 3600 * self.hours * speed
        as_it_is = rules.Pace(model, speed, trained, rules.worth(trained, self.in_text))
        reasons["model"] = rules.why_model(as_it_is, self.larger, self.hours)
        steps = max(1, round(trained / (batch * length * rules.FILLED)))
        passes = trained / self.in_text
        settings |= {"optimizer": "adamw", "schedule": "linear", "warmup": rule.warmup, "mask_rate": rule.mask_rate}
        reasons["mask_rate"] = rules.why_mask_rate(model)
        self._choose("mlm_bias", rules.MLM_BIAS)
        self._choose("dropout", rules.dropout(passes))
        documents = self._document_tokens()
        settings |= {
            "hours": self.hours, "steps": steps, "epochs": passes, "tokens": round(trained),
            "tokens_per_second": max(1, round(speed)), "text_tokens": round(self.in_text),
            "phases": rules.phases(
                self.useful, documents, length, batch, micro, steps, settings["lr"], machine.ranks
            ),
        }  # fmt: skip
        reasons["warmup"] = rules.why_warmup(rule.warmup, "steps of each phase" if settings["phases"] else "time")
        reasons["steps"] = (
            f"{counted(trained)} tokens in {duration(3600 * self.hours)}; {counted(passes)} passes over the text"
        )
        settings |= _intervals(steps, trained, length, passes, self.text.documents)

    def as_wanted(self) -> AdviceSettings:
        """Return the settings with all that is wanted in them, by no rule."""
        self.reasons |= {name: AS_ASKED for name in self.wanted if name != "model"}
        wanted = {name: value for name, value in self.wanted.items() if name in self.settings}
        return cast(AdviceSettings, self.settings | wanted)


def _shapes(wanted: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shape of every preset that can be what is wanted, of its layers, hidden size and heads say.

    Raises
    ------
    InputError: none of them can.
    """
    given = {name: wanted[name] for name in Shape._fields if name in wanted}
    shapes: dict[str, Shape] = {}
    for name in PRESETS:
        try:
            shapes[name] = shape_of(name, **given)
        except InputError:
            if name == wanted.get("model"):
                raise
    return shapes or {"bert-tiny": shape_of("bert-tiny", **given)}  # which says why not


def _shape_of(settings: AdviceSettings) -> Shape:
    return Shape(settings["layers"], settings["hidden"], settings["heads"])


def _language(text: Survey, lang: str) -> rules.Choice:
    if lang:
        return defaults(lang).code, "as asked"
    if text.language:
        share = 100 * text.languages[text.language]
        return text.language, f"{share:.0f} % of the text, by {text.told_by}"
    return "en", "nothing tells the language; --lang says it"


def _multiple(samples: int, divisor: int) -> int:
    return max(divisor, -(-samples // divisor) * divisor)


def _intervals(steps: int, tokens: float, length: int, passes: float, documents: float) -> JsonObject:
    """Return how often is looked and saved; an evaluation is forward passes only, a third of the work."""
    every = max(20, steps // EVALUATIONS)
    samples = 3 * EVALUATED * tokens / (EVALUATIONS * length)
    return {
        "eval_every": every,
        "eval_samples": min(1024, max(128, 1 << int(math.log2(max(samples, 1))))),
        "save_every": every,
        "log_every": max(1, min(50, steps // 200)),
        "patience": EVALUATIONS // 2 if passes > rules.MANY_PASSES and documents >= FEWEST else 0,
    }


def _commands(
    settings: AdviceSettings, corpus: list[str], out: Path, task: Path | None
) -> Iterator[tuple[str, list[str]]]:
    vocab, store, run, hf = (str(out / name) for name in ("vocab", "store", "run", "hf"))
    if corpus:
        flags = ["--cased"] if settings["cased"] else []
        flags += ["--model", settings["vocab_kind"]] if settings["vocab_kind"] != "wordpiece" else []
        yield "vocab", ["vocab", "--corpus", *corpus, "--out", vocab, "--size", str(settings["vocab_size"]), *flags]
        yield "shard", ["shard", "--corpus", *corpus, "--vocab", vocab, "--out", store, "--lang", settings["lang"]]
    by_name: Mapping[str, object] = settings
    names = ["model", "objective", "lr", "warmup"]
    if _shape_of(settings) != PRESETS[settings["model"]]:
        names += Shape._fields
    names += ["average"] if settings["average"] != str(OFF) else []
    usual = {"mask_rate": 0.15, "mlm_bias": "zeros", "dropout": 0.1}
    names += [name for name, value in usual.items() if by_name[name] != value]
    names += ["eval_every", "eval_samples", "save_every", "log_every"]
    names += ["patience"] if settings["patience"] else []
    names += ["zero"] if settings["zero"] > 1 else []
    names += ["precision"] if settings["precision"] != "fp32" else []
    words = [word for name in names for word in (f"--{name}", f"{by_name[name]}")]
    if settings["phases"]:
        words += [word for phase in settings["phases"] for word in ("--phase", phase)]
    else:
        sizes = [
            word for name in ("seq_len", "global_batch", "micro_batch") for word in (f"--{name}", f"{by_name[name]}")
        ]
        limit = max(UPPER_LIMIT, 10 * settings["steps"])
        words += [*sizes, "--hours", f"{settings['hours']:g}", "--steps", f"{limit}"]
    yield "train", ["train", "--data", store, "--out", run, *words]
    yield "export", ["export", run, hf]
    if task is not None:
        rate = next((rate for most, rate in ((384, 3e-4), (640, 1e-4)) if settings["hidden"] <= most), 5e-5)
        files = ["--train", str(task), *(["--eval", str(found)] if (found := eval_beside(task)) else [])]
        tuned = str(out / "finetuned")
        yield "finetune", ["finetune", hf, "--task", "classify", *files, "--out", tuned, "--lr", f"{rate:g}"]


def eval_beside(task: Path) -> Path | None:
    """Return the file to measure on that lies beside a training file: dev.tsv beside train.tsv."""
    others = (
        task.with_name(task.name.replace("train", word)) for word in ("dev", "eval", "valid", "validation", "test")
    )
    return next((other for other in others if other != task and other.is_file()), None)


def _costs(machine: Machine, settings: AdviceSettings, hours: float, price: float) -> Cost:
    a_pass = settings["text_tokens"] / settings["tokens_per_second"] / 3600
    found: Cost = {"gpu_hours": hours * machine.ranks if machine.is_gpu else 0.0, "hours_a_pass": a_pass}
    if price:
        found |= {"price": price * machine.ranks * hours, "price_a_pass": price * machine.ranks * a_pass}
    return found


def _memory(machine: Machine, settings: AdviceSettings) -> Memory:
    shape, size = _shape_of(settings), settings["vocab_size"]
    weights = parameters(shape, size)
    has_average = settings["average"] != str(OFF)
    state = state_bytes(settings["zero"], weights, machine.ranks, settings["precision"], has_average)
    token = activation_bytes(shape, size, settings["mask_rate"], settings["precision"])
    kept = settings["micro_batch"] * settings["seq_len"] * token
    return {"parameters": weights, "state_bytes": round(state), "activation_bytes": round(kept),
            "together_bytes": round(state + kept), "has_bytes": round(machine.memory),
            "fits": state + kept <= machine.memory}  # fmt: skip


def _warnings(
    text: Survey | None, machine: Machine, settings: AdviceSettings, lang: str, *, fits: bool
) -> Iterator[str]:
    """Yield all that is amiss, each with its remedy; no `text` where the store is elsewhere."""
    if text is not None:
        yield from cautions.of_text(text, settings["lang"], lang)
        yield from cautions.rare_entries(
            settings["vocab_size"],
            rules.met_by_half(text, settings["vocab_size"]) * min(1.0, settings["tokens"] / settings["text_tokens"]),
            "give more text",
        )
    yield from cautions.many_passes(settings["epochs"], _enough_hours(settings))
    if not machine.is_gpu:
        one = machines.machine_named("a100").tokens_per_second(
            _shape_of(settings), settings["vocab_size"], settings["seq_len"], settings["mask_rate"]
        )
        yield from cautions.days_on_a_cpu(3600 * settings["hours"], settings["tokens"] / one)
        yield from cautions.little_of_it(settings["epochs"], 3600 * settings["hours"])
        yield from cautions.busy(
            machine.busy, machine.cores, "the plan is that of an idle machine, so end them, or expect fewer steps"
        )
    beyond = settings["hours"] * rules.PLATEAU / settings["steps"]
    yield from cautions.few_steps(settings["steps"], f"--hours {two_digits(beyond)}")
    if not fits:
        yield cautions.too_large(str(model_in_words({**settings})), machine.memory)


def _enough_hours(settings: AdviceSettings) -> str:
    hours = settings["hours"] * rules.MANY_PASSES / settings["epochs"]
    return f"--hours {two_digits(hours)}" if hours > 0.02 else ""
