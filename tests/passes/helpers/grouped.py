"""Small language models as ONNX Runtime's model builder writes them: packed projections, fused norms, GroupQueryAttention.

Source: builders/base.py of onnxruntime-genai 0.18.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.passes.helpers import prefill
from tests.passes.helpers.prefill import CACHES, LAYERS, PAST, TOKENS, WIDTH, WORDS

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def builder_model(family: str = "llama") -> onnx.ModelProto:
    """The weights of `prefill.model(family)`; prompts of TOKENS, and a past that is fixed to none."""
    made = prefill.model(family)
    above = family == "gemma"  # Its norms hold what their weights are more than one.
    heads, shared = made.config.num_attention_heads, made.config.num_key_value_heads
    width = WIDTH // heads
    nodes: list[onnx.NodeProto] = []
    held: dict[str, Any] = {"one": np.array([1]), "less": np.array([1]), "second": np.array(1)}

    def add(kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        nodes.append(
            helper.make_node(kind, inputs, outputs, name=f"/{kind}_{len(nodes)}", domain=domain, **attributes)
        )
        return outputs[-1]

    def product(x: str, name: str, *parts: Any) -> str:
        """The product with linear layers side by side, and their biases where they have some."""
        held[name] = np.concatenate([part.weight.detach().numpy().T for part in parts], axis=1)
        made = add("MatMul", [x, name], [f"{name}_product"])
        if parts[0].bias is None:
            return made
        held[f"{name}_bias"] = np.concatenate([part.bias.detach().numpy() for part in parts])
        return add("Add", [made, f"{name}_bias"], [f"{name}_sum"])

    def norm(name: str, part: Any) -> str:
        held[name] = part.weight.detach().numpy() + above
        return name

    def by_heads(x: str, name: str, part: Any, total: int) -> str:
        """Each head normalized on its own; tokens and heads share an axis meanwhile."""
        held.update({f"{name}_apart": np.array([0, -1, width]), f"{name}_back": np.array([0, -1, total])})
        apart = add("Reshape", [x, f"{name}_apart"], [f"{name}_heads"])
        scaled = add(
            "SimplifiedLayerNormalization",
            [apart, norm(name, part)],
            [f"{name}_scaled"],
            axis=-1,
            epsilon=eps,
        )
        return add("Reshape", [scaled, f"{name}_back"], [f"{name}_joined"])

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
        packed = product(
            f"{tag}_x", f"{tag}_qkv", *_parts(attention, "qkv_proj", "q_proj", "k_proj", "v_proj")
        )
        given = [packed, "", ""]
        if hasattr(attention, "q_norm"):
            sizes = [heads * width, shared * width, shared * width]
            held[f"{tag}_sizes"] = np.array(sizes)
            q, k, v = (f"{tag}_{each}" for each in "qkv")
            add("Split", [packed, f"{tag}_sizes"], [q, k, v], axis=-1)
            given = [
                by_heads(q, f"{q}_norm", attention.q_norm, sizes[0]),
                by_heads(k, f"{k}_norm", attention.k_norm, sizes[1]),
                v,
            ]
        add(
            "GroupQueryAttention",
            [*given, *PAST[2 * number : 2 * number + 2], "seqlens_k", "total", "cos", "sin"],
            [f"{tag}_y", *CACHES[2 * number : 2 * number + 2]],
            ms,
            num_heads=heads,
            kv_num_heads=shared,
            do_rotary=1,
        )
        attended = product(f"{tag}_y", f"{tag}_o", attention.o_proj)
        scale = norm(f"{tag}_post", layer.post_attention_layernorm)
        add(
            "SkipSimplifiedLayerNormalization",
            [stream, attended, scale],
            [f"{tag}_z", "", "", f"{tag}_at"],
            ms,
            epsilon=eps,
        )
        gate, up = _parts(mlp, "gate_up_proj", "gate_proj", "up_proj", halves=True)
        gated, raised = product(f"{tag}_z", f"{tag}_gate", gate), product(f"{tag}_z", f"{tag}_up", up)
        if family == "gemma":
            active = add("Gelu", [gated], [f"{tag}_gelu"], approximate="tanh")
        else:
            add("Sigmoid", [gated], [f"{tag}_s"])
            active = add("Mul", [gated, f"{tag}_s"], [f"{tag}_silu"])
        add("Mul", [active, raised], [f"{tag}_h"])
        branch = product(f"{tag}_h", f"{tag}_down", mlp.down_proj)
        stream = f"{tag}_at"
    add(
        "SkipSimplifiedLayerNormalization",
        [stream, branch, norm("norm", made.model.norm)],
        ["final"],
        ms,
        epsilon=eps,
    )
    held["head"] = made.lm_head.weight.detach().numpy().T
    add("MatMul", ["final", "head"], ["logits"])
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
        family,
        inputs,
        outputs,
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in held.items()],
    )
    assert len(made.model.layers) == LAYERS
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(ms, 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets)


def _parts(module: Any, joined: str, *names: str, halves: bool = False) -> list[Any]:
    """The linear layers of a module; where one holds them all, that one, or its halves."""
    whole = getattr(module, joined, None)
    if whole is None:
        return [getattr(module, name) for name in names]
    if not halves:
        return [whole]
    return [SimpleNamespace(weight=half, bias=None) for half in whole.weight.chunk(2)]
