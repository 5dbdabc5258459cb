#include "api/gcn.h"

namespace slr {
namespace {

// Sorts `count` edges, those of `order` or, where that is null, all, by one of their three numbers, which has `buckets`
// values; of equal ones the first stays first. at[value] is left at the end of the edges with that value.
void sort_edges(const int32_t* edges, int side, const int64_t* order, int64_t count, int64_t buckets, int64_t* at,
                int64_t* sorted) {
  const auto edge = [&](int64_t i) { return order == nullptr ? i : order[i]; };
  std::memset(at, 0, (buckets + 1) * sizeof *at);
  for (int64_t i = 0; i < count; ++i) ++at[edges[3 * edge(i) + side] + 1];
  for (int64_t b = 0; b < buckets; ++b) at[b + 1] += at[b];
  for (int64_t i = 0; i < count; ++i) sorted[at[edges[3 * edge(i) + side]]++] = edge(i);
}

// How many different values number `side` has in sorted edges.
int64_t distinct(const int32_t* edges, int side, const int64_t* sorted, int64_t count) {
  int64_t found = count > 0;
  for (int64_t i = 1; i < count; ++i) found += edges[3 * sorted[i] + side] != edges[3 * sorted[i - 1] + side];
  return found;
}

template <class T>
void merge(const T* partial, const Tiles& tiles, int64_t values_per_row, int64_t channels, T* moments) {
  for (int64_t g = 0; g < tiles.groups; ++g)
    for (int64_t c = 0; c < channels; ++c) {
      double mean = 0, squares = 0, count = 0;
      for (int64_t t = 0; t < tiles_of_group(tiles); ++t) {
        const double more = values_per_row * std::min(tiles.size, tiles.rows - t * tiles.size);
        const T* const of_tile = partial + (g * tiles_of_group(tiles) + t) * 2 * channels + c;
        const double off = of_tile[0] - mean;
        mean += off * (more / (count + more));
        squares += of_tile[channels] + off * off * (count * more / (count + more));
        count += more;
      }
      moments[g * channels + c] = static_cast<T>(mean);
      moments[(tiles.groups + g) * channels + c] = static_cast<T>(squares / count);
    }
}

template <class T>
void merge(const T* partial, const Tiles& tiles, int64_t first, int64_t count, int64_t each, int64_t channels,
           T* sums) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t g = 0; g < tiles.groups; ++g)
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t t = 0; t < tiles_of_group(tiles); ++t)
          sum += partial[((g * tiles_of_group(tiles) + t) * each + first + i) * channels + c];
        sums[(i * tiles.groups + g) * channels + c] = static_cast<T>(sum);
      }
}

template <class T>
void add(const void* more, int64_t count, void* to) {
  for (int64_t i = 0; i < count; ++i) static_cast<T*>(to)[i] += static_cast<const T*>(more)[i];
}

template <class T>
void add_rest_of(T* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += sums[count + i] == sums[count + i] ? sums[count + i] : 0;  // inf - inf
}

}  // namespace

Graph::Graph(const int32_t* edges, const float* coefficients, int64_t count, int64_t nodes, int64_t partitions,
             bool at_target)
    : memory_(partitions * static_cast<int64_t>(sizeof(Partition) + 8) + nodes * 8 +
              count * static_cast<int64_t>(sizeof(Edge) + 4 + 3 * 8) + 9 * 64),
      skeleton_{nodes, partitions, nullptr} {
  if (memory_.data() == nullptr) return;
  Parts parts(memory_.data());
  auto* const found = parts.take<Partition>(partitions);
  auto* sorted = parts.take<Edge>(count);
  auto* of_side = parts.take<int32_t>(count);
  auto* const order = parts.take<int64_t>(count);  // the edges, partition by partition
  int64_t* const by_side[] = {parts.take<int64_t>(count), parts.take<int64_t>(count)};
  auto* const end = parts.take<int64_t>(partitions + 1);
  auto* const at = parts.take<int64_t>(nodes + 1);
  sort_edges(edges, 0, nullptr, count, partitions, end, order);
  for (int64_t p = 0; p < partitions; ++p) {
    const int64_t begin = p == 0 ? 0 : end[p - 1], length = end[p] - begin;
    int64_t joints[2] = {0, 0};  // that edges start from, that they lead to
    for (int side = 0; side < 2 && length > 0; ++side) {
      sort_edges(edges, side + 1, order + begin, length, nodes, at, by_side[side]);
      joints[side] = distinct(edges, side + 1, by_side[side], length);
    }
    const bool to_target = joints[1] < joints[0] || (joints[1] == joints[0] && at_target);
    found[p] = {to_target, joints[to_target], of_side, length, sorted};
    for (int64_t i = 0; i < length; ++i) {
      const int64_t e = by_side[to_target][i];
      const int32_t node = edges[3 * e + 1 + to_target];
      if (i == 0 || node != of_side[-1]) *of_side++ = node;
      *sorted++ = {edges[3 * e + 1], edges[3 * e + 2], coefficients[e]};
    }
  }
  skeleton_.partition = found;
}

