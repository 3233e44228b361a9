"""Command lines for benchmark_model, and its output in the forms that versions of it print."""

import contextlib
import json
import time

import pytest

from mbv3_jax import __main__
from mbv3_jax.latency import phone

PLAIN = """STARTING!
Log parameter values verbosely: [0]
Num threads: [4]
Graph: [net.tflite]
Enable op profiling: [1]
Initialized session in 18.777ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=9 first=64791 curr=56295 min=54873 max=65831 avg=57758.2 std=4065

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=58154 curr=53809 min=53077 max=60727 avg=55043.2 std=1562

Inference timings in us: Init: 18777, First inference: 64791, Warmup (avg): 57758.2, Inference (avg): 55043.2
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE
Memory footprint delta from the start of the tool (MB): init=8.97656 overall=18.7227
"""  # noqa: E501
TABLES = """Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t ModifyGraphWithDelegate\t   14.842\t   14.842\t 99.317%\t 99.317%\t  3428.000\t        1\tModifyGraphWithDelegate/0

Number of nodes executed: 1
============================== Summary by node type ==============================
\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t  [mem KB]\t[times called]
\t ModifyGraphWithDelegate\t        1\t    14.842\t    99.317%\t    99.317%\t  3428.000\t        1

Timings (microseconds): count=1 curr=14944

Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tConvolution (NHWC, F32) IGEMM\t    0.267\t    0.278\t 50.000%\t 50.000%\t     0.000\t        1\tDelegate/Convolution (NHWC, F32) IGEMM:0
\tConvolution (NHWC, F32) DWConv\t    0.243\t    0.271\t 40.000%\t 90.000%\t     0.000\t        1\tDelegate/Convolution (NHWC, F32) DWConv:1
\tHardSwish (NC, F32)\t    0.050\t    0.051\t 10.000%\t100.000%\t     0.000\t        1\tDelegate/HardSwish (NC, F32):2

============================== Top by Computation Time ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tConvolution (NHWC, F32) IGEMM\t    0.267\t    0.278\t 50.000%\t 50.000%\t     0.000\t        1\tDelegate/Convolution (NHWC, F32) IGEMM:0

Number of nodes executed: 3
============================== Summary by node type ==============================
\t             [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t  [mem KB]\t[times called]
\tConvolution (NHWC, F32) IGEMM\t        1\t     0.278\t    50.000%\t    50.000%\t     0.000\t        1
\tConvolution (NHWC, F32) DWConv\t        1\t     0.271\t    40.000%\t    90.000%\t     0.000\t        1
\tHardSwish (NC, F32)\t        1\t     0.051\t    10.000%\t   100.000%\t     0.000\t        1

Timings (microseconds): count=50 first=574 curr=540 min=531 max=607 avg=550.4 std=15
Memory (bytes): count=0
3 nodes observed
"""  # noqa: E501
# Of TensorFlow before 2.10: with a column for the start, names in brackets.
OLD = """
============================== Run Order ==============================
             [node type]      [start]      [first]     [avg ms]         [%]      [cdf%]      [mem KB] [times called]    [Name]
                 CONV_2D        0.000        4.269        4.269      66.5%       66.5%         0.000          1       [net/Conv/Relu6]
       DEPTHWISE_CONV_2D        4.270        2.150        2.151      33.5%      100.0%         0.000          1       [net/depthwise/Relu6]

Number of nodes executed: 2
============================== Summary by node type ==============================
             [Node type]      [count]     [avg ms]      [avg %]     [cdf %]   [mem KB]  [times called]
                 CONV_2D            1        4.269       66.5%       66.5%      0.000          1
       DEPTHWISE_CONV_2D            1        2.151       33.5%      100.0%      0.000          1
"""  # noqa: E501


def test_latency_and_profile():
    found = phone.read([PLAIN, PLAIN.replace("55043.2", "99999") + TABLES], "net", "Pixel 9")
    assert (found["ms"], found["runs"], found["threads"]) == (55.0432, 50, 4)
    assert (found["init_ms"], found["first_ms"]) == (18.777, 64.791)
    assert found["memory_mb"] == 18.7227 and found["machine"] == {"cpu": "Pixel 9"}
    kinds = ["Convolution (NHWC, F32) IGEMM", "Convolution (NHWC, F32) DWConv"]
    kinds += ["HardSwish (NC, F32)"]
    assert [row["op"] for row in found["profile"]] == kinds
    assert [row["ms"] for row in found["profile"]] == [0.278, 0.271, 0.051]
    assert [row["count"] for row in found["profile"]] == [1, 1, 1]
    assert [row["op"] for row in found["operations"]] == kinds
    assert found["operations"][1] == {
        "op": kinds[1],
        "ms": 0.271,
        "name": "Delegate/Convolution (NHWC, F32) DWConv:1",
    }


@pytest.mark.parametrize("prefix", ["INFO: ", "05-30 15:16:44.857  3380  3380 I tflite  : "])
def test_lines_of_a_log(prefix):
    text = "".join(prefix + line + "\n" for line in PLAIN.splitlines())
    assert phone.read([text + TABLES], "net") == phone.read([PLAIN + TABLES], "net")


