"""LAMB that is right under ZeRO: one trust ratio per parameter, wherever its slices lie.

    optimizer = Lamb(groups, lr=..., **settings);  engine = deepspeed.initialize(...);  optimizer.bind(partition)

LAMB (You et al. 2020, algorithm 2) scales Adam's step of each parameter by |w| / |step|. ZeRO gives an optimizer flat
pieces instead of parameters, so an optimizer that takes norms of what it is given uses one ratio for a whole partition:
it runs, its losses look normal, and the weights are wrong (docs/lamb_under_zero.md). This one takes partial norms of
the slices in a piece, adds them over ranks with one all-reduce, and only then applies the step.

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

UNBOUND = (
    "Lamb.step() does not know where the parameters lie, so that its trust ratios would be wrong; call "
    "optimizer.bind(bind(engine, model)) after deepspeed.initialize(...), or without an engine "
    "optimizer.bind(unsharded(model, optimizer)), both of pretrain.zero.partition: docs/library.md"
)


class _Layout(NamedTuple):
    """What step() needs to know about one master."""

    number: int  # of the master
    members: list[str]  # parameters with a slice in this master on any rank, in the same order on all ranks
    slices: list[Slice]  # of this rank
    chunks: list[list[Slice]]  # the same, cut and batched for the first pass
    rows: Tensor  # for each slice, the row of its parameter among members; on the master's device
    chunked_rows: Tensor  # for each chunked slice, the same


class Lamb(torch.optim.Optimizer):
    """LAMB over the partition map. `step()` overwrites gradients."""

    def __init__(
        self,
        params: Iterable[Any],
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
        self._layouts: dict[int, _Layout] = {}  # by id of the master
        self._ratios: dict[int, Tensor] = {}  # newest trust ratios [members], by number of the master

    def bind(self, partition: Partition) -> None:
        """Learn where the slices of every parameter lie; step() needs to know. Collective where sharded."""
        self.is_sharded = partition.stage > 0
        if self.is_sharded and not partition.masters[0].is_cuda:
            self._group = gloo_group()  # masters offloaded from a GPU: NCCL takes no host tensors
        of_master: dict[int, list[Slice]] = defaultdict(list)
        for piece in partition.slices:
            of_master[piece.master].append(piece)
        for number, master in enumerate(partition.masters):
            members, slices = partition.members[number], of_master[number]
            chunks = [slices] if master.is_cuda else _chunks(slices, CHUNK)
            rows, chunked_rows = (
                torch.tensor([members.index(piece.name) for piece in pieces], dtype=torch.int64, device=master.device)
                for pieces in (slices, [piece for chunk in chunks for piece in chunk])
            )
            self._layouts[id(master)] = _Layout(number, members, slices, chunks, rows, chunked_rows)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of what `param_groups` holds now: DeepSpeed calls this once a group or sub-group, with its master.

        Collective over the ranks where a group is adapted and parameters are sharded.

        Raises
        ------
        RuntimeError: there are gradients, but nobody has told where their parameters lie.
        """
        for group in self.param_groups:
            for master in group["params"]:
                if master.grad is None:
                    continue
                if (layout := self._layouts.get(id(master))) is not None:
                    self._update(master, layout, group)
                elif (
                    master.grad.any()
                ):  # DeepSpeed calls step() with zero gradients while it starts (#5104): not a step
                    raise RuntimeError(UNBOUND)

    def trust_ratios(self) -> dict[str, float]:
        """The newest trust ratio of every adapted parameter, the same on all ranks; waits for the device."""
        return {
            name: ratio
            for layout in self._layouts.values()
            if layout.number in self._ratios
            for name, ratio in zip(layout.members, self._ratios[layout.number].tolist(), strict=True)
        }

    def _update(self, master: Tensor, layout: _Layout, group: dict[str, Any]) -> None:
        state = self.state[master]
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        if "step" not in state:
            state["step"] = torch.zeros((), device=master.device)
        state["step"] += 1
        weights, gradient = master.view(-1), master.grad.view(-1)  # type: ignore[union-attr]
        if not (group["weight_decay"] or self.adapt_undecayed):
            self._adam(_views(weights, layout.slices), gradient, state, layout.slices, group, lr=group["lr"], fade=0.0)
            return
        squares = torch.zeros(len(layout.members), 2, dtype=torch.float64, device=master.device)
        if layout.slices:
            found = [self._directions(weights, gradient, state, chunk, group) for chunk in layout.chunks]
            squares.index_add_(0, layout.chunked_rows, torch.cat(found))
        if self.is_sharded:
            dist.all_reduce(squares, group=self._group)
        weight_norm, step_norm = squares.sqrt().unbind(1)
        ratio = (weight_norm / step_norm).clamp(self.min_ratio, self.max_ratio)
        ratio = torch.where((weight_norm > 0) & (step_norm > 0), ratio, 1.0)
        self._ratios[layout.number] = ratio
        _add(weights, gradient, layout.slices, (ratio * group["lr"]).float().index_select(0, layout.rows))

    def _directions(
        self, weights: Tensor, gradient: Tensor, state: dict[str, Tensor], chunk: list[Slice], group: dict[str, Any]
    ) -> Tensor:
        """Update the moments of a chunk and put minus the step in the place of the gradient.

        Returns |w|^2 and |step|^2 of each slice [slices, 2], float64.
        """
        w, g = _views(weights, chunk), _views(gradient, chunk)
        self._adam(g, gradient, state, chunk, group, lr=1.0, fade=1.0)
        if group["weight_decay"]:
            torch._foreach_add_(g, w, alpha=-group["weight_decay"])
        return torch.stack([_squares(w), _squares(g)], 1)

    def _adam(
        self,
        out: list[Tensor],
        gradient: Tensor,
        state: dict[str, Tensor],
        slices: list[Slice],
        group: dict[str, Any],
        lr: float,
        fade: float,
    ) -> None:
        """out = out * (1 - lr * fade) - lr * Adam's step, and the moments of the slices.

        `out` may be the gradient itself: the kernel has read both of an element before it writes one.
        """
        # After very many steps Adam's bias correction is 1.
        step = state["step"] if self.bias_correction else torch.full_like(state["step"], 1e9)
        beta1, beta2 = group["betas"]
        g, m, v = (_views(tensor, slices) for tensor in (gradient, state["exp_avg"], state["exp_avg_sq"]))
        torch._fused_adamw_(
            out, g, m, v, [], [step] * len(slices), lr=lr, beta1=beta1, beta2=beta2, weight_decay=fade,
            eps=group["eps"], amsgrad=False, maximize=False,
        )  # fmt: skip


