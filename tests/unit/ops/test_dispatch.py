import pytest

from sidewinder.ops import dispatch
from sidewinder.ops.dispatch import Operator, available, forced


@pytest.fixture
def operator(monkeypatch):
    """An operator of its own registry, with a backend that says its name."""
    monkeypatch.setattr(dispatch, "_operators", {})
    return Operator("probe", reference=lambda: "reference", torch=lambda: "torch")


def test_the_fastest_registered_backend_runs(operator):
    with forced("native"):
        assert operator() == "torch"
        operator.register("native", lambda: "native")
        assert operator() == "native"
    assert available() == {"probe": ("reference", "torch", "native")}


def test_forced_sets_the_fastest_allowed_one_and_ends(operator):
    operator.register("native", lambda: "native")
    before = operator()
    with forced("reference"):
        assert operator() == "reference"
        with forced("torch"):
            assert operator() == "torch"
        assert operator() == "reference"
    assert operator() == before


def test_an_unknown_backend_is_an_error_that_lists_them(operator):
    pattern = r"'cuda'.*SIDEWINDER_OPS.*reference, torch, native"
    with pytest.raises(ValueError, match=pattern), forced("cuda"):
        operator()


def test_every_operator_has_a_reference():
    assert {"causal_conv1d", "selective_scan", "ssd_scan"} <= set(available())
    assert all("reference" in backends for backends in available().values())
