"""Load engines into TensorRT. A file that fails a check never reaches the library.

A weight-stripped engine gets its weights from the bundle's ONNX file, which is hashed first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selva_engines.errors import EngineRefusedError
from selva_engines.library import Library
from selva_engines.store import EngineSet


class EngineLoader:
    """Deserialises the engines of one set. Keep it as long as its engines are in use.

    Raises:
        EngineRefusedError: the set is for another library or version.
    """

    def __init__(self, library: Library, engines: EngineSet) -> None:
        made_for, here = (engines.target, engines.version), (library.target.name, library.version)
        if made_for != here:
            raise EngineRefusedError(
                f"the engines in {engines.folder} are for {' '.join(made_for)}, but this is {' '.join(here)}; "
                f"run: selva-engines {engines.source.path} --target {library.target.name}"
            )
        self._library = library
        self._engines = engines
        self._runtime = library.api.Runtime(library.logger)

    def load(self, name: str) -> Any:
        """Load an engine and return its `ICudaEngine`.

        Raises:
            EnginesMissingError: the set has no such engine.
            EngineRefusedError: the file was altered, or the library refuses it. The message says why.
            EngineSourceError: the graph with the weights of a weight-stripped engine was altered.
        """
        blob = self._engines.read(name)
        self._library.log.clear()
        self._check_validity(name, blob)
        engine = self._runtime.deserialize_cuda_engine(blob)
        if engine is None:
            raise self._rejected(name, self._library.log.error_line())
        if self._engines.weights_stripped:
            with self._engines.source.verified_graph(name) as path:
                self._refit(name, engine, path)
        return engine

    def _check_validity(self, name: str, blob: bytes) -> None:
        """Let the library check the header. TensorRT has no such function and checks when it deserialises."""
        check = getattr(self._runtime, "get_engine_validity", None)
        if check is None:
            return
        validity, diagnostics = check(blob)
        if validity == self._library.api.EngineValidity.INVALID:
            raise self._rejected(name, self._reasons(int(diagnostics)))

    def _reasons(self, diagnostics: int) -> str:
        kinds = self._library.api.EngineInvalidityDiagnostics.__members__
        named = [kind.lower().replace("_", " ") for kind, value in kinds.items() if diagnostics & int(value)]
        return ", ".join(named) or self._library.log.error_line()

    def _refit(self, name: str, engine: Any, onnx_path: Path) -> None:
        api = self._library.api
        refitter = api.Refitter(engine, self._library.logger)
        parser = api.OnnxParserRefitter(refitter, self._library.logger)
        if not parser.refit_from_file(str(onnx_path)) or not refitter.refit_cuda_engine():
            said = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
            raise self._rejected(name, f"its weights cannot be refitted: {said or self._library.log.error_line()}")

    def _rejected(self, name: str, reason: str) -> EngineRefusedError:
        path = self._engines.folder / self._engines.engines[name].file
        command = self._engines.build_command
        return EngineRefusedError(f"{self._library.target.name} rejected {path}: {reason}; run: {command}")
