"""Draw docs/how-it-works.svg; the masks in it are real ones from `capaboost_core.sharing.masks`.

python docs/make/how_it_works.py
"""

from __future__ import annotations

from pathlib import Path

from capaboost_core import CapaBoostConfig
from capaboost_core.sharing.masks import mask_bits

OUTPUT = Path(__file__).parents[1] / "how-it-works.svg"
WIDTH, HEIGHT, CELL = 1000, 470, 12
INK, MUTED, PAPER, EMPTY = "#1f2328", "#57606a", "#ffffff", "#f0f2f5"
FROZEN, SHARED, COPIES, SUM = "#c9d1d9", "#8250df", ("#0969da", "#cf222e"), "#1a7f37"
A_BITS = mask_bits(CapaBoostConfig(), "picture", "A", (4, 8))
B_BITS = mask_bits(CapaBoostConfig(), "picture", "B", (8, 4))


def rect(x: float, y: float, width: float, height: float, fill: str, stroke: str = PAPER, radius: int = 2) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" stroke="{stroke}"/>'


def text(x: float, y: float, words: str, size: int = 14, fill: str = INK, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{words}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    line = f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{MUTED}" stroke-width="2"/>'
    return line + f'<polygon points="{x2 + 7},{y2} {x2 - 2},{y2 - 5} {x2 - 2},{y2 + 5}" fill="{MUTED}"/>'


def grid(x: float, y: float, kept, fill: str) -> str:
    """One cell an entry, filled where `kept`."""
    return "".join(
        rect(x + CELL * column, y + CELL * row, CELL, CELL, fill if entry else EMPTY)
        for row, entries in enumerate(kept)
        for column, entry in enumerate(entries)
    )


def factors(x: float, y: float, a, b, fill: str) -> str:
    """B (8 x 4) beside A (4 x 8), both centred on the line y."""
    return grid(x, y - 48, b, fill) + grid(x + 60, y - 24, a, fill)


def stage(x: float, number: int, title: str, note: str) -> str:
    return text(x, 44, f"{number}. {title}", 16) + text(x, 66, note, 13, MUTED)


def draw() -> str:
    parts = [rect(0.5, 0.5, WIDTH - 1, HEIGHT - 1, PAPER, "#d0d7de", 10)]
    parts += [stage(115, 1, "One trainable weight", "only kept entries are stored")]
    parts += [factors(38, 235, A_BITS > 0, B_BITS > 0, SHARED)]
    parts += [text(62, 310, "B"), text(146, 310, "A"), text(115, 334, "out × r and r × in", 13, MUTED)]
    parts += [stage(350, 2, "Two masked views", "static masks, drawn from a seed")]
    parts += [stage(585, 3, "Two modules, one sum", "rank r each, up to 2r together")]
    for copy, (y, colour) in enumerate(zip((160, 310), COPIES, strict=True)):
        name = f"{copy + 1}"
        parts += [arrow(205, 235 + (y - 235) * 0.35, 258, y - (y - 235) * 0.2)]
        parts += [factors(276, y, A_BITS >> copy & 1, B_BITS >> copy & 1, colour)]
        parts += [text(350, y + 74, f"seed → copy {name}'s masks of B and A", 13, colour)]
        parts += [arrow(444, y, 486, y), rect(502, y - 20, 72, 40, PAPER, colour, 6)]
        parts += [text(538, y + 6, f"B{name} A{name}", 16, colour)]
        parts += [arrow(580, y, 632, 235 + (y - 235) * 0.3)]
    parts += [f'<circle cx="656" cy="235" r="17" fill="{PAPER}" stroke="{SUM}" stroke-width="2"/>']
    parts += [text(656, 242, "+", 22, SUM), arrow(678, 235, 706, 235)]
    parts += [stage(840, 4, "Added, then merged", "LoRA: a plain layer at inference")]
    parts += [rect(726, 187, 96, 96, FROZEN, FROZEN, 4), text(774, 232, "W", 18), text(774, 252, "frozen", 13, MUTED)]
    parts += [text(774, 310, "W + α/r · (B1 A1 + B2 A2)", 13, SUM)]
    parts += [text(774, 170, "beside W in training", 13, MUTED), arrow(832, 235, 862, 235)]
    parts += [
        rect(880, 187, 96, 96, "#d2ecd8", SUM, 4),
        text(928, 241, "W′", 18),
        text(928, 310, "same size as W", 13, MUTED),
    ]
    parts += [
        text(
            500,
            440,
            "Here d = 2 and density 0.5: each mask keeps half of the entries; about three quarters are in some mask.",
            13,
            MUTED,
        )
    ]
    title = "<title>One shared weight seen through two masks gives two low-rank modules of rank r</title>"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img">'
    )
    return "\n".join([head, title, *parts, "</svg>", ""])


if __name__ == "__main__":
    OUTPUT.write_text(draw(), encoding="utf-8")
