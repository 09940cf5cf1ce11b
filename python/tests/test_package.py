from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import kvquant
import kvquant._core
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))


def test_the_stub_is_what_make_stubs_writes() -> None:
    from make_stub import make_stub

    assert (ROOT / "python/kvquant/_core.pyi").read_text() == make_stub()


def test_every_public_name_of_the_extension_is_exported() -> None:
    core = {name for name in dir(kvquant._core) if not name.startswith("_")}
    internal = {"calibrate_tokens", "check_preset_fits", "evaluate_tokens", "name_of_checkpoint"}
    internal |= {"round_calibration", "tune_candidates", "tune_with", "TuneTexts"}
    assert core - set(kvquant.__all__) == internal
    assert all(hasattr(kvquant, name) for name in kvquant.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", kvquant.__version__)
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{kvquant.__version__}"' in project


def test_everything_says_what_it_is() -> None:
    silent = [
        name
        for name in kvquant.__all__
        if not inspect.getdoc(getattr(kvquant, name)) and not name.endswith(("Error", "Memory"))
    ]
    assert silent == []


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvquant", *arguments], capture_output=True, text=True, check=False
    )


def test_the_program_runs_from_the_package() -> None:
    done = run_program("formats", "--resolve", "nuq3-1%")
    assert done.returncode == 0
    assert done.stdout.strip() == kvquant.resolved("nuq3-1%")
    assert run_program("--version").stdout.strip() == kvquant.version()
    wrong = run_program("no-such-command")
    assert wrong.returncode == 2
    assert "no-such-command" in wrong.stderr


def test_the_program_finds_the_packages_files() -> None:
    done = run_program("presets", "-m", "embedded", "balanced")
    assert done.returncode == 0
    assert "calibration" in done.stdout


def test_requirements_agree_with_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for line in (ROOT / "python/requirements.txt").read_text().splitlines():
        name = line.partition("==")[0]
        if not line.startswith("#") and name not in ("numpy", "pytest", "ruff", "mypy"):
            assert f'"{line}"' in project


EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_examples_of_the_documentation_run(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[index], f"docs/python.md example {index + 1}", "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4
