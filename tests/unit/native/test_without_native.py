"""A whole generation where the native module was not built."""

import json
import subprocess
import sys
from pathlib import Path

from sidewinder import LLM, SamplingParams

MODEL = Path(__file__).parents[3] / "models" / "mamba"

GENERATE = """
import json, sys
sys.modules["sidewinder._native"] = None
from sidewinder import LLM, SamplingParams
with LLM(sys.argv[1], device="cpu", dtype="float32", threads=1) as llm:
    (output,) = llm.generate(["The sea"], SamplingParams(max_tokens=4, temperature=0.0))
print(json.dumps(output.token_ids))
"""


def test_torch_operators_generate_the_same_tokens_and_say_so():
    command = [sys.executable, "-c", GENERATE, str(MODEL)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("without its native kernels") == 1
    with LLM(str(MODEL), device="cpu", dtype="float32", threads=1) as llm:
        (output,) = llm.generate(["The sea"], SamplingParams(max_tokens=4, temperature=0.0))
    assert json.loads(done.stdout.splitlines()[-1]) == list(output.token_ids)
