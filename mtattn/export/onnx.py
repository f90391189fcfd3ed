"""To ONNX: two graphs, the encoder once a sentence and one decoder step, both with batch and lengths left open.

encoder.onnx  src [B, S]                               -> cross_keys, cross_values [layers, B, Hkv, S, E]
step.onnx     tokens [B], src_mask [B, S], cross_keys, cross_values, past_keys, past_values [layers, B, Hkv, L, E]
                                                       -> logits [B, V], new_keys, new_values [layers, B, Hkv, L + 1, E]

Letters: B batch, S source, L tokens so far, Hkv key heads, E d_head, V vocabulary. The first step has L = 0.
"""

import copy
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtattn.attention import KVCache, Learned, MultiHeadAttention, Position, RMSNorm, Rotary
from mtattn.decode import DecodeConfig
from mtattn.export.exporter import Exporter, Trained, extra
from mtattn.export.parity import EXACT, Ids, score, translate
from mtattn.model import Transformer, decoder_layers
from mtattn.tokenizer import Tokenizer

OPSET = 20

README = """\
# A translation model for ONNX Runtime

    pip install onnxruntime sentencepiece

`encoder.onnx` runs once for a batch of sentences, `step.onnx` once for each token:

    encoder: src int64 [B, S], each row ended by {eos} and padded with {pad}
             -> cross_keys, cross_values float32 [{layers}, B, {kv_heads}, S, {d_head}]
    step:    tokens int64 [B] (at first {bos}), src_mask bool [B, S] (src != {pad}), cross_keys, cross_values,
             past_keys, past_values float32 [{layers}, B, {kv_heads}, L, {d_head}] (at first L = 0)
             -> logits float32 [B, {vocab}], new_keys, new_values (L + 1), to be given to the next step

Take the likeliest token, append, go on until it is {eos}. For a beam, give each hypothesis a row of its own and
reorder the rows of keys and values. The ids are those of {tokenizer}.{positions}
How this copy compares with the model it was made from is in `export.json`.
"""


class RealRotary(Position):
    """`Rotary` without complex numbers, which ONNX Runtime does not have."""

    place = "query_key"

    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self.register_buffer("frequencies", rotary.frequencies.clone())  # float64 [E/2]

    def rotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        positions = torch.arange(x.shape[2]) if positions is None else positions
        angles = positions[:, None] * self.get_buffer("frequencies")  # [T, E/2]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        even, odd = x.view(*x.shape[:-1], -1, 2).unbind(-1)  # [B, H, T, E/2] each
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)  # [B, H, T, E]


class UncheckedLearned(Position):
    """`Learned` without its error for a position beyond the table: a graph has no number to look at."""

    place = "embedding"

    def __init__(self, learned: Learned) -> None:
        super().__init__()
        self.table = learned.table

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        vectors: Tensor = self.table(torch.arange(x.shape[1]) if positions is None else positions)  # [T, D]
        return x + vectors  # [B, T, D]


class GrowingCache(KVCache):
    """Keys and values that are copied as they grow: a graph has no buffer to write into."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self._keys, self._values = keys, values

    def __len__(self) -> int:
        return 0  # a graph has no int of the length; positions are given instead

    @property
    def keys(self) -> Tensor:
        assert self._keys is not None
        return self._keys

    @property
    def values(self) -> Tensor:
        assert self._values is not None
        return self._values

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.keys.shape[2])

    def append(self, k: Tensor, v: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._keys, self._values = torch.cat((self.keys, k), 2), torch.cat((self.values, v), 2)
        return self._keys, self._values


class EncoderGraph(nn.Module):
    """src [B, S] -> what cross-attention needs of it, [layers, B, Hkv, S, E] twice."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, src: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.model.encode(src, (src != self.model.pad_id)[:, None, None])  # [B, S, D]
        caches = [layer.cross_attn.project_memory(memory) for layer in decoder_layers(self.model)]
        return torch.stack([c.keys for c in caches]), torch.stack([c.values for c in caches])


