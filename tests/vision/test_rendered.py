"""Rendered tasks: bytes that stand still, labels read back from the pixels, splits that share no image."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from scipy import ndimage

from capaboost.runs.settings import VtabRun, vtab_config_file
from capaboost.runs.vtab import prepare
from capaboost.training.settings import load_run
from capaboost_vision.vtab.rendered import FULL_TURN, RENDERED, Rendered, Sprites, paint
from capaboost_vision.vtab.sources import SPLITS, num_classes, open_split

FOLDER = Path(__file__).parents[2] / "configs" / "vtab"
PARTS = ("train800", "val200", "test")
SQUARE, ELLIPSE, HEART = range(3)
CHECKSUMS = {  # of images and labels; a change makes another task of it
    "dsprites_loc": {
        "train800": "a9fc067d6571bad8",
        "val200": "0766c759b59ef366",
        "test": "af7ce90fadd9fd25",
    },
    "dsprites_ori": {
        "train800": "e248303299103c22",
        "val200": "9aa264846b485cd2",
        "test": "1c8112b792a2011b",
    },
    "shapes_count": {
        "train800": "177c1a32424abec4",
        "val200": "711f98cb46ead113",
        "test": "490997b9a006fc35",
    },
    "shapes_dist": {
        "train800": "e806d0500af54601",
        "val200": "ad2978046b26b7a5",
        "test": "1b3952c0bdd30ca0",
    },
    "shapes_joint": {
        "train800": "31703dd0d5631169",
        "val200": "8f049ff918c44ff0",
        "test": "a865770ae4b73641",
    },
    "random_labels": {
        "train800": "a058e4f287365c86",
        "val200": "bc804f6576e3cb65",
        "test": "a058e4f287365c86",
    },
    "random_labels_3k": {
        "train800": "f7cc25f44a0af8ab",
        "val200": "bc804f6576e3cb65",
        "test": "f7cc25f44a0af8ab",
    },
}


drawn = cache(Rendered)


@cache
def rows(task: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (3000, 64, 64, 3) and labels of train800, val200 and test, one after the other."""
    splits = [drawn(task, split) for split in PARTS]
    return np.concatenate([s.images for s in splits]), np.concatenate([s.labels for s in splits])


@pytest.mark.parametrize("task", RENDERED)
def test_checksums(task):
    for split in PARTS:
        made = drawn(task, split)
        digest = hashlib.sha256(made.images.tobytes() + np.array(made.labels, "<u2").tobytes()).hexdigest()
        assert digest[:16] == CHECKSUMS[task][split], (task, split)


def memorised(task: str) -> bool:
    return task.startswith("random_labels")


def keys(task: str, split: str) -> list[bytes]:
    return [image.tobytes() for image in drawn(task, split).images]


@pytest.mark.parametrize("task", [task for task in RENDERED if not memorised(task)])
def test_no_image_is_drawn_twice(task):
    train, val, both, test = (keys(task, split) for split in SPLITS)
    assert (len(train), len(val), len(test)) == (800, 200, 2000)
    assert both == train + val
    assert len({*train, *val, *test}) == 3000


@pytest.mark.parametrize(("task", "count"), [("random_labels", 800), ("random_labels_3k", 3000)])
def test_random_labels_are_tested_on_the_rows_that_are_trained_on(task, count):
    train, val, both, test = (drawn(task, split) for split in SPLITS)
    assert len(train) == count == len(set(keys(task, "train800")))
    assert np.array_equal(train.images[:800], drawn("random_labels", "train800").images)
    assert train.labels[:800] == drawn("random_labels", "train800").labels
    for same in (both, test):
        assert np.array_equal(same.images, train.images)
        assert same.labels == train.labels
    assert np.array_equal(val.images, train.images[:200])
    assert val.labels == train.labels[:200]
    assert f"same {count:,} rows" in train.note


