"""What the model of cost knows of a GPU: facts of its target profile, and constants in one table, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tokenrt.errors import TargetError
from tokenrt.targets.profiles.profile import Target


@dataclass(frozen=True)
class Constant:
    """A number of the model that no profile states. Units are in its name."""

    value: float
    source: str


ESTIMATE = (
    "estimate from the instructions and barriers of the kernels, not measured; good to a factor of about two"
)
CONSTANTS: Mapping[str, Constant] = MappingProxyType(
    {
        "launch_us": Constant(
            2.2, "estimate: launch to launch of dependent kernels on a discrete GPU; a CUDA graph saves about a third"
        ),
        "launch_us_hopper_and_later": Constant(2.0, "estimate: the same from compute capability 9.0 on"),
        "launch_us_integrated": Constant(4.0, "estimate: the same on Jetson and other integrated GPUs"),
        "share_of_bandwidth": Constant(0.8, "estimate: what streaming reaches of the bandwidth that is published"),
        "share_of_vector_rate": Constant(0.8, "16 of the 19 instructions of a tile's step are multiply-adds (tile.cuh)"),
        "share_of_tensor_rate": Constant(
            0.35, "estimate: products of vision transformers in float16 reach 25 to 45 percent of what is published"
        ),
        "layers_a_block": Constant(
            8, "counted: engine layers of a DeiT-S block, TensorRT-RTX, float16, batch 1 (docs/results/engine_layers.md)"
        ),
        "layers_around": Constant(
            2, "counted: engine layers of DeiT-S, 101 in all, that are no product, normalisation or attention (fusion.py)"
        ),
        "load_cycles": Constant(300, "estimate: latency of a load that L2 serves"),
        "slice_cycles": Constant(400, f"until a slice of a tile's rows is in shared memory; {ESTIMATE}"),
        "barrier_cycles": Constant(60, f"two barriers of a block; {ESTIMATE}"),
        "dot_cycles": Constant(19, "instructions of a step of a tile of products, counted (tile.cuh)"),
        "distance_cycles": Constant(35, "instructions of a step of a tile of distances, counted (tile.cuh)"),
        "mma_step_cycles": Constant(
            60, f"a warp's step of 32 bytes of rows on tensor cores: 3 loads of fragments, 4 products (stream.cuh); {ESTIMATE}"
        ),
        "candidate_cycles": Constant(600, f"the candidates of a tile (filter.cuh); {ESTIMATE}"),
        "settle_cycles": Constant(6, "instructions of a column where a candidate is settled, counted: 45 for 8 (filter.cuh)"),
        "logit_cycles": Constant(22, "instructions of a logit, its exponential and sums, counted: 358 for 16 (score_many.cuh)"),
        "pass_cycles": Constant(500, f"a pass over a row by one block with its barriers; {ESTIMATE}"),
        "step_cycles": Constant(100, f"one more load of each thread in such a pass; {ESTIMATE}"),
        "row_bytes_a_cycle": Constant(64, "estimate: what one multiprocessor reads from L2"),
        "sort_cycles": Constant(70, f"a step of a sort in shared memory with its barrier; {ESTIMATE}"),
        "remote_cycles": Constant(
            200, "estimate: latency of a load from another block of a cluster; 180 were measured on an H100, arXiv 2402.13499"
        ),
        "cluster_cycles": Constant(500, f"two barriers of a cluster; {ESTIMATE}"),
        "merge_cycles": Constant(1500, f"the barriers of one merge of TokenCluster; {ESTIMATE}"),
        "look_cycles": Constant(350, f"its look through 256 tokens; {ESTIMATE}"),
    }
)  # fmt: skip
"""Cycles are those of one block while nothing else runs on its multiprocessor."""

LANES: Mapping[str, int] = MappingProxyType({"7.5": 64, "8.0": 64})
"""Float32 lanes of a multiprocessor by compute capability, 128 where it is not named: CUDA C++ Programming Guide,
throughput of arithmetic instructions."""

MMA = 8.0
"""Compute capability from which on the kernels use tensor cores: mma.cuh."""

CLUSTERS: Mapping[float, int] = MappingProxyType({9.0: 16, 11.0: 8})
"""Compute capability from which on -> the blocks of a cluster that the kernels start: cluster.cuh."""

INTEGRATED = frozenset({"8.7", "11.0", "12.1"})
"""Compute capabilities of GPUs that share the memory of the processor: Orin, Thor and GB10, developer.nvidia.com/cuda-gpus."""

NEEDED = ("compute_capability", "sm_count", "bandwidth_gb_s", "vector_tflops", "tensor_tflops")


def constant(name: str) -> float:
    """The value of a constant."""
    return CONSTANTS[name].value


@dataclass(frozen=True)
class Chip:
    """A GPU. Units: bytes and operations a second, a multiply-add being two; cycles a second; seconds a launch.

    products: what our kernels reach where they multiply on tensor cores, which they do from compute capability 8.0 on.
    capability: compute capability, 0 where it does not count.
    """

    name: str
    multiprocessors: int
    bandwidth: float
    vector: float
    tensor: float
    products: float
    clock: float
    launch: float
    capability: float = 0.0

    @property
    def cluster(self) -> int:
        """The most blocks of a cluster, 0 where there are none."""
        return next(
            (CLUSTERS[first] for first in sorted(CLUSTERS, reverse=True) if self.capability >= first), 0
        )

    @classmethod
    def of(cls, target: Target) -> Chip:
        """The GPU of a target. Raises: TargetError naming the facts that its profile lacks."""
        lacking = [name for name in NEEDED if target.fact(name) is None]
        vector, tensor = target.fact("vector_tflops", {}), target.fact("tensor_tflops", {})
        lacking += ["vector_tflops.fp32"] if vector and "fp32" not in vector else []
        half = tensor.get("fp16") or tensor.get("bf16") or tensor.get("int8", 0) / 2
        lacking += ["tensor_tflops.fp16"] if tensor and not half else []
        if lacking:
            raise TargetError(
                f"target {target.name} does not state {', '.join(lacking)}, which an estimate of time needs; a profile "
                "of your own in --targets DIR may add them"
            )
        capability, count = str(target.compute_capability), int(target.fact("sm_count"))
        name = "launch_us"
        if capability in INTEGRATED:
            name = "launch_us_integrated"
        elif int(capability.split(".")[0]) >= 9:
            name = "launch_us_hopper_and_later"
        rate = vector["fp32"] * 1e12
        usual, products = (
            rate * constant("share_of_vector_rate"),
            half * 1e12 * constant("share_of_tensor_rate"),
        )
        return cls(
            name=target.name,
            multiprocessors=count,
            bandwidth=target.fact("bandwidth_gb_s") * 1e9 * constant("share_of_bandwidth"),
            vector=usual,
            tensor=products,
            products=products if float(capability) >= MMA else usual,
            clock=rate / (2 * count * LANES.get(capability, 128)),
            launch=constant(name) / 1e6,
            capability=float(capability),
        )
