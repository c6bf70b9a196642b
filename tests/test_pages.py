"""The pages tell what is true: numbers of the benchmarks, links, and code that runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import page as pages  # noqa: E402

PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "meshes" / "README.md"]


def test_tables_are_up_to_date():
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "page.py", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_rows_of_demos_that_several_states_of_the_code_made_are_refused(monkeypatch):
    record = pages.load("demos")
    table = pages.demo_table()
    monkeypatch.setattr(pages, "load", lambda name: record)
    for row in record["results"]:
        row["code"] = "0123456789ab"
    assert pages.demo_table() == table
    first, second, *_ = record["results"]
    first["code"] = "ba9876543210"
    with pytest.raises(SystemExit, match=f"{first['demo']}: ba98.*run python benchmarks/demos.py"):
        pages.demo_table()
    del second["code"]
    assert pages.demo_table() == table


def test_links_in_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_twenty_lines_of_the_readme_run(tmp_path):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"## Twenty lines\n\n```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    for large, small in (("(32, 32)", "(5, 5)"), ("(64, 64)", "(7, 7)"), (" 500,", " 6,")):
        assert large in code
        code = code.replace(large, small)
    code = code.replace("epochs=50", "epochs=1").replace("Spectral()", "Spectral(modes=9)")
    code += "\nassert y.shape == (6, U.dim()) and fine.decoder.space.dim() == 225\n"
    (tmp_path / "script.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path, env=os.environ
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "poisson.spon").exists()
