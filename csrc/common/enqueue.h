// Writing keys into a memory bank.
#pragma once

#include "common/isa.h"

namespace slr {

struct Enqueue {
  int32_t bank_dtype;
  void* bank;
  int64_t row_stride, column_stride, n, d, cursor;
  int32_t key_dtype;
  const void* keys;
  bool normalize;
};

// Writes keys [begin, end).
SLR_DECLARE_KERNEL(void enqueue(const Enqueue& job, int64_t begin, int64_t end))

}  // namespace slr
