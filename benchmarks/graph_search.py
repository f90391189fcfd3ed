"""What do CUDA graphs bring to greedy and beam search?

    python benchmarks/graph_search.py [--sentences 1,64,1000] [--beams 1,5] [--vocab 8000] [--repeats 5] [--json OUT]
    python benchmarks/graph_search.py --profile        (also prints where the time of the GPU goes)

A model of the default sizes with random weights translates random sources as long as captions are, 6 to 40 pieces, in
sentences that end where they have to. `step by step` is mtattn.decode.search, `first` is mtattn.graph_search when
it has to record its graphs, and `again` is a later call. All include reading off the hypotheses, on the host. Both must
find the same, but for continuations that are equally likely up to rounding.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import numbers, spread, take_json, write_json
from torch import Tensor

from mtattn.decode import DecodeConfig, search
from mtattn.graph_search import GraphSearch
from mtattn.history import Hypothesis
from mtattn.model import ModelConfig, Transformer, evaluating

IDS: dict[str, Any] = {"bos_id": 1, "eos_id": 2, "pad_id": 0}
Found = list[list[Hypothesis]]


def random_model(vocab: int, device: torch.device) -> Transformer:
    """A model in which every weight is random: a fresh one's output projections are zero."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(), vocab, vocab)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval().to(device)


def random_sources(count: int, vocab: int) -> tuple[Tensor, Tensor]:
    """Ids [N, S] of sources with 6 to 40 pieces, 15 on average, the longest first; and their lengths."""
    g = torch.Generator().manual_seed(0)
    lens = (6 - 9 * torch.rand(count, generator=g).log()).long().clamp(max=40).sort(descending=True).values
    src = torch.randint(4, vocab, (count, int(lens[0])), generator=g)
    places = torch.arange(src.size(1))
    src[places == lens[:, None] - 1] = IDS["eos_id"]
    return src.masked_fill(places >= lens[:, None], IDS["pad_id"]), lens


def milliseconds(work: Callable[[], Found]) -> tuple[float, Found]:
    """Wall time; the results are on the host when the work returns, so there is nothing more to wait for."""
    started = time.perf_counter()
    found = work()
    return 1000 * (time.perf_counter() - started), found


def measure(model: Transformer, count: int, beam: int, options: argparse.Namespace) -> dict[str, Any]:
    """One batch size and beam, by both."""
    src, lens = random_sources(count, options.vocab)
    src = src.to(model.out_embed.weight.device)
    config = DecodeConfig(beam_size=beam, max_len_ratio=1.0, max_len_extra=2)
    ours = GraphSearch(model)

    def step_by_step() -> Found:
        with evaluating(model):
            return search(model.start(src), lens.to(src.device), config, **IDS)

    def on_graphs() -> Found:
        return ours(src, lens, config, **IDS)

    expected = step_by_step()
    first, found = milliseconds(on_graphs)
    on_graphs()
    rounds = [(milliseconds(step_by_step)[0], milliseconds(on_graphs)[0]) for _ in range(options.repeats)]
    if options.profile:
        profile(on_graphs)
    again = statistics.median(ms for _, ms in rounds)
    return {
        "sentences": count,
        "beam": beam,
        "step_by_step_ms": statistics.median(ms for ms, _ in rounds),
        "first_ms": first,
        "again_ms": again,
        "sentences_per_second": 1000 * count / again,
        "ratio": spread([a / b for a, b in rounds], "x"),
        "rooms": len(ours._rooms),
        "equal": sum(a[0].ids == b[0].ids for a, b in zip(found, expected, strict=True)) / count,
        "largest_gap": max(abs(a[0].score - b[0].score) for a, b in zip(found, expected, strict=True)),
    }


def profile(work: Callable[[], Found]) -> None:
    """Print which kernels take the time."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        work()
    print(profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=70))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=numbers, default="1,64,1000")
    parser.add_argument("--beams", type=numbers, default="1,5")
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true")
    take_json(parser)
    options = parser.parse_args()
    model, rows = random_model(options.vocab, torch.device(options.device)), []
    for beam in options.beams:
        for count in options.sentences:
            rows.append(row := measure(model, count, beam, options))
            print(
                f"beam {beam}, {count:5} sentences: step by step {row['step_by_step_ms']:8.1f} ms, graphs first "
                f"{row['first_ms']:8.1f}, again {row['again_ms']:8.1f} ({row['ratio']}), {row['rooms']} rooms; "
                f"{row['sentences_per_second']:,.0f} sentences/s; {row['equal']:.1%} equal, "
                f"scores within {row['largest_gap']:.1e}"
            )
    if options.device == "cuda":
        held, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        print(f"memory: {held / 2**30:.2f} GiB at most, {reserved / 2**30:.2f} with what the allocator keeps")
    write_json(options, rows)


if __name__ == "__main__":
    main()