def _squares(tensors: list[Tensor]) -> Tensor:
    """|x|^2 of each tensor, float64."""
    if tensors[0].is_cuda:
        return torch.stack(torch._foreach_norm(tensors)).double().square()
    return torch.stack([torch.dot(tensor, tensor) for tensor in tensors]).double()  # twice as fast as norm()


def _views(tensor: Tensor, slices: list[Slice]) -> list[Tensor]:
    flat = tensor.view(-1)
    return [flat.narrow(0, piece.start, piece.length) for piece in slices]


def _add(weights: Tensor, steps: Tensor, slices: list[Slice], rates: Tensor) -> None:
    """weights += rate * step, slice by slice."""
    w, s = _views(weights, slices), _views(steps, slices)
    if weights.is_cuda:  # rates stay on the device, so that the host does not wait for them
        for weight, step, own in zip(w, s, rates.unbind(), strict=True):
            weight.addcmul_(step, own)
        return
    for weight, step, rate in zip(w, s, rates.tolist(), strict=True):
        weight.add_(step, alpha=rate)


def _chunks(slices: list[Slice], size: int) -> list[list[Slice]]:
    """Cut slices into parts of at most `size` elements and gather parts into batches of about that size."""
    parts = [
        piece._replace(start=piece.start + first, offset=piece.offset + first, length=min(size, piece.length - first))
        for piece in slices
        for first in range(0, piece.length, size)
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
