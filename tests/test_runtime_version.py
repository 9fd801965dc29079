"""All commands have the same version and the same entry point."""

import re
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import selva_runtime
from selva_runtime.command import start

SETUP = (Path(__file__).parents[1] / "setup.py").read_text()
SCRIPTS = dict(re.findall(r'"(selva-\w+)=selva_runtime\.command\.start:(\w+)"', SETUP))


@pytest.fixture
def sigint_restored():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_version_is_the_distributions():
    assert selva_runtime.__version__ == version("selva-deploy")
    assert f'version="{selva_runtime.__version__}"' in SETUP


def test_every_command_starts_in_one_place():
    assert len(SCRIPTS) == SETUP.count('"selva-') - SETUP.count('name="selva-')


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_says_its_version(sigint_restored, monkeypatch, capsys, script):
    monkeypatch.setattr(sys, "argv", [script, "--version"])
    with pytest.raises(SystemExit) as ended:
        getattr(start, SCRIPTS[script])()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{script} {version('selva-deploy')}\n")