slr_status check_dtype(const char* op, int32_t dtype) {
  return is_dtype(dtype) ? SLR_OK : fail(SLR_INVALID_ARGUMENT, "%s: unknown dtype %d", op, dtype);
}

slr_status check_edges(const char* op, const int32_t* edges, const float* coefficients, int64_t count, int64_t nodes,
                       int64_t partitions) {
  if (nodes < 1 || nodes > 1 << 16 || partitions < 1 || partitions > 1 << 16)
    return fail(SLR_INVALID_ARGUMENT, "%s: nodes and partitions must be in [1, 65536], got %lld and %lld", op,
                (long long)nodes, (long long)partitions);
  if (const slr_status status =
          check_buffers(op, {{"edges", edges, count, 3, 4}, {"coefficients", coefficients, count, 1, 4}}))
    return status;
  for (int64_t e = 0; e < count; ++e) {
    const int32_t *const edge = edges + 3 * e, p = edge[0], v = edge[1], w = edge[2];
    if (p < 0 || p >= partitions || v < 0 || v >= nodes || w < 0 || w >= nodes)
      return fail(SLR_INVALID_ARGUMENT, "%s: edge %lld (%d, %d, %d) must be in %lld partitions of %lld nodes", op,
                  (long long)e, p, v, w, (long long)partitions, (long long)nodes);
  }
  return SLR_OK;
}

slr_status check_groups(const char* op, int64_t rows, int64_t groups) {
  if (groups >= 1 && rows >= 0 && rows % groups == 0 && groups <= std::max<int64_t>(rows, 1)) return SLR_OK;
  return fail(SLR_INVALID_ARGUMENT, "%s: groups must divide %lld rows, got %lld", op, (long long)rows,
              (long long)groups);
}

slr_status check_product(const char* op, int64_t a, int64_t b) {
  int64_t product;
  if (a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product)) return SLR_OK;
  return fail(SLR_INVALID_ARGUMENT, "%s: impossible size %lld x %lld", op, (long long)a, (long long)b);
}

slr_status check_channels(const char* op, std::initializer_list<int64_t> channels) {
  for (const int64_t count : channels)
    if (count < 0 || count > INT32_MAX)
      return fail(SLR_INVALID_ARGUMENT, "%s: impossible size: %lld channels", op, (long long)count);
  return SLR_OK;
}

slr_status check_parts(const char* op, int64_t rows, int64_t nodes, int64_t channels, const int32_t* members,
                       int64_t parts, int64_t most) {
  if (most < 1 || most > 256)
    return fail(SLR_INVALID_ARGUMENT, "%s: parts must have 1 to 256 nodes, got %lld", op, (long long)most);
  int64_t product;
  if (rows < 0 || nodes < 0 || channels < 0 || __builtin_mul_overflow(rows, nodes, &product) ||
      __builtin_mul_overflow(rows, parts, &product))
    return fail(SLR_INVALID_ARGUMENT, "%s: impossible size %lld x %lld x %lld", op, (long long)rows, (long long)nodes,
                (long long)channels);
  if (const slr_status status = check_buffers(op, {{"members", members, parts, most, 4}})) return status;
  for (int64_t i = 0; i < parts * most; ++i)
    if (members[i] < 0 || members[i] >= nodes)
      return fail(SLR_INVALID_ARGUMENT, "%s: members must be nodes of 0..%lld, got %d", op, (long long)nodes - 1,
                  members[i]);
  return SLR_OK;
}

