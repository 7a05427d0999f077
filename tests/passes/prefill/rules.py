"""What published methods do inside a language model, once more in torch: a rule each, and how it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, gelu, normalize

from tests.passes.helpers.prefill import TOKENS, WIDTH, Choice, Rule, Seen, best

MAP = torch.rand(1, TOKENS, generator=torch.Generator().manual_seed(3))
"""A score of every token from outside the model."""


@dataclass(frozen=True)
class Case:
    """A method with options, the tokens left behind each layer, and the rule that torch follows; gained: inputs of the model."""

    method: str
    rule: Rule
    counts: dict[int, int] = field(default_factory=lambda: {0: 17, 1: 13})
    options: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    gained: Mapping[str, Tensor] = field(default_factory=dict)

    def inputs(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """These, and for each prompt what the model gains."""
        batch = len(next(iter(given.values())))
        return {**given, **{name: value.expand(batch, -1) for name, value in self.gained.items()}}


def _words(seen: Seen) -> Tensor:
    """[B,H,T,M]: what the words attend to in the picture; nothing in rows of padding."""
    rows = seen.attention[seen.layer][:, :, seen.words, seen.image]
    return rows * seen.real[:, None, seen.words, None]


def _last(seen: Seen, attention: Tensor) -> Tensor:
    """[B,M]: the row of the last token that is no padding, mean over heads, of attention [B,H,N,M]."""
    rows = torch.arange(len(attention))
    return attention[rows, :, seen.real.cumsum(1).argmax(1)].mean(1)


def mustdrop(seen: Seen, count: int) -> Choice:
    """The larger of the share of all words' attention and of one word's, each over its threshold."""
    return best(seen, _mustdrop(seen), count)


def _mustdrop(seen: Seen) -> Tensor:
    mean = _words(seen).mean(1)
    total = mean.sum(1)
    return torch.maximum(total / (0.01 * total.sum(1, keepdim=True)), mean.amax(1) / 0.02)


def mustdrop_with_keys(seen: Seen, count: int) -> Choice:
    """The same, but the third of the picture with the largest scores from outside stays whatever its words say."""
    kept = (
        MAP[:, seen.span[0] : seen.span[1]].argsort(dim=1, descending=True, stable=True)[0, :5] + seen.span[0]
    )
    score = torch.zeros(seen.kept.shape)
    score[:, seen.image] = _mustdrop(seen)
    return best(seen, torch.where(torch.isin(seen.kept, kept), 1e9, score), count)


def _raters(seen: Seen) -> Tensor:
    """[B,T]: 1 for the words whose share in the softmax over words is above the mean word's, at the input of the model."""
    if "raters" not in seen.state:
        start, words = seen.entered[0], seen.real[:, seen.words]
        alike = start[:, seen.image] @ start[:, seen.words].transpose(1, 2)
        share = alike.masked_fill(words[:, None] == 0, -torch.inf).softmax(-1)
        real = seen.real[:, seen.image, None]
        mine = (share * real).sum(1) / real.sum(1)
        seen.state["raters"] = (mine > mine.sum(1, keepdim=True) / words.sum(1, keepdim=True)).float()
    return seen.state["raters"]


def _rated(seen: Seen, attention: Tensor) -> Tensor:
    raters = _raters(seen)[..., None]
    return (attention * raters).sum(1) / raters.sum(1)


def sparsevlm_by_distance(seen: Seen, count: int) -> Choice:
    """Attention over what a vector of ones has with itself at that distance, of the heads with the largest sums."""
    width = 8
    theta = 10000.0 ** (-torch.arange(0, width, 2) / width)
    word = torch.arange(*seen.text)
    distance = word[None, :, None] - seen.kept[:, None, seen.image]
    alone = 2 * width**-0.5 * (distance[..., None] * theta).cos().sum(-1)
    fair = _words(seen) / alone[:, None]
    total = (fair * _raters(seen)[:, None, :, None]).sum((2, 3))
    heads = total.argsort(dim=1, descending=True, stable=True)[:, :2]
    mean = fair.gather(1, heads[..., None, None].expand(-1, -1, *fair.shape[2:])).mean(1)
    return best(seen, _rated(seen, mean), count)


