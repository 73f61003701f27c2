"""LAMB that is right under ZeRO: one trust ratio per parameter, wherever its slices lie.

    optimizer = Lamb(groups, lr=..., **settings);  engine = deepspeed.initialize(...)
    optimizer.set_partition(map_partition(engine, model))

LAMB (You et al. 2020, algorithm 2) scales Adam's step of each parameter by |w| / |step|. ZeRO gives an optimizer flat
buffers instead of parameters, so an optimizer that takes norms of what it is given uses one ratio for a whole buffer:
it runs, its losses look normal, and the weights are wrong (docs/lamb_under_zero.md). This one takes partial norms of
the slices in a buffer, adds them over ranks with one all-reduce, and only then applies the step.

A step makes two passes over memory. In the first, in chunks that stay in cache, torch's fused Adam kernel writes the
step into the place of the gradient, which nobody needs any more; decay is added and norms are taken. The second adds it
to the weights. That is 10 streams of memory where fused AdamW has 7.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.distributed import gloo_group
from pretrain.zero.partition import Partition, Slice

CHUNK = 1 << 20  # elements (4 MB): weights, gradient and moments of a chunk fit into a CPU's last-level cache

# Published variants: defaults for what the JSON leaves open. All keep biases and LayerNorm out of weight decay.
VARIANTS: dict[str, dict[str, Any]] = {
    # NVIDIA DeepLearningExamples and apex FusedLAMB with use_nvlamb=False, its default: bias correction, a ratio of 1
    # for what does not decay. Its gradient pre-normalisation by max_grad_norm=1 is the same as "gradient_clipping": 1.
    "nvidia": {"bias_correction": True, "min_ratio": 0.0, "max_ratio": float("inf"), "adapt_undecayed": False},
    # apex FusedLAMB with use_nvlamb=True: every parameter is adapted.
    "nvlamb": {"bias_correction": True, "min_ratio": 0.0, "max_ratio": float("inf"), "adapt_undecayed": True},
    # You et al.'s own TensorFlow code (google-research/bert, LAMBOptimizer): no bias correction; biases and LayerNorm
    # excluded from decay and from adaptation.
    "paper": {"bias_correction": False, "min_ratio": 0.0, "max_ratio": float("inf"), "adapt_undecayed": False},
    # DeepSpeed's bing_bert: the ratio is kept within bounds (min_coeff, max_coeff), and everything is adapted.
    "bing_bert": {"bias_correction": True, "min_ratio": 0.01, "max_ratio": 0.3, "adapt_undecayed": True},
}

NO_PARTITION = (
    "Lamb.step() does not know where the parameters lie, so that its trust ratios would be wrong; call "
    "optimizer.set_partition(map_partition(engine, model)) after deepspeed.initialize(...), or without an engine "
    "optimizer.set_partition(unsharded_partition(model, optimizer)), both of pretrain.zero.partition: docs/library.md"
)


class _Cut(NamedTuple):
    """Where a buffer is cut to have some slices of it, which lie in order and do not overlap."""

    sizes: list[int]  # of all pieces, what lies between slices included
    places: list[int]  # of the slices among the pieces

    @classmethod
    def of(cls, slices: list[Slice], size: int) -> "_Cut":
        """Return how a buffer of so many elements is cut: slices [2:5] and [6:9] of 10 make 2 3 1 3 1, at 1 and 3."""
        sizes: list[int] = []
        places, end = [], 0
        for slice_ in slices:
            between = slice_.buffer_offset - end
            places.append(len(sizes) + 1)
            sizes += [between, slice_.length]
            end += between + slice_.length
        return cls([*sizes, size - end], places)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the elements of each slice in a flat tensor that is laid out like the buffer: views, made at once.

        One by one they would keep the host busy for longer than a GPU takes for the step.
        """
        pieces = flat.split_with_sizes(self.sizes)
        return [pieces[place] for place in self.places]


class _BufferPlan(NamedTuple):
    """What step() needs to know about one fp32 buffer."""

    buffer_index: int  # in the partition
    params: list[str]  # parameters with a slice in this buffer on any rank, in the same order on all ranks
    slices: _Cut  # of this rank
    chunks: list[_Cut]  # the same, cut further and batched for the first pass
    param_index: Tensor  # [slices] int64, of each slice the index of its parameter in `params`; on the buffer's device
    chunk_param_index: Tensor  # the same for the slices of all chunks, end to end


