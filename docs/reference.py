"""What the site takes from the code: the pages of the API reference and the generated tables.

Needs neither the site generator nor JAX nor TensorFlow: modules are read, not imported.
"""

import ast
import pathlib
import re
from collections.abc import Iterable

from gsjax.config.defaults import SETTINGS
from gsjax.config.schema import Kind
from gsjax.jobs import JOBS

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The reading order of the modules that lie directly in the package; a module that is not named
# here comes last, a subpackage has a section of its own.
GROUPS = {
    "The method": ("similarity", "losses", "augment"),
    "Command line": ("main", "jobs", "errors"),
}
_OTHER = "More"
_OVERVIEW = "reference/index.md"


def public_modules(package: pathlib.Path = ROOT / "gsjax") -> dict[str, pathlib.Path]:
    """Returns {dotted name: file} of the package, its public modules and subpackages."""
    modules = {}
    for file in sorted(package.rglob("*.py")):
        parts = (package.name, *file.relative_to(package).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") for part in parts):
            modules[".".join(parts)] = file
    return modules


def sections() -> dict[str, list[str]]:
    """Returns {title of a section: names of its modules}, in the order of the navigation."""
    modules = public_modules()
    packages = [name for name, file in modules.items() if file.name == "__init__.py"][1:]
    order = [f"gsjax.{name}" for group in GROUPS.values() for name in group]
    other = [n for n in modules if n.count(".") == 1 and n not in packages and n not in order]
    grouped = {title: [f"gsjax.{name}" for name in names] for title, names in GROUPS.items()}
    for name in modules:  # belongs to the innermost package around it
        around = [package for package in packages if f"{name}.".startswith(f"{package}.")]
        if around:
            grouped.setdefault(max(around, key=len), []).append(name)
    if other:
        grouped[_OTHER] = other
    return grouped


def page_of(module: str) -> str:
    """Returns the path of a module's page."""
    return f"reference/{module}.md"


def navigation() -> list[dict]:
    """Returns the section of the API reference as mkdocs' `nav` has it."""
    inner: list = [{"All modules": _OVERVIEW}, {"gsjax": page_of("gsjax")}]
    for title, modules in sections().items():
        entries = [{name.rpartition(".")[2]: page_of(name)} for name in modules]
        if title == modules[0]:  # a subpackage's own page is that of its section
            entries[0] = {"overview": page_of(title)}
        inner.append({title: entries})
    return [{"API reference": inner}]


def pages() -> dict[str, str]:
    """Returns {path: Markdown} of the pages of the API reference."""
    modules = public_modules()
    found = {page_of(name): f"::: {name}\n" for name in modules}
    lines = ["# API reference", "", "Every public module, made from its docstrings.", ""]
    for title, names in sections().items():
        heading = f"`{title}`" if title in modules else title
        lines += [f"## {heading}", "", *_module_table(modules, names), ""]
    found[_OVERVIEW] = "\n".join(lines)
    for package in sections():
        if package in modules:
            table = "\n".join(_module_table(modules, sections()[package][1:]))
            found[page_of(package)] += f"\n## Modules\n\n{table}\n"
    return found


def fill(page: str) -> str:
    """Replaces the lines `<!-- generated: NAME -->` of a hand-written page by what they name.

    Raises:
      KeyError: there is nothing of that name.
    """
    tables = {
        "configs": config_table,
        "free": free_list,
        "jobs": job_table,
        "settings": settings_tables,
    }
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: tables[match[1]](), page)


def settings_tables() -> str:
    """A table for each group of settings, with all that `gsjax.config.defaults` says of them."""
    groups: dict[str, list] = {}
    for key, setting in SETTINGS.items():
        name = key.partition(".")[0] if "." in key else "general"
        may_change = "may change" if setting.kind is Kind.FREE else ""
        groups.setdefault(name, []).append(
            (
                _code(key),
                _code(setting.written),
                _text(setting.allowed),
                _text(setting.help),
                may_change,
            )
        )
    head = ("Setting", "Default", "Values", "What", "Second start")
    return "\n\n".join(f"### {name}\n\n{_table(head, rows)}" for name, rows in groups.items())


def free_list() -> str:
    """The settings that may change between two starts, as a sentence part."""
    of_groups: dict[str, list] = {}
    for key in SETTINGS:
        of_groups.setdefault(key.partition(".")[0], []).append(key)
    names = []
    for group, keys in of_groups.items():
        free = [key for key in keys if SETTINGS[key].kind is Kind.FREE]
        names += [f"{group}.*"] if free == keys and free != [group] else free
    return ", ".join(map(_code, names))


def job_table() -> str:
    """A table of `gsjax.jobs.JOBS`: name, help and module."""
    rows = [
        (
            f"[{_code(name)}](#{name})",
            _text(job.help),
            f"[{_code(job.module)}]({page_of(job.module)})",
        )
        for name, job in JOBS.items()
    ]
    return _table(("Job", "What it does", "Module"), rows)


def config_table() -> str:
    """A table of the files under `configs/`, with the first line of their docstrings."""
    rows = [
        (_code(file.relative_to(ROOT).as_posix()), _text(_summary(file)))
        for file in sorted((ROOT / "configs").rglob("*.py"))
    ]
    return _table(("File", "What"), rows)


def _module_table(modules: dict[str, pathlib.Path], names: Iterable[str]) -> list[str]:
    rows = [(f"[{_code(name)}]({name}.md)", _text(_summary(modules[name]))) for name in names]
    return [_table(("Module", "What"), rows)]


def _summary(file: pathlib.Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>"


def _text(text: str) -> str:
    """Keeps Markdown and HTML from reading anything but code in backticks into a text."""
    plain = re.sub(r"[\\*_\[\]<>&|]", lambda match: f"&#{ord(match[0])};", text)
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", plain)
