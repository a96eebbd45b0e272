"""The embedded backbone: its weights come with the package and know Tiny ImageNet."""

import io

import pyarrow.parquet as parquet
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.layers import resample_abs_pos_embed

import capaboost_vision  # noqa: F401
from capaboost_vision.backbone import WEIGHTS
from tests.real_data import real_data

NAME = "capaboost_vit_micro_patch8_64"


def test_file_is_small_and_half_precision():
    assert WEIGHTS.stat().st_size < 12_000_000
    assert WEIGHTS.with_suffix(".md").exists()


def test_pretrained_differs_from_random_and_takes_a_new_head():
    pretrained = timm.create_model(NAME, pretrained=True, num_classes=7, capaboost="capaboost-lora")
    random = timm.create_model(NAME, num_classes=7)
    assert pretrained.head.out_features == 7
    assert not torch.equal(pretrained.blocks[0].attn.qkv.weight, random.blocks[0].attn.qkv.weight)
    assert pretrained.pos_embed.shape == (1, 64, 192)  # one position for each 8 x 8 patch
    assert NAME + ".tiny_imagenet" in timm.list_pretrained("capaboost*")


def test_pretrained_at_another_size_has_its_positions_resampled():
    small = timm.create_model(NAME, pretrained=True, img_size=32)
    whole = timm.create_model(NAME, pretrained=True)
    expected = resample_abs_pos_embed(whole.pos_embed, new_size=[4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(small.pos_embed, expected, atol=1e-3, rtol=0)  # resampled from half precision
    assert torch.equal(small.blocks[0].attn.qkv.weight, whole.blocks[0].attn.qkv.weight)


def test_accuracy_on_every_tenth_validation_image():
    validation = real_data("upstream", "val.parquet")
    model = timm.create_model(NAME, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model))
    rows = parquet.read_table(validation).to_pylist()[::10]
    images = [transform(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows]
    with torch.inference_mode():
        predicted = model(torch.stack(images)).argmax(-1)
    accuracy = (predicted == torch.tensor([row["label"] for row in rows])).float().mean().item()
    assert accuracy > 0.30  # chance is 0.005
