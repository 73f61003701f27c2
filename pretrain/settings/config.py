"""What a run is: the command line, and what each value of it may be.

TrainConfig owns everything that the DeepSpeed JSON (ds_config.py) does not; what fills "auto" in that JSON are its
`flags`, which are command line, too, and are passed on untouched.
"""

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from tyro.conf import OmitArgPrefixes

from data_prep.calls import call
from data_prep.cli import ROOT, InputError, number_in
from data_prep.json_types import JsonObject
from data_prep.ranges import HOURS, Range, check_ranges
from data_prep.samples.masking import Masking, MaskUnit
from data_prep.samples.sample_index import Objective
from data_prep.tokens.row_sources import VocabFrom
from pretrain.settings.averaging import Averaging, parse_average
from pretrain.settings.ds_config import Flags
from pretrain.settings.limits import (
    BERT_INITIALIZER_RANGE,
    COUNT,
    HEADS,
    HIDDEN,
    INITIALIZER_RANGE,
    LAYERS,
    MASK_RATE,
    MINUTES,
    PASSES,
    POSITIONS,
    SECONDS,
    SEED,
    SEQ_LEN,
    SHARE,
    STEPS,
    TEMPERATURE,
    WARMUP,
    Preset,
)
from pretrain.settings.phases import Span, check_phases, parse_spans
from pretrain.settings.schedule import Schedule
from pretrain.settings.shape import Shape, shape_of

