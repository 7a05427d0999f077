"""The commands for trtexec: every one is accepted by a reader built from its documentation, of either major."""

from __future__ import annotations

import json
import shlex
from pathlib import Path, PurePosixPath

import pytest

from tests.targets.helpers.models import parse, reduction
from tests.tokenrt.conftest import Run
from tokenrt.errors import BuildError, TargetError
from tokenrt.passes.graph.model import save
from tokenrt.targets import load, targets
from tokenrt.targets.build import build, commands
from tokenrt.targets.trtexec.command import PINNED, build_command, measure_command, shell
from tokenrt.targets.trtexec.options import OPTIONS, read

GOLDEN = Path(__file__).parent / "commands"
DEVICES = [target.name for target in targets() if target.builder == "tensorrt"]
OTHER_RELEASES = [("l4", "10.3"), ("l4", "10.15"), ("h100", "10.15"), ("rtx-4090", "10.15")]
VARIANTS = [
    *((name, None, False) for name in DEVICES),
    *((name, None, True) for name in ("agx-orin", "agx-orin-jp7", "l4")),
    *((name, release, False) for name, release in OTHER_RELEASES),
]


def shown(run: Run, folder: Path, name: str, release: str | None, plugin: bool) -> str:
    """What `tokenrt build --print` says for the small reduction, in a folder of its own."""
    save(reduction(), folder / "reduced.onnx")
    extra = ["--tensorrt", release] if release else []
    extra += ["--plugins", "libtokenrt.so"] if plugin else []
    done = run(
        "build", "reduced.onnx", "--target", name, "-o", "reduced.engine", "--batch", "1:4:8", "--workspace", 1024,
        "--print", *extra,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "release", "plugin"), VARIANTS)
