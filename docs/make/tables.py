"""The table of models and methods, from results/support.json: put where a page has `<!-- support -->`."""

from __future__ import annotations

from html import escape

from method_pages import names, presets_of, support

MARK = "<!-- support -->"


def fill(markdown: str) -> str:
    return markdown.replace(MARK, support_table()) if MARK in markdown else markdown


def support_table() -> str:
    models = list(support()["models"])
    vision = [model for model in models if model[0].isupper()]
    text = [model for model in models if model not in vision]
    return f"## timm\n\n{_table(vision)}\n\n## transformers\n\n{_table(text)}"


def _table(models: list[str]) -> str:
    head = "".join(f"<th><span>{escape(model)}</span></th>" for model in models)
    rows = "".join(_row(name, preset, models) for name in names() for preset in _plain(presets_of(name)))
    table = f"<thead><tr><th>method</th>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="support"><table class="support">{table}</table></div>'


def _plain(presets: list[str]) -> list[str]:
    """One of a method and its tied form: the same models take both."""
    return [preset for preset in presets if preset.removeprefix("capaboost-") == preset or preset[10:] not in presets]


def _row(page: str, preset: str, models: list[str]) -> str:
    cells = "".join(_cell(support()["models"][model][preset]) for model in models)
    return f'<tr><td><a href="methods/{page}.html">{preset}</a></td>{cells}</tr>'


def _cell(outcome: int | str) -> str:
    if isinstance(outcome, str):
        return f'<td class="no" title="{escape(outcome)}">–</td>'
    return f'<td class="yes" title="{outcome:,} trained entries">●</td>'
