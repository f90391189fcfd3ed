"""Modules without values, for a model whose weights come from a file."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLS = (
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
    nn.init.xavier_uniform_,
)


class Unfilled(TorchFunctionMode):
    """While entered, random initialisation leaves tensors as they are: memory that nobody has touched, nor paid for.

    Drawing the weights of a large model takes longer than reading them. The meta device, where a tensor has a shape
    alone, would not do: for its first `arange` or `normal_`, torch 2.13 imports its compiler, which takes longer than
    all of `import torch`.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in FILLS:
            return args[0] if args else kwargs["tensor"]  # nn.init names its argument
        return func(*args, **kwargs)
