"""The command line: parse, load, call one function, print. Heavy imports stand inside the commands."""

import io
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtattn import __version__
from mtattn.errors import ConfigError, FileError, MtattnError
from mtattn.interrupts import Interrupted, Interrupts, leave
from mtattn.streams import discard

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    name="mtattn",
    rich_markup_mode=None,  # importing rich would take longer than all else that --help does
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Split(StrEnum):
    """A named part of the corpus."""

    dev = "dev"
    test = "test"


class ExportTarget(StrEnum):
    """Where a model can be exported to: the keys of `mtattn.export.EXPORTERS`."""

    ctranslate2 = "ctranslate2"
    onnx = "onnx"
    huggingface = "huggingface"


DeviceOption = Annotated[Device, typer.Option(help="auto: cuda if there is one, else cpu.")]
SetOption = Annotated[list[str], typer.Option("--set", metavar="K=V", help="Override a config value; repeatable.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or a released model folder.")]
SearchOption = Annotated[list[str], typer.Option("--set", metavar="decode.K=V", help="Search otherwise; repeatable.")]
BeamOption = Annotated[int | None, typer.Option("--beam", help="Beam size; 1 is greedy. Default: the config's.")]


def _say_version(asked: bool) -> None:
    if asked:
        with _printing():
            typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Train a machine translator whose inside you can see."""


@app.command()
def train(
    config: Annotated[str | None, typer.Argument(help="A TOML file, or the name of a bundled config.")] = None,
    src_file: Annotated[Path | None, typer.Option(help="Source text, one sentence a line.")] = None,
    tgt_file: Annotated[Path | None, typer.Option(help="Its translation, line by line.")] = None,
    dev_src: Annotated[Path | None, typer.Option(help="Source text to validate on.")] = None,
    dev_tgt: Annotated[Path | None, typer.Option(help="Its translation.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run directory. Default: runs/NAME, by config or source file.")
    ] = None,
    set_: SetOption = [],  # noqa: B006
    device: DeviceOption = Device.auto,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="MODEL", help="Fine-tune this run or released model.")
    ] = None,
    mix: Annotated[float | None, typer.Option(help="Share of an epoch that is MODEL's old data, such as 0.5.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Stop after so much training; sizes suit it.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, replacing what the run directory holds.")] = False,
    allow_changed_data: Annotated[
        bool, typer.Option("--allow-changed-data", help="Resume although the training pairs or a dev set changed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
) -> None:
    """Train a translator, or go on with a run that was stopped."""
    from mtattn.command import TrainCommand, understand
    from mtattn.progress import Reporter

    report, chosen = Reporter(), _device(device)
    flags = {"finetune.mix": mix, "train.max_minutes": max_minutes}
    overrides = (*(f"{key}={value}" for key, value in flags.items() if value is not None), *set_)
    command = TrainCommand(config, src_file, tgt_file, dev_src, dev_tgt, run, from_, overrides, fresh)
    directory, resolved = understand(command, report, chosen)
    for note in resolved.notes:
        report.note(note)
    if dry_run:
        with _printing():
            typer.echo(resolved.config.to_toml(), nl=False)
        return
    from mtattn.train import train

    train(resolved.config, directory, report, device=chosen, fresh=fresh, allow_changed_data=allow_changed_data)


@app.command()
def translate(
    run: RunArgument,
    input: Annotated[Path | None, typer.Argument(help="Text, one sentence a line. Default: standard input.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file if it exists.")] = False,
    beam: BeamOption = None,
    nbest: Annotated[int | None, typer.Option("--nbest", help="Translations of each line.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with scores.")] = False,
    set_: SearchOption = [],  # noqa: B006
    prefix: Annotated[Path | None, typer.Option(help="Line n: how translation n starts; empty: as it likes.")] = None,
    glossary: Annotated[Path | None, typer.Option(help="Terms to use: source term, tab, target term a line.")] = None,
    ensemble: Annotated[list[Path], typer.Option(metavar="RUN", help="Average with this model; repeatable.")] = [],  # noqa: B006
    mbr: Annotated[int | None, typer.Option(metavar="N", help="Of N candidates, take the one most like all.")] = None,
    stream: Annotated[
        bool | None, typer.Option(help="Answer each line before reading the next. Default: if you type them.")
    ] = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Translate text line by line: as many lines out as in, in order."""
    from mtattn.progress import Reporter
    from mtattn.render import as_json as to_json
    from mtattn.render import as_text
    from mtattn.textio import open_lines, open_output
    from mtattn.translate_options import make_translator

    report, input, output = Reporter(), _file(input), _file(output)
    if stream is None:
        stream = input is None and sys.stdin is not None and sys.stdin.isatty()
    translator = make_translator(
        run, _device(device), beam=beam, nbest=nbest, overrides=set_, ensemble=ensemble, glossary=glossary, mbr=mbr
    )
    with (
        _reader_may_leave(),
        open_lines(input, report) as lines,
        open_lines(prefix, report) if prefix else nullcontext() as prefixes,
        open_output(output, input, prefix, glossary, force=force) as write,
        # A terminal that shows the lines shows their progress, and a bar would be drawn into them.
        nullcontext() if stream or (not output and sys.stdout.isatty()) else report.bar("translating", None) as bar,
    ):
        done = bar.advance if bar else lambda count: None
        for translation in translator.translate(lines, done, prefixes, stream=stream):
            write(to_json(translation, translator) if as_json else as_text(translation))
    for note in translator.notes():
        report.note(note)


