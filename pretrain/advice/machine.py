"""What this machine, or one that is elsewhere, can do: cores, memory, GPUs, and how fast a BERT trains on it.

    here() -> Machine                       looked at, with a probe of a second; torch is not imported
    machine_named("a100", 8) -> Machine         from data sheets

Speed is a peak times an MFU, the share of it that training reaches (model arithmetic for real tokens). On a CPU the
peak is measured in processor time of one thread, so that other programs do not count; what they take is told apart. On
a GPU it is the data sheet's, and the MFU a stated one; an H100 was measured (docs/gpu.md).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from data_prep.cli import InputError
from data_prep.json_types import JsonObject
from pretrain.sizes import Shape, token_flops

PROBE_SECONDS = 60.0  # of a machine so busy that the probe does not end


class Sheet(NamedTuple):
    """What a vendor says of a GPU."""

    called: str  # in torch's and nvidia-smi's name of it
    peak: float  # dense 16-bit matrix products with fp32 sums, FLOP/s
    memory: float  # bytes
    mfu: float  # share of the peak that training a BERT-large reaches
    precision: str = "bf16"
    source: str = ""


# The MFU is what published runs reached, where there are any, less what a first run loses: BERT-large on A100 .44 at
# 580 sequences of 128 tokens per second (NVIDIA DeepLearningExamples), on V100 .51 (bing_bert, 272 of them). On one
# H100 the trainer reached .29 with --compile (docs/gpu.md).
SHEETS = {
    "b200": Sheet("B200", 2250e12, 180e9, 0.25, source="NVIDIA HGX B200 data sheet"),
    "h200": Sheet("H200", 989e12, 141e9, 0.30, source="NVIDIA H200 data sheet"),
    "h100": Sheet("H100", 989e12, 80e9, 0.30, source="NVIDIA H100 SXM data sheet"),
    "h100-pcie": Sheet("H100 PCIe", 756e12, 80e9, 0.30, source="NVIDIA H100 PCIe data sheet"),
    "a100": Sheet("A100", 312e12, 80e9, 0.40, source="NVIDIA A100 80 GB data sheet"),
    "a100-40": Sheet("A100-SXM4-40GB", 312e12, 40e9, 0.40, source="NVIDIA A100 data sheet"),
    "v100": Sheet("V100", 125e12, 16e9, 0.35, "fp16", source="NVIDIA V100 SXM2 data sheet"),
    "v100-32": Sheet("V100-SXM2-32GB", 125e12, 32e9, 0.35, "fp16", source="NVIDIA V100 SXM2 data sheet"),
    "l40s": Sheet("L40S", 362e12, 48e9, 0.35, source="NVIDIA L40S data sheet"),
    "l40": Sheet("L40", 181e12, 48e9, 0.35, source="NVIDIA L40 data sheet"),
    "l4": Sheet("L4", 121e12, 24e9, 0.35, source="NVIDIA L4 data sheet"),
    "a40": Sheet("A40", 150e12, 48e9, 0.35, source="NVIDIA A40 data sheet"),
    "a30": Sheet("A30", 165e12, 24e9, 0.35, source="NVIDIA A30 data sheet"),
    "a10g": Sheet("A10G", 70e12, 24e9, 0.40, source="AWS G5 instances"),
    "a10": Sheet("A10", 125e12, 24e9, 0.35, source="NVIDIA A10 data sheet"),
    "a6000": Sheet("RTX A6000", 155e12, 48e9, 0.35, source="NVIDIA RTX A6000 data sheet"),
    "rtx5090": Sheet("RTX 5090", 210e12, 32e9, 0.35, source="NVIDIA RTX Blackwell whitepaper"),
    "rtx4090": Sheet("RTX 4090", 165e12, 24e9, 0.35, source="NVIDIA Ada whitepaper"),
    "rtx3090": Sheet("RTX 3090", 71e12, 24e9, 0.40, source="NVIDIA GA102 whitepaper"),
    "t4": Sheet("T4", 65e12, 16e9, 0.30, "fp16", source="NVIDIA T4 data sheet"),
}
# Small matrices do not fill a GPU: shares of the MFU of BERT-large.
SMALLER_ON_GPU = {128: 0.1, 256: 0.2, 512: 0.5, 768: 0.85, 1024: 1.0}
# On a CPU, of the peak of a square matrix product: docs/log.md (4 x 256 .60, 6 x 512 .70; bert-tiny 23,000 tokens/s on
# two cores), with the trainer around the step and as many ranks as cores.
MFU_ON_CPU = {128: 0.31, 256: 0.6, 512: 0.66, 768: 0.66, 1024: 0.66}
# A CPU that multiplies bf16 trains in it from this hidden size on; smaller models lose by it. How many times as fast as
# in fp32 is measured on two cores of an AMD EPYC (Zen 5): docs/log.md.
BF16_FROM_HIDDEN = 256
BF16_ON_CPU = {256: 1.9, 512: 2.7, 768: 2.7, 1024: 2.7}
CPU_INFO = Path("/proc/cpuinfo")
BF16_UNITS = {"avx512_bf16", "amx_bf16"}  # its flags
# A GPU cannot do a micro-batch in less, however small: seconds, and more for each layer, in which kernels are started.
# As the MFU, a stated number.
LEAST_SECONDS, LEAST_SECONDS_PER_LAYER = 4e-3, 1.5e-3
RANK_TOKENS = 1 << 15  # of a micro-batch that fills a GPU
ON_SEVERAL_GPUS = 0.93  # of one machine: their sums of gradients; a stated share, as the MFU is
USUAL_CORE = 60e9  # FLOP/s of fp32 of a core, where the probe fails

_PROBE = """
import sys, time
import numpy
size = 768
a = numpy.ones((size, size), dtype=numpy.float32)
best, end = 1e9, time.thread_time() + float(sys.argv[1])
while time.thread_time() < end:
    start = time.thread_time()
    a @ a
    best = min(best, time.thread_time() - start)
