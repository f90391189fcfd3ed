"""To CTranslate2 (https://github.com/OpenNMT/CTranslate2): the model's specification, filled with our weights.

Its layers are named after what they hold: linear_0 is queries, keys and values in one matrix for self-attention, and
queries alone for cross-attention, whose linear_1 is keys and values; the last linear is the output projection.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtattn.attention import Learned, MultiHeadAttention, Position, Rotary, T5Bias
from mtattn.decode import DecodeConfig
from mtattn.export.exporter import Exporter, Trained, extra
from mtattn.export.parity import EXACT, ROUNDED, Ids
from mtattn.model import EncoderLayer, FeedForward, ModelConfig, Residual, Transformer, decoder_layers
from mtattn.tokenizer import Tokenizer

MAX_POSITIONS = 4096  # rows of the table that stands for sinusoidal positions, of which it knows another kind only

README = """\
# A translation model for CTranslate2

    pip install ctranslate2 sentencepiece

Run these four lines in this folder:

    import ctranslate2, sentencepiece
    model, pieces = ctranslate2.Translator("."), sentencepiece.SentencePieceProcessor(model_file="{src_model}")
    result = model.translate_batch([pieces.encode("A man sings.", out_type=str)], beam_size=5, max_input_length=0)
    print({decoder}.decode(result[0].hypotheses[0]))

