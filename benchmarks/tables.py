"""Result files as Markdown: all of their figures, and the ratios in short."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from capaboost_core.markdown import markdown_table

DETAILS = {
    "multiply_adds": ("multiply-adds, G an example", lambda value: f"{value / 1e9:,.2f}"),
    "peak_bytes": ("peak memory, MiB", lambda value: f"{value / 2**20:,.1f}"),
    "held_bytes": ("held for the backward pass, MiB", lambda value: f"{value / 2**20:,.1f}"),
    "trainable_parameters": ("trainable", "{:,}".format),
    "optimizer_bytes": ("AdamW state, bytes", "{:,}".format),
    "file_bytes": ("file, bytes", "{:,}".format),
    "entries": ("adapter entries", "{:,}".format),
    "bytes_per_entry": ("bytes held per entry", "{:.2f}".format),
    "frozen_ms": ("frozen products, ms", "{:.1f}".format),
    "small_ms": ("small products, ms", "{:.1f}".format),
    "small_at_frozen_rate_ms": ("small products at the frozen ones' rate, ms", "{:.1f}".format),
    "copies_ms": ("masked copies, ms", "{:.1f}".format),
    "bytes_moved": ("bytes moved, GB", lambda value: f"{value / 1e9:,.1f}"),
    "launch_ms": ("launches, ms", "{:.1f}".format),
    "memory_ms": ("memory, ms", "{:.1f}".format),
    "arithmetic_ms": ("arithmetic, ms", "{:.1f}".format),
    "device_ms": ("device, ms", "{:.1f}".format),
    "bound": ("bound by", str),
}
SHOWN = {
    "peers": "Time of each peer over that of the frozen model",
    "parts": "Milliseconds that each part of an adapter adds to a step",
}
RATIOS = {  # of the summary, each with the pairs that it may stand for
    "d = 2 / peft": [("capaboost-d2", "peft")],
    "d = 2 / frozen": [("capaboost-d2", "floor"), ("capaboost-d2", "base")],
    "d = 8 / d = 1": [("capaboost-d8", "capaboost-d1")],
    "merged / frozen": [("capaboost-d2-merged", "base")],
    "peft / frozen": [("peft", "floor")],
}


def markdown(result: dict[str, Any]) -> str:
    """Settings and device, the peers, and the ratios."""
    return "\n\n".join([_heading(result), *_figures(result)]) + "\n"


def folded(result: dict[str, Any], picture: str | None) -> str:
    """The same for a page: the tables open at a click, below the picture at a relative address."""
    shown = [f"![{SHOWN[result['plots'][0]]}]({picture})"] if picture else []
    figures = ["<details>\n<summary>All figures</summary>", *_figures(result), "</details>"]
    return "\n\n".join([_heading(result), *shown, *figures]) + "\n"


def summary(results: list[dict[str, Any]]) -> str:
    """A line for each result that has times of peers: medians and quartiles of the ratios."""
    rows = [("what", "where", *RATIOS)]
    for result in (result for result in results if result["unit"] == "s"):
        found = {(ratio["of"], ratio["to"]): ratio for ratio in result["ratios"] if ratio["figure"] is None}
        cells = [next((_in_short(found[pair]) for pair in pairs if pair in found), "") for pairs in RATIOS.values()]
        if any(cells):
            rows.append((_what(result["benchmark"], result["settings"]), _place(result), *cells))
    return _table(rows) + "\n" if len(rows) > 1 else ""


def _in_short(ratio: dict[str, Any]) -> str:
    return f"{ratio['median']:.3f} ({ratio['quartile_1']:.3f} to {ratio['quartile_3']:.3f})"


def _what(benchmark: str, settings: dict[str, Any]) -> str:
    return f"{benchmark}, {settings['model']}, batch {settings['batch']}, {settings['precision']}, {settings['mode']}"


def _place(result: dict[str, Any]) -> str:
    return result["device"] + (", allocator told to keep memory" if result.get("allocator") else "")


def _heading(result: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in result["settings"].items())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    commit = (result["git"]["commit"] or "unknown")[:10] + (" with changes" if result["git"]["dirty"] else "")
    allocator = "".join(f", {name}={value}" for name, value in result.get("allocator", {}).items())
    where = f"{result['device']}, {result['processor']}, {result['threads']} threads{allocator}"
    return f"**{settings}**\n\n{where}. {versions}. Commit {commit}."


def _figures(result: dict[str, Any]) -> list[str]:
    return [_peers(result), _ratios(result["ratios"])] if result["ratios"] else [_peers(result)]


def _peers(result: dict[str, Any]) -> str:
    peers = result["peers"]
    shown = {key: title for key, (title, _) in DETAILS.items() if any(key in peer for peer in peers.values())}
    counted = result["settings"]["repeats"] == 1  # or measured once: no spread
    heads = [result["unit"]] if counted else [f"median, {result['unit']}", "quartiles"]
    rows = [("peer", *heads, *shown.values())]
    for name, peer in peers.items():
        values = [_number(peer["median"])] if counted else [_number(peer["median"]), _quartiles(peer)]
        details = (DETAILS[key][1](peer[key]) if key in peer else "" for key in shown)
        rows.append((name, *values, *details))
    return _table(rows)


def _ratios(ratios: list[dict[str, Any]]) -> str:
    rows = [("ratio", "median", "quartiles", "aim", "met")]
    for ratio in ratios:
        met = {None: "", True: "yes", False: "no"}[ratio["met"]]
        figure = f", {DETAILS[ratio['figure']][0].partition(',')[0]}" if ratio["figure"] else ""
        what = f"{ratio['of']} / {ratio['to']}{figure}"
        rows.append((what, f"{ratio['median']:.3f}", "" if figure else _quartiles(ratio), _aim(ratio), met))
    return _table(rows)


def _aim(ratio: dict[str, Any]) -> str:
    low, high = ratio["low"], ratio["high"]
    if low is not None and high is not None:
        return f"{low:.2f} to {high:.2f}"
    return f"≤ {high:.2f}" if high is not None else f"≥ {low:.2f}" if low is not None else ""


def _quartiles(spread: dict[str, Any]) -> str:
    return f"{_number(spread['quartile_1'])} to {_number(spread['quartile_3'])}"


def _number(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= value < 100 else f"{value:.4g}"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    head, *body = rows
    return markdown_table(head, body).rstrip("\n")
