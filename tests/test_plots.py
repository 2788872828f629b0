"""Pictures of solutions: what stands in their panels, axes and lines, and in the files."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise, product

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from regions import Quarter

from pinnkfac import Box, UserError
from pinnkfac.domain.domain import around
from pinnkfac.plots import animate, animation, draw_solution, save, saving
from pinnkfac.plots.panels import thinned
from pinnkfac.plots.style import COLOURS, STYLE, exponent, line_style, styled
from pinnkfac.problem.signature import Signature


class Known:
    """A solution that is a function of the coordinates by name, plus a constant error."""

    def __init__(self, signature, *functions, error=0.0):
        self.signature = signature
        self.functions = functions
        self.error = error

    def exact(self, points):
        named = dict(zip(self.signature.coordinates.names, points.unbind(-1), strict=True))
        return torch.stack([f(**named) + 0 * points[:, 0] for f in self.functions], -1)

    def __call__(self, points):
        return self.exact(points) + self.error

    def at(self, k=0, **coordinates):
        """The value of a field at one point, one point at a time."""
        names = self.signature.coordinates.names
        point = torch.tensor([[float(coordinates[n]) for n in names]], dtype=torch.float64)
        return float(self(point)[0, k])


def line_problem(error=2e-8):
    signature = Signature(("u",), Box(x=(0, 2)), units={"x": "m", "u": "K"})
    return Known(signature, lambda x: torch.sin(3 * x), error=error)


def heat():
    return Known(
        Signature(("u",), Box(t=(0, 2), x=(-1, 1)), units={"t": "s"}),
        lambda t, x: torch.exp(-t) * torch.sin(x),
        error=1e-6,
    )


def flow(box=None, error=3e-5):
    return Known(
        Signature(("u", "v", "p"), box or Box(x=(0, 2), y=(0, 1)), vectors={"wind": ("u", "v")}),
        lambda x, y, **_: torch.sin(x) * y,
        lambda x, y, **_: x * x - y,
        lambda x, y, **_: x + 2 * y,
        error=error,
    )


def panels(figure):
    return figure.axes


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def image_of(axes):
    (image,) = axes.images
    return image


def values_of(axes):
    """The data of a map as [first axis, second axis]."""
    return np.asarray(image_of(axes).get_array()).T


def bar_label(axes):
    return [child.get_ylabel() for child in axes.child_axes]


# -- one coordinate --------------------------------------------------------------------------------
def test_one_coordinate_is_drawn_as_lines_with_units():
    known = line_problem()
    figure = draw_solution(known, known.exact)
    left, right = panels(figure)
    assert (left.get_xlabel(), left.get_ylabel()) == ("x [m]", "u [K]")
    own, exact = left.lines
    assert texts(left.get_legend()) == ["solution", "exact"]
    x = own.get_xdata()
    assert (x[0], x[-1]) == (0.0, 2.0)
    assert np.allclose(own.get_ydata(), [known.at(x=value) for value in x], rtol=1e-14)
    assert np.allclose(exact.get_ydata(), np.sin(3 * x), rtol=1e-13)
    assert exact.get_linestyle() == "--"
    error = right.lines[-1]
    assert np.allclose(error.get_ydata(), 2e-8, rtol=1e-7)
    relative = math.sqrt(sum(2e-8**2 for _ in x) / sum(math.sin(3 * v) ** 2 for v in x))
    assert right.get_title() == f"relative L2 error {relative:.1e}"


def test_the_scale_of_an_error_stands_in_its_label():
    known = line_problem()
    figure = draw_solution(known, known.exact)
    figure.draw_without_rendering()
    axis = panels(figure)[1].yaxis
    assert axis.label.get_text() == "u − exact [$10^{-8}$ K]"
    shown = [tick.label1.get_text().replace("−", "-") for tick in axis.get_major_ticks()]
    assert np.allclose([float(s) * 1e-8 for s in shown], axis.get_ticklocs(), rtol=1e-3, atol=1e-16)


def test_without_an_exact_solution_there_is_no_error():
    (axes,) = panels(draw_solution(line_problem()))
    assert len(axes.lines) == 1
    assert axes.get_legend() is None


def test_an_exact_solution_that_is_zero_has_no_relative_error():
    known = Known(Signature(("u",), Box(x=(0, 1))), lambda x: 0 * x, error=-4e-3)
    assert panels(draw_solution(known, known.exact))[1].get_title() == "largest error 0.004"


# -- one coordinate of space, and time -------------------------------------------------------------
def test_space_and_time_are_maps_and_lines_at_five_times():
    known = heat()
    own, exact, error, lines = panels(draw_solution(known, known.exact))
    for axes in (own, exact, error):
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("t [s]", "x")
    assert (own.get_title(), exact.get_title()) == ("u", "exact u")
    data = values_of(own)
    t, x = np.linspace(0, 2, data.shape[0]), np.linspace(-1, 1, data.shape[1])
    for i, j in product(range(0, len(t), 40), range(0, len(x), 40)):
        assert data[i, j] == pytest.approx(known.at(t=t[i], x=x[j]), rel=1e-13)
        assert values_of(exact)[i, j] == pytest.approx(math.exp(-t[i]) * math.sin(x[j]), abs=1e-15)
    assert np.allclose(values_of(error), 1e-6, rtol=1e-8)
    assert image_of(own).get_clim() == image_of(exact).get_clim()
    low, high = image_of(error).get_clim()
    assert low == -high
    assert bar_label(error) == ["u − exact [$10^{-6}$]"]
    assert texts(lines.get_legend()) == ["t = 0", "t = 0.5", "t = 1", "t = 1.5", "t = 2", "exact"]
    assert len(lines.lines) == 10
    for line, time in zip(lines.lines, (0, 0.5, 1, 1.5, 2), strict=False):
        x = line.get_xdata()[::50]
        assert np.allclose(line.get_ydata()[::50], [known.at(t=time, x=v) for v in x], rtol=1e-13)


def test_a_system_has_a_row_of_panels_for_each_field():
    known = Known(
        Signature(("u", "v"), Box(t=(0, 1), x=(0, 1))), lambda t, x: t + x, lambda t, x: t * x
    )
    figure = draw_solution(known, known.exact)
    titles = [axes.get_title() for axes in panels(figure)]
    assert titles[:2] == ["u", "exact u"]
    assert titles[4:6] == ["v", "exact v"]
    rows = [axes.get_subplotspec().rowspan.start for axes in panels(figure)]
    assert rows == [0, 0, 0, 0, 1, 1, 1, 1]


# -- two coordinates of space ----------------------------------------------------------------------
@pytest.mark.parametrize("height", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("width", [1.0, 0.25])
def test_numbers_below_a_narrow_map_do_not_touch(width, height):
    box = Box(x=(0, width), y=(0, width * height))
    known = Known(Signature(("u",), box), lambda x, y: x * y, error=1e-6)
    figure = draw_solution(known, known.exact)
    with styled():
        figure.draw_without_rendering()
        for axes in panels(figure)[:3]:
            low, high = axes.get_xlim()
            ticks = axes.xaxis.get_major_ticks()
            shown = [t.label1.get_window_extent() for t in ticks if low <= t.get_loc() <= high]
            assert len(shown) >= 2
            for left, right in pairwise(shown):
                assert right.x0 - left.x1 > 0.3 * left.height


def test_a_unit_of_one_is_no_unit():
    """In labels of pictures and tables; the problem keeps it."""
    signature = Signature(("u",), Box(x=(0, 2)), units={"x": "1", "u": "1"})
    known = Known(signature, lambda x: torch.sin(3 * x), error=2e-8)
    values, errors = panels(draw_solution(known, known.exact))
    assert (values.get_xlabel(), values.get_ylabel()) == ("x", "u")
    assert errors.get_ylabel() == "u − exact [$10^{-8}$]"
    assert signature.label("u") == "u" and signature.as_dict()["units"] == {"x": "1", "u": "1"}


def test_a_vector_is_a_map_of_its_magnitude_with_arrows():
    known = flow()
    figure = draw_solution(known, known.exact)
    titles = [axes.get_title() for axes in panels(figure)]
    assert titles[0::3] == ["u", "v", "p", "|wind|"]
    assert titles[1::3] == ["exact u", "exact v", "exact p", "exact |wind|"]
    own, _, error = panels(figure)[9:]
    data = values_of(own)
    x, y = np.linspace(0, 2, data.shape[0]), np.linspace(0, 1, data.shape[1])
    for i, j in ((0, 0), (40, 100), (160, 7)):
        u, v = known.at(0, x=x[i], y=y[j]), known.at(1, x=x[i], y=y[j])
        assert data[i, j] == pytest.approx(math.hypot(u, v), rel=1e-13)
    (quiver,) = own.collections
    places = thinned((x, y))
    at = [(a, b) for b in y[places[1]] for a in x[places[0]]]
    assert np.allclose(quiver.get_offsets(), at)
    assert np.allclose(quiver.U, [known.at(0, x=a, y=b) for a, b in at], rtol=1e-13)
    assert np.allclose(quiver.V, [known.at(1, x=a, y=b) for a, b in at], rtol=1e-13)
    assert np.allclose(values_of(error), 3e-5 * math.sqrt(2), rtol=1e-8)
    assert image_of(error).get_clim()[0] == 0.0
    assert bar_label(error) == ["|difference| [$10^{-5}$]"]
    assert own.get_aspect() == 1.0


def test_two_dimensions_and_time_are_maps_at_three_times_on_one_scale():
    known = Known(
        Signature(("u",), Box(t=(0, 1), x=(0, 1), y=(0, 3)), units={"u": "K"}),
        lambda t, x, y: (1 - t) * x * y,
        error=1e-3,
    )
    axes = panels(draw_solution(known, known.exact))
    assert len(axes) == 9
    assert [a.get_title() for a in axes[:3]] == [f"u [K], t = {t}" for t in ("0", "0.5", "1")]
    for row in (axes[:3], axes[3:6], axes[6:]):
        assert len({image_of(a).get_clim() for a in row}) == 1
        assert [len(a.child_axes) for a in row] == [0, 0, 1]
    data = values_of(axes[1])
    x, y = np.linspace(0, 1, data.shape[0]), np.linspace(0, 3, data.shape[1])
    assert data[30, 50] == pytest.approx(0.5 * x[30] * y[50] + 1e-3, rel=1e-13)
    assert axes[7].get_title().startswith("t = 0.5: relative L2 error ")
    assert axes[8].get_title() == "t = 1: largest error 0.001"
    assert [a.get_xlabel() for a in axes] == [""] * 6 + ["x"] * 3


# -- more coordinates ------------------------------------------------------------------------------
def test_many_coordinates_are_a_slice_and_the_diagonal_and_it_is_said():
    known = Known(
        Signature(("u",), Box(t=(0, 1), x=(0, 2), y=(1, 2), z=(-1, 5), w=(0, 4))),
        lambda t, x, y, z, w: t + x * y + z * w,
        error=1e-4,
    )
    figure = draw_solution(known, known.exact)
    note = figure.get_suptitle()
    assert note.startswith("maps: slice at t = 0.5, z = w = 2;")
    assert "all 5 coordinates" in note
    own, _, _, lines = panels(figure)
    assert (own.get_xlabel(), own.get_ylabel()) == ("x", "y")
    data = values_of(own)
    x, y = np.linspace(0, 2, data.shape[0]), np.linspace(1, 2, data.shape[1])
    assert data[10, 90] == pytest.approx(known.at(t=0.5, x=x[10], y=y[90], z=2, w=2), rel=1e-13)
    share, along = lines.lines[0].get_data()
    for s, value in list(zip(share, along, strict=True))[::57]:
        point = {"t": s, "x": 2 * s, "y": 1 + s, "z": -1 + 6 * s, "w": 4 * s}
        assert value == pytest.approx(known.at(**point), rel=1e-12)


def test_the_arrows_of_a_slice_are_the_components_in_its_plane():
    known = Known(
        Signature(("w", "v", "u"), Box(x=(0, 1), y=(0, 1), z=(0, 1)), vectors={"b": "uvw"}),
        lambda x, y, z: 7 + 0 * x,
        lambda x, y, z: 2 + 0 * x,
        lambda x, y, z: 1 + 0 * x,
    )
    figure = draw_solution(known)
    maps = [axes for axes in panels(figure) if axes.collections]
    assert [axes.get_title() for axes in maps] == ["|b|"]
    (quiver,) = maps[0].collections
    assert set(quiver.U) == {1.0}
    assert set(quiver.V) == {2.0}
    assert np.allclose(values_of(maps[0]), math.sqrt(54))


# -- what may go wrong -----------------------------------------------------------------------------
def test_an_exact_solution_that_fails_is_left_out_and_said():
    def exact(points):
        raise UserError("solution is NaN or infinite at ('x',) = [0.0]")

    figure = draw_solution(line_problem(), exact)
    assert len(panels(figure)) == 1
    assert figure.get_suptitle() == (
        "without the exact solution: solution is NaN or infinite at ('x',) = [0.0]"
    )


def test_a_net_that_left_the_finite_numbers_is_drawn(tmp_path):
    known = Known(Signature(("u",), Box(x=(0, 1), y=(0, 1))), lambda x, y: torch.log(x - 0.5))
    save(draw_solution(known), tmp_path / "u.png")
    nothing = Known(known.signature, lambda x, y: x * math.nan)
    save(draw_solution(nothing, known.exact), tmp_path / "nan.png")


def test_drawing_leaves_no_trace_in_matplotlib():
    before = dict(matplotlib.rcParams)
    draw_solution(line_problem())
    animation.first_frame(animation.slice_over_time(heat(), heat().exact, 2))
    assert dict(matplotlib.rcParams) == before
    code = "import sys, pinnkfac.plots; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_box_around_a_region_of_a_users_own_is_no_makeshift():
    known = Known(Signature(("u",), around([Quarter()])), lambda x, y: x * y)
    assert draw_solution(known).get_suptitle() == ""


# -- files -----------------------------------------------------------------------------------------
def test_pictures_are_small_and_keep_their_colours(tmp_path):
    path = save(draw_solution(flow(), flow().exact), tmp_path / "u.png")
    assert path.stat().st_size < 200_000
    stored = np.asarray(Image.open(path).convert("RGB")).astype(int)
    with styled():  # a figure of its own: panels move a little where one is drawn again
        figure = draw_solution(flow(), flow().exact)
        full = np.asarray(saving.drawn_image(figure, saving.dots_per_inch(figure))).astype(int)
    difference = np.abs(stored - full).max(-1)
    assert np.percentile(difference, 90) <= 6 and difference.max() <= 16
    assert stored[0].tolist() == [[255, 255, 255]] * stored.shape[1]


def test_the_edge_of_a_panel_has_the_colours_of_what_meets_there(tmp_path):
    """The frame of a map is grey where it meets the map: no colour of a line comes near it."""
    figure = draw_solution(flow())
    stored = np.asarray(Image.open(save(figure, tmp_path / "u.png")).convert("RGB")).astype(int)
    orange = np.abs(stored - np.array([230, 159, 0])).max(-1) < 12
    assert not orange.any()


@pytest.mark.parametrize(
    ("ending", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89")]
)
def test_the_ending_says_the_format(tmp_path, ending, start):
    path = save(draw_solution(line_problem()), tmp_path / f"u.{ending}")
    assert path.read_bytes().startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("u.jpg", r"u\.jpg has the ending '\.jpg'.*\.png, \.pdf, \.svg"),
        ("u", r"u has no ending"),
        ("nowhere/u.png", r"nowhere/u\.png cannot be written .*nowhere"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        save(draw_solution(line_problem()), tmp_path / name)


def test_a_label_that_cannot_be_set_keeps_the_old_file(tmp_path):
    path = tmp_path / "u.png"
    path.write_text("old")
    known = Known(Signature(("u",), Box(x=(0, 1)), units={"u": r"$\nonsense{$"}), lambda x: x)
    with pytest.raises(UserError, match="label of the picture cannot be set"):
        save(draw_solution(known), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["u.png"]


# -- animations ------------------------------------------------------------------------------------
def test_an_animation_has_one_frame_for_each_time(tmp_path):
    path = animate(heat(), tmp_path / "u.gif", heat().exact, frames=4)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.format) == (4, "GIF")
        pictures = []
        for i in range(4):
            gif.seek(i)
            pictures.append(np.asarray(gif.convert("RGB")).copy())
            assert pictures[-1][0, 0].tolist() == [255, 255, 255]
    assert all(not np.array_equal(a, b) for a, b in pairwise(pictures))


def test_an_animation_is_drawn_in_the_style_of_all_pictures(tmp_path, monkeypatch):
    """Whatever the user's own is, from the first figure to the last frame that is written."""
    seen = []
    drawn = animation.drawn_image
    monkeypatch.setattr(
        animation,
        "drawn_image",
        lambda *given: [seen.append(dict(matplotlib.rcParams)), drawn(*given)][1],
    )
    with matplotlib.rc_context({"axes.titlesize": 30, "lines.linewidth": 9, "font.size": 25}):
        figure, _ = animation.first_frame(animation.slice_over_time(heat(), None, 2))
        animate(heat(), tmp_path / "u.gif", heat().exact, frames=2)
    (ticks,) = {label.get_fontsize() for label in panels(figure)[0].get_xticklabels()}
    assert ticks == STYLE["xtick.labelsize"]
    assert panels(figure)[0].xaxis.label.get_fontsize() == 10, "matplotlib's own"
    assert seen and all(p["lines.linewidth"] == STYLE["lines.linewidth"] for p in seen)


