"""The scripts that a newcomer reads first do what they say."""

import runpy
from pathlib import Path

import lightning as L
import pytest

from pge_lightning.library import Library

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def seeded():
    L.seed_everything(0, verbose=False)


def load(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_collect_and_select(tmp_path, capsys):
    example = load("collect_and_select")
    example["train_sources"](str(tmp_path))
    assert Library(tmp_path).names() == ["mnist", "negative", "turned"]
    accuracy = example["fine_tune"](str(tmp_path))
    assert accuracy > 0.6
    shown = capsys.readouterr().out
    assert "Sources by gap, smaller is better" in shown
    assert "Fine-tuned from" in shown


def test_one_call(tmp_path, capsys):
    selector = load("one_call")["main"](str(tmp_path))
    assert selector.selection.source in {"turned", "edges"}
    assert {line.status for line in selector.selection.ranking.sources} == {"ok"}
    assert "Fine-tuned: accuracy" in capsys.readouterr().out


def test_plain_pytorch(capsys):
    gaps = load("plain_pytorch")["main"]()
    assert gaps["as it is"].high < gaps["random labels"].low
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_each_says_how_to_run_it():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 3
    for script in scripts:
        assert f"python examples/{script.name}" in script.read_text()
