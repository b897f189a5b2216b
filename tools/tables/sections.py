"""The tables of docs/benchmarks.md: every section, its loads and its targets."""

from tables.cases import Case, Entrant, Figure, Group, Row, Section

ONE, TWO, RANKS = "one core", "two threads", "tp=2"
MACHINE = "machine, two cores"
PREFILL, DECODE, TOTAL = "prefill_tokens_per_s", "decode_tokens_per_s", "total_tokens_per_s"
RATE = "tokens/s"

FAMILIES = {
    "mamba": ("mamba-790m", 1.9),
    "falcon-mamba": ("falcon-mamba-790m", 1.9),
    "mamba2": ("mamba2-780m", 1.8),
    "zamba": ("zamba-790m", 1.8),
}
"""Family to the shape of about mamba-790m's width and depth, and the target of tp=2 over tp=1."""

SCALING_LAYERS = 24
"""Layers that scaling runs with, half of the depth: all of it would take hours on one core."""


def ours(name: str, *options: str, cores: str = "0,1") -> Entrant:
    """Sidewinder on all of `cores`, or on one rank per core."""
    threads = "1" if name.endswith(RANKS) else str(len(cores.split(",")))
    tp = "2" if name.endswith(RANKS) else "1"
    return Entrant(name, "sidewinder", ("--tp", tp, "--threads", threads, *options), (cores,))


def machine(name: str = MACHINE, cores: tuple[str, ...] = ("0,1",), tp: int = 1) -> Entrant:
    """torch's ceilings with one thread per core."""
    threads = str(len(cores[0].split(",")))
    return Entrant(name, "machine", ("--threads", threads, "--tp", str(tp)), cores)


def rate(entrant: str, key: str) -> Row:
    """A plain figure in tokens per second."""
    return Row(entrant, ((entrant, key),), unit=RATE)


def ratio(label: str, over: Figure, under: Figure, target: float | None = None) -> Row:
    """One figure over another."""
    return Row(label, (over,), (under,), target)


def share(entrant: str, key: str, ceiling: str, label: str, target: float | None = None) -> Row:
    """A figure as a fraction of the machine's."""
    return Row(f"{entrant}: of {label}", ((entrant, key),), ((MACHINE, ceiling),), target)


def _prefill() -> Section:
    gemm = ("prefill_flops_per_s", "gemm_flops_per_s", "torch's GEMM rate on these shapes")
    rows = [rate(TWO, PREFILL), rate(RANKS, PREFILL), share(TWO, *gemm, 0.8), share(RANKS, *gemm)]
    case = Case("prefill of 512 tokens", 512, 1, 1, tuple(rows), rounds=7, budget_s=150)
    group = Group("mamba-790m", (ours(TWO), ours(RANKS), machine()), (case,))
    return Section(
        "prefill",
        "Prefill",
        "bf16, both cores. torch's GEMM rate is the better of its bf16 and float32 rates on this "
        "model's matrices at 512 rows.",
        (group,),
    )


def _decode_one() -> Section:
    int8, int4 = f"int8, {TWO}", f"int4, {TWO}"
    read = ("decode_bytes_per_s", "read_bytes_per_s", "read bandwidth")
    rows = [
        *(rate(name, DECODE) for name in (TWO, RANKS, int8, int4)),
        share(TWO, *read, 0.85),
        share(RANKS, *read),
        share(int8, *read),
        share(int4, *read),
        ratio("int8 over bf16", (int8, DECODE), (TWO, DECODE), 1.7),
        ratio("int4 over int8", (int4, DECODE), (int8, DECODE), 1.5),
        ratio("int4 over bf16", (int4, DECODE), (TWO, DECODE)),
    ]
    case = Case("decode, batch 1", 16, 32, 1, tuple(rows), rounds=9, budget_s=120)
    rounded = (ours(int8, "--weight-dtype", "int8"), ours(int4, "--weight-dtype", "int4"))
    entrants = (ours(TWO), ours(RANKS), *rounded, machine())
    return Section(
        "decode-b1",
        "Decode at batch 1",
        "Weights in bf16 unless said. A step reads every weight once; the read bandwidth of both "
        "cores is measured in the same rounds.",
        (Group("mamba-790m", entrants, (case,)),),
    )


