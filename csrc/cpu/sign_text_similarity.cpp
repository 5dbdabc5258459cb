#include "common/sign_text_similarity.h"

#include "cpu/panels.h"

namespace slr {
namespace SLR_ISA {
namespace {

constexpr double kLog2E = 1.44269504088896340736;
constexpr int64_t kStretch = 128;  // products that are summed at a time; a multiple of every W

#define SLR_SWITCH_PAIRS(dtype, function, ...)        \
  switch (dtype) {                                    \
    case SLR_F64:                                     \
      function<Plain<double>, double>(__VA_ARGS__);   \
      break;                                          \
    case SLR_BF16:                                    \
      function<SLR_BF16_PRODUCTS, Bf16>(__VA_ARGS__); \
      break;                                          \
    default:                                          \
      function<Plain<float>, float>(__VA_ARGS__);     \
  }

template <class T>
T* at(void* buffer, int64_t offset) {
  return static_cast<T*>(buffer) + offset;
}
template <class T>
const T* at(const void* buffer, int64_t offset) {
  return static_cast<const T*>(buffer) + offset;
}

// sums += rows of a tile [panels][rows][W] times a packed matrix [k][W], like multiply() of panels.h, but summed over
// the panels as well: k is long here.
template <class K>
inline __attribute__((always_inline)) void multiply_long(const typename K::Element* tile, int64_t rows, int64_t first,
                                                         int64_t k, const typename K::Element* right,
                                                         Sums<typename K::Compute>& sums) {
  using T = typename K::Compute;
  constexpr int64_t W = kPanel<T>;
  tile += first * W;
  for (int64_t begin = 0; begin < k; begin += kStretch) {
    const int64_t end = least(begin + kStretch, k);
    if constexpr (K::pairs) {
#if defined(__AVX512BF16__)
      __m512 sum[kSome][2];
#pragma GCC unroll 8
      for (int i = 0; i < kSome; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
      const uint32_t* words = reinterpret_cast<const uint32_t*>(right);
      for (int64_t at = begin; at < end; at += W, tile += rows * W) {
        const uint32_t* left = reinterpret_cast<const uint32_t*>(tile);
        for (int64_t j = (least(W, end - at) + 1) / 2; j > 0; --j, ++left, words += W) {
          const __m512bh one = bit_cast<__m512bh>(_mm512_loadu_si512(words));
          const __m512bh two = bit_cast<__m512bh>(_mm512_loadu_si512(words + 16));
#pragma GCC unroll 8
          for (int i = 0; i < kSome; ++i) {
            const __m512bh x = bit_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(left[i * W / 2])));
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], one, x);
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], two, x);
          }
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kSome; ++i)
        sums.at[i][0] += bit_cast<Value<float>>(sum[i][0]), sums.at[i][1] += bit_cast<Value<float>>(sum[i][1]);
#endif
    } else {
      Value<T> sum[kSome][2];
#pragma GCC unroll 8
      for (int i = 0; i < kSome; ++i) sum[i][0] = sum[i][1] = Value<T>{};
      const T* values = right;
      for (int64_t at = begin; at < end; at += W, tile += rows * W) {
        const T* left = tile;
        for (int64_t j = least(W, end - at); j > 0; --j, ++left, values += W) {
          const Value<T> one = read(values), two = read(values + W / 2);
#pragma GCC unroll 8
          for (int i = 0; i < kSome; ++i) {
            const Value<T> x = fill(left[i * W]);
            sum[i][0] = fused(x, one, sum[i][0]);
            sum[i][1] = fused(x, two, sum[i][1]);
          }
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kSome; ++i) sums.at[i][0] += sum[i][0], sums.at[i][1] += sum[i][1];
    }
    right += kStretch * W;
  }
}

