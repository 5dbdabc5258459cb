// A memory bank, and a batch packed for being compared with it, as the kernels see them.
#pragma once

#include <cstdint>

#include "slrfast/slrfast.h"

namespace slr {

struct Bank {
  int32_t dtype;
  const void* data;
  int64_t row_stride, column_stride;  // in elements
  int64_t n, d;
};

constexpr int64_t kBlockBytes = 128;  // the lanes of a block of batch rows: 32 floats or 16 doubles, for any vectors
constexpr int64_t kTileRows = 96;     // bank rows that are scored, weighted and summed in one go

inline int64_t lanes_of(int32_t dtype) { return kBlockBytes / (dtype == SLR_F64 ? 8 : 4); }

// Rows [b, d] as blocks [ceil(b / lanes)][d][lanes], zero where there is no row.
struct Packed {
  const void* rows;
  // The same as sums of two bfloat16 numbers, [blocks][ceil(d / 2)][lanes], each element those of two neighbouring d:
  // for a bfloat16 bank where the processor multiplies such pairs, else null; low is null too when it is all zero.
  const uint32_t *high, *low;
};

}  // namespace slr