TrackerName = Literal["trackio", "wandb"]
MlmBias = Literal["zeros", "unigram"]
# What a new model is, in place of its preset's numbers, and how it begins; with --init_from all of it is there already.
SQUEUE_SECONDS = 20.0  # in which Slurm must say when a job ends
SHAPE = Shape._fields
OF_A_NEW_MODEL = (*SHAPE, "initializer_range", "mlm_bias")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One pretraining run."""

    # What goes in, where it goes to, and the model that it begins with
    data: tuple[str, ...]
    """token stores written by data_prep/shard.py: STORE or STORE:WEIGHT, the weight in passes an epoch (default 1)"""
    out: Path
    """run folder: config.json, metrics.jsonl, log.txt, tensorboard/, checkpoints/"""
    model: Preset | None = None
    """size of a new model (this or --init_from)"""
    layers: Annotated[int | None, LAYERS] = None
    """layers of the new model; None: as many as --model has"""
    hidden: Annotated[int | None, HIDDEN] = None
    """its hidden size, of which the feed-forward layers have four times as much; None: that of --model"""
    heads: Annotated[int | None, HEADS] = None
    """its attention heads; None: a head for each 64 of the hidden size. On a GPU a multiple of 8 for each is fastest"""
    initializer_range: Annotated[float, INITIALIZER_RANGE] = BERT_INITIALIZER_RANGE
    """standard deviation of its initial weights"""
    mlm_bias: MlmBias = "zeros"
    """where its output bias begins: zeros (BERT), or unigram: the log of how frequent each token is in --data, so that
    the first loss is the unigram entropy"""
    init_from: Path | None = None
    """Hugging Face folder of a BERT to continue (this or --model); its vocabulary must be the store's, or the beginning
    of it (data_prep/vocab.py --extend)"""
    vocab_from: VocabFrom = "same"
    """what --init_from makes of a store with another vocabulary: same: it is refused; match: entries of the same text
    keep their row, others begin as the mean of the pieces by which the model's own tokenizer spells them"""
    positions: Annotated[int | None, POSITIONS] = None
    """longest sample that the model can take, in tokens; None: 512, or as --init_from has it. More than it has: its
    position embeddings are stretched, in straight lines from row to row"""
    ds_config: Annotated[Path, tyro.conf.arg(aliases=["--deepspeed_config"])] = ROOT / "ds_configs/auto.json"
    """DeepSpeed JSON; any value may be "auto", which the flags below fill"""

    # How long
    seq_len: Annotated[int, SEQ_LEN] = 128
    """tokens of a sample, [CLS] and [SEP] included"""
    steps: Annotated[int, STEPS] = 10_000
    """optimizer steps, not micro-batches"""
    phase: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """a span of steps, in place of --steps; repeat it: --phase seq_len=128,steps=900,lr=1e-3 --phase
    seq_len=512,steps=100. Also global_batch, micro_batch, warmup, schedule, batch_warmup, weight_decay, mask_rate,
    mask_rate_end, temperature, and weights=1:0.5 for the stores of --data; the rest is as without"""
    hours: Annotated[float, HOURS._replace(or_zero=True)] = 0.0
    """train for so long: the schedule follows the clock and --steps is only an upper limit; 0: by steps"""
    patience: Annotated[int, COUNT] = 0
    """stop after so many evaluations in a row that were no better than the best; 0: never"""

    # Samples, their masks, and chance
    seed: Annotated[int, SEED] = 0
    """decides initial weights, samples, masks and dropout"""
    dropout: Annotated[float, SHARE] = 0.1
    """hidden dropout; attention dropout is 0, as the variable-length kernels have none"""
    objective: Objective = "nsp"
    """sentence pairs: nsp (BERT), sop (ALBERT), or mlm (no pairs, whole sentences)"""
    temperature: Annotated[float, TEMPERATURE] = 1.0
    """of several stores, languages say: a store's share of an epoch goes with its tokens to this power (XLM-R 0.3)"""
    mask_unit: MaskUnit = "token"
    """what is masked together: tokens (BERT), whole words, runs of words (span: SpanBERT; ngram: MacBERT)"""
    mask_rate: Annotated[float, MASK_RATE] = 0.15
    """share of the tokens to predict; evaluation always has 0.15, by tokens"""
    mask_rate_end: Annotated[float | None, MASK_RATE] = None
    """share at the end of the steps, or of each phase, to which --mask_rate goes in a straight line; None: it stays"""
    mask_split: Annotated[tuple[float, float], Range(0, 1)] = (0.8, 0.1)
    """shares of these that become [MASK], and a random token; the rest stay"""

    # The learning rate, the batch and the average, as the steps go by
    schedule: Schedule = "linear"
    """learning rate after the warm-up"""
    warmup: Annotated[float, WARMUP] = 0.1
    """rise of the learning rate: steps, or below 1 a share of --steps"""
    batch_warmup: Annotated[int, COUNT] = 0
    """steps over which the batch grows from an eighth of --global_batch to all of it"""
    average: str = "off"
    """average of the weights after each step, kept beside them, evaluated too and exported with --weights averaged:
    ema=.999 (exponential, its decay rises to that), last=.2 (mean over the last fifth of the run), off (none)"""

    # What it measures, keeps and writes on the way
    eval_every: Annotated[int, COUNT] = 500
    """steps between evaluations on the held-out documents; 0: only at the end"""
    eval_minutes: Annotated[float, MINUTES] = 0.0
    """minutes after which there is an evaluation in any case; 0: by steps only"""
    eval_samples: Annotated[int, COUNT] = 1024
    """held-out samples of an evaluation, always the same; 0: no evaluation"""
    eval_pairs: Path | None = None
    """minimal pairs that each evaluation scores, too: a file, or a folder of files, as pretrain.score takes them"""
    eval_pairs_max: Annotated[int, STEPS] = 500
    """of these so many at most, each group with as many as any other, always the same"""
    save_every: Annotated[int, COUNT] = 500
    """steps between checkpoints; 0: only at the end"""
    save_minutes: Annotated[float, MINUTES] = 15.0
    """minutes after which there is a checkpoint in any case; 0: by steps only"""
    keep: Annotated[int, COUNT] = 3
    """newest checkpoints kept; 0: all"""
    export_every: Annotated[int, COUNT] = 0
    """steps between Hugging Face folders, RUN/hf/step-N, each of a checkpoint of that step, all kept; 0: none"""
    log_every: Annotated[int, STEPS] = 10
    """steps between lines of metrics"""
    track: TrackerName | None = None
    """a tracker of experiments beside TensorBoard (pip install 'zerobert[track]'): trackio, on this machine, or wandb,
    which is offline unless WANDB_MODE says otherwise"""

    # Going on with a run
    resume: str = "auto"
    """auto: continue RUN where it has a checkpoint; never: refuse such a RUN; PATH: that checkpoint"""
    allow_change: tuple[str, ...] = ()
    """settings that may be others than the checkpoint's, of those that are refused otherwise: optimizer, data, seed,
    objective, seq_len, init_from; with other samples the run goes on at the beginning of an epoch"""

    # When it ends by itself
    hang_timeout: Annotated[float, SECONDS] = 600.0
    """seconds without progress of any rank after which each prints its stacks and ends; 0: never"""
    time_limit: Annotated[float, SECONDS] = 0.0
    """seconds that the job may take; 0: none, or Slurm's"""
    stop_before: Annotated[float, SECONDS] = 120.0
    """seconds before the time limit at which the run saves and stops"""

    # What it does where training goes wrong
    rollback: Annotated[float, Range(0, 1e6)] = 0.0
    """a loss of more than so many times the median of the 32 steps before takes the run back to the last checkpoint,
    and past the data up to 100 steps after the spike; 0: never"""
    max_skips: Annotated[int, STEPS] = 20
    """steps in a row that may be skipped for gradients that are not finite"""

    # How a step is computed
    checkpoint_activations: bool = False
    """keep only the inputs of layers and compute each again in the backward pass: less memory, a third more work"""
    compile: bool = False
    """fuse the arithmetic between matrix products with torch.compile: faster on a GPU, slower on a CPU; ZeRO 0 to 2"""

    # What is looked at before it begins
    verify_store: bool = False
    """read all of --data and compare it with its checksums before training, each node what it has"""
    allow_untested_deepspeed: bool = False
    """go on with another DeepSpeed than the pinned one, whose private handles may differ"""
    dry_run: bool = False
    """check everything, print the plan, train nothing"""
    gpu: str | None = None
    """with --dry_run: the plan's time and memory are those of this GPU, by its data sheet (a100, h100, h200, ...), and
    not of the machine that plans"""

    # Where all these come from
    config: Path | None = None
    """settings to begin with: RUN/config.json, to run it again, or a .json, .yaml or .toml file of options by name;
    what is given beside it goes before it"""

    # What DeepSpeed consumes: Flags in ds_config.py
    flags: OmitArgPrefixes[Flags] = dataclasses.field(default_factory=Flags)
    """what fills "auto" in the DeepSpeed JSON"""

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError(f"--data needs a token store; make one with {call('shard')}")
        if (self.model is None) == (self.init_from is None):
            raise InputError(f"give one of --model ({', '.join(get_args(Preset))}) and --init_from HF_FOLDER")
        check_ranges(self)
        check_ranges(self.flags)
        self._check_new_model()
        check_phases(self.phase, self._whole)
        check_data(self.data)
        parse_average(self.average)
        check_job_end(os.environ)
        if sum(self.mask_split) > 1:
            raise InputError(f"--mask_split {self.mask_split} must be two shares that add up to 1 at most")
        if self.rollback and self.rollback <= 1:
            raise InputError(f"--rollback {self.rollback:g} must be a factor above 1, such as 1.5, or 0 for never")
        if self.hours and (self.phase or self.warmup >= 1):
            raise InputError("--hours goes with one phase, and with a --warmup below 1, a share of the time")
        if self.hours and self.mask_rate_end is not None:
            raise InputError(
                f"--mask_rate_end {self.mask_rate_end:g} goes by steps, as samples are drawn ahead of the clock; give "
                "--steps in place of --hours"
            )
        if self.gpu and not self.dry_run:
            raise InputError(f"--gpu {self.gpu} goes with --dry_run: it plans for a GPU that is elsewhere")
        if self.eval_pairs is not None and not self.eval_samples:
            raise InputError(f"--eval_pairs {self.eval_pairs} goes with evaluations; give --eval_samples above 0")
        if self.patience and not (self.eval_samples and (self.eval_every or self.eval_minutes)):
            raise InputError(
                f"--patience {self.patience} waits for evaluations on the way; give --eval_every (or --eval_minutes) "
                "and --eval_samples above 0"
            )

    @staticmethod
    def elsewhere(option: str) -> str:
        """Return what takes a model that is there; empty for other options than --model."""
        return "a Hugging Face folder to go on from is given by --init_from" if option == "model" else ""

    def _check_new_model(self) -> None:
        """Refuse a shape that cannot be, and what is asked of a new model where an old one goes on."""
        if self.model is not None:
            shape_of(self.model, layers=self.layers, hidden=self.hidden, heads=self.heads)
            if self.vocab_from != "same":
                raise InputError(f"--vocab_from {self.vocab_from} goes with --init_from; a new model has its store's")
            return
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        for name in OF_A_NEW_MODEL:
            if (value := getattr(self, name)) != usual[name]:
                raise InputError(
                    f"--{name} {value} is of a new model; that of --init_from {self.init_from} is what it is: leave it "
                    "out, or give --model"
                )

    @property
    def shape(self) -> Shape | None:
        """The shape of a new model; None with --init_from."""
        if self.model is None:
            return None
        return shape_of(self.model, layers=self.layers, hidden=self.hidden, heads=self.heads)

    @property
    def _whole(self) -> Span:
        """The run as one span of steps, without --phase."""
        return Span(
            seq_len=self.seq_len,
            steps=self.steps,
            warmup=self.warmup,
            schedule=self.schedule,
            batch_warmup=self.batch_warmup,
            mask_rate=self.mask_rate,
            mask_rate_end=self.mask_rate_end,
            weights=tuple(weight for _, weight in self.weighted_stores),
            temperature=self.temperature,
        )

    @property
    def spans(self) -> list[Span]:
        """The phases as asked for; one where there is no --phase."""
        return parse_spans(self.phase, self._whole)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all phases."""
        return sum(span.steps for span in self.spans)

    def masking(self, rate: float) -> Masking:
        """Return how training samples are masked, where so large a share of their tokens is to be predicted."""
        return Masking(rate, *self.mask_split, unit=self.mask_unit)

    @property
    def averaging(self) -> Averaging:
        """Which average of the weights is kept."""
        return parse_average(self.average)

    @property
    def weighted_stores(self) -> list[tuple[Path, float]]:
        """--data as (folder, passes per epoch)."""
        return [_weighted(entry) for entry in self.data]

    def stop_at(self, now: float) -> float | None:
        """Return when the run should save and stop, in seconds as time.time() counts them; None without a limit."""
        end = now + self.time_limit if self.time_limit else check_job_end(os.environ) or end_by_slurm(os.environ)
        return end - self.stop_before if end else None

    def to_json(self) -> JsonObject:
        """Return the settings as JSON values, by the names of their options, for config.json."""
        settings = dataclasses.asdict(self)
        given = settings | settings.pop("flags")
        return {name: _plain(value) for name, value in given.items() if name not in ("config", "flags")} | {
            "steps": self.total_steps
        }


def check_data(data: Sequence[str]) -> None:
    """Refuse a store's weight that is not a number above 0."""
    for entry in data:
        _weighted(entry)


