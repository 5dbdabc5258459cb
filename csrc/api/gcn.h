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
  // Empty when there is no memory to be had. Takes time in proportion to the edges and to the joints of partitions that
  // have any.
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
// Both factors are >= 0 and their product fits.
slr_status check_product(const char* op, int64_t a, int64_t b);
// Channels in [0, 2^31): with at most 2^16 joints no size of a tile, of packed weights or of their sums overflows.
slr_status check_channels(const char* op, std::initializer_list<int64_t> channels);
slr_status check_parts(const char* op, int64_t rows, int64_t nodes, int64_t channels, const int32_t* members,
                       int64_t parts, int64_t most);

inline int64_t packed_bytes(int32_t dtype, int64_t k, int64_t n) {
  return rounded_up(k, 2) * wide(n) * compute_size(dtype);
}

// Packs `count` compact matrices; with `transposed`, from is [n, k].
void pack_matrices(Isa isa, int32_t dtype, const void* from, int64_t count, int64_t k, int64_t n, bool transposed,
                   void* to, int32_t threads);

// Frames (rows) of a tile of `bytes` per row: a multiple of kRowStep, and otherwise no more than kTileBytes hold, than
// 256, and than an eighth of a group's rows, so that eight threads find work in a small batch. The same for any number
// of threads, so that moments are too.
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

// The sums of `used` workers, each `size` bytes from sums + i each on, added up in the order of the tiles that the
// workers began at; zero without a worker.
char* add_up(int32_t dtype, const int64_t* begins, int64_t used, char* sums, int64_t each, int64_t size);

// Adds to sums [count] what their rounding lost, the [count] numbers behind them.
void add_rest(int32_t dtype, void* sums, int64_t count);

// body(begin, end, scratch, sums) over tiles, each thread with its own scratch and sums, which are added up and given
// to `finish`.
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
  const auto call = [](const void* opaque, int64_t begin, int64_t end) {
    const auto* context = static_cast<const Context*>(opaque);
    const int64_t worker = context->next.fetch_add(1);
    char* const scratch = context->memory + worker * context->each;
    std::memset(scratch + context->own, 0, context->sums);
    context->begins[worker] = begin;
    context->body(begin, end, scratch, scratch + context->own);
  };
  parallel_for(count, 1, threads, call, &context, 1);
  finish(add_up(dtype, context.begins, context.next.load(), memory.data() + own, each, sums));
  return SLR_OK;
}

}  // namespace slr
