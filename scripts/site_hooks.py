"""What MkDocs does not do by itself for the documentation site; named in mkdocs.yml.

* Files beside ``docs/`` become pages: CONTRIBUTING.md, CHANGELOG.md, the recorded results.
* A link that leaves ``docs/`` leads to such a page, or is left as text where there is none: the
  same Markdown can be read in the repository, where the link works.
* Formulas become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

#: Folders of recorded results: in the repository, and on the site with README.md as index.md.
RESULTS = {f"paper/results/{name}": f"results/{name}" for name in ("small", "full", "study")}

#: Page of the site -> its file in the repository.
PAGES = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "results/study/protocol.md": "paper/protocol.md",
    **{f"{page}/index.md": f"{path}/README.md" for path, page in RESULTS.items()},
}

#: Pages of wide tables, which take the room of the table of contents.
WIDE = {"benchmarks.md", "deviations.md", "gpu-arithmetic.md", *PAGES} - {"contributing.md"}

#: Pages that may be missing from a checkout; the navigation leaves them out then.
OPTIONAL = {"recipes.md"}

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Takes optional pages that are not there out of the navigation."""
    missing = {name for name in OPTIONAL if not (Path(config.docs_dir) / name).is_file()}
    config.nav = _without(config.nav, missing)
    return config


def _without(nav: Any, missing: set[str]) -> Any:
    if isinstance(nav, list):
        return [_without(entry, missing) for entry in nav if not _is_one_of(entry, missing)]
    if isinstance(nav, dict):
        return {title: _without(entry, missing) for title, entry in nav.items()}
    return nav


def _is_one_of(entry: Any, names: set[str]) -> bool:
    return isinstance(entry, dict) and any(
        isinstance(target, str) and target in names for target in entry.values()
    )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and pictures that are beside ``docs/``."""
    for page, path in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for path, folder in RESULTS.items():
        for picture in sorted((ROOT / path).rglob("*.png")):
            name = f"{folder}/{picture.relative_to(ROOT / path).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links between files of the repository to the pages of the site."""
    name = page.file.src_uri
    if name in WIDE:
        page.meta.setdefault("hide", ["toc"])
    source = PAGES.get(name, f"docs/{name}")

    def link(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in path or picture:
            return match.group()
        return _link_on_site(name, source, text, path, anchor)

    parts, last = [], 0
    for fence in _FENCE.finditer(markdown):  # code is left alone
        parts += [_LINK.sub(link, markdown[last : fence.start()]), fence.group()]
        last = fence.end()
    return "".join([*parts, _LINK.sub(link, markdown[last:])])


def _link_on_site(name: str, source: str, text: str, path: str, anchor: str) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / target).exists():
        raise FileNotFoundError(f"{source}: expected a file for the link to {path}, got none")
    on_site = {file: page for page, file in PAGES.items()}
    page = on_site.get(target) or on_site.get(f"{target}/README.md")
    if page is None and target.startswith("docs/"):
        page = target.removeprefix("docs/")
    if page is None:
        return text
    relative = posixpath.relpath(page, posixpath.dirname(name) or ".")
    return f"[{text}]({relative}{'#' if anchor else ''}{anchor})"


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML."""

    def formula(match: re.Match[str]) -> str:
        latex = html.unescape(match[3]).strip()
        if match[2] == "(":
            return convert(latex)
        return f'<div class="formula">{convert(latex, display="block")}</div>'

    return _FORMULA.sub(formula, content)
