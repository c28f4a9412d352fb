"""Writes the repository's address, which stands in pyproject.toml, to where it is needed.

    python colab/update.py            # after a change of [project.urls] Repository
    python colab/update.py --check    # fails if something is not up to date, and changes nothing

These are the badges of the notebooks and of the README, the install cell of each notebook (its
text is here), and the line to clone by in CONTRIBUTING.md.
"""

import json
import pathlib
import re
import sys
import tomllib

_BADGE = re.compile(r"\[!\[Open In Colab\]\([^)]*\)\]\([^)]*/(\w+\.ipynb)\)")
_BADGE_PICTURE = "https://colab.research.google.com/assets/colab-badge.svg"
_CLONE = re.compile(r"git clone https?://\S+")

_INSTALL = '''\
# @title Install gsjax
import glob
import importlib.metadata
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

REPOSITORY = "{repository}"

# Take the clone that this notebook stands in; without one, as on Colab, make it.
here = pathlib.Path.cwd()
places = [here, here.parent, here / "gsjax"]
clones = [place for place in places if (place / "colab" / "update.py").exists()]
if not clones:
    subprocess.run(["git", "clone", "--depth=1", REPOSITORY, "gsjax"], check=True)
root = (clones or places[-1:])[0]
os.chdir(root)  # configs/ and runs/ are there
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0")  # TensorFlow's notes
sys.path.insert(0, str(root))

# Where gsjax can be imported from any folder, nothing is installed.
probe = [sys.executable, "-c", "import gsjax.losses, matplotlib"]
if subprocess.run(probe, cwd="/", stderr=subprocess.DEVNULL).returncode:
    extras = "report"
    if shutil.which("nvidia-smi"):
        extras += ",cuda12"
    elif glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        extras += ",tpu"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", f".[{{extras}}]"]
    subprocess.run(pip, check=True)
    for module, package in (("numpy", "numpy"), ("PIL", "pillow"), ("matplotlib", "matplotlib")):
        loaded = getattr(sys.modules.get(module), "__version__", None)
        if loaded not in (None, importlib.metadata.version(package)):
            raise RuntimeError("installed; now restart the runtime (Runtime menu), then run all")


def run(command):
    """Runs a command as a terminal does; unlike an exclamation mark, a failure stops here."""
    command = [sys.executable if word == "python" else word for word in shlex.split(command)]
    pipes = {{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}}
    with subprocess.Popen(command, **pipes) as process:
        for line in process.stdout:
            print(line, end="")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)'''


def updated(root: pathlib.Path) -> dict[pathlib.Path, str]:
    """The files of a clone that hold the address, with the text that they should have.

    Args:
      root: of the clone; `pyproject.toml` has the address as [project.urls] Repository.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Repository"].rstrip("/")
    opened = repository.replace("https://github.com", "https://colab.research.google.com/github")

    def badge(match: re.Match) -> str:
        link = f"{opened}/blob/main/colab/{match[1]}"
        return f"[![Open In Colab]({_BADGE_PICTURE})]({link})"

    texts = {}
    for name in ("README.md", "CONTRIBUTING.md"):
        text = _BADGE.sub(badge, (root / name).read_text())
        texts[root / name] = _CLONE.sub(f"git clone {repository}", text)
    for path in sorted((root / "colab").glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        cells = {cell["id"]: cell for cell in notebook["cells"]}
        title, install = cells["title"], cells["install"]
        title["source"] = _lines(_BADGE.sub(badge, "".join(title["source"])))
        install["source"] = _lines(_INSTALL.format(repository=repository))
        texts[path] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    return texts


def _lines(text: str) -> list[str]:
    """The source of a cell as notebooks keep it."""
    return text.splitlines(keepends=True)


def main(arguments: list[str]) -> int:
    """Writes the files that are not up to date, or with --check names them; the exit status."""
    root = pathlib.Path(__file__).resolve().parent.parent
    stale = {path: text for path, text in updated(root).items() if path.read_text() != text}
    for path, text in stale.items():
        name = path.relative_to(root)
        if "--check" in arguments:
            print(f"{name} is not up to date: run python colab/update.py")
        else:
            path.write_text(text)
            print(f"wrote {name}")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
