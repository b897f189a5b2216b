"""Quantised checkpoints that are incomplete or fit themselves not: refused by name."""

import re
import shutil

import pytest
import torch
from quantised_cases import FORMATS, set_config, write_pair
from reader_cases import load
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.filterwarnings("ignore:.*is made for activations")

IN_PROJ = "backbone.layers.1.mixer.in_proj"


@pytest.fixture
def edited(tiny_folder, tmp_path):
    """`edited(form, change)`: a checkpoint whose stored tensors `change` alters."""

    def make(form, change):
        plain = shutil.copytree(tiny_folder("mamba2"), tmp_path / "plain")
        folder = write_pair(tmp_path / "quantised", plain, FORMATS[form])
        stored = load_file(folder / "model.safetensors")
        change(stored)
        save_file(stored, folder / "model.safetensors")
        return folder

    return make


def fails(folder, words):
    with pytest.raises(ValueError, match=f"(?s){words}") as error:
        load(folder)
    assert str(folder) in str(error.value)


def without(part):
    return lambda stored: stored.pop(f"{IN_PROJ}.{part}")


def with_(part, tensor):
    return lambda stored: stored.update({f"{IN_PROJ}.{part}": tensor})


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("fp8 channel", without("weight"), "in_proj has a scale, and no weight"),
        ("fp8 channel", without("weight_scale"), "in_proj has a weight of float8_e4m3fn and no sc"),
        ("int4 groups", without("weight_packed"), "in_proj has a scale, and no weight"),
        ("int4 groups", without("weight_scale"), "in_proj has a weight of int32 and no scale"),
        ("int4 groups", without("weight_shape"), "weight of int32, and no weight_shape"),
        ("nvfp4", without("weight_global_scale"), "scales of 8 bits, and none of the whole"),
        ("mxfp4", without("weight_scale"), "weight of uint8 and no scale"),
        (
            "fp8 channel",
            with_("weight", torch.zeros(132, 24)),
            "has a weight of float32 and what only codes need",
        ),
        (
            "fp8 channel",
            with_("weight", torch.zeros(132, 24).short()),
            "in_proj.weight is stored as I16",
        ),
        (
            "fp8 channel",
            with_("weight_scale_inv", torch.ones(132, 1)),
            "has both weight_scale and weight_scale_inv",
        ),
        (
            "fp8 channel",
            with_("weight_scale", torch.ones(131, 1)),
            re.escape("of shape [131, 1], which fit no matrix of [132, 24] in blocks of rows"),
        ),
        (
            "fp8 block",
            with_("weight_scale", torch.ones(7, 3)),
            re.escape("shape [7, 3], which fit no matrix of [132, 24] in blocks of (20, 14)"),
        ),
        (
            "int4 groups",
            with_("weight_scale", torch.ones(132, 2)),
            re.escape("shape [132, 2], which fit no matrix of [132, 24] in blocks of (1, 10)"),
        ),
        (
            "int4 groups",
            with_("weight_shape", torch.tensor([132, 40])),
            re.escape("is packed as [132, 3], says that it is [132, 40], and the checkpoint has "
                      "integers of 4 bits"),
        ),
        (
            "int4 groups",
            with_("weight_shape", torch.tensor([131, 24])),
            re.escape("packed as [132, 3], says that it is [131, 24]"),
        ),
        (
            "int4 with zeros",
            with_("weight_zero_point", torch.zeros(16, 3).int()),
            re.escape("shape [16, 3], which fit no matrix"),
        ),
        (
            "int8 with zeros",
            with_("weight_zero_point", torch.zeros(132, 1)),
            "weight_zero_point of float32",
        ),
        (
            "int4 groups",
            with_("weight_g_idx", torch.full((24,), 3).int()),
            "weight_g_idx of other groups",
        ),
        (
            "int4 groups",
            with_("weight_g_idx", torch.zeros(23).int()),
            re.escape("weight_g_idx of shape [23]"),
        ),
        ("fp8 tensor", with_("weight_shape", torch.ones(2).long()), "has a weight_shape, which go"),
        ("fp8 tensor", with_("pre_quant_scale", torch.ones(24)), "holds 1 .*pre_quant_scale"),
        (
            "fp8 tensor",
            lambda stored: stored.update({"a.b.input_scale": torch.ones(1)}),
            r"holds 1 parameters that this model lacks: a\.b\.input_scale",
        ),
        (
            "fp8 tensor",
            lambda stored: stored.update({"a.weight_scale": torch.ones(1)}),
            "a has a scale, and no weight",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit(edited, form, change, words):
    fails(edited(form, change), words)


def test_a_group_index_that_is_not_used(edited):
    """compressed-tensors fills it with -1."""
    folder = edited("int4 groups", with_("weight_g_idx", torch.full((24,), -1).int()))
    load(folder)


@pytest.mark.parametrize("form", ["fp8 tensor", "int8 channel", "int4 groups"])
def test_codes_in_a_checkpoint_that_says_nothing_of_them(edited, form):
    folder = edited(form, dict)
    set_config(folder, None)
    fails(folder, r"is stored as torch\.(float8_e4m3fn|int8|int32); supported: .*quantization_con")


def test_a_head_that_is_not_its_embedding(tiny_folder, tmp_path):
    plain = shutil.copytree(tiny_folder("mamba"), tmp_path / "plain")
    folder = write_pair(tmp_path / "quantised", plain, FORMATS["int8 channel"])
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = torch.ones(101, 24).to(torch.int8)
    stored["lm_head.weight_scale"] = torch.ones(101, 1)
    stored["backbone.embeddings.weight"] = stored["backbone.embeddings.weight"].bfloat16()
    save_file(stored, folder / "model.safetensors")
    fails(folder, "lm_head.weight differs from the embedding")
    stored["backbone.embeddings.weight"] = torch.ones(101, 24).bfloat16()
    save_file(stored, folder / "model.safetensors")
    load(folder)
