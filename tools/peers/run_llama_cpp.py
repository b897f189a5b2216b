"""llama.cpp on one GGUF file, as a contestant (`lines.serve`)."""

import argparse
import ctypes
import time
from typing import Any

import llama_cpp as ll

from peers.lines import serve


def open_context(model: object, threads: int, batch: int, tokens: int) -> object:
    """A context for `batch` sequences that together hold `tokens` tokens."""
    params = ll.llama_context_default_params()
    params.n_ctx = tokens
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = batch
    params.n_threads = params.n_threads_batch = threads
    return ll.llama_init_from_model(model, params)


def fill(batch: object, entries: list[tuple[int, int, int, bool]]) -> None:
    """Put (token, position, sequence, wants logits) entries into a llama_batch."""
    batch.n_tokens = len(entries)
    for i, (token, position, sequence, logits) in enumerate(entries):
        batch.token[i], batch.pos[i] = token, position
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        batch.logits[i] = logits


def run(context: object, batch: object, entries: list[tuple[int, int, int, bool]]) -> None:
    fill(batch, entries)
    status = ll.llama_decode(context, batch)
    if status != 0:
        raise RuntimeError(f"llama_decode returned {status}")
    ll.llama_synchronize(context)


class Llama:
    """A loaded GGUF file.

    Args:
        path: the file.
        threads: of both prefill and decode.
    """

    def __init__(self, path: str, threads: int) -> None:
        self._silence = ll.llama_log_callback(lambda *_: None)  # the library calls it until the end
        ll.llama_log_set(self._silence, ctypes.c_void_p(0))
        ll.llama_backend_init()
        self._model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        self._threads = threads
        self._n_vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self._model))

    def run(self, request: dict[str, Any]) -> dict[str, float]:
        """Prefill (each sequence in turn), and `new` decode steps of the whole batch."""
        prompt, new, n = request["prompt"], request["new"], request["batch"]
        context = open_context(self._model, self._threads, n, n * (prompt + new + 8))
        batch = ll.llama_batch_init(512, 0, 1)
        run(context, batch, [(7, 0, 0, True)])  # first use
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        started = time.perf_counter()
        for sequence in range(n):
            for low in range(0, prompt, 512):
                run(context, batch, self._chunk(sequence, low, min(low + 512, prompt), prompt))
        prefilled = time.perf_counter()
        for step in range(new):
            run(context, batch, [
                ((step + 31 * s) % self._n_vocab, prompt + step, s, True) for s in range(n)
            ])  # fmt: skip
        finished = time.perf_counter()
        ll.llama_batch_free(batch)
        ll.llama_free(context)
        return {
            "prefill_s": prefilled - started,
            "decode_s": finished - prefilled,
            "prefill_tokens_per_s": n * prompt / (prefilled - started),
            "decode_tokens_per_s": n * new / (finished - prefilled),
        }

    def _chunk(
        self, sequence: int, low: int, high: int, prompt: int
    ) -> list[tuple[int, int, int, bool]]:
        return [
            ((17 * i + sequence) % self._n_vocab, i, sequence, i == prompt - 1)
            for i in range(low, high)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    llama = Llama(args.path, args.threads)
    llama.run({"prompt": 16, "new": 2, "batch": 1})
    serve(llama.run, {"version": ll.__version__})


if __name__ == "__main__":
    main()
