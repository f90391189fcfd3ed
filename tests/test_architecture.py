"""Who may import whom, what must not be imported to print a help text, and what must not occur at all."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mtattn"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each module of the core may import from mtattn, from the lowest level up. Beside that, all but attention may
# import errors. A module that is not listed belongs to a command: it may import anything but cli, and the core may not
# import it. `attention` and `export` are folders; inside them anything goes that makes no circle.
MAY_IMPORT = {
    # 0: one idea each, and nothing of mtattn (but the parts of one idea: decode's, corpus's; and how to be interrupted)
    "attention": "",
    "beam": "",
    "dropout": "",
    "errors": "",
    "evaluate": "scripts",
    "filtering": "scripts",
    "flags": "history",
    "graph": "",
    "history": "",
    "hub": "",
    "interrupts": "",
    "keys": "",
    "linear": "",
    "loss": "",
    "memory": "",
    "metrics": "",
    "optim": "",
    "prefix": "",
    "processors": "",
    "progress": "streams",
    "sampling": "",
    "scripts": "",
    "segments": "",
    "storage": "",
    "streams": "",
    "threads": "",
    "tmx": "",
    "tokenizer": "interrupts storage",
    "unfilled": "",
    "decode": "beam history processors sampling",
    "readers": "hub tmx",
    "sources": "hub readers",
    "corpus": "readers sources",
    # 1: what joins two of them
    "batch": "packing",
    "batching": "batch packing tokenizer",
    "cooccurrence": "batch model",
    "distributed": "batch interrupts precision",
    "examples": "batch corpus filtering tokenizer",
    "mixing": "batch corpus",
    "gradient": "batch graph",
    "model": "attention dropout packing",
    "graph_search": "beam decode graph history model slots",
    "inference": "attention keys linear model",
    "objective": "batch loss model",
    "packing": "attention",
    "precision": "model",
    "slots": "attention history model",
    "snapshot": "batching optim",
    "splitting": "batch gradient snapshot",
    "subwords": "tokenizer",
    "textio": "progress",
    "update": "graph model optim precision",
    # 2: the option classes of levels 0 and 1
    "config": "corpus decode filtering loss mixing model optim tokenizer",
    # 3: runs, and what is made from them
    "card": "config",
    "checkpoint": "config metrics model storage tokenizer",
    "loading": "checkpoint config model storage tokenizer unfilled",
    "prepare": "batch config corpus examples mixing progress storage tokenizer",
    "translate": "batch config corpus decode flags graph_search history inference loading model "
    "prefix processors scripts segments threads tokenizer",
}
HEAVY = {"torch", "datasets", "matplotlib", "sentencepiece", "numpy", "pyarrow", "sacrebleu"}


def module_of(path: Path) -> str:
    """The file's name below mtattn, or that of its folder."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module that a file imports, by its full name, wherever the import stands."""
    package = ["mtattn", *path.relative_to(PACKAGE).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names.update(f"{module}.{alias.name}" for alias in node.names) if module == "mtattn" else names.add(module)
    return names


def own_imports(path: Path) -> set[str]:
    """Which other modules of mtattn a file imports."""
    parts = [name.split(".") for name in imported(path)]
    return {part[1] for part in parts if part[0] == "mtattn" and len(part) > 1} - {module_of(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    module, found = module_of(path), own_imports(path)
    if module in ("cli", "__main__"):
        return
    if module in MAY_IMPORT:
        allowed = {*MAY_IMPORT[module].split(), *([] if module == "attention" else ["errors"])}
        assert not found - allowed, f"{path.name} imports {sorted(found - allowed)}; MAY_IMPORT says {sorted(allowed)}"
    assert "cli" not in found


def test_the_table_lists_modules_that_exist():
    assert set(MAY_IMPORT) <= {module_of(path) for path in FILES}


def test_no_circle():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        graph.setdefault(module_of(path), set()).update(own_imports(path))
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["train", "--help"], ["translate", "--help"], ["eval", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nimport mtattn.cli\n"
        f"sys.argv = ['mtattn', *{arguments!r}]\n"
        "try:\n    mtattn.cli.main() if sys.argv[1:] else None\nexcept SystemExit:\n    pass\n"
        "print('MODULES', *sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    output, _, modules = run.stdout.partition("MODULES")
    assert not HEAVY & set(modules.split())
    assert ("Usage" in output) == bool(arguments)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pickle_and_no_box_of_leftovers(path):
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
    assert not {name.split(".")[0] for name in imported(path)} & {
        "pickle",
        "cPickle",
        "dill",
        "joblib",
        "shelve",
        "marshal",
    }
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in ("save", "load"), f"{path.name}:{node.lineno}: torch.{node.attr} is pickle"
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert not {alias.name for alias in node.names} & {"save", "load"}, path.name
