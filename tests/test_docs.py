"""Every block of code in README.md and docs/ runs, and every command that they name exists.

A page's Python blocks are run in their order, in one namespace, as a reader would type them.
Comments before a block, which no reader sees, say what is special about it:

* ``<!-- output -->``: the block is what the block before it prints;
* ``<!-- with: NAME -->``: from here on, modules and names of a project of :data:`peers.PEERS`;
* ``<!-- not run: WHY -->``: it cannot run in a test. :data:`NOT_RUN` counts these.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import peers
import pytest
import torch
from torch import nn

import fastsn

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
}

#: Python blocks that cannot run here, of all pages.
NOT_RUN = 0

#: Pages whose Python blocks another file of tests runs: each is a program of its own there.
ELSEWHERE = {"docs/recipes.md": "test_recipes.py"}

BLOCK = re.compile(r"((?:^<!--.*?-->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"<!-- (output|with|not run)(?:: (.+?))? -->")
LINK = re.compile(r"\]\(([^()\s]+)\)")
LANGUAGES = {"python", "sh", "text", "yaml"}


class Block(NamedTuple):
    """A fenced block of a page, and the comments before it."""

    line: int
    language: str
    code: str
    markers: dict[str, str]


def blocks_of(name: str) -> list[Block]:
    text = PAGES[name].read_text(encoding="utf-8")
    return [
        Block(
            text.count("\n", 0, match.start(3)) + 1,
            match[2],
            match[3],
            dict(MARKER.findall(match[1])),
        )
        for match in BLOCK.finditer(text)
    ]


BLOCKS = {name: blocks_of(name) for name in PAGES}
WITH_PYTHON = [
    name
    for name in PAGES
    if name not in ELSEWHERE and any(block.language == "python" for block in BLOCKS[name])
]


def run_page(name: str, monkeypatch: Any) -> dict[str, Any]:
    """Runs the Python blocks of a page; the names they have made."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in BLOCKS[name]:
        if block.language == "python" and "not run" not in block.markers:
            if "with" in block.markers:
                modules, given = peers.PEERS[block.markers["with"]]()
                for module, value in modules.items():
                    monkeypatch.setitem(sys.modules, module, value)
                namespace.update(given)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                # with the page's own line numbers in a traceback
                exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)
            printed = out.getvalue()
        if "output" in block.markers:
            lines = (line.rstrip() for line in printed.splitlines())
            assert "\n".join(lines).strip() == block.code.strip(), f"{name}:{block.line}"
    return namespace


def test_pages_are_found() -> None:
    """README and the pages of the guide have blocks; a pattern that matches nothing tests none."""
    assert {"README.md", "docs/index.md", "docs/methods.md", "docs/converting.md"} <= set(
        WITH_PYTHON
    )


def test_pages_that_are_run_elsewhere_are() -> None:
    for page, tests in ELSEWHERE.items():
        if page in PAGES:
            assert Path(page).name in (ROOT / "tests" / tests).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_blocks_have_a_language(name: str) -> None:
    fences = len(re.findall(r"^\s*(?:```|~~~)", PAGES[name].read_text(encoding="utf-8"), re.M))
    assert fences == 2 * len(BLOCKS[name]), "expected fences of ``` at the start of a line"
    assert {block.language for block in BLOCKS[name]} <= LANGUAGES


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_blocks_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(name, monkeypatch)


def test_blocks_that_do_not_run_are_counted_and_say_why() -> None:
    reasons = [
        block.markers["not run"]
        for blocks in BLOCKS.values()
        for block in blocks
        if block.language == "python" and "not run" in block.markers
    ]
    assert len(reasons) == NOT_RUN and all(reasons)


@pytest.mark.parametrize(
    "damage, error",
    [
        (("group = fastsn.convert(model)\n", "group = fastsn.convrt(model)\n"), AttributeError),
        (("2 weights", "3 weights"), AssertionError),
    ],
)
def test_a_wrong_page_fails(
    damage: tuple[str, str], error: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGES["docs/converting.md"].read_text().replace(*damage, 1))
    monkeypatch.setitem(PAGES, "page.md", page)
    monkeypatch.setitem(BLOCKS, "page.md", blocks_of("page.md"))
    with pytest.raises(error):
        run_page("page.md", monkeypatch)


def test_the_readme_keeps_its_proportion() -> None:
    """What GPUs are to expect at the top, about 150 lines, no long generated block."""
    text = PAGES["README.md"].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "**GPU: " in "\n".join(text.splitlines()[:10])
    generated = re.findall(r"<!-- (\w+):begin -->\n(.*?)<!-- \1:end -->", text, re.DOTALL)
    assert [name for name, _ in generated] == ["benchmarks"]
    assert all(len(block.strip().splitlines()) <= 12 for _, block in generated)


