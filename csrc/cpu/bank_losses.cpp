#include "common/bank_losses.h"

#include "cpu/bank_tiles.h"

namespace slr {
namespace SLR_ISA {
namespace {

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.693147180559945309417;

template <class T>
constexpr T kLowest = sizeof(T) == 4 ? static_cast<T>(-0x1.fffffep127) : static_cast<T>(-0x1.fffffffffffffp1023);

// The scores of the positives of one block, by the same additions in the same order as those of bank rows.
template <class T>
void own_scores(const BankLosses& job, int64_t block, T* to) {
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  const int64_t size = job.bank.d * lanes;
  const T* query = static_cast<const T*>(job.query.rows) + block * size;
  const T* positive = static_cast<const T*>(job.positive) + block * size;
  for (int64_t v = 0; v < lanes; v += Simd<T>::width) {
    Value<T> sum = {};
    for (int64_t j = v; j < size; j += lanes) sum = fused(read(positive + j), read(query + j), sum);
    write(to + v, sum);
  }
}

// One tile's share of InfoNCE; turns its scores into 2^(exponent - top).
template <class T>
void softmax_tile(T* tile, int64_t rows, int columns, T scale, const T* own, T* top, T* total, int64_t* above, T* sum,
                  int64_t d) {
  constexpr int width = Simd<T>::width;
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  for (int v = 0; v < columns; ++v) {
    T* column = tile + v * width;
    const Value<T> before = read(top + v * width);
    Value<T> first = before, second = before;
    int64_t n = 0;
    for (; n + 2 <= rows; n += 2) {
      first = larger(first, read(column + n * lanes) * scale);
      second = larger(second, read(column + (n + 1) * lanes) * scale);
    }
    if (n < rows) first = larger(first, read(column + n * lanes) * scale);
    const Value<T> now = larger(first, second);
    Value<T> all = read(total + v * width);
    if (any(now > before)) {
      const Value<T> factor = exp2(before - now);
      all *= factor;
      write(top + v * width, now);
      if (sum != nullptr)
        for (int64_t j = 0; j < d; ++j) {
          T* at = sum + j * lanes + v * width;
          write(at, read(at) * factor);
        }
    }
    Value<T> some = {};
    Mask<T> count = {};
    const Value<T> limit = above != nullptr ? read(own + v * width) : some;
    for (n = 0; n < rows; ++n) {
      const Value<T> score = read(column + n * lanes), p = exp2(score * scale - now);
      count -= score > limit;
      some += p;
      write(column + n * lanes, p);
    }
    write(total + v * width, all + some);
    if (above != nullptr)
      for (int i = 0; i < width; ++i) above[v * width + i] += count[i];
  }
}

// One tile's share of mined cross-entropy; writes sigmoid(score / temperature) to `weights`.
template <class T>
void sigmoid_tile(const T* tile, int64_t rows, int columns, T scale, T* total, T* weights) {
  constexpr int width = Simd<T>::width;
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  for (int v = 0; v < columns; ++v) {
    Value<T> some = {};
    for (int64_t n = 0; n < rows; ++n) {
      const Value<T> z = read(tile + n * lanes + v * width) * scale, negative = z > 0 ? -z : z;
      const Value<T> e = exp2(negative * static_cast<T>(kLog2E)), part = static_cast<T>(1) / (e + 1);
      some += (z - negative) * static_cast<T>(0.5) + log1p(e);  // max(z, 0): half of z + |z|
      write(weights + n * lanes + v * width, z > 0 ? part : e * part);
    }
    write(total + v * width, read(total + v * width) + some);
  }
}

// One segment of the bank against one group of blocks.
template <class T>
void segment(const BankLosses& job, int64_t item, char* scratch) {
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  constexpr Layout layout = Reader<T>::block_layout;
  const int64_t d = job.bank.d, size = d * lanes;
  Reader<T> reader(job.bank, job.query.high != nullptr, scratch);
  T* weights = reinterpret_cast<T*>(scratch + Reader<T>::scratch(d));
  T* mined_weights = weights + kTileRows * lanes;
  T* own = mined_weights + kTileRows * lanes;  // [kGroupBlocks][lanes]
  const int64_t groups = (job.blocks + kGroupBlocks - 1) / kGroupBlocks, index = item / groups;
  const int64_t first_block = item % groups * kGroupBlocks;
  const int64_t end_block = first_block + kGroupBlocks < job.blocks ? first_block + kGroupBlocks : job.blocks;
  const int64_t first = index * job.segment_rows;
  const int64_t end = first + job.segment_rows < job.bank.n ? first + job.segment_rows : job.bank.n;
  const bool softmax = job.softmax, sigmoid = job.sigmoid;
  const auto at = [&](void* partial, int64_t block, int64_t count) {
    return partial == nullptr ? nullptr : static_cast<T*>(partial) + (index * job.blocks + block) * count;
  };
  const auto zero = [](T* to, int64_t count) {
    if (to != nullptr) std::memset(to, 0, count * sizeof(T));
  };
  for (int64_t block = first_block; block < end_block; ++block) {
    if (softmax) {
      own_scores(job, block, own + (block - first_block) * lanes);
      for (int64_t i = 0; i < lanes; ++i) at(job.top, block, lanes)[i] = kLowest<T>;
      if (job.above != nullptr)
        std::memset(job.above + (index * job.blocks + block) * lanes, 0, lanes * sizeof(int64_t));
    }
    zero(at(job.total, block, lanes), lanes);
    zero(at(job.mined_total, block, lanes), lanes);
    zero(at(job.sum, block, size), size);
    zero(at(job.mined_sum, block, size), size);
  }
  for (int64_t n = first; n < end; n += kTileRows) {
    const int64_t rows = n + kTileRows < end ? kTileRows : end - n;
    reader.load(n, rows);
    for (int64_t block = first_block; block < end_block; ++block) {
      const int columns = columns_of<T>(job.b, block);
      reader.score(job.query, block, columns, weights, layout);
      if (sigmoid) {
        sigmoid_tile(weights, rows, columns, static_cast<T>(1 / job.mined_temperature),
                     at(job.mined_total, block, lanes), mined_weights);
        if (job.mined_sum != nullptr) reader.sum(mined_weights, layout, columns, at(job.mined_sum, block, size));
      }
      if (softmax) {
        softmax_tile(weights, rows, columns, static_cast<T>(kLog2E / job.temperature),
                     own + (block - first_block) * lanes, at(job.top, block, lanes), at(job.total, block, lanes),
                     job.above == nullptr ? nullptr : job.above + (index * job.blocks + block) * lanes,
                     at(job.sum, block, size), d);
        if (job.sum != nullptr) reader.sum(weights, layout, columns, at(job.sum, block, size));
      }
    }
  }
}

// result[row] = (sum over segments of factor * its sum, + weight * `own`) / temperature, for one lane.
template <class T>
void finish_softmax(const BankLosses& job, int64_t block, int64_t lane, T own, T* factor) {
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  const int64_t d = job.bank.d, row = block * lanes + lane;
  const auto index = [&](int64_t s) { return (s * job.blocks + block) * lanes + lane; };
  const T *top = static_cast<const T*>(job.top), *total = static_cast<const T*>(job.total);
  const double first = static_cast<double>(own) * (kLog2E / job.temperature);
  double largest = first, sum = 0;
  for (int64_t s = 0; s < job.segments; ++s)
    largest = top[index(s)] > largest ? static_cast<double>(top[index(s)]) : largest;
  for (int64_t s = 0; s < job.segments; ++s) sum += total[index(s)] * __builtin_exp2(top[index(s)] - largest);
  // an infinite score of the positive leaves no loss that could be told
  const double loss = first - first != 0 ? __builtin_nan("")
                      : first < largest
                          ? __builtin_log(sum + __builtin_exp2(first - largest)) + (largest - first) * kLn2
                          : __builtin_log1p(sum);
  static_cast<T*>(job.loss)[row] = static_cast<T>(loss);
  if (job.rank != nullptr) {
    job.rank[row] = 0;
    for (int64_t s = 0; s < job.segments; ++s) job.rank[row] += job.above[index(s)];
  }
  if (job.grad == nullptr) return;
  const double all = (sum + __builtin_exp2(first - largest)) * job.temperature;
  for (int64_t s = 0; s < job.segments; ++s) factor[s] = static_cast<T>(__builtin_exp2(top[index(s)] - largest) / all);
  const T pull = static_cast<T>(__builtin_expm1(-loss) / job.temperature);
  const T* positive = static_cast<const T*>(job.positive) + block * d * lanes + lane;
  T* to = static_cast<T*>(job.grad) + row * d;
  for (int64_t j = 0; j < d; ++j) to[j] = pull * positive[j * lanes];
  for (int64_t s = 0; s < job.segments; ++s) {
    const T* from = static_cast<const T*>(job.sum) + (s * job.blocks + block) * d * lanes + lane;
    for (int64_t j = 0; j < d; ++j) to[j] += factor[s] * from[j * lanes];
  }
}

template <class T, class S>
void finish_sigmoid(const BankLosses& job, int64_t block, int64_t lane) {
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  const int64_t d = job.bank.d, row = block * lanes + lane;
  const T* query = static_cast<const T*>(job.query.rows) + block * d * lanes + lane;
  T* to = job.mined_grad == nullptr ? nullptr : static_cast<T*>(job.mined_grad) + row * d;
  double loss = 0;
  if (to != nullptr) std::memset(to, 0, d * sizeof(T));
  for (int64_t s = 0; s < job.segments; ++s) {
    loss += static_cast<const T*>(job.mined_total)[(s * job.blocks + block) * lanes + lane];
    if (to == nullptr) continue;
    const T* from = static_cast<const T*>(job.mined_sum) + (s * job.blocks + block) * d * lanes + lane;
    for (int64_t j = 0; j < d; ++j) to[j] += from[j * lanes];
  }
  for (int64_t i = job.offset[row]; i < job.offset[row + 1]; ++i) {
    const S* bank = static_cast<const S*>(job.bank.data) + job.mined[i] * job.bank.row_stride;
    double score = 0;
    for (int64_t j = 0; j < d; ++j) {
      const T x = element<T>(bank[j * job.bank.column_stride]);
      score += static_cast<double>(x) * query[j * lanes];
      if (to != nullptr) to[j] -= x;
    }
    loss -= score / job.mined_temperature;
  }
  static_cast<T*>(job.mined_loss)[row] = static_cast<T>(loss / job.bank.n);
  if (to != nullptr)
    for (int64_t j = 0; j < d; ++j) to[j] *= static_cast<T>(1 / (job.mined_temperature * job.bank.n));
}

template <class T>
void finish(const BankLosses& job, int64_t block) {
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  T own[lanes], factor[kMaxSegments];
  if (job.softmax) own_scores(job, block, own);
  for (int64_t lane = 0; lane < lanes && block * lanes + lane < job.b; ++lane) {
    if (job.softmax) finish_softmax(job, block, lane, own[lane], factor);
    if (!job.sigmoid) continue;
    switch (job.bank.dtype) {
      case SLR_F32:
        finish_sigmoid<T, float>(job, block, lane);
        break;
      case SLR_F64:
        finish_sigmoid<T, double>(job, block, lane);
        break;
      case SLR_BF16:
        finish_sigmoid<T, Bf16>(job, block, lane);
        break;
      case SLR_F16:
        finish_sigmoid<T, F16>(job, block, lane);
        break;
    }
  }
}

template <class T>
int64_t scratch_of(const BankLosses& job) {
  const int64_t lanes = kBlockBytes / sizeof(T);
  return Reader<T>::scratch(job.bank.d) + (2 * kTileRows + kGroupBlocks) * lanes * sizeof(T);
}

}  // namespace

int64_t bank_losses_scratch(const BankLosses& job) {
  return job.dtype == SLR_F64 ? scratch_of<double>(job) : scratch_of<float>(job);
}

void bank_losses(const BankLosses& job, int64_t begin, int64_t end, void* scratch) {
  for (int64_t i = begin; i < end; ++i)
    job.dtype == SLR_F64 ? segment<double>(job, i, static_cast<char*>(scratch))
                         : segment<float>(job, i, static_cast<char*>(scratch));
}

void bank_losses_finish(const BankLosses& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) job.dtype == SLR_F64 ? finish<double>(job, i) : finish<float>(job, i);
}

}  // namespace SLR_ISA
}  // namespace slr
