import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_cases import make_case

from sidewinder.ops.linear import reference, vectorized
from sidewinder.testing import assert_close


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 33), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 99)
)
def test_vectorized_is_the_reference(tokens, inputs, outputs, with_bias, seed):
    case = make_case([tokens], seed)
    x, weight = case.strided(tokens, inputs), case.randn(outputs, inputs)
    bias = case.randn(outputs) if with_bias else None
    expected = reference.linear(x, weight, bias)
    assert torch.allclose(expected, vectorized.linear(x, weight, bias), atol=1e-5)


def test_bfloat16_is_rounded_once():
    x, weight = torch.randn(5, 300).bfloat16(), torch.randn(40, 300).bfloat16()
    wide = x.double() @ weight.double().T
    assert_close("y", wide, vectorized.linear(x, weight), 2**-8)
