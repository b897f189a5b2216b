"""What a checkpoint says of its matrices in few bits: what is read, and every refusal."""

import json

import pytest
from quantised_cases import DYNAMIC, FLOAT8, INT4, compressed_tensors, modelopt

from sidewinder.checkpoint.config_readers import parse_model_config
from sidewinder.checkpoint.quantised.config import (
    Quantisation,
    find_quantisation,
    parse_quantisation,
)
from sidewinder.config import load_model_config
from sidewinder.testing import TINY

PLAIN = TINY["mamba2"] | {"dtype": "bfloat16"}


def parse(values):
    return parse_quantisation(values, "here")


def test_groups_of_modules_may_differ():
    both = compressed_tensors("mixed-precision") | {
        "config_groups": {
            "a": {"format": "pack-quantized", "weights": INT4},
            "b": {"format": "pack-quantized", "weights": INT4 | {"num_bits": 8, "group_size": -1}},
            "c": {
                "format": "float-quantized",
                "weights": FLOAT8 | {"block_structure": [128, 64]},
                "input_activations": DYNAMIC,
            },
            "d": {"format": "dense", "weights": None},
        }
    }
    blocks = ((1, 10), (128, 64))
    assert parse(both) == Quantisation(
        "compressed-tensors", blocks, (4, 8), rounds_activations=True
    )


def test_modules_of_modelopt_may_differ():
    layers = {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "W4A16_NVFP4", "group_size": 32}}
    mixed = modelopt("MIXED_PRECISION", quantized_layers=layers)
    assert parse(mixed) == Quantisation("modelopt", ((1, 32),), rounds_activations=True)
    assert parse(modelopt("fp8_pb_wo")).blocks == ((128, 128),)
    assert parse(modelopt("NVFP4")).blocks == ((1, 16),)
    only_keys = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    assert parse(only_keys) == Quantisation("modelopt", rounds_activations=True)


def test_weights_only_are_said_nothing_of():
    assert not parse(compressed_tensors("pack-quantized", **INT4)).rounds_activations
    keys = compressed_tensors("pack-quantized", **INT4) | {"kv_cache_scheme": {"num_bits": 8}}
    assert parse(keys).rounds_activations


def test_gptq_and_its_two_formats():
    said = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}
    assert parse(said) == Quantisation("gptq", ((1, 128),), (4,), zeros_less_one=True)
    newer = said | {"checkpoint_format": "gptq_v2", "group_size": -1, "bits": 8}
    assert parse(newer) == Quantisation("gptq", (), (8,))
    others = {"dynamic": {"+:a": {"group_size": 64}, "-:b": {}, "+:c": {"bits": 8}}}
    assert parse(said | others).blocks == ((1, 128), (1, 64))


def test_awq_and_bitsandbytes():
    said = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM"}
    assert parse(said) == Quantisation("awq", ((1, 64),), (4,))
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    assert parse(four) == Quantisation("bitsandbytes")
    assert parse({"quant_method": "bitsandbytes", "load_in_8bit": True}).rounds_activations


def folder_with(folder, **files):
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def test_a_file_of_modelopts_own(tmp_path):
    own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8_PB_WO"}}
    folder = folder_with(tmp_path, config=PLAIN, hf_quant_config=own)
    blocks = ((128, 128),)
    assert find_quantisation(folder) == Quantisation("modelopt", blocks, rounds_activations=True)
    with pytest.warns(UserWarning, match="activations, keys or values.*not used"):
        assert load_model_config(folder) == parse_model_config(PLAIN)


def test_config_json_comes_first(tmp_path):
    own = {"quantization": {"quant_algo": "W4A8_AWQ"}}
    said = PLAIN | {"quantization_config": compressed_tensors("pack-quantized", **INT4)}
    folder = folder_with(tmp_path, config=said, hf_quant_config=own)
    assert find_quantisation(folder).method == "compressed-tensors"


def test_the_older_key(tmp_path):
    older = compressed_tensors("pack-quantized", **INT4)
    del older["quant_method"]
    folder = folder_with(tmp_path, config=PLAIN | {"compression_config": older})
    assert find_quantisation(folder).blocks == ((1, 10),)


def test_a_plain_checkpoint_is_none(tmp_path):
    assert find_quantisation(tmp_path) is None
    assert find_quantisation(folder_with(tmp_path, config=PLAIN)) is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"quant_method": "quark"}, "here: quant_method='quark' is not supp.*modelopt .FP8, .*fp8"),
        ({"bits": 4}, "quant_method=None is not supported; quantised"),
        ({"quant_method": ["fp8"]}, r"quant_method=\['fp8'\]"),
        (compressed_tensors("marlin-24", **INT4), "format='marlin-24'.*float-quantized"),
        (
            compressed_tensors("mixed-precision")
            | {"config_groups": {"a": {"format": "mxfp6-pack-quantized", "weights": INT4}}},
            "format='mxfp6-pack-quantized'",
        ),
        (compressed_tensors("pack-quantized", num_bits=3, type="int"), "with num_bits=3"),
        (
            compressed_tensors("dense") | {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config.format='sparse-24-bitmask'",
        ),
        (compressed_tensors("dense") | {"transform_config": {"R1": {}}}, "transform_config"),
        (modelopt("W4A8_AWQ"), "quant_algo='W4A8_AWQ'.*NVFP4"),
        (
            modelopt("MIXED_PRECISION", quantized_layers={"a": {"quant_algo": "INT8_SQ"}}),
            "quant_algo='INT8_SQ'",
        ),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "here is broken.*128 times 0"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "here is broken"),
        (compressed_tensors("pack-quantized", **INT4 | {"group_size": "64"}), "here is broken"),
        (compressed_tensors("float-quantized") | {"config_groups": {"a": []}}, "here is broken"),
        ("fp8", "no JSON object"),
        ({"quant_method": "gptq", "bits": 3}, "bits=3 is not supported"),
        ({"quant_method": "gptq"}, "bits=None is not supported"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "format='marlin'"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "marlin is not"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "here is broken"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version='gemv' with bits=4"),
        ({"quant_method": "awq", "bits": 8}, "version='gemm' with bits=8"),
    ],
)  # fmt: skip
def test_refusals(values, words):
    with pytest.raises(ValueError, match=words):
        parse(values)
    with pytest.raises(ValueError, match=r"config\.json: quantization_config"):
        parse_model_config(PLAIN | {"quantization_config": values})


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_a_broken_file_of_modelopts_own(tmp_path, text):
    folder = folder_with(tmp_path, config=PLAIN)
    (folder / "hf_quant_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"hf_quant_config\.json .*fetch it again"):
        load_model_config(folder)
