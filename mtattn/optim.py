"""Parameter groups, AdamW, Muon, and learning-rate schedules as pure functions of the run's progress."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Schedule = Callable[[float, float, float], float]


@dataclass(frozen=True)
class OptimConfig:
    """The `[optim]` section.

    kind: "muon" trains the hidden matrices with Muon and the rest (embeddings, norms, biases) with AdamW;
        "adamw" trains everything with AdamW.
    lr: AdamW's peak learning rate. muon_lr: Muon's.
    schedule: the shape of the learning rate over the run, a name in SCHEDULES.
    warmup: share of the run in which the rate rises linearly from 0, in [0, 1).
    decay: share of the run at its end in which "linear" falls to 0, at most what the warm-up leaves.
    weight_decay: decoupled decay of the hidden matrices, per unit of learning rate.
    clip_norm: the gradient's global norm is cut to this; 0 turns it off.
    """

    kind: Literal["muon", "adamw"] = "muon"
    lr: float = 2e-3
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9
    weight_decay: float = 0.05
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = "linear"
    warmup: float = 0.1
    decay: float = 0.6
    clip_norm: float = 1.0
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 <= {name} < 1")
        for name in ("lr", "muon_lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: more than 0")
        for name in ("weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)}; allowed: 0 <= beta < 1")


def _linear(progress: float, warmup: float, decay: float) -> float:
    decay = min(decay, 1 - warmup)
    return min(1.0, (1 - progress) / decay) if decay else 1.0


def _cosine(progress: float, warmup: float, decay: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _inverse_sqrt(progress: float, warmup: float, decay: float) -> float:
    # Vaswani et al. 2017, section 5.3, with the run's length as the unit; without warm-up, 1 % of it stands in.
    start = warmup or 0.01
    return math.sqrt(start / max(progress, start))


def _constant(progress: float, warmup: float, decay: float) -> float:
    return 1.0


SCHEDULES: dict[str, Schedule] = {
    "linear": _linear,
    "cosine": _cosine,
    "inverse_sqrt": _inverse_sqrt,
    "constant": _constant,
}


def lr_multiplier(config: OptimConfig, progress: float) -> float:
    """What the peak learning rates are multiplied by when `progress` (0 to 1) of the run is done."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return progress / config.warmup
    return SCHEDULES[config.schedule](progress, config.warmup, config.decay)


class ParamGroup:
    """Parameters that share settings.

    Attributes:
        params: [n] parameters.
        peak_lr: their learning rate where the schedule is at its highest; lr: now. On a GPU it is a tensor, so that a
            recorded step (`mtattn.graph`) reads what `set_lr` writes.
        weight_decay: decoupled, per unit of learning rate.
    """

    def __init__(self, params: Iterable[Tensor], peak_lr: float, weight_decay: float = 0.0) -> None:
        self.params, self.peak_lr, self.weight_decay = list(params), peak_lr, weight_decay
        device = self.params[0].device
        self.lr: float | Tensor = torch.tensor(peak_lr, device=device) if device.type == "cuda" else peak_lr

    def set_lr(self, multiplier: float) -> None:
        """Take the peak learning rate times `multiplier`."""
        if isinstance(self.lr, Tensor):
            self.lr.fill_(self.peak_lr * multiplier)
        else:
            self.lr = self.peak_lr * multiplier


class Layout:
    """Where the rows of parameters are: all of them here. In `mtattn.sharding` each of several ranks has a part."""

    def whole(self, own: Tensor, dim: int = 0) -> Tensor:
        """All rows, which are along `dim`, of a tensor that has some here; all ranks ask for it."""
        return own

    def own(self, whole: Tensor, dim: int = 0) -> Tensor:
        """The inverse: those of all rows that are here."""
        return whole

    def saved(self, own: Tensor, dim: int = 0) -> Tensor:
        """All rows, where a checkpoint is written; all ranks ask for it."""
        return own


