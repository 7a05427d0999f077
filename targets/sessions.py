"""ONNX Runtime sessions on a chosen provider, with a clear word when it cannot be had.

ONNX Runtime itself falls back to the CPU with a line in a log; here that is an error, or a fallback that was asked for.
The CUDA, TensorRT and TensorRT-RTX routes are unverified beyond their refusals: no GPU was there to run them on.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tokenrt.errors import TargetError
from tokenrt.passes.checking.runtime import session_options
from tokenrt.passes.graph.model import ModelLike, on_disk

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
QUIET = 4
"""Fatal messages only: what ONNX Runtime logs about a provider is raised here, with the remedy."""


@dataclass(frozen=True)
class Provider:
    """One way to run a model: ONNX Runtime's name, those behind it for what it leaves, its library, the remedy."""

    name: str
    behind: tuple[str, ...]
    library: str
    remedy: str


PROVIDERS: Mapping[str, Provider] = {
    "cpu": Provider(CPU, (), "", "pip install onnxruntime"),
    "cuda": Provider(
        CUDA,
        (CPU,),
        "libonnxruntime_providers_cuda.so",
        "pip install 'onnxruntime-gpu[cuda,cudnn]' brings the libraries; the GPU needs a driver for that CUDA",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        (CUDA, CPU),
        "libonnxruntime_providers_tensorrt.so",
        "install the TensorRT that onnxruntime-gpu was built for, and put its libraries on LD_LIBRARY_PATH",
    ),
    "tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider",
        (CPU,),
        "",
        "install an ONNX Runtime with the TensorRT-RTX provider; onnxruntime-gpu comes without it",
    ),
}


def session(
    model: ModelLike,
    provider: str = "cpu",
    *,
    fallback: Iterable[str] = (),
    plugins: Iterable[str | os.PathLike[str]] = (),
    cache: str | os.PathLike[str] | None = None,
    device: int = 0,
    threads: int | None = None,
) -> Any:
    """Open an `onnxruntime.InferenceSession` on a provider: cpu, cuda, tensorrt or tensorrt-rtx.

    fallback: providers to try in turn when that one cannot be had; none means an error. plugins: libraries with the
    tokenrt plugins, for tensorrt. cache: a folder where the TensorRT providers keep their engines. device: the GPU's
    number. threads: of one operator on the CPU.

    Raises: TargetError naming what is missing and the remedy, for every provider that was tried.
    """
    wanted = [provider, *fallback]
    for name in wanted:
        if name not in PROVIDERS:
            raise TargetError(f"no provider {name!r}; there are {', '.join(PROVIDERS)}")
    libraries = [Path(library) for library in plugins]
    if libraries and "tensorrt" not in wanted:
        raise TargetError(f"plugins ({libraries[0]}) are loaded by the provider tensorrt, not by {provider}")
    reasons = []
    with on_disk(model) as path:
        for name in wanted:
            found, reason = _open(path, name, _options(name, libraries, cache, device), threads)
            if found is not None:
                return found
            reasons.append(f"{name}: {reason}")
    raise TargetError(f"{_name(model)} cannot run as asked. {' '.join(reasons)}")


def missing(provider: str) -> str:
    """Why a provider cannot be had here, or nothing when nothing speaks against it."""
    import onnxruntime

    chosen = PROVIDERS[provider]
    if chosen.name not in onnxruntime.get_available_providers():
        return f"this ONNX Runtime ({onnxruntime.__version__}) comes without {chosen.name}"
    library = Path(onnxruntime.__file__).parent / "capi" / chosen.library
    if not chosen.library or not library.is_file():
        return ""
    try:
        ctypes.CDLL(str(library.with_name("libonnxruntime_providers_shared.so")), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as cause:
        return str(cause)
    return ""


def _open(path: Path, name: str, options: Mapping[str, str], threads: int | None) -> tuple[Any, str]:
    import onnxruntime

    chosen = PROVIDERS[name]
    if why := missing(name):
        return None, f"{why} ({chosen.remedy})."
    settings = session_options(path, severity=QUIET)
    if threads is not None:
        settings.intra_op_num_threads = threads
    behind: list[tuple[str, dict[str, str]]] = [(other, {}) for other in chosen.behind]
    try:
        with _quiet(onnxruntime):
            found = onnxruntime.InferenceSession(
                str(path), settings, providers=[(chosen.name, dict(options)), *behind]
            )
    except Exception as cause:
        # The runtime raises types of its own for every kind of failure; all mean that it does not run.
        return None, f"{' '.join(str(cause).split())}."
    if found.get_providers()[0] != chosen.name:
        return None, f"the session runs on {found.get_providers()[0]} instead ({chosen.remedy})."
    return found, ""


def _options(
    name: str, plugins: list[Path], cache: str | os.PathLike[str] | None, device: int
) -> dict[str, str]:
    """The provider's options. Source: ONNX Runtime documentation, the pages of the execution providers."""
    if name == "cpu":
        return {}
    options = {"device_id": str(device)}
    if name == "tensorrt" and plugins:
        options["trt_extra_plugin_lib_paths"] = ";".join(map(str, plugins))
    if cache is not None and name == "tensorrt":
        folder = os.fspath(cache)
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": folder}
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": folder}
    if cache is not None and name == "tensorrt-rtx":
        options["nv_runtime_cache_path"] = os.fspath(cache)
    return options


@contextmanager
def _quiet(onnxruntime: Any) -> Iterator[None]:
    onnxruntime.set_default_logger_severity(QUIET)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)


def _name(model: ModelLike) -> str:
    return str(model.graph.name or "the model") if isinstance(model, ir.Model) else os.fspath(model)