print(2 * size**3 / best)
"""


class Machine(NamedTuple):
    """Where a run is, or would be."""

    name: str
    ranks: int
    peak: float  # FLOP/s per rank
    memory: float  # bytes per rank
    is_gpu: bool
    is_here: bool
    precision: str  # the fastest that it has
    mfu: float  # of BERT-large
    busy: float = 0.0  # cores that other programs use, of a CPU
    cores: int = 0
    source: str = ""

    def mfu_of(self, shape: Shape) -> float:
        """Return the share of the peak that a model of this shape reaches; on a CPU of the peak in fp32, so that it may
        be above 1 in bf16."""
        by_hidden = SMALLER_ON_GPU if self.is_gpu else MFU_ON_CPU
        nearest = min(by_hidden, key=lambda hidden: abs(hidden - shape.hidden))
        if self.is_gpu:
            return by_hidden[nearest] * self.mfu
        return by_hidden[nearest] * (BF16_ON_CPU[nearest] if self.precision_of(shape) == "bf16" else 1.0)

    def precision_of(self, shape: Shape) -> str:
        """Return the precision in which a model of this shape trains fastest."""
        return self.precision if self.is_gpu or shape.hidden >= BF16_FROM_HIDDEN else "fp32"

    def tokens_per_second(
        self, shape: Shape, vocab_size: int, sample_tokens: float, mask_rate: float, rank_tokens: float = RANK_TOKENS
    ) -> float:
        """Return the real tokens over all ranks, which take so many in a micro-batch, on a machine that has nothing
        else to do."""
        seconds = (
            rank_tokens * token_flops(shape, vocab_size, sample_tokens, mask_rate) / self.peak / self.mfu_of(shape)
        )
        if self.is_gpu:
            seconds = max(seconds, LEAST_SECONDS + LEAST_SECONDS_PER_LAYER * shape.layers)
        together = self.ranks * (ON_SEVERAL_GPUS if self.is_gpu and self.ranks > 1 else 1.0)
        return together * rank_tokens / seconds

    def in_words(self) -> str:
        """Return it in words."""
        each = f"{self.memory / 1e9:.0f} GB"
        if self.is_gpu:
            return f"{self.ranks} x {self.name}, {each} each, {self.peak / 1e12:.0f} TFLOP/s ({self.source})"
        ranks = f"{self.ranks} rank{'s' * (self.ranks > 1)}"
        units = " and bf16 units" * (self.precision == "bf16")
        return (
            f"{self.cores} core{'s' * (self.cores > 1)} without a GPU, {self.memory * self.ranks / 1e9:.0f} GB, "
            f"{self.peak * self.ranks / 1e9:.0f} GFLOP/s of fp32{units}; {ranks}"
        )


def here(ranks: int = 0) -> Machine:
    """Return this machine: its GPUs, where it has some that may be used, else its cores."""
    found = [] if os.environ.get("DS_ACCELERATOR") == "cpu" else gpus()
    if found:
        name, memory = found[0]
        sheet = sheet_of(name) or SHEETS["t4"]
        count = ranks or len(found)
        return Machine(
            name, count, sheet.peak, memory or sheet.memory, True, True, sheet.precision, sheet.mfu, source=sheet.source
        )
    cores = usable_cores()
    count = ranks or _power_of_two(min(cores, 8))
    peak, precision = core_peak(), "bf16" if has_bf16_units() else "fp32"
    return Machine(
        "CPU", count, peak * cores / count, usable_memory() / count, False, True, precision, 1.0,
        busy=busy_cores(), cores=cores, source="measured",
    )  # fmt: skip


def machine_named(gpu: str, ranks: int = 1) -> Machine:
    """Return a machine of so many GPUs, by its data sheet.

    Raises
    ------
    InputError: a GPU that is not in the table.
    """
    sheet = SHEETS.get(gpu.lower().replace(" ", "").replace("_", "-"))
    if sheet is None:
        raise InputError(f"--gpu {gpu} is not known; known are {', '.join(sorted(SHEETS))}")
    ranks = max(1, ranks)
    return Machine(gpu.upper(), ranks, sheet.peak, sheet.memory, True, False, sheet.precision, sheet.mfu,
                   source=sheet.source)  # fmt: skip


def sheet_of(name: str) -> Sheet | None:
    """Return the data sheet of a GPU by the name that its driver gives it."""
    fitting = [sheet for sheet in SHEETS.values() if sheet.called.lower() in name.lower()]
    return max(fitting, key=lambda sheet: len(sheet.called), default=None)


def gpus() -> list[tuple[str, float]]:
    """Return name and bytes of memory of each GPU that may be used, as nvidia-smi tells; nothing is started where there
    is none."""
    if shutil.which("nvidia-smi") is None or not any(Path("/dev").glob("nvidia[0-9]*")):
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in told.splitlines():
        name, _, memory = line.rpartition(",")
        found.append((name.strip(), float(memory) * 2**20 if memory.strip().isdecimal() else 0.0))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return found[: len([device for device in visible.split(",") if device.strip() not in ("", "-1")])]


def in_precision(machine: Machine, precision: str | None) -> Machine:
    """Return a machine that trains in a precision that is asked for; None: in its own. A CPU is taken for as fast in 16
    bit as in its own."""
    if precision is None or (precision != "fp32" and not machine.is_gpu):
        return machine
    return machine._replace(precision=precision)


def usable_cores() -> int:
    """Return the cores that this process may use: its affinity, and what its control group allows."""
    cores = len(os.sched_getaffinity(0))
    quota = _control_group("cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def has_bf16_units() -> bool:
    """Return whether this CPU multiplies bf16 matrices by instructions of its own, as Linux on x86 tells."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not BF16_UNITS.isdisjoint(flags.split())