def test_frames_show_the_fields_of_their_time_on_one_scale():
    known = flow(Box(t=(0, 1), x=(0, 2), y=(0, 1)))
    moving = Known(known.signature, *[lambda f=f, **at: at["t"] * f(**at) for f in known.functions])
    sliced = animation.slice_over_time(moving, moving.exact, 3)
    figure, update = animation.first_frame(sliced)
    magnitude = panels(figure)[9]
    limits = [image_of(axes).get_clim() for axes in panels(figure)]
    x, y = sliced.axes["x"], sliced.axes["y"]
    for i, t in ((1, 0.5), (2, 1.0)):
        update(i)
        assert figure.get_suptitle() == f"t = {t:.1f}"
        assert values_of(panels(figure)[0])[30, 60] == pytest.approx(t * math.sin(x[30]) * y[60])
        places = thinned((x, y))
        (quiver,) = magnitude.collections
        expected = [t * math.sin(a) * b for b in y[places[1]] for a in x[places[0]]]
        assert np.allclose(quiver.U, expected)
    assert [image_of(axes).get_clim() for axes in panels(figure)] == limits


@pytest.mark.parametrize(
    ("known", "name", "frames", "message"),
    [
        (flow(), "u.gif", 5, "needs a coordinate that is time, but none of x, y is: draw"),
        (
            Known(Signature(("u",), Box(t=(0, 1), time=None)), lambda t: t),
            "u.gif",
            5,
            r"none of t is \(Box\(\.\.\., time=None\) says so of t\)",
        ),
        (heat(), "u.avi", 5, r"ending '\.avi'.*\.gif, \.mp4"),
        (heat(), "u.gif", 1, "frames=1: an animation has at least 2"),
        (heat(), "u.mp4", 5, "needs the program ffmpeg"),
    ],
)
def test_what_cannot_be_animated_is_said(tmp_path, monkeypatch, known, name, frames, message):
    monkeypatch.setattr(animation.animation.writers, "is_available", lambda name: False)
    with pytest.raises(UserError, match=message):
        animate(known, tmp_path / name, frames=frames)
    assert list(tmp_path.iterdir()) == []


# -- style -----------------------------------------------------------------------------------------
def test_lines_differ_in_colour_and_in_dash():
    styles = [line_style(i) for i in range(35)]
    assert len({(s["color"], str(s["linestyle"])) for s in styles}) == 35
    for a, b in pairwise(styles):
        assert a["color"] != b["color"]
        assert a["linestyle"] != b["linestyle"]
    # Okabe & Ito, Color Universal Design, 2008.
    published = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00"}
    assert set(COLOURS) <= published | {"#CC79A7"}


@pytest.mark.parametrize(
    ("extreme", "power"), [(3.2e-8, -8), (0.05, -2), (0.5, 0), (999, 0), (1000, 3), (0, 0)]
)
def test_the_power_of_ten_of_a_scale(extreme, power):
    assert exponent(extreme) == power