`max_input_length=0` matters: by default CTranslate2 cuts every source after 1,024 tokens without a word. Likewise
`max_decoding_length` (256 by default) cuts translations, and `min_decoding_length` (1 by default) forbids empty ones.
Split long texts into sentences before translating.
{positions}
Weights: {quantization}. How this copy compares with the model it was made from is in `export.json`.
"""


def refusals(config: ModelConfig) -> list[str]:
    """What CTranslate2 4.8 cannot compute, of this model."""
    reasons = []
    if config.score not in ("scaled_dot", "symmetric"):
        reasons.append(f"model.score = {config.score!r}: it has scaled dot products alone")
    if config.position.kind == "alibi":
        reasons.append("model.position.kind = 'alibi': it has ALiBi in decoders, but not in encoders")
    return reasons


def write(trained: Trained, folder: Path, quantization: str) -> None:
    """Fill a folder: model.bin, config.json, the vocabularies, the SentencePiece model(s), README.md."""
    spec = build_spec(trained.model)
    tokenizer = trained.tokenizer
    spec.register_source_vocabulary(tokenizer.src_pieces(range(tokenizer.src_vocab_size)))
    spec.register_target_vocabulary(tokenizer.tgt_pieces(range(tokenizer.tgt_vocab_size)))
    spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = 1e-6 if trained.model.config.norm == "rmsnorm" else 1e-5
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))
    files = tokenizer.to_files()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "README.md").write_text(_readme(trained.model, list(files), quantization), encoding="utf-8")


def _readme(model: Transformer, tokenizer_files: list[str], quantization: str) -> str:
    limit = _table(model.src_position, model.config.d_model)
    decoder = (
        "pieces"
        if len(tokenizer_files) == 1
        else (f'sentencepiece.SentencePieceProcessor(model_file="{tokenizer_files[1]}")')
    )
    return README.format(
        src_model=tokenizer_files[0],
        decoder=decoder,
        positions="" if limit is None else f"Sources and targets may have {len(limit):,} tokens at most.\n",
        quantization=quantization,
    )


def build_spec(model: Transformer) -> Any:
    """The `ctranslate2.specs.TransformerSpec` of a model, in float32."""
    specs = extra("ctranslate2.specs")
    config = model.config
    common = {**_shape(config), **_position_options(model.src_position)}
    layers = config.encoder_layers, config.decoder_layers
    encoder = specs.TransformerEncoderSpec(layers[0], config.num_heads, **common)
    decoder = specs.TransformerDecoderSpec(layers[1], config.num_heads, **common)
    spec = specs.TransformerSpec(encoder, decoder)

    encoder.embeddings[0].weight = _copied(model.src_embed.weight)
    decoder.embeddings.weight = _copied(model.tgt_embed.weight)
    decoder.projection.weight = _copied(model.out_embed.weight)
    for side, position in ((encoder, model.src_position), (decoder, model.tgt_position)):
        table = _table(position, config.d_model)
        if table is not None:
            side.position_encodings.encodings = table
    if config.norm_position == "pre":
        _fill_norm(encoder.layer_norm, model.encoder_norm)
        _fill_norm(decoder.layer_norm, model.decoder_norm)
    for target, layer in zip(encoder.layer, model.encoder, strict=True):
        assert isinstance(layer, EncoderLayer)
        _fill_attention(target.self_attention, layer.self_attn, layer.self_attn_residual, own=True)
        _fill_ffn(target.ffn, layer.ffn, layer.ffn_residual)
    for target, decoder_layer in zip(decoder.layer, decoder_layers(model), strict=True):
        _fill_attention(target.self_attention, decoder_layer.self_attn, decoder_layer.self_attn_residual, own=True)
        _fill_attention(target.attention, decoder_layer.cross_attn, decoder_layer.cross_attn_residual, own=False)
        _fill_ffn(target.ffn, decoder_layer.ffn, decoder_layer.ffn_residual)
    return spec


def _shape(config: ModelConfig) -> dict[str, Any]:
    activation = extra("ctranslate2.specs.common_spec").Activation
    kinds = {"relu": activation.RELU, "gelu": activation.GELU, "swiglu": activation.SWISH}
    grouped = config.num_kv_heads not in (0, config.num_heads)
    return {
        "pre_norm": config.norm_position == "pre",
        "activation": kinds[config.activation],
        "ffn_glu": config.activation == "swiglu",
        "rms_norm": config.norm == "rmsnorm",
        "num_heads_kv": config.num_kv_heads if grouped else None,
        "qk_norm": config.qk_norm,
    }


def _position_options(position: Position) -> dict[str, Any]:
    if isinstance(position, T5Bias):
        return {"relative_attention_bias": True}
    if not isinstance(position, Rotary):
        return {}
    # The frequencies that Rotary holds already contain its scaling: base^(-2i/E) / factor, so both follow from two.
    size = 2 * len(position.frequencies)
    first = float(position.frequencies[0])
    base = float(position.frequencies[1] / first) ** (-size / 2) if size > 2 else 1.0
    scaling = extra("ctranslate2.specs.attention_spec").RotaryScalingType.Linear
    options: dict[str, Any] = {"rotary_dim": size, "rotary_interleave": True, "rotary_base": base}
    return options if first == 1.0 else {**options, "rotary_scaling_type": scaling, "rotary_scaling_factor": 1 / first}


def _table(position: Position, d_model: int) -> Tensor | None:
    """What is added to the embeddings, one row a position; None where nothing is looked up."""
    if position.place in ("query_key", "scores"):
        return None
    rows = position.table.num_embeddings if isinstance(position, Learned) else MAX_POSITIONS
    with torch.no_grad():
        return position(torch.zeros(1, rows, d_model))[0].clone()  # type: ignore[no-any-return]  # [rows, D]


def _fill_attention(spec: Any, layer: MultiHeadAttention, residual: Residual, *, own: bool) -> None:
    _fill_norm(spec.layer_norm, residual.norm)
    q, k, v = layer.q_proj, layer.k_proj or layer.q_proj, layer.v_proj
    for target, parts in zip(spec.linear, [(q, k, v)] if own else [(q,), (k, v)], strict=False):
        _fill_linear(target, *parts)
    _fill_linear(spec.linear[-1], layer.out_proj)
    if layer.q_norm is not None:
        _fill_norm(spec.q_norm, layer.q_norm)
        _fill_norm(spec.k_norm, layer.k_norm or layer.q_norm)
        if isinstance(residual.norm, nn.LayerNorm):
            # Its one epsilon is then LayerNorm's, 1e-5, and that of our queries and keys is 1e-6: with c^2 = 10,
            # c q / sqrt(mean((c q)^2) + 1e-5) = q / sqrt(mean(q^2) + 1e-6).
            rows = q.out_features + k.out_features
            spec.linear[0].weight[:rows] *= 10**0.5
            if q.bias is not None:
                spec.linear[0].bias[:rows] *= 10**0.5
    elif hasattr(spec, "q_norm"):  # qk_norm is asked for a whole decoder, and ours has none in cross-attention
        del spec.q_norm, spec.k_norm
    if isinstance(layer.position, T5Bias):
        spec.relative_attention_bias = _copied(layer.position.table.weight)
        spec.relative_attention_max_distance = torch.tensor(layer.position.max_distance, dtype=torch.int32).numpy()[()]


def _fill_ffn(spec: Any, layer: FeedForward, residual: Residual) -> None:
    _fill_norm(spec.layer_norm, residual.norm)
    if layer.gate_proj is None:
        _fill_linear(spec.linear_0, layer.up_proj)
    else:
        _fill_linear(spec.linear_0, layer.gate_proj)
        _fill_linear(spec.linear_0_noact, layer.up_proj)
    _fill_linear(spec.linear_1, layer.down_proj)


def _fill_linear(spec: Any, *layers: nn.Linear) -> None:
    spec.weight = _copied(*(layer.weight for layer in layers))
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if biases:
        spec.bias = _copied(*biases)


def _fill_norm(spec: Any, norm: nn.Module) -> None:
    weight, bias = norm.get_parameter("weight"), dict(norm.named_parameters()).get("bias")
    spec.gamma = _copied(weight)
    if isinstance(norm, nn.LayerNorm):
        spec.beta = torch.zeros_like(weight) if bias is None else _copied(bias)


def _copied(*tensors: Tensor) -> Tensor:
    # Quantizing writes in place, so never into the model's own memory.
    return torch.cat([tensor.detach().float().cpu() for tensor in tensors]).clone()


def start_engine(folder: Path, **options: Any) -> Any:
    """A `ctranslate2.Translator` of the folder, made in a thread of its own.

    Its constructor sets OpenMP's number of threads, which torch has in common with it, for the thread that calls it: it
    would leave torch `intra_threads` of them for the rest of the process.
    """
    with ThreadPoolExecutor(1) as other:
        return other.submit(extra("ctranslate2").Translator, str(folder), device="cpu", **options).result()


class CTranslate2Engine:
    """Run an exported folder, in the numbers that its weights are stored in, where the machine can."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.translator = start_engine(folder, inter_threads=1, intra_threads=1, compute_type="default")
        self.tgt_ids = {piece: i for i, piece in enumerate(tokenizer.tgt_pieces(range(tokenizer.tgt_vocab_size)))}

    def score(self, src: Ids, tgt: Ids) -> list[list[float]]:
        targets = [self.tokenizer.tgt_pieces(row[:-1]) for row in tgt]  # it adds EOS itself
        results = self.translator.score_batch(self.sources(src), targets, max_input_length=0, max_batch_size=32)
        return [result.log_probs for result in results]

    def translate(self, src: Ids, config: DecodeConfig) -> list[list[int]]:
        limits = [config.max_len(len(row)) for row in src]
        results = self.translator.translate_batch(
            self.sources(src),
            beam_size=config.beam_size,
            length_penalty=config.length_penalty,
            min_decoding_length=0,  # by default it writes no empty translation, as we may
            max_decoding_length=max(limits),
            max_input_length=0,
            max_batch_size=32,
            suppress_sequences=[["<pad>"], ["<s>"]],  # as our own search does; no trained model wants them
        )
        return [[self.tgt_ids[p] for p in r.hypotheses[0]][:n] for r, n in zip(results, limits, strict=True)]

    def sources(self, src: Ids) -> list[list[str]]:
        """Pieces of sources, without the EOS that CTranslate2 adds itself."""
        return [self.tokenizer.src_pieces(row[:-1]) for row in src]


EXPORTER = Exporter(
    refusals=refusals,
    write=write,
    load=CTranslate2Engine,
    limits={"float32": EXACT, "int8": ROUNDED, "bfloat16": ROUNDED},
)