# Links


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    """Files of the repository; what is inside of the site, a strict build looks at."""
    text = BLOCK.sub("", PAGES[name].read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        if path == "recipes.md" or linked.name in ("contributing.md", "changelog.md"):
            continue
        assert linked.exists(), f"{name}: {target}"
        if anchor and linked.suffix == ".md" and not anchor.startswith("fastsn."):
            assert anchor in anchors(linked), f"{name}: {target}"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


# Commands

INLINE = re.compile(r"`((?:make|fastsn|bash|pip|torchrun|python -m) [^`]+)`")
HELP = ("--help", "--help_all")


def commands() -> Iterator[tuple[str, str]]:
    for name, path in PAGES.items():
        for block in BLOCKS[name]:
            if block.language == "sh":
                for line in block.code.replace("\\\n", " ").splitlines():
                    for command in re.sub(r"(^|\s)#.*", "", line).split("&&"):
                        if command.strip():
                            yield name, command.strip()
        text = BLOCK.sub("", path.read_text(encoding="utf-8"))
        for command in INLINE.findall(text):
            yield name, command.replace("\n", " ")


@lru_cache
def help_of(module: str, *command: str) -> str:
    """What ``python -m MODULE COMMAND`` says of its options; "" where there is no such command."""
    texts = []
    for option in HELP if module == "fastsn.gan.cli" else HELP[:1]:
        before = sys.argv
        sys.argv = [module, *command, option]
        out, code = io.StringIO(), None
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(io.StringIO()),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore", RuntimeWarning)  # another test has imported it
                runpy.run_module(module, run_name="__main__", alter_sys=False)
        except SystemExit as exit:
            code = exit.code
        finally:
            sys.argv = before
        texts.append("" if code else out.getvalue())
    return "\n".join(texts).strip()


def extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w-]+):", text, re.MULTILINE))


def problem(command: str) -> str:
    """What is wrong with a command; ``""`` if nothing is."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
        del words[0]
    program, *rest = words
    if program == "make":
        wrong = [word for word in rest if "=" not in word and word not in targets()]
        return f"no such target: {wrong}" if wrong else ""
    if program == "bash":
        return "" if (ROOT / rest[0]).is_file() else "no such file"
    if program == "pip":
        named = {e for word in rest for e in re.findall(r"\[([\w,]+)\]", word)}
        wrong = sorted({e for group in named for e in group.split(",")} - extras())
        return f"no such extra: {wrong}" if wrong else ""
    if program in ("git", "cd"):
        return ""
    if program == "torchrun" or program.rpartition("/")[2].startswith("python"):
        if "-m" not in rest:
            return "expected -m"
        module, *rest = rest[rest.index("-m") + 1 :]
    elif program == "fastsn":
        module = "fastsn.gan.cli"
    else:
        return "expected a command that this test knows"
    return _problem_of_module(module, rest)


def _problem_of_module(module: str, words: list[str]) -> str:
    if find_spec(module) is None:
        return f"no such module: {module}"
    if module == "pytest":
        return ""
    command = [word for word in words[:1] if re.fullmatch(r"[a-z]\w*", word)]
    if module == "benchmarks.memory":
        return ""
    text = help_of(module, *command)
    if not text:
        return f"no such command: {command}"
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    wrong = [option for option in options if option not in HELP and option not in text]
    return f"no such option: {wrong}" if wrong else ""


def test_commands_exist() -> None:
    pytest.importorskip("jsonargparse")
    found = list(commands())
    assert len({command for _, command in found}) > 10
    wrong = [(name, command, problem(command)) for name, command in found]
    assert [each for each in wrong if each[2]] == []


@pytest.mark.parametrize(
    "command",
    [
        "make tset", "fastsn trian --config demo", "fastsn train --confg demo",
        "python -m paper lst", "python -m benchmark", "bash scripts/gpus.sh",
        "pip install '.[gun]'", "rm file",
    ],
)  # fmt: skip
def test_commands_that_do_not_exist_are_found(command: str) -> None:
    pytest.importorskip("jsonargparse")
    assert problem(command)


# What else the site says of the code


def test_every_public_name_is_in_the_api() -> None:
    pages = (PAGES["docs/api.md"], PAGES["docs/api-analysis.md"])
    shown = re.findall(r"^::: (\S+)$", "".join(page.read_text() for page in pages), re.MULTILINE)
    modules = (fastsn, fastsn.analysis, fastsn.functional)
    public = {
        f"{module.__name__}.{name}"
        for module in modules
        for name in module.__all__
        if not isinstance(getattr(module, name), ModuleType)
    }
    assert sorted(shown) == sorted(public)


def test_the_figure_is_of_the_modules_there_are() -> None:
    drawing = runpy.run_path(str(ROOT / "scripts" / "draw_data_path.py"))
    assert drawing["OUT"].read_text() == drawing["svg"](), "python scripts/draw_data_path.py"
    named = [where for _, _, steps in drawing["STAGES"] for _, where, _ in steps]
    text = PAGES["docs/how-it-works.md"].read_text()
    named += [path.removeprefix("fastsn/") for path in re.findall(r"`(fastsn/[\w/.]+)`", text)]
    order = text.partition("Reading order")[2].partition(". A module")[0]
    named += re.findall(r"`([\w/]+\.py)`", order)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / "fastsn" / path).exists()] == []
    others = re.findall(r"`((?:csrc|tests)/[\w/.]+)`", text)
    assert others and [path for path in others if not (ROOT / path).exists()] == []


# The recipes of docs/converting.md, by their numbers


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, Any]:
    """What each project's recipe was given, in twins, and all names that the page has left."""
    before: dict[str, dict[str, Any]] = {}

    def remember(project: str, make: Any) -> peers.Peer:
        torch.manual_seed(0)
        before[project] = make()[1]
        torch.manual_seed(0)  # hooked layers cannot be copied, but made twice
        return make()

    for project, make in peers.PEERS.items():
        monkeypatch.setitem(peers.PEERS, project, partial(remember, project, make))
    monkeypatch.chdir(tmp_path)
    return before, run_page("docs/converting.md", monkeypatch)


