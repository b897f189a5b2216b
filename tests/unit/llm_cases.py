"""Models and requests for tests of `LLM`."""

from sidewinder import SamplingParams
from sidewinder.testing import save_tokenizer, tiny_oracle

VOCAB = 287
"""What `save_tokenizer` makes; not divisible by 2, 3 or 4."""

PROMPTS = [[5, 17, 200], list(range(40, 63)), [9]]
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


def make_model(family, folder):
    """Write a tiny model with its tokenizer into `folder`; return the oracle."""
    oracle = tiny_oracle(family, vocab_size=VOCAB, tie_word_embeddings=False)
    oracle.save_pretrained(folder)
    save_tokenizer(folder)
    return oracle


def sampled(**values):
    """Params that draw 40 tokens with a seed, but for `values`."""
    defaults = {"max_tokens": 40, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    return SamplingParams(**defaults | values)