class _Flat(NamedTuple):
    """The tensors of one buffer, flat, all laid out alike."""

    weights: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Lamb(torch.optim.Optimizer):
    """LAMB over the slices of a partition. `step()` overwrites gradients."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
        min_ratio: float = 0.0,
        max_ratio: float = float("inf"),
        adapt_undecayed: bool = False,
    ):
        super().__init__(params, dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay))
        self.bias_correction, self.adapt_undecayed = bias_correction, adapt_undecayed
        self.min_ratio, self.max_ratio = min_ratio, max_ratio
        self.is_sharded = False
        self._group: dist.ProcessGroup | None = None
        self._plans: dict[int, _BufferPlan] = {}  # by id of the buffer
        self._ratios: dict[int, Tensor] = {}  # newest trust ratios [params], by index of the buffer

    def set_partition(self, partition: Partition) -> None:
        """Learn where the slices of every parameter lie; step() needs to know. Collective where sharded."""
        self.is_sharded = partition.stage > 0
        if self.is_sharded and not partition.fp32_buffers[0].is_cuda:
            self._group = gloo_group()  # buffers offloaded from a GPU: NCCL takes no host tensors
        slices_in: dict[int, list[Slice]] = defaultdict(list)
        for slice_ in partition.slices:
            slices_in[slice_.buffer].append(slice_)
        for index, buffer in enumerate(partition.fp32_buffers):
            params = partition.params_in_buffer[index]
            slices = sorted(slices_in[index], key=lambda slice_: slice_.buffer_offset)
            chunks = [slices] if buffer.is_cuda else _chunks(slices, CHUNK)
            param_index, chunk_param_index = (
                torch.tensor([params.index(slice_.name) for slice_ in some], dtype=torch.int64, device=buffer.device)
                for some in (slices, [slice_ for chunk in chunks for slice_ in chunk])
            )
            whole, *cuts = (_Cut.of(some, buffer.numel()) for some in (slices, *chunks))
            self._plans[id(buffer)] = _BufferPlan(index, params, whole, cuts, param_index, chunk_param_index)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update what `param_groups` holds now: DeepSpeed calls this once per group or sub-group, with its buffer.

        Collective over the ranks where a group is adapted and parameters are sharded.

        Raises
        ------
        RuntimeError: there are gradients, but nobody has told where their parameters lie.
        """
        for group in self.param_groups:
            for buffer in group["params"]:
                if buffer.grad is None:
                    continue
                if (plan := self._plans.get(id(buffer))) is not None:
                    self._update(buffer, plan, group)
                # DeepSpeed calls step() with zero gradients while it starts (#5104): not a step.
                elif buffer.grad.any():
                    raise RuntimeError(NO_PARTITION)

    def trust_ratios(self) -> dict[str, float]:
        """Return the newest trust ratio of every adapted parameter, the same on all ranks; waits for the device."""
        return {
            name: ratio
            for plan in self._plans.values()
            if plan.buffer_index in self._ratios
            for name, ratio in zip(plan.params, self._ratios[plan.buffer_index].tolist(), strict=True)
        }

    # The paper's algorithm 2, for a parameter w with gradient g; ' is Adam's bias correction:
    #
    #     m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2        moments
    #     r = m' / (sqrt(v') + eps)                                           Adam's step
    #     u = r + weight_decay w                                              the update, before it is scaled
    #     w = w - lr (|w| / |u|) u                                            |w| / |u| is the trust ratio
    #
    # What neither decays nor is adapted has the ratio 1: the last line is w - lr r, which is Adam.

    def _update(self, buffer: Tensor, plan: _BufferPlan, group: dict[str, Any]) -> None:
        """Apply one step to this rank's slices in a buffer."""
        state = self.state[buffer]
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(buffer), torch.zeros_like(buffer)
        if "step" not in state:  # Engine.restore() sets it before the first step of a resumed run
            state["step"] = torch.zeros((), device=buffer.device)
        state["step"] += 1
        assert buffer.grad is not None
        flat = _Flat(*(tensor.view(-1) for tensor in (buffer, buffer.grad, state["exp_avg"], state["exp_avg_sq"])))
        # After very many steps Adam's bias correction is 1.
        step = state["step"] if self.bias_correction else torch.full_like(state["step"], 1e9)
        if not (group["weight_decay"] or self.adapt_undecayed):
            weights = plan.slices.views(flat.weights)
            _fused_adam(weights, flat, plan.slices, group, step=step, lr=group["lr"], weight_decay=0.0)
            return
        # First pass: -u takes the place of g. |w|^2 and |u|^2 of each parameter [params, 2], added up over its slices
        # here and on all ranks.
        squared_norms = torch.zeros(len(plan.params), 2, dtype=torch.float64, device=buffer.device)
        if plan.slices.places:
            of_slices = [_write_updates(flat, chunk, group, step) for chunk in plan.chunks]
            squared_norms.index_add_(0, plan.chunk_param_index, torch.cat(of_slices))
        if self.is_sharded:
            dist.all_reduce(squared_norms, group=self._group)
        weight_norm, update_norm = squared_norms.sqrt().unbind(1)
        ratio = (weight_norm / update_norm).clamp(self.min_ratio, self.max_ratio)
        ratio = torch.where((weight_norm > 0) & (update_norm > 0), ratio, 1.0)
        self._ratios[plan.buffer_index] = ratio
        # Second pass: w += lr * ratio * -u, each slice with the ratio of its parameter.
        _apply_updates(flat, plan.slices, (ratio * group["lr"]).float().index_select(0, plan.param_index))