// The channels [c, c + W) of a row, or of none, as elements: zero beyond row and channels.
template <class K, class S>
void copy_channels(const S* row, int64_t d, int64_t c, typename K::Element* to) {
  constexpr int64_t W = kPanel<typename K::Compute>, width = Simd<typename K::Compute>::width;
  for (const int64_t end = c + W; c < end; c += width, to += width)
    store(to, row != nullptr && c < d ? load_some(row + c, d - c) : Value<typename K::Compute>{});
}

template <class K, class S>
void pack_signs_of(const SignText& job, int64_t begin, int64_t end) {
  using E = typename K::Element;
  constexpr int64_t W = kPanel<typename K::Compute>;
  const int64_t d = job.d, even = rounded_up(d, 2);
  for (int64_t p = begin; p < end; ++p) {
    const S* rows[W];
    for (int64_t i = 0; i < W; ++i)
      rows[i] = p * W + i < job.rows ? at<S>(job.sign, job.sign_rows[p * W + i] * d) : nullptr;
    if (job.sign_columns != nullptr) {
      E* const to = at<E>(job.sign_columns, p * even * W);
      if (even > d || rows[W - 1] == nullptr) std::memset(static_cast<void*>(to), 0, even * W * sizeof(E));
      const int64_t some = least(W, job.rows - p * W);
      for (int64_t k = 0; k < d; ++k)
        for (int64_t i = 0; i < some; ++i) {
          if constexpr (K::pairs)
            to[(k / 2 * W + i) * 2 + k % 2] = rows[i][k];
          else
            to[k * W + i] = to_compute(rows[i][k]);
        }
    }
    if (job.sign_panels == nullptr) continue;
    E* const panels = at<E>(job.sign_panels, p * W * W);  // those of d are lanes * W apart
    for (int64_t j = 0; j < panels_of<typename K::Compute>(d); ++j) {
      E some[W * W];
      E* const to = panels + j * job.lanes * W;
      for (int64_t i = 0; i < W; ++i) copy_channels<K>(rows[i], d, j * W, (K::pairs ? some : to) + i * W);
      if constexpr (K::pairs) weave<K>(some, W, to);
    }
  }
}

template <class K, class S>
void pack_texts_of(const SignText& job, int64_t begin, int64_t end) {
  using E = typename K::Element;
  constexpr int64_t W = kPanel<typename K::Compute>;
  const int64_t panels = panels_of<typename K::Compute>(job.d);
  for (int64_t n = begin * kRowStep; n < end * kRowStep; ++n) {
    const S* const from = n < job.words ? at<S>(job.text, job.text_rows[n] * job.d) : nullptr;
    for (int64_t j = 0; j < panels; ++j)
      copy_channels<K>(from, job.d, j * W, at<E>(job.text_panels, (j * job.tile + n) * W));
  }
  if (!K::pairs || job.text_woven == nullptr) return;
  for (int64_t j = 0; j < panels; ++j) {
    const int64_t first = (j * job.tile + begin * kRowStep) * W;
    weave<K>(at<E>(job.text_panels, first), (end - begin) * kRowStep, at<E>(job.text_woven, first));
  }
}

// What the gradient of one text's scores is multiplied with, for the lanes of a panel.
template <class T>
void factors(const SignText& job, int64_t panel, int64_t text, bool share, T* to) {
  constexpr int64_t W = kPanel<T>;
  for (int64_t i = 0; i < W; ++i) {
    const int64_t row = panel * W + i, clip = row < job.rows ? job.clips[row] : 0;
    T factor = share ? at<T>(job.shares, 0)[clip] : T{1};
    if (job.grad != nullptr) factor *= at<T>(job.grad, 0)[clip * job.grad_stride + job.columns[text]];
    to[i] = row < job.rows ? factor : T{0};
  }
}

