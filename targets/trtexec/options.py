"""The options of trtexec, per major release of TensorRT, and a reader that is as strict as trtexec is.

Sources: `trtexec --help` of TensorRT 10.5; NVIDIA TensorRT documentation, "Migrating trtexec Usage from TensorRT 10.x
to 11.x" (11.4.1); trtexec source 11.1. Only what these state of 11 is taken as known there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokenrt.errors import BuildError

FILE, SHAPES, NUMBER, WORDS = "FILE", "NAME:DIMS,...", "N", "WORDS"
"""Kinds of values; an option of no kind is a switch."""


@dataclass(frozen=True)
class Option:
    """One option: what value it takes, whether it may be given again, and in which majors it exists."""

    name: str
    value: str | None = None
    repeats: bool = False
    majors: frozenset[int] = frozenset({10, 11})


def _both(value: str | None, names: str, repeats: bool = False) -> list[Option]:
    return [Option(name, value, repeats) for name in names.split()]


def _only(major: int, value: str | None, names: str) -> list[Option]:
    return [Option(name, value, majors=frozenset({major})) for name in names.split()]


_TABLE = [
    *_both(FILE, "onnx saveEngine loadEngine timingCacheFile leanDLLPath tempdir"),
    *_both(FILE, "exportTimes exportOutput exportProfile exportLayerInfo"),
    *_both(FILE, "staticPlugins dynamicPlugins setPluginsToSerialize", repeats=True),
    *_both(SHAPES, "minShapes optShapes maxShapes shapes"),
    *_both(NUMBER, "avgTiming builderOptimizationLevel maxAuxStreams maxTactics useDLACore device"),
    *_both(NUMBER, "iterations warmUp duration sleepTime idleTime infStreams avgRuns useProfile"),
    *_both(NUMBER, "profile persistentCacheRatio weightStreamingBudget"),
    *_both(
        WORDS, "memPoolSize profilingVerbosity sparsity tacticSources preview inputIOFormats outputIOFormats"
    ),
    *_both(WORDS, "hardwareCompatibilityLevel runtimePlatform tempfileControls layerDeviceTypes useRuntime"),
    *_both(WORDS, "loadInputs percentile allocationStrategy markDebug saveDebugTensors"),
    *_both(
        None, "refit stripWeights stripAllWeights versionCompatible excludeLeanRuntime noTF32 directIO safe"
    ),
    *_both(None, "buildDLAStandalone allowGPUFallback restricted getPlanVersionOnly noBuilderCache"),
    *_both(None, "noCompilationCache errorOnTimingCacheMiss allowWeightStreaming pluginInstanceNorm"),
    *_both(
        None, "exposeDMA useManagedMemory threads timeDeserialize timeRefit separateProfileRun skipInference"
    ),
    *_both(None, "verbose dumpRefit dumpOutput dumpRawBindingsToFile dumpProfile dumpLayerInfo"),
    *_both(None, "dumpOptimizationProfile ignoreParsedPluginLibs help"),
    *_only(10, None, "fp16 bf16 int8 fp8 int4 best stronglyTyped weightless"),
    *_only(10, WORDS, "precisionConstraints layerPrecisions layerOutputTypes"),
    *_only(10, FILE, "calib"),
    *_only(10, SHAPES, "minShapesCalib optShapesCalib maxShapesCalib"),
    *_only(10, NUMBER, "calibProfile"),
    # 11 does by default what these ask of 10, and has a switch for the opposite.
    *_only(10, None, "useCudaGraph useSpinWait noDataTransfers"),
    *_only(11, None, "noCudaGraph noSpinWait includeDataTransfers"),
]

OPTIONS: Mapping[str, Option] = {option.name: option for option in _TABLE}
MAJORS = (10, 11)


def read(arguments: Iterable[str], major: int) -> dict[str, list[str]]:
    """The options of a command line by name, with their values; a switch has none.

    Raises: BuildError naming the argument that trtexec of this major would refuse.
    """
    found: dict[str, list[str]] = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        option = OPTIONS.get(name) if argument.startswith("--") else None
        if option is None:
            raise BuildError(f"trtexec {argument}: no such option")
        if major not in option.majors:
            there = " and ".join(map(str, sorted(option.majors)))
            raise BuildError(f"trtexec {argument}: an option of TensorRT {there}, not of {major}")
        if option.value is None and equals:
            raise BuildError(f"trtexec {argument}: --{name} is a switch and takes no value")
        if option.value is not None:
            _check(argument, option, value)
        if name in found and not option.repeats:
            raise BuildError(f"trtexec {argument}: --{name} is given twice")
        found.setdefault(name, []).extend([value] if option.value is not None else [])
    if {"onnx", "loadEngine"} <= found.keys():
        raise BuildError("trtexec: --onnx and --loadEngine name two engines")
    if not found.keys() & {"onnx", "loadEngine", "help"}:
        raise BuildError("trtexec: neither --onnx nor --loadEngine is given")
    return found


def _check(argument: str, option: Option, value: str) -> None:
    if not value:
        raise BuildError(f"trtexec {argument}: expected --{option.name}={option.value}")
    if (
        option.value == NUMBER
        and not value.removeprefix("-").removesuffix("%").replace(".", "", 1).isdecimal()
    ):
        raise BuildError(f"trtexec {argument}: {value!r} is not a number")
    if option.value == SHAPES:
        for part in value.split(","):
            name, colon, dims = part.rpartition(":")
            if not (name and colon) or not all(size.isdecimal() for size in dims.split("x")):
                raise BuildError(f"trtexec {argument}: {part!r} is not a shape such as pixels:1x3x224x224")
