"""Writes the two small data sets of the tasks here, from data/heldout.txt, beside them.

documents.jsonl: pieces of held-out text. continuations.jsonl: the beginning of a piece, its real
continuation, and three times the same words in another order.
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
N_PIECES, N_CHARACTERS, N_WRONG = 24, 1200, 3


def main() -> None:
    """Write both files."""
    text = (HERE.parents[1] / "data" / "heldout.txt").read_text(encoding="utf-8")
    drawn = random.Random(0)
    step = len(text) // N_PIECES
    pieces = [text[i * step : i * step + N_CHARACTERS] for i in range(N_PIECES)]
    documents = [{"text": piece} for piece in pieces]
    questions = []
    for piece in pieces:
        words = piece[600:700].split(" ")
        wrong = [" ".join(drawn.sample(words, len(words))) for _ in range(N_WRONG)]
        choices = [piece[600:700], *wrong]
        order = drawn.sample(range(len(choices)), len(choices))
        questions.append({
            "context": piece[:600],
            "choices": [choices[i] for i in order],
            "answer": order.index(0),
        })  # fmt: skip
    for name, rows in (("documents", documents), ("continuations", questions)):
        lines = [json.dumps(row) for row in rows]
        (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