// The softmax of one text's scores [words][W], lane by lane; they become their gradients if `slopes`.
template <class T>
void soften(const SignText& job, int64_t panel, int64_t text, bool slopes, T* scores, T* powers) {
  constexpr int width = Simd<T>::width;
  constexpr int64_t W = kPanel<T>;
  const int64_t words = job.bounds[text + 1] - job.bounds[text];
  const Value<T> scale = fill(static_cast<T>(kLog2E / job.row_temperature));
  T factor[W];
  if (slopes) factors(job, panel, text, true, factor);
  Value<T> top[2], sum[2] = {}, product[2] = {}, mean[2];
  for (int v = 0; v < 2; ++v) top[v] = read(scores + v * width);
  for (int64_t n = 1; n < words; ++n)
    for (int v = 0; v < 2; ++v) top[v] = larger(top[v], read(scores + n * W + v * width));
  for (int64_t n = 0; n < words; ++n)
    for (int v = 0; v < 2; ++v) {
      const Value<T> score = read(scores + n * W + v * width), power = exp2((score - top[v]) * scale);
      sum[v] += power;
      product[v] = fused(power, score, product[v]);
      write(powers + n * W + v * width, power);
    }
  for (int v = 0; v < 2; ++v) {
    mean[v] = product[v] / sum[v];
    if (job.means != nullptr) write(at<T>(job.means, text * job.lanes + panel * W + v * width), mean[v]);
  }
  if (!slopes) return;
  const Value<T> inverse = fill(static_cast<T>(1 / job.row_temperature));
  for (int v = 0; v < 2; ++v) sum[v] = read(factor + v * width) / sum[v];
  for (int64_t n = 0; n < words; ++n)
    for (int v = 0; v < 2; ++v) {
      T* const score = scores + n * W + v * width;
      const Value<T> slope = fused(read(score) - mean[v], inverse, fill(T{1}));
      write(score, read(powers + n * W + v * width) * sum[v] * slope);
    }
}

// Sums of up to kSome rows into rows of [any][d], from channel c on.
template <class T>
inline void put(const Sums<T>& sums, const int64_t* rows, int64_t count, int64_t d, int64_t c, bool add, T* to) {
  constexpr int width = Simd<T>::width;
  if (count >= kSome && c + 2 * width <= d) {
#pragma GCC unroll 8
    for (int i = 0; i < kSome; ++i) {
      T* const row = to + rows[i] * d + c;
      write(row, add ? read(row) + sums.at[i][0] : sums.at[i][0]);
      write(row + width, add ? read(row + width) + sums.at[i][1] : sums.at[i][1]);
    }
    return;
  }
  T some[kSome * 2 * width];
  set_to(some, sums);
  for (int64_t i = 0; i < least(count, kSome); ++i)
    for (int64_t j = 0; j < least(2 * width, d - c); ++j) {
      T* const entry = to + rows[i] * d + c + j;
      *entry = (add ? *entry : T{0}) + some[i * 2 * width + j];
    }
}

// Of the rows of a panel: sums over the words of the group.
template <class K>
void add_sign_grad(const SignText& job, int64_t panel) {
  using T = typename K::Compute;
  using E = typename K::Element;
  constexpr int64_t W = kPanel<T>;
  const E* const left = at<E>(K::pairs ? job.woven : job.left, panel * job.tile * W);
  const E* const text = at<E>(K::pairs ? job.text_woven : job.text_panels, 0);
  for (int64_t j = 0; j < panels_of<T>(job.d); ++j)
    for (int64_t i = 0; i < W && panel * W + i < job.rows; i += kSome) {
      Sums<T> sums;
      clear(sums);
      for (int64_t n = 0; n < job.tile; n += kStretch)
        multiply_columns<K>(left + n * W, i, least(kStretch, job.tile - n), text + (j * job.tile + n) * W, sums);
      const int64_t row = panel * W + i;
      put(sums, job.sign_rows + row, job.rows - row, job.d, j * W, job.add_sign, at<T>(job.grad_sign, 0));
    }
}