def check_job_end(environment: Mapping[str, str]) -> int:
    """Return when Slurm ends this job, as time.time() has it, 0 where nobody says; refuse what is no time."""
    return number_in(environment, "SLURM_JOB_END_TIME", 0, most=10**12)


def end_by_slurm(environment: Mapping[str, str]) -> int:
    """Return when a job of Slurm ends that does not say so itself (before 23.02), as time.time() has it; 0: nobody
    knows. Asked by rank 0, which tells the others when to stop."""
    job = environment.get("SLURM_JOB_ID", "")
    if not job or environment.get("RANK", "0") != "0" or shutil.which("squeue") is None:
        return 0
    with suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%e"],
            env=dict(environment) | {"SLURM_TIME_FORMAT": "%s"},
            capture_output=True,
            text=True,
            timeout=SQUEUE_SECONDS,
        )
        if re.fullmatch(r"[0-9]{1,12}", asked.stdout.strip()):
            return int(asked.stdout)
    return 0


def _weighted(entry: str) -> tuple[Path, float]:
    folder, colon, weight = entry.rpartition(":")
    if not colon or Path(entry).exists():
        return Path(entry), 1.0
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not PASSES.holds(number):
        raise InputError(f"--data {entry}: the weight {weight!r} must {PASSES} (STORE:WEIGHT)")
    return Path(folder), number


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