def busy_cores() -> float:
    """Return the cores that other programs wanted in the last minute."""
    return max(0.0, os.getloadavg()[0] - 1)


def usable_memory() -> float:
    """Return the bytes of memory that this process may use."""
    whole = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = _control_group("memory.max").strip()
    return min(whole, float(limit)) if limit.isdecimal() else whole


def _control_group(name: str) -> str:
    """Return what the control group (version 2) of this process says, of itself or of the container."""
    own = Path("/proc/self/cgroup")
    inside = own.read_text().strip().rpartition(":")[2].lstrip("/") if own.is_file() else ""
    for folder in (Path("/sys/fs/cgroup") / inside, Path("/sys/fs/cgroup")):
        path = folder / name
        if path.is_file():
            return path.read_text()
    return ""


def core_peak(seconds: float = 0.4) -> float:
    """Return the FLOP/s of one core in fp32 matrix products: the best of so many seconds of processor time, so that
    other programs do not count. In a process of its own, as the number of threads is settled at the first import of
    numpy."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-c", _PROBE, str(seconds)]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True, env=os.environ | threads
        ).stdout
        return float(told)
    except (OSError, ValueError, subprocess.SubprocessError):
        return USUAL_CORE


def _power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def machine_json(machine: Machine) -> JsonObject:
    """Return it as JSON values."""
    return machine._asdict()
