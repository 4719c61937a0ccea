"""Hooks of MkDocs: pages outside of docs/ become pages of the site, and so does each source file that a page links to.

Links are written for a reader of the repository: relative to the file in which they stand. Here they are turned into
links between pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_OF_PAGE = {page: path for path, page in PAGES.items()}
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in PAGES}
    for file in files.documentation_pages():
        if file.src_uri not in _OF_PAGE:
            texts[f"docs/{file.src_uri}"] = file.content_string
    linked = {_target(path, link) for path, text in texts.items() for link, _ in _LINK.findall(text)}
    for target in sorted(linked):
        if _is_source(target):
            files.append(File.generated(config, _page_of(target), content=_shown(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    path = _OF_PAGE.get(uri, f"docs/{uri}")

    def moved(found: re.Match[str]) -> str:
        target = posixpath.relpath(_page_of(_target(path, found[1])), posixpath.dirname(uri) or ".")
        return f"]({target}{found[2] or ''})"

    return _LINK.sub(moved, markdown)


def _target(path: str, link: str) -> str:
    """Return the path in the repository that a link in the file `path` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _is_source(target: str) -> bool:
    return (ROOT / target).exists() and not target.startswith("docs/") and target not in PAGES


def _page_of(target: str) -> str:
    """Return the page that stands for a path in the repository."""
    if target in PAGES:
        return PAGES[target]
    return f"source/{target}.md" if _is_source(target) else target.removeprefix("docs/")


def _shown(target: str) -> str:
    """Show a source file, or the names and the first file of a folder."""
    path = ROOT / target
    if path.is_dir():
        names = "\n".join(f"* `{file.name}`" for file in sorted(path.iterdir()) if not file.name.startswith(("_", ".")))
        return f"# {target}/\n\n{names}\n"
    return f"# {target}\n\n````{path.suffix.removeprefix('.')}\n{path.read_text(encoding='utf-8')}\n````\n"
