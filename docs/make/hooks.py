"""What mkdocs makes beside the pages that are written by hand: generated parts, API pages, links that lead outside."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import api  # noqa: E402
import blocks  # noqa: E402
import method_pages  # noqa: E402
import tables  # noqa: E402
import tutorials  # noqa: E402

PICTURES = {
    str(path.relative_to(ROOT))
    for folder in ("results", "benchmarks/results")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".png", ".svg")
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation."""
    config.nav = [_with_children(entry) for entry in config.nav or ()]
    return config


def _with_children(entry: dict[str, Any]) -> dict[str, Any]:
    ((title, value),) = entry.items()
    if title == "Methods":
        return {title: [value, *(f"methods/{name}.md" for name in method_pages.names())]}
    if title == "Tutorials":
        return {title: [value, *(f"tutorials/{name}.md" for name in tutorials.NAMES)]}
    return {title: [f"api/{package}.md" for package in api.PACKAGES]} if title == "API" else entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the API pages, the pictures of methods, and the pictures of the repository that pages show."""
    for package in api.PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=api.page(package)))
    for name in method_pages.names():
        files.append(
            File.generated(config, f"methods/{name}.svg", content=blocks.draw(method_pages.presets_of(name)[0]))
        )
    for name in tutorials.NAMES:
        files.append(File.generated(config, f"tutorials/{name}.md", content=tutorials.page(name)))
    for path in sorted(PICTURES):
        files.append(File.generated(config, f"pictures/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Add what is generated to a page, and mend its links."""
    path = page.file.src_uri
    name = posixpath.basename(path).removesuffix(".md")
    if path.startswith("methods/"):
        markdown = method_pages.complete(name, markdown)
    markdown = tables.fill(markdown)
    return LINK.sub(lambda link: _mended(link, posixpath.dirname(path)), markdown)


def _mended(link: re.Match[str], folder: str) -> str:
    """A link out of the documentation: pictures are part of the site, files are named by their repository path."""
    picture, words, target = link.groups()
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    path = posixpath.normpath(posixpath.join("docs", folder, target))
    if path.startswith("docs/"):
        return link[0]
    if (name := path.removeprefix("examples/").removesuffix(".py")) in tutorials.NAMES:
        return f"[{words}]({posixpath.relpath(f'tutorials/{name}.md', folder or '.')})"
    if picture and path in PICTURES:
        return f"![{words}]({posixpath.relpath(f'pictures/{path}', folder or '.')})"
    if not (ROOT / path.partition("#")[0]).exists():
        raise ValueError(f"docs/{folder}: {target} is no file of the repository")
    shown = words.strip("`")
    return f"`{path}`" if path.endswith(shown) else f"{words} (`{path}`)"
