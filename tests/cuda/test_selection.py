"""The CUDA kernels' own text, run on the CPU, against the tests of every selection backend.

Shapes, dtypes, duplicates, all-equal rows, k = M, everything excluded, NaN, infinite and subnormal
rows: tests/mining says what is expected; here only the backend differs.
"""

import test_batch
import test_topk
from hypothesis import settings

BACKENDS = test_topk.WORKING = ["cuda"]

OF_TOPK = (
    "test_every_backend_scan_and_block_gives_the_same_bits",
    "test_against_brute_force_in_float64",
    "test_int8_is_exact",
    "test_packed_bits_score_minus_their_hamming_distance",
    "test_everything_excluded_is_padding",
    "test_ids_leave_out_equal_texts",
    "test_memory_maps_and_iterables_are_the_same_corpus",
    "test_rows_without_direction_are_counted_in_a_warning",
)
for name in OF_TOPK:
    theirs = getattr(test_topk, name)
    # A block's threads take turns here: half as many examples.
    given = hasattr(theirs, "hypothesis")
    globals()[name] = settings(max_examples=20)(theirs) if given else theirs
test_one_of_each = test_batch.test_one_of_each
