"""README: short, its links lead somewhere, and its 20 lines are what the library computes."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from capaboost_core import Plan, Target, inject
from capaboost_core.methods import reference
from capaboost_core.sharing.masks import mask_bits

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "results" / "README.md",
]


def test_readme_is_one_screen_to_a_result():
    assert len(README.split()) < 900
    assert README.index("```python") < 1700  # code on the first screen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text())
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_the_formula_of_readme_is_the_reference_and_what_an_adapted_layer_computes():
    source = inspect.getsource(reference.increments)
    assert source in README
    r, d, density, alpha = 3, 2, 0.5, 6.0
    torch.manual_seed(0)
    base, x = nn.Linear(8, 5).double(), torch.randn(4, 8).double()
    model = inject(
        nn.Sequential(base), {"r": r, "num_tied": d, "density": density, "alpha": alpha}, Plan((Target("0"),))
    )
    layer, config = model[0], model.capaboost.config
    A, B = torch.randn(r, 8).double(), torch.randn(5, r).double()
    bits_A, bits_B = mask_bits(config, "0", "A.0", (r, 8)), mask_bits(config, "0", "B.0", (5, r))
    masks_A, masks_B = ([torch.from_numpy(bits >> i & 1) for i in range(d)] for bits in (bits_A, bits_B))
    with torch.no_grad():
        layer.lora_A.packed.copy_(A[torch.from_numpy(bits_A).bool()].unsqueeze(1))
        layer.lora_B.packed.copy_(B.T[torch.from_numpy(bits_B.T.copy()).bool()].unsqueeze(1))
    names = {
        "base": base,
        "x": x,
        "A": A,
        "B": B,
        "masks_A": masks_A,
        "masks_B": masks_B,
        "increments": reference.increments,
    }
    exec(
        README[README.index(source) + len(source) :].split("```")[0],
        names | dict(r=r, d=d, density=density, alpha=alpha),
        scope := {},
    )
    torch.testing.assert_close(model(x), scope["out"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_installs_by_a_name_that_an_index_may_give_to_somebody_else(page):
    assert not re.search(r"pip install [^\n`|]*\bcapaboost\b", page.read_text())
