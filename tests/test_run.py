"""What happens to a run that does not go smoothly: divergence, Ctrl-C, a full disk, no memory."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from processes import PATIENCE, start, wait_for
from rich.console import Console

from pinnkfac import Box, Problem, Term, UserError, lap, resume, solve
from pinnkfac.common.errors import counted
from pinnkfac.common.memory import available, check_fits, is_shortage, making
from pinnkfac.common.messages import message_of
from pinnkfac.linearisation.linearisation import TermLosses
from pinnkfac.linearisation.objective import Losses
from pinnkfac.run.checkpoints import Checkpoints
from pinnkfac.run.display import Display, Live, Pace, Plain, make_display
from pinnkfac.run.interruption import Interruption
from pinnkfac.run.progress import Best, Ending, Progress, Stop, ending_of
from pinnkfac.step.base import Report, Request
from pinnkfac.store.run_folder import RunFolder, Unwritable
from pinnkfac.store.stored_run import StoredRun

SMALL = ("net.widths=[8]", "points.scale=0.1", "threads=1", "run.plot=false", "run.quiet=true")
ENDLESS = (*SMALL[:-1], "step.features=0")
"""Nothing solves the problem before a signal comes."""


def read(path):
    return json.loads(path.read_text())


# -- divergence --------------------------------------------------------------------------------


def test_a_run_that_diverges_goes_back_and_goes_on_more_carefully(tmp_path, capsys):
    result = solve(
        "poisson2d", *SMALL, "step=sgd", "step.learning_rate=100", "stop.steps=200",
        folder=tmp_path,
    )  # fmt: skip
    summary = result.summary
    assert 1 <= len(summary["recovered"]) <= 9
    assert "learning rate 1e+02 → 1e+01" in summary["recovered"][0]
    assert "undone, back to the state after" in summary["recovered"][0]
    assert "warning: training diverged: step" in capsys.readouterr().err
    assert math.isfinite(summary["loss"])
    assert all(bool(p.isfinite().all()) for p in result.solution.net.parameters())


def explosive():
    """A residual that overflows as soon as the field grows."""
    box = Box(x=(0, 1))
    return Problem(
        fields=("u",),
        terms=[Term("explosive", box.interior, lambda u, at: u**3 - 2, points=9)],
    )


def test_a_run_that_diverges_again_ends_with_its_best_state(tmp_path):
    result = solve(
        explosive, *SMALL, "step=sgd", "step.learning_rate=1e300", "stop.steps=200",
        "balance=none", "points.gap=null", folder=tmp_path,
    )  # fmt: skip
    assert result.status == "diverged"
    assert "training diverged; 3 more careful attempts did not help" in result.stop_reason
    assert "learning rate" in result.summary["advice"]
    best = result.summary["best"]
    assert f"best state, after {best['step']} steps" in result.stop_reason
    assert result.summary["loss"] == pytest.approx(best["loss"], rel=1e-12)
    stored = StoredRun.open(tmp_path)
    for key, value in stored.checkpoint("best")["net"].items():
        torch.testing.assert_close(value, result.solution.net.state_dict()[key], rtol=0, atol=0)


@pytest.mark.parametrize("step", ["kfac", "kfac_cg", "lbfgs", "adam"])
def test_every_step_recovers_from_the_parameters_that_it_is_given(step):
    """NaN in the parameters, put there in the middle of a run, costs steps and nothing else."""
    from pinnkfac.config.compose import compose
    from pinnkfac.config.pde_file import find
    from pinnkfac.run.assembly import assemble
    from pinnkfac.run.loop import run

    found = find("poisson2d")
    config = compose("poisson2d", {}, [*SMALL, f"step={step}"])
    parts = assemble(config, found.problem({}))

    def poison(progress):
        if progress.step == 4:
            if hasattr(parts.stepper, "parameters"):
                parts.stepper.parameters[0].fill_(math.nan)
            parts.system.set_parameters([v * math.nan for v in parts.system.get_parameters()])

    progress, ending = run(
        parts.system, parts.stepper, parts.source, Stop(seconds=None, steps=12), parts.balance,
        poison,
    )  # fmt: skip
    assert ending.status == "finished" and progress.step == 12
    assert len(progress.recovered) == 1
    assert math.isfinite(parts.system.loss(parts.source.current))
    assert progress.best.loss <= progress.loss


# -- where a run is ----------------------------------------------------------------------------


def report(loss, length=1.0, reached=math.nan, **request):
    return Report(
        [],
        TermLosses([loss], [loss]),
        loss,
        length=length,
        reached=reached,
        request=Request(**request),
    )


def test_the_best_state_is_the_one_that_a_step_of_the_lowest_loss_began_from():
    now = Progress(attempts=2, rejected=3)
    for loss, attempts in ((4.0, 0), (5.0, 0), (3.9, 0), (1.0, 0)):
        now = now.after(report(loss), loss, loss, [torch.tensor(loss)], seconds=loss)
        assert now.attempts == attempts and now.rejected == 0
    assert (now.step, now.seconds, now.loss, now.first_loss) == (4, 1.0, 1.0, 4.0)
    assert (now.best.step, now.best.loss, float(now.best.parameters[0])) == (3, 1.0, 1.0)
    tried = replace(now, attempts=2)
    assert tried.after(report(0.95), 0.95, 0.95, [], 2.0).attempts == 2  # better, but not clearly
    assert tried.after(report(0.8), 0.8, 0.8, [], 2.0).attempts == 0


def test_a_step_that_begins_anew_leaves_no_best_state_and_nothing_that_was_reached():
    now = Progress(step=6, attempts=2).after(
        report(1.0, length=0.0, reached=0.5), 1.0, 1.0, [], 1.0
    )
    assert (now.reached, now.rejected) == (0.5, 1)
    now = now.after(report(1.0, length=0.0, anew=True, note="why"), 1.0, 1.0, [], 2.0)
    assert (now.best.loss, now.best.step, now.reached) == (math.inf, 8, math.inf)
    assert (now.attempts, now.rejected, now.notes) == (0, 0, ["step 8: why"])


def test_new_points_judge_the_best_state_again_after_some_steps():
    best = Best(loss=1.0, step=3, judged=3, parameters=[torch.ones(1)])
    asked = []

    def loss_at(parameters):
        asked.append(parameters)
        return Losses(written=70.0, relative=7.0, trained=1.0)

    early = Progress(step=12, drawn=2, best=best).onto(3, loss_at)
    assert early.best == best and early.drawn == 3 and asked == []
    same = Progress(step=13, drawn=3, best=best).onto(3, loss_at)
    assert same.best == best and asked == []
    late = Progress(step=13, drawn=2, best=best).onto(3, loss_at)
    assert late.best == replace(best, loss=7.0, written=70.0, judged=13) and asked == [
        best.parameters
    ]


@pytest.mark.parametrize(
    ("first", "loss", "words"),
    [
        (2.0, 1.9e6, ""),
        (2.0, 2.1e6, "the loss is 2.1e+06 after 2.0e+00 at the start"),
        (0.0, 1e-3, ""),  # of a start that was a solution
        (math.inf, 1e9, ""),
        (math.inf, math.nan, "the loss is no longer finite"),
    ],
)
def test_a_divergence_is_a_loss_that_is_not_finite_or_far_above_that_at_the_start(
    first, loss, words
):
    assert Progress(first_loss=first).divergence(report(loss), loss) == words


def test_attempts_to_recover_are_counted_and_end():
    now = Progress(step=8, best=Best(loss=1.0, step=5, parameters=[torch.ones(1)]))
    for attempt in (1, 2, 3):
        now, ending = now.undone("it grew", "slower")
        assert ending is None and now.attempts == attempt
    assert now.recovered == 3 * ["step 9 undone, back to the state after 5 steps; slower"]
    now, ending = now.undone("it grew", "slower")
    assert ending.status == "diverged" and ending.reason.startswith("it grew in step 9: training")
    assert len(now.recovered) == 3


# -- reasons to stop ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "stop", "words"),
    [
        (Progress(step=5), Stop(steps=5), ("5 steps done (stop.steps)", "stop.steps=10")),
        (
            Progress(step=3, seconds=60.5),
            Stop(),
            ("60 seconds passed (stop.seconds)", "stop.seconds=120"),
        ),
        (Progress(step=2, loss=1e-9), Stop(loss=1e-8), ("loss below 1e-08", "")),
        (Progress(step=40, loss=1.0, rejected=30), Stop(), ("30 steps in a row", "points.scale=2")),
    ],
)
def test_every_stop_says_why_and_what_to_try(progress, stop, words):
    ending = ending_of(progress, stop)
    assert ending is not None and ending.status == "finished"
    assert words[0] in ending.reason and words[1] in ending.advice
    assert ending_of(Progress(step=1, loss=1.0), Stop()) is None


def test_a_start_that_took_all_the_time_is_followed_by_a_step():
    assert ending_of(Progress(seconds=61.0), Stop()) is None


def test_neither_a_loss_nor_rejected_steps_end_a_run_that_has_not_reached_all_of_its_domain():
    stop = Stop(loss=1e-3, rejections=5)
    for now in (Progress(step=9, loss=1e-4), Progress(step=9, loss=1.0, rejected=5)):
        assert ending_of(now, stop) is not None
        assert ending_of(replace(now, part=0.5), stop) is None


def test_an_error_that_is_small_enough_stops_before_all_else_and_whoever_asks_at_last():
    now, stop = Progress(step=5, loss=1.0), Stop(steps=5, error=1e-3)
    assert "relative L2 error below 0.001" in ending_of(now, stop, 9e-4, "Ctrl-C").reason
    assert "5 steps done" in ending_of(now, stop, 2e-3, "Ctrl-C").reason
    asked = ending_of(now, Stop(), None, "Ctrl-C")
    assert (asked.status, asked.reason) == ("interrupted", "Ctrl-C after 5 steps")


# -- Ctrl-C ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name", "code"), [
    (signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143),
])  # fmt: skip
def test_one_signal_stops_after_the_step_and_saves(tmp_path, number, name, code):
    process = start("solve", "poisson2d", *ENDLESS, "run.dir=run", cwd=tmp_path)
    wait_for(tmp_path / "run/metrics.jsonl", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert f"{name}: stopping after this step" in err and "Traceback" not in err
    summary = read(tmp_path / "run/summary.json")
    assert summary["status"] == "interrupted"
    assert f"stopped: {name} after {counted(summary['steps'], 'step')}\n" in out
    assert "python -m pinnkfac resume run" in out
    steps = summary["steps"] + 3
    assert resume(tmp_path / "run", f"stop.steps={steps}").summary["steps"] == steps


def test_a_second_signal_stops_at_once():
    """The first is noted, the second is a KeyboardInterrupt; handlers are put back."""
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        assert interruption.by == ""
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.by == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_are_left_alone_in_other_threads():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with Interruption():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_signal_that_the_parent_ignores_stays_ignored(tmp_path):
    """As of nohup, or of a background job of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # children inherit it
    try:
        process = start(
            "solve", "poisson2d", *SMALL[:-1], "stop.steps=30", "run.dir=run", cwd=tmp_path
        )
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(tmp_path / "run/metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0 and err == ""
    assert read(tmp_path / "run/summary.json")["steps"] == 30


def test_ctrl_c_ends_a_sweep_with_its_table(tmp_path):
    process = start("solve", "poisson2d", "-m", *ENDLESS, "seed=0,1", "run.dir=sweep", cwd=tmp_path)
    wait_for(tmp_path / "sweep/0/metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "Traceback" not in err
    assert read(tmp_path / "sweep/0/summary.json")["status"] == "interrupted"
    assert not (tmp_path / "sweep/1/problem.json").exists()
    assert (tmp_path / "sweep/sweep.csv").exists() and "interrupted" in out


def test_a_signal_before_the_first_step_says_nothing_of_what_was_saved(tmp_path):
    slow = "import time\nfrom pathlib import Path\nPath('here').write_text('.')\ntime.sleep(60)\n"
    (tmp_path / "slow.py").write_text(slow)
    process = start("solve", "slow.py", *SMALL[:-1], "run.dir=run", cwd=tmp_path)
    wait_for(tmp_path / "here", process)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert err == "error: stopped at once\n" and not (tmp_path / "run").exists()


# -- a terminal --------------------------------------------------------------------------------


def in_terminal(*arguments, cwd, keys=None):
    """What the command writes to a terminal, and its exit code; ``keys`` are pressed as soon as a
    table is there."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.environ.update(TERM="xterm", COLUMNS="100", LINES="40")
        os.execv(sys.executable, [sys.executable, "-m", "pinnkfac", *arguments])
    written = b""
    with suppress(OSError):  # what reading ends with, where the other side is closed
        while piece := os.read(terminal, 65536):
            written += piece
            if keys and b"a step" in written:
                os.write(terminal, keys)
                keys = None
    status = os.waitpid(pid, 0)[1]
    os.close(terminal)
    return written.decode(), os.waitstatus_to_exitcode(status)


def on_screen(written):
    """The lines that a terminal shows, moving the cursor as told."""
    rows, row, column, i = [[]], 0, 0, 0
    while i < len(written):
        match = re.match(r"\x1b\[([?0-9;]*)([A-Za-z])", written[i:])
        if match:
            i += match.end()
            if match[2] == "A":
                row = max(0, row - int(match[1] or 1))
            elif match[2] == "K":
                rows[row] = []
            continue
        sign, i = written[i], i + 1
        if sign == "\r":
            column = 0
        elif sign == "\n":
            row += 1
            rows += [[] for _ in range(row + 1 - len(rows))]
        else:
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = sign
            column += 1
    return ["".join(line).rstrip() for line in rows]


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.mark.parametrize("keys", [None, b"\x03"], ids=["to the end", "Ctrl-C"])
def test_a_terminal_is_left_as_it_was_with_the_table_above_the_last_lines(tmp_path, keys):
    limit = "stop.steps=3" if keys is None else "stop.seconds=30"
    for words in (
        ("solve", "poisson2d", *ENDLESS, limit, "run.dir=run"),
        ("resume", "run", "stop.steps=5" if keys is None else "stop.seconds=40"),
    ):
        written, code = in_terminal(*words, cwd=tmp_path, keys=keys)
        assert code == (0 if keys is None else 130), written
        assert written.count(HIDE) == written.count(SHOW) == 1
        assert written.endswith("\n")
        lines = [line for line in on_screen(written) if line]
        assert sum("seconds" in line and "damping" in line for line in lines) == 1, lines
        last = [line.split()[0] for line in lines].index("stopped:")
        assert "a step" in lines[last - 1] and ("left" in lines[last - 1]) == (keys is not None)
        assert lines[-1].startswith("written to run"), lines
        assert not any("a step" in line or "─" in line for line in lines[last:]), lines


# -- the disk ----------------------------------------------------------------------------------


LIMITED = """
import resource, signal, sys
from pinnkfac.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_costs_neither_the_run_nor_what_was_written(tmp_path):
    """Files of more than 20 kB are refused: checkpoints, but not the small ones."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "solve", "poisson2d", "net.widths=[64,64]",
         "points.scale=0.2", "threads=1", "run.plot=false", "run.checkpoint=0", "stop.steps=5",
         "run.dir=run"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("the run goes on") == 1
    assert "cannot be written (File too large)" in done.stderr
    assert "5 steps done" in done.stdout and "relative L2 error" in done.stdout
    assert read(tmp_path / "run/summary.json")["steps"] == 5
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_refused_file_leaves_the_old_one(tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        folder.write_checkpoint({"net": torch.zeros(3)})
        before = (folder.path / "checkpoint.pt").read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            with pytest.raises(Unwritable, match=r"checkpoint\.pt cannot be written"):
                folder.write_checkpoint({"net": torch.zeros(3000)})
            with pytest.raises(Unwritable, match=r"metrics\.jsonl"):
                folder.append_metrics({"words": "x" * 3000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (folder.path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("path", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_is_refused_before_training(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        solve("poisson2d", *SMALL, "stop.steps=2", folder=tmp_path / path)


def test_checkpoints_come_in_time_and_never_take_much_of_it(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pinnkfac.run.checkpoints.time.monotonic", lambda: now[0])
    written = []

    class Parts:
        def state_dict(self, progress):
            now[0] += 2.0  # seconds that writing takes
            written.append(now[0])
            return {}

    with RunFolder(tmp_path) as folder:
        keep = Checkpoints(folder, Parts(), {}, 10.0, pytest.fail)
        for second in range(0, 120):
            now[0] = max(now[0], float(second))
            keep(Progress(step=second))
    assert written[0] == 12.0
    assert written[1] >= 12.0 + 20 * 2.0
    assert len(written) == 3


# -- memory ------------------------------------------------------------------------------------


def test_a_shortage_names_the_array_and_the_setting():
    said = pytest.raises(UserError, match=r"memory for the ark \(.*GiB at once\): lower its size")
    with said, making("the ark", "its size"):
        torch.empty(2**55)
    with pytest.raises(RuntimeError, match="another"), making("the ark", "its size"):
        raise RuntimeError("another mistake")
    with pytest.raises(UserError, match=r"the ark would take 1e\+06 GiB.*lower its size"):
        check_fits(1e6 * 2**30, "the ark", "its size")
    check_fits(1.0, "a boat", "nothing")
    assert is_shortage(MemoryError()) and not is_shortage(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("overrides", "culprits"),
    [
        (("points.interior=1000000000000", "step=kfac"), ("term 'inside'", "points.interior")),
        (("net.widths=[4000000,4000000]",), ("the weights", "net.widths")),
    ],
)
def test_what_cannot_fit_is_said_before_it_is_tried(overrides, culprits):
    def poisson():
        box = Box(x=(0, 1), y=(0, 1))
        return Problem(
            fields=("u",), terms=[Term("inside", box.interior, lambda u, at: lap(u) - 1)]
        )

    with pytest.raises(UserError) as found:
        solve(poisson, "threads=1", "stop.steps=1", *overrides)
    assert all(culprit in str(found.value) for culprit in culprits)


def test_a_message_is_one_line_whatever_went_wrong():
    assert message_of(UserError("a\n  b")) == "a b"
    assert "points.scale" in message_of(MemoryError("no room"))
    assert "GiB are free" in message_of(MemoryError("no room"))
    cuda = message_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert "points.scale" in cuda and "are free" not in cuda  # those of the host
    assert "unexpected KeyError" in message_of(KeyError("x")) and "debug=true" in message_of(
        KeyError("x")
    )


# -- what is shown -----------------------------------------------------------------------------


def record(step, **more):
    return {
        "step": step, "seconds": 1.5, "relative_residuals": {"heat": 1e-3, "walls": 2.5e-4},
        "relative_l2_error": 3.5e-2, "length": 0.5, "damping": 1e-6, **more,
    }  # fmt: skip


def test_a_plain_line_has_all_that_a_user_watches(capsys):
    display = Plain()
    display.show(record(12, coefficients={"kappa": 0.25}), Pace(0.02, 90.0))
    line = capsys.readouterr().out
    for part in (
        "step     12", "1.5 s", "residuals heat 1.0e-03, walls 2.5e-04",
        "relative L2 error 3.500e-02", "length 0.5", "damping 1e-06", "kappa 0.25",
        "20 ms a step", "90 s left",
    ):  # fmt: skip
        assert part in line
    display.show(record(13, damping=None, relative_l2_error=None), Pace(0.02, None))
    line = capsys.readouterr().out
    assert "damping –" in line and "error" not in line and "left" not in line
    Display().show(record(1), Pace(1, 1))
    Display().say("nothing")
    assert capsys.readouterr().out == ""


def shown(width, *records):
    out = io.StringIO()
    display = Live(Console(file=out, force_terminal=True, width=width, color_system=None))
    for one in records:
        display.show(one, Pace(0.02, 5.0))
    display.say("a line that stays")
    display.close()
    return out.getvalue()


def test_the_live_table_keeps_powers_of_two_and_the_present_step():
    text = shown(120, *(record(step) for step in (1, 2, 3, 4, 7)))
    last = text[text.rindex("seconds") :]
    rows = [line.split()[0] for line in last.splitlines() if line.strip()[:1].isdigit()]
    assert rows[:4] == ["1", "2", "4", "7"]
    assert "heat" in text and "rel. L2 error" in text and "20 ms a step  5 s left" in text
    assert "a line that stays" in text


def test_a_narrow_terminal_gets_fewer_columns():
    text = shown(60, record(1))
    assert "walls" not in text and "residual" in text


def test_a_pipe_gets_plain_lines_and_quiet_gets_none():
    assert type(make_display(quiet=False)) is Plain
    assert type(make_display(quiet=True)) is Display


def test_an_output_that_has_gone_does_not_end_the_run(tmp_path):
    """head closes the pipe after a line; a device that is full refuses the first."""
    words = " ".join(SMALL[:-1])
    run = f"{sys.executable} -m pinnkfac solve poisson2d {words} stop.steps=9"
    for number, end in enumerate(("| head -1", "> /dev/full")):
        line = f"{run} run.dir=run{number} {end}"
        done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr
        assert read(tmp_path / f"run{number}/summary.json")["steps"] == 9


def test_an_encoding_without_greek_does_not_end_the_run(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "pinnkfac", "solve", "poisson2d", *SMALL[:-1], "step=adam",
         "stop.steps=3", "run.dir=run"],
        cwd=tmp_path, capture_output=True, timeout=PATIENCE,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert read(tmp_path / "run/summary.json")["steps"] == 3


@pytest.mark.parametrize(
    ("pace", "text"),
    [
        (Pace(2e-5, None), "20 µs a step"),
        (Pace(0.5, 100), "500 ms a step  100 s left"),
        (Pace(3, 600), "3 s a step  10 min 0 s left"),
        (Pace(3, 10000), "3 s a step  2 h 46 min left"),
    ],
)
def test_durations_are_readable(pace, text):
    assert str(pace) == text


def test_an_ending_without_advice_has_none():
    assert Ending("finished", "because").advice == ""


def test_the_memory_of_a_gpu_is_not_that_of_its_host(monkeypatch):
    gpu = torch.device("cuda", 1)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (device.index * 2**30, 2**40))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: device.index * 7 * 2**30)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: device.index * 5 * 2**30)
    assert available(gpu) == 3 * 2**30
    with pytest.raises(UserError, match=r"4 GiB, but 3 GiB are free: lower net\.widths"):
        check_fits(2**32, "a matrix", "net.widths", gpu)