class Optimizer:
    """What changes parameters by their gradients, and the running statistics that it keeps of each.

    `torch.optim.Optimizer` would do, but imports torch's compiler, which takes about as long as torch itself.

    Attributes:
        state: parameter -> name -> statistic.
        row_dim: the dimension along which a statistic, if it has any, has the rows of its parameter.
    """

    row_dim = 0

    def __init__(self, groups: Sequence[ParamGroup]) -> None:
        self.groups = groups
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    def step(self) -> None:
        """Change every parameter once."""
        raise NotImplementedError

    @property
    def params(self) -> list[Tensor]:
        """All parameters, in the order of their groups."""
        return [parameter for group in self.groups for parameter in group.params]

    def tensors(self) -> dict[str, Tensor]:
        """The statistics by name, PARAMETER.STATISTIC, parameters numbered as in `params`."""
        return {
            f"{number}.{name}": statistic
            for number, parameter in enumerate(self.params)
            if parameter in self.state
            for name, statistic in self.state[parameter].items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        params = self.params
        self.state.clear()
        for key, statistic in tensors.items():
            number, _, name = key.partition(".")
            parameter = params[int(number)]
            self.state[parameter][name] = statistic.to(parameter.device)


def make_optimizers(model: nn.Module, config: OptimConfig, layout: Layout | None = None) -> list[Optimizer]:
    """The optimisers that share the model's parameters.

    The weights of linear layers are "hidden": Muon's, or decayed by AdamW. Embeddings, norms, biases and
    what a kind of score learns are neither.
    """
    hidden = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    known = {id(parameter) for parameter in hidden}
    rest = ParamGroup((p for p in model.parameters() if id(p) not in known), config.lr)
    if config.kind == "adamw":
        return [AdamW([rest, ParamGroup(hidden, config.lr, config.weight_decay)], betas=config.betas, eps=config.eps)]
    group = ParamGroup(hidden, config.muon_lr, config.weight_decay)
    muon = Muon([group], momentum=config.muon_momentum, layout=layout)
    return [muon, AdamW([rest], betas=config.betas, eps=config.eps)]


def set_lr(optimizers: Iterable[Optimizer], multiplier: float) -> None:
    """Give every group its peak learning rate times `multiplier`."""
    for group in (group for optimizer in optimizers for group in optimizer.groups):
        group.set_lr(multiplier)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    The same update as `torch.optim.AdamW` (a test compares them), by the kernel that its `fused=True` calls.
    """

    def __init__(self, groups: Sequence[ParamGroup], *, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups)
        self._betas, self._eps = betas, eps

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.groups:
            params = [parameter for parameter in group.params if parameter.grad is not None]
            gradients = [parameter.grad for parameter in group.params if parameter.grad is not None]
            for parameter in params:
                if parameter not in self.state:
                    means = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **means}
            first, second, steps = (
                [self.state[parameter][name] for parameter in params] for name in ("exp_avg", "exp_avg_sq", "step")
            )
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                params,
                gradients,
                first,
                second,
                [],
                steps,
                lr=group.lr,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=group.weight_decay,
                eps=self._eps,
                amsgrad=False,
                maximize=False,
            )


class Muon(Optimizer):
    """Momentum, orthogonalised: Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    The same update as `torch.optim.Muon` (a test compares them), but matrices of one shape are stacked and
    orthogonalised together: a small Transformer has dozens of equal matrices, and one batched product replaces
    dozens of small ones. State: one momentum tensor [n, rows, columns] a shape, under its first parameter.
    """

    row_dim = 1

    def __init__(self, groups: Sequence[ParamGroup], *, momentum: float, layout: Layout | None = None) -> None:
        super().__init__(groups)
        self._momentum, self._layout = momentum, layout or Layout()

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter; one without a gradient moves by its momentum alone."""
        for group in self.groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group.params:
                by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group.lr, group.weight_decay)

    def _update(self, parameters: list[Tensor], lr: float | Tensor, weight_decay: float) -> None:
        gradients = torch.stack([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])
        state = self.state[parameters[0]]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradients)  # [n, rows, columns]
        average = state["momentum"].lerp_(gradients, 1 - self._momentum)
        momenta = self._layout.whole(gradients.lerp_(average, self._momentum), self.row_dim)  # Nesterov's look-ahead
        rows, columns = momenta.shape[-2:]
        update = self._layout.own(orthogonalise(momenta), self.row_dim)
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, list(update.mul_(-lr * max(1.0, rows / columns) ** 0.5).unbind()))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push all singular values towards 1 by Newton-Schulz iterations of the quintic a x + b x^3 + c x^5.

    Args:
        matrices: [n, rows, columns], float32.

    Returns:
        About U V^T of each matrix's SVD (singular values within about 0.7 to 1.2), same shape and dtype.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # [n, r, c], r <= c, for the Gram matrix x x^T to be the smaller one
    # bfloat16 is exact enough here and fast on GPUs; on CPUs without matrix units it gains nothing over float32.
    x = x.bfloat16() if matrices.is_cuda else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    # Squared once more, small singular values would be lost in bfloat16; of square matrices nothing would be gained.
    by_gram = x.dtype != torch.bfloat16 and x.shape[-1] > x.shape[-2]
    x = _newton_schulz_factor(x @ x.mT) @ x if by_gram else _newton_schulz(x)
    return (x.mT if tall else x).to(matrices.dtype)


_STEPS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315  # steepest at zero while staying bounded (Jordan et al. 2024)


def _newton_schulz(x: Tensor) -> Tensor:
    """x [n, r, c] -> p(G) x, again and again, where p(G) = a + b G + c G^2 and G = x x^T [n, r, r]."""
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x


def _newton_schulz_factor(gram: Tensor) -> Tensor:
    """G [n, r, r] of x -> the product of all p(G) that multiply x: of p(G) x the next G is p(G) G p(G)."""

    def polynomial(gram: Tensor) -> Tensor:
        p = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        p.diagonal(dim1=-2, dim2=-1).add_(_A)
        return p

    factor = last = polynomial(gram)
    for _ in range(_STEPS - 1):
        gram = last @ gram @ last
        last = polynomial(gram)
        factor = last @ factor
    return factor
