// What the functions share: checks of their arguments and running kernels; for those over memory banks, packing.
#pragma once

#include <atomic>
#include <initializer_list>

#include "common/bank.h"
#include "common/isa.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "common/status.h"

namespace slr {

struct Buffer {
  const char* name;
  const void* data;
  int64_t rows, columns;
  int64_t size;           // of an element
  bool optional = false;  // may be null
};

// Sizes that are >= 0 and whose products fit, buffers that are there and aligned to their elements.
slr_status check_buffers(const char* op, std::initializer_list<Buffer> buffers);
slr_status check_bank(const char* op, const Bank& bank);
slr_status check_compute_dtype(const char* op, int32_t dtype);
slr_status check_temperature(const char* op, const char* name, double value);
slr_status check_k(const char* op, int64_t k, int64_t n);
slr_status out_of_memory(const char* op);

inline int64_t blocks_of(int32_t dtype, int64_t b) { return (b + lanes_of(dtype) - 1) / lanes_of(dtype); }

// Whether the kernels multiply this bank in pairs.
inline bool takes_pairs(Isa isa, int32_t dtype, const Bank& bank) {
  return isa == Isa::avx512bf16 && dtype == SLR_F32 && bank.dtype == SLR_BF16;
}

// Rows [b, d] packed into `parts`; with `pairs` also as bfloat16 pairs (see Packed). Null parts only count the memory.
Packed pack(Parts* parts, int32_t dtype, const void* rows, int64_t b, int64_t d, bool pairs = false);

// body(begin, end, scratch) over the items [0, count) on at most `threads` threads, each with its own scratch memory.
template <class Body>
slr_status for_items(const char* op, int64_t count, int32_t threads, int64_t scratch, const Body& body) {
  const int64_t workers = threads < 1 ? 1 : threads < count ? threads : count, each = (scratch + 63) / 64 * 64 + 64;
  const Memory memory(workers * each);
  if (workers > 0 && memory.data() == nullptr) return out_of_memory(op);
  struct Context {
    const Body& body;
    char* memory;
    int64_t each;
    mutable std::atomic<int64_t> next{0};
  } context{body, memory.data(), each};
  const auto call = [](const void* opaque, int64_t begin, int64_t end) {
    const auto* context = static_cast<const Context*>(opaque);
    context->body(begin, end, context->memory + context->next.fetch_add(1) * context->each);
  };
  parallel_for(count, 1, threads, call, &context, 1);
  return SLR_OK;
}

}  // namespace slr
