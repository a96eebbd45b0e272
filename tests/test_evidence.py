"""docs/evidence.md says what the committed results say, and its verdicts follow from the differences."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "make"))


@pytest.fixture(scope="module")
def evidence():
    import evidence

    return evidence


def test_the_page_is_what_the_results_say(evidence):
    assert evidence.PAGE.read_text() == evidence.page(evidence.PAGE.read_text())
    text = evidence.METHODS_PAGE.read_text()
    assert text == evidence.methods_page(text)


def test_the_pictures_are_what_the_results_say(evidence, tmp_path):
    svg = next(path for path in evidence.draw(tmp_path / "claims") if path.suffix == ".svg")
    assert svg.read_text() == evidence.CLAIMS.with_suffix(".svg").read_text()  # PNGs differ between builds of zlib


def test_another_result_makes_another_page(evidence, tmp_path, monkeypatch):
    for name in ("evidence", "evidence-a", "evidence-b", "evidence-text"):
        shutil.copytree(ROOT / "results" / name, tmp_path / name)
    run = tmp_path / "evidence-a/evidence-a-r1/shapes_joint/d2-r1/seed42/result.json"
    run.write_text(run.read_text().replace('"value": ', '"value": 9'))
    before = evidence.claims_table().splitlines()
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    evidence.claims.cache_clear()
    try:
        after = evidence.claims_table().splitlines()
    finally:
        evidence.claims.cache_clear()
    changed = [
        line for line, other in zip(before, after, strict=True) if line.split(" | ")[2] != other.split(" | ")[2]
    ]
    assert [line.split(" | ")[0].removeprefix("| ") for line in changed] == [
        "d = 2 is above LoRA, there by one point (Table 5)",
        "d = 4 is above d = 2 (Table 5)",
    ]


def test_a_folder_without_runs_is_named(evidence):
    with pytest.raises(FileNotFoundError, match=r"results/evidence-b/mistyped holds no run"):
        evidence.values_of("evidence-b/mistyped")


def test_the_difference_over_tasks_is_that_of_the_means_by_seed(evidence):
    for claim in evidence.claims():
        shared = set.intersection(*({*of} & {*beside} for of, beside in claim.tasks.values()))
        by_hand = [
            np.mean([of[seed] for of, _ in claim.tasks.values()])
            - np.mean([beside[seed] for _, beside in claim.tasks.values()])
            for seed in sorted(shared)
        ]
        np.testing.assert_allclose(claim.over_tasks, by_hand, atol=1e-9)


def test_holms_test_over_all_claims_by_hand(evidence):
    family = {claim.claim: claim.over_tasks for claim in evidence.claims()}
    two_sided = {name: stats.ttest_1samp(of, 0).pvalue for name, of in family.items()}
    within = {
        name: max(
            stats.ttest_1samp(of, -1, alternative="greater").pvalue,
            stats.ttest_1samp(of, 1, alternative="less").pvalue,
        )
        for name, of in family.items()
    }
    found = evidence.verdicts()
    for plain, value in ((two_sided, "p"), (within, "p_equivalent")):
        worst = 0.0
        for rank, name in enumerate(sorted(plain, key=plain.__getitem__)):
            worst = max(worst, min(1.0, (len(plain) - rank) * plain[name]))
            assert getattr(found[name], value) == pytest.approx(worst, rel=1e-6)


SPREAD = [-0.6, -0.3, -0.1, 0.1, 0.3, 0.6]  # of six seeds' differences around their mean
WIDE = [8 * value for value in SPREAD]
WORDS = {  # what the claim says, the mean difference, how the seeds spread, and the verdict
    "above": ("more", 2.0, SPREAD, "holds"),
    "above, but little": ("more", 0.55, SPREAD, "holds, by less than a point"),
    "below": ("more", -2.0, SPREAD, "does not hold"),
    "equal": ("more", 0.05, SPREAD, "equivalent within a point"),
    "wide": ("more", 0.3, WIDE, "open: 6 of 95 seeds"),
    "as much, and equal": ("as much", 0.05, SPREAD, "holds"),
    "as much, a little less": ("as much", -0.55, SPREAD, "holds"),
    "as much, but more": ("as much", 2.0, SPREAD, "holds"),
    "as much, but less": ("as much", -2.0, SPREAD, "does not hold"),
}


@pytest.mark.parametrize("case", WORDS)
def test_verdicts(case, evidence):
    says, mean, spread, expected = WORDS[case]
    beside = dict.fromkeys(range(len(spread)), 50.0)
    of = {seed: 50 + mean + value for seed, value in enumerate(spread)}
    tasks = {"one": (of, beside), "two": (of, beside)}
    claim = dataclasses.replace(evidence.claims()[0], says=says, tasks=tasks)
    verdict = evidence.judge({"": claim.over_tasks})[""]
    assert evidence.word(claim, verdict, 1).startswith(expected)
    alone = dataclasses.replace(claim, tasks={"one": (of, beside)})
    assert evidence.word(alone, verdict, 1) == "open: one task"


def test_opposite_tasks_are_said(evidence):
    beside = dict.fromkeys(range(len(SPREAD)), 50.0)
    above, below = ({seed: 50 + sign * 3 + value for seed, value in enumerate(SPREAD)} for sign in (1, -1))
    claim = dataclasses.replace(evidence.claims()[0], tasks={"one": (above, beside), "two": (below, beside)})
    assert claim.tasks_disagree
    assert not dataclasses.replace(claim, tasks={"one": (above, beside), "two": (above, beside)}).tasks_disagree


def test_the_readme_says_the_same(evidence):
    readme = " ".join((ROOT / "README.md").read_text().split())
    claim = next(claim for claim in evidence.claims() if claim.claim.startswith("d = 2 is above LoRA"))
    low, high = (evidence.number(end, "+") for end in evidence.verdicts()[claim.claim].interval)
    mean = evidence.number(np.mean(claim.over_tasks), "+")
    assert f"({mean}, corrected interval {low} to {high}, {len(claim.over_tasks)} seeds)" in readme
    numbers = ["none", "one", "two", "three", "four", "five", "six"]
    said = {name: numbers[count] for name, count in evidence.counts().items()}
    assert said.keys() == {"holds", "does not hold", "equivalent within a point", "open"}
    words = "{holds} hold, {does not hold} does not, {equivalent within a point} are equivalent and {open} are open"
    assert words.format(**said) in readme