class StepGraph(nn.Module):
    """One token more for each row; see the top of this file."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        src_mask: Tensor,
        cross_keys: Tensor,
        cross_values: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The position as a tensor: L as a plain number would be frozen into the graph.
        positions = torch.arange(past_keys.shape[3] + 1)[-1:]  # [1]
        x = self.model.embed_tgt(tokens[:, None], positions)  # [B, 1, D]
        mask = src_mask[:, None, None]  # [B, 1, 1, S]
        grown = []
        for i, layer in enumerate(decoder_layers(self.model)):
            own = GrowingCache(past_keys[i], past_values[i])
            x = layer(x, None, None, mask, (own, KVCache.of_memory(cross_keys[i], cross_values[i])), positions)
            grown.append(own)
        logits = self.model.logits(self.model.decoder_norm(x))[:, 0]  # [B, V]
        return logits, torch.stack([c.keys for c in grown]), torch.stack([c.values for c in grown])


def write(trained: Trained, folder: Path, quantization: str) -> None:
    """Fill a folder: encoder.onnx, step.onnx, the SentencePiece model(s), README.md. quantization: "float32"."""
    extra("onnx")
    extra("onnxscript")
    model, config = traceable(trained.model), trained.model.config
    attention = next(decoder_layers(model)).cross_attn
    heads = (attention.num_kv_heads, attention.d_head)
    src = torch.full((2, 7), 5)
    cross = torch.zeros(config.decoder_layers, 2, heads[0], 7, heads[1])
    own = torch.zeros(config.decoder_layers, 2, heads[0], 3, heads[1])
    batch, source, length = (torch.export.Dim(name) for name in ("batch", "source", "length"))
    crossed, grows = {1: batch, 3: source}, {1: batch, 3: length}
    _export(
        EncoderGraph(model),
        folder / "encoder.onnx",
        {"src": (src, {0: batch, 1: source})},
        ["cross_keys", "cross_values"],
    )
    _export(
        StepGraph(model),
        folder / "step.onnx",
        {  # a tensor of its own for each: tracing takes two inputs that are one tensor for one input
            "tokens": (src[:, 0], {0: batch}),
            "src_mask": (src != 0, {0: batch, 1: source}),
            "cross_keys": (cross, crossed),
            "cross_values": (cross.clone(), crossed),
            "past_keys": (own, grows),
            "past_values": (own.clone(), grows),
        },
        ["logits", "new_keys", "new_values"],
    )
    tokenizer = trained.tokenizer
    for name, data in tokenizer.to_files().items():
        (folder / name).write_bytes(data)
    learned = config.position.kind == "learned"
    text = README.format(
        eos=tokenizer.eos_id,
        bos=tokenizer.bos_id,
        pad=tokenizer.pad_id,
        layers=config.decoder_layers,
        kv_heads=heads[0],
        d_head=heads[1],
        vocab=tokenizer.tgt_vocab_size,
        tokenizer=" and ".join(f"`{name}`" for name in tokenizer.to_files()),
        positions=f"\nSources and targets may have {config.position.max_len:,} tokens at most." if learned else "",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def traceable(model: Transformer) -> Transformer:
    """A copy of a model whose every operation ONNX has; the weights are shared."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    model = copy.deepcopy(model, memo).eval()
    for position in ("src_position", "tgt_position"):
        if isinstance(learned := getattr(model, position), Learned):
            setattr(model, position, UncheckedLearned(learned))
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.impl = "reference"
            if isinstance(module.position, Rotary):
                module.position = RealRotary(module.position)
    for name, module in list(model.named_modules()):
        if isinstance(module, RMSNorm):  # ours carries a backward pass that a graph has no use for
            plain = nn.RMSNorm(module.normalized_shape, eps=module.eps)
            plain.weight = module.weight
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)
    return model


def _export(graph: nn.Module, path: Path, inputs: dict[str, tuple[Tensor, dict[int, Any]]], outputs: list[str]) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's notes on its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            graph,
            tuple(example for example, _ in inputs.values()),
            path,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes={name: dims for name, (_, dims) in inputs.items()},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


Array = NDArray[Any]


class OnnxState:
    """What a search needs of the graphs (`mtattn.decode.Step`): every hypothesis is a row of its own."""

    def __init__(self, engine: "OnnxEngine", src: Tensor) -> None:
        self.engine = engine
        self.src_mask = (src != engine.tokenizer.pad_id).numpy()
        self.cross: list[Array] = engine.encoder.run(None, {"src": src.numpy()})
        self.own = [array[:, :, :, :0] for array in self.cross]
        self.width = 0

    def __call__(self, tokens: Tensor, parents: Tensor | None, alive: Tensor | None = None) -> Tensor:
        """tokens [N, K], parents [N, K] or None -> logits [N, K, V], or [R, V] of the R places that are alive."""
        sentences, width = tokens.shape
        if not self.width:  # the first call says how many hypotheses a sentence has
            self.width = width
            self._take(torch.arange(sentences).repeat_interleave(width))
        elif parents is not None:
            rows = (torch.arange(sentences)[:, None] * width + parents).flatten().numpy()
            self.own = [array[:, rows] for array in self.own]
        logits = torch.from_numpy(self._step(tokens.flatten().numpy())).view(sentences, width, -1)
        return logits if alive is None else logits[alive]

    def _step(self, tokens: Array) -> Array:
        (cross_keys, cross_values), (keys, values) = self.cross, self.own
        feed = {"tokens": tokens, "src_mask": self.src_mask, "cross_keys": cross_keys, "cross_values": cross_values}
        logits, *self.own = self.engine.step.run(None, {**feed, "past_keys": keys, "past_values": values})
        return logits  # type: ignore[no-any-return]

    def select(self, sentences: Tensor) -> None:
        """Keep only these sentences, in this order."""
        self._take((sentences[:, None] * self.width + torch.arange(self.width)).flatten())

    def _take(self, rows: Tensor) -> None:
        chosen = rows.numpy()
        self.src_mask = self.src_mask[chosen]
        self.cross = [array[:, chosen] for array in self.cross]
        self.own = [array[:, chosen] for array in self.own]


class OnnxEngine:
    """Run an exported folder by ONNX Runtime, searched by `mtattn.decode`."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        runtime = extra("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self.tokenizer = tokenizer
        self.encoder, self.step = (
            runtime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
            for name in ("encoder.onnx", "step.onnx")
        )

    def score(self, src: Ids, tgt: Ids) -> list[list[float]]:
        return score(self._logits, src, tgt, self.tokenizer)

    def _logits(self, src: Tensor, tgt_in: Tensor) -> Tensor:
        state = OnnxState(self, src)
        return torch.cat([state(tokens[:, None], None) for tokens in tgt_in.unbind(1)], 1)  # [B, T, V]

    def translate(self, src: Ids, config: DecodeConfig) -> list[list[int]]:
        return translate(partial(OnnxState, self), src, self.tokenizer, config)


# Nothing is known to fail, since the graphs are traced from the model's own code: there are no refusals.
EXPORTER = Exporter(write=write, load=OnnxEngine, limits={"float32": EXACT})
