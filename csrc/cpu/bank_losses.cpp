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

// One tile's share of InfoNCE; turns its scores into 2^((score - top) * scale).
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
      first = larger(first, read(column + n * lanes));
      second = larger(second, read(column + (n + 1) * lanes));
    }
    if (n < rows) first = larger(first, read(column + n * lanes));
    const Value<T> now = larger(first, second);
    Value<T> all = read(total + v * width);
    if (any(now > before)) {
      const Value<T> factor = exp2((before - now) * scale);
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
      const Value<T> score = read(column + n * lanes), p = exp2((score - now) * scale);
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
void sigmoid_tile(const T* tile, int64_t rows, int columns, double temperature, T* total, T* weights) {
  constexpr int width = Simd<T>::width;
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  const T scale = static_cast<T>(1 / temperature), exponent = static_cast<T>(kLog2E / temperature);
  const Value<T> zero = {};
  for (int v = 0; v < columns; ++v) {
    Value<T> some = {};
    for (int64_t n = 0; n < rows; ++n) {
      const Value<T> score = read(tile + n * lanes + v * width), z = score * scale;
      const Value<T> e = exp2((z > 0 ? -score : score) * exponent), part = static_cast<T>(1) / (e + 1);
      some += (z > 0 ? z : zero) + (z != z ? z : log1p(e));
      write(weights + n * lanes + v * width, z > 0 ? part : e * part);
    }
    write(total + v * width, read(total + v * width) + some);
  }
}

// Turns around the sign of the positives' entries in a tile that begins at bank row `first`. `next`, per lane, is the
// first positive from there on; it is moved past the tile in the last of the calls for it.
template <class T>
void turn_positives(const BankLosses& job, int64_t block, int64_t first, int64_t rows, T* tile, int64_t* next,
                    bool last) {
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  for (int64_t lane = 0; lane < lanes && block * lanes + lane < job.mined_rows; ++lane) {
    int64_t i = next[lane];
    for (; i < job.offset[block * lanes + lane + 1] && job.mined[i] < first + rows; ++i) {
      T* const at = tile + (job.mined[i] - first) * lanes + lane;
      *at = -*at;
    }
    if (last) next[lane] = i;
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
  T* own = mined_weights + kTileRows * lanes;                              // [kGroupBlocks][lanes]
  int64_t* next = reinterpret_cast<int64_t*>(own + kGroupBlocks * lanes);  // the same: positives that are still to come
  const int64_t groups = (job.blocks + kGroupBlocks - 1) / kGroupBlocks, index = item / groups;
  const int64_t first_block = item % groups * kGroupBlocks;
  const int64_t end_block = first_block + kGroupBlocks < job.blocks ? first_block + kGroupBlocks : job.blocks;
  const int64_t first = index * job.segment_rows;
  const int64_t end = first + job.segment_rows < job.bank.n ? first + job.segment_rows : job.bank.n;
  const bool softmax = job.softmax;
  const auto mines = [&](int64_t block) { return job.sigmoid && block * lanes < job.mined_rows; };
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
    for (int64_t i = 0; mines(block) && i < lanes && block * lanes + i < job.mined_rows; ++i) {
      int64_t &at = next[(block - first_block) * lanes + i], row = block * lanes + i;
      for (at = job.offset[row]; at < job.offset[row + 1] && job.mined[at] < first;) ++at;
    }
    zero(at(job.total, block, lanes), lanes);
    zero(at(job.sum, block, size), size);
    if (!mines(block)) continue;
    zero(at(job.mined_total, block, lanes), lanes);
    zero(at(job.mined_sum, block, size), size);
  }
  for (int64_t n = first; n < end; n += kTileRows) {
    const int64_t rows = n + kTileRows < end ? kTileRows : end - n;
    reader.load(n, rows);
    for (int64_t block = first_block; block < end_block; ++block) {
      const int columns = columns_of<T>(job.b, block);
      reader.score(job.query, block, columns, weights, layout);
      if (mines(block)) {
        const int mined = columns_of<T>(job.mined_rows, block);
        // softplus(z) - z of a positive is softplus(-z), and its weight sigmoid(z) - 1 is -sigmoid(-z)
        int64_t* const positives = next + (block - first_block) * lanes;
        turn_positives(job, block, n, rows, weights, positives, false);
        sigmoid_tile(weights, rows, mined, job.mined_temperature, at(job.mined_total, block, lanes), mined_weights);
        turn_positives(job, block, n, rows, weights, positives, false);
        turn_positives(job, block, n, rows, mined_weights, positives, true);
        if (job.mined_sum != nullptr) reader.sum(mined_weights, layout, mined, at(job.mined_sum, block, size));
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

// to[row] = weight * own + sum over segments of factor * partial, for those of `count` rows that are in a block; `own`
// may be null.
template <class T>
void combine(const BankLosses& job, int64_t block, const void* partials, const T* factor, const T* own, const T* weight,
             void* result, int64_t count) {
  constexpr int width = Simd<T>::width;
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  const int64_t d = job.bank.d, size = d * lanes, rest = count - block * lanes, rows = rest < lanes ? rest : lanes;
  T* const to = static_cast<T*>(result) + block * lanes * d;
  for (int64_t j = 0; j < d; ++j) {
    T row[lanes];
    for (int64_t v = 0; v < lanes; v += width) {
      Value<T> sum = {};
      for (int64_t s = 0; s < job.segments; ++s) {
        const T* const from = static_cast<const T*>(partials) + (s * job.blocks + block) * size + j * lanes + v;
        sum = fused(read(factor + s * lanes + v), read(from), sum);
      }
      if (own != nullptr) sum = fused(read(weight + v), read(own + j * lanes + v), sum);
      write(row + v, sum);
    }
    for (int64_t i = 0; i < rows; ++i) to[i * d + j] = row[i];
  }
}

// Loss and rank of one lane, and what its gradient consists of.
template <class T>
void finish_softmax(const BankLosses& job, int64_t block, int64_t lane, T own, T* factor, T* weight) {
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  const int64_t row = block * lanes + lane;
  const double scale = kLog2E / job.temperature;
  const auto at = [&](const void* partial, int64_t s) -> double {
    return static_cast<const T*>(partial)[(s * job.blocks + block) * lanes + lane];
  };
  double largest = own, sum = 0;
  for (int64_t s = 0; s < job.segments; ++s) largest = at(job.top, s) > largest ? at(job.top, s) : largest;
  const auto share = [&](double score) { return __builtin_exp2((score - largest) * scale); };
  for (int64_t s = 0; s < job.segments; ++s) sum += at(job.total, s) * share(at(job.top, s));
  const double distance = (largest - own) / job.temperature;
  // an infinite score of the positive leaves no loss that could be told
  const double loss = own - own != 0 ? __builtin_nan("")
                      : distance > 0 ? __builtin_log(sum + share(own)) + distance
                                     : __builtin_log1p(sum);
  static_cast<T*>(job.loss)[row] = static_cast<T>(loss);
  if (job.rank != nullptr) {
    job.rank[row] = 0;
    for (int64_t s = 0; s < job.segments; ++s) job.rank[row] += job.above[(s * job.blocks + block) * lanes + lane];
  }
  const double all = (sum + share(own)) * job.temperature;
  for (int64_t s = 0; s < job.segments; ++s) factor[s * lanes + lane] = static_cast<T>(share(at(job.top, s)) / all);
  weight[lane] = static_cast<T>(__builtin_expm1(-loss) / job.temperature);
}

template <class T>
void finish(const BankLosses& job, int64_t block) {
  constexpr int64_t lanes = kBlockBytes / sizeof(T);
  T own[lanes], weight[lanes], factor[kMaxSegments * lanes];
  if (job.softmax) {
    own_scores(job, block, own);
    for (int64_t i = 0; i < lanes; ++i) {
      if (block * lanes + i < job.b) finish_softmax(job, block, i, own[i], factor, weight);
    }
    const T* const positive = static_cast<const T*>(job.positive) + block * job.bank.d * lanes;
    if (job.grad != nullptr) combine(job, block, job.sum, factor, positive, weight, job.grad, job.b);
  }
  if (!job.sigmoid || block * lanes >= job.mined_rows) return;
  for (int64_t i = 0; i < lanes && block * lanes + i < job.mined_rows; ++i) {
    double sum = 0;
    for (int64_t s = 0; s < job.segments; ++s)
      sum += static_cast<const T*>(job.mined_total)[(s * job.blocks + block) * lanes + i];
    static_cast<T*>(job.mined_loss)[block * lanes + i] = static_cast<T>(sum / job.bank.n);
  }
  for (T& one : factor) one = static_cast<T>(1 / (job.mined_temperature * job.bank.n));
  if (job.mined_grad != nullptr)
    combine(job, block, job.mined_sum, factor, static_cast<const T*>(nullptr), weight, job.mined_grad, job.mined_rows);
}

template <class T>
int64_t scratch_of(const BankLosses& job) {
  const int64_t lanes = kBlockBytes / sizeof(T);
  return Reader<T>::scratch(job.bank.d) + (2 * kTileRows + kGroupBlocks) * lanes * sizeof(T) +
         kGroupBlocks * lanes * sizeof(int64_t);
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
