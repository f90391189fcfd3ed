"""Virtual environments for the peers: made once, kept in a cache folder, all with the torch of the running program."""

import json
import subprocess
import sys
from pathlib import Path

import torch

TRANSFORMERS, JOEYNMT = "transformers", "joeynmt"
ENVIRONMENTS: dict[str, tuple[list[str], str]] = {
    TRANSFORMERS: (["transformers>=5,<6"], "from transformers import MarianMTModel"),
    # importlib_metadata: imported by joeynmt 2.3.0, but not among its requirements
    JOEYNMT: (["joeynmt==2.3.0", "importlib_metadata"], "import joeynmt.model, joeynmt.search"),
}
"""Name -> (what pip installs, a statement that must then run)."""


class NotInstallableError(Exception):
    """A peer cannot be had here; the message says why."""


def python_of(name: str, cache: Path) -> Path:
    """The interpreter of a peer's environment, which is made when it is missing or was made for another torch.

    The environment sees this program's packages behind its own, so that torch is not downloaded again and every
    contender computes with the same one; pip installs into it what is missing or too new for the peer.

    Raises:
        NotInstallableError: pip or the peer's import failed.
    """
    folder = cache / name
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    requirements, probe = ENVIRONMENTS[name]
    wanted = {"requirements": requirements, "torch": torch.__version__, "python": sys.version}
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    site_packages = Path(torch.__file__).parent.parent
    own = next((folder / "lib").glob("python*")) / "site-packages"
    (own / "behind.pth").write_text(f"{site_packages}\n", encoding="utf-8")
    constraints = folder / "constraints.txt"
    constraints.write_text(f"torch=={torch.__version__.split('+')[0]}\n", encoding="utf-8")
    _run([str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), *requirements])
    _run([str(python), "-c", probe])
    stamp.write_text(json.dumps(wanted), encoding="utf-8")
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise NotInstallableError(f"{' '.join(command)} failed:\n{last}")
