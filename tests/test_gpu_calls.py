"""The benchmarks' loop of calls, as XLA makes it for an H200: every call is made, and no weight is copied."""

from collections import defaultdict

import pytest


@pytest.mark.slow
def test_a_call_more_is_a_call_more_and_copies_no_weight(compile_for_a_gpu):
    found = defaultdict(list)
    for line in compile_for_a_gpu("aot_gpu_calls"):
        found[line["call"]].append(line)
    assert found.keys() == {"dense", "product", "layer", "gradients"}
    for call, (one, five) in found.items():
        more, left_over = divmod(five["kernels"] - one["kernels"], five["weights"] - one["weights"])
        # No call is merged with another or made once for all; a value and two gradients are three products.
        assert left_over == 0
        assert more >= {"dense": 1, "product": 2, "layer": 4, "gradients": 3}[call]
        assert one["kernels"] - more <= 4
        # Only a weight's own gradient is as large as a weight in bfloat16.
        weight = 2 * 1536 * 4 * 1536
        assert five["largest"] == weight if call == "gradients" else five["largest"] < weight / 20
