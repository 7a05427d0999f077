"""Finding nvcc and TensorRT's headers: on PATH, in CUDA_HOME, in wheels, or a message that says what mends it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tokenrt.errors import BuildError, UnsupportedError
from tokenrt.plugins.toolchain import headers, wheels
from tokenrt.plugins.toolchain import nvcc as toolchain

NEW, OLD = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121), (50, 60, 70, 75, 80, 86, 87, 89, 90)


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No toolkit, no wheels, no TensorRT, and a cache of its own."""
    for name in (*toolchain.PLACES, headers.ROOT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(toolchain, "USUAL", tmp_path / "usual")
    monkeypatch.setattr(wheels, "roots", lambda: iter(()))
    monkeypatch.setattr(headers, "USUAL", (str(tmp_path / "include"),))


def nvcc_in(folder: Path, release: str = "12.6.85", known: Sequence[int] = OLD) -> Path:
    """A program that answers the three questions that are asked of nvcc."""
    place = folder / "bin" / "nvcc"
    place.parent.mkdir(parents=True, exist_ok=True)
    codes = "\\n".join(f"sm_{arch}" for arch in known)
    place.write_text(
        "#!/bin/sh\ncase $1 in\n"
        f"--version) echo 'Cuda compilation tools, release {release[:4]}, V{release}';;\n"
        f"--list-gpu-code) printf '{codes}\\nsm_90a\\n';;\n"
        f"*) echo '#$ TOP={folder}/bin/..' >&2;;\nesac\n"
    )
    place.chmod(0o755)
    return place


def wheels_in(folder: Path, release: str = "13.0.88") -> Path:
    """What the wheels leave behind, `nvidia/cu13`."""
    nvcc_in(folder, release, NEW)
    for name in (
        "nvvm/bin/cicc",
        "include/crt/host_config.h",
        "include/cuda_runtime.h",
        "lib/libcudart.so.13",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "include" / "cccl").mkdir(exist_ok=True)
    return folder


def test_an_older_nvcc_drops_what_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc_in(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = toolchain.toolkit()
    assert (found.version, found.found, found.root) == ("12.6.85", "CUDA_HOME", tmp_path)
    assert found.architectures == (75, 80, 86, 87, 89, 90)
    assert found.dropped == (100, 103, 110, 120, 121)
    assert found.check((90, 75, 90)) == (75, 90)
    with pytest.raises(
        UnsupportedError, match=r"nvcc 12\.6\.85 .* does not compile for sm_100; it knows 50, "
    ):
        found.check((89, 100))


def test_the_order_is_setting_path_usual_place_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "roots", lambda: iter([wheels_in(tmp_path / "nvidia" / "cu13")]))
    monkeypatch.setattr(wheels, "releases", dict)
    assert toolchain.look().found == wheels.FOUND
    nvcc_in(tmp_path / "usual", "12.1.1")
    assert toolchain.look().version == "12.1.1"
    nvcc_in(tmp_path / "path", "12.2.2")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path' / 'bin'}:/usr/bin:/bin")
    assert (toolchain.look().version, toolchain.look().found) == ("12.2.2", "PATH")
    nvcc_in(tmp_path / "set", "12.3.3")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "set"))
    assert (toolchain.look().version, toolchain.look().found) == ("12.3.3", "CUDA_PATH")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(UnsupportedError, match=r"CUDA_HOME=.*nowhere has no bin/nvcc; set it to"):
        toolchain.look()


def test_nothing_found_says_where_it_looked_and_what_to_do() -> None:
    told = r"CUDA_HOME and CUDA_PATH not set, not on PATH, .*no wheels of nvcc.*pip install 'tokenrt\[cuda\]'"
    with pytest.raises(UnsupportedError, match=told):
        toolchain.toolkit()


def test_wheels_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = wheels_in(tmp_path / "cu13")
    (folder / "nvvm" / "bin" / "cicc").unlink()
    monkeypatch.setattr(wheels, "roots", lambda: iter([folder]))
    with pytest.raises(UnsupportedError, match="of its wheels nvidia-nvvm missing"):
        toolchain.toolkit()


def test_wheels_become_one_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = wheels_in(tmp_path / "cu13"), tmp_path / "other" / "cu13"
    (other / "bin").mkdir(parents=True)
    (other / "bin" / "cuobjdump").touch()
    monkeypatch.setattr(wheels, "roots", lambda: iter([folder, other]))
    monkeypatch.setattr(wheels, "releases", lambda: dict.fromkeys(wheels.PARTS, "13.0"))
    found = toolchain.toolkit()
    prefix = found.nvcc.parent.parent
    assert prefix.is_relative_to(tmp_path / "cache")
    assert (prefix / "lib64" / "libcudart.so").resolve() == folder / "lib" / "libcudart.so.13"
    assert (prefix / "include" / "crt" / "host_config.h").is_file()
    assert found.tool("cuobjdump") == prefix / "bin" / "cuobjdump"
    assert toolchain.toolkit() == found
    with pytest.raises(UnsupportedError, match=r"reading machine code needs nvdisasm.*pip install"):
        found.tool("nvdisasm")


def test_wheels_of_different_releases_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "roots", lambda: iter([wheels_in(tmp_path / "cu13", "13.5.37")]))
    told = {"nvidia-cuda-nvcc": "13.5", "nvidia-cuda-runtime": "13.0"}
    monkeypatch.setattr(wheels, "releases", lambda: told)
    with pytest.raises(
        UnsupportedError, match=r"nvidia-cuda-nvcc 13\.5, .*pip install 'nvidia-cuda-nvcc==13\.0\.\*'"
    ):
        toolchain.toolkit()


