// Late interaction, as the CPU kernel sees it: raw pointers and numbers, no torch.
//
//   S_nm = w_n sum_i max_j <q_ni, k_mj>
//
// over the tokens i of query n and j of document m that the masks keep, of unit vectors when
// `normalize`; w_n is 1, or for `mean` one over the query's tokens. The similarities of tokens live
// in registers only. Where each maximum was is kept for the backward, which is sparse: a query's
// token pulls at one token of each document. One task owns each gradient row, and adds in order.
#pragma once
#include <cstdint>

#include "problem.h"

namespace contrastive_ops {

struct Tokens {
  const void* data = nullptr;  // (count, length, dim), unit stride in the last dimension
  int64_t count = 0, length = 0;
  int64_t stride = 0, token_stride = 0;  // elements from one to the next
  const bool* mask = nullptr;  // (count, length): false where there is none; null: all are there
  void* grad = nullptr;        // out (count, length, dim) contiguous; null: not wanted
};

template <class Acc>
struct TokenProblem {
  DType dtype = DType::float32;
  int64_t dim = 0;
  Tokens queries, documents;
  bool normalize = true, mean = false;
  int64_t workspace_bytes = 0;
  Acc* scores = nullptr;      // out (queries, documents)
  int32_t* where = nullptr;   // (queries, documents, query length): the document's token, the first
                              // of equals; -1 where there is none
  const Acc* grad = nullptr;  // (queries, documents); null: forward
};

// Fills scores and where; with `grad` reads where and fills the wanted gradients instead.
void token_similarity(const TokenProblem<float>& problem);
void token_similarity(const TokenProblem<double>& problem);

}  // namespace contrastive_ops
