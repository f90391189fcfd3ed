"""The folder works by itself: copied elsewhere, with torch and nothing else of this project."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import mtattn.attention

FOLDER = Path(mtattn.attention.__file__).parent

PROGRAM = """
import sys, torch
import attention
from attention import MultiHeadAttention, POSITIONS, SCORES, KVCache, attend, causal
x = torch.randn(2, 5, 32)
for score in SCORES:
    for name, position in POSITIONS.items():
        acts = position.build(32, 4, 8) if position.place != "embedding" else None
        layer = MultiHeadAttention(32, 4, score=score, position=acts)
        assert layer(x, mask=causal()).shape == x.shape
assert not any(name.split(".")[0] == "mtattn" for name in sys.modules), "something of mtattn was imported"
print(attention.__file__)
"""


def test_a_copy_of_the_folder_runs_alone(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "attention", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "attention" / "__init__.py")


def test_it_imports_torch_and_itself_only():
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots = {(node.module or "").split(".")[0]}
            else:
                continue
            assert roots <= {"torch"} | sys.stdlib_module_names, f"{path.name} imports {roots}"
