#include "common/topk_similarity.h"

#include "cpu/bank_tiles.h"
#include "cpu/selection.h"

namespace slr {
namespace SLR_ISA {
namespace {

template <class T>
constexpr int64_t kLanes = kBlockBytes / sizeof(T);

// The best so far of one row, best first; a NaN ranks with inf, and of equals the earlier stays in front.
template <class T>
struct Best {
  T* values;
  int64_t* rows;
  int64_t k, count;

  static T rank(T x) { return x != x ? static_cast<T>(__builtin_inf()) : x; }

  void offer(T value, int64_t row) {
    const T own = rank(value);
    if (count == k && !(own > rank(values[k - 1]))) return;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && own > rank(values[at - 1]); --at) values[at] = values[at - 1], rows[at] = rows[at - 1];
    values[at] = value, rows[at] = row;
  }
};

template <class T>
void few(const TopkSimilarity& job, int64_t segment, char* scratch) {
  constexpr int width = Simd<T>::width;
  constexpr int64_t some = 16;  // rows that are compared before the first look at the outcome
  Reader<T> reader(job.bank, job.query.high != nullptr, scratch);
  T* const tile = reinterpret_cast<T*>(scratch + Reader<T>::scratch(job.bank.d));
  T* const limits = tile + kTileRows * kLanes<T>;  // [blocks][lanes]: the worst that is kept, NaN while there is room
  int64_t* const counts = reinterpret_cast<int64_t*>(limits + job.blocks * kLanes<T>);  // [blocks][lanes]
  for (int64_t i = 0; i < job.blocks * kLanes<T>; ++i) {
    limits[i] = static_cast<T>(i < job.b ? __builtin_nan("") : __builtin_inf());
    counts[i] = 0;
  }
  const int64_t first = segment * job.segment_rows;
  const int64_t end = first + job.segment_rows < job.bank.n ? first + job.segment_rows : job.bank.n;
  for (int64_t n = first; n < end; n += kTileRows) {
    const int64_t rows = n + kTileRows < end ? kTileRows : end - n;
    reader.load(n, rows);
    for (int64_t block = 0; block < job.blocks; ++block) {
      const int columns = columns_of<T>(job.b, block);
      reader.score(job.query, block, columns, tile, Reader<T>::block_layout);
      for (int v = 0; v < columns; ++v) {
        const int64_t lane0 = block * kLanes<T> + v * width;
        for (int64_t i = 0; i < rows; i += some) {
          const int64_t last = i + some < rows ? i + some : rows;
          const Value<T> limit = read(limits + lane0);
          Value<T> largest = limit, sum = {};
          for (int64_t j = i; j < last; ++j) {
            const Value<T> score = read(tile + j * kLanes<T> + v * width);
            largest = larger(largest, score);
            sum += score;  // NaN if one of them is
          }
          const Mask<T> found = ~(largest <= limit) | (sum != sum);
          if (!any(found)) continue;
          for (int lane = 0; lane < width && lane0 + lane < job.b; ++lane) {
            if (!found[lane]) continue;
            const int64_t row = lane0 + lane, at = (segment * job.b + row) * job.k;
            Best<T> best = {static_cast<T*>(job.scores) + at, job.rows + at, job.k, counts[row]};
            for (int64_t j = i; j < last; ++j) {
              const T score = tile[j * kLanes<T> + v * width + lane];
              if (!(score <= limits[row])) best.offer(score, n + j);
            }
            counts[row] = best.count;
            if (best.count == job.k) limits[row] = Best<T>::rank(best.values[job.k - 1]);
          }
        }
      }
    }
  }
  for (int64_t row = 0; row < job.b; ++row)  // a short segment may have fewer rows
    for (int64_t i = counts[row]; i < job.k; ++i) job.rows[(segment * job.b + row) * job.k + i] = -1;
}

template <class T>
void merge(const TopkSimilarity& job, int64_t row) {
  Best<T> best = {static_cast<T*>(job.values) + row * job.k, job.indices + row * job.k, job.k, 0};
  for (int64_t s = 0; s < job.segments; ++s) {
    const int64_t at = (s * job.b + row) * job.k;
    for (int64_t i = 0; i < job.k && job.rows[at + i] >= 0; ++i)
      best.offer(static_cast<const T*>(job.scores)[at + i], job.rows[at + i]);
  }
  for (int64_t i = 1; !job.sorted && i < job.k; ++i) {  // in the order of the bank
    const T value = best.values[i];
    const int64_t found = best.rows[i];
    int64_t j = i;
    for (; j > 0 && best.rows[j - 1] > found; --j) best.values[j] = best.values[j - 1], best.rows[j] = best.rows[j - 1];
    best.values[j] = value, best.rows[j] = found;
  }
}

template <class T>
void scores_of_segment(const TopkSimilarity& job, int64_t segment, void* scratch) {
  const int64_t first = segment * job.segment_rows, size = job.bank.n * Simd<T>::width;
  const int64_t end = first + job.segment_rows < job.bank.n ? first + job.segment_rows : job.bank.n;
  Reader<T> reader(job.bank, job.query.high != nullptr, scratch);
  for (int64_t n = first; n < end; n += kTileRows) {
    reader.load(n, n + kTileRows < end ? kTileRows : end - n);
    for (int64_t block = 0; block < job.blocks; ++block)
      reader.score(job.query, block, columns_of<T>(job.b, block),
                   static_cast<T*>(job.scores) + block * kColumns * size + n * Simd<T>::width, {Simd<T>::width, size});
  }
}

// A chosen score and where it was found.
template <class T>
struct Found {
  T value;
  int32_t row;
};

// Sorts by falling value (NaN with inf); equals keep their order. Eleven bits of the key at a time, lowest first.
template <class T>
Found<T>* sort(Found<T>* from, Found<T>* to, int64_t count) {
  using Key = Unsigned<T>;
  constexpr int digit = 11, digits = (8 * sizeof(T) + digit - 1) / digit, values = 1 << digit;
  const auto key = [](T x) {
    x = Best<T>::rank(x) + static_cast<T>(0);  // -0 becomes 0
    return ~(static_cast<Key>(ordered(x)) ^ static_cast<Key>(1) << (8 * sizeof(T) - 1));
  };
  int32_t starts[digits][values];
  std::memset(starts, 0, sizeof starts);
  for (int64_t i = 0; i < count; ++i)
    for (int j = 0; j < digits; ++j) ++starts[j][key(from[i].value) >> (j * digit) & (values - 1)];
  for (int j = 0; j < digits; ++j) {
    int32_t sum = 0;
    bool same = false;  // all keys have this digit in common
    for (int i = 0; i < values; ++i) {
      const int32_t size = starts[j][i];
      same = same || size == count;
      starts[j][i] = sum;
      sum += size;
    }
    if (same) continue;
    for (int64_t i = 0; i < count; ++i) to[starts[j][key(from[i].value) >> (j * digit) & (values - 1)]++] = from[i];
    Found<T>* const swapped = from;
    from = to, to = swapped;
  }
  return from;
}

template <class T, class S>
T score_of(const TopkSimilarity& job, int64_t row, int64_t n) {
  const T* query = static_cast<const T*>(job.query.rows) + row / kLanes<T> * job.bank.d * kLanes<T> + row % kLanes<T>;
  T sum = 0;
  for (int64_t j = 0; j < job.bank.d; ++j)
    sum += query[j * kLanes<T>] *
           element<T>(static_cast<const S*>(job.bank.data)[n * job.bank.row_stride + j * job.bank.column_stride]);
  return sum;
}

template <class T>
T score_again(const TopkSimilarity& job, int64_t row, int64_t n) {
  switch (job.bank.dtype) {
    case SLR_F32:
      return score_of<T, float>(job, row, n);
    case SLR_F64:
      return score_of<T, double>(job, row, n);
    case SLR_BF16:
      return score_of<T, Bf16>(job, row, n);
    default:
      return score_of<T, F16>(job, row, n);
  }
}

template <class T>
void choose(const TopkSimilarity& job, int64_t item, void* scratch) {
  constexpr int width = Simd<T>::width;
  const int64_t block = item / kColumns, v = item % kColumns, n = job.bank.n, k = job.k;
  if (v >= columns_of<T>(job.b, block)) return;
  T* const scores = static_cast<T*>(job.scores) + item * n * width;
  Found<T>* const found = static_cast<Found<T>*>(scratch);  // [width + 1][k + 1]: one too many for writes in advance
  Border<T> borders[width];
  find_borders(scores, n, k, borders);
  T border[width];
  int64_t tie_end[width], count[width] = {};
  bool nan = false;
  for (int i = 0; i < width; ++i) {
    border[i] = borders[i].border, tie_end[i] = borders[i].tie_end;
    nan = nan || borders[i].has_nan;
  }
  if (nan)  // NaN counts as inf; which one it was is looked up again at the end
    for (int64_t i = 0; i < n * width; ++i) scores[i] = Best<T>::rank(scores[i]);
  for (int64_t i = 0; i < n; ++i)
    for (int lane = 0; lane < width; ++lane) {
      const T score = scores[i * width + lane];
      found[lane * (k + 1) + count[lane]] = {score, static_cast<int32_t>(i)};
      count[lane] += (score > border[lane]) | ((score == border[lane]) & (i < tie_end[lane]));
    }
  for (int lane = 0; lane < width; ++lane) {
    const int64_t row = block * kLanes<T> + v * width + lane;
    if (row >= job.b) return;
    const Found<T>* best = found + lane * (k + 1);
    if (job.sorted) best = sort(found + lane * (k + 1), found + width * (k + 1), k);
    T* const values = static_cast<T*>(job.values) + row * k;
    for (int64_t i = 0; i < k; ++i) {
      values[i] = best[i].value;
      job.indices[row * k + i] = best[i].row;
      if (borders[lane].has_nan && values[i] > 0 && values[i] - values[i] != 0)
        values[i] = score_again<T>(job, row, best[i].row);
    }
  }
}

template <class T, class S>
void gather(const TopkSimilarityGrad& job, int64_t row) {
  const int64_t d = job.bank.d;
  T* const to = static_cast<T*>(job.result) + row * d;
  std::memset(to, 0, d * sizeof(T));
  for (int64_t i = row * job.k; i < (row + 1) * job.k; ++i) {
    const S* const from = static_cast<const S*>(job.bank.data) + job.indices[i] * job.bank.row_stride;
    const T weight = static_cast<const T*>(job.grad)[i];
    if (job.bank.column_stride == 1)
      for (int64_t j = 0; j < d; ++j) to[j] += weight * element<T>(from[j]);
    else
      for (int64_t j = 0; j < d; ++j) to[j] += weight * element<T>(from[j * job.bank.column_stride]);
  }
}

template <class S>
void gather_rows(const TopkSimilarityGrad& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) job.dtype == SLR_F64 ? gather<double, S>(job, i) : gather<float, S>(job, i);
}

template <class T>
int64_t scratch_of(const TopkSimilarity& job) {
  const int64_t lanes = job.blocks * kLanes<T>, chosen = (Simd<T>::width + 1) * (job.k + 1) * sizeof(Found<T>);
  const int64_t bank = Reader<T>::scratch(job.bank.d) + kTileRows * kBlockBytes + lanes * (sizeof(T) + sizeof(int64_t));
  return !keeps_best(job.k, job.bank.n) && chosen > bank ? chosen : bank;
}

}  // namespace

