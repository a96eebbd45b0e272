"""Tables in LaTeX."""

from __future__ import annotations

from collections.abc import Iterator

from capaboost.tables.layout import Layout, Text

# What LaTeX reads as a command, or sets as another character in its default encodings.
ESCAPED = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": "$-$",
}
ESCAPES = str.maketrans(ESCAPED)


def to_latex(layout: Layout) -> str:
    r"""A tabular with the rules of booktabs, and the notes as a paragraph, for `\input` in a table environment.

    A cell of two lines takes two lines of the tabular, the second smaller; the best cell of a task is bold.
    """
    columns = "l" * layout.numeric + "c" * (len(layout.titles) - layout.numeric)
    lines = ["% in the preamble: \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [_line([escape(title) for title in layout.titles]), "\\midrule"]
    for row in layout.rows:
        lines += _row(row)
    lines += ["\\bottomrule", "\\end{tabular}"]
    notes = [f"\\par\\smallskip{{\\footnotesize {' '.join(map(escape, layout.notes))}\\par}}"]
    return "\n".join(lines + (notes if layout.notes else [])) + "\n"


def escape(text: str) -> str:
    """The text as LaTeX shows it, on one line."""
    return " ".join(text.split()).translate(ESCAPES)


def _row(row: list[Text]) -> Iterator[str]:
    for number in range(max(len(text.lines) for text in row)):
        yield _line([_cell(text, number) if number < len(text.lines) else "" for text in row])


def _cell(text: Text, number: int) -> str:
    shown = escape(text.lines[number])
    if number:
        return f"{{\\scriptsize {shown}}}"
    return f"\\textbf{{{shown}}}" if text.is_best else shown


def _line(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"
