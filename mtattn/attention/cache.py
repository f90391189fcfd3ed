"""What decoding keeps between steps: projected keys and values, and which of them each beam may see.

Letters: B batch, N sentences, K beams, Hkv key heads, L cached keys, T new keys, E d_head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of the tokens so far, in buffers that double when full: an append is O(1) and moves nothing.

    For inference: appending writes in place, where autograd cannot follow. A cache made by `of_memory` holds the
    projected encoder output and does not grow.

    Args:
        capacity: number of keys that the buffers first hold.
    """

    def __init__(self, capacity: int = 64) -> None:
        if capacity < 1:
            raise ValueError(f"KVCache: capacity must be at least 1, got {capacity}")
        self.length = 0
        self.is_memory = False
        self._capacity = capacity
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._positions: Tensor | None = None

    @classmethod
    def of_memory(cls, k: Tensor, v: Tensor) -> KVCache:
        """Hold the keys and values [B, Hkv, S, E] of an encoder output, projected once for all decoding steps."""
        cache = cls()
        cache.is_memory, cache.length = True, k.shape[2]
        cache._keys, cache._values = k, v
        cache._positions = torch.arange(k.shape[2], device=k.device)
        return cache

    def __len__(self) -> int:
        return self.length

    @property
    def keys(self) -> Tensor:
        """Keys so far, [B, Hkv, L, E]: a view of the buffer."""
        return _filled(self._keys)[:, :, : self.length]

    @property
    def values(self) -> Tensor:
        """Values so far, [B, Hkv, L, E]: a view of the buffer."""
        return _filled(self._values)[:, :, : self.length]

    @property
    def positions(self) -> Tensor:
        """Position of each key, int64 [L] or [B, L]."""
        return _filled(self._positions)[..., : self.length]

    def append(self, k: Tensor, v: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens.

        Args:
            k, v: [B, Hkv, T, E].
            positions: int64 [T] or [B, T], of one rank in every call; counts on from the last key when None.

        Returns:
            All keys and values so far, [B, Hkv, L, E].

        Raises:
            ValueError: the cache holds a memory, or the shapes differ from those before.
        """
        if self.is_memory:
            raise ValueError("KVCache.append: this cache holds a memory, which does not grow")
        start, end = self.length, self.length + k.shape[2]
        if positions is None:
            positions = torch.arange(start, end, device=k.device)
        if self._keys is None:
            self._capacity = max(self._capacity, end)
            self._keys, self._values, self._positions = self._buffer(k), self._buffer(v), self._buffer(positions, -1)
        keys, values, known = _filled(self._keys), _filled(self._values), _filled(self._positions)
        if k.shape[:2] != keys.shape[:2] or k.shape[3] != keys.shape[3] or positions.dim() != known.dim():
            raise ValueError(
                f"KVCache.append: k {list(k.shape)} with positions {list(positions.shape)} does not continue "
                f"keys {list(keys.shape)} with positions {list(known.shape)}"
            )
        if end > keys.shape[2]:
            self._capacity = max(2 * self._capacity, end)
            self._keys, self._values = self._grown(self._keys), self._grown(self._values)
            self._positions = self._grown(self._positions, -1)
            keys, values, known = self._keys, self._values, self._positions
        keys[:, :, start:end], values[:, :, start:end], known[..., start:end] = k, v, positions
        self.length = end
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep these batch rows (int64 [B']), in this order: drop finished sentences, or repeat some."""
        if self._keys is not None and self._values is not None and self._positions is not None:
            self._keys, self._values = self._keys.index_select(0, rows), self._values.index_select(0, rows)
            if self._positions.dim() == 2:
                self._positions = self._positions.index_select(0, rows)

    def _buffer(self, like: Tensor, axis: int = 2) -> Tensor:
        shape = list(like.shape)
        shape[axis] = self._capacity
        return like.new_empty(shape)

    def _grown(self, old: Tensor | None, axis: int = 2) -> Tensor:
        old = _filled(old)
        new = self._buffer(old, axis)
        new.narrow(axis, 0, self.length).copy_(old.narrow(axis, 0, self.length))
        return new


class BeamTree:
    """Beam search without copying: which cached keys are ancestors of each beam.

    The K beams of a sentence are K queries of one batch row: step s feeds x [N, K, D], and its keys go into the slots
    s*K .. s*K+K-1 of the cache. When beams are reordered only this mask is; keys and values stay where they are, and
    cross-attention reads one copy of the source for all K beams.

    Args:
        num_sentences: N.
        beam_size: K.
        device: where the masks live.
    """

    def __init__(self, num_sentences: int, beam_size: int, device: torch.device | str = "cpu") -> None:
        if num_sentences < 0 or beam_size < 1:
            raise ValueError(f"BeamTree: needs num_sentences >= 0 and beam_size >= 1, got {num_sentences}, {beam_size}")
        self.beam_size = beam_size
        self.step = -1
        self._own = torch.eye(beam_size, dtype=torch.bool, device=device)  # [K, K]
        self._ancestors = self._own.new_zeros(num_sentences, beam_size, 0)  # [N, K, L]

    @property
    def positions(self) -> Tensor:
        """Position of this step's tokens, the same for every beam: int64 [K]."""
        return torch.full((self.beam_size,), self.step, dtype=torch.long, device=self._own.device)

    def extend(self, parents: Tensor | None = None) -> Tensor | None:
        """Begin a step: beam j continues the beam parents[n, j] of the step before, and adds a slot of its own.

        Args:
            parents: int64 [N, K], each 0 .. K-1; None: every beam continues itself.

        Returns:
            bool [N, 1, K, L], True for the slots that a beam may attend to, its new one included; None when K = 1,
            where every slot is an ancestor.

        Raises:
            ValueError: parents has another shape.
        """
        self.step += 1
        if self.beam_size == 1:
            return None
        sentences = len(self._ancestors)
        if parents is not None:
            if parents.shape != (sentences, self.beam_size):
                raise ValueError(
                    f"BeamTree.extend: parents must be [{sentences}, {self.beam_size}], got {list(parents.shape)}"
                )
            rows = torch.arange(sentences, device=parents.device)[:, None]
            self._ancestors = self._ancestors[rows, parents]  # [N, K, L - K]
        own = self._own.expand(sentences, -1, -1)
        self._ancestors = torch.cat((self._ancestors, own), dim=-1)  # [N, K, L]
        return self._ancestors[:, None]

    def select(self, rows: Tensor) -> None:
        """Keep these sentences (int64 [N']); call it together with `KVCache.select`."""
        self._ancestors = self._ancestors.index_select(0, rows)


def _filled(buffer: Tensor | None) -> Tensor:
    if buffer is None:
        raise ValueError("KVCache: nothing was appended yet")
    return buffer
