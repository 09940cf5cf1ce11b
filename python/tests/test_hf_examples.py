"""What docs/huggingface.md and python/examples show runs on the embedded model."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from hf_models import ROOT

SCRIPTS = sorted((ROOT / "python/examples").glob("*.py"))
EXAMPLES = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/huggingface.md").read_text(encoding="utf-8"), re.DOTALL
)
WORDS = {
    "quick_start": "of them compressed",
    "per_layer_mix": "nuq3-1%,layers=0-1:fp16",
    "long_document": "What happened at the end?",
    "tune_and_deploy": "times smaller than fp16",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_run(
    script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "embedded"])
    runpy.run_path(str(script))
    assert WORDS[script.stem] in capsys.readouterr().out


def test_all_scripts_are_there() -> None:
    assert [script.stem for script in SCRIPTS] == sorted(WORDS)


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_examples_of_the_documentation_run(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[index], f"docs/huggingface.md example {index + 1}", "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4
