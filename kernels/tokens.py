"""MaxSim of token embeddings: maxima over a document's tokens, and the sparse way back.

A tile is BLOCK_M query tokens against a whole document, BLOCK_N tokens at a time: it keeps one
maximum and its place a query token, never the similarities. Backward, one program owns the
gradient of a token and gathers what pulls at it, in order: no atomics, one order of summation.
"""

import triton
import triton.language as tl

from .tile import product


@triton.jit(do_not_specialize=["length", "width", "tokens", "documents"])
def token_maxima(
    x,
    y,
    x_inverse,
    y_inverse,
    x_mask,
    y_mask,
    best,
    where,
    tokens,
    documents,
    length,
    width,
    depth,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """best and where (queries, documents, length) from x (tokens, depth) and y (documents * width,
    depth), prepared rows; masks are int8 for each row, or None. The first of equals.
    Documents run fastest, so that programs that are neighbours share their queries."""
    program = tl.program_id(0)
    document = program % documents
    row = program // documents * BLOCK_M
    rows = row + tl.arange(0, BLOCK_M)
    inside = rows < tokens
    # Similarities as integers of the same order: NaN is the largest, as in a dense maximum,
    # and less than minus infinity is no token.
    most = tl.full((BLOCK_M,), -0x80000000, tl.int32)
    place = tl.full((BLOCK_M,), -1, tl.int32)
    first = document * width
    for start in range(0, width, BLOCK_N):
        value = product(
            x,
            y,
            row,
            first + start,
            tokens,
            first + width,
            depth,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            PRECISION,
            False,
        )
        columns = start + tl.arange(0, BLOCK_N)
        there = columns < width
        value *= tl.load(y_inverse + first + columns, mask=there, other=0.0)[None, :]
        if y_mask is not None:
            there = there & (tl.load(y_mask + first + columns, mask=there, other=0) != 0)
        bits = value.to(tl.int32, bitcast=True)
        bits = tl.where(bits < 0, (bits ^ 0x7FFFFFFF) + 1, bits)  # both zeros are 0
        bits = tl.where(value != value, 0x7FFFFFFF, bits)
        bits = tl.where(there[None, :], bits, -0x80000000)
        top = tl.max(bits, 1)
        at = tl.min(tl.where(bits == top[:, None], columns[None, :], 0x7FFFFFFF), 1)
        better = top > most
        most = tl.where(better, top, most)
        place = tl.where(better, at, place)
    if x_mask is not None:
        place = tl.where(tl.load(x_mask + rows, mask=inside, other=0) != 0, place, -1)
    found = tl.where(most < 0, (most - 1) ^ 0x7FFFFFFF, most).to(tl.float32, bitcast=True)
    found *= tl.load(x_inverse + rows, mask=inside, other=0.0)
    out = (rows // length).to(tl.int64) * documents + document
    out = out * length + rows % length
    tl.store(best + out, tl.where(place < 0, 0.0, found), mask=inside)
    tl.store(where + out, place, mask=inside)


@triton.jit(do_not_specialize=["length", "width", "documents"])
def pull_queries(
    y,
    y_inverse,
    share,
    where,
    grad,
    documents,
    length,
    width,
    columns,
    padded,
    BLOCK: tl.constexpr,
):
    """grad (tokens, columns) float32 by unit rows: each query token's sum over documents, in order,
    of share (queries, documents) times the document's token at its maximum."""
    token = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    total = tl.zeros((BLOCK,), tl.float32)
    base = (token // length).to(tl.int64) * documents
    for document in range(documents):
        place = tl.load(where + (base + document) * length + token % length)
        row = (document * width + tl.maximum(place, 0)).to(tl.int64)
        value = tl.load(y + row * padded + at, mask=inside & (place >= 0), other=0.0)
        factor = tl.load(share + base + document) * tl.load(y_inverse + row)
        total += tl.where(place >= 0, factor * value.to(tl.float32), 0.0)
    tl.store(grad + token.to(tl.int64) * columns + at, total, mask=inside)


@triton.jit(do_not_specialize=["length", "first", "count", "documents"])
def pull_documents(
    x,
    x_inverse,
    share,
    order,
    starts,
    grad,
    first,
    count,
    documents,
    length,
    columns,
    padded,
    BLOCK: tl.constexpr,
):
    """grad (count * width, columns) float32 by unit rows, of `count` documents from `first` on:
    each token's sum of share times the query tokens whose maximum it was, order[starts[token] ..
    starts[token + 1]), numbers in (queries, count, length)."""
    token = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    total = tl.zeros((BLOCK,), tl.float32)
    for place in range(tl.load(starts + token), tl.load(starts + token + 1)):
        number = tl.load(order + place)
        query = number // (count * length)
        row = query * length + number % length
        document = first + number // length % count
        value = tl.load(x + row * padded + at, mask=inside, other=0.0)
        factor = tl.load(share + query * documents + document) * tl.load(x_inverse + row)
        total += factor * value.to(tl.float32)
    tl.store(grad + token.to(tl.int64) * columns + at, total, mask=inside)
