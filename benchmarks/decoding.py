"""How fast is mtattn's translation, in float32, 16 and 8 bits, beside CTranslate2 with its weights?

    python benchmarks/decoding.py runs/NAME test.en [--ref test.de] [--beams 1,5] [--threads 2] [--json OUT]
    python benchmarks/decoding.py runs/NAME train.en --lines 10000 --latency-lines 20 --repeats 2
    python benchmarks/decoding.py runs/NAME test.en --huggingface --joeynmt --beams 1,4,5 --lines 200
    python benchmarks/decoding.py runs/NAME test.en --huggingface --device cuda --repeats 9

First the copies are shown to compute what the model does. Then each engine turns the same lines of text into lines of
text: the whole file at once (throughput, at the setting that suits the engine best on the first lines) and line by line
(latency). The engines take turns, so that a slow minute of the machine meets all of them; a ratio compares one round
with itself, and is given as median [lowest, highest] over the rounds. Above 1x, mtattn is the faster.

--huggingface adds `generate` of transformers: with the same weights where a class of theirs has the model's arithmetic
(`mtattn export RUN --check` says so), else a Marian. --joeynmt adds JoeyNMT 2.3.0 in a process and environment of its
own, which the first run makes in --cache. Marian and JoeyNMT are models of the same sizes with random weights, made to
write as many tokens as mtattn does (benchmarks/peers/imitators.py), since they have no weights in common with it. Their
outputs mean nothing, their speed does. With --threads 1 all engines run on one thread. With --device cuda mtattn and
transformers, both in float32 and in bfloat16, run on the GPU, and the others do not take part.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import lines_of, numbers, spread, take_json, write_json
from peers.contenders import Contender, begin
from peers.imitators import Imitator, Write, in_batches, joeynmt, marian
from peers.protocol import write_groups
from sentencepiece import SentencePieceProcessor
from training import CACHE, make_job

from mtattn import translate
from mtattn.config import Config
from mtattn.evaluate import score
from mtattn.export.stock import obstacles
from mtattn.linear import unavailable
from mtattn.loading import load_model
from mtattn.memory import keep_freed_memory
from mtattn.precision import choose_precision
from mtattn.progress import Reporter
from mtattn.threads import use_threads
from mtattn.translate import Translator, load_translator

QUANTIZATIONS = {"float32": "none", "int8": "int8"}  # CTranslate2's names and mtattn's
TRIED = {"cpu": 200, "cuda": 1000}  # lines that settings are compared on
COMPARED = 20  # lines that transformers' copy is compared with the model on, one by one
BATCHES = {"cpu": (64, 16, 32, 128), "cuda": (64, 256, 1000)}  # sentences a batch, of engines that have to be told


@dataclass(frozen=True)
class Engine:
    """An engine.

    translate: (lines, beam size, setting) -> lines. settings: those to try for throughput; the first for latency.
    prepare: (lines, beam size), what is not to be timed.
    """

    translate: Callable[[Sequence[str], int, Any], list[str]]
    settings: Sequence[Any]
    prepare: Callable[[Sequence[str], int], None] = lambda lines, beam: None


def native(translator: Translator) -> Engine:
    """mtattn; its setting is the batch size, in source positions times beams; on a GPU it knows best."""
    searches = translator.config

    def run(lines: Sequence[str], beam: int, batch: int | None) -> list[str]:
        translate.BATCH_POSITIONS = batch or translate.BATCH_POSITIONS
        translator.config = replace(searches, search="beam", beam_size=beam, nbest=1)
        return [translation.text for translation in translator.translate(lines)]

    return Engine(run, (16_384, 8_192) if translator.device.type == "cpu" else (None,))


def imitating(translator: Translator, write: Write) -> Engine:
    """An engine that shares no weights with mtattn; its setting is the number of sentences a batch."""
    imitator = Imitator(translator, write)
    return Engine(imitator.translate, BATCHES[translator.device.type], imitator.learn)


def stock(folder: Path, translator: Translator, dtype: torch.dtype) -> Engine:
    """`generate` of transformers with the same weights; its setting is the number of sentences a batch.

    It is told nothing but how to search: it writes until all sentences of a batch are done, as for any of its users.
    """
    from transformers import AutoModelForSeq2SeqLM

    tokenizer, device, config = translator.tokenizer, translator.device, translator.config
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True, dtype=dtype).to(device).eval()

    @torch.inference_mode()
    def run(lines: Sequence[str], beam: int, batch: int) -> list[str]:
        def write(src: torch.Tensor, numbers: list[int]) -> list[list[int]]:
            src = src.to(device)
            found = model.generate(
                input_ids=src,
                attention_mask=(src != tokenizer.pad_id).long(),
                num_beams=beam,
                length_penalty=config.length_penalty,
                max_length=None,
                max_new_tokens=config.max_len(src.size(1)),
            )
            ids: list[list[int]] = found[:, 1:].tolist()
            return ids

        return in_batches(tokenizer, lines, batch, write)

    return Engine(run, BATCHES[device.type])


def add_transformers(
    contenders: dict[str, Engine],
    translator: Translator,
    folder: Path,
    options: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    """Let `generate` take part, with the model's weights if a class of transformers has its arithmetic."""
    import transformers

    from mtattn.export import export_model

    result["versions"]["transformers"] = transformers.__version__
    dtypes = [torch.float32, torch.bfloat16] if translator.device.type == "cuda" else [torch.float32]
    shared = not obstacles(load_model(options.run)[2])
    if shared:
        some = folder / "some.txt"
        some.write_text("".join(f"{line}\n" for line in lines_of(options.src)[:COMPARED]), encoding="utf-8")
        parity = export_model(options.run, "huggingface", folder / "huggingface", Reporter(), lines=some)
        print(f"parity of transformers: {parity}")
        result["parity"]["transformers"] = str(parity)
    for dtype in dtypes:
        kind = str(dtype).removeprefix("torch.")
        if shared:
            contenders[f"transformers {kind}"] = stock(folder / "huggingface", translator, dtype)
        else:
            contenders[f"Marian {kind}"] = imitating(translator, marian(translator, dtype))


