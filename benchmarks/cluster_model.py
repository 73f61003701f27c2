"""What BERT-large would take on a cluster: a prediction from stated inputs, as docs/cluster.md shows it.

    python -m benchmarks.cluster_model        the tables of docs/cluster.md

    step = arithmetic + all-reduce of gradients, as far as no backward pass hides it + gather of weights + optimizer

Nothing here was measured on a network. A GPU's rate is one that was measured (docs/gpu.md) or published; how many bytes
a rank sends is counted by a test (wire_bytes); links are those of data sheets, at a stated share.
"""

from collections.abc import Iterator
from typing import NamedTuple

from pretrain.monitor.plan import wire_bytes
from pretrain.settings.shape import Shape
from pretrain.sizes import parameters, token_flops

SHAPE, VOCAB, MASK_RATE = Shape(24, 1024, 16), 30_528, 0.15
PARAMETERS = parameters(SHAPE, VOCAB)
LINK_SHARE = 0.7  # of a link's bandwidth that rings reach
BACKWARD_SHARE = 2 / 3  # of a micro-batch's time; the last one's backward pass hides communication
GPUS_PER_NODE = 8
DOLLARS_PER_GPU_HOUR = 2.50
SAMPLES_128, SAMPLES_512 = 7038 * 65_536, 1563 * 32_768  # of NVIDIA's recipe, docs/recipes.md
GPUS = (8, 64, 256, 1024)


class Gpu(NamedTuple):
    """A GPU in a cluster, as a rank sees it."""

    name: str
    samples_per_second: dict[int, float]  # by their length in tokens, without communication
    optimizer_seconds: float  # of LAMB over all parameters; stage 1 divides it by the ranks
    node_bytes_per_second: float  # to the GPUs of the node, one way
    network_bytes_per_second: float  # to other nodes, its share


class Phase(NamedTuple):
    """A part of the recipe."""

    seq_len: int
    steps: int
    global_batch: int
    micro_batch: int


PHASES = (Phase(128, 7038, 65_536, 64), Phase(512, 1563, 32_768, 16))


def h100_samples_per_second(mfu: float = 0.294) -> dict[int, float]:
    """Return samples per second of an H100, all of full length; the MFU is the trainer's, measured at 512 tokens."""
    return {length: mfu * 989e12 / (length * token_flops(SHAPE, VOCAB, length, MASK_RATE)) for length in (128, 512)}


H100 = Gpu("H100", h100_samples_per_second(), 0.0196, 450e9, 50e9)  # NVLink 4, 400 Gb/s InfiniBand for each GPU
A100 = Gpu("A100", {128: 580.0, 512: 210.0}, 0.0196, 300e9, 25e9)  # NVIDIA's published rates; NVLink 3, 200 Gb/s


def step_seconds(gpu: Gpu, phase: Phase, gpus: int) -> float:
    """Return the predicted time of a step at ZeRO stage 1 in bf16."""
    per_gpu = phase.global_batch / gpus
    arithmetic = per_gpu / gpu.samples_per_second[phase.seq_len]
    link = gpu.node_bytes_per_second if gpus <= GPUS_PER_NODE else gpu.network_bytes_per_second
    sent = wire_bytes(1, PARAMETERS, gpus, "bf16", 1) / (LINK_SHARE * link)
    all_reduce, gather = sent * 2 / 3, sent / 3
    hidden = BACKWARD_SHARE * min(phase.micro_batch, per_gpu) / gpu.samples_per_second[phase.seq_len]
    return arithmetic + max(0.0, all_reduce - hidden) + gather + gpu.optimizer_seconds / gpus


def run_hours(gpu: Gpu, gpus: int) -> float:
    """Return the predicted hours of NVIDIA's two phases."""
    return sum(phase.steps * step_seconds(gpu, phase, gpus) for phase in PHASES) / 3600


def step_table() -> Iterator[str]:
    """Yield the table of steps, hours and cost, a line of Markdown at a time."""
    yield "| GPUs | step at 128, H100 | step at 512, H100 | hours, H100 | cost, H100 | hours, A100 |"
    yield "|---|---|---|---|---|---|"
    for gpus in GPUS:
        steps = " | ".join(f"{1e3 * step_seconds(H100, phase, gpus):,.0f} ms" for phase in PHASES)
        hours = run_hours(H100, gpus)
        cost = DOLLARS_PER_GPU_HOUR * gpus * hours
        yield f"| {gpus:,} | {steps} | {hours:.2g} | ${cost:,.0f} | {run_hours(A100, gpus):.2g} |"


def preparation_table(megabytes_per_core_second: float = 7.4) -> Iterator[str]:
    """Yield what the preparation of 1 TB of text takes; the rate is that of shard_throughput.py."""
    yield "| cores | shard.py over 1 TB |"
    yield "|---|---|"
    for cores in (16, 128, 1024):
        yield f"| {cores:,} | {1e6 / (megabytes_per_core_second * cores) / 60:,.0f} minutes |"


def main() -> None:
    """Print the tables."""
    print("\n".join((*step_table(), "", *preparation_table())))


if __name__ == "__main__":
    main()
