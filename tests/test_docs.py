"""The documentation as a site: it builds without a warning, asks nobody else, and its pages start with a command."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TASKS = sorted((ROOT / "docs" / "tasks").glob("*.md"))


class Fetched(HTMLParser):
    """Addresses that a browser fetches by itself, and the pages that a page links."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.linked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.fetched.append(given.get("src") or "")
        elif tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon"):
            self.fetched.append(given.get("href") or "")
        elif tag == "a":
            self.linked.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings", "mkdocs_jupyter"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


def test_the_site_has_every_page_the_api_and_the_notebooks(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), page
    api = (site / "API.html").read_text()
    for name in ("lookupvit.model.lookupvit.LookupViT", "lookupvit.interop.load_model.load_model"):
        assert f'id="{name}"' in api
    assert "Default compressed grid" in api  # a docstring
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = (site / "notebooks" / f"{notebook.stem}.html").read_text()
        assert "jp-OutputArea-output" in page and "data:image/png" in page, notebook.name


def test_no_page_asks_another_machine_or_links_nothing(site: Path) -> None:
    for page in sorted(set(site.rglob("*.html")) - {site / "404.html"}):  # which does not know where it is shown
        found = Fetched()
        found.feed(page.read_text())
        outside = [address for address in found.fetched if re.match(r"(https?:)?//", address)]
        assert not outside, (page.name, outside)
        for address in found.linked:
            target = address.partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), (page.name, address)


@pytest.mark.parametrize("page", TASKS, ids=lambda page: page.stem)
def test_a_page_of_a_task_starts_with_a_command(page: Path) -> None:
    first = re.search(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    assert first is not None and first.start() < 900, "a command near the top"
    assert re.match(r"(lookupvit|make) ", first[1])


def test_the_readme_is_short_and_names_the_site() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split()) < 1040  # half of what it was
    assert "make docs" in readme and "docs/WHICH_SIZE.md" in readme
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", readme):
        assert (ROOT / target).exists(), target
    assert all((ROOT / "docs" / "tasks" / page.name).name in readme for page in TASKS)
