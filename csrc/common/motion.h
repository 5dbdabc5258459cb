// One call of the motion op or of its adjoint, in the form all kernels compute.
#pragma once

#include "common/isa.h"
#include "slrfast/slrfast.h"

namespace slr {

// For every row of `length` elements: result[j] = (j in plus ? source[j + plus.offset] : 0)
//                                               - (j in minus ? source[j + minus.offset] : 0).
struct MotionJob {
  struct Window {
    int64_t begin, end, offset;
  };
  int32_t dtype;
  const void* source;
  void* result;
  int64_t rows, length;
  Window plus, minus;
  bool past_cache;  // the result is too large for any cache to keep
};

// Computes the elements [begin, end) of the rows * length results.
SLR_DECLARE_KERNEL(void motion(const MotionJob& job, int64_t begin, int64_t end))

namespace cuda {
slr_status motion(const MotionJob& job, void* stream);
}

}  // namespace slr
