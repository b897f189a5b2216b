"""Quantised checkpoints that are incomplete or fit themselves not: refused by name."""

import json
import re
import shutil

import pytest
import torch
from quantised_cases import EVERY, set_config, write_pair
from reader_cases import load
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.filterwarnings("ignore:.*is made for activations")

IN_PROJ = "backbone.layers.1.mixer.in_proj"


OUT_PROJ = "backbone.layers.1.mixer.out_proj"
"""[24, 48]: AWQ's, too."""


@pytest.fixture
def edited(tiny_folder, tmp_path):
    """`edited(form, change)`: a checkpoint whose stored tensors `change` alters."""

    def make(form, change):
        plain = shutil.copytree(tiny_folder("mamba2"), tmp_path / "plain")
        folder = write_pair(tmp_path / "quantised", plain, EVERY[form])
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


def out_without(part):
    return lambda stored: stored.pop(f"{OUT_PROJ}.{part}")


def out_with(part, tensor):
    return lambda stored: stored.update({f"{OUT_PROJ}.{part}": tensor})


def text(values):
    return torch.tensor(list(json.dumps(values).encode())).byte()


STATE = "weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("gptq", out_without("qweight"), "out_proj has no qweight beside g_idx and qzeros and sc"),
        ("gptq", out_without("qzeros"), "out_proj has no qzeros"),
        ("awq", out_without("scales"), "out_proj has no scales beside qzeros"),
        ("awq", out_with("g_idx", torch.zeros(48).int()), "has a g_idx beside its qweight"),
        ("gptq", out_with("weight", torch.zeros(24, 48)), "has a weight beside its qweight"),
        (
            "gptq",
            out_with("qweight", torch.zeros(6, 24)),
            re.escape("has a qweight of torch.float32 and shape [6, 24]"),
        ),
        (
            "gptq",
            out_with("g_idx", torch.zeros(47, 1).int()),
            re.escape("has a g_idx of shape [47, 1] and words [24, 6]"),
        ),
        (
            "gptq",
            out_with("g_idx", torch.zeros(30).int()),
            re.escape("has a g_idx of shape [30] and words [24, 6]"),
        ),
        ("gptq", out_with("g_idx", torch.full((48,), 5).int()), "other groups than its 5 scales"),
        ("gptq", out_with("g_idx", torch.full((48,), -1).int()), "has a g_idx below zero"),
        (
            "awq",
            out_with("scales", torch.ones(4, 24)),
            re.escape("has qzeros of shape [5, 3] beside scales of [4, 24], in words of 4 bits"),
        ),
        (
            "gptq",
            lambda stored: stored.update(
                {f"{OUT_PROJ}.{name}": part[:4] for name in ("scales", "qzeros")
                 for part in [stored[f"{OUT_PROJ}.{name}"]]}
                | {f"{OUT_PROJ}.g_idx": torch.arange(48).int() // 10}
            ),
            re.escape("of shape [24, 4], which fit no matrix of [24, 48] in blocks of (1, 10)"),
        ),
        ("bitsandbytes int8", out_without("SCB"), "out_proj has no SCB"),
        ("bitsandbytes int8", out_without("weight"), "has no weight beside SCB and weight_format"),
        (
            "bitsandbytes int8",
            out_with("weight_format", torch.tensor(2).byte()),
            "rows in an order for one kind of GPU",
        ),
        (
            "bitsandbytes int8",
            out_with("weight", torch.zeros(24, 48).bfloat16()),
            "has a weight of bfloat16 and what only codes need",
        ),
        (
            "bitsandbytes int8",
            out_with("weight.absmax", torch.zeros(3)),
            "has a weight.absmax, which goes with no such weight",
        ),
        ("nf4", out_without(STATE), "has no weight.quant_state.bitsandbytes__nf4 or"),
        ("nf4", out_with(STATE, text([])), "has a quant_state that cannot be read"),
        ("nf4", out_with(STATE, text({"shape": [24]})), "has a quant_state that cannot be read"),
        ("nf4", out_with(STATE, torch.tensor([200]).byte()), "has a quant_state that cannot be re"),
        (
            "nf4",
            out_with(STATE, text({"shape": [24, 48], "blocksize": 0})),
            "has a quant_state of .*'blocksize': 0",
        ),
        (
            "nf4",
            out_with(STATE, text({"shape": [24, 50], "blocksize": 14})),
            re.escape("it is [24, 50] in blocks of 14, and has [576, 1] bytes, [83] scales"),
        ),
        ("nf4", out_with("weight.absmax", torch.ones(82)), re.escape("[82] scales")),
        ("nf4", out_with("weight.quant_map", torch.ones(8)), re.escape("[8] values")),
        (
            "nf4 with nested scales",
            out_with("weight.nested_absmax", torch.ones(3)),
            re.escape("has 165 scales of 8 bits, and for them [3] scales of blocks of 5"),
        ),
        (
            "nf4 with nested scales",
            out_with("weight.absmax", torch.ones(165)),
            "has a weight.nested_absmax, which goes with no such weight",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_in_formats_of_matrices(edited, form, change, words):
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
    folder = write_pair(tmp_path / "quantised", plain, EVERY["int8 channel"])
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = torch.ones(101, 24).to(torch.int8)
    stored["lm_head.weight_scale"] = torch.ones(101, 1)
    stored["backbone.embeddings.weight"] = stored["backbone.embeddings.weight"].bfloat16()
    save_file(stored, folder / "model.safetensors")
    fails(folder, "lm_head.weight differs from the embedding")
    stored["backbone.embeddings.weight"] = torch.ones(101, 24).bfloat16()
    save_file(stored, folder / "model.safetensors")
    load(folder)