int64_t topk_similarity_columns() { return kColumns; }

int64_t topk_similarity_scratch(const TopkSimilarity& job) {
  return job.dtype == SLR_F64 ? scratch_of<double>(job) : scratch_of<float>(job);
}

void topk_similarity_few(const TopkSimilarity& job, int64_t begin, int64_t end, void* scratch) {
  for (int64_t i = begin; i < end; ++i)
    job.dtype == SLR_F64 ? few<double>(job, i, static_cast<char*>(scratch))
                         : few<float>(job, i, static_cast<char*>(scratch));
}

void topk_similarity_merge(const TopkSimilarity& job, int64_t begin, int64_t end, void*) {
  for (int64_t i = begin; i < end; ++i) job.dtype == SLR_F64 ? merge<double>(job, i) : merge<float>(job, i);
}

void topk_similarity_scores(const TopkSimilarity& job, int64_t begin, int64_t end, void* scratch) {
  for (int64_t i = begin; i < end; ++i)
    job.dtype == SLR_F64 ? scores_of_segment<double>(job, i, scratch) : scores_of_segment<float>(job, i, scratch);
}

void topk_similarity_choose(const TopkSimilarity& job, int64_t begin, int64_t end, void* scratch) {
  for (int64_t i = begin; i < end; ++i)
    job.dtype == SLR_F64 ? choose<double>(job, i, scratch) : choose<float>(job, i, scratch);
}

void topk_similarity_grad(const TopkSimilarityGrad& job, int64_t begin, int64_t end) {
  SLR_SWITCH_DTYPE(job.bank.dtype, gather_rows, job, begin, end)
}

}  // namespace SLR_ISA
}  // namespace slr