void pack_matrices(Isa isa, int32_t dtype, const void* from, int64_t count, int64_t k, int64_t n, bool transposed,
                   void* to, int32_t threads) {
  if (k == 0 || n == 0) return;
  struct Context {
    PackWeights job;
    int64_t panels, from_bytes, to_bytes;
    void (*kernel)(const PackWeights&, int64_t, int64_t);
  };
  const int64_t panel = panel_of(isa, dtype), panels = (n + panel - 1) / panel;
  const Context context{{dtype, from, k, n, transposed ? 1 : n, transposed ? k : 1, to},
                        panels,
                        k * n * compute_size(dtype),
                        rounded_up(k, 2) * panels * panel * (paired(isa, dtype) ? 2 : compute_size(dtype)),
                        SLR_SELECT_KERNEL(isa, pack_weights)};
  const auto body = [](const void* opaque, int64_t begin, int64_t end) {
    const auto* c = static_cast<const Context*>(opaque);
    for (int64_t i = begin; i < end; ++i) {
      PackWeights job = c->job;
      job.from = static_cast<const char*>(job.from) + i / c->panels * c->from_bytes;
      job.to = static_cast<char*>(job.to) + i / c->panels * c->to_bytes;
      c->kernel(job, i % c->panels, i % c->panels + 1);
    }
  };
  parallel_for(count * panels, 1 + (1 << 14) / (k * panel), threads, body, &context, 1);
}

int64_t tile_size(int64_t rows, int64_t bytes) {
  const int64_t fits = std::min<int64_t>(kTileBytes / std::max<int64_t>(bytes, 1), 256), shared = (rows + 7) / 8;
  return std::max(std::min(fits, shared) / kRowStep * kRowStep, kRowStep);
}

void widen(int32_t dtype, const void* from, int64_t count, void* to) {
  std::memset(to, 0, wide(count) * compute_size(dtype));
  if (from != nullptr && count > 0) std::memcpy(to, from, count * compute_size(dtype));
}

char* add_up(int32_t dtype, const int64_t* begins, int64_t used, char* sums, int64_t each, int64_t size) {
  if (used == 0) std::memset(sums, 0, size);
  char* total = sums;
  int64_t last = -1;  // where the worker that was added last began
  for (int64_t k = 0; k < used && size > 0; ++k) {
    int64_t next = -1;
    for (int64_t i = 0; i < used; ++i)
      if (begins[i] > last && (next < 0 || begins[i] < begins[next])) next = i;
    last = begins[next];
    if (k == 0)
      total = sums + next * each;
    else if (dtype == SLR_F64)
      add<double>(sums + next * each, size / 8, total);
    else
      add<float>(sums + next * each, size / 4, total);
  }
  return total;
}

void add_rest(int32_t dtype, void* sums, int64_t count) {
  dtype == SLR_F64 ? add_rest_of(static_cast<double*>(sums), count) : add_rest_of(static_cast<float*>(sums), count);
}

uint32_t dropout_base(int64_t seed, int32_t site) {
  const auto words = static_cast<uint64_t>(seed);
  return mixed(static_cast<uint32_t>(words) + (static_cast<uint32_t>(site) + 1) * 0x9e3779b9u) ^
         static_cast<uint32_t>(words >> 32);
}

void merge_moments(int32_t dtype, const void* partial, const Tiles& tiles, int64_t values_per_row, int64_t channels,
                   void* moments) {
  if (dtype == SLR_F64)
    merge(static_cast<const double*>(partial), tiles, values_per_row, channels, static_cast<double*>(moments));
  else
    merge(static_cast<const float*>(partial), tiles, values_per_row, channels, static_cast<float*>(moments));
}

void merge_sums(int32_t dtype, const void* partial, const Tiles& tiles, int64_t first, int64_t count, int64_t each,
                int64_t channels, void* sums) {
  if (dtype == SLR_F64)
    merge(static_cast<const double*>(partial), tiles, first, count, each, channels, static_cast<double*>(sums));
  else
    merge(static_cast<const float*>(partial), tiles, first, count, each, channels, static_cast<float*>(sums));
}

}  // namespace slr
