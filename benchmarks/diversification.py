"""How much better is a model that also learns from what models of both directions wrote?

    python benchmarks/diversification.py FOLDER [--seeds 1,2,3] [--epochs 50] [--device cuda] [--json OUT]

FOLDER has Multi30k's files (train, val, test_2016_flickr; .en and .de). Data diversification (Nguyen et al. 2020) on
them: two models a direction are trained with `multi30k-en-de` and `multi30k-de-en` for --epochs; the two English-German
ones together translate the training text, each German-English one translates its targets back; and for each seed one
model is trained on the union with `multi30k-en-de-diverse`. A table has what `benchmarks/scores.py` says of the first
teacher, of both together and of each student, with a paired bootstrap test against the first teacher.

Everything lies in --work; running the command again goes on where it stopped. On one H100, side by side, the four took
three minutes and three students six and a half; this trains one after the other, which was not timed there.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from measuring import lines_of, numbers, take_json, write_json
from scores import compare, show

CORPUS = ("train", "val", "test_2016_flickr")
TEST = "test_2016_flickr"


class Recipe:
    """The steps, each of which is one command of mtattn that does nothing if it is done already."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder: Path = options.work / "corpus"
        names = [f"{split}.{language}" for split in CORPUS for language in ("en", "de")]
        if missing := [name for name in names if not (options.folder / name).is_file()]:
            sys.exit(f"{options.folder}: no {', '.join(missing)} there; give the folder of Multi30k's unpacked files")
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not (self.folder / name).exists():
                shutil.copyfile(options.folder / name, self.folder / name)

    def train(self, config: str, name: str, *overrides: str) -> Path:
        """The run directory of a model with these overrides."""
        run: Path = self.options.work / name
        settings = [f"data.folder={self.folder}", *overrides, *self.options.set]
        self._mtattn("train", config, "--run", str(run), *(word for pair in settings for word in ("--set", pair)))
        return run

    def translate(self, source: str, output: str, model: Path, *others: Path) -> Path:
        """A file of the corpus as one model, or several together, translate it."""
        path = self.folder / output
        if not path.exists():
            ensemble = [word for other in others for word in ("--ensemble", str(other))]
            self._mtattn("translate", str(model), str(self.folder / source), "-o", str(path), *ensemble)
        return path

    def _mtattn(self, *command: str) -> None:
        subprocess.run([sys.executable, "-m", "mtattn", *command, "--device", self.options.device], check=True)


def main() -> None:
    """Train, translate, train on the union, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the corpus is")
    parser.add_argument("--seeds", type=numbers, default="1,2,3", help="of the models that learn from the union")
    parser.add_argument("--epochs", type=int, default=50, help="of the models that translate the training text")
    parser.add_argument("--work", type=Path, default=Path("runs/diversification"), help="where everything is kept")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="an override for every training")
    parser.add_argument("--device", default="auto")
    take_json(parser)
    options = parser.parse_args()
    recipe = Recipe(options)
    short = (f"train.max_epochs={options.epochs}", "train.embeddings=cooccurrence", "train.valid_every=2850")
    ahead = [recipe.train("multi30k-en-de", f"en-de-{n}", *short, f"train.seed={n}") for n in (1, 2)]
    back = [recipe.train("multi30k-de-en", f"de-en-{n}", *short, f"train.seed={n}") for n in (1, 2)]
    recipe.translate("train.en", "forward.de", *ahead)
    for number, model in enumerate(back, 1):
        recipe.translate("train.de", f"backward{number}.en", model)
    systems = {"a teacher": ahead[:1], "both teachers": ahead}
    for seed in options.seeds:
        systems[f"student {seed}"] = [recipe.train("multi30k-en-de-diverse", f"student-{seed}", f"train.seed={seed}")]
    outputs = {
        name: lines_of(recipe.translate(f"{TEST}.en", f"{TEST}.{name.replace(' ', '-')}.de", *models))
        for name, models in systems.items()
    }
    rows = compare(outputs, lines_of(recipe.folder / f"{TEST}.de"), "de")
    show(rows, len(outputs["a teacher"]))
    write_json(options, rows)


if __name__ == "__main__":
    main()
