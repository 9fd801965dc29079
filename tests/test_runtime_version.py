"""All commands have the same version and the same entry point."""

import signal
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import selva_runtime
from selva_runtime.command import start

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPTS = {script: target.partition(":") for script, target in PROJECT["scripts"].items()}


@pytest.fixture
def sigint_restored():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_version_is_the_distributions():
    assert selva_runtime.__version__ == version("selva-deploy") == PROJECT["version"]


def test_every_command_starts_in_one_place():
    assert {module for module, _, _ in SCRIPTS.values()} == {"selva_runtime.command.start"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_says_its_version(sigint_restored, monkeypatch, capsys, script):
    monkeypatch.setattr(sys, "argv", [script, "--version"])
    with pytest.raises(SystemExit) as ended:
        getattr(start, SCRIPTS[script][2])()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{script} {version('selva-deploy')}\n")
