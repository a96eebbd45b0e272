"""A picture of a method: the modules of a ViT block that it adapts or trains, as results/support.json says."""

from __future__ import annotations

from html import escape

from how_it_works import INK, MUTED, PAPER, rect, text
from method_pages import support

FROZEN, ADAPTED = ("#eaeef2", "#afb8c1"), ("#8250df", "#6639ba")  # fill and stroke
WIDTH, HEIGHT, TALL, MIDDLE = 960, 190, 40, 92
# Left edge and width of each module in the order of the computation, with its path in timm's ViT.
BOXES = {
    "patch_embed.proj": ("patches", 14, 74),
    "blocks.0": ("tokens", 108, 66),
    "blocks.0.norm1": ("norm", 198, 56),
    "blocks.0.attn": ("attention", 360, 92),
    "blocks.0.attn.proj": ("o", 474, 44),
    "blocks.0.norm2": ("norm", 584, 56),
    "blocks.0.mlp.fc1": ("f1", 664, 50),
    "blocks.0.mlp.fc2": ("f2", 790, 50),
}
QKV, LEFT, EACH = ("q", "k", "v"), 278, 34
SUMS = (544, 868)


def draw(preset: str) -> str:
    found = support()["block"][preset]
    parts = [rect(0.5, 0.5, WIDTH - 1, HEIGHT - 1, PAPER, "#d0d7de", 10)]
    parts += [_line(14, WIDTH - 14, MIDDLE), _skip(184, SUMS[0]), _skip(SUMS[0] + 16, SUMS[1])]
    if "blocks.0.mlp" in found:
        parts += [rect(652, MIDDLE - 34, 200, 68, "#f3ecff", ADAPTED[1], 8)]
    for path, (name, left, width) in BOXES.items():
        parts += [_box(left, MIDDLE - TALL / 2, width, TALL, name, path in found)]
    parts += [_projection(i, name, found) for i, name in enumerate(QKV)]
    parts += [_box(728, MIDDLE - TALL / 2, 48, TALL, "act", False)]
    parts += [_sum(x) for x in SUMS]
    parts += [text(WIDTH / 2, HEIGHT - 14, _caption(found), 13, MUTED)]
    style = 'font-family="system-ui, sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style} role="img">'
    return head + f"<title>{escape(preset)}</title>" + "".join(parts) + "</svg>\n"


def _caption(found: dict[str, list[list[int]] | None]) -> str:
    if not found:
        return "No module of a block: the head alone is trained."
    return "Adapted or trained modules of a ViT block are violet, frozen ones grey: " + ", ".join(
        path.removeprefix("blocks.0.").replace("blocks.0", "the block's tokens") + ("" if not part else " (q and v)")
        for path, part in found.items()
    )


def _projection(index: int, name: str, found: dict[str, list[list[int]] | None]) -> str:
    """q, k or v, one above the other; slices of ViT-B's fused layer say which of them are adapted."""
    adapted = "blocks.0.attn.qkv" in found
    slices = found.get("blocks.0.attn.qkv")
    if adapted and slices:
        adapted = [768 * index, 768 * (index + 1)] in slices
    return _box(LEFT, MIDDLE - 57 + index * (EACH + 6), 58, EACH, name, adapted)


def _box(x: float, y: float, width: float, height: float, name: str, adapted: bool) -> str:
    box = rect(x, y, width, height, *(ADAPTED if adapted else FROZEN), 6)
    return box + text(x + width / 2, y + height / 2 + 5, name, 14, PAPER if adapted else INK)


def _line(x1: float, x2: float, y: float) -> str:
    return f'<line x1="{x1}" y1="{y}" x2="{x2}" y2="{y}" stroke="{MUTED}" stroke-width="1.5"/>'


def _skip(x1: float, x2: float) -> str:
    """The residual path above a part."""
    path = f"M{x1} {MIDDLE} V18 H{x2 + 8} V{MIDDLE - 9}"
    return f'<path d="{path}" fill="none" stroke="{MUTED}" stroke-width="1.5"/>'


def _sum(x: float) -> str:
    circle = f'<circle cx="{x + 8}" cy="{MIDDLE}" r="9" fill="{PAPER}" stroke="{MUTED}"/>'
    return circle + text(x + 8, MIDDLE + 5, "+", 15, MUTED)
