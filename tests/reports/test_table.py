"""Which test holds what each script of ../shared/reports shows, and, where that folder is, the scripts themselves.

A script writes one model with one property that users spoke of. The tests named here make a model of the same kind anew
and hold the right value from the torch or NumPy model cut by hand, or the words of the refusal.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import tokenrt
from tests.helpers.documents import ROOT
from tests.passes.helpers.running import run, session
from tokenrt import Budget
from tokenrt.errors import TokenrtError

SCRIPTS = Path(os.environ.get("TOKENRT_REPORTS") or ROOT.parent / "shared" / "reports")

TESTS: Mapping[str, tuple[str, ...]] = {
    "01_batch_equals_tokens.py": (
        "passes/analysis/test_attended.py::test_slice_is_the_model_cut_by_hand",
        "passes/analysis/test_attended.py::test_pictures_choose_for_themselves",
    ),
    "02_tf_bert_flat.py": (
        "reports/test_forms.py::test_slice_is_the_model_cut_by_hand",
        "passes/analysis/test_attended.py::test_slice_is_the_model_cut_by_hand",
    ),
    "03_divided_attention.py": (
        "passes/analysis/test_attended.py::test_axes_in_turn_lose_what_the_other_axis_has_lost_alike",
        "passes/analysis/test_attended.py::test_rows_that_chose_apart_are_whole_again_where_they_meet",
    ),
    "05_int8_qdq_vit.py": (
        "passes/rewriting/test_quantized.py::test_slice_is_the_graph_cut_by_hand",
        "passes/rewriting/test_quantized.py::test_merging_equal_tokens_loses_nothing",
    ),
    "07_dit_fp16_casts.py": (
        "reports/test_forms.py::test_slice_is_the_model_cut_by_hand",
        "reports/test_forms.py::test_gated_blocks_in_half_precision",
    ),
    "10_detr.py": (
        "reports/test_forms.py::test_slice_is_the_model_cut_by_hand",
        "reports/test_forms.py::test_equal_tokens_merge_without_loss",
    ),
    "14_initializers_as_inputs.py": (
        "passes/graph/test_old_files.py::test_every_ir_version",
        "passes/graph/test_old_files.py::test_the_remedy_for_old_operator_sets_leads_to_a_file_that_works",
    ),
    "16_vision_tower_no_batch.py": (
        "reports/test_forms.py::test_slice_is_the_model_cut_by_hand",
        "reports/test_forms.py::test_windows_before_a_block_of_global_attention",
    ),
    "19_attention_forms.py einsum": (
        "passes/analysis/test_attention_forms.py::test_slice_tome_and_evit_are_those_of_torch",
    ),
    "19_attention_forms.py kq": (
        "passes/analysis/test_attention_forms.py::test_slice_tome_and_evit_are_those_of_torch",
    ),
    "19_attention_forms.py nchw": ("reports/test_forms.py::test_slice_is_the_model_cut_by_hand",),
    "19_attention_forms.py loop": ("reports/test_forms.py::test_what_takes_no_reduction_is_refused_by_name",),
    "19_attention_forms.py gate": ("passes/analysis/test_attended.py::test_slice_is_the_model_cut_by_hand",),
    "19_attention_forms.py mqa": (
        "reports/test_forms.py::test_slice_is_the_model_cut_by_hand",
        "reports/test_forms.py::test_equal_tokens_merge_without_loss",
    ),
    "19_attention_forms.py dim5": (
        "passes/analysis/test_attention_forms.py::test_slice_tome_and_evit_are_those_of_torch",
    ),
    "19_attention_forms.py logsoftmax": (
        "passes/analysis/test_attention_forms.py::test_slice_tome_and_evit_are_those_of_torch",
    ),
    "19_attention_forms.py sigmoid": (
        "passes/analysis/test_missed.py::test_each_is_named_with_what_stands_in_the_way",
        "reports/test_forms.py::test_what_takes_no_reduction_is_refused_by_name",
    ),
    "19_attention_forms.py xcov": (
        "passes/analysis/test_attended.py::test_attention_over_channels_is_none_over_tokens",
        "reports/test_forms.py::test_what_takes_no_reduction_is_refused_by_name",
    ),
    "22_branch_subgraph.py head": ("reports/test_ends.py::test_a_head_in_an_if_that_stays",),
    "22_branch_subgraph.py inside": (
        "passes/graph/test_branches.py::test_attention_in_an_if_that_stays_is_refused_by_name",
        "reports/test_forms.py::test_slice_is_the_model_cut_by_hand",
    ),
    "24_same_tensor_two_outputs.py": (
        "reports/test_ends.py::test_one_tensor_under_two_names",
        "passes/graph/test_interface.py::test_every_output_is_there_and_names_of_one_tensor_agree",
    ),
    "25_batch_first_detr.py": (
        "reports/test_forms.py::test_slice_is_the_model_cut_by_hand",
        "reports/test_forms.py::test_equal_tokens_merge_without_loss",
    ),
    "kinds/fault_appended_tokens.py": (
        "reports/test_forms.py::test_learned_tokens_behind_the_patches_stay",
        "reports/test_forms.py::test_slice_is_the_model_cut_by_hand",
    ),
    "kinds/fault_attention_not_listed.py": (
        "passes/analysis/test_attention_forms.py::test_every_form_is_two_blocks_and_stays_what_it_was",
        "passes/analysis/test_missed.py::test_a_plan_of_fewer_blocks_than_attentions_says_which",
    ),
    "kinds/fault_bias_of_other_queries.py": (
        "passes/rewriting/masks/test_bias_of_keys.py::test_equal_tokens_lose_nothing_in_a_pool_with_a_bias",
    ),
    "kinds/fault_dropped_in_another_space.py": (
        "passes/rewriting/test_carried.py::test_what_comes_back_passed_what_the_others_passed",
    ),
    "kinds/fault_hidden_states_after_norm.py": (
        "passes/rewriting/test_carried.py::test_what_comes_back_passed_what_the_others_passed",
    ),
    "kinds/fault_pool_beside_tokens.py": (
        "passes/rewriting/test_carried.py::test_a_pool_counts_those_that_are_left_however_it_is_written",
        "passes/rewriting/test_carried.py::test_a_pool_and_the_tokens_beside_it_are_what_each_is_alone",
    ),
    "kinds/fault_prefix_mask.py": (
        "passes/analysis/test_visibility.py::test_a_mask_that_keeps_tokens_apart_is_refused_for_what_it_does",
    ),
}
"""Script, and the variant where each is a case of its own -> tests below tests/."""

here = pytest.mark.skipif(
    not SCRIPTS.is_dir(), reason="the scripts of the reports are not here; TOKENRT_REPORTS may say where"
)


@cache
def functions(path: Path) -> frozenset[str]:
    return frozenset(
        node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
    )


@pytest.mark.parametrize("script", TESTS)
def test_the_tests_that_are_named_exist(script: str) -> None:
    assert TESTS[script]
    for test in TESTS[script]:
        file, _, name = test.partition("::")
        assert name.startswith("test_")
        assert name in functions(ROOT / "tests" / file), test


@here
def test_every_script_has_a_test() -> None:
    made = {path.relative_to(SCRIPTS).as_posix() for path in SCRIPTS.rglob("*.py")} - {"kinds/common.py"}
    assert made == {name.split()[0] for name in TESTS}


@dataclass(frozen=True)
class Trial:
    """A script with its words, and how it ends: the counts of a slice whose right value it writes, or a refusal.

    scores: the words of a refusal to the methods that read attention alone.
    """

    words: str
    keep: tuple[int, ...] = ()
    refusal: str = ""
    scores: str = ""
    shape: Mapping[str, tuple[str | int, ...]] | None = None


TEXT = {"ids": ("B", 32), "mask": ("B", 32)}
OLD = r"imports opset \d+; tokenrt needs 13 or later: export again .* onnx\.version_converter"
TRIALS = (
    Trial("01_batch_equals_tokens.py", (15, 13, 11)),
    Trial("02_tf_bert_flat.py"),
    Trial("02_tf_bert_flat.py one"),
    Trial("02_tf_bert_flat.py dynamic", shape=TEXT),
    Trial("03_divided_attention.py"),
    Trial("03_divided_attention.py 8 8"),
    Trial("03_divided_attention.py 8 16 st"),
    Trial("05_int8_qdq_vit.py qdq"),
    Trial("05_int8_qdq_vit.py qdq_all"),
    Trial("05_int8_qdq_vit.py dynamic"),
    Trial("07_dit_fp16_casts.py"),
    Trial("10_detr.py", (14, 12, 10)),
    Trial("14_initializers_as_inputs.py", refusal=OLD),
    Trial("14_initializers_as_inputs.py 6 9", refusal=OLD),
    Trial("14_initializers_as_inputs.py 3 13"),
    Trial("14_initializers_as_inputs.py 6 13"),
    Trial("16_vision_tower_no_batch.py"),
    Trial("16_vision_tower_no_batch.py plain", (60, 56, 52)),
    Trial("16_vision_tower_no_batch.py windows"),
    *(
        Trial(f"19_attention_forms.py {form}", (14, 12, 10))
        for form in ("einsum", "kq", "gate", "dim5", "logsoftmax")
    ),
    Trial("19_attention_forms.py mqa", (14, 12, 10)),
    Trial("19_attention_forms.py nchw"),
    Trial("19_attention_forms.py loop", refusal=r"Concat node '\S+' before a residual is added"),
    Trial("19_attention_forms.py sigmoid", refusal=r"Sigmoid node '\S+': .*not a softmax"),
    Trial("19_attention_forms.py xcov", refusal=r"the axis its softmax runs over is not the one that counts"),
    Trial("22_branch_subgraph.py head", refusal="If node 'head_if'"),
    Trial("22_branch_subgraph.py inside", refusal="If node 'step_if'"),
    Trial("24_same_tensor_two_outputs.py"),
    Trial("24_same_tensor_two_outputs.py dynamo"),
    Trial("25_batch_first_detr.py", (14, 12, 10)),
)


def script(folder: Path, *words: str) -> str:
    """What a script says; it runs in a process of its own, with this tokenrt."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, SCRIPTS / words[0], *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.stdout