def start_joeynmt(
    translator: Translator, config: Config, folder: Path, options: argparse.Namespace
) -> Contender | None:
    """JoeyNMT with a model of the same shape, waiting for questions; None where it cannot be installed."""
    write_groups(folder / "batches.npz", [])
    training = argparse.Namespace(device="cpu", threads=options.threads, peer_lr=0.0, warmup=0)
    job = make_job(config, translator.tokenizer, folder, training)
    return begin(["JoeyNMT"], job, folder, options.cache).get("JoeyNMT")


def exported(folder: Path, translator: Translator, threads: int, compute_type: str) -> Engine:
    """CTranslate2; its setting is (batches side by side, sentences a batch), and it sorts by length itself."""
    from mtattn.export.ctranslate2 import start_engine

    files = list(translator.tokenizer.to_files().values())
    source, target = (SentencePieceProcessor(model_proto=model) for model in (files[0], files[-1]))
    config = translator.config
    engines = {
        workers: start_engine(
            folder, inter_threads=workers, intra_threads=threads // workers, compute_type=compute_type
        )
        for workers in {1, threads}
    }

    def run(lines: Sequence[str], beam: int, setting: tuple[int, int]) -> list[str]:
        workers, batch = setting
        pieces = source.encode(list(lines), out_type=str)
        longest = max(map(len, pieces)) + 1
        results = engines[workers].translate_batch(
            pieces,
            beam_size=beam,
            length_penalty=config.length_penalty,
            max_decoding_length=config.max_len(longest),
            min_decoding_length=0,
            max_input_length=0,
            max_batch_size=batch,
        )
        texts: list[str] = target.decode([result.hypotheses[0] for result in results])
        return texts

    return Engine(run, [(workers, batch) for workers in sorted(engines) for batch in (32, 64, 128, 256)])


