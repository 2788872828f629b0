"""The files of conf/: they say what differs, and composing adds what their classes say."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pinnkfac import UserError
from pinnkfac.config import options
from pinnkfac.config.build import build
from pinnkfac.config.complete import complete
from pinnkfac.config.compose import compose
from pinnkfac.step.damping import NoDamping
from pinnkfac.step.search import Grid, NoSearch

FILES = sorted((Path(__file__).parent.parent / "conf").rglob("*.yaml"))


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kept: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    needed: int
    inner: Inner = field(default_factory=lambda: Inner(rate=0.25))
    other: Inner | None = None


HERE = __name__
INNER, OUTER = f"{HERE}.Inner", f"{HERE}.Outer"
RATE_1 = {"_target_": INNER, "rate": 1}


# -- one node --------------------------------------------------------------------------------------
def test_the_defaults_of_a_class_are_what_a_file_would_say():
    inner = {"_target_": INNER, "rate": 0.25, "kept": [1, 2]}
    assert options.defaults_of(OUTER) == {"inner": inner, "other": None}
    assert options.defaults_of("no.such.Class") == options.defaults_of("os.system") == {}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"inner": {"kept": []}}, {"inner": (0.25, []), "other": None}),  # of the default object
        ({"inner": {"_target_": INNER}}, {"inner": (0.5, [1, 2]), "other": None}),  # a new one
        (
            {"other": {"_target_": INNER, "rate": 1}},
            {"inner": (0.25, [1, 2]), "other": (1, [1, 2])},
        ),
        ({"inner": None}, {"inner": None, "other": None}),
    ],
)
def test_a_node_is_completed_and_so_are_those_inside_it(said, meant):
    def inner(value):
        return value and {"_target_": INNER, "rate": value[0], "kept": value[1]}

    done = complete({"_target_": OUTER, "needed": 3, **said}, options.defaults_of)
    wanted = {name: inner(value) for name, value in meant.items()}
    assert done == {"_target_": OUTER, "needed": 3, **wanted}


def test_nodes_without_a_class_stay_as_they_are():
    node = {"damping": {"start": 1.0}, "points": {"gap": None}}
    assert complete(node, options.defaults_of) == node


# -- all files -------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_setting_repeats_the_default_of_its_class(path):
    def repeated(node, prefix=""):
        defaults = options.defaults_of(node.get("_target_", node.get("_settings_")))
        for name, value in node.items():
            if isinstance(value, dict):
                inner = defaults.get(name)
                target = inner["_target_"] if isinstance(inner, dict) else None
                if "_target_" in value and isinstance(inner, dict):
                    assert options.located(value["_target_"]) is not options.located(target), name
                yield from repeated({"_target_": target, **value}, f"{prefix}{name}.")
            elif name in defaults and defaults[name] == value:
                yield f"{prefix}{name}"

    text = path.read_text(encoding="utf-8")
    assert (
        list(repeated({"_target_": None, **OmegaConf.to_container(OmegaConf.create(text))})) == []
    )


def test_every_setting_of_a_run_has_a_value():
    for step in options.names("step"):
        config = compose("any", {}, [f"step={step}"])
        assert not OmegaConf.missing_keys(config)
        for group in options.GROUPS:  # what is built has no field that the configuration lacks
            built = build(config[group], group)
            assert set(vars(built)) == set(config[group]) - {"_target_"}
    assert set(config.stop) >= {"seconds", "steps"} and "_settings_" not in str(config)


# -- overrides -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["step=kfac", "step.factors.decay=0.5"], "step.factors.decay", 0.5),
        (["step=kfac", "step.lengths=null"], "step.lengths", None),
        (["step=kfac", "step.lengths.by_layer=false"], "step.lengths.by_layer", False),
        (["step.exact.corrections=3"], "step.exact.corrections", 3),
        (["step.factored.factors.every=3"], "step.factored.factors.every", 3),
        (["points.numbers.wall=50"], "points.numbers.wall", 50),
        (["step=gauss_newton_cg", "preconditioner=nystrom"], "step.preconditioner.rank", 50),
        (["step=engd_full"], "damping.start", 1e-10),
        (["step=kfac_star_published", "damping=by_length"], "damping.start", 1e-8),
        (["search=none", "+search._target_=my.Own"], "search._target_", "my.Own"),
        (["search=none", "+search._target_=my.Own"], "choices.search", "my.Own"),
        (["search=none"], "choices.search", "none"),
    ],
)
def test_what_the_classes_say_can_be_overridden(overrides, key, value):
    assert OmegaConf.select(compose("any", {}, overrides), key) == value


def test_a_part_of_another_step_is_not_left_behind():
    config = compose("any", {}, ["step=gauss_newton_cg", "preconditioner=nystrom"])
    assert set(config.step.preconditioner) == {"_target_", "rank", "every"}
    config = compose("any", {}, ["step=adam", "~step.learning_rate"])
    assert set(config.step) == {"_target_", "beta1", "beta2", "epsilon"}


def test_none_is_an_object():
    config = compose("any", {}, ["step=adam"])
    assert build(config.search, "search") == NoSearch()
    assert build(config.damping, "damping") == NoDamping()
    assert build({"_target_": "pinnkfac.step.search.Grid"}, "search") == Grid()
    for node in ({}, {"start": 1.0}, None, 3):
        with pytest.raises(UserError, match="choose one of its options"):
            build(node, "damping")


@pytest.mark.parametrize(
    ("target", "home"),
    [
        ("adaptive.ImportanceSampling", "points.selection.ImportanceSampling"),
        ("allocation.Allocation", "points.numbers.Allocation"),
        ("balance.Balance", "linearisation.balance.Balance"),
        ("curvature.preconditioner.InverseSettings", "curvature.kfac.InverseSettings"),
        ("curvature.preconditioner.KroneckerFactors", "curvature.kfac.KroneckerFactors"),
        ("sources.Growth", "points.settings.Growth"),
        ("sources.PointSettings", "points.settings.PointSettings"),
        ("step.gauss_newton.Automatic", "step.lengths.Automatic"),
        ("step.gauss_newton_cg.GaussNewtonCg", "step.methods.GaussNewtonCg"),
        ("step.kfac.Kfac", "step.methods.Kfac"),
        ("step.spring.Published", "step.lengths.Published"),
        ("step.spring.Spring", "step.methods.Spring"),
    ],
)
def test_the_earlier_path_of_a_class_ends_in_the_one_of_today(target, home):
    with pytest.raises(UserError, match=rf"no such class.*: give pinnkfac\.{re.escape(home)}$"):
        build({"_target_": f"pinnkfac.{target}"}, "step")


@pytest.mark.parametrize("target", ["my.Kfac", "pinnkfac.step.kfac.Nothing", "pinnkfac.x.math"])
def test_a_class_that_is_nowhere_has_no_other_path(target):
    with pytest.raises(UserError, match=r"no such class \([^)]*\)$"):
        build({"_target_": target}, "step")


def test_files_name_a_class_where_it_is_written():
    texts = [path.read_text() for path in options.folder().rglob("*.yaml")]
    for target in re.findall(r"_(?:target|settings)_: (\S+)", "\n".join(texts)):
        assert options.located(target).__module__.startswith(target.rpartition(".")[0]), target
