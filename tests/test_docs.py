"""Everything that the pages in docs/ show is run, and what they must describe is described.

Blocks of a page run in order, in one folder:

* ``python`` that begins with ``# NAME.py`` is written to that file; other ``python`` is executed;
* ``sh`` holds lines ``python -m pinnkfac ...`` or ``python NAME.py``, run in this process with
  shorter settings; ``# exit code N`` behind one says that it does not end with 0, ``# about N s``
  that it is run as it stands;
* ``yaml`` with a line ``# conf/GROUP/NAME.yaml`` is an option in a copy of conf/;
* ``text`` is what the block before it prints. Numbers may differ, repeated lines count once, and
  a line or part ``…`` stands for anything.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import pinnkfac
from pinnkfac import Box, Parameter, Points, Problem, Term, solve
from pinnkfac.__main__ import COMMANDS, main
from pinnkfac.config import options
from pinnkfac.config.compose import compose
from pinnkfac.config.mistakes import keys
from pinnkfac.config.options import GROUPS
from pinnkfac.nets.mlp import ACTIVATIONS
from pinnkfac.run.summary import failure
from pinnkfac.store.run_folder import RunFolder
from pinnkfac.store.stored_run import StoredRun
from pinnkfac.taylor.jet import MODULES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
INDEX = DOCS / "README.md"
SHORT = ("threads=1", "run.plot=False")
SMALL = ("net.widths=[8]", "points.scale=0.1")
LANGUAGES = ("python", "sh", "text", "yaml")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


ALL = "\n".join(map(text_of, PAGES))


# -- blocks ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the line that it begins in."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str:
        """The file that the block is the content of, or ''."""
        if self.language == "python":
            found = re.match(r"# ([\w/]+\.py)\n", self.text)
        else:
            found = re.search(r"^# (conf/\w+/\w+\.yaml)$", self.text, re.M)
        return found[1] if found and self.language in ("python", "yaml") else ""


def blocks(page: Path) -> list[Block]:
    """All fenced blocks; a fence of another form, or without an end, is an error."""
    result, begin, language = [], 0, ""
    lines = text_of(page).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith(("```", "~~~")):
            continue
        if begin:
            assert line == "```", f"{page.name}:{number}: a fence within a block"
            content = "\n".join(lines[begin : number - 1]) + "\n"
            result.append(Block(language, content, begin))
            begin = 0
        else:
            found = re.fullmatch(r"```(\w+)", line)
            assert found and found[1] in LANGUAGES, f"{page.name}:{number}: {line} is not run"
            begin, language = number, found[1]
    assert not begin, f"{page.name}:{begin}: the block does not end"
    return result


def shortened(line: str) -> tuple[list[str], int]:
    """The words of a command with shorter settings, and the exit code that is expected."""
    command, _, remark = line.partition("  #")
    found = re.fullmatch(r" exit code (\d)", remark)
    if re.fullmatch(r" about \d+ s", remark):
        return [*shlex.split(command), *SHORT], 0
    words = shlex.split(less(command))
    if words[:2] == ["-m", "pinnkfac"] and words[2] == "solve" and "--cfg" not in words:
        given = {word.partition("=")[0] for word in words}
        own_net = any(name.lstrip("+~").startswith("net") for name in given)
        more = [*SHORT, *(SMALL[own_net:])]
        if not given & {"stop.seconds", "stop.steps"}:
            more.append("stop.steps=2")
        words += [word for word in more if word.partition("=")[0] not in given]
    return words, int(found[1]) if found else 0


def less(text: str) -> str:
    """A tenth of the steps and a hundredth of the seconds."""
    text = re.sub(r"stop\.steps=(\d+)", lambda m: f"stop.steps={-(-int(m[1]) // 10)}", text)
    return re.sub(r"stop\.seconds=(\d+)", lambda m: f"stop.seconds={int(m[1]) / 100}", text)


def run_line(line: str) -> None:
    """Run a line of a ``sh`` block in this process."""
    assert line.startswith("python "), f"{line}: only python is run"
    words, expected = shortened(line.removeprefix("python "))
    if words[0] == "-m":
        assert words[1] == "pinnkfac", line
        code = main(words[2:])
    else:
        runpy.run_path(words[0], run_name="__main__")
        code = 0
    assert code == expected, f"{line}: exit code {code}"


def commands(block: Block) -> list[str]:
    joined = block.text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


# -- what is printed -------------------------------------------------------------------------------
NUMBER = re.compile(r"(?<![A-Za-z])[-+]?\d[\d.]*(?:e[-+]?\d+)?(?: (?:s|ms|µs|min|MiB|GiB)\b)?")


def masked(text: str) -> list[str]:
    """Lines without what varies; of equal lines that follow each other, one."""
    result: list[str] = []
    for line in text.splitlines():
        line = NUMBER.sub("#", re.sub(r"─+", "─", line))
        line = re.sub(r"# (thread|step)s?\b", r"# \1s", line)
        line = " ".join(line.replace("[ ", "[").replace(" ]", "]").split())
        if line and line != "…" and line != "".join(result[-1:]):
            result.append(line)
    return result


def missing(expected: str, printed: str) -> str:
    """The first expected line that was not printed behind those before it; '' for none."""
    lines = iter(masked(printed))
    for line in masked(expected):
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in line.split("…")))
        if not any(pattern.fullmatch(own) for own in lines):
            return line
    return ""


def test_what_is_printed_is_compared():
    assert not missing("loss 1.2e-3\n…\nb  2\n", "loss 7e+10\nc\nloss 8\nb 3.5\n")
    assert not missing("a … z", "a b c z") and missing("a … z", "a b c")
    assert missing("a\nb", "b\na") == "b"
    assert not missing("step 1  0.1 s\nstep 2  3 ms", "step 1  20 s")
    assert missing("u 1", "v 1") == "u #"


# -- running a page --------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, as the current one of a shell; nothing of it stays behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copytree(options.folder(), tmp_path / "conf")
    monkeypatch.setattr(options, "folder", lambda: tmp_path / "conf")
    before, argv, known = set(sys.modules), sys.argv, dict(MODULES)
    yield tmp_path
    sys.argv = argv
    MODULES.clear()
    MODULES.update(known)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@contextlib.contextmanager
def captured():
    """What is printed within, as in a pipe that takes UTF-8."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield stream