@app.command()
def inspect(
    run: RunArgument,
    input: Annotated[Path | None, typer.Argument(help="Text, one sentence a line. Default: standard input.")] = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Translate, and draw where each word of the translation looked."""
    from mtattn.inspect import inspect_lines
    from mtattn.progress import Reporter
    from mtattn.textio import open_lines
    from mtattn.translate import load_translator

    report = Reporter()
    with _printing(), open_lines(_file(input), report) as lines:
        translator = load_translator(run, _device(device))
        for picture in inspect_lines(translator, lines):
            typer.echo(picture)
        for note in translator.notes():
            report.note(note)


@app.command("eval")
def evaluate(
    run: RunArgument,
    split: Annotated[Split | None, typer.Option(help="One that the run's config names. Default: test.")] = None,
    src_file: Annotated[Path | None, typer.Option(help="Source text, instead of a split.")] = None,
    ref_file: Annotated[Path | None, typer.Option(help="Its reference translation.")] = None,
    beam: BeamOption = None,
    set_: SearchOption = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    device: DeviceOption = Device.auto,
) -> None:
    """Translate a split or a file and score it: BLEU, chrF and TER by sacreBLEU."""
    from mtattn.progress import Reporter
    from mtattn.scoring import evaluate_run

    if (src_file is None) != (ref_file is None):
        raise ConfigError("--src-file and --ref-file go together")
    if split is not None and src_file is not None:
        raise ConfigError("--split names a corpus of the config, --src-file another: give one of the two")
    files = (src_file, ref_file) if src_file and ref_file else None
    of = (split or Split.test).value
    with _printing():
        scores = evaluate_run(run, of, files, device=_device(device), beam=beam, overrides=set_, report=Reporter())
        if as_json:
            typer.echo(json.dumps(scores))
            return
        for name in ("bleu", "chrf", "ter"):
            typer.echo(f"{name:5} {scores[name]:6.2f}  {scores['signature'][name]}")
        typer.echo(f"{scores['num_sentences']} sentences in {scores['seconds']:.1f} s")


@app.command()
def doctor(
    config: Annotated[str | None, typer.Argument(help="A TOML file, or the name of a bundled config.")] = None,
    src_file: Annotated[Path | None, typer.Option(help="Source text, one sentence a line.")] = None,
    tgt_file: Annotated[Path | None, typer.Option(help="Its translation, line by line.")] = None,
    set_: SetOption = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Look for what would spoil a training run, on this machine and in a corpus; exit code 7 if it is fatal."""
    from rich.console import Console

    from mtattn.config import load_config
    from mtattn.doctor import as_json as to_json
    from mtattn.doctor import diagnose, show
    from mtattn.file_flags import file_overrides
    from mtattn.progress import Reporter

    overrides = [*file_overrides(config, src_file, tgt_file), *set_]
    try:
        with _standard_output():
            diagnosis = diagnose(load_config(config, overrides) if config or overrides else None, Reporter())
            if as_json:
                typer.echo(json.dumps(to_json(diagnosis), ensure_ascii=False))
            else:
                show(diagnosis, Console(highlight=False, emoji=False))
    except (BrokenPipeError, SystemExit):  # rich's way to say that the reader has left; what was found still counts
        discard(sys.stdout)
    diagnosis.require_sound()


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory or released model; with --check, also a config.")
    ],
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="Folder to write.")] = None,
    to: Annotated[ExportTarget | None, typer.Option("--to", help="What the copy is for.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Of the weights, for ctranslate2: float32, int8 or bfloat16.")
    ] = None,
    lines: Annotated[
        Path | None,
        typer.Option(help="Source text; the copy is compared on 200 lines. Default: dev, or what was held out."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier export and all that lies in its folder.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: say what this model can be exported to.")
    ] = False,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the Hugging Face hub.")] = None,
) -> None:
    """Write a copy that other programs run, and compare it with the model before it stands."""
    from mtattn.checkpoint import read_config
    from mtattn.config import load_config
    from mtattn.export import capabilities, export_model
    from mtattn.export.huggingface import push as push_folder
    from mtattn.loading import model_folder
    from mtattn.progress import Reporter

    if check:
        if any(given is not None for given in (out, to, quantization, lines, push)) or force:
            raise ConfigError("--check writes nothing: give it a run or a config alone")
        config = read_config(model_folder(Path(run))) if Path(run).is_dir() else load_config(run)
        with _printing():
            for name, verdict in capabilities(config).items():
                typer.echo(f"{name}: {verdict}")
        return
    if to is None or out is None:
        raise ConfigError("give --to and the folder to write: mtattn export RUN --to ctranslate2 OUT")
    if push is not None and to != ExportTarget.huggingface:
        raise ConfigError("--push goes with --to huggingface")
    report = Reporter()
    with Interrupts():  # SIGTERM too removes what was begun
        parity = export_model(Path(run), to.value, out, report, quantization=quantization, lines=lines, force=force)
    report.note(f"{out}: {parity}")
    if push is not None:
        report.note(f"pushed to {push_folder(out, push)}")


