#!/usr/bin/env python
"""Train the small demo models in models/ on the Python standard library, on one CPU core.

For each family it trains a byte-level BPE tokenizer and a model of one to three million
parameters, exports both in transformers' format, measures bits per byte on data/heldout.txt
(which is never trained on) and records the figure next to that of `xz -9` in heldout.json.

examples:
  tools/train_demo.py --family mamba --minutes 23       what the repository ships
  tools/train_demo.py --family all --minutes 5 --output /tmp/models
  tools/train_demo.py --family mamba --minutes 23       again after Ctrl-C: resumes
"""

import argparse
import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo_training import corpus, evaluate, export, families, optim
from demo_training.forward import hidden_states
from tqdm import tqdm

Streams = tuple[torch.Tensor, torch.Tensor]
ROOT = Path(__file__).resolve().parent.parent
SHAPES = {  # d_model, layers
    "mamba": (192, 5),
    "falcon-mamba": (192, 5),
    "mamba2": (192, 5),
    "zamba": (160, 4),
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--family", choices=(*families.FAMILIES, "all"), required=True, help="what to train")
    add("--minutes", type=float, default=23, help="training time per family (default: 23)")
    add("--threads", type=int, default=1, help="torch threads; the kernels use one (default: 1)")
    add("--d-model", type=int, help="hidden size, a multiple of 32 (default: as shipped)")
    add("--layers", type=int, help="number of layers; zamba needs 4 or more (default: as shipped)")
    add("--batch", type=int, default=4, help="windows per step (default: 4)")
    add("--length", type=int, default=512, help="tokens per window (default: 512)")
    add("--seed", type=int, default=0, help="of initialisation and sampling (default: 0)")
    add("--output", type=Path, default=ROOT / "models", help="folder of the models")
    add("--work", type=Path, default=export.default_work(), help="folder of resumable checkpoints")
    add("--fresh", action="store_true", help="ignore a checkpoint of an interrupted run")
    return parser.parse_args(argv)


def keep_freed_memory() -> None:
    """Ask glibc to reuse freed tensors instead of returning them: page faults cost 10 % or more."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 34 if sys.maxsize < 1 << 31 else (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library: only slower


class Run:
    """One training run: model, optimizers, clock; saved and restored as a whole."""

    def __init__(self, family: str, options: argparse.Namespace, vocab_size: int) -> None:
        d_model, layers = SHAPES[family]
        settings = families.config(
            family, vocab_size, options.d_model or d_model, options.layers or layers
        )
        self.model = families.create(settings, options.seed)
        self.optimizers = optim.optimizers(self.model)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.seconds, self.step, self.tokens = 0.0, 0, 0
        self.log: list[dict[str, float]] = []
        self.checkpoint = options.work / f"{family}.pt"

    def save(self) -> None:
        """Write the checkpoint, so that a kill at any moment leaves a whole one."""
        state: dict[str, Any] = {k: getattr(self, k) for k in ("seconds", "step", "tokens", "log")}
        state["model"] = self.model.state_dict()
        state["optimizers"] = [o.state_dict() for o in self.optimizers]
        state["generator"] = self.generator.get_state()
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def restore(self) -> None:
        """Go on from the checkpoint."""
        state = torch.load(self.checkpoint, weights_only=True)
        try:
            self.model.load_state_dict(state.pop("model"))
        except RuntimeError as error:
            message = f"{self.checkpoint} is of another model size: --fresh starts anew"
            raise ValueError(message) from error
        self.generator.set_state(state.pop("generator"))
        for optimizer, saved in zip(self.optimizers, state.pop("optimizers"), strict=True):
            optimizer.load_state_dict(saved)
        for name, value in state.items():
            setattr(self, name, value)

    def train_step(self, inputs: torch.Tensor, targets: torch.Tensor, factor: float) -> float:
        """One update on ``[batch, length]`` tokens at ``factor`` of the full learning rate."""
        hidden = hidden_states(self.model, inputs)
        scores = F.linear(hidden, self.model.get_input_embeddings().weight)
        loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group.setdefault("full_lr", group["lr"])
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += inputs.numel()
        return loss.item()


def train(run: Run, streams: Streams, options: argparse.Namespace) -> None:
    """Train until the time budget is used; the learning rate reaches zero exactly then."""
    budget, every = options.minutes * 60, options.minutes * 60 / 200
    since: list[float] = []
    last_log = last_save = run.seconds
    clock = time.perf_counter() - run.seconds
    bar = tqdm(total=round(budget), initial=round(run.seconds), unit="s", smoothing=0)
    try:
        while run.seconds < budget:
            batch = corpus.sample_batch(streams, options.batch, options.length, run.generator)
            since.append(run.train_step(*batch, optim.schedule(run.seconds / budget)))
            run.seconds = time.perf_counter() - clock
            if run.seconds - last_log >= every or run.seconds >= budget:
                last_log, loss = run.seconds, sum(since) / len(since)
                since.clear()
                record = {"step": run.step, "tokens": run.tokens, "loss": round(loss, 4)}
                run.log.append(record | {"seconds": round(run.seconds, 1)})
                bar.set_postfix_str(f"loss {loss:.3f}, {run.tokens / run.seconds:.0f} tokens/s")
                bar.update(round(run.seconds) - bar.n)
            if run.seconds - last_save >= 60:
                last_save = run.seconds
                run.save()
    finally:
        bar.close()
        run.save()


def demo(family: str, options: argparse.Namespace) -> None:
    """Tokenizer, training, export and measurement of one family."""
    texts = corpus.training_files()
    tokenizer = export.shared_tokenizer(options.work, texts)
    streams = corpus.token_streams(tokenizer, texts)
    run = Run(family, options, len(tokenizer))
    parameters = sum(p.numel() for p in run.model.parameters())
    print(
        f"{family}: {parameters:,} parameters; {len(streams[0]):,} tokens of modules, "
        f"{len(streams[1]):,} of chat",
        file=sys.stderr,
    )
    if run.checkpoint.exists() and not options.fresh:
        run.restore()
        print(f"{family}: resuming after {run.seconds:.0f} s", file=sys.stderr)
    train(run, streams, options)
    folder = options.output / family
    export.save_model(run.model, tokenizer, folder)
    export.save_log(run.log, folder / "training.jsonl")
    text = export.heldout(ROOT / "data" / "heldout.txt")
    entry = {
        "bits_per_byte": round(evaluate.bits_per_byte(run.model, tokenizer, text), 4),
        "parameters": parameters,
        "tokens_seen": run.tokens,
        "tokens_per_second": round(run.tokens / run.seconds),
        "minutes": round(run.seconds / 60, 1),
    }
    export.record(options.output / "heldout.json", family, entry, text)
    print(json.dumps({"family": family, **entry}))


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parse_arguments(argv)
    if min(options.minutes, options.threads, options.batch, options.length) <= 0:
        print("train_demo: --minutes, --threads, --batch, --length: above 0", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        for family in families.FAMILIES if options.family == "all" else [options.family]:
            demo(family, options)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"train_demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
