"""Text methods in exported encoders of the BERT, T5 and ModernBERT kind: equal to torch's model that loses the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.helpers.running import run, session
from tokenrt import Budget, reduce

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:# The axis name")]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

N, K, C, LAYERS, AT, WORDS = 18, 9, 32, 4, 1, 50
REAL = (18, 11)
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": C,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
KINDS: Mapping[str, tuple[str, str, Mapping[str, Any], str]] = {
    "bert": ("BertModel", "BertConfig", SIZES, "encoder.layer"),
    "modernbert": (
        "ModernBertModel",
        "ModernBertConfig",
        {**SIZES, "local_attention": 2 * N, "pad_token_id": 0, "global_attn_every_n_layers": 2},
        "layers",
    ),
    "t5": (
        "T5EncoderModel",
        "T5Config",
        {"vocab_size": WORDS, "d_model": C, "d_kv": C // 2, "d_ff": 48, "num_layers": LAYERS, "num_heads": 2},
        "encoder.block",
    ),
}  # fmt: skip
"""Class of the model and of its options, these, and where its blocks are."""


def seeded(kind: str) -> Any:
    """A model of this kind whose weights are large enough to tell one token from another."""
    model, config, options, _ = KINDS[kind]
    torch.manual_seed(0)
    built = getattr(transformers, model)(
        getattr(transformers, config)(**options, attn_implementation="eager")
    ).eval()
    for parameter in built.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return built


@pytest.fixture(scope="module", params=KINDS)
def encoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, Path]:
    """The kind, torch's model and its file."""
    path, built = tmp_path_factory.mktemp(request.param) / "encoder.onnx", seeded(request.param)

    class Rows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.built = built

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.built(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    given = tuple(torch.from_numpy(each) for each in texts().values())
    free = {0: torch.export.Dim("batch")}
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["rows"]}
    torch.onnx.export(
        Rows().eval(),
        given,
        path,
        dynamo=True,
        opset_version=20,
        external_data=False,
        dynamic_shapes=(free, free),
        **names,
    )
    return request.param, built, path


def texts() -> dict[str, Any]:
    ids = np.random.default_rng(1).integers(1, WORDS, (2, N))
    mask = (np.arange(N) < np.array(REAL)[:, None]).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}


def cut(value: Any, index: Any) -> Any:
    """Masks, biases and rotary tables, of N tokens, of those at `index`."""
    if isinstance(value, tuple):
        return tuple(cut(each, index) for each in value)
    if isinstance(value, torch.Tensor):
        for axis in range(1, value.ndim):
            if value.shape[axis] == N:
                value = value.index_select(axis, index)
    return value


def by_torch(
    kind: str, built: Any, row: int, change: Callable[[Any], tuple[Any, Any]], back: bool = False
) -> Any:
    """Rows [K,C] of one text, or all where those that left come `back` before the last block.

    change: what stands behind block AT [1,N,C], of BERT the sum in front of the norm that ends it -> what goes on [1,K,C], and
    the token in whose place each stands.
    """
    blocks, seen, handles = built.get_submodule(KINDS[kind][3]), dict[str, Any](), []

    def leave(module: Any, given: Any, found: Any) -> Any:
        seen["all"] = found[0] if isinstance(found, tuple) else found
        kept, seen["index"] = change(seen["all"])
        return (kept, *found[1:]) if isinstance(found, tuple) else kept

    def leave_sum(module: Any, given: Any) -> Any:
        return (leave(module, (), given[0]),)

    def follow(module: Any, given: Any, named: Any) -> Any:
        seen.setdefault("given", (given[1:], named))
        more, others = (cut(each, seen["index"]) for each in (given[1:], tuple(named.values())))
        return (given[0], *more), dict(zip(named, others, strict=True))

    def come_back(module: Any, given: Any, named: Any) -> Any:
        rows = norm.forward(seen["all"]).clone()
        rows[:, seen["index"]] = given[0]
        # T5 hands its bias from block to block, and so one of fewer.
        more, others = seen["given"] if kind == "t5" else (given[1:], named)
        return (rows, *more), others

    norm = torch.nn.Identity()
    if kind == "bert":
        norm = blocks[AT].output.LayerNorm
        handles.append(norm.register_forward_pre_hook(leave_sum))
    else:
        handles.append(blocks[AT].register_forward_hook(leave))
    for block in blocks[AT + 1 : LAYERS - back]:
        handles.append(block.register_forward_pre_hook(follow, with_kwargs=True))
    if back:
        handles.append(blocks[-1].register_forward_pre_hook(come_back, with_kwargs=True))
    given = {name: torch.from_numpy(each[row : row + 1]) for name, each in texts().items()}
    try:
        with torch.no_grad():
            return built(**given).last_hidden_state[0].numpy()
    finally:
        for handle in handles:
            handle.remove()


