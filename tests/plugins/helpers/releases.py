"""Headers of other releases of TensorRT, rebuilt from those at hand by what is known to differ.

The wheel's headers are of 10.14. What the plugins use was compared, declaration by declaration, with NVIDIA/TensorRT at
10.0.0 (commit 147005ff), at 10.7.0 (17003e43), and with 11.2.1 (kevinch-nv/TensorRT, ca754f7c); the registry of 11 follows
NVIDIA's list of C++ APIs removed in 11.x. Each difference is an edit here, and an edit that does not match fails. A rebuilt
header is no release: docs/decisions/0014-releases-of-tensorrt.md says what this can show.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from tokenrt.plugins.toolchain.compiler import cache
from tokenrt.plugins.toolchain.headers import headers

BASE = "10.14.1"
"""The release whose headers are edited."""

Edit = tuple[str, str, str]
"""File, pattern, replacement; the pattern is found exactly once."""


def _numbers(major: int, minor: int, patch: int) -> tuple[Edit, ...]:
    """The numbers written directly, as in 10.7, or through other macros, as in 10.14."""
    file, through, edits = "NvInferVersion.h", (major, minor) >= (10, 14), []
    for name, value in (("MAJOR", major), ("MINOR", minor), ("PATCH", patch)):
        own = f"TRT_{name}_ENTERPRISE"
        edits.append((file, rf"#define {own} \d+\n", f"#define {own} {value}\n" if through else ""))
        edits.append(
            (file, rf"_{name} {own}", f"_{name} {own if through else value}"),
        )
    return tuple(edits)


EARLIER: tuple[Edit, ...] = (
    # Types of numbers that came with 10.7 to 10.9.
    ("NvInferRuntimeBase.h", r"\n    kFP4 = 10,(.|\n)*?kE8M0 = 11,\n", "\n"),
    ("NvInferPluginBase.h", r"\n    kINT4 = 12,(.|\n)*?kFP4 = 13,\n", "\n"),
    # Members without a value of their own.
    ("NvInferPluginBase.h", r"int32_t nbFields\{\};", "int32_t nbFields;"),
    ("NvInferPluginBase.h", r"PluginField const\* fields\{\};", "PluginField const* fields;"),
)

LATER: tuple[Edit, ...] = (
    # The finder of loggers became a versioned interface, and its name an alias.
    (
        "NvInferRuntime.h",
        r"class ILoggerFinder\n\{\npublic:\n",
        "namespace v_1_0\n{\nclass ILoggerFinder : public IVersionedInterface\n{\npublic:\n    InterfaceInfo getInterfaceInfo() "
        'const noexcept override\n    {\n        return {"ILoggerFinder", 1, 0};\n    }\n',
    ),
    (
        "NvInferRuntime.h",
        r"virtual ~ILoggerFinder\(\) = default;\n\};",
        "~ILoggerFinder() override = default;\n};\n}\nusing ILoggerFinder = v_1_0::ILoggerFinder;",
    ),
    # The registry lost what took creators of plugins before IPluginV3.
    ("NvInferRuntimeCommon.h", r"TRT_DEPRECATED virtual bool registerCreator\([^;]*;", ""),
    ("NvInferRuntimeCommon.h", r"TRT_DEPRECATED virtual IPluginCreator\* const\* getPluginCreatorList[^;]*;", ""),
    ("NvInferRuntimeCommon.h", r"TRT_DEPRECATED virtual IPluginCreator\* getPluginCreator\([^;]*;", ""),
    ("NvInferRuntimeCommon.h", r"TRT_DEPRECATED virtual bool deregisterCreator\([^;]*;", ""),
)  # fmt: skip

RELEASES: Mapping[str, tuple[Edit, ...]] = {
    "10.2.0": (*_numbers(10, 2, 0), *EARLIER),
    "10.3.0": (*_numbers(10, 3, 0), *EARLIER),
    "11.2.1": (*_numbers(11, 2, 1), *LATER),
}
"""Release -> what its headers have otherwise. 10.2 is one too old."""


def rebuilt(release: str) -> Path:
    """Return a folder with the headers of a release, written now unless the cache has it."""
    base = headers()
    assert base.version == BASE, f"the edits are of {BASE}; {base.folder} has {base.version}"
    edits = RELEASES[release]
    key = hashlib.sha256(repr((base.folder, edits)).encode()).hexdigest()[:12]
    folder = cache() / f"tensorrt-rebuilt-{release}-{key}"
    if (folder / "NvInfer.h").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(base.folder.glob("*.h"), key=lambda path: path.name == "NvInfer.h"):
        text = path.read_text(encoding="utf-8")
        for name, pattern, replacement in edits:
            if name == path.name:
                text, times = re.subn(pattern, lambda _, to=replacement: to, text)
                assert times == 1, f"{name}: {pattern!r} is there {times} times"
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder
