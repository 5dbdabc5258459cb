// InfoNCE and mined binary cross-entropy over a memory bank, one pass for either or both.
#pragma once

#include "common/bank.h"
#include "common/isa.h"

namespace slr {

constexpr int64_t kMaxSegments = 32;
constexpr int64_t kGroupBlocks = 8;  // blocks that share a reading of the bank

// The bank is cut into segments, whose results are put together in their order, so that they do not depend on threads.
struct BankLosses {
  int32_t dtype;
  bool softmax, sigmoid;  // which halves
  Bank bank;
  int64_t b, blocks;
  int64_t segments, segment_rows;
  Packed query;
  const void* positive;           // packed like query.rows
  double temperature;             // of InfoNCE
  const int64_t *mined, *offset;  // distinct positives of row r: mined[offset[r] .. offset[r + 1])
  double mined_temperature;
  int64_t mined_rows;  // the first rows of the batch, which have positives

  // Per segment and block; T is the type that dtype names.
  void *top, *total;  // [segments][blocks][lanes] T: largest score, and sum of exp((score - largest) / temperature)
  int64_t* above;     // [segments][blocks][lanes]: scores above the positive's, or null
  void* sum;          // [segments][blocks][d][lanes] T: sum of the same times bank row, or null
  void *mined_total, *mined_sum;  // the same for softplus and sigmoid

  // Results, row-major; the last five may be null.
  void* loss;
  int64_t* rank;
  void *grad, *mined_loss, *mined_grad;
};

// Scratch bytes of one thread.
SLR_DECLARE_KERNEL(int64_t bank_losses_scratch(const BankLosses& job))
// Computes items [begin, end): segments times groups of blocks.
SLR_DECLARE_KERNEL(void bank_losses(const BankLosses& job, int64_t begin, int64_t end, void* scratch))
// Puts the results of blocks [begin, end) together.
SLR_DECLARE_KERNEL(void bank_losses_finish(const BankLosses& job, int64_t begin, int64_t end))

}  // namespace slr
