"""Replaces every field of the engines' files with every type; each file must be refused or work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attacks.damage import VALUES, changed, places
from attacks.engine_attacks import SmallSet
from click.testing import CliRunner
from platforms import needs_posix

from selva_engines import EngineError, EngineRefusedError, EngineSourceError, find_engines
from selva_engines.cli import main


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallSet:
    return SmallSet(tmp_path_factory.mktemp("set") / "bundle")


@pytest.fixture(autouse=True)
def whole(small: SmallSet) -> None:
    small.restore()


@pytest.mark.parametrize("file", ["engines", "layers"])
def test_every_field_of_every_type(small: SmallSet, file: str) -> None:
    small.use()
    content = small.content[file]
    for path in places(content):
        for value in VALUES:
            small.write(file, changed(content, path, lambda _, value=value: value))
            try:
                small.use()
            except EngineError as error:
                assert "\n" not in str(error), (path, value)  # noqa: PT017 -- or it works
            except Exception as error:
                pytest.fail(f"{path} = {value!r}: {error!r}")
        small.restore()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format_version",), True),
        (("capabilities",), [8.6]),
        (("capabilities",), "86"),
        (("weights_stripped",), "false"),
        (("max_stems",), "8"),
        (("max_stems",), 65),
        (("version",), "../1"),
        (("engines",), []),
        (("engines", "decoder", "sha256"), 5),
        (("engines", "decoder", "sha256"), "x" * 64),
        (("engines", "decoder", "bytes"), -1),
        (("engines", "decoder", "file"), "other.engine"),
        (("engines", "decoder", "layers_file"), "decoder.engine"),
        (("engines", "decoder", "products"), []),
        (("engines", "decoder", "products", "float16"), "1"),
        (("engines", "decoder", "operations", "UNARY.COS"), 3),
        (("engines", "decoder", "build_s"), float("inf")),
        (("engines", "decoder", "profile", "latents", "min"), [2, 999, 20]),
        (("engines", "decoder", "profile", "latents", "min"), [1, 20]),
    ],
)
def test_refuses_fields_of_engines_json(small: SmallSet, path: tuple[str, ...], value: object) -> None:
    small.write("engines", changed(small.content["engines"], path, lambda _: value))
    with pytest.raises(EngineRefusedError, match=r"engines\.json cannot be parsed \(.*\); remove the folder"):
        find_engines(small.bundle, "tensorrt-rtx", "1.7.1.116", "8.6")


@pytest.mark.parametrize("layers", [{}, [3], [{}], [{"group": 1, "precision": "x", "launches": True}], "x"])
def test_refuses_tables_of_layers(small: SmallSet, layers: object) -> None:
    small.write("layers", layers)
    engines = find_engines(small.bundle, "tensorrt-rtx", "1.7.1.116", "8.6")
    with pytest.raises(EngineRefusedError, match=r"decoder\.layers\.json cannot be parsed"):
        engines.read_layers("decoder")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("precision",), "int4"),
        (("graphs", "decoder", "inputs", 0, "dtype"), "uint9"),
        (("graphs", "decoder", "inputs", 0, "shape"), ["0*stems"]),
        (("files", "graphs/decoder.onnx", "sha256"), 5),
    ],
)
def test_refuses_fields_of_a_manifest(small: SmallSet, path: tuple[str, ...], value: object) -> None:
    small.write("manifest", changed(small.content["manifest"], path, lambda _: value))
    with pytest.raises(EngineSourceError, match=r"manifest\.json is damaged"):
        find_engines(small.bundle, "tensorrt-rtx", "1.7.1.116", "8.6")


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.exception
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    return result.stderr


@pytest.mark.parametrize("file", ["manifest", "engines", "layers"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b"", b"\xff", b"3", b'"x"', b"null"])
def test_the_command_on_files_that_are_none(small: SmallSet, file: str, content: bytes) -> None:
    small.write(file, content)
    line = refusal("inspect", small.bundle)
    assert str(small.files[file].parent) in line


@needs_posix
def test_the_command_on_paths_that_are_no_bundle(small: SmallSet, tmp_path: Path) -> None:
    loose = tmp_path / "loose.engine"
    loose.write_bytes(b"x")
    (tmp_path / "engines" / "set").mkdir(parents=True)
    nested = tmp_path / "engines" / "set" / "x.engine"
    nested.write_bytes(b"x")
    assert "is neither a bundle nor an engine in a bundle" in refusal("inspect", loose)
    assert "is neither a bundle nor an engine in a bundle" in refusal("inspect", small.files["manifest"])
    assert "is neither a bundle nor an engine in a bundle" in refusal("inspect", tmp_path / "nowhere")
    assert "so it is not a bundle; make a bundle with selva-export" in refusal("inspect", nested)
    assert "so it is not a bundle; make a bundle with selva-export" in refusal("inspect", tmp_path)
    for name in ("loop", "file"):
        path = small.bundle / "engines" / name
        path.symlink_to(path) if name == "loop" else path.write_bytes(b"x")
        assert "incomplete: it has no readable engines.json" in refusal("inspect", small.bundle)
        path.unlink()


def test_an_engine_at_the_root_of_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert refusal("inspect", "/any.engine") == "error: /any.engine is neither a bundle nor an engine in a bundle\n"


def test_an_intact_set_is_shown(small: SmallSet) -> None:
    result = CliRunner().invoke(main, ["inspect", str(small.folder / "decoder.engine"), "--json"])
    (entry,) = json.loads(result.stdout)
    assert entry["kinds"] == {"gemm": {"float16": 1}}
