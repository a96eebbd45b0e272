"""Random examples that conform to a TensorFlow Datasets feature specification, made without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def random_example(feature, rng: np.random.Generator, levels: int = 256):
    """A value that `feature.encode_example` takes; pixels lie below `levels`, sequences have 3 to 10 items."""
    kinds = tfds.features
    if isinstance(feature, kinds.FeaturesDict):
        return {name: random_example(part, rng, levels) for name, part in feature.items()}
    if isinstance(feature, kinds.Sequence):
        return [random_example(feature.feature, rng, levels) for _ in range(rng.integers(3, 11))]
    if isinstance(feature, kinds.Image):
        shape = [size or int(rng.integers(5, 12)) for size in feature.shape]
        return png(rng.integers(0, levels, shape, dtype=np.uint8))
    if isinstance(feature, kinds.ClassLabel):
        return int(rng.integers(feature.num_classes))
    if isinstance(feature, kinds.Text):
        return "text"
    if isinstance(feature, kinds.BBoxFeature):
        return kinds.BBox(0.1, 0.2, 0.3, 0.4)
    return rng.uniform(0.5, 30, feature.shape).astype(feature.np_dtype)


def png(pixels: np.ndarray) -> bytes:
    """Lossless bytes of (height, width, 1 or 3) uint8 pixels; arrays would make the encoder ask for TensorFlow."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    """(height, width, 3) uint8; grey is repeated."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
