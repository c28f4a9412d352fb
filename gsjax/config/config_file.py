"""Runs Python files in `configs/` and `configs/sweeps/` for what one of their functions returns."""

import difflib
import importlib.util
import pathlib
import re
import sys
import traceback
from typing import Any

from gsjax.errors import UserError

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# Of the configs that come with gsjax: in an installed package, in a clone.
FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def run(path: str, function: str) -> Any:
    """Runs a file and returns what its `function()` returns.

    The file's own folder comes first on the import path, so it can import its siblings.

    Raises:
      UserError: the file is missing or fails.
      UnknownKey: the file sets a key that the configuration does not have.
    """
    file = find(path, function)
    sys.path.insert(0, str(file.resolve().parent))
    try:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise UserError(f"--config: {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise UserError(
                f"--config: {path} has no {function}(); files in configs/ define get_config(), "
                "those in configs/sweeps/ (for --job sweep) get_sweep()"
            )
        return getattr(module, function)()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # any error in the user's file becomes one line
        where = f"{path}{_line_in(error, file)}"
        unknown = re.search(r'Key "(\w+)" does not exist', str(error))
        if unknown:
            raise UnknownKey(where, unknown[1]) from error
        message = " ".join(str(error).split())
        raise UserError(f"{where}: {type(error).__name__}: {message}") from error
    finally:
        sys.path.pop(0)


def find(path: str, function: str) -> pathlib.Path:
    """Returns a file, or the config of that name that comes with gsjax.

    Raises:
      UserError: there is neither.
    """
    file = pathlib.Path(path)
    if file.is_file():
        return file
    folders = [folder / "sweeps" if function == "get_sweep" else folder for folder in FOLDERS]
    named = [folder / f"{path}.py" for folder in folders]
    found = [candidate for candidate in named if candidate.is_file()]
    if found and file.name == path:
        return found[0]
    known = sorted(p.stem for folder in folders if folder.is_dir() for p in folder.glob("*.py"))
    near = difflib.get_close_matches(file.stem, known, n=1)
    hint = f"; did you mean --config {near[0]}?" if near else ""
    raise UserError(
        f"--config: there is no file {path}; give the path of a config file, or the name of one "
        f"that comes with gsjax{hint}"
    )


class UnknownKey(Exception):
    """A config file sets a key that the configuration does not have."""

    def __init__(self, where: str, key: str) -> None:
        super().__init__(where, key)
        self.where, self.key = where, key


def _line_in(error: BaseException, file: pathlib.Path) -> str:
    """Returns ":line" of the innermost frame of `file` in the traceback, or ""."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).name == file.name]
    return f":{lines[-1]}" if lines else ""