def _file(name: Path | None) -> Path | None:
    """None, which means the standard stream, for `-` too."""
    return None if name == Path("-") else name


@contextmanager
def _standard_output() -> Iterator[None]:
    """For work whose outcome is what it prints: that must be possible before it begins, and succeed."""
    if sys.stdout is None:  # as `>&-` leaves it
        raise FileError("standard output: is closed, and the outcome would be lost")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale may lack what a corpus holds
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is not None:
            raise
        raise FileError(f"standard output: cannot be written: {error.strerror}") from None


@contextmanager
def _printing() -> Iterator[None]:
    with _reader_may_leave(), _standard_output():
        yield


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """`| head -1` closes the pipe early: the work is over, nothing went wrong, and nothing may be flushed at exit."""
    try:
        yield
    except BrokenPipeError:
        discard(sys.stdout)
        raise typer.Exit(0) from None


def _device(chosen: Device) -> "torch.device":
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if chosen == Device.auto:
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[chosen.value]:
        raise ConfigError(f"--device {chosen.value}: this machine has none that torch can use; try --device auto")
    return torch.device(chosen.value)


def main() -> None:
    """Run the program; every error ends in one message and its own exit code."""
    try:
        app()
    except SystemExit as left:
        if "--help" not in sys.argv or not isinstance(left.__context__, BrokenPipeError):
            raise
        discard(sys.stdout)  # `| head -1` is no fault, though rich and typer end with 1 where they print the help
    except Interrupted as interrupted:
        leave(interrupted.exit_code)
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        message, exit_code = _explain(error)
        try:
            typer.echo(f"error: {message}", err=True)
        except OSError:  # a full disk behind it leaves the exit code to tell
            discard(sys.stderr)
        try:
            if sys.stdout is not None:  # as `>&-` leaves it
                sys.stdout.flush()
        except OSError:
            discard(sys.stdout)
        sys.exit(exit_code)


def _explain(error: Exception) -> tuple[str, int]:
    """The message and the exit code of an error."""
    if isinstance(error, MtattnError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", FileError.exit_code
    return f"unexpected {type(error).__name__}: {error}; --debug shows where, please report it", MtattnError.exit_code
