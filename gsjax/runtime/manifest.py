"""The SHA-256 manifest of a checkpoint, which marks it as complete and verifies its bytes.

`manifest.sha256` has one line `<digest>  <path>` per file, sorted by path, in the format of
`sha256sum`; to check it by hand, run `sha256sum --check manifest.sha256`.
"""

import hashlib

from etils import epath

from gsjax.runtime import files

FILE = "manifest.sha256"
_CHUNK = 1 << 20  # bytes


def write(folder: epath.Path) -> None:
    """Syncs all files to disk, then writes their manifest."""
    digests = {}
    for file in _files(folder):
        digests[file] = _digest(folder / file)
        files.sync(folder / file)
    for inner, _, _ in folder.walk():
        files.sync(inner)
    files.sync(folder.parent)
    files.write_text(folder / FILE, _text(digests))


def exists(folder: epath.Path) -> bool:
    """Whether the folder has a manifest, i.e. is complete."""
    return (folder / FILE).exists()


def remove(folder: epath.Path) -> None:
    """Removes the folder and its contents, the manifest first."""
    (folder / FILE).unlink(missing_ok=True)
    folder.rmtree(missing_ok=True)


def fault(folder: epath.Path) -> str | None:
    """Describes how a folder differs from its manifest; None if it matches.

    Every bit counts: in the files, their names and the manifest itself.
    """
    try:
        stored = (folder / FILE).read_bytes()
    except files.error_types() as error:
        return f"{FILE} cannot be read: {files.reason(error)}"
    lines = set(stored.split(b"\n"))
    listed = {line[66:] for line in lines}
    digests = {}
    for file in _files(folder):
        if file.encode() not in listed and _is_litter(file):
            continue
        try:
            digests[file] = _digest(folder / file)
        except files.error_types() as error:
            return f"{file} cannot be read: {files.reason(error)}"
    for file in digests:
        if file.encode() in listed and _text({file: digests[file]}).encode()[:-1] not in lines:
            return f"{file} differs from its manifest"
    for name in sorted(listed - {b""}):
        if name.decode(errors="replace") not in digests:
            return f"{ascii(name.decode(errors='replace'))[1:-1]} is missing"
    return None if stored == _text(digests).encode() else f"{FILE} does not match the files"


def _is_litter(file: str) -> bool:
    """Whether it is a file that desktops and network file systems leave in any folder."""
    name = file.rpartition("/")[2]
    return name.startswith(".") or name in ("desktop.ini", "Thumbs.db")


def _files(folder: epath.Path) -> list[str]:
    """Returns all files except the manifest, as sorted paths relative to the folder."""
    found = [
        (root / name).relative_to(folder).as_posix()
        for root, _, names in folder.walk()
        for name in names
    ]
    return sorted(file for file in found if file != FILE)


def _digest(file: epath.Path) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _text(digests: dict[str, str]) -> str:
    return "".join(f"{digest}  {file}\n" for file, digest in digests.items())
