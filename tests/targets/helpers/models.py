"""Small models that build in a second."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir

KEEP = """
<domain: "tokenrt", opset_import: ["": 18]>
Keep <keep> (tokens, score) => (kept, index) {
  count = Constant <value_ints: ints = @keep> ()
  value, index = TopK <axis = -1> (score, count)
  axis = Constant <value_ints = [2]> ()
  deep = Unsqueeze (index, axis)
  kept = GatherND <batch_dims = 1> (tokens, deep)
}
"""
"""A tokenrt function that stands for any: the best by a score."""

REDUCTION = (
    """<ir_version: 10, opset_import: ["": 18, "tokenrt": 1]>
main (KIND[BATCH,6,8] tokens) => (KIND[BATCH,3,8] kept) {
  last = Constant <value_ints = [-1]> ()
  score = ReduceSum <keepdims = 0> (tokens, last)
  mixed, index = tokenrt.Keep <keep = [3]> (tokens, score)
  kept = Relu (mixed)
}
"""
    + KEEP
)

ATTENTION = """<ir_version: 11, opset_import: ["": 23]>
main (KIND[B,6,32] x, KIND[B,6,32] z) => (KIND[B,6,32] y) {
  y = Attention <q_num_heads = 2, kv_num_heads = 2> (x, z, z)
}
"""


def reduction(kind: str = "float", batch: str = "B") -> ir.Model:
    return parse(REDUCTION.replace("KIND", kind).replace("BATCH", batch))


def parse(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))