def test_what_is_no_nvcc_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = nvcc_in(tmp_path)
    place.write_text("#!/bin/sh\necho hello\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildError, match="does not answer as nvcc does"):
        toolchain.look()


def test_architectures_are_read_and_written() -> None:
    assert toolchain.parse("89, sm_90,12.0") == (89, 90, 120)
    for bad in ("", "ampere", "9", "compute_90"):
        with pytest.raises(UnsupportedError, match="is no architecture"):
            toolchain.parse(bad)
    assert toolchain.gencode((80, 89)) == (
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_89,code=sm_89",
        "-gencode=arch=compute_89,code=compute_89",
    )
    assert toolchain.gencode((80,), ptx=False) == ("-gencode=arch=compute_80,code=sm_80",)


def test_wheels_compile_for_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path))
    if wheels.lacking():
        pytest.skip(f"not installed: {', '.join(wheels.lacking())}")
    nvcc = wheels.file("bin/nvcc")
    assert nvcc is not None
    version = toolchain._described(nvcc, wheels.FOUND, 0).version
    source = tmp_path / "one.cu"
    source.write_text("#include <cuda_fp16.h>\n__global__ void one(__half* x) { *x = __float2half(1.0f); }\n")
    prefix = wheels.joined(version)
    command = [prefix / "bin" / "nvcc", "-shared", "-cudart=shared", "-Xcompiler=-fPIC"]
    subprocess.run([*command, *toolchain.gencode((75, 90)), source, "-o", tmp_path / "one.so"], check=True)
    assert (tmp_path / "one.so").is_file()


# Headers -------------------------------------------------------------------------------------------------------------

DIRECT = (
    "#define NV_TENSORRT_MAJOR {} //!< major\n#define NV_TENSORRT_MINOR {}\n#define NV_TENSORRT_PATCH {}\n"
)
ENTERPRISE = (
    "#define TRT_MAJOR_ENTERPRISE {}\n#define TRT_MINOR_ENTERPRISE {}\n#define TRT_PATCH_ENTERPRISE {}\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n"
)


def headers_in(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / headers.MAIN).touch()
    (folder / headers.NUMBERS).write_text(text)
    return folder


@pytest.mark.parametrize("inside", headers.FOLDERS)
def test_headers_of_the_folder_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    folder = headers_in(tmp_path / "trt" / inside, DIRECT.format(10, 3, 0))
    monkeypatch.setenv(headers.ROOT, str(tmp_path / "trt"))
    assert headers.headers() == headers.Headers(folder, "10.3.0", headers.ROOT)


def test_installed_headers_come_before_the_wheel(tmp_path: Path) -> None:
    folder = headers_in(tmp_path / "include", ENTERPRISE.format(11, 4, 1))
    assert headers.headers(fetch=False) == headers.Headers(folder, "11.4.1", "installed TensorRT")


def test_headers_too_old_or_odd_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = headers_in(tmp_path / "include", DIRECT.format(8, 6, 1))
    with pytest.raises(
        UnsupportedError, match=r"are of 8\.6\.1; the plugins need 10\.3 or later; set TENSORRT_ROOT"
    ):
        headers.headers()
    (folder / headers.NUMBERS).write_text("")
    with pytest.raises(UnsupportedError, match="does not say which release"):
        headers.headers()
    monkeypatch.setenv(headers.ROOT, str(tmp_path))
    (folder / headers.MAIN).unlink()
    with pytest.raises(UnsupportedError, match=r"TENSORRT_ROOT=.* has no include/NvInfer\.h"):
        headers.headers()


def test_headers_are_not_fetched_unasked(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"let tokenrt plugins build fetch kernel-lens==2\.0\.1"):
        headers.headers(fetch=False)
    assert not (tmp_path / "cache").exists()


def test_headers_are_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "DIGEST", "0" * 64)
    with pytest.raises(
        BuildError, match=r"cannot fetch TensorRT's headers \(kernel-lens==2\.0\.1\): .*set TENSORRT_ROOT"
    ):
        headers.headers()
    assert not [*(tmp_path / "cache").rglob("*.h")]
    monkeypatch.undo()
    monkeypatch.delenv(headers.ROOT, raising=False)
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(headers, "USUAL", ())
    try:
        found = headers.headers()
    except BuildError as offline:
        pytest.skip(f"no package index here: {offline}")
    assert found.version == "10.14.1"
    assert headers.headers(fetch=False) == found


def test_doctor_tells_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenrt import doctor

    rows = {row["name"]: row for row in doctor().as_dict()["findings"]}
    assert "pip install 'tokenrt[cuda]'" in rows["nvcc"]["remedy"]
    assert "pip install 'tokenrt[cuda]'" in rows["cuobjdump"]["remedy"]
    assert "TENSORRT_ROOT" in rows["TensorRT headers"]["remedy"]
    nvcc_in(tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    headers_in(tmp_path / "include", DIRECT.format(10, 3, 0))
    rows = {row["name"]: row for row in doctor().as_dict()["findings"]}
    assert (
        rows["nvcc"]["found"]
        == "12.6.85 (CUDA_HOME) for 75, 80, 86, 87, 89, 90, not for 100, 103, 110, 120, 121"
    )
    assert rows["TensorRT headers"]["found"] == "10.3.0 (installed TensorRT)"
    json.dumps(rows)
