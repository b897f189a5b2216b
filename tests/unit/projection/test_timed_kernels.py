"""Constants out of timed kernels, whose times are made up."""

import json

import pytest
import torch

from sidewinder.projection.calibration import Calibration, read_calibration
from sidewinder.projection.devices import device_of, device_of_product
from sidewinder.projection.lines import fitted_line
from sidewinder.projection.timed_kernels import constants_of

H100 = device_of("h100")


def row(kind, seconds, **values):
    return {"kind": kind, "seconds": seconds, "flops": 0.0, "special": 0.0, **values}


def test_states_of_mamba2_move_as_states_do():
    """Its update has no products, and says nothing about the scan in chunks."""
    rows = [
        row("ssd", 4.0, bytes=H100.bytes_per_s, flops=1e9),
        row("ssd", 1.0, bytes=0.75 * H100.bytes_per_s),
    ]
    found = constants_of(rows, H100, torch.bfloat16)
    assert found == pytest.approx({"ssd": 0.25, "scan": 0.75})


def test_a_line_is_found_again():
    assert fitted_line([(x, 3 + 0.5 * x) for x in (1, 10, 200)]) == pytest.approx((3, 0.5))


def product(rows, size, start, efficiency, **values):
    took = start + size / (efficiency * H100.bytes_per_s)
    case = f"{rows} row{'s' * (rows > 1)} by 9 x 9"
    return row("memory", took, case=case, bytes=size, flops=size, **values)


def test_what_a_product_takes_beyond_its_bytes_is_not_its_bandwidths_fault():
    """Untuned products of one row stand for several, if these were not timed."""
    sizes = (1e6, 20e6, 300e6)
    rows = [product(1, size, 3e-6, 0.75) for size in sizes]
    tuned = [product(1, size, 2e-6, 0.8)["seconds"] for size in sizes]
    rows = [each | {"tuned_seconds": best} for each, best in zip(rows, tuned, strict=True)]
    found = constants_of(rows, H100, torch.bfloat16)
    assert found == pytest.approx({"product_s": 3e-6, "memory": 0.75, "row_s": 2e-6, "row": 0.8})
    assert "row_s" not in constants_of(rows[:1], H100, torch.bfloat16), "one point is no line"
    rows += [product(32, size, 5e-6, 0.6) for size in sizes]
    found = constants_of(rows, H100, torch.bfloat16)
    assert found == pytest.approx({"product_s": 5e-6, "memory": 0.6, "row_s": 2e-6, "row": 0.8})


def test_small_kernels_and_updates_give_the_fixed_costs():
    """The faster of default and tuned; what moves something, and scans, are no small kernels."""
    rows = [
        row("memory", 2e-6, bytes=3e4, case="rms_norm, decode 1"),
        row("scan", 4e-6, bytes=8e4, tuned_seconds=1.8e-6, case="causal_conv1d, decode 1"),
        row("memory", 9e-6, bytes=1e6, case="rms_norm, decode 32"),
        row("scan", 4e-6, bytes=1e5, special=1e5, case="selective_scan, decode 1"),
        row("memory", 6e-6, bytes=5e6, case="projected_scan, decode 1"),
        row("ssd", 7e-6, bytes=1e5, case="ssd_scan, decode 1"),
        row("codec", 5e-6, bytes=1e4, case="encode int8"),
    ]
    found = constants_of(rows, H100, torch.bfloat16)
    assert found == pytest.approx({"kernel_s": 1.9e-6, "update_s": 6e-6})


def test_convolutions_states_and_attention_have_efficiencies_of_their_own():
    rows = [
        row("scan", 2.0, bytes=H100.bytes_per_s, case="causal_conv1d, prefill"),
        row("scan", 4.0, bytes=3 * H100.bytes_per_s, case="selective_scan, decode 32"),
        row("memory", 5.0, bytes=3 * H100.bytes_per_s, case="paged_attention, decode 32 of 1024"),
    ]
    found = constants_of(rows, H100, torch.bfloat16)
    assert found == pytest.approx({"conv": 0.5, "scan": 0.75, "attention": 0.6})


def test_other_peoples_kernels_do_not_count():
    peer = {"kind": "peer", "case": "mamba_ssm selective_scan_fn, prefill", "seconds": 1.0}
    for rows in ([peer], [peer | {"bytes": 1e9, "flops": 0.0, "special": 0.0}], [{"error": "no"}]):
        assert constants_of(rows, H100, torch.bfloat16) == {}


def test_a_suites_kernels_count_for_more_than_what_was_worked_out_from_them_then(tmp_path):
    file = tmp_path / "suite.json"
    kernels = {"rows": [row("gemm", 2.0, bytes=1e9, flops=H100.flops_16bit)]}
    result = {"calibration": {"gemm": 0.9, "ssd": 0.8, "kernel_s": 1e-6}}
    file.write_text(json.dumps(result))
    assert read_calibration(file).gemm == 0.9
    result |= {"machine": {"gpu": "NVIDIA H100 80GB HBM3"}, "sections": {"kernels": kernels}}
    file.write_text(json.dumps(result))
    found = read_calibration(file)
    assert (found.gemm, found.ssd, found.kernel_s) == (0.5, 0.8, 1e-6)
    assert found.memory == Calibration().memory


def test_products_are_found_among_the_data_sheets():
    names = {
        "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA A100-PCIE-40GB": "a100-40gb", "NVIDIA L40S": "l40s", "NVIDIA RTX A6000": "a6000",
    }  # fmt: skip
    for product, name in names.items():
        assert device_of_product(product) is device_of(name)
    assert device_of_product("Some other card") is None
