"""Hooks of mkdocs: they add what `reference.py` takes from the code to the hand-written pages."""

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages of the API reference into the navigation."""
    config.nav = [*config.nav, *reference.navigation()]
    config.watch.append(str(reference.ROOT / "gsjax"))  # mkdocs serve: build again after a change
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the API reference."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills the generated tables into the hand-written pages."""
    return reference.fill(markdown)
