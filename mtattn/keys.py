"""What the prepared model keeps between decoding steps: keys and values by sentence, and who may see which.

Legend: N sentences, K hypotheses of each, R rows (hypotheses alive), L places for keys, C capacity, H heads, J key
heads, G = H / J, E d_head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FIRST_CAPACITY = 32  # places that memory is first taken for; doubled when full


class Keys:
    """Keys, transposed as the product with queries reads them, and values; zero where nothing is yet.

    Args:
        keys: [N, J, E, C]. values: [N, J, C, E].
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    @classmethod
    def empty(cls, num_sentences: int, kv_heads: int, d_head: int, capacity: int = FIRST_CAPACITY) -> "Keys":
        """Room for `capacity` keys a sentence."""
        shape = num_sentences, kv_heads
        return cls(torch.zeros(*shape, d_head, capacity), torch.zeros(*shape, capacity, d_head))

    def select(self, sentences: Tensor) -> None:
        """Keep these sentences (int64 [M]), in this order."""
        self.keys, self.values = self.keys.index_select(0, sentences), self.values.index_select(0, sentences)

    def put(self, length: int, where: tuple[Tensor, Tensor] | None, k: Tensor, v: Tensor) -> None:
        """Write k and v [R, J, E] to places below `length`: those of `where`, sentences [R] and places [R].

        With where None, to place length - 1 of each sentence, which takes a quarter of the time for one row.
        """
        while length > self.values.size(2):
            more = self.values.size(2)
            self.keys, self.values = F.pad(self.keys, (0, more)), F.pad(self.values, (0, 0, 0, more))
        if where is None:
            self.keys.select(3, length - 1).copy_(k)
            self.values.select(2, length - 1).copy_(v)
        else:
            sentences, places = where
            self.keys.permute(0, 3, 1, 2)[sentences, places] = k
            self.values.transpose(1, 2)[sentences, places] = v

    def attend(self, q: Tensor, grid: "Grid", length: int, bias: Tensor | None) -> Tensor:
        """Attend to the first `length` keys.

        Args:
            q: [R, H, E], scaled. bias: [N, 1, K or 1, length], added to scores.

        Returns:
            [R, H * E].
        """
        n, j, e = self.keys.shape[:3]
        group = q.size(1) // j
        q = grid.spread(q.flatten(1))  # [N K, H E]
        several = len(q) > n  # hypotheses a sentence; of one alone, the heads stand in order already
        if several:
            q = q.view(n, -1, j, group, e).permute(0, 2, 3, 1, 4)  # [N, J, G, K, E]
        q = q.reshape(n * j, -1, e)  # [N J, G K, E]
        scores = torch.bmm(q, self.keys.view(n * j, e, -1).narrow(2, 0, length))  # [N J, G K, L]
        if bias is not None:
            scores.view(n, j * group, -1, length).add_(bias)
        context = torch.bmm(scores.softmax(-1), self.values.view(n * j, -1, e).narrow(1, 0, length))  # [N J, G K, E]
        if several:
            context = context.view(n, j, group, -1, e).permute(0, 3, 1, 2, 4)  # [N, K, J, G, E]
        return grid.gather(context.reshape(-1, j * group * e))  # [R, H E]


class Grid:
    """Where each row stands among N x K.

    Args:
        rows: int64 [R]; None: all, in order.
        size: N K.
    """

    def __init__(self, rows: Tensor | None, size: int) -> None:
        self.rows, self.size = rows, size

    def spread(self, x: Tensor) -> Tensor:
        """[R, ...] -> [N K, ...], zero where no row stands."""
        return x if self.rows is None else x.new_zeros(self.size, x.size(1)).index_copy_(0, self.rows, x)

    def gather(self, x: Tensor) -> Tensor:
        """[N K, ...] -> [R, ...]."""
        return x if self.rows is None else x.index_select(0, self.rows)


class Ancestors:
    """Which places for keys hold the ancestors of each hypothesis. Those that hold no one's are given out again.

    Without that a beam of 5 would look through 5 keys a step to find its own; hypotheses soon share most of their
    history, so that few more places are in use than there are steps.

    Args:
        num_sentences: N. beam_size: K.
    """

    def __init__(self, num_sentences: int, beam_size: int) -> None:
        self.seen = torch.zeros(num_sentences, beam_size, 0, dtype=torch.bool)  # [N, K, L]

    def extend(self, parents: Tensor | None, alive: Tensor | None) -> Tensor:
        """Begin a step: each hypothesis continues its parent, and is given a place for its new key.

        Args:
            parents: [N, K] int64, None: each continues itself. alive: [N, K] bool, None: all are.

        Returns:
            The place of each, int64 [N, K]; without meaning where none is alive.
        """
        k, length = self.seen.shape[1:]
        if parents is not None:
            self.seen = self.seen.gather(1, parents[:, :, None].expand(-1, -1, length))  # [N, K, L]
        taken = (self.seen if alive is None else self.seen & alive[:, :, None]).any(1)  # [N, L]
        free = F.pad(taken, (0, k)).byte().argsort(stable=True, dim=1)[:, :k]  # [N, K]: False sorts before True
        if alive is None:
            places = free
        else:
            free = free.masked_fill(torch.arange(k) >= alive.sum(1, keepdim=True), 0)
            places = free.gather(1, (alive.cumsum(1) - 1).clamp_(min=0))  # [N, K]
        self.seen = F.pad(self.seen, (0, max(0, int(free.max()) + 1 - length)))
        self.seen.scatter_(2, places[:, :, None], True)
        return places

    def bias(self) -> Tensor:
        """Added to scores: 0 for ancestors, -inf for others, [N, K, L]."""
        return torch.zeros(self.seen.shape).masked_fill_(~self.seen, -torch.inf)

    def select(self, sentences: Tensor) -> None:
        """Keep these sentences (int64 [M]), in this order."""
        self.seen = self.seen.index_select(0, sentences)
