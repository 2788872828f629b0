"""Exported files, read back by other programs' readers."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from pinnkfac import Box, UserError
from pinnkfac.__main__ import main
from pinnkfac.export import formats
from pinnkfac.nets import MlpSettings
from pinnkfac.problem.signature import Signature
from pinnkfac.solution import Solution
from pinnkfac.store.run_folder import NODES, RunFolder

UNITS = {"u": "µm/s", "v": "µm/s", "x": '<"m" & more>'}
FLOW = Signature(
    ("u", "v", "file"), Box(t=(0, 1), x=(0, 1), y=(0, 2)), UNITS, {"velocity": ("u", "v")}
)


def solution_of(signature=FLOW, **settings):
    net = MlpSettings(**{"widths": (6, 5), **settings}).make(signature, 1)
    return Solution(signature, net, {"nu": 0.25} if signature is FLOW else {})


@pytest.fixture
def meshio():
    return pytest.importorskip("meshio", reason="meshio is the extra 'vtu'")


# -- arrays and tables ---------------------------------------------------------------------------
def test_npz_holds_axes_fields_and_what_they_are(tmp_path):
    solution = solution_of()
    path = tmp_path / "flow.npz"
    assert solution.export(path, x=5, t=0.25) == [path]
    grid = solution.on_grid(x=5, t=0.25)
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"t", "x", "y", "u", "v", "file", "description"}
        description = json.loads(str(file["description"]))
        assert description["axes"] == ["x", "y"] and file["t"] == 0.25
        for name, values in {**grid.axes, **grid.values}.items():
            assert np.array_equal(file[name], values)
    assert description["units"] == UNITS
    assert description["vectors"] == {"velocity": ["u", "v"]}
    assert description["fixed"] == {"t": 0.25} and description["coefficients"] == {"nu": 0.25}


def test_npz_refuses_two_things_of_one_name(tmp_path):
    solution = solution_of(Signature(("description",), Box(x=(0, 1))))
    with pytest.raises(UserError, match="two things are called 'description'"):
        solution.export(tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, np.array(rows, dtype=np.float64)


def test_csv_has_a_row_per_point_of_the_grid(tmp_path):
    solution = solution_of()
    solution.export(tmp_path / "flow.csv", x=3, y=[0.5, 1.5], t=0.25)
    header, rows = read_csv(tmp_path / "flow.csv")
    assert header == ["t", 'x [<"m" & more>]', "y", "u [µm/s]", "v [µm/s]", "file"]
    assert rows[:, :3].tolist() == [
        [0.25, x, y] for x in (0.0, 0.5, 1.0) for y in (0.5, 1.5)
    ]  # fmt: skip
    expected = solution(torch.from_numpy(rows[:, :3].copy())).numpy()
    assert np.allclose(rows[:, 3:], expected, rtol=1e-14, atol=0)


def test_csv_of_given_points(tmp_path):
    solution = solution_of()
    points = {"x": [0.1, 0.9, 0.3], "t": 0.5, "y": torch.tensor([0.0, 1.0, 2.0])}
    solution.export(tmp_path / "probes.csv", points=points)
    _, rows = read_csv(tmp_path / "probes.csv")
    assert rows[:, 1].tolist() == [0.1, 0.9, 0.3] and rows[:, 2].tolist() == [0.0, 1.0, 2.0]
    assert rows[:, 4].tolist() == solution.v(**points).tolist()
    with pytest.raises(UserError, match="the coordinate y is missing"):
        solution.export(tmp_path / "probes.csv", points={"x": [0.1], "t": 0.5})


# -- meshes --------------------------------------------------------------------------------------
def volumes(points, cells):
    """Of lines, rectangles and cuboids: signed by the order of their corners."""
    p = points[cells]
    if cells.shape[1] == 2:
        return (p[:, 1] - p[:, 0]).sum(-1)
    a, b = p[:, 1] - p[:, 0], p[:, 3] - p[:, 0]
    assert np.allclose(p[:, 2] - p[:, 0], a + b)
    if cells.shape[1] == 4:
        return np.cross(a, b)[:, 2]
    c = p[:, 4] - p[:, 0]
    assert np.allclose(p[:, 4:] - p[:, :4], c[:, None])
    return np.einsum("ni,ni->n", np.cross(a, b), c)


@pytest.mark.parametrize(("names", "kind"), [("x", "line"), ("xy", "quad"), ("xyz", "hexahedron")])
def test_meshes_fill_the_box_with_cells_of_positive_volume(tmp_path, meshio, names, kind):
    box = Box({name: (0.0, 1.0 + i) for i, name in enumerate(names)})
    solution = solution_of(Signature(("u",), box))
    assert solution.export(tmp_path / "u.vtu", **{n: 3 + i for i, n in enumerate(names)})
    mesh = meshio.read(tmp_path / "u.vtu")
    cells = mesh.cells_dict[kind]
    found = volumes(mesh.points, cells)
    assert len(cells) == [2, 6, 24][len(names) - 1] and (found > 0).all()
    assert found.sum() == pytest.approx([1, 2, 6][len(names) - 1], rel=1e-12)
    at = torch.from_numpy(mesh.points[:, : len(names)].copy())
    assert np.allclose(mesh.point_data["u"], solution(at)[:, 0].numpy(), rtol=1e-14, atol=0)


def test_vectors_and_units_survive(tmp_path, meshio):
    solution = solution_of()
    solution.export(tmp_path / "flow.vtu", x=3, y=4, t=0.5)
    mesh = meshio.read(tmp_path / "flow.vtu")
    assert set(mesh.point_data) == {"u [µm/s]", "v [µm/s]", "file", "velocity [µm/s]"}
    velocity = mesh.point_data["velocity [µm/s]"]
    assert velocity.shape == (12, 3) and not velocity[:, 2].any()
    assert np.array_equal(velocity[:, 1], mesh.point_data["v [µm/s]"])


def test_names_that_are_no_xml_are_escaped(tmp_path, meshio):
    signature = Signature(("u",), Box(x=(0, 1)), {"u": '<"µ" & co>'})
    solution_of(signature).export(tmp_path / "u.vtu", x=3)
    assert list(meshio.read(tmp_path / "u.vtu").point_data) == ['u [<"µ" & co>]']
    assert (tmp_path / "u.vtu").read_bytes().isascii()  # whatever the encoding of the locale is


def test_a_slice_lies_where_it_was_cut(tmp_path, meshio):
    solution = solution_of(Signature(("u",), Box(x=(0, 1), y=(0, 2), z=(0, 3))))
    solution.export(tmp_path / "u.vtu", x=3, y=1.5, z=2)
    points = meshio.read(tmp_path / "u.vtu").points
    assert points.tolist() == [[x, 1.5, z] for x in (0.0, 0.5, 1.0) for z in (0.0, 3.0)]


def test_several_times_are_files_in_a_collection(tmp_path, meshio):
    solution = solution_of()
    written = solution.export(tmp_path / "a & b.vtu", t=[0.0, 0.125, 1.0], x=3, y=2)
    assert [p.name for p in written] == [
        "a & b_000.vtu", "a & b_001.vtu", "a & b_002.vtu", "a & b.pvd"
    ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == sorted(written)
    entries = list(ElementTree.parse(written[-1]).getroot().iter("DataSet"))
    assert [e.attrib["file"] for e in entries] == [p.name for p in written[:-1]]
    assert [float(e.attrib["timestep"]) for e in entries] == [0.0, 0.125, 1.0]
    second = meshio.read(tmp_path / entries[1].attrib["file"])
    expected = solution.u(t=0.125, x=second.points[:, 0], y=second.points[:, 1])
    assert np.allclose(second.point_data["u [µm/s]"], expected, rtol=1e-14, atol=0)
    assert len(solution.export(tmp_path / "b.vtu", x=2, y=2)) == 22


def test_more_than_three_dimensions_are_a_slice(tmp_path, meshio):
    signature = Signature(
        tuple("abcd"), Box.cube(4, t=(0, 1)), vectors={"flux": ("a", "b", "c", "d")}
    )
    solution = solution_of(signature)
    solution.export(tmp_path / "u.vtu", x2=3, x4=2, x1=0.25)
    mesh = meshio.read(tmp_path / "u.vtu")
    assert mesh.points.tolist() == [[x, y, 0.0] for x in (0.0, 0.5, 1.0) for y in (0.0, 1.0)]
    assert set(mesh.point_data) == set("abcd")
    expected = solution.b(
        t=0.5, x1=0.25, x2=mesh.points[:, 0], x3=0.5, x4=mesh.points[:, 1]
    )  # fmt: skip
    assert np.allclose(mesh.point_data["b"], expected, rtol=1e-14, atol=0)
    with pytest.raises(UserError, match="one to three axes of space, not 4"):
        solution.export(tmp_path / "u.vtu", x1=100, x2=100, x3=100, x4=100)


@pytest.mark.parametrize(
    ("axes", "culprit"),
    [
        ({"x": 0.5, "y": 0.5}, "not 0: give x=100 for an axis and y=0.5"),
        ({"x": [0.5, 0.2], "y": 3}, "the values of x must increase"),
        ({"x": 3, "y": [1.0]}, "the values of y must increase"),
    ],
)
def test_axes_without_a_mesh_are_refused(tmp_path, meshio, axes, culprit):
    with pytest.raises(UserError) as caught:
        solution_of().export(tmp_path / "u.vtu", t=0.5, **axes)
    assert culprit in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_meshio_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "meshio", None)
    with pytest.raises(UserError, match=r"pip install 'pinnkfac\[vtu\]'"):
        solution_of().export(tmp_path / "u.vtu")


# -- programs ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings",
    [{}, {"activation": "sin", "fourier_features": 4}, {"periodic": ("x",), "residual": True}],
    ids=["tanh", "Fourier", "periodic"],
)
def test_a_program_holds_for_any_number_of_points(tmp_path, settings):
    solution = solution_of(**settings)
    assert solution.export(tmp_path / "u.pt2") == [tmp_path / "u.pt2"]
    extra = {"signature.json": ""}
    program = torch.export.load(tmp_path / "u.pt2", extra_files=extra).module()
    for number in (1, 2, 4, 5, 1000):
        x = torch.rand(number, 3, dtype=torch.float64)
        assert torch.allclose(program(x), solution(x), rtol=1e-14, atol=1e-15)
        assert program(x).numpy().shape == (number, 3)  # no graph of autograd hangs on it
    assert Signature.from_dict(json.loads(extra["signature.json"])).as_dict() == FLOW.as_dict()
    assert solution.net.training and next(solution.net.parameters()).requires_grad


def test_a_net_that_torch_cannot_export_is_named(tmp_path):
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x if float(x.sum()) > 0 else -x)

    signature = Signature(("u",), Box(x=(0, 1)))
    with pytest.raises(UserError, match=r"torch\.export refuses Branching"):
        Solution(signature, Branching(1, 1)).export(tmp_path / "u.pt2")
    assert list(tmp_path.iterdir()) == []


# -- what cannot be written ----------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "options", "culprits"),
    [
        ("u.h5", {}, [".h5", ".csv, .npz, .pt2, .vtu"]),
        ("u", {}, ["no ending", ".npz"]),
        ("u.npx", {}, ["Did you mean '.npz'"]),
        ("u.pt2", {"x": 3}, ["no grid", "x"]),
        ("u.npz", {"points": {"x": 1}}, ["points= is for .csv"]),
        ("u.csv", {"points": {"x": 1}, "t": 3}, ["(t)", "exclude each other"]),
        ("u.csv", {"z": 3}, ["'z'", "t, x, y"]),
        ("nowhere/u.npz", {"x": 2, "y": 2, "t": 2}, ["nowhere/u.npz", "there is no folder"]),
        ("nowhere/u.pt2", {}, ["there is no folder"]),
        ("folder.csv", {"x": 2, "y": 2, "t": 2}, ["folder.csv", "cannot be written"]),
    ],
)
def test_a_wrong_file_or_option_is_named(tmp_path, name, options, culprits):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError) as caught:
        solution_of().export(tmp_path / name, **options)
    assert all(culprit in str(caught.value) for culprit in culprits), caught.value
    assert [p.name for p in tmp_path.iterdir()] == ["folder.csv"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "u.npz"
    path.write_text("old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(UserError, match="No space left on device"):
        solution_of().export(path, x=2, y=2, t=2)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_every_module_that_writes_is_a_format_with_a_text():
    folder = Path(formats.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if "def write(" in path.read_text()}
    assert modules == set(formats.FORMATS)
    assert all(text.endswith(".") for text in formats.texts().values())


# -- the command ---------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path, monkeypatch):
    net = MlpSettings(widths=(6, 5)).make(FLOW, 1)
    node = {"_target_": "pinnkfac.nets.MlpSettings", "widths": [6, 5]}
    config = OmegaConf.create({**{key: {} for key in NODES}, "dtype": "float64", "net": node})
    with RunFolder(tmp_path / "run") as folder:
        folder.write_config(config)
        folder.write_problem("flow", None, FLOW, [])
        folder.write_checkpoint({"net": net.state_dict()})
        best = {name: 2 * value for name, value in net.state_dict().items()}
        folder.write_checkpoint({"net": best}, "best")
    monkeypatch.chdir(tmp_path)
    return net


def test_the_command_writes_a_grid(run, capsys):
    assert main(["export", "run", "u.csv", "--grid", "x=3", "t=0.5", "y=0.0,1.0"]) == 0
    assert capsys.readouterr().out == "wrote u.csv: u [µm/s], v [µm/s], file\n"
    _, last = read_csv(Path("u.csv"))
    assert last[:, 2].tolist() == [0.0, 1.0] * 3
    x = torch.from_numpy(last[:, :3].copy())
    assert np.allclose(last[:, 3:], run(x).detach().numpy(), rtol=1e-14, atol=0)
    options = ["--checkpoint", "best", "--grid", "x=3", "t=0.5", "y=0.0,1.0"]
    assert main(["export", *options, "--", "run", "u.csv"]) == 0
    assert not np.allclose(read_csv(Path("u.csv"))[1], last)


def test_the_command_says_what_it_wrote_of_several_times(run, capsys, meshio):
    assert main(["export", "run", "u.vtu", "--grid", "x=3", "y=3", "t=0.0,2.0"]) == 0
    shown = capsys.readouterr()
    assert "u_000.vtu … u_001.vtu and u.pvd" in shown.out
    assert "warning: on_grid: t = 2 is 1 outside (0, 1)" in shown.err


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["run"], "FILE"),
        (["nowhere", "u.csv"], "nowhere: there is no such folder"),
        (["run", "u.xyz"], ".csv, .npz, .pt2, .vtu"),
        (["run", "u.csv", "--grid", "x"], "--grid x: give NAME=100"),
        (["run", "u.csv", "--grid", "x=a"], "--grid x=a"),
        (["run", "u.csv", "--grid", "=3"], "--grid =3"),
        (["run", "u.csv", "--grid", "x=3", "x=4"], "'x' is given twice"),
        (["run", "u.csv", "--grid", "t=1"], "write t=1.0"),
        (["run", "u.csv", "--grid", "t=nan"], "t is not finite"),
        (["run", "u.csv", "--grid", "z=3"], "no coordinate 'z'"),
        (["run", "u.csv", "--checkpoint", "first"], "'first'"),
    ],
)
def test_a_wrong_command_line_is_one_line(run, capsys, arguments, culprit):
    assert main(["export", *arguments]) == 2
    shown = capsys.readouterr()
    assert culprit in shown.err and shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1 and shown.out == ""
    assert not Path("u.csv").exists()


def test_the_help_shows_examples(capsys):
    assert main(["export", "--help"]) == 0
    assert "python -m pinnkfac export outputs/heat1d/run u.npz" in capsys.readouterr().out