def reduced(path: Path, method: str, short: bool = True, **options: Any) -> dict[str, Any]:
    made = reduce(
        path,
        method=method,
        budget=Budget.tokens([K], [AT]),
        site="after-block",
        options=options,
        short="all" if short else None,
        proportional_attention=False,
    )
    ready = session(made.model)
    importance = {"importance": np.random.default_rng(5).random((2, N)).astype(np.float32)}
    return dict(
        zip([value.name for value in ready.get_outputs()], run(ready, texts() | importance), strict=True)
    )


def test_mrt5_drops_what_its_gate_closes_on(encoder: tuple[str, Any, Path]) -> None:
    kind, built, path = encoder
    rng = np.random.default_rng(2)
    norm, gate = rng.uniform(0.5, 1.5, C).astype(np.float32), rng.standard_normal((1, C)).astype(np.float32)
    found = reduced(path, "mrt5", weights={"norm": norm, "gate": gate, "bias": np.zeros(1, np.float32)})

    def gated(row: int) -> Callable[[Any], tuple[Any, Any]]:
        def change(rows: Any) -> tuple[Any, Any]:
            unit = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6) * torch.from_numpy(norm)
            logit = (unit @ torch.from_numpy(gate[0]))[0]
            logit[REAL[row] :] = -torch.inf
            index = logit.topk(K).indices.sort().values
            return rows[:, index], index

        return change

    for row in range(2):
        np.testing.assert_allclose(found["rows"][row], by_torch(kind, built, row, gated(row)), atol=2e-5)


def test_sctd_lets_the_easy_ones_skip_the_middle(encoder: tuple[str, Any, Path]) -> None:
    kind, built, path = encoder
    found = reduced(path, "sctd", short=False)
    importance = np.random.default_rng(5).random((2, N)).astype(np.float32)
    for row, real in enumerate(REAL):
        score = np.where(np.arange(N) < real, importance[row], -np.inf)
        index = torch.from_numpy(np.sort(np.argsort(-score, kind="stable")[:K]))
        wanted = by_torch(kind, built, row, lambda rows, index=index: (rows[:, index], index), back=True)
        np.testing.assert_allclose(found["rows"][row, :real], wanted[:real], atol=2e-5)


def test_magnet_means_what_lies_between_ends(encoder: tuple[str, Any, Path]) -> None:
    """Without T5: the bias of a mean is that of its members (decision 5), which torch's blocks cannot be told."""
    kind, built, path = encoder
    if kind == "t5":
        pytest.skip("a relative bias of means")
    rng = np.random.default_rng(3)
    shapes = {"gate.0.weight": (8, C), "gate.0.bias": (8,), "gate.2.weight": (1, 8), "gate.2.bias": (1,)}
    gate = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    weights = {name: each.astype(np.float32) for name, each in gate.items()}
    found = reduced(path, "magnet", weights=weights)

    def joined(rows: Any) -> tuple[Any, Any]:
        w = {name: torch.from_numpy(each) for name, each in weights.items()}
        hidden = torch.nn.functional.gelu(rows[0] @ w["gate.0.weight"].T + w["gate.0.bias"])
        rated = (hidden @ w["gate.2.weight"][0] + w["gate.2.bias"])[:-1]
        ends = [*rated.topk(K - 1).indices.sort().values.tolist(), N - 1]
        starts = [0, *(end + 1 for end in ends[:-1])]
        means = [rows[:, start : end + 1].mean(1) for start, end in zip(starts, ends, strict=True)]
        return torch.stack(means, 1), torch.tensor(ends)

    np.testing.assert_allclose(found["rows"][0], by_torch(kind, built, 0, joined), atol=2e-5)
