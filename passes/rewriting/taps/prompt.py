"""What methods read inside a language model: the words beside the tokens, the neurons of the MLP, and earlier blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.structure import Block
from tokenrt.passes.graph.quantization import decoded
from tokenrt.passes.methods.contract import Taps
from tokenrt.passes.rewriting.taps.block import END, GraphTaps

WEIGHED = frozenset({"MatMul", "MatMulInteger", "Gemm"})


@dataclass(frozen=True)
class PromptTaps(GraphTaps):
    """The taps at a block of a language model's prompt.

    words: first and end of the words, both from the end where they are behind the tokens that may leave; None where there are
    none. mlp: the block whose MLP lies in front of this place; None where it lies behind. before: the taps of the same tokens at
    a block in front.
    """

    words: tuple[int, int] | None = None
    mlp: Block | None = None
    before: Callable[[str, int], Taps] | None = None

    def layer(self, role: str, block: int) -> Taps:
        assert self.before is not None
        return self.before(role, block)

    def text(self) -> ir.Value:
        """[B,T,C] float32: the words as they are here."""
        return self._of_words(self._float(self.tokens), 1)

    def text_mask(self) -> ir.Value | None:
        if not self.padded or self.size is None:
            return None
        shown = self._float(self.op("Greater", self.size, 0.0))
        mask: ir.Value = self.op("Squeeze", self._of_words(shown, 1), [-1])
        return mask

    def text_attention(self) -> ir.Value:
        """[B,H,T,N] softmax rows of the words over all tokens, as the model has them; 0 in rows of padding."""
        first, end = self._places()
        if self.words is not None and self.words[0] >= 0:
            raise UnsupportedError(
                f"the method reads what words attend to, and tokens {first} to {end - 1} stand in front of those that may leave, "
                "which a causal mask hides from them: name words behind with --text S:E"
            )
        rows = end - first
        asking = self.op("Slice", self.queries(), [first], [end], [2])
        weights, mask = self._weights(asking, self._bias(first, rows), rows), self.text_mask()
        return weights if mask is None else self.op("Mul", weights, self.op("Unsqueeze", mask, [1, 3]))

    def text_keys(self) -> ir.Value:
        return self._of_words(self.keys(), 2)

    def neurons(self) -> ir.Value:
        """[B,N,F] float32: what the last product with weights of the block's MLP reads."""
        if self.mlp is None:
            raise UnsupportedError(
                "the method reads the neurons of the block's MLP, which lies behind this place: use --site after-block"
            )
        todo = [self.mlp.output]
        for value in todo:
            producer = None if value is self.mlp.attended else value.producer()
            if producer is None:
                continue
            data = [step for step in producer.inputs if step is not None and self.marks.get(step)]
            weighed = producer.op_type in WEIGHED
            if weighed and len(data) == 1:
                return self._rows(decoded(data[0]))
            todo.extend(step for step in data if step not in todo and not weighed)
        raise UnsupportedError(
            f"the MLP of block {self.mlp.index} ends in no product with weights, and the method reads what such a product reads"
        )

    def text_neurons(self) -> ir.Value:
        return self._of_words(self.neurons(), 1)

    def _places(self) -> tuple[int, int]:
        """First and end of the words among the tokens that are here. Raises: UnsupportedError."""
        if self.words is None:
            raise UnsupportedError(
                "the method reads the words behind the tokens that may leave, and none stand there; name words with --text S:E"
            )
        first, end = self.words
        return (first, end) if first >= 0 else (first + self.count, end + self.count)

    def _of_words(self, value: ir.Value, axis: int) -> ir.Value:
        first, end = self._places()
        found: ir.Value = self.op("Slice", value, [first], [END if end == self.count else end], [axis])
        return found