def written(trial: Trial, folder: Path) -> Path:
    name, *words = trial.words.split()
    goal = folder / "m.onnx"
    script(folder, name, *([*words, str(goal)] if name.startswith("19") else [str(goal), *words]))
    return goal


@here
@pytest.mark.slow
@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.words.replace(" ", "-"))
def test_every_script_ends_right_or_is_refused(trial: Trial, tmp_path: Path) -> None:
    path, goal = written(trial, tmp_path), tmp_path / "r.onnx"
    for method in ("slice", "tome", "topk", "evit"):
        budget = Budget.tokens(trial.keep) if trial.keep and method == "slice" else Budget.remove(2)
        refusal = trial.refusal or (trial.scores if method in ("topk", "evit") else "")
        if refusal:
            with pytest.raises(TokenrtError) as caught:
                tokenrt.reduce(path, method=method, budget=budget, shape=trial.shape)
            assert re.search(refusal, str(caught.value)), str(caught.value)
            continue
        tokenrt.reduce(path, method=method, budget=budget, shape=trial.shape, output=goal)
        if trial.keep and method == "slice":
            right = np.load(tmp_path / "m.expected.npz")
            given = {session(path).get_inputs()[0].name: right["x"]}
            np.testing.assert_allclose(run(path, given)[0], right["full"], rtol=0, atol=5e-6)
            np.testing.assert_allclose(run(goal, given)[0], right["sliced"], rtol=0, atol=5e-6)
        if method == "tome":
            assert tokenrt.check(path, goal, samples=1).ok
        names = [[value.name for value in session(model).get_outputs()] for model in (path, goal)]
        assert names[0] == names[1]


