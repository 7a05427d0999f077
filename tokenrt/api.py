"""The public calls that put two rooms together: what they name is looked up here and handed to the room below."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenrt.passes.forms.lower import Lowered, Wishes
    from tokenrt.passes.graph.model import ModelLike
    from tokenrt.passes.methods.contract import Ops
    from tokenrt.passes.methods.tensors import Projector
    from tokenrt.passes.ops.contract import Array

HOST = "plugin-host"
"""The backend that lies above the methods: the CUDA kernels, compiled for the CPU."""


def apply_method(
    name: str,
    tensors: Mapping[str, Any],
    *,
    keep: int,
    backend: str | Ops = "numpy",
    protect: int = 1,
    class_token: bool | None = None,
    restore: bool = False,
    block: int = 0,
    blocks: int = 12,
    state: Mapping[str, Any] | None = None,
    multiple_of: int = 1,
    projector: Projector | None = None,
    **params: Any,
) -> dict[str, Array]:
    """Reduce the tokens of one layer, given as arrays.

    `keep` is the number K of tokens in the output: protected and fused tokens count. `protect` leading tokens
    stay whatever their score; the default 1 is a class token, 0 protects nothing. `class_token` says whether
    token 0 is one (default: protect > 0), which decides what `score=auto` means. `block` of `blocks` is where the
    layer stands, for methods that act by depth; `state` is what the method handed on at its last site. With
    `multiple_of`, K becomes the nearest multiple of it that the method can leave, of two as near the larger.
    `projector` carries tokens on to an output, by operators, where a method asks for that: it is called with an object that
    runs them (`Ops`) and tokens [B,N,C], and returns [B,N,E].
    `params` are the method's own options.
    A method of a cache takes the tensors named in CACHE, of which it needs `keys`, and returns "index" [B,H,K] int64, or [B,1,K],
    "keys" and "values" [B,H,K,D] and "state_NAME"; `keep`, `block`, `blocks` and `state` are all that it reads beside them.

    Shapes: tensors as named in SHAPES, of which a method needs `x` and what it reads -> "tokens" [B,K,C] in
    the type of x; "size" [B,K,1]; "index" [B,K'] int64, the input position each output stands at, of a
    pruning method the positions kept (a fused token has none, so K' = K - 1 there); "assign" [B,N] int64, the
    output token each input token is part of, -1 when dropped; with `restore` "restored" [B,N,C]: each
    position gets its token, a dropped one its own input back, and where positions are restored by a matrix
    also that, "affinity" [B,N,K]; "state_NAME" for what the method hands on.
    Backends: numpy computes in float64, onnxruntime runs the ONNX functions in float32, plugin-host runs the CUDA
    kernels compiled for the CPU (on first use, into the cache) in float32; or an object that runs operators (`Ops`).
    Raises: MethodError for an unknown method, option or tensor, a missing tensor or a wrong shape; PlanError
    for a K that does not fit; UnsupportedError for plugin-host without a C++ compiler, or where the method needs an
    operator that has no kernel.
    """
    from tokenrt.passes.methods.apply import apply_method, unknown_backend
    from tokenrt.passes.methods.running import BACKENDS

    if backend == HOST:
        from tokenrt.plugins.host.backend import HostOps

        backend = HostOps()
    elif isinstance(backend, str) and backend not in BACKENDS:
        raise unknown_backend(backend, (*BACKENDS, HOST))
    return apply_method(
        name,
        tensors,
        keep=keep,
        backend=backend,
        protect=protect,
        class_token=class_token,
        restore=restore,
        block=block,
        blocks=blocks,
        state=state,
        multiple_of=multiple_of,
        projector=projector,
        **params,
    )


def lower(
    model: ModelLike,
    *,
    inline: bool = False,
    plugin: bool = False,
    target: str | Wishes | None = None,
    output: str | os.PathLike[str] | None = None,
) -> Lowered:
    """Lower a copy of `model`, and write it where `output` says.

    inline: only standard operators are left. plugin: the nodes of domain tokenrt lose their bodies, so only
    runtimes with the plugin library take the model; what is beyond the library's limits becomes standard operators. target: what
    that target, by name or loaded, does not take is replaced; with `plugin`, the nodes take the form in which the target runs
    them as plugins.

    Raises: TokenrtError unless one of the three is given, or plugin with target; UnsupportedError naming what cannot be
    lowered.
    """
    from tokenrt.passes.forms.lower import lower
    from tokenrt.plugins.contracts import misfit
    from tokenrt.targets import load

    wishes = load(target) if isinstance(target, str) else target
    return lower(model, inline=inline, plugin=plugin, target=wishes, refuses=misfit, output=output)
