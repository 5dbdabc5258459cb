// Element types, and the step from a run-time slr_dtype to a compile-time type.
#pragma once

#include <cstdint>

#include "slrfast/slrfast.h"

namespace slr {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

inline bool is_dtype(int32_t dtype) { return dtype >= SLR_F32 && dtype <= SLR_F16; }

inline int64_t size_of(int32_t dtype) { return dtype == SLR_F64 ? 8 : dtype == SLR_F32 ? 4 : 2; }

}  // namespace slr

// Calls function<T>(...) with the storage type T of a valid slr_dtype.
#define SLR_SWITCH_DTYPE(dtype, function, ...) \
  switch (dtype) {                             \
    case SLR_F32:                              \
      function<float>(__VA_ARGS__);            \
      break;                                   \
    case SLR_F64:                              \
      function<double>(__VA_ARGS__);           \
      break;                                   \
    case SLR_BF16:                             \
      function<slr::Bf16>(__VA_ARGS__);        \
      break;                                   \
    case SLR_F16:                              \
      function<slr::F16>(__VA_ARGS__);         \
      break;                                   \
  }