template <class K, class S>
void compare_of(const SignText& job, int64_t begin, int64_t end, void* scratch) {
  using T = typename K::Compute;
  using E = typename K::Element;
  constexpr int64_t W = kPanel<T>;
  const int64_t size = job.tile * W, even = rounded_up(job.d, 2);
  T *const own = static_cast<T*>(scratch), *const powers = own + size;
  const bool backward = job.grad != nullptr;
  for (int64_t p = begin; p < end; ++p) {
    T* const kept = job.slopes == nullptr ? nullptr : at<T>(job.slopes, p * size);
    T* scores = backward ? own : kept != nullptr ? kept : own;
    if constexpr (!K::pairs)
      if (backward) scores = at<T>(job.left, p * size);
    if (backward && kept != nullptr) {
      for (int64_t t = 0; t < job.texts; ++t) {
        T factor[W];
        factors(job, p, t, false, factor);
        for (int64_t n = job.bounds[t]; n < job.bounds[t + 1]; ++n)
          for (int64_t c = 0; c < W; c += Simd<T>::width)
            write(scores + n * W + c, read(kept + n * W + c) * read(factor + c));
      }
    } else {
      const E* const signs = at<E>(job.sign_columns, p * even * W);
      for (int64_t n = 0; n < job.tile; n += kSome) {
        Sums<T> sums;
        clear(sums);
        multiply_long<K>(at<E>(job.text_panels, 0), job.tile, n, job.d, signs, sums);
        set_to(scores + n * W, sums);
      }
      for (int64_t t = 0; t < job.texts; ++t)
        soften(job, p, t, backward || kept != nullptr, scores + job.bounds[t] * W, powers);
    }
    std::memset(scores + job.words * W, 0, (job.tile - job.words) * W * sizeof(T));
    if (!backward) continue;
    if constexpr (K::pairs) {
      as_rows<K>(scores, size, at<E>(job.left, p * size));
      weave<K>(at<E>(job.left, p * size), job.tile, at<E>(job.woven, p * size));
    }
    if (job.grad_sign != nullptr) add_sign_grad<K>(job, p);
  }
}

// Of the words of a chunk: sums over the rows of the block.
template <class K, class S>
void add_text_grad_of(const SignText& job, int64_t begin, int64_t end) {
  using T = typename K::Compute;
  using E = typename K::Element;
  constexpr int64_t W = kPanel<T>;
  const int64_t panels = panels_of<T>(job.d);
  for (int64_t first = 0; first < job.lanes; first += kStretch)
    for (int64_t item = begin; item < end; ++item) {
      const int64_t j = item % panels, chunk = item / panels * kWordChunk;
      const E* const left = at<E>(job.left, first * job.tile);
      const E* const signs = at<E>(job.sign_panels, (j * job.lanes + first) * W);
      for (int64_t n = chunk; n < least(chunk + kWordChunk, job.words); n += kSome) {
        Sums<T> sums;
        clear(sums);
        multiply_long<K>(left, job.tile, n, least(kStretch, job.lanes - first), signs, sums);
        put(sums, job.text_rows + n, job.words - n, job.d, j * W, job.add_text || first > 0, at<T>(job.grad_text, 0));
      }
    }
}

}  // namespace

void pack_signs(const SignText& job, int64_t begin, int64_t end) {
  SLR_SWITCH_PAIRS(job.dtype, pack_signs_of, job, begin, end)
}

void pack_texts(const SignText& job, int64_t begin, int64_t end) {
  SLR_SWITCH_PAIRS(job.dtype, pack_texts_of, job, begin, end)
}

void compare(const SignText& job, int64_t begin, int64_t end, void* scratch) {
  SLR_SWITCH_PAIRS(job.dtype, compare_of, job, begin, end, scratch)
}

void add_text_grad(const SignText& job, int64_t begin, int64_t end) {
  SLR_SWITCH_PAIRS(job.dtype, add_text_grad_of, job, begin, end)
}

}  // namespace SLR_ISA
}  // namespace slr
