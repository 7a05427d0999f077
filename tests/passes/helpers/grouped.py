"""A small Llama as ONNX Runtime's model builder writes it: packed projections, fused norms, GroupQueryAttention with a past."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.passes.helpers import prefill
from tests.passes.helpers.prefill import CACHES, LAYERS, PAST, TOKENS, WIDTH, WORDS

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def builder_model() -> onnx.ModelProto:
    """The weights of `prefill.model("llama")`; prompts of TOKENS, and a past that is fixed to none."""
    made = prefill.model("llama")
    heads, shared = made.config.num_attention_heads, made.config.num_key_value_heads
    width = WIDTH // heads
    nodes: list[onnx.NodeProto] = []
    held: dict[str, Any] = {"one": np.array([1]), "less": np.array([1]), "second": np.array(1)}

    def add(kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        nodes.append(
            helper.make_node(kind, inputs, outputs, name=f"/{kind}_{len(nodes)}", domain=domain, **attributes)
        )
        return outputs[-1]

    def weigh(name: str, *parts: Any) -> str:
        held[name] = np.concatenate([part.weight.detach().numpy().T for part in parts], axis=1)
        return name

    def norm(name: str, part: Any) -> str:
        held[name] = part.weight.detach().numpy()
        return name

    places = torch.arange(128)[None]
    cos, sin = made.model.rotary_emb(torch.zeros(1, 1, WIDTH), places)
    held |= {"cos": cos[0, :, : width // 2].numpy(), "sin": sin[0, :, : width // 2].numpy()}
    add("ReduceSum", ["attention_mask", "one"], ["counted"], keepdims=0)
    add("Sub", ["counted", "less"], ["last"])
    add("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32)
    add("Shape", ["attention_mask"], ["dims"])
    add("Gather", ["dims", "second"], ["length"])
    add("Cast", ["length"], ["total"], to=TensorProto.INT32)
    ms, eps = "com.microsoft", made.config.rms_norm_eps
    stream, branch = "inputs_embeds", ""
    for number, layer in enumerate(made.model.layers):
        tag = f"l{number}"
        scale = norm(f"{tag}_norm", layer.input_layernorm)
        if branch:
            add(
                "SkipSimplifiedLayerNormalization",
                [stream, branch, scale],
                [f"{tag}_x", "", "", f"{tag}_in"],
                ms,
                epsilon=eps,
            )
            stream = f"{tag}_in"
        else:
            add("SimplifiedLayerNormalization", [stream, scale], [f"{tag}_x"], axis=-1, epsilon=eps)
        attention, mlp = layer.self_attn, layer.mlp
        add(
            "MatMul",
            [f"{tag}_x", weigh(f"{tag}_qkv", attention.q_proj, attention.k_proj, attention.v_proj)],
            [f"{tag}_packed"],
        )
        add(
            "GroupQueryAttention",
            [f"{tag}_packed", "", "", *PAST[2 * number : 2 * number + 2], "seqlens_k", "total", "cos", "sin"],
            [f"{tag}_y", *CACHES[2 * number : 2 * number + 2]],
            ms,
            num_heads=heads,
            kv_num_heads=shared,
            do_rotary=1,
        )
        add("MatMul", [f"{tag}_y", weigh(f"{tag}_o", attention.o_proj)], [f"{tag}_a"])
        scale = norm(f"{tag}_post", layer.post_attention_layernorm)
        add(
            "SkipSimplifiedLayerNormalization",
            [stream, f"{tag}_a", scale],
            [f"{tag}_z", "", "", f"{tag}_at"],
            ms,
            epsilon=eps,
        )
        add("MatMul", [f"{tag}_z", weigh(f"{tag}_gate", mlp.gate_proj)], [f"{tag}_g"])
        add("Sigmoid", [f"{tag}_g"], [f"{tag}_s"])
        add("Mul", [f"{tag}_g", f"{tag}_s"], [f"{tag}_silu"])
        add("MatMul", [f"{tag}_z", weigh(f"{tag}_up", mlp.up_proj)], [f"{tag}_u"])
        add("Mul", [f"{tag}_silu", f"{tag}_u"], [f"{tag}_h"])
        branch = add("MatMul", [f"{tag}_h", weigh(f"{tag}_down", mlp.down_proj)], [f"{tag}_m"])
        stream = f"{tag}_at"
    add(
        "SkipSimplifiedLayerNormalization",
        [stream, branch, norm("norm", made.model.norm)],
        ["final"],
        ms,
        epsilon=eps,
    )
    add("MatMul", ["final", weigh("head", made.lm_head)], ["logits"])
    value = helper.make_tensor_value_info
    inputs = [
        value("inputs_embeds", FLOAT, ["batch", TOKENS, WIDTH]),
        value("attention_mask", INT64, ["batch", TOKENS]),
    ]
    inputs += [value(name, FLOAT, ["batch", shared, 0, width]) for name in PAST]
    outputs = [value("logits", FLOAT, ["batch", TOKENS, WORDS])]
    outputs += [value(name, FLOAT, ["batch", shared, TOKENS, width]) for name in CACHES]
    graph = helper.make_graph(
        nodes,
        "llama",
        inputs,
        outputs,
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in held.items()],
    )
    assert len(made.model.layers) == LAYERS
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(ms, 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets)
