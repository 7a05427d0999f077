"""Published systems of token reduction and what covers each: the page docs/systems.md, from the methods themselves.

Run as a script it writes the page: `python -m tokenrt.passes.methods.systems docs/systems.md`, or `make docs`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenrt.passes.methods import catalog
from tokenrt.passes.methods.catalog import MethodInfo

WORKS, TRAINED, PART = "works", "works with weights", "part"
ARRAYS, RECOGNISED, MISSING = "on arrays", "recognised", "not yet"
STATES = (WORKS, TRAINED, PART, ARRAYS, RECOGNISED, MISSING)

PUBLISHED = """
Token Transforming | vision | many-to-many K x N transform of tokens, training-free
PiToMe | vision | energy of ELU(cos - margin) protects isolated tokens, merges the redundant pairs
GTP-ViT | vision | prune by attention diagonal x column mass, propagate the pruned along a spatial and semantic graph
Zero-TPrune | vision | weighted PageRank on the attention graph, then similarity pruning
BAT (importance and diversity) | vision | class attention splits; density-peak merge of inattentive, matching of attentive
ATC | vision | agglomerative clustering of keys to K clusters
Token Cropr | vision, dense | learned queries score tokens; pruned ones re-inserted before the last block
MSViT | vision | gate picks coarse or fine token per region; static form: quota
SPA | vision, dense | gate selects, packs tokens; static form: quota
Which Tokens to Use (10 methods) | vision | TopK, EViT, DynamicViT, ATS, ToMe, K-Medoids, DPC-KNN, SiT, Sinkhorn, PatchMerger
Expedit | dense | local soft k-means to an h x w grid, later reconstruction from neighbours
TORE | dense | learned pooling of image tokens for mesh recovery
AGER | dense | cluster patch tokens into instance tokens
SeRum | document | query decoder marks regions, content-aware merge
TokenPacker | projector | coarse point queries attend to fine regions
MQT | projector | keep the first m latent queries (slice the initialiser)
M3 | projector | nested grids by average pooling
TokenFLEX | projector | adaptive pooling to 64/144/256
FocusLLaVA | projector, LLM | region sampler then text sampler
PVC | projector, video | progressive per-frame tokens
When Less is Enough | projector | learned selector of reconstructible features
HiRED | vision tower | per-crop budgets from early class attention, selection from late
DivPrune | projector | greedy max-min distance
FoPru | vision tower | attention significance, by rank or by whole rows
GlobalCom2 | vision tower | thumbnail steers per-crop retention
IDPruner | projector | maximal marginal relevance of importance and diversity
Recoverable Compression | vision tower | text similarity recovers pruned tokens; the rest merge
ZOO-Prune | projector | zeroth-order sensitivity times novelty
HiPrune | vision tower | anchors of a middle layer, grid neighbours, registers of a deep layer
HoloV | vision tower | budget split over crops by attention
LRS-VQA coarse-to-fine | LLM | text attention over a tile pyramid
DyMU | vision tower, LLM | thresholded merging, virtual unmerge; static form: fixed r
CoViPAL | LLM | plug-in classifier per layer
ToDRE | projector, LLM | greedy max-sum diversity, then drop all late
CoreMatching | LLM | overlap of active neurons; static form: top-k
DART | LLM or projector | keep tokens least duplicate of a few pivots
MustDrop | tower, LLM, KV | window merge, text attention, key set
AIM | projector, LLM | bipartite merging, then PageRank pruning by layer
RCP | LLM | trained pruner with repair adapter
VFlowOpt | tower, LLM | attention flow and patch entropy, recycled tokens
CATP | projector, LLM | two progressive stages for in-context learning
STA | video | temporal recurrence times saliency
Video Token Merging | video | saliency-ordered targets
TESTA | video | merge frames, then patches
TempMe | video | merge within, then across neighbouring frames
QuoTA | video | per-frame quotas from a query; static form: quota input
HoliTom | video, LLM | temporal segments, static merge, density merge
GRT | video | motion gate before embedding
RAS | diffusion | active regions per step, cached rest; state as inputs and outputs
FlexDiT | diffusion | pooled and sparse-dense modules
PT-DiT (Qihoo-T2X) | diffusion | proxy token per window
ENAT | diffusion | critical tokens recomputed, rest reused
Token-Shuffle | generation | fold s x s tokens into channels, unfold after
ToMe for semantic binding | diffusion text | composite token for noun and attributes
Window-Diffusion | diffusion LM | sliding computation window
ToP-ViM | state space | prune with aligned hidden state
MrT5 | text | delete gate; static form: top-k
Token merging for code models | text | average sub-tokens of an identifier by a segment map
Dynamic tokenization (retrofit) | text | merge ids by a map input
Learn Your Tokens | text | word pooling
Hierarchical autoregressive / HAT | text | bytes to words to bytes
MAGNET | text | boundary predictors, segment mean; static form: top-k boundaries
EmbedLens | projector | drop tokens nearest to sink and dead vocabulary rows
Keyformer | KV cache | Gumbel-softmax accumulated scores, recent window
ZipCache | KV cache | normalised attention picks salient tokens for 4-bit, rest 2-bit
Locret | KV cache | trained heads score cache entries
Recycled Attention | KV cache | reuse the last full step's top tokens
TokenButler | KV cache | predicts token importance
Revisiting Token Dropping (ScTD) | text | half of the tokens skip the middle layers, restored later
PoNet | text | pooling mixer
FrugalPrompt | text | attribution keeps top k % of the prompt
Neural Attention Search | KV cache | learned token types decide what stays
BiFormer | vision | bi-level routing attention
CAS-ViT | vision | additive attention, measured with ONNX
"""
"""Name, where it sits, what it does."""

BASELINES = """
ToMe | vision | merge the most similar pairs of even and odd tokens
ToMe-SD | diffusion | merge inside each block of a diffusion model and put the tokens back
FastV | LLM | drop what the last word attends to least, behind an early layer
SparseVLM | LLM | raters among the words score tokens, recycled tokens by clusters
VisionZip | vision tower | dominant tokens by class attention, the rest joins a few
PruMerge | vision tower | outliers of class attention, neighbours merged into them
SCOPE | projector | greedy coverage times attention
VisPruner | vision tower | important tokens, then the least duplicate ones
EViT | vision | keep what the class token attends to, fuse the rest
DiffRate | vision | learned rates of pruning and merging
MCTF | vision | merge by similarity, information and size
ALGM | dense | merge windows early, anything later
DyCoke | video, LLM | drop tokens that repeat the frame before, thin the cache while decoding
FastVID | video | salient tokens of each frame, the rest into anchor frames of a segment
ToFu | vision | prune early, merge later, keeping norms
SnapKV | KV cache | entries that the last words attend to, pooled
H2O | KV cache | heavy hitters and the recent window
random | any | a random choice, the control
slice | any | the first tokens, the floor of cost
"""

SERVED = """
EVS | video | what changed since the frame before; vLLM, SGLang, TensorRT-LLM
VidCom2 | video | shares of frames by how they differ; vLLM
RATE | projector | evict what is like a few pivots; a branch of vLLM
Attention column sum | vision tower | attention received; a pull request of vLLM
GeoPrune | vision tower | what strong common directions leave; a branch of vLLM
Cosine | projector | the least mean cosine; a branch of vLLM
CDPruner | projector | relevance to the text and a determinant; OpenVINO GenAI
FasterVLM | vision tower | class attention before the projector
PruneVid | video, LLM | still places averaged, clusters, attention of the text
POMT | vision | attention received and values, a mean token for the rest
VisPCO | LLM | keep ratios along a Pareto curve
PixelPrune | before the tower | patches that a prediction from their neighbours tells
"""

ARCHITECTURE = (
    "an architecture trained so: nothing to insert, and `tokenrt inspect` says what it finds in such a model"
)
OUTSIDE = "decided outside the graph, from one call of the model to the next"
PLANNED: Mapping[str, str] = {
    "VisPCO": "the schedule `--schedule sigmoid=RATIO@CENTER`, with any method; its predictor is not published"
}
"""Systems that are a schedule of counts, and which."""

NO_REWRITE: Mapping[str, str] = {
    "TokenPacker": ARCHITECTURE,
    "PVC": ARCHITECTURE,
    "FlexDiT": "an architecture trained so, with a count of tokens of its own for each stretch of steps: one file each, and "
    "`tokenrt inspect` names it",
    "PT-DiT (Qihoo-T2X)": "an architecture trained so, with a proxy token a window in its blocks, and `tokenrt inspect` names it",
    "ENAT": "trained to compute critical tokens alone, which its decoder chooses from call to call; the state of a step as "
    "inputs and outputs is what [ras](methods/ras.md) has",
    "Learn Your Tokens": ARCHITECTURE,
    "Hierarchical autoregressive / HAT": ARCHITECTURE,
    "PoNet": ARCHITECTURE,
    "BiFormer": ARCHITECTURE,
    "CAS-ViT": ARCHITECTURE,
    "Window-Diffusion": "the window slides over the text outside the graph, from one call to the next: a model exported for the "
    "window's length is all it needs",
    "Recycled Attention": OUTSIDE,
    "FrugalPrompt": "words leave the prompt before the model sees it",
}
"""Systems that are no rewrite of a graph, and why."""

TOGETHER = frozenset({"ToDRE", "MustDrop", "HoliTom", "AIM"})
"""Systems whose steps are methods each, and all here."""

SECTIONS: Mapping[str, str] = {
    "Published systems": PUBLISHED,
    "Baselines": BASELINES,
    "What serving engines ship, and what is around it": SERVED,
}

HEAD = "| system | where | what it does | state | by |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class System:
    """One published system, the methods that cover it, and for each the step it covers, empty where it is all of it."""

    name: str
    where: str
    does: str
    covered: Mapping[str, str]

    @property
    def state(self) -> str:
        found = {name: catalog.info(name) for name in self.covered}
        whole = [info for name, info in found.items() if not self.covered[name]]
        written = [info for info in whole if not info.pending]
        if written:
            return TRAINED if all(info.trained for info in written) else WORKS
        if whole:
            return ARRAYS
        steps = [
            self.covered[name] + (f" ({ARRAYS})" if info.pending else "") for name, info in found.items()
        ]
        if steps:
            complete = self.name in TOGETHER and not any(info.pending for info in found.values())
            return f"{WORKS if complete else PART}: {', '.join(dict.fromkeys(steps))}"
        if self.name in PLANNED:
            return f"{PART}: the counts of the layers"
        return RECOGNISED if self.name in NO_REWRITE else MISSING

    def row(self) -> str:
        by = [
            f"[{name}](methods/{name}.md)" + (" (weights)" if catalog.info(name).trained else "")
            for name in self.covered
        ]
        otherwise = NO_REWRITE.get(self.name) or PLANNED.get(self.name, "")
        cells = (self.name, self.where, self.does, self.state, ", ".join(by) or otherwise)
        return f"| {' | '.join(cells)} |"


def systems() -> Mapping[str, list[System]]:
    """Every system by section; those that methods name and no section lists come last."""
    claims = list(_claims(catalog.catalog().methods))
    found = {
        title: [_system(line, claims) for line in text.strip().splitlines()]
        for title, text in SECTIONS.items()
    }
    listed = {system.name for section in found.values() for system in section}
    others = dict.fromkeys(name for name, _, _ in claims if name not in listed)
    return found | ({"More": [_system(f"{name} | | ", claims) for name in others]} if others else {})


def _claims(methods: Iterable[MethodInfo]) -> Iterator[tuple[str, str, str]]:
    """System, method and step of all that the methods say they cover."""
    for info in methods:
        for claim in info.systems:
            name, _, step = claim.partition(": ")
            yield name, info.name, step


def _system(line: str, claims: Iterable[tuple[str, str, str]]) -> System:
    name, where, does = (cell.strip() for cell in line.split("|"))
    return System(name, where, does, {method: step for system, method, step in claims if system == name})


def page() -> str:
    """The page in Markdown."""
    every = systems()
    states = [system.state.partition(":")[0] for section in every.values() for system in section]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES)
    parts = [
        "# Published systems",
        "Written by `make docs` from the methods themselves, each of which says what it covers. *Works*: its whole reduction is "
        "a method here, or each of its steps is one, in the form that their pages state, with a fixed number of tokens. *Works "
        "with weights*: the same, with trained tensors from a file. *Part*: the step that is here. *On arrays*: its mathematics "
        "is a method here, and no graph is rewritten by it, for the reason on its page. *Recognised*: no rewrite of a graph, for "
        "the reason given. What a method was compared with is on its page.",
        f"{counts}.",
    ]
    for title, section in every.items():
        parts += [f"## {title}", "\n".join([HEAD, *(system.row() for system in section)])]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/systems.md").write_text(page(), encoding="utf-8")