def add_ctranslate2(
    contenders: dict[str, Engine],
    translator: Translator,
    folder: Path,
    options: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    """Export to CTranslate2, show that the copies compute the same, and let them take part."""
    import ctranslate2

    from mtattn.export import export_model

    result["versions"]["ctranslate2"] = ctranslate2.__version__
    for kind in QUANTIZATIONS:
        out = folder / kind
        parity = export_model(options.run, "ctranslate2", out, Reporter(), quantization=kind, lines=options.src)
        print(f"parity of ctranslate2 {kind}: {parity}")
        result["parity"][kind] = str(parity)
        contenders[f"ctranslate2 {kind}"] = exported(out, translator, options.threads, kind)


def seconds(contender: Engine, lines: Sequence[str], beam: int, setting: Any) -> float:
    """Wall time of translating the lines."""
    started = time.perf_counter()
    contender.translate(lines, beam, setting)
    return time.perf_counter() - started


def throughput(
    contenders: dict[str, Engine], lines: Sequence[str], beam: int, repeats: int, tried: int
) -> dict[str, Any]:
    """Seconds for all lines at each engine's best setting, which is the best for the first so many, round by round."""
    best = {}
    for name, contender in contenders.items():
        contender.prepare(lines, beam)
        seconds(contender, lines[:50], beam, contender.settings[0])  # the first call of all allocates
        best[name] = min(contender.settings, key=partial(seconds, contender, lines[:tried], beam))
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            rounds[name].append(seconds(contender, lines, beam, best[name]))
    return {name: {"setting": best[name], "seconds": times} for name, times in rounds.items()}


def latency(contenders: dict[str, Engine], lines: Sequence[str], beam: int) -> dict[str, list[float]]:
    """Milliseconds of each line, translated alone; the engines take turns line by line."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        seconds(contender, lines[:1], beam, contender.settings[0])
    for line in lines:
        for name, contender in contenders.items():
            found[name].append(1000 * seconds(contender, [line], beam, contender.settings[0]))
    return found


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """theirs / ours, paired: median [lowest, highest]."""
    paired = [a / b for a, b in zip(theirs, ours, strict=True)]
    return spread(paired, "x")


def report_beam(
    contenders: dict[str, Engine], lines: Sequence[str], refs: Sequence[str] | None, beam: int, options: Any
) -> dict[str, Any]:
    """Measure and print one beam size."""
    ours_all = [name for name in contenders if name.startswith("mtattn")]
    through = throughput(contenders, lines, beam, options.repeats, TRIED[options.device])
    alone = latency(contenders, lines[: options.latency_lines], beam)
    outputs = {name: c.translate(lines, beam, through[name]["setting"]) for name, c in contenders.items()}
    result: dict[str, Any] = {}
    print(f"\nbeam {beam}")
    for name in contenders:
        times, milliseconds = through[name]["seconds"], sorted(alone[name])
        row = {
            **through[name],
            "sentences_per_second": len(lines) / statistics.median(times),
            "latency_median_ms": statistics.median(milliseconds),
            "latency_p95_ms": milliseconds[min(len(milliseconds) - 1, int(0.95 * len(milliseconds)))],
            "throughput_ratio": {ours: ratio(times, through[ours]["seconds"]) for ours in ours_all},
            "latency_ratio": {ours: ratio(alone[name], alone[ours]) for ours in ours_all},
            "equal_to_mtattn": sum(a == b for a, b in zip(outputs[name], outputs[ours_all[0]], strict=True))
            / len(lines),
        }
        if refs:
            row["bleu"] = score(outputs[name], refs, ter=False).bleu
        result[name] = row
        print(
            f"  {name:20} {row['sentences_per_second']:8.1f} sentences/s {row['setting']};  "
            f"latency median {row['latency_median_ms']:.1f} ms, p95 {row['latency_p95_ms']:.1f} ms;  "
            f"{row['equal_to_mtattn']:.1%} equal" + (f"  BLEU {row['bleu']:.2f}" if refs else "")
        )
        for ours in ours_all:
            if name != ours:
                print(
                    f"    {ours} is {row['throughput_ratio'][ours]} as fast, "
                    f"{row['latency_ratio'][ours]} as fast line by line"
                )
    return result


def main() -> None:
    """Parse, export, show parity, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory or released model")
    parser.add_argument("src", type=Path, help="source text")
    parser.add_argument("--ref", type=Path, help="its reference translation, to score the outputs with")
    parser.add_argument("--lines", type=int, default=1000, help="lines of it")
    parser.add_argument("--latency-lines", type=int, default=100, help="lines translated one by one")
    parser.add_argument("--beams", type=numbers, default="1,5")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the throughput measurement")
    parser.add_argument("--device", choices=sorted(TRIED), default="cpu")
    parser.add_argument("--huggingface", action="store_true", help="transformers' generate takes part")
    parser.add_argument("--joeynmt", action="store_true", help="JoeyNMT's search takes part")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of JoeyNMT's environment")
    take_json(parser)
    options = parser.parse_args()
    use_threads(options.threads)
    lines = lines_of(options.src)[: options.lines]
    refs = lines_of(options.ref)[: options.lines] if options.ref else None
    keep_freed_memory()
    device = torch.device(options.device)
    kinds = dict(QUANTIZATIONS) if device.type == "cpu" else {"float32": "none"}
    if device.type == "cpu" and not unavailable("float16"):
        kinds["float16"] = "float16"
    if choose_precision(device)[0] == "bfloat16":
        kinds["bfloat16"] = "bfloat16"
    translators = [
        load_translator(options.run, device, overrides=[f'decode.quantization="{quantization}"'])
        for quantization in kinds.values()
    ]
    contenders = {f"mtattn {kind}": native(translator) for kind, translator in zip(kinds, translators, strict=True)}
    result: dict[str, Any] = {
        "lines": len(lines),
        "threads": options.threads,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "versions": {"torch": torch.__version__},
        "parity": {},
        "beams": {},
    }
    joey: Contender | None = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if device.type == "cpu":
            add_ctranslate2(contenders, translators[0], folder, options, result)
        if options.huggingface:
            add_transformers(contenders, translators[0], folder, options, result)
        if options.joeynmt and device.type == "cpu":
            joey = start_joeynmt(translators[0], load_model(options.run)[2], folder, options)
        if joey:
            contenders["JoeyNMT"] = imitating(translators[0], joeynmt(joey, translators[0].tokenizer.pad_id))
        try:
            for beam in options.beams:
                result["beams"][beam] = report_beam(contenders, lines, refs, beam, options)
        finally:
            if joey:
                joey.process.kill()
    write_json(options, result)


if __name__ == "__main__":
    main()
