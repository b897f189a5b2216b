"""The table of throughput over HTTP: what counts, and in which order."""

import serving_report


def one_pass(rate, others=0.0):
    spent = {"main_thread": 12.4, "client": 6.0, "others": others}
    return {"output_tokens_per_s": rate, "processor_us_per_token": spent, "itl_s": {"p50": 0.05}}


def run(model="mamba-130m", tp=1, scheduling="throughput", others=0.0):
    load = {
        "model": model, "dtype": "bfloat16", "tp": tp, "scheduling": scheduling, "requests": 48,
        "batch": 16, "prompt_tokens": 64, "output_tokens": 32,
    }  # fmt: skip
    pairs = [(1000, 900), (1000, 950), (1000, 970), (1000, 100)]
    rounds = [
        {"offline": one_pass(first), "server": one_pass(second), "ratio": second / first}
        for first, second in pairs
    ]
    # 2,000 us for each of 100 tokens a second: a fifth of a core.
    rounds[3]["server"] = one_pass(100, others)
    return {"load": load, "rounds": rounds}


def test_disturbed_rounds_are_left_out_and_counted():
    line = serving_report.line(run(others=2000.0))
    assert "| 1,000 to 1,000 | 900 to 970 | **95 %**, 90 to 97; 3 rounds (1 disturbed) |" in line
    assert line.endswith("| 12 µs | 6 µs | 50 ms |\n")
    assert "100 to 970" in serving_report.line(run(others=900.0))


def test_what_disturbs_offline_counts_too():
    disturbed = run()
    disturbed["rounds"][0]["offline"] = one_pass(1000, 200)
    assert len(serving_report.quiet(disturbed)) == 3


def test_order():
    runs = [run("models/mamba"), run(scheduling="latency"), run(tp=2), run()]
    head, *lines = serving_report.table(runs)
    assert head.startswith("| model | tp |")
    starts = [line.split(" | ")[:3] for line in lines]
    assert starts == [
        ["| mamba-130m, bfloat16", "1", "throughput"],
        ["| mamba-130m, bfloat16", "2", "throughput"],
        ["| mamba-130m, bfloat16", "1", "latency"],
        ["| models/mamba, bfloat16", "1", "throughput"],
    ]
