// What the functions of the graph network share: checked arguments, packed weights, tiles and sums over them.
#pragma once

#include <algorithm>
#include <cstring>

#include "api/arguments.h"
#include "common/gcn.h"

namespace slr {

// The edges of a skeleton, partition by partition, each on the side with fewer joints.
class Graph {
 public:
  // Empty, with memory() null, when there is none to be had.
  Graph(const int32_t* edges, const float* coefficients, int64_t count, int64_t nodes, int64_t partitions,
        bool at_target);
  const Skeleton& skeleton() const { return skeleton_; }
  bool empty() const { return memory_.data() == nullptr; }

 private:
  Memory memory_;
  Skeleton skeleton_;
};

slr_status check_dtype(const char* op, int32_t dtype);
slr_status check_edges(const char* op, const int32_t* edges, const float* coefficients, int64_t count, int64_t nodes,
                       int64_t partitions);
slr_status check_groups(const char* op, int64_t rows, int64_t groups);
// Both factors are >= 0 and their product, times room for its use as a buffer's rows, fits.
slr_status check_product(const char* op, int64_t a, int64_t b);
slr_status check_parts(const char* op, int64_t rows, int64_t nodes, int64_t channels, const int32_t* members,
                       int64_t parts, int64_t most);

inline int64_t packed_bytes(int32_t dtype, int64_t k, int64_t n) {
  return rounded_up(k, 2) * wide(n) * compute_size(dtype);
}

// Channels of a panel.
inline int64_t panel_of(Isa isa, int32_t dtype) {
  const int64_t floats = isa == Isa::base ? 8 : isa == Isa::avx2 ? 16 : 32;
  return dtype == SLR_F64 ? floats / 2 : floats;
}

// Packs `count` compact matrices; with `transposed`, from is [n, k].
void pack_matrices(Isa isa, int32_t dtype, const void* from, int64_t count, int64_t k, int64_t n, bool transposed,
                   void* to, int32_t threads);

// Frames (rows) of a tile of `bytes` per row: it fits the cache, and up to eight threads find work in a small batch.
// The same for any number of threads, so that moments are too.
int64_t tile_size(int64_t rows, int64_t bytes);

// [wide(count)] of the compute type from `count` numbers, zero beyond them or where there are none.
void widen(int32_t dtype, const void* from, int64_t count, void* to);

uint32_t dropout_base(int64_t seed, int32_t site);

// moments [2][groups][channels], mean and biased variance, from those of the tiles [tiles][2][channels].
void merge_moments(int32_t dtype, const void* partial, const Tiles& tiles, int64_t values_per_row, int64_t channels,
                   void* moments);

// sums [count][groups][channels] of those of the tiles, `first` of `each` [tiles][each][channels] on.
void merge_sums(int32_t dtype, const void* partial, const Tiles& tiles, int64_t first, int64_t count, int64_t each,
                int64_t channels, void* sums);

// body(begin, end, scratch, sums) over tiles, each thread with its own scratch and sums, which are added up, in the
// order of the tiles, into those that then `finish` is given.
template <class Body, class Finish>
slr_status for_tiles(const char* op, int32_t dtype, int64_t count, int32_t threads, int64_t scratch, int64_t sums,
                     const Body& body, const Finish& finish) {
  const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(threads, count));
  const int64_t own = (scratch + 63) / 64 * 64 + 64, each = own + (sums + 63) / 64 * 64 + 64;
  const Memory memory(workers * (each + 64));
  if (memory.data() == nullptr) return out_of_memory(op);
  struct Context {
    const Body& body;
    char* memory;
    int64_t own, each, sums;
    int64_t* begins;
    mutable std::atomic<int64_t> next{0};
  } context{body, memory.data(), own, each, sums, reinterpret_cast<int64_t*>(memory.data() + workers * each)};
  for (int64_t i = 0; i < workers; ++i) context.begins[i] = -1;
  const auto call = [](const void* opaque, int64_t begin, int64_t end) {
    const auto* context = static_cast<const Context*>(opaque);
    const int64_t worker = context->next.fetch_add(1);
    char* const scratch = context->memory + worker * context->each;
    std::memset(scratch + context->own, 0, context->sums);
    context->begins[worker] = begin;
    context->body(begin, end, scratch, scratch + context->own);
  };
  parallel_for(count, 1, threads, call, &context, 1);
  const int64_t used = context.next.load();
  char* total = memory.data() + own;
  if (used == 0) {
    std::memset(total, 0, sums);
  } else if (sums > 0) {
    int64_t last = -1;  // where the worker that was added last began
    char* first = nullptr;
    for (int64_t k = 0; k < used; ++k) {
      int64_t next = -1;
      for (int64_t i = 0; i < used; ++i)
        if (context.begins[i] > last && (next < 0 || context.begins[i] < context.begins[next])) next = i;
      last = context.begins[next];
      char* const some = memory.data() + next * each + own;
      if (first == nullptr) {
        first = some;
      } else if (dtype == SLR_F64) {
        for (int64_t i = 0; i < sums / 8; ++i)
          reinterpret_cast<double*>(first)[i] += reinterpret_cast<double*>(some)[i];
      } else {
        for (int64_t i = 0; i < sums / 4; ++i) reinterpret_cast<float*>(first)[i] += reinterpret_cast<float*>(some)[i];
      }
    }
    total = first;
  }
  finish(total);
  return SLR_OK;
}

}  // namespace slr
