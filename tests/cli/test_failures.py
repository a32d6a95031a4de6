"""What a bad command gets: the exit status, one line on stderr, and a traceback only on request."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdistill.cli.failures import report_failure
from jaxdistill.errors import ConfigError, DataError, DivergedError, ExternalError, Interrupted


def subprocess_run(code: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (DataError("a.csv, line 3: no text"), 2, "error: a.csv, line 3: no text"),
        (DivergedError("step 7: not finite"), 3, "error: step 7: not finite"),
        (ExternalError("hub: no network"), 4, "error: hub: no network"),
        (Interrupted("checkpointed at step 7"), 143, "error: checkpointed at step 7"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ConfigError("a: wrong", "b.c: wrong too"), 2, "error: a: wrong\nerror: b.c: wrong too"),
        (
            KeyError("x"),
            1,
            "internal error: KeyError: 'x' (run again with --debug for the traceback)",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/x"),
            4,
            "error: runs/a/x: No space left on device; free some space and run the same command again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            4,
            "error: /root/x: Permission denied; check its permissions, or choose another place and run the same "
            "command again",
        ),
    ],
)
def test_each_kind_of_error_has_its_status_and_line(error, status, line, capsys):
    assert report_failure(error, debug=False) == status
    assert capsys.readouterr().err == line + "\n"


def test_a_full_disk_is_recognised_inside_a_librarys_own_error(capsys):
    error = ValueError("UNKNOWN: writing chunk")
    error.__cause__ = RuntimeError("[os_error_code='ENOSPC']: failed")
    assert report_failure(error, debug=False) == 4
    assert "No space left on device; free some space" in capsys.readouterr().err


def test_a_device_out_of_memory_is_an_outside_resource(capsys):
    assert report_failure(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"), debug=False) == 4
    assert "smaller batch_size" in capsys.readouterr().err


def test_a_file_that_we_forgot_to_look_for_is_our_fault(capsys):
    assert report_failure(FileNotFoundError(errno.ENOENT, "No such file", "x"), debug=False) == 1


def test_the_traceback_comes_with_debug_alone(jaxdistill, tmp_path):
    without, with_debug = jaxdistill("report", tmp_path), jaxdistill("report", tmp_path, "--debug")
    assert without.status == with_debug.status == 2
    assert "Traceback" not in without.err
    assert "Traceback" in with_debug.err
    assert with_debug.err.endswith(without.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runn"], "No such command 'runn'"),
        (["run"], "Missing argument"),
        (["run", "a.yaml", "--chek"], "--check"),
        (["predict", "m", "--batch-size", "0"], "--batch-size"),
        (["predict", "m", "--batch-size", "x"], "--batch-size"),
        (["export", "m"], "Missing argument"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(jaxdistill, arguments, message):
    result = jaxdistill(*arguments)
    assert result.status == 2
    assert result.out == ""
    assert re.fullmatch(r"error: [^\n]*\(see `jaxdistill[^\n]* --help`\)\n", result.err)
    assert message in result.err


@pytest.mark.parametrize("command", ["run", "evaluate", "predict", "export", "fetch", "report"])
def test_every_command_has_help_with_an_example(jaxdistill, command):
    result = jaxdistill(command, "-h")
    assert result.status == 0
    assert f"  jaxdistill {command} " in result.out[result.out.index("Example") :]
    assert jaxdistill(command, "--help").out == result.out


def test_no_command_shows_the_help_and_fails(jaxdistill):
    result = jaxdistill()
    assert result.status == 2
    assert "Commands:" in result.err


def test_the_version_is_printed_by_the_module_too():
    import jaxdistill

    done = subprocess.run([sys.executable, "-m", "jaxdistill", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == jaxdistill.__version__ + "\n"


def test_help_and_bad_usage_load_nothing_heavy():
    heavy = "{'jax', 'flax', 'transformers', 'datasets', 'orbax', 'torch', 'numpy', 'grain'}"
    code = (
        "import sys, contextlib\n"
        "from jaxdistill.cli import main\n"
        "for arguments in (['--help'], ['run', '--help'], ['run'], ['nonsense'], ['--version']):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(arguments)\n"
        f"print('loaded', sorted({heavy} & set(sys.modules)))\n"
    )
    done = subprocess_run(code)
    assert "loaded []" in done.stdout, done.stdout + done.stderr


def test_ctrl_c_ends_with_130_and_a_closed_pipe_with_141(tmp_path: Path):
    code = "import sys\nfrom jaxdistill.cli import app as module, main\n{patch}\nmain(['fetch'])\n"
    interrupt = "import builtins\ndef print(*a, **k): raise KeyboardInterrupt\nmodule.print = print"
    done = subprocess_run(code.format(patch=interrupt))
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    read, write = os.pipe()
    os.close(read)
    broken = subprocess.run(
        [sys.executable, "-c", code.format(patch="")], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert (broken.returncode, broken.stderr) == (128 + signal.SIGPIPE, "")
