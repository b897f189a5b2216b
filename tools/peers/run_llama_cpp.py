"""Time llama.cpp on one GGUF file: prefill, then decode of a batch. Prints one JSON line."""

import argparse
import ctypes
import json
import time

import llama_cpp as ll


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


def measure(path: str, threads: int, prompt: int, new: int, batch_size: int) -> dict[str, float]:
    """Seconds of prefill (per sequence, in turn) and of `new` decode steps of the whole batch."""
    silence = ll.llama_log_callback(lambda *_: None)  # kept: the library calls it until the end
    ll.llama_log_set(silence, ctypes.c_void_p(0))
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
    context = open_context(model, threads, batch_size, batch_size * (prompt + new + 8))
    batch = ll.llama_batch_init(512, 0, 1)
    n_vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    run(context, batch, [(7, 0, 0, True)])  # first use
    ll.llama_memory_clear(ll.llama_get_memory(context), True)
    started = time.perf_counter()
    for sequence in range(batch_size):
        for low in range(0, prompt, 512):
            high = min(low + 512, prompt)
            run(context, batch, [
                ((17 * i + sequence) % n_vocab, i, sequence, i == prompt - 1)
                for i in range(low, high)
            ])  # fmt: skip
    prefilled = time.perf_counter()
    for step in range(new):
        run(context, batch, [
            ((step + 31 * s) % n_vocab, prompt + step, s, True) for s in range(batch_size)
        ])  # fmt: skip
    return {"prefill_s": prefilled - started, "decode_s": time.perf_counter() - prefilled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    result = measure(args.path, args.threads, args.prompt, args.new, args.batch)
    print(json.dumps(result | {"version": ll.__version__}))


if __name__ == "__main__":
    main()