def norms_in(model: nn.Module) -> set[str]:
    return {label.removesuffix(".weight") for label in fastsn.group_of(model).sigmas()}


def test_recipes_give_the_projects_numbers(recipes: tuple[Any, Any]) -> None:
    before, after = recipes
    hifi = before["hifi_gan"]
    expected = hifi["msd"](hifi["y"], hifi["y_hat"])  # in training mode: two advances, as torch's
    for theirs, ours in zip(expected, (after["real"], after["generated"]), strict=True):
        torch.testing.assert_close(list(ours), list(theirs))
    assert set(hifi["msd"].state_dict()) - set(after["msd"].state_dict()) == {
        f"discriminators.0.{name}.weight_{part}"
        for name in ("convs.0", "convs.1", "convs.2", "conv_post")
        for part in ("orig", "u", "v")
    }

    x, y, z = (before["biggan"][name] for name in "xyz")
    for name, inputs in (("D", (x, y)), ("G", (z, y))):
        theirs, ours = before["biggan"][name].eval(), after[name].eval()
        torch.testing.assert_close(ours(*inputs), theirs(*inputs), rtol=1e-4, atol=1e-5)
    assert norms_in(after["D"]) == {"conv1", "conv2", "conv_sc", "linear", "embed"}
    assert norms_in(after["G"]) == {"linear", "output_layer.2"}  # not the embedding

    x, y = (before["mimicry"][name] for name in "xy")
    for name in ("netD", "own"):
        theirs, ours = before["mimicry"][name].eval(), after[name].eval()
        torch.testing.assert_close(ours(x, y), theirs(x, y), rtol=1e-4, atol=1e-5)
        assert len(norms_in(after[name])) == 5
    for model in (after["D"], after["G"], after["own"]):
        assert not any("SN" in type(layer).__name__ for layer in model.modules())


def test_the_recipe_for_studiogan_keeps_its_average(recipes: tuple[Any, Any]) -> None:
    before, after = recipes
    given = before["studiogan"]
    fake = given["Gen"](given["z"], given["y"])
    theirs, ours = given["Dis"](fake, given["y"]), after["Dis"](fake, given["y"])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    old, new, average = given["Gen_ema"], after["Gen"], after["Gen_ema"]
    start = fastsn.convert_state_dict(old.state_dict())
    moved = 0
    for key, value in average.state_dict().items():
        expected = start[key] / 2 + new.state_dict()[key] / 2
        torch.testing.assert_close(value, expected.to(value.dtype))
        moved += not torch.equal(start[key], value)
    assert moved  # the vectors and statistics of the forward, at least
    x = given["z"], given["y"]
    torch.testing.assert_close(average.eval()(*x), plain_average(average, *x))


def plain_average(average: nn.Module, *inputs: Any) -> Any:
    """The output with vectors of length one: what shortened ones must give, too."""
    twin = copy.deepcopy(average)
    for key, value in twin.state_dict().items():
        if key.endswith(("._u", "._v")):
            value.div_(value.norm())
    return twin(*inputs)