def read(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


def run_page(page: Path, folder: Path) -> None:
    names = {"__name__": "page"}
    printed: str | None = None
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.language == "text":
            assert printed is not None, f"{where}: what prints this?"
            line = missing(block.text, printed)
            assert not line, f"{where}: not printed: {line}\n{printed}"
            printed = None
            continue
        assert block.language != "yaml" or block.file, f"{where}: which file is this?"
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(less(block.text), encoding="utf-8")
            printed = None
            continue
        with captured() as output:
            try:
                if block.language == "sh":
                    for line in commands(block):
                        run_line(line)
                else:
                    exec(compile(less(block.text), where, "exec"), names)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{where} printed:\n{read(output)[-3000:]}") from error
        printed = read(output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_page_can_be_followed(page, folder):
    run_page(page, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_of_a_page_is_used(page):
    own = blocks(page)
    for number, block in enumerate(own):
        if block.file:
            word = re.compile(rf"\b{Path(block.file).stem}\b")
            later = "\n".join(b.text for b in own[number + 1 :])
            assert word.search(later), f"{page.name}:{block.line}: {block.file} is never run"


def test_python_that_trains_says_how_long():
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                calls = len(re.findall(r"\b(?<!def )(?:solve|resume)\((?!\))", block.text))
                limits = len(re.findall(r"stop\.(?:seconds|steps)=\d", block.text))
                assert limits >= calls, f"{page.name}:{block.line}"


# -- pages and links -------------------------------------------------------------------------------
def test_the_index_has_one_line_for_every_page():
    lines = [line for line in text_of(INDEX).splitlines() if line.startswith("- [")]
    linked = [re.search(r"\]\((\w+\.md)\): \S", line) for line in lines]
    assert all(linked)
    assert sorted(m[1] for m in linked if m) == sorted(p.name for p in PAGES if p != INDEX)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_resolve(page):
    prose = re.sub(r"```.*?```", "", text_of(page), flags=re.S)
    links = re.findall(r"\]\(\s*([^)\s]+)\s*\)", prose)
    assert links
    for link in links:
        assert not link.startswith("http"), f"{page.name}: {link} is not checked"
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_pictures_are_few_and_small():
    others = {*PAGES, DOCS / "tables.py"}
    pictures = [p for p in DOCS.rglob("*") if p.is_file() and p not in others]
    assert len(pictures) <= 2
    for picture in pictures:
        assert picture.stat().st_size < 60_000
        shown = f"({picture.relative_to(DOCS)})" in ALL
        assert shown or f"({picture.relative_to(ROOT)})" in text_of(ROOT / "README.md")


# -- what has to be described ----------------------------------------------------------------------
def tabled(page: str, heading: str) -> list[str]:
    """The code in the first column of the table below a heading."""
    section = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text_of(DOCS / page), re.M | re.S
    )
    assert section, heading
    rows = [line for line in section[1].splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> StoredRun:
    """A run with all that there can be: an exact solution, measurements, an unknown coefficient."""
    box = Box(x=(0, 1))
    k = Parameter("k", initial=1.0)
    data = Points({"x": [0.2, 0.5]}, value=[0.2, 0.5])
    problem = Problem(
        fields=("u",),
        terms=[
            Term("line", box.interior, lambda u, at: k * u.x - 2.0, points=8),
            Term("data", data, lambda u, at: u - at.value),
        ],
        solution=lambda at: at.x,
        parameters=(k,),
    )
    path = tmp_path_factory.mktemp("stored") / "run"
    settings = ("stop.steps=3", "net.widths=[4]", "threads=1", "run.quiet=true")
    solve(problem, *settings, folder=path)
    return StoredRun.open(path)


def flat(values: dict, named: tuple[str, ...]) -> set[str]:
    """Keys of a summary; those of the inner mappings in ``named`` with a dot."""
    inner = {f"{name}.{key}" for name in named for key in values.get(name) or {}}
    return {*(key for key in values if key not in named), *inner}


def test_every_key_of_a_record_is_described(stored):
    page = tabled("reading_a_run.md", "metrics.jsonl")
    assert sorted(page) == sorted({key for record in stored.history for key in record})


def test_every_key_of_a_summary_is_described(stored):
    page = tabled("reading_a_run.md", "summary.json")
    found = flat(stored.summary, ("best", "versions", "machine"))
    assert sorted(page) == sorted({*found, "machine.gpu"})
    assert set(failure("pde", "message", ())) <= set(page)


def test_every_key_of_a_problem_and_a_checkpoint_is_described(stored):
    assert sorted(tabled("reading_a_run.md", "problem.json")) == sorted(stored.problem)
    described = tabled("reading_a_run.md", "checkpoint.pt and best.pt")
    kept = {*stored.checkpoint("last"), *stored.checkpoint("best")}
    assert sorted(described) == sorted(kept)


def test_every_file_of_a_run_is_described(stored, tmp_path):
    names = tabled("reading_a_run.md", "The run folder")
    found = {path.name for path in stored.path.iterdir()}
    pde = tmp_path / "pde_file.py"
    pde.write_text("# a file\n")
    with RunFolder(tmp_path / "r") as own:
        own.write_problem("name", pde, stored.signature, [])
    found |= {path.name for path in (tmp_path / "r").iterdir()}
    assert found - {".lock"} == set(names) - {".lock"}
    assert ".lock" in names


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_of_a_group_is_described(group):
    options = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    assert options
    for option in options:
        assert re.search(rf"`{option}`|{group}={option}\b", ALL), f"{group}={option}"
        config = compose("any", {}, [f"{group}={option}"])
        for key in keys(OmegaConf.create({group: config[group]})):
            if not OmegaConf.is_dict(OmegaConf.select(config, key)) or key == "points.numbers":
                assert _plain(key) in ALL, f"{key} (of {group}={option}) is in no page"


def _plain(key):
    """The settings of a step in another are described where that step is."""
    for inner, outer in (
        ("step.exact.", "step."),
        ("step.factored_damping.", "damping."),
        ("step.factored.", "step."),
        ("step.preconditioner.smoother.", "step."),
        ("step.preconditioner.factors.", "step.factors."),
        ("step.preconditioner.inverse.", "step.inverse."),
        ("step.preconditioner.moments.", "step.moments."),
    ):
        if key.startswith(inner):
            return key.replace(inner, outer)
    return key


def test_every_setting_of_a_run_is_described():
    config = compose("any", {}, [])
    for key in keys(config):
        if key.split(".")[0] not in (*GROUPS, "pde", "choices", "stop", "run"):
            assert f"`{key}" in ALL, f"{key} is in no page"
        elif key.startswith(("stop.", "run.")):
            assert key in ALL, f"{key} is in no page"


def test_every_command_is_shown():
    for command in COMMANDS:
        assert re.search(rf"^python -m pinnkfac {command} ", ALL, re.M), command


def test_every_public_name_is_mentioned():
    for name in (*pinnkfac.__all__, *ACTIVATIONS):
        assert re.search(rf"\b{name}\b", ALL), name


def test_messages_that_are_quoted_are_those_of_the_program():
    """In tables that begin with 'message', code in the first column is part of a message."""
    spoken = [
        " ".join(node.value.split())
        for path in (ROOT / "pinnkfac").rglob("*.py")
        for node in ast.walk(ast.parse(text_of(path)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    quoted = [
        message
        for table in re.findall(r"^\| message \|.*\n(?:\|.*\n)+", ALL, re.M)
        for message in re.findall(r"^\| `([^`]+)`", table, re.M)
    ]
    assert len(quoted) > 10
    for message in quoted:
        for part in message.split("…"):
            part = part.strip()
            assert any(part in text for text in spoken), message