@pytest.mark.parametrize("task", ["dsprites_ori", "shapes_count", "shapes_joint"])
def test_more_rows_for_selection_are_new_ones_and_change_no_other_row(task):
    more, fewer = Rendered(task, "val200", 1000), Rendered(task, "val200", 50)
    images = np.concatenate([drawn(task, "val200").images, more.images[200:]])
    assert np.array_equal(more.images, images)
    assert np.array_equal(fewer.images, images[:50])
    others = {*keys(task, "train800"), *keys(task, "test")}
    assert len({*others, *(image.tobytes() for image in more.images)}) == 2800 + 1000
    for split in ("train800", "train800val200", "test"):
        wide = Rendered(task, split, 1000)
        assert np.array_equal(wide.images, drawn(task, split).images)
        assert wide.labels == drawn(task, split).labels


def test_of_what_is_memorised_no_row_is_selected_on_that_is_not_trained_on():
    split = Rendered("random_labels", "val200", 1000)
    assert np.array_equal(split.images, drawn("random_labels", "train800").images)


def test_the_note_counts_the_rows_for_selection():
    notes = [Rendered("shapes_joint", "test", rows).note for rows in (200, 1000)]
    assert notes == ["rendered here, 800/200/2,000 rows", "rendered here, 800/1,000/2,000 rows"]


WEIGHTS = {"dsprites_ori": [3, 2] * 8}  # 40 orientations in 16 bins of 2.5


@pytest.mark.parametrize("task", RENDERED)
def test_classes_are_as_frequent_as_their_factors(task):
    labels, classes = rows(task)[1], num_classes(task, "rendered", None)
    weights = np.array(WEIGHTS.get(task, [1] * classes))
    expected = len(labels) * weights / weights.sum()
    counts = np.bincount(labels, minlength=classes)
    assert len(counts) == classes
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def filled(task: str) -> np.ndarray:
    return rows(task)[0].any(axis=3)


def brightness(task: str) -> np.ndarray:
    """How much of each pixel a sprite holds, whatever its colour."""
    return rows(task)[0].max(axis=3) / 255


def moments(mask: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Centroid, in pixels from the upper left corner, and covariance of a mask's pixels."""
    y, x = np.nonzero(mask)
    return x.mean() + 0.5, y.mean() + 0.5, np.cov(x, y)


def axis_of(mask: np.ndarray) -> tuple[float, float]:
    """Ratio of a mask's variances along its main axes, and the longer one's angle in degrees, 0 to 180."""
    values, vectors = np.linalg.eigh(moments(mask)[2])
    return values[1] / values[0], np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])) % 180


def is_near(angle: float, other: float, period: float, tolerance: float) -> bool:
    return abs((angle - other + period / 2) % period - period / 2) < tolerance