def _decode_batch() -> Section:
    rows = (
        rate(TWO, DECODE),
        rate(RANKS, DECODE),
        share(TWO, "decode_bytes_per_s", "read_bytes_per_s", "read bandwidth"),
    )
    groups = []
    for shape, budget in (("mamba-130m", 40.0), ("mamba-790m", 100.0)):
        cases = tuple(
            Case(f"decode, batch {batch}", 16, 32, batch, rows, rounds=5, budget_s=budget)
            for batch in (16, 32)
        )
        groups.append(Group(shape, (ours(TWO), ours(RANKS), machine()), cases))
    return Section(
        "decode-batch",
        "Decode of batches",
        "bf16, both cores, prompts of 16 tokens. The same loads stand beside llama.cpp below.",
        tuple(groups),
    )


def _recorded() -> Section:
    python = f"from Python, {TWO}"
    rows = (
        rate(TWO, DECODE),
        rate(python, DECODE),
        ratio("recorded over from Python", (TWO, DECODE), (python, DECODE)),
    )
    entrants = (ours(TWO), ours(python, "--cuda-graphs", "off"))
    groups = tuple(
        Group(
            shape,
            entrants,
            tuple(
                Case(f"decode, batch {batch}", 16, 32, batch, rows, rounds=7, budget_s=40)
                for batch in (1, 16)
            ),
        )
        for shape in ("mamba-130m", "mamba-790m", "zamba-790m")
    )
    return Section(
        "recorded-steps",
        "Recorded decode steps",
        "bf16, both cores: decode steps as recorded native calls, and every step from Python "
        "(`--cuda-graphs off`).",
        groups,
    )


def _decode_over_bandwidth(one_core: str) -> Case:
    """Batch 1, where ranks share one memory; `one_core` is the machine as one core sees it."""
    bandwidths = (MACHINE, "read_bytes_per_s"), (one_core, "read_bytes_per_s")
    return Case(
        "decode, batch 1",
        16,
        64,
        1,
        (
            *(rate(name, DECODE) for name in (ONE, RANKS, TWO)),
            ratio("tp=2 over one core", (RANKS, DECODE), (ONE, DECODE)),
            ratio("bandwidth, two cores over one", *bandwidths),
            Row(
                "the first of these two over the second",
                ((RANKS, DECODE), bandwidths[1]),
                ((ONE, DECODE), bandwidths[0]),
                0.9,
            ),
        ),
        rounds=7,
        budget_s=60,
    )


def _scaling(family: str) -> Section:
    shape, target = FAMILIES[family]
    one_core, engines = "machine, one core", "two engines, a core each"
    batches = [
        Case(
            f"batch {batch}, 512 + 64 tokens",
            512,
            64,
            batch,
            (
                *(rate(name, TOTAL) for name in (ONE, RANKS, TWO)),
                ratio("tp=2 over one core", (RANKS, TOTAL), (ONE, TOTAL), target),
                ratio("tp=2 over two threads", (RANKS, TOTAL), (TWO, TOTAL), 0.95),
                ratio(f"{engines}, over one", (engines, TOTAL), (ONE, TOTAL)),
            ),
            rounds=3,
            budget_s=budget,
            warm_up=False,
        )
        for batch, budget in ((16, 90.0), (32, 100.0))
    ]
    prefill = Case(
        "prefill of 2,048 tokens",
        2048,
        1,
        1,
        (
            *(rate(name, PREFILL) for name in (ONE, RANKS, TWO)),
            ratio("tp=2 over one core", (RANKS, PREFILL), (ONE, PREFILL), 1.9),
            ratio(f"{engines}, over one", (engines, PREFILL), (ONE, PREFILL)),
        ),
        budget_s=50,
    )
    entrants = (ours(ONE, cores="0"), ours(RANKS), ours(TWO))
    machines = (machine(cores=("0", "1")), machine(one_core, ("0",)))
    # What the cores allow: they share memory, caches and the host.
    apart = Entrant(engines, "sidewinder", ("--tp", "1", "--threads", "1"), ("0", "1"))
    return Section(
        f"scaling-{family}",
        f"Two ranks against one core: {family}",
        f"bf16, {shape}'s width; {SCALING_LAYERS} layers, all of them at batch 1. `tp=2` has a "
        "core for each rank. Two engines, each with a core and the whole load, show what cores "
        "that share their memory allow.",
        (
            Group(shape, (*entrants, apart), (*batches, prefill), SCALING_LAYERS),
            Group(shape, (*entrants, *machines), (_decode_over_bandwidth(one_core),)),
        ),
    )


