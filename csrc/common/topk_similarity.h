// The nearest bank rows of every batch row.
#pragma once

#include "common/bank.h"
#include "common/isa.h"

namespace slr {

// Whether to keep the best so far in order while the bank passes: for few neighbours, or where all scores are too many.
inline bool keeps_best(int64_t k, int64_t n) { return k <= 64 || (k <= 1024 && n > 1 << 18); }
constexpr int64_t kMostRows = INT32_MAX;  // of a bank all of whose scores are held

struct TopkSimilarity {
  int32_t dtype;  // T is the type it names
  Bank bank;
  Packed query;
  int64_t b, blocks, k, segments, segment_rows;
  bool sorted;
  // few: the best of each segment, [segments][b][k]; many: all scores, [blocks][columns][n][width] (see neighbor_kl.h)
  void* scores;
  int64_t* rows;  // few only: bank rows of those
  void* values;   // results
  int64_t* indices;
};

SLR_DECLARE_KERNEL(int64_t topk_similarity_columns())
SLR_DECLARE_KERNEL(int64_t topk_similarity_scratch(const TopkSimilarity& job))
// Few neighbours: segments [begin, end), then rows [begin, end) of the results.
SLR_DECLARE_KERNEL(void topk_similarity_few(const TopkSimilarity& job, int64_t begin, int64_t end, void* scratch))
SLR_DECLARE_KERNEL(void topk_similarity_merge(const TopkSimilarity& job, int64_t begin, int64_t end, void* scratch))
// Many: segments [begin, end), then columns of scores.
SLR_DECLARE_KERNEL(void topk_similarity_scores(const TopkSimilarity& job, int64_t begin, int64_t end, void* scratch))
SLR_DECLARE_KERNEL(void topk_similarity_choose(const TopkSimilarity& job, int64_t begin, int64_t end, void* scratch))

struct TopkSimilarityGrad {
  int32_t dtype;
  Bank bank;
  int64_t k;
  const void* grad;        // [b][k] T
  const int64_t* indices;  // [b][k]
  void* result;            // [b][d] T
};

SLR_DECLARE_KERNEL(void topk_similarity_grad(const TopkSimilarityGrad& job, int64_t begin, int64_t end))

}  // namespace slr