def test_dsprites_location_is_the_column_of_the_centroid():
    places = np.array([moments(mask)[0] for mask in filled("dsprites_loc")]) - 16.5
    assert abs(places - places.round()).max() < 0.3
    assert (places.round() // 2 == rows("dsprites_loc")[1]).all()


def test_dsprites_orientation_is_the_angle_of_an_ellipse():
    found = [
        (axis_of(mask), label) for mask, label in zip(filled("dsprites_ori"), rows("dsprites_ori")[1], strict=True)
    ]
    ellipses = [(angle, label) for (ratio, angle), label in found if ratio > 2]
    assert len(ellipses) == pytest.approx(1000, abs=150)
    for angle, label in ellipses:
        turned = [360 / 39 * step for step in range(40) if step // 2.5 == label]
        assert any(is_near(angle, other, 180, 5) for other in turned)


def regions_of(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected regions, also where pixels touch at a corner only: each has a number from 1."""
    return ndimage.label(mask, np.ones((3, 3)))


def test_a_count_is_the_number_of_connected_regions():
    numbers = [regions_of(mask)[1] for mask in filled("shapes_count")]
    assert np.array_equal(numbers, rows("shapes_count")[1] + 3)


def test_a_distance_is_the_bin_of_the_largest_region():
    """Half the side of a square of area A is sqrt(A / 4), of an ellipse sqrt(A / pi); a heart lies between."""
    edges = [59, 72, 86, 104, 124, 149]
    for image, label in zip(brightness("shapes_dist"), rows("shapes_dist")[1], strict=True):
        numbered, number = regions_of(image > 0)
        area = ndimage.sum(image, numbered, range(1, number + 1)).max()
        halves = np.sqrt(area / np.array([np.pi, 4]))
        nearest, farthest = np.searchsorted(edges, 396 / (halves * [1.06, 0.94])) - 1
        assert nearest <= label <= farthest <= nearest + 2


def test_a_joint_label_says_column_angle_and_shape():
    found = 0
    for mask, label in zip(filled("shapes_joint"), rows("shapes_joint")[1], strict=True):
        column, quarter, shape = label // 12, label // 3 % 4, label % 3
        ratio, angle = axis_of(mask)
        assert round(moments(mask)[0] - 16.5) // 4 == column
        assert (ratio > 2) == (shape == ELLIPSE)
        if shape == ELLIPSE and not is_near(angle, 0, 22.5, 3):
            assert angle // 22.5 == quarter
            found += 1
    assert found > 500


def test_random_labels_have_nothing_to_do_with_the_images():
    split = drawn("random_labels", "train800")
    numbers = [regions_of(image.any(axis=2))[1] for image in split.images]
    assert set(numbers) == set(range(3, 11))
    assert abs(np.corrcoef(numbers, split.labels)[0, 1]) < 5 / np.sqrt(800)


def sprite(shape: int, size: int = 100, turn: int = 0, samples: int = 1) -> np.ndarray:
    """The red of one red sprite from 0 to 1, its centre that of pixel (32, 32)."""
    one = (0, shape, 65, 65, size, turn, 1)
    red, green, blue = np.moveaxis(paint(Sprites(*(np.array([value]) for value in one)), 1, samples)[0], 2, 0)
    assert not green.any()
    assert not blue.any()
    return red / 255


AREAS = {SQUARE: 4, ELLIPSE: np.pi, HEART: 2 + np.pi / 2}  # in squares of half the square's side


@pytest.mark.parametrize("shape", AREAS)
@pytest.mark.parametrize("turn", range(0, FULL_TURN, 13))
def test_areas_and_centroids(shape, turn):
    shades = sprite(shape, 110, turn, samples=8)
    assert shades.sum() == pytest.approx(AREAS[shape] * 11**2, rel=0.02)
    y, x = ndimage.center_of_mass(shades)
    assert (x, y) == pytest.approx((32, 32), abs=0.05)


@pytest.mark.parametrize("shape", AREAS)
@pytest.mark.parametrize("turn", [0, 4, 20, 33])
def test_a_quarter_turn_turns_the_pixels_clockwise(shape, turn):
    around = slice(16, 49)  # pixel (32, 32) in the middle
    before, after = (sprite(shape, turn=t)[around, around] for t in (turn, turn + FULL_TURN // 4))
    assert np.array_equal(after, np.rot90(before, -1))


def test_a_heart_stands_on_its_tip():
    widths = sprite(HEART).sum(axis=1)
    tall = np.flatnonzero(widths)
    assert widths[tall[-1]] <= 3
    assert widths[tall[len(tall) // 4]] > widths[tall[3 * len(tall) // 4]]


@pytest.mark.parametrize("task", RENDERED)
def test_a_run_says_what_the_rows_are(task):
    tiny = ["model.name=test_vit", "model.pretrained=false", "data.source=rendered"]
    run = load_run(VtabRun, vtab_config_file(FOLDER, task), {}, "linear", tiny)
    setup = prepare(run, Accelerator(cpu=True))
    assert setup.split_note.startswith("rendered here")
    assert ("not VTAB rows" in setup.split_note) == task.startswith("dsprites")
    assert setup.model.num_classes == RENDERED[task].num_classes


def test_images_reach_the_task_as_they_are_drawn():
    made, opened = drawn("shapes_count", "val200"), open_split("shapes_count", "rendered", None, "val200", 64)
    image, label = opened[7]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), made.images[7])
    assert label == made.labels[7]


SHADES = {"dsprites_loc": {0, 255}, "dsprites_ori": {0, 255}}  # the others hold 0 to 4 quarters of a pixel


@pytest.mark.parametrize("task", RENDERED)
def test_shades(task):
    assert set(np.unique(rows(task)[0])) == SHADES.get(task, {0, 63, 127, 191, 255})
