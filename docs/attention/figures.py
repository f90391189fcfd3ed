"""Draw the pictures of docs/attention.md: python docs/attention/figures.py

Every picture comes from the package itself, so a mask or a position that changes is drawn anew as it is.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from mtattn.attention import (
    SCORES,
    ALiBi,
    Attention,
    BeamTree,
    MultiHeadAttention,
    Rotary,
    Sinusoidal,
    T5Bias,
    attention_weights,
    capture_weights,
    causal,
    distance_windows,
    key_padding,
    packed,
    prefix_lm,
    sliding_window,
)

FOLDER = Path(__file__).parent
WORDS = ["the", "old", "cat", "sees", "the", "dog"]
INK = "#1f4e79"


def save(name: str) -> None:
    """Write the current figure, small, with no date in it, so that the same picture gives the same file."""
    plt.savefig(FOLDER / f"{name}.png", dpi=80, bbox_inches="tight", metadata={"Software": None})
    plt.close()


def grid(axes: Axes, table: Tensor, title: str, **options: object) -> None:
    """One matrix, queries downwards and keys to the right."""
    axes.imshow(table.float(), **{"cmap": "Blues", **options})
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def formula() -> None:
    """The three steps of the textbook module on six words, with made-up vectors."""
    torch.manual_seed(3)
    x = torch.randn(len(WORDS), 8)
    x[4] = x[0] + 0.3 * torch.randn(8)  # the second "the" is much like the first
    scores = x @ x.T / 8**0.5
    context, weights = Attention(8)(x, x, x, return_weights=True)
    _, axes = plt.subplots(1, 3, figsize=(10, 3))
    grid(axes[0], scores, "scores $QK^T/\\sqrt{d_k}$", cmap="RdBu_r", vmin=-4, vmax=4)
    grid(axes[1], weights, "weights: softmax of each row", vmin=0, vmax=1)
    grid(axes[2], context, "context: weights $V$", cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
    for at in axes[:2]:
        at.set_xticks(range(len(WORDS)), WORDS, rotation=60, fontsize=8)
        at.set_xlabel("key")
    for at in axes:
        at.set_yticks(range(len(WORDS)), WORDS, fontsize=8)
    axes[0].set_ylabel("query")
    axes[2].set_xlabel("feature")
    save("formula")


def scores() -> None:
    """Every kind of score on the same words; the symmetric one mirrors itself."""
    figure, axes = plt.subplots(1, len(SCORES), figsize=(2.4 * len(SCORES), 2.8))
    for at, (name, kind) in zip(axes, SCORES.items(), strict=True):
        torch.manual_seed(5)
        q, k = torch.randn(2, 1, 1, 8, 6)
        score = kind(1, 1, 6)
        table = score(k if score.shares_projection else q, k)[0, 0].detach()
        grid(at, table, name, cmap="RdBu_r", vmin=-table.abs().max(), vmax=table.abs().max())
    figure.supxlabel("key", fontsize=9, y=0.06)
    figure.supylabel("query", fontsize=9, x=0.09)
    save("scores")


def masks() -> None:
    """Every mask and two combinations, 12 queries and 12 keys; blue may be seen."""
    length = 12
    keep = torch.arange(length)[None] < 8
    documents = torch.tensor([[0] * 3 + [1] * 5 + [2] * 4])
    shown = {
        "causal()": causal(),
        "key_padding(keep)": key_padding(keep),
        "sliding_window(3)": sliding_window(3),
        "prefix_lm(5)": prefix_lm(5),
        "packed(documents)": packed(documents),
        "distance_windows, head 1": distance_windows(torch.tensor([2, 5])),
        "causal() & sliding_window(3)": causal() & sliding_window(3),
        "packed(documents) & causal()": packed(documents) & causal(),
    }
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.6))
    for at, (title, mask) in zip(axes.flat, shown.items(), strict=True):
        grid(at, mask.dense(length, length).allowed.expand(-1, -1, length, -1)[0, -1], title, vmin=0, vmax=1.4)
        at.set_xticks([i - 0.5 for i in range(1, length)], minor=True)
        at.set_yticks([i - 0.5 for i in range(1, length)], minor=True)
        at.grid(which="minor", color="white", linewidth=0.6)
        at.tick_params(which="minor", length=0)
    figure.supxlabel("key", fontsize=9, y=0.05)
    figure.supylabel("query", fontsize=9, x=0.09)
    save("masks")


def positions() -> None:
    """What each position adds, turns or subtracts."""
    _, axes = plt.subplots(1, 4, figsize=(13, 3))
    waves = Sinusoidal(32)(torch.zeros(1, 48, 32))[0]
    axes[0].imshow(waves, cmap="RdBu_r", aspect="auto")
    axes[0].set(title="sinusoidal: what is added", xlabel="feature", ylabel="position")
    at = torch.arange(200)
    turned = Rotary(64).rotate(torch.ones(1, 1, 200, 64) / 8, at)  # a vector of length 1, turned to each position
    product = (turned @ turned[:, :, :1].mT)[0, 0, :, 0]
    axes[1].plot(at, product, color=INK)
    axes[1].set(title="rotary: q·k of equal vectors", xlabel="distance")
    bias = ALiBi(4).bias(torch.tensor([24]), torch.arange(48))[0, :, 0]
    for head, line in enumerate(bias):
        axes[2].plot(line, label=f"head {head}", color=INK, alpha=1 - 0.22 * head)
    axes[2].set(title="ALiBi: what a query at 24 adds", xlabel="key", ylim=(-6.5, 0.3))
    axes[2].legend(fontsize=7)
    buckets = T5Bias(1).bucket(torch.arange(-140, 141))
    axes[3].step(torch.arange(-140, 141), buckets, color=INK)
    axes[3].set(title="T5: bucket of each distance", xlabel="key - query")
    for each in axes:
        each.title.set_fontsize(10)
    plt.tight_layout()
    save("positions")


def heads() -> None:
    """Four heads of one layer."""
    torch.manual_seed(1)
    layer, x = MultiHeadAttention(32, 4, position=Rotary(8), qk_norm=True), torch.randn(1, 10, 32)
    torch.nn.init.normal_(layer.q_proj.weight)
    layer.q_norm.weight.data *= 2
    with capture_weights(layer) as weights:
        layer(x, mask=causal())
    _, axes = plt.subplots(1, 4, figsize=(10, 2.7))
    for head, at in enumerate(axes):
        grid(at, weights[""][0][0, head].detach(), f"head {head}", vmin=0, vmax=1)
    save("heads")


def chunks() -> None:
    """Which blocks of the score matrix are computed: all, the causal half, a band."""
    length, block = 2048, 256
    shown = {"no mask": None, "causal()": causal(), "sliding_window(256)": sliding_window(256)}
    from mtattn.attention.chunked import BLOCK, _Scoring

    assert block == BLOCK
    _, axes = plt.subplots(1, 3, figsize=(10, 2.8))
    for at, (title, mask) in zip(axes, shown.items(), strict=True):
        touched = torch.zeros(length // 16, length // 16)
        for rows, blocks in _Scoring(mask, 1.0, None).blocks(length, length):
            for cols in blocks:
                touched[rows.start // 16 : rows.stop // 16, cols.start // 16 : cols.stop // 16] += 1
        grid(at, touched, f"{title}: {touched.mean():.0%} computed", vmin=0, vmax=1.4)
        at.set_xticks([16 * i - 0.5 for i in range(1, 8)], minor=True)
        at.set_yticks([16 * i - 0.5 for i in range(1, 8)], minor=True)
        at.grid(which="minor", color="white", linewidth=0.6)
        at.tick_params(which="minor", length=0)
    save("chunks")


def beams() -> None:
    """Four steps of three beams: the slots each beam may see."""
    tree = BeamTree(1, 3)
    moves = [None, [0, 0, 1], [1, 0, 2], [0, 0, 0]]
    _, axes = plt.subplots(1, 4, figsize=(12, 2), width_ratios=[3, 6, 9, 12])
    for step, (at, parents) in enumerate(zip(axes, moves, strict=True)):
        mask = tree.extend(None if parents is None else torch.tensor([parents]))
        grid(at, mask[0, 0], f"step {step}" + (f", parents {parents}" if parents else ""), vmin=0, vmax=1.4)
        at.set_xticks([i - 0.5 for i in range(3, 3 * step + 3, 3)], minor=True)
        at.grid(which="minor", color="gray", linewidth=0.8)
        at.tick_params(which="minor", length=0)
        at.set_yticks(range(3), [f"beam {i}" for i in range(3)] if step == 0 else ["", "", ""], fontsize=8)
    save("beams")


def softcap() -> None:
    """The weight of one key against its score, for several caps, beside seven keys of score zero."""
    x = torch.linspace(-20, 20, 200)
    keys = torch.zeros(8, 1)
    keys[0] = 1.0
    for cap in (None, 10.0, 4.0):
        weights = attention_weights(x[None, None, :, None], keys[None, None], scale=1.0, softcap=cap)
        plt.plot(x, weights[0, 0, :, 0], label="no cap" if cap is None else f"softcap {cap:g}")
    plt.gcf().set_size_inches(4.5, 2.6)
    plt.xlabel("score of one key among eight")
    plt.ylabel("its weight")
    plt.legend(fontsize=8)
    save("softcap")


if __name__ == "__main__":
    for draw in (formula, scores, masks, positions, heads, chunks, beams, softcap):
        draw()