SAID: Mapping[str, str] = {
    "fault_appended_tokens.py": r"(\w+: of 8 learned tokens 0 dropped, 0 merged with others\n)+$",
    "fault_attention_not_listed.py": r"^view \| \[\] \| \neinsum \| \[\] \| \n$",
    "fault_bias_of_other_queries.py": r"moves by 0\.000\n$",
    "fault_dropped_in_another_space.py": r"difference (?!.*e-0[4-9])",
    "fault_hidden_states_after_norm.py": r"(hidden state \d: .*\n){5}$",
    "fault_pool_beside_tokens.py": r"(\w+: pooled output differs by \S+e-0[5-9] .* by \S+e-0[5-9] .*\n){4}$",
    "fault_prefix_mask.py": r"(\w+ NothingToDoError: .*\n.*causal behind a prefix of 16 tokens.*\n){5}$",
}
"""What a script of a kind says where the fault is gone; two of them end with status 1 all the same."""


@here
@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_no_fault_of_a_kind_is_left(name: str, tmp_path: Path) -> None:
    said = script(tmp_path, f"kinds/{name}")
    assert re.search(SAID[name], said), said
    spread = re.findall(r"original (\S+), reduced: kept \S+, dropped (\S+)", said)
    assert all(float(gone) < 1.4 * float(was) for was, gone in spread)
