"""Pictures of how runs went: histories, comparisons and sweeps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from pinnkfac.plots import draw_comparison, draw_history, draw_sweep, save
from pinnkfac.plots.sweep import swept_keys


def panels(figure):
    return figure.axes


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


# -- histories -------------------------------------------------------------------------------------
def history(number=6, **more):
    return [
        {
            "step": 2**k,
            "seconds": 0.5 * 2**k,
            "loss": 4.0**-k,
            "losses": {"heat": 3.0**-k, "_walls": 5.0**-k},
            "relative_l2_error": None if k == 2 else 2.0**-k,
            **{key: value(k) for key, value in more.items()},
        }
        for k in range(number)
    ]


def by_label(axes):
    return {line.get_label(): line.get_data() for line in axes.lines}


def test_a_history_shows_losses_by_term_and_the_error_over_steps_and_seconds():
    figure = draw_history(history(), "heat1d")
    over_steps, over_seconds = panels(figure)
    assert figure.get_suptitle() == "heat1d"
    assert (over_steps.get_xlabel(), over_seconds.get_xlabel()) == ("steps", "seconds")
    assert over_steps.get_ylabel() == "unweighted loss, error"
    labels = ["loss: heat", "loss: _walls", "relative L2 error"]
    assert texts(figure.legends[0]) == labels
    steps = np.array([1, 2, 4, 8, 16, 32])
    for axes, x in ((over_steps, steps), (over_seconds, steps / 2)):
        assert axes.get_yscale() == "log"
        lines = by_label(axes)
        assert list(lines) == labels
        assert np.array_equal(lines["loss: heat"], [x, 3.0 ** -np.arange(6)])
        # The error of the third record is null: the line goes on without it.
        kept = [0, 1, 3, 4, 5]
        assert np.array_equal(lines["relative L2 error"], [x[kept], 2.0 ** -np.arange(6)[kept]])


def test_a_history_shows_damping_length_and_coefficients():
    records = history(
        damping=lambda k: None if k == 0 else 10.0**-k,
        length=lambda k: [1.0, 0.5, 0.0, 0.5, 1.0, 0.25][k],
        coefficients=lambda k: {"kappa": 0.1 * k, "nu": -k},
    )
    figure = draw_history(records, "inverse")
    _, _, damping, length, kappa, nu = panels(figure)
    steps, values = damping.lines[0].get_data()
    assert list(steps) == [2, 4, 8, 16, 32]
    assert np.allclose(values, [1e-1, 1e-2, 1e-3, 1e-4, 1e-5], rtol=1e-14)
    assert (damping.get_ylabel(), damping.get_yscale()) == ("damping", "log")
    assert np.array_equal(length.lines[0].get_ydata(), [1.0, 0.5, 0.5, 1.0, 0.25])
    refused = by_label(length)["not taken"]
    assert list(refused[0]) == [4]
    assert (kappa.get_title(), nu.get_title()) == ("coefficient kappa", "coefficient nu")
    assert np.allclose(kappa.lines[0].get_ydata(), 0.1 * np.arange(6))
    assert list(nu.lines[0].get_ydata()) == [0, -1, -2, -3, -4, -5]
    assert [axes.get_xlabel() for axes in (damping, length, kappa, nu)] == ["steps"] * 4


def test_a_history_may_lack_nearly_everything(tmp_path):
    lone = draw_history(history(1), "one")
    assert {line.get_marker() for line in panels(lone)[0].lines} == {"o"}
    records = [{"step": 1, "seconds": 0.1, "losses": None}, {"step": 2, "length": "long"}]
    bare = draw_history(records, "bare")
    for figure in (bare, draw_history([], "empty")):
        assert [axes.texts[0].get_text() for axes in panels(figure)] == ["no records"] * 2
        save(figure, tmp_path / "history.png")
    zero = draw_history([{"step": 1, "seconds": 0.1, "losses": {"a": 0.0}}], "zero")
    assert len(panels(zero)[0].lines) == 0


# -- comparisons -----------------------------------------------------------------------------------
def test_a_comparison_shows_errors_over_seconds_and_steps():
    runs = {"kfac": history(), "_adam": history(4)}
    figure = draw_comparison(runs)
    over_seconds, over_steps = panels(figure)
    assert (over_seconds.get_xlabel(), over_steps.get_xlabel()) == ("seconds", "steps")
    assert over_seconds.get_ylabel() == "relative L2 error"
    assert texts(figure.legends[0]) == ["kfac", " _adam"]
    assert np.array_equal(by_label(over_steps)[" _adam"], [[1, 2, 8], [1, 0.5, 0.125]])
    assert np.array_equal(by_label(over_seconds)["kfac"][0], [0.5, 1, 4, 8, 16])


def test_runs_without_an_error_are_compared_by_loss():
    unknown = [{**record, "relative_l2_error": None} for record in history()]
    (over_seconds, _) = panels(draw_comparison({"a": unknown, "b": unknown}))
    assert over_seconds.get_ylabel() == "loss"
    assert np.array_equal(by_label(over_seconds)["b"][1], 4.0 ** -np.arange(6))
    mixed = draw_comparison({"known": history(), "unknown": unknown})
    errors, _, losses, _ = panels(mixed)
    assert (errors.get_ylabel(), losses.get_ylabel()) == ("relative L2 error", "loss")
    assert list(by_label(errors)) == ["known"]
    assert list(by_label(losses)) == texts(mixed.legends[0]) == ["known", "unknown"]


# -- sweeps ----------------------------------------------------------------------------------------
@dataclass
class Job:
    overrides: dict[str, str]
    error: float | None = None
    status: str = "finished"
    loss: float | None = None
    pde: str = "heat1d"
    label: str = field(default="")

    def __post_init__(self):
        self.label = " ".join(f"{k}={v}" for k, v in self.overrides.items())


def test_a_swept_number_is_the_axis_and_seeds_are_a_median_with_their_range():
    errors = {"1e-3": (5.0, 1.0, 2.0), "1e-6": (7.0, 9.0, 8.0), "1e-4": (3.0, 3.0, 4.0)}
    jobs = [
        Job({"damping.start": d, "step": step, "seed": str(seed), "threads": "1"}, factor * e)
        for step, factor in (("kfac", 1.0), ("adam", 10.0))
        for d, own in errors.items()
        for seed, e in enumerate(own)
    ]
    figure = draw_sweep(jobs)
    (axes,) = panels(figure)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("damping.start", "relative L2 error")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1e-6", "1e-4", "1e-3"]
    assert texts(figure.legends[0]) == ["step=kfac", "step=adam"]
    for bars, factor in zip(axes.containers, (1.0, 10.0), strict=True):
        line, _, (ranges,) = bars.lines
        assert np.allclose(line.get_data(), [[1e-6, 1e-4, 1e-3], factor * np.array([8, 3, 2])])
        spans = [(segment[0, 1], segment[1, 1]) for segment in ranges.get_segments()]
        assert np.allclose(spans, factor * np.array([(7, 9), (3, 4), (1, 5)]))
    assert figure.get_suptitle() == "several seeds: their median and range"


def test_numbers_within_a_decade_stand_on_a_linear_axis():
    (axes,) = panels(draw_sweep([Job({"n": str(n)}, 1 / n) for n in (16, 32, 64)]))
    assert axes.get_xscale() == "linear"
    assert np.allclose(axes.lines[0].get_data(), [[16, 32, 64], [1 / 16, 1 / 32, 1 / 64]])


def test_swept_names_have_a_dot_for_every_job():
    jobs = [
        Job({"net.widths": widths, "seed": seed}, error)
        for widths, seed, error in (("[8]", "0", 1e-3), ("[8]", "1", 3e-3), ("[16,16]", "0", 1e-5))
    ]
    figure = draw_sweep(jobs)
    (axes,) = panels(figure)
    assert axes.get_xlabel() == "net.widths"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["[8]", "[16,16]"]
    (dots,) = axes.lines
    assert dots.get_linestyle() == "None"
    assert np.allclose(dots.get_data(), [[0, 0, 1], [1e-3, 3e-3, 1e-5]])
    (median,) = axes.collections
    assert np.allclose(median.get_segments()[0][:, 1], 2e-3)


@pytest.mark.parametrize("key", ["damping.start", "step"])
def test_a_job_that_was_interrupted_has_an_open_marker(key):
    values = ("1e-3", "1e-5", "1e-7") if key == "damping.start" else ("kfac", "adam", "sgd")
    statuses = ("finished", "interrupted", "finished")
    jobs = [Job({key: v}, 0.1**i, s) for i, (v, s) in enumerate(zip(values, statuses, strict=True))]
    figure = draw_sweep(jobs)
    (axes,) = panels(figure)
    (early,) = [line for line in axes.lines if line.get_markerfacecolor() == "white"][:-1]
    place = 1e-5 if key == "damping.start" else 1
    assert np.allclose(early.get_data(), [[place], [0.1]])
    assert early.get_color() == axes.lines[0].get_color()
    assert texts(figure.legends[0])[-1] == "interrupted"
    assert not draw_sweep([jobs[0], jobs[2]]).legends


def test_the_picture_of_a_sweep_names_its_problem():
    (axes,) = panels(draw_sweep([Job({"seed": str(i)}, 1e-3) for i in range(2)]))
    assert axes.get_title() == "heat1d"


def test_jobs_without_a_result_are_left_out_and_said():
    jobs = [
        Job({"step": "kfac"}, 1e-3),
        Job({"step": "adam"}, None, "failed"),
        Job({"step": "sgd"}, 1e9, "diverged"),
        Job({"step": "lbfgs"}, None),
    ]
    figure = draw_sweep(jobs)
    (axes,) = panels(figure)
    assert np.allclose(axes.lines[0].get_ydata(), [1e-3])
    assert figure.get_suptitle().replace("\n", " ") == (
        "3 of 4 jobs left out: 1 failed (step=adam), 1 diverged (step=sgd), "
        "1 without an error (step=lbfgs)"
    )
    (axes,) = panels(draw_sweep(jobs[1:3]))
    assert axes.texts[0].get_text() == "no job has a result"


def test_a_sweep_without_an_exact_solution_shows_losses():
    jobs = [Job({"seed": str(seed)}, loss=10.0**-seed) for seed in range(3)]
    (axes,) = panels(draw_sweep(jobs))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("seed", "loss")
    assert np.allclose(axes.lines[0].get_ydata(), [1, 0.1, 0.01])


def test_swept_keys_are_those_that_differ():
    jobs = [Job({"a": "1", "b": "2", "c": "3"}), Job({"a": "1", "b": "5", "c": "4"}), Job({})]
    assert swept_keys(jobs) == ["b", "c"]