def _write_updates(flat: _Flat, chunk: _Cut, group: dict[str, Any], step: Tensor) -> Tensor:
    """Update the moments of a chunk and put the negative update, -u, in the place of the gradient.

    Returns |w|^2 and |u|^2 of each slice [slices, 2], float64.
    """
    w, g = chunk.views(flat.weights), chunk.views(flat.gradient)
    # The kernel has out = out * (1 - lr * weight_decay) - lr * r. With both 1, out is -r, whatever it was before.
    _fused_adam(g, flat, chunk, group, step=step, lr=1.0, weight_decay=1.0)
    if group["weight_decay"]:
        torch._foreach_add_(g, w, alpha=-group["weight_decay"])
    return torch.stack([_squared_norms(w), _squared_norms(g)], 1)


def _apply_updates(flat: _Flat, slices: _Cut, rates: Tensor) -> None:
    """weights += rate * what lies in the place of the gradient, slice by slice; `rates` [slices]."""
    weights, updates = slices.views(flat.weights), slices.views(flat.gradient)
    if flat.weights.is_cuda:  # rates stay on the device, so that the host does not wait for them
        torch._foreach_addcmul_(weights, updates, list(rates.unbind()))
        return
    for weight, update, rate in zip(weights, updates, rates.tolist(), strict=True):
        weight.add_(update, alpha=rate)


def _fused_adam(
    out: list[Tensor],
    flat: _Flat,
    slices: _Cut,
    group: dict[str, Any],
    *,
    step: Tensor,
    lr: float,
    weight_decay: float,
) -> None:
    """out = out * (1 - lr * weight_decay) - lr * Adam's step, and the moments of the slices.

    `out` [slices] may be the gradient itself: the kernel has read both of an element before it writes one.
    """
    beta1, beta2 = group["betas"]
    g, m, v = (slices.views(tensor) for tensor in (flat.gradient, flat.exp_avg, flat.exp_avg_sq))
    torch._fused_adamw_(
        out, g, m, v, [], [step] * len(g), lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay,
        eps=group["eps"], amsgrad=False, maximize=False,
    )  # fmt: skip


def _squared_norms(tensors: list[Tensor]) -> Tensor:
    """Return |x|^2 of each tensor [tensors], float64."""
    if tensors[0].is_cuda:
        return torch.stack(torch._foreach_norm(tensors)).double().square()
    return torch.stack([torch.dot(tensor, tensor) for tensor in tensors]).double()  # twice as fast as norm()


def _chunks(slices: list[Slice], size: int) -> list[list[Slice]]:
    """Cut slices into parts of at most `size` elements and gather parts into batches of about that size.

    Lengths [25, 3, 4] with a size of 10 make [10], [10], [5, 3], [4].
    """
    parts = [
        slice_.part(first, min(size, slice_.length - first))
        for slice_ in slices
        for first in range(0, slice_.length, size)
    ]
    batches: list[list[Slice]] = []
    room = 0
    for part in parts:
        if part.length > room:
            batches.append([])
            room = size
        batches[-1].append(part)
        room -= part.length
    return batches
