"""Find out which GPU is here through cuda-python, an extra that is imported only when it is needed."""

from __future__ import annotations

from typing import Any

from selva_engines.errors import EngineLibraryError


def device_capability(ordinal: int = 0) -> str:
    """Return the compute capability of a GPU, such as "8.6".

    Raises:
        EngineLibraryError: there is no GPU, no driver or no cuda-python.
    """
    try:
        from cuda.bindings import driver

        _check(driver.cuInit(0))
        device = _check(driver.cuDeviceGet(ordinal))
        attributes = driver.CUdevice_attribute
        major = _check(driver.cuDeviceGetAttribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
        minor = _check(driver.cuDeviceGetAttribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    except Exception as error:  # no cuda-python, no driver, no device: each raises its own error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EngineLibraryError(f"no usable NVIDIA GPU: {reason}") from error
    return f"{major}.{minor}"


def _check(result: tuple[Any, ...]) -> Any:
    code, *values = result
    if int(code) != 0:
        raise RuntimeError(str(code))
    return values[0] if values else None
