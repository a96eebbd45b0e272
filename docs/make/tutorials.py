"""The pages of the tutorials: the scripts of examples/ that are written in cells, executed, with what they print."""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import gettempdir

import jupytext
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
# In the order of the pages, with the call of a script that is no cells but a program with arguments.
NAMES = {
    "timm_loop": "",
    "own_images": "",
    "texts_with_trainer": "",
    "causal_lm": '__file__ = "causal_lm.py"\nmain(["--output", tempfile.mkdtemp()])',
    "compare_methods": "",
    "own_method": "",
}
GUARD = '\n\nif __name__ == "__main__":\n    main()\n'
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TEMPORARY = re.compile(rf"{re.escape(gettempdir())}/tmp\w+")
BAR = re.compile(r"^( *)[^\n]*\r", flags=re.MULTILINE)
LIMIT = 600  # seconds a cell


def _source(name: str) -> str:
    """The script in cells: a program is its description, its code and a call."""
    source = (EXAMPLES / f"{name}.py").read_text()
    if not NAMES[name]:
        return source
    _, description, code = source.removesuffix(GUARD).split('"""', 2)
    title, _, rest = description.partition("\n")
    return f'# %% [markdown]\n"""\n# {title}\n{rest}"""\n\n# %%\n{code.strip()}\n\n# %%\n{NAMES[name]}\n'


def page(name: str) -> str:
    """The executed script as Markdown. DOCS_EXECUTE=0 leaves the outputs out, for a quick look at a page."""
    notebook = jupytext.reads(_source(name), fmt="py:percent")
    if os.environ.get("DOCS_EXECUTE") != "0":
        os.environ["PYTHONWARNINGS"] = "ignore"  # of the kernel, whose lines would name files of this machine
        NotebookClient(
            notebook, timeout=LIMIT, kernel_name="python3", coalesce_streams=True,
            resources={"metadata": {"path": str(EXAMPLES)}},
        ).execute()  # fmt: skip
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    return f"{_printable(text)}\n\nThe script: `examples/{name}.py`.\n"


def _printable(text: str) -> str:
    """Without colours and names of temporary folders, and of a progress bar its last state."""
    return TEMPORARY.sub("example", BAR.sub(r"\1", ESCAPES.sub("", text)))
