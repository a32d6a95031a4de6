"""Staying on chosen processors, in processes of their own: this one must not be pinned."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdistill.bench.processors import as_options, run_in_turns, run_pinned
from jaxdistill.errors import UserError

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")

REPORT = """
import json, os, sys
print("something else")
print(json.dumps({"processors": sorted(os.sched_getaffinity(0)), "threads": os.environ["OMP_NUM_THREADS"],
                  "flags": os.environ.get("XLA_FLAGS", ""), "given": sys.argv[1:]}))
"""


def test_a_script_runs_on_one_processor_with_one_thread(tmp_path: Path):
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    processor = max(os.sched_getaffinity(0))
    found = run_pinned(str(script), ["--a", "1"], cpu=processor)
    assert found["processors"] == [processor]
    assert found["threads"] == "1"
    assert "intra_op_parallelism_threads=1" in found["flags"]
    assert found["given"] == ["--a", "1"]


def test_variants_of_a_script_take_turns(tmp_path: Path):
    script = tmp_path / "report.py"
    script.write_text(f"{REPORT}open({str(tmp_path / 'log')!r}, 'a').write(sys.argv[2])")
    variants = {name: as_options({"variant": name, "kv_heads": 2, "length": None}) for name in ("a", "b")}
    found = run_in_turns(str(script), variants, rounds=2, cpu=max(os.sched_getaffinity(0)))
    assert (tmp_path / "log").read_text() == "abab"
    assert [each["given"] for each in found["b"]] == [["--variant", "b", "--kv-heads", "2"]] * 2


def test_pinning_loads_nothing_that_counts_processors_and_refuses_what_is_not_there():
    processors = sorted(os.sched_getaffinity(0))
    code = (
        "import os, sys\n"
        "from jaxdistill.bench.processors import pin\n"
        f"pin({processors})\n"
        f"assert sorted(os.sched_getaffinity(0)) == {processors}\n"
        "assert not {'numpy', 'jax', 'torch'} & set(sys.modules)\n"
        "pin([99999])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{UserError.__name__}: --cpus: 99999: no such processor" in done.stderr