def _against_transformers() -> Section:
    peer = "transformers"
    entrants = (ours(ONE, cores="0"), Entrant(peer, "transformers", ("--threads", "1"), ("0",)))

    def case(name: str, load: tuple[int, int, int], key: str, target: float) -> Case:
        over = ratio("Sidewinder over transformers", (ONE, key), (peer, key), target)
        return Case(name, *load, (rate(ONE, key), rate(peer, key), over), 3, 60)

    peak = Row(
        "peak memory, Sidewinder over transformers",
        ((ONE, "peak_bytes"),),
        ((peer, "peak_bytes"),),
        target=0.5,
        at_least=False,
    )
    speed = (
        case("prefill of 512 tokens", (512, 1, 1), PREFILL, 6.0),
        case("decode, batch 1", (16, 16, 1), DECODE, 4.0),
        case("decode, batch 16", (16, 16, 16), DECODE, 5.0),
    )
    # Peaks are of a process's whole life: these are fresh.
    memory = Case("memory of a 2,048-token prefill", 2048, 1, 1, (peak,), rounds=1, warm_up=False)
    return Section(
        "peers-transformers",
        "Beside transformers",
        "mamba-130m, bf16, one core each.",
        (Group("mamba-130m", entrants, speed), Group("mamba-130m", entrants, (memory,))),
    )


def _against_llama(shape: str, level: str | None = None) -> Section:
    bf16, q8, q4 = "llama.cpp bf16", "llama.cpp q8_0", "llama.cpp q4_0"
    int8, int4 = f"int8, {TWO}", f"int4, {TWO}"
    entrants = (
        ours(TWO),
        ours(int8, "--weight-dtype", "int8"),
        ours(int4, "--weight-dtype", "int4"),
        Entrant(bf16, "llama", ("bfloat16",)),
        Entrant(q8, "llama", ("q8_0",)),
        Entrant(q4, "llama", ("q4_0",)),
    )
    large = shape == "mamba-790m"
    one_token = (1.0, 1.4) if large else (None, None)

    def case(name: str, load: tuple[int, int, int], key: str, *targets: float | None) -> Case:
        rows = [rate(entrant.name, key) for entrant in entrants]
        rows.append(ratio("bf16 over llama.cpp bf16", (TWO, key), (bf16, key), targets[0]))
        rows.append(ratio("int8 over llama.cpp q8_0", (int8, key), (q8, key), targets[1]))
        rows.append(ratio("int4 over llama.cpp q4_0", (int4, key), (q4, key)))
        return Case(name, *load, tuple(rows), 5, 120 if large else 60, warm_up=not large)

    name, title = f"peers-llama-{shape.removeprefix('mamba-')}", f"Beside llama.cpp: {shape}"
    about = "Both cores, two threads each, through llama-cpp-python."
    if level is not None:
        name, title = f"{name}-{level}", f"{title} on {level.upper()}"
        about = f"{about[:-1]}; a processor whose best level is `{level}`."
    cases = (
        case("prefill of 512 tokens", (512, 1, 1), PREFILL, 3.0, None),
        case("decode, batch 1", (16, 32, 1), DECODE, *one_token),
        case("decode, batch 32", (16, 16, 32), DECODE, 3.0, None),
    )
    return Section(name, title, about, (Group(shape, entrants, cases),), level)


ALL_REDUCE = Section(
    "all-reduce",
    "All-reduce between two pinned ranks",
    "bf16, over shared memory, both sizes in turn; the time of a call is the slower rank's. "
    "Bare: two ranks that only spin on each other's flag at the same pace, in the same run.",
)

SECTIONS = (
    _prefill(),
    _decode_one(),
    _decode_batch(),
    _recorded(),
    *(_scaling(family) for family in FAMILIES),
    _against_transformers(),
    _against_llama("mamba-130m"),
    _against_llama("mamba-790m"),
    _against_llama("mamba-130m", "avx2"),
    _against_llama("mamba-790m", "avx2"),
    ALL_REDUCE,
)