def catp(seen: Seen, count: int) -> Choice:
    """How much the last token's attention has grown since the layer before, and the cosine with the mean word."""
    there = seen.held[seen.layer - 1]
    places = torch.stack([torch.searchsorted(a, b) for a, b in zip(there, seen.kept, strict=True)])
    now = _last(seen, seen.attention[seen.layer])
    earlier = replace(seen, real=seen.at(seen.layer - 1))
    then = _last(earlier, seen.attention[seen.layer - 1])
    words = seen.real[:, seen.words, None]
    mean = (seen.x[:, seen.words] * words).sum(1, keepdim=True) / words.sum(1, keepdim=True)
    grown = (now - then.gather(1, places)).clamp(min=0)
    return best(seen, grown + 0.6 * cosine_similarity(seen.x, mean, dim=2), count)


def like_the_words(seen: Seen, count: int) -> Choice:
    """The cosine with the mean word alone."""
    return best(seen, cosine_similarity(seen.x, seen.x[:, seen.words].mean(1, keepdim=True), dim=2), count)


def corematching(seen: Seen, count: int) -> Choice:
    """How many neurons are awake both in a token and in the last word but one."""
    awake = (seen.neurons[seen.layer] > 0).float()
    last = seen.real.cumsum(1).argmax(1)
    return best(seen, (awake @ awake[torch.arange(len(awake)), last - 1, :, None])[..., 0], count)


def pagerank(seen: Seen, count: int) -> Choice:
    """Five steps along the attention among the image tokens, to the power of ten, from a uniform start."""
    own = seen.attention[seen.layer][:, :, seen.image, seen.image].double()
    walk = (own / own.amax(-1, keepdim=True)) ** 10
    walk = walk / walk.sum(-1, keepdim=True)
    place = torch.full_like(walk[:, :, :1], 1 / walk.shape[-1])
    for _ in range(5):
        place = place @ walk
    return best(seen, place[:, :, 0].square().mean(1).sqrt(), count)


def drop_all(seen: Seen, count: int) -> Choice:
    """The words alone."""
    del count
    every = torch.arange(seen.kept.shape[1])
    left = torch.cat([every[: seen.image.start], every[seen.image.stop :]])
    return Choice(left[None].repeat(len(seen.kept), 1))


def _placed(seen: Seen, members: list[list[list[int]]], weights: list[list[list[float]]]) -> Choice:
    """Image tokens made of members with weights, each where the last one stood; the text as it is."""
    before, count = [*range(seen.image.start)], seen.kept.shape[1]
    places, shares = [], []
    for own, weight in zip(members, weights, strict=True):
        made = sorted((max(each), each, w) for each, w in zip(own, weight, strict=True))
        every = [
            *((place, [place], [1.0]) for place in before),
            *((seen.image.start + last, [seen.image.start + m for m in each], w) for last, each, w in made),
            *((place, [place], [1.0]) for place in range(seen.image.stop, count)),
        ]
        share = torch.zeros(len(every), count)
        for row, (_, each, w) in enumerate(every):
            share[row, each] = torch.tensor(w)
        places.append([place for place, _, _ in every])
        shares.append(share)
    return Choice(torch.tensor(places), torch.stack(shares))


def holitom(seen: Seen, count: int) -> Choice:
    """Each token that the last word passes over is averaged into the kept one most like it, one after the other."""
    keep = count - (seen.kept.shape[1] - (seen.image.stop - seen.image.start))
    score = _last(seen, seen.attention[seen.layer])[:, seen.image]
    members, weights = [], []
    for row, own in enumerate(seen.x[:, seen.image]):
        kept = sorted(score[row].argsort(descending=True, stable=True)[:keep].tolist())
        unit = normalize(own, dim=1)
        joined, share = {each: [each] for each in kept}, {each: [1.0] for each in kept}
        for token in range(len(own)):
            if token not in joined:
                near = kept[int((unit[kept] @ unit[token]).argmax())]
                joined[near].append(token)
                share[near] = [each / 2 for each in share[near]] + [0.5]
        members.append([joined[each] for each in kept])
        weights.append([share[each] for each in kept])
    return _placed(seen, members, weights)


def sparsevlm_recycled(seen: Seen, count: int) -> Choice:
    """The best tokens; of the rest the best become one cluster of plain means around the densest peak."""
    keep = count - (seen.kept.shape[1] - (seen.image.stop - seen.image.start)) - 1
    score = _rated(seen, _words(seen).mean(1))
    members, weights = [], []
    for row, own in enumerate(score):
        ranked = own.argsort(descending=True, stable=True).tolist()
        size = int((len(ranked) - keep) * 0.3) + 1
        cluster = ranked[keep : keep + size]
        members.append([*([each] for each in ranked[:keep]), cluster])
        weights.append([*([1.0] for _ in ranked[:keep]), [1 / size] * size])
        del row
    return _placed(seen, members, weights)


