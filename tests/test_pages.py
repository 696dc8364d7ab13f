"""The pages are true: links resolve, commands parse, tables name what exists.

Each command of a page is parsed by the program that it calls, up to the point where it would run.
`make` targets exist. Not covered: what a command prints; CI runs the README's.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest

from harness.__main__ import main as harness_command
from harness.mutation import check_mutants
from loadtests.__main__ import main as loadtests_command
from tests.test_tidy import HARNESS_LAYERS, ROOT, tracked
from worker_service.cli import main as service_command

PAGES = tracked("*.md")
README = ROOT / "README.md"
DECISIONS = ROOT / "docs" / "decisions"
PROGRAMS = {
    "harness": harness_command,
    "loadtests": loadtests_command,
    "worker-service": service_command,
}
# Of a page's text, not of the code in it.
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(
    r"python -m ((?:harness|loadtests) [^\n`|]*)|^\$ (worker-service .*)", re.MULTILINE
)
# The README's tables leave the program out.
SHORT = re.compile(r"`((?:check|recheck|selftest|start|stream|query|serve) [^`\n]*)`")
SERVICE_COMMANDS = {"start", "stream", "query", "serve"}
# Words that a page's reader replaces, and such a replacement.
PLACEHOLDERS = {"HOST:PORT": "localhost:50051", "A": "ours", "B": "ours"}


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings
    }


def test_links_resolve_inside_the_repository() -> None:
    known = {path.resolve() for path in tracked()}
    known |= {parent for path in known for parent in path.parents}
    faults = []
    for page in PAGES:
        for link in LINK.findall(FENCE.sub("", page.read_text())):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if target not in known:
                faults.append(f"{page_name(page)}: {link} is not in the repository")
            elif anchor and anchor not in anchors(target):
                faults.append(f"{page_name(page)}: {file} has no heading #{anchor}")
    assert not faults, "\n".join(faults)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command on a page, its program first."""
    text = page.read_text().replace("\\\n", " ")
    found = [module or service for module, service in COMMAND.findall(text)]
    if page == README:
        for short in SHORT.findall(text):
            program = "worker-service" if short.split()[0] in SERVICE_COMMANDS else "harness"
            found.append(f"{program} {short}")
    for line in found:
        with suppress(ValueError):  # a quotation that goes on in the next line
            yield shlex.split(line, comments=True)


def parse(program: click.Command, words: list[str]) -> None:
    """Parse a command line as the program would, without running it.

    Raises:
        click.ClickException: the program would refuse it.
    """
    while isinstance(program, click.Group):
        words = [word for index, word in enumerate(words) if index or not word.startswith("-")]
        if not words:
            return
        name, *words = words
        if name not in program.commands:
            raise click.UsageError(f"no command {name!r}")
        program = program.commands[name]
    program.make_context("program", [PLACEHOLDERS.get(word, word) for word in words])


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=page_name)
def test_commands_of_a_page_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A page names files that its reader makes.
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, _param, _context: value)
    faults = []
    for program, *words in commands(page):
        try:
            parse(PROGRAMS[program], words)
        except click.exceptions.Exit:  # --help
            continue
        except click.ClickException as error:
            faults.append(f"{program} {shlex.join(words)}: {error.format_message()}")
    assert not faults, "\n".join(faults)


def test_readme_counts_the_mutants() -> None:
    counted = re.search(r"more than (\d+)\s+ways", README.read_text())
    assert counted is not None
    assert int(counted[1]) <= len(check_mutants.ALL)


def test_commands_that_repeat_a_bug_name_the_mutant_of_their_check() -> None:
    rows = re.findall(
        r"^\| .+ \| `(.+)` \| `python -m harness selftest -k '(.+)'` \|$",
        README.read_text(),
        re.MULTILINE,
    )
    assert len(rows) > 10
    for check, keyword in rows:
        caught_by = {
            mutant.caught_by
            for mutant in check_mutants.ALL
            if re.search(keyword, f"{mutant.caught_by} {mutant.name}")
        }
        assert caught_by == {check}, f"selftest -k {keyword!r} breaks what {caught_by} catch"


def test_make_targets_of_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    faults = []
    # Not the change log, which also names targets of older versions.
    for page in (*PAGES, *tracked(".github/*.yml", ".ci/*")):
        text = page.read_text()
        named = re.findall(r"^(?:\$ | *- run: | *)(?:sudo )?make ([a-z-]+)", text, re.MULTILINE)
        named += re.findall(r"`(?:sudo )?make ([a-z-]+)", text)
        if page.name != "CHANGELOG.md" and set(named) - targets:
            faults.append(f"{page_name(page)}: {sorted(set(named) - targets)}")
    assert not faults, "\n".join(faults)


def test_workflow_runs_the_commands_of_the_readme_and_nothing_from_outside_but_actions() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "\t" not in workflow
    ran = set(re.findall(r"make ([a-z-]+)", workflow))
    assert {"demo", "test", "verify", "vm-test", "load"} <= ran
    used = re.findall(r"uses: (\S+)", workflow)
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+|\./\.github/[a-z/-]+", each) for each in used)
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"repo: (\S+)", hooks) == ["local"]
    assert not re.search(r"https?://", workflow + hooks)


def test_each_decision_is_in_the_index_with_its_title() -> None:
    pages = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
    index = re.findall(
        r"^(\d+)\. \[(.+)\]\((.+)\)$", (DECISIONS / "README.md").read_text(), re.MULTILINE
    )
    assert [name for _, _, name in index] == [path.name for path in pages]
    for (number, title, name), path in zip(index, pages, strict=True):
        text = path.read_text()
        assert text.startswith(f"# {number}. {title}\n"), name
        assert int(name[:4]) == int(number)
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings in (
            ["Context", "Decision", "Rejected", "Consequences"],
            ["Context", "Decision", "Consequences"],
        ), name


def test_design_shows_the_layers_of_the_harness() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| .+ \| (.+) \|$", (ROOT / "DESIGN.md").read_text(), re.MULTILINE
    )
    shown = {folder: set(re.findall(r"`(\w+)`", imports)) for folder, imports in rows}
    layers = {name: may for name, may in HARNESS_LAYERS.items() if not name.startswith("__")}
    assert {folder: shown[folder] for folder in layers} == layers


def test_design_names_shared_state_that_exists() -> None:
    design = (ROOT / "DESIGN.md").read_text()
    table = design.partition("### Threads and what they share\n")[2].partition("\n\nSIGTERM")[0]
    names = set(re.findall(r"\w+", " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))))
    code = " ".join(path.read_text() for path in tracked("impl/*.py"))
    named = {
        name for name in names if name.startswith("_") or re.match(r"[A-Z]+[a-z]+[A-Z_]?", name)
    }
    assert {"OutputLog", "_waiting"} <= named
    assert not [name for name in sorted(named) if not re.search(rf"\b{name}\b", code)]


def test_design_gives_the_reason_of_each_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = {
        re.split(r"[<>=]", requirement)[0]
        for requirement in project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    }
    # Stubs and build tools belong to what they are for.
    named = {name for name in named if not name.startswith(("types-", "grpcio-tools", "hatchling"))}
    table = (ROOT / "DESIGN.md").read_text().partition("## Dependencies")[2].lower()
    assert {name for name in named if name.removesuffix("-bin") not in table} == set()