def test_old_tables():
    found = phone.read([PLAIN + OLD], "net")
    assert found["profile"] == [
        {"op": "CONV_2D", "count": 1, "ms": 4.269},
        {"op": "DEPTHWISE_CONV_2D", "count": 1, "ms": 2.151},
    ]
    assert [row["name"] for row in found["operations"]] == ["net/Conv/Relu6", "net/depthwise/Relu6"]
    assert [row["ms"] for row in found["operations"]] == [4.269, 2.151]
    assert phone.read([PLAIN], "net")["profile"] is None


LONG = {
    "numbers in a row": TABLES.replace("HardSwish (NC, F32)", "1 " * 12_500),
    "shares in a row": TABLES.replace("HardSwish (NC, F32)", "a " + "1% " * 12_500),
    "tails without a name": TABLES.replace("HardSwish (NC, F32)", "a 1 " + "1 1% 1% 1 " * 5000),
    "spaces in a row": TABLES.replace("HardSwish", "a" + " " * 25_000 + "b"),
    "prefixes": "tflite " * 4000 + "\n" + TABLES,
    "titles of the memory": "Memory footprint delta" * 20_000 + "\n" + TABLES,
    "numbers without an end": TABLES + "Memory footprint delta overall=" + "1" * 25_000 + "e\n",
    "lines": TABLES + "= Run Order =\n" * 25_000,
}


@pytest.mark.parametrize("kind", LONG)
def test_long_texts_take_no_longer_than_their_length(kind):
    seconds = []
    for _ in range(3):  # the least of them: a garbage collection of a large process takes seconds
        began = time.process_time()
        with contextlib.suppress(ValueError):
            phone.read([PLAIN + LONG[kind]], "net")
        seconds.append(time.process_time() - began)
    assert min(seconds) < 3  # of this process's time, where 0.3 are usual


def test_names_with_spaces_numbers_and_shares():
    row = "\tHardSwish (NC, F32)\t    0.050\t    0.051\t 10.000%\t100.000%\t     0.000\t        1\t"
    assert row in TABLES
    for kind in ("Conv 2  D", "50% of it", "a 1 1% b"):
        changed = TABLES.replace("Delegate/HardSwish (NC, F32):2", "x 3.0 5%  5% 0.0 1 [y]")
        changed = changed.replace("\tHardSwish (NC, F32)\t", f"\t{kind}\t")
        found = phone.read([PLAIN + changed], "net")
        assert found["operations"][-1] == {"op": kind, "ms": 0.051, "name": "x 3.0 5%  5% 0.0 1 [y"}
        assert found["profile"][-1] == {"op": kind, "count": 1, "ms": 0.051}


@pytest.mark.parametrize("number", ["1e999", "1.2.3", "0", "."])
def test_times_that_mean_nothing(tmp_path, capsys, number):
    text = tmp_path / "timing.txt"
    text.write_text(PLAIN.replace("(avg): 55043.2", f"(avg): {number}"))
    assert __main__.main(["latency", "import", str(text)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: timing: ") and not said.out
    assert len(said.err.splitlines()) == 1
    text.write_text(PLAIN + TABLES.replace("0.278", "1e999"))
    assert __main__.main(["latency", "import", str(text)]) == 2


def test_texts_that_are_not_its():
    with pytest.raises(ValueError, match="did not end"):
        phone.read([PLAIN.partition("Inference timings")[0]], "net")


def test_commands(tmp_path, capsys):
    model, text = tmp_path / "net.tflite", tmp_path / "timing.txt"
    model.touch()
    arguments = [f"--file={model}", "--serial=A1", "--cpu-mask=f0", "--threads=2"]
    assert __main__.main(["latency", "android", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "adb -s A1 push benchmark_model /data/local/tmp/benchmark_model"
    assert lines[2] == f"adb -s A1 push {model} /data/local/tmp/net.tflite"
    run = (
        "adb -s A1 shell taskset f0 /data/local/tmp/benchmark_model "
        "--graph=/data/local/tmp/net.tflite --num_threads=2 --num_runs=100 --warmup_runs=10"
    )
    assert lines[3] == f"{run} > timing.txt 2>&1"
    flags = "--enable_op_profiling=true --report_peak_memory_footprint=true"
    assert lines[4] == f"{run} {flags} > profile.txt 2>&1"
    text.write_text(PLAIN + TABLES)
    out = tmp_path / "phone.json"
    assert __main__.main(["latency", "import", str(text), f"--out={out}", "--machine=P"]) == 0
    assert json.loads(out.read_text())["ms"] == 55.0432
    text.write_text("nothing")
    assert __main__.main(["latency", "import", str(text)]) == 2
    assert __main__.main(["latency", "android", "--file=absent.tflite"]) == 2
    with pytest.raises(SystemExit):
        __main__.main(["latency", "android", f"--file={model}", "--cpu-mask=big"])