def by_map(seen: Seen, count: int) -> Choice:
    """The tokens of largest score, which comes from outside for the whole prompt."""
    score = MAP.expand(len(seen.kept), -1).gather(1, seen.kept)
    return best(seen, score, count)


def newlines(seen: Seen, count: int) -> Choice:
    """What the last word attends to, and the last token of each row of seven in any case."""
    score = _last(seen, seen.attention[seen.layer])
    return best(seen, torch.where((seen.kept - seen.span[0]) % 7 == 6, 1e9, score), count)


def dart(seen: Seen, count: int) -> Choice:
    """Two pivots of the picture and two words of largest key norm; each takes the tokens least like it."""
    size = seen.image.stop - seen.image.start
    wanted = count - (seen.kept.shape[1] - size) - 2
    norms = seen.keys[seen.layer].abs().sum((1, 3))
    score = torch.zeros(len(seen.kept), size)
    for row, x in enumerate(normalize(seen.x, dim=2)):
        words = norms[row, seen.words].masked_fill(seen.real[row, seen.words] == 0, -1)
        own, text = (
            each.argsort(descending=True, stable=True)[:2].tolist()
            for each in (norms[row, seen.image], words)
        )
        kept = [*own]
        asking = [*(seen.image.start + each for each in own), *(seen.words.start + each for each in text)]
        for turn, pivot in enumerate(asking):
            share = wanted // 4 + (turn < wanted % 4)
            order = (x[seen.image] @ x[pivot]).argsort(stable=True).tolist()
            kept += [each for each in order if each not in kept][:share]
        score[row, kept] = 1
    return best(seen, score, count)


def _gate(x: Tensor) -> Tensor:
    """[B,N]: linear, GELU, linear."""
    inner = gelu(x @ GATE["gate.0.weight"].T + GATE["gate.0.bias"])
    return (inner @ GATE["gate.2.weight"].T + GATE["gate.2.bias"])[..., 0]


def classified(seen: Seen, count: int) -> Choice:
    """What a trained classifier says of each token."""
    return best(seen, _gate(seen.x), count)


def corrected(seen: Seen, count: int) -> Choice:
    """The logarithm of the last word's attention, and what a trained pruner adds."""
    return best(seen, _last(seen, seen.attention[seen.layer]).clamp(min=1e-20).log() + _gate(seen.x), count)


GENERATOR = torch.Generator().manual_seed(4)
GATE = {
    name: torch.randn(*shape, generator=GENERATOR)
    for name, shape in {
        "gate.0.weight": (6, WIDTH), "gate.0.bias": (6,), "gate.2.weight": (1, 6), "gate.2.bias": (1,)
    }.items()
}  # fmt: skip
WEIGHTS = {"weights": {name: value.numpy() for name, value in GATE.items()}}


CASES: Mapping[str, Case] = {
    "mustdrop_dual": Case("mustdrop_dual", mustdrop, options={"share": 0.0, "all": 0.01, "one": 0.02}),
    "mustdrop_dual keys": Case(
        "mustdrop_dual",
        mustdrop_with_keys,
        {0: 17, 1: 16},
        {"share": 0.3, "all": 0.01, "one": 0.02},
        gained={"importance": MAP},
    ),
    "sparsevlm 2": Case("sparsevlm", sparsevlm_by_distance, options={"version": "2", "heads": 2}),
    "sparsevlm 1": Case("sparsevlm", sparsevlm_recycled),
    "catp_inner": Case("catp_inner", catp, {1: 14}),
    "corematching": Case("corematching", corematching, options={"word": -2}),
    "aim_pagerank": Case("aim_pagerank", pagerank),
    "todre_late": Case("todre_late", drop_all, {1: 10}),
    "holitom_inner": Case("holitom_inner", holitom),
    "covipal": Case("covipal", classified, options=WEIGHTS),
    "rcp": Case("rcp", corrected, options=WEIGHTS),
    "vflowopt": Case(
        "vflowopt", by_map, options={"score": "importance", "side": 0.0}, gained={"importance": MAP}
    ),
    "lrs_vqa": Case("lrs_vqa", newlines, {0: 17}, {"score": "last", "row": 7}),
    "dart": Case("dart", dart, {1: 18}, {"form": "paper", "norm": "keys", "pivots": 2, "text_pivots": 2}),
}