def test_printed_commands_are_the_golden_ones_and_documented(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, release: str | None, plugin: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    text = shown(run, tmp_path, name, release, plugin)
    golden = "-".join(filter(None, [name, release, "plugin" * plugin]))
    assert text == (GOLDEN / f"{golden}.txt").read_text(encoding="utf-8")

    lower, make, measure = (shlex.split(part) for part in text.replace("\\\n", " ").strip().split("\n"))
    target = load(name, tensorrt=release)
    major = (target.tensorrt or (0,))[0]
    assert lower[:3] == ["tokenrt", "lower", "reduced.onnx"]
    assert make[0] == measure[0] == "trtexec"
    built, measured = read(make[1:], major), read(measure[1:], major)
    assert built["onnx"] == [lower[4]]
    assert built["saveEngine"] == measured["loadEngine"] == ["reduced.engine"]
    assert built["minShapes"] == ["tokens:1x6x8"]
    assert built["optShapes"] == measured["shapes"] == ["tokens:4x6x8"]
    assert built["maxShapes"] == ["tokens:8x6x8"]
    assert ("dynamicPlugins" in built) == ("dynamicPlugins" in measured) == plugin
    assert ("--plugin" in lower) == plugin
    assert ("stronglyTyped" in built) == (major == 10)
    for wrong in {10, 11} - {major}:
        if major == 10:
            with pytest.raises(BuildError, match="an option of TensorRT 10, not of 11"):
                read(make[1:], wrong)
    # The printed first line runs and writes the model the second builds from.
    assert run(*lower[1:]).exit_code == 0
    assert Path(lower[4]).is_file()


def test_no_golden_file_is_left_over() -> None:
    names = {"-".join(filter(None, [name, release, "plugin" * plugin])) for name, release, plugin in VARIANTS}
    assert {path.stem for path in GOLDEN.glob("*.txt")} == names


def test_both_majors_measure_the_same() -> None:
    ten = read(measure_command(load("l4", tensorrt="10.15"), PurePosixPath("m.engine"))[1:], 10)
    eleven = read(measure_command(load("l4"), PurePosixPath("m.engine"))[1:], 11)
    defaults_of_eleven = {"useCudaGraph", "useSpinWait", "noDataTransfers"}
    assert {option[2:] for option in PINNED[10]} == defaults_of_eleven
    assert ten.keys() - eleven.keys() == defaults_of_eleven
    assert eleven.keys() <= ten.keys()
    assert all(ten[name] == eleven[name] for name in eleven)


@pytest.mark.parametrize(
    ("major", "arguments", "message"),
    [
        (10, ["--onnx=m.onnx", "--fp61"], "--fp61: no such option"),
        (10, ["m.onnx"], "m.onnx: no such option"),
        (11, ["--onnx=m.onnx", "--fp16"], "an option of TensorRT 10, not of 11"),
        (10, ["--onnx=m.onnx", "--noCudaGraph"], "an option of TensorRT 11, not of 10"),
        (10, ["--onnx"], "expected --onnx=FILE"),
        (10, ["--onnx=m.onnx", "--skipInference=1"], "is a switch and takes no value"),
        (10, ["--onnx=m.onnx", "--iterations=many"], "'many' is not a number"),
        (10, ["--onnx=m.onnx", "--minShapes=x=1x3"], "'x=1x3' is not a shape"),
        (10, ["--onnx=m.onnx", "--onnx=n.onnx"], "--onnx is given twice"),
        (10, ["--onnx=m.onnx", "--loadEngine=e"], "name two engines"),
        (10, ["--verbose"], "neither --onnx nor --loadEngine is given"),
    ],
)
def test_the_reader_refuses_what_trtexec_does(major: int, arguments: list[str], message: str) -> None:
    with pytest.raises(BuildError) as caught:
        read(arguments, major)
    assert message in str(caught.value)


def test_a_library_may_be_given_again() -> None:
    assert read(["--onnx=m", "--dynamicPlugins=a.so", "--dynamicPlugins=b.so"], 11)["dynamicPlugins"] == [
        "a.so",
        "b.so",
    ]


def test_every_option_belongs_to_a_major() -> None:
    assert all(option.majors and option.majors <= {10, 11} for option in OPTIONS.values())


def test_names_with_blanks_are_quoted_for_the_shell() -> None:
    command = build_command(load("l4"), PurePosixPath("my model.onnx"), PurePosixPath("e"), workspace=64)
    assert shlex.split(shell(command).replace("\\\n", " ")) == list(command)
    assert "--memPoolSize=workspace:64" in command


@pytest.mark.parametrize("name", ["a:b", "a,b", "a*", "a'b"])
def test_an_input_name_trtexec_would_misread_is_refused(name: str) -> None:
    with pytest.raises(BuildError, match="rename the input"):
        build_command(
            load("l4"), PurePosixPath("m.onnx"), PurePosixPath("e"), shapes={name: ((1, 3), (4, 3), (8, 3))}
        )


def test_a_fixed_batch_has_no_shapes(tmp_path: Path) -> None:
    _, make, measure = commands(reduction(batch="4"), target="thor", output=tmp_path / "m.engine").commands
    assert not [word for word in (*make, *measure) if "hapes=" in word]


def test_an_input_with_no_other_axis_has_a_shape_too(tmp_path: Path) -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18]>
        main (float[B] x, float[B,3] z) => (float[B] y, float[B,3] w) { y = Neg (x) w = Neg (z) }""")
    told = commands(model, target="thor", output=tmp_path / "m.engine", batch="1:2:3").commands
    assert "--optShapes=x:2,z:2x3" in told[1]


def test_what_trtexec_does_not_build_is_said(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"trtexec does not build for rtx-sm89.*build without --print"):
        commands(reduction(), target="rtx-sm89", output=tmp_path / "m.engine")


def test_without_tensorrt_the_way_to_the_commands_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenrt.targets.build.find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"TensorRT is not installed here.*--target l4 --print"):
        build(reduction(), target="l4", output=tmp_path / "m.engine")
    assert list(tmp_path.iterdir()) == []


def test_plugins_are_refused_where_none_load(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"rtx-sm89 loads no plugin library \(lib.so\)"):
        build(reduction(), target="rtx-sm89", output=tmp_path / "m.engine", plugins=["lib.so"])


def test_the_commands_are_json_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(reduction(), tmp_path / "r.onnx")
    told = json.loads(run("build", "r.onnx", "--target", "l4", "-o", "r.engine", "--print", "--json").stdout)
    assert told["target"] == "l4"
    assert [command[0] for command in told["commands"]] == ["tokenrt", "trtexec", "trtexec"]


def test_long_lines_are_printed_whole(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    source = save(reduction(), folder / "r.onnx")
    done = run("build", source, "--target", "l4", "-o", folder / "r.engine", "--print")
    assert f"  --saveEngine={folder / 'r.engine'} \\\n" in done.stdout
