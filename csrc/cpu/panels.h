// Products of tiles that lie in panels (see common/gcn.h), and the way of rows into panels and out of them. For files
// in cpu/ only (see isa.h).
//
// A kernel type K says how the products are formed. Plain<T>: operands and sums are T. Pairs: operands are bfloat16,
// two neighbours in the summed dimension at a time, sums are float.
#pragma once

#include "common/gcn.h"
#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {

#if defined(__AVX512F__)
constexpr int kSome = 8;  // rows whose products are formed at a time
#else
constexpr int kSome = 4;
#endif

template <class T>
struct Plain {
  using Compute = T;
  using Element = T;
  static constexpr bool pairs = false;
};

struct Pairs {
  using Compute = float;
  using Element = Bf16;
  static constexpr bool pairs = true;
};

template <class T>
constexpr int kPanel = 2 * Simd<T>::width;  // W

static_assert(kPanel<float> == panel_of(Isa::SLR_ISA, SLR_F32) && kPanel<double> == panel_of(Isa::SLR_ISA, SLR_F64),
              "weights are packed in panels of what the kernels read");
static_assert(kWidest % kPanel<float> == 0 && kWidest % kPanel<double> == 0 && kWidest % kSome == 0,
              "rooms of wide(channels) hold whole panels");
static_assert(kRowStep % kSome == 0, "tiles hold whole steps of rows");

template <class T>
inline int64_t panels_of(int64_t channels) {
  return (channels + kPanel<T> - 1) / kPanel<T>;
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls function<K, S>(...) with the products K and the storage type S for a dtype.
#if defined(__AVX512BF16__)
#define SLR_BF16_PRODUCTS Pairs
#else
#define SLR_BF16_PRODUCTS Plain<float>
#endif
#define SLR_SWITCH_PRODUCTS(dtype, function, ...)     \
  switch (dtype) {                                    \
    case SLR_F32:                                     \
      function<Plain<float>, float>(__VA_ARGS__);     \
      break;                                          \
    case SLR_F64:                                     \
      function<Plain<double>, double>(__VA_ARGS__);   \
      break;                                          \
    case SLR_BF16:                                    \
      function<SLR_BF16_PRODUCTS, Bf16>(__VA_ARGS__); \
      break;                                          \
    case SLR_F16:                                     \
      function<Plain<float>, F16>(__VA_ARGS__);       \
      break;                                          \
  }

// ---- products

template <class T>
struct Sums {  // of kSome rows and one panel of columns
  Value<T> at[kSome][2];
};

template <class T>
inline __attribute__((always_inline)) void clear(Sums<T>& sums) {
#pragma GCC unroll 8
  for (int i = 0; i < kSome; ++i) sums.at[i][0] = sums.at[i][1] = Value<T>{};
}

// sums[i] += sum_k left(i, k) right[k]; left(i, k) is left[i * row + k * column]; right: [k][W].
template <class T>
inline __attribute__((always_inline)) void multiply_plain(const T* left, int64_t row, int64_t column, int64_t k,
                                                          const T* right, Sums<T>& sums) {
  constexpr int width = Simd<T>::width;
  Value<T> sum[kSome][2];  // of this stretch only: sums of short sums round less
#pragma GCC unroll 8
  for (int i = 0; i < kSome; ++i) sum[i][0] = sum[i][1] = Value<T>{};
  for (int64_t j = 0; j < k; ++j) {
    const Value<T> first = read(right), second = read(right + width);
#pragma GCC unroll 8
    for (int i = 0; i < kSome; ++i) {
      const Value<T> x = fill(left[i * row]);
      sum[i][0] = fused(x, first, sum[i][0]);
      sum[i][1] = fused(x, second, sum[i][1]);
    }
    left += column;
    right += 2 * width;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kSome; ++i) sums.at[i][0] += sum[i][0], sums.at[i][1] += sum[i][1];
}

#if defined(__AVX512BF16__)
// The same for pairs: left and right count in pairs of bfloat16, as 32-bit words.
inline __attribute__((always_inline)) void multiply_pairs(const uint32_t* left, int64_t row, int64_t column, int64_t k,
                                                          const uint32_t* right, Sums<float>& sums) {
  __m512 sum[kSome][2];
#pragma GCC unroll 8
  for (int i = 0; i < kSome; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
  for (int64_t j = 0; j < k; ++j) {
    const __m512bh first = bit_cast<__m512bh>(_mm512_loadu_si512(right));
    const __m512bh second = bit_cast<__m512bh>(_mm512_loadu_si512(right + 16));
#pragma GCC unroll 8
    for (int i = 0; i < kSome; ++i) {
      const __m512bh x = bit_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(left[i * row])));
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], first, x);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], second, x);
    }
    left += column;
    right += 32;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kSome; ++i)
    sums.at[i][0] += bit_cast<Value<float>>(sum[i][0]), sums.at[i][1] += bit_cast<Value<float>>(sum[i][1]);
}
#endif

// sums += rows of a tile [panels][rows][W] times a packed matrix [k][W]: row first, first + 1, ...
template <class K>
inline __attribute__((always_inline)) void multiply(const typename K::Element* tile, int64_t rows, int64_t first,
                                                    int64_t k, const typename K::Element* right,
                                                    Sums<typename K::Compute>& sums) {
  constexpr int64_t W = kPanel<typename K::Compute>;
  for (int64_t begin = 0; begin < k; begin += W, tile += rows * W, right += W * W) {
    const int64_t some = least(W, k - begin);
    if constexpr (K::pairs) {
#if defined(__AVX512BF16__)
      multiply_pairs(reinterpret_cast<const uint32_t*>(tile + first * W), W / 2, 1, (some + 1) / 2,
                     reinterpret_cast<const uint32_t*>(right), sums);
#endif
    } else {
      multiply_plain(tile + first * W, W, 1, some, right, sums);
    }
  }
}

// sums[i] += sum over `rows` rows r of left[r][column + i] right[r]; both are one panel of a tile. Pairs: both are
// woven (see weave), and rows is even.
template <class K>
inline __attribute__((always_inline)) void multiply_columns(const typename K::Element* left, int64_t column,
                                                            int64_t rows, const typename K::Element* right,
                                                            Sums<typename K::Compute>& sums) {
  constexpr int64_t W = kPanel<typename K::Compute>;
  if constexpr (K::pairs) {
#if defined(__AVX512BF16__)
    multiply_pairs(reinterpret_cast<const uint32_t*>(left) + column, 1, W, rows / 2,
                   reinterpret_cast<const uint32_t*>(right), sums);
#endif
  } else {
    multiply_plain(left + column, 1, W, rows, right, sums);
  }
}

template <class T>
inline __attribute__((always_inline)) void add_to(T* to, const Sums<T>& sums) {  // kSome rows of W
  constexpr int width = Simd<T>::width;
#pragma GCC unroll 8
  for (int i = 0; i < kSome; ++i) {
    write(to + i * 2 * width, read(to + i * 2 * width) + sums.at[i][0]);
    write(to + i * 2 * width + width, read(to + i * 2 * width + width) + sums.at[i][1]);
  }
}

template <class T>
inline __attribute__((always_inline)) void set_to(T* to, const Sums<T>& sums) {
  constexpr int width = Simd<T>::width;
#pragma GCC unroll 8
  for (int i = 0; i < kSome; ++i) {
    write(to + i * 2 * width, sums.at[i][0]);
    write(to + i * 2 * width + width, sums.at[i][1]);
  }
}

// result [panels of n][rows][W] += tile [panels of k][rows][W] times the packed matrix, for all rows.
template <class K>
inline void multiply_tile(const typename K::Element* tile, int64_t rows, int64_t k, const typename K::Element* right,
                          int64_t n, typename K::Compute* result) {
  using T = typename K::Compute;
  constexpr int64_t W = kPanel<T>;
  const int64_t even = rounded_up(k, 2);
  for (int64_t j = 0; j < panels_of<T>(n); ++j)
    for (int64_t i = 0; i < rows; i += kSome) {
      Sums<T> sums;
      clear(sums);
      multiply<K>(tile, rows, i, k, right + j * even * W, sums);
      add_to(result + (j * rows + i) * W, sums);
    }
}

// result [panels of n][k][W] += left^T right over the rows of two tiles, [panels of k][rows][W], [panels of n][rows][W]
template <class K>
inline void multiply_transposed(const typename K::Element* left, int64_t k, const typename K::Element* right, int64_t n,
                                int64_t rows, typename K::Compute* result) {
  using T = typename K::Compute;
  constexpr int64_t W = kPanel<T>;
  for (int64_t j = 0; j < panels_of<T>(n); ++j)
    for (int64_t i = 0; i < rounded_up(k, kSome); i += kSome) {
      Sums<T> sums;
      clear(sums);
      multiply_columns<K>(left + i / W * rows * W, i % W, rows, right + j * rows * W, sums);
      add_to(result + (j * wide(k) + i) * W, sums);
    }
}

// ---- rows and panels

template <class S>
using ComputeOf = decltype(to_compute(S{}));

// The vector of up to `width` elements, zero beyond `count`.
template <class S>
inline Value<ComputeOf<S>> load_some(const S* from, int64_t count) {
  constexpr int width = Lanes<S>::width;
  if (count >= width) return load(from);
  S some[width] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = from[i];
  return load(some);
}

template <class S>
inline void store_some(S* to, Value<ComputeOf<S>> value, int64_t count) {
  constexpr int width = Lanes<S>::width;
  if (count >= width) return store(to, value);
  S some[width];
  store(some, value);
  for (int64_t i = 0; i < count; ++i) to[i] = some[i];
}

// Rows [rows][W] of elements, pair by pair element by element: what a product over rows takes.
template <class K>
inline void weave(const typename K::Element* from, int64_t rows, typename K::Element* to) {
#if defined(__AVX512BF16__)
  constexpr int64_t W = kPanel<typename K::Compute>;
  for (int64_t i = 0; i < rows; i += 2)
    for (int64_t j = 0; j < W; j += 16) {
      __m256i even, odd;
      std::memcpy(&even, from + i * W + j, sizeof even);
      std::memcpy(&odd, from + i * W + W + j, sizeof odd);
      const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
      _mm512_storeu_si512(to + i * W + 2 * j, _mm512_or_si512(_mm512_cvtepu16_epi32(even), high));
    }
#endif
}

// What is left of a number once it is stored as S.
template <class S>
inline Value<ComputeOf<S>> as_stored(Value<ComputeOf<S>> value) {
  return Lanes<S>::decode(Lanes<S>::encode(value));
}

// result [panels of channels][joints][frames][W] = a bias [joints or 1][wide(channels)] in every frame; block: frames
// W.
template <class T>
inline void fill_tile(const void* bias, bool of_joint, int64_t joints, int64_t block, int64_t channels, T* result) {
  constexpr int64_t W = kPanel<T>;
  for (int64_t j = 0; j < panels_of<T>(channels); ++j)
    for (int64_t v = 0; v < joints; ++v, result += block) {
      const T* const from = static_cast<const T*>(bias) + (of_joint ? v * wide(channels) : 0) + j * W;
      for (int64_t at = 0; at < block; at += Simd<T>::width) write(result + at, read(from + at % W));
    }
}

// total += the sum of a tile's column of so many rows, and rest += what that rounds off (Knuth), so that the number of
// tiles does not matter.
template <class T>
inline void add_column(const T* column, int64_t rows, T* total, T* rest) {
  Value<T> sum = {};
  for (int64_t i = 0; i < rows; ++i) sum += read(column + i * kPanel<T>);
  const Value<T> before = read(total), after = before + sum, added = after - before;
  write(total, after);
  write(rest, read(rest) + ((before - (after - added)) + (sum - added)));
}

// Numbers as the elements of an operand.
template <class K>
inline void as_rows(const typename K::Compute* from, int64_t count, typename K::Element* to) {
  for (int64_t i = 0; i < count; i += Simd<typename K::Compute>::width) store(to + i, read(from + i));
}

// ---- batch normalisation

// Mean of a tile's columns, and sum of squares about it: first a mean, then what is left of it and the squares.
template <class T>
struct Spread {
  Value<T> mean = {}, squares = {}, rest = {};

  void add_to_mean(const T* column, int64_t rows) {  // rows lie W apart
    for (int64_t i = 0; i < rows; ++i) mean += read(column + i * kPanel<T>);
  }
  void finish_mean(int64_t count) { mean /= static_cast<T>(count); }
  void add(const T* column, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      const Value<T> off = read(column + i * kPanel<T>) - mean;
      rest += off;
      squares = fused(off, off, squares);
    }
  }
  void finish(int64_t count) {
    rest /= static_cast<T>(count);
    mean += rest;
    squares -= rest * rest * static_cast<T>(count);
    squares = squares > T{0} || squares != squares ? squares : Value<T>{};
  }
};

struct Range {  // of the rows of a tile
  int64_t group, first, valid;
};

inline Range range_of(const Tiles& tiles, int64_t tile) {
  const int64_t each = tiles_of_group(tiles), group = tile / each, first = tile % each * tiles.size;
  return {group, group * tiles.rows + first, least(tiles.size, tiles.rows - first)};
}

// A normalisation of one group, made ready: [kChain][wide(C)] 1 / deviation, -mean / deviation, gamma / deviation, mean
// of the gradient and of the gradient times the normalised value.
template <class T>
inline void prepare(const Norm& norm, int64_t group, int64_t groups, int64_t channels, T* chain) {
  constexpr int width = Simd<T>::width;
  const T* const from = static_cast<const T*>(norm.norm) + group * 4 * channels;
  const T *sum = static_cast<const T*>(norm.sums) + group * channels, *product = sum + groups * channels;
  const T count = static_cast<T>(norm.count);
  const int64_t step = wide(channels);
  for (int64_t c = 0; c < channels; c += width) {
    const int64_t some = channels - c;
    const Value<T> inverse = load_some(from + c, some);
    write(chain + c, inverse);
    write(chain + step + c, load_some(from + channels + c, some));
    write(chain + 2 * step + c, inverse * load_some(from + 2 * channels + c, some));
    write(chain + 3 * step + c, load_some(sum + c, some) / count);
    write(chain + 4 * step + c, load_some(product + c, some) / count);
  }
}

// The gradient of a normalisation's input from that of its result and from the input.
template <class T>
inline Value<T> through(const T* chain, int64_t channels, int64_t c, Value<T> grad, Value<T> y) {
  const int64_t step = wide(channels);
  const Value<T> unit = fused(y, read(chain + c), read(chain + step + c));
  return read(chain + 2 * step + c) * (grad - read(chain + 3 * step + c) - unit * read(chain + 4 * step + c));
}

// ---- dropout (slrfast/reference/dropout.py)

inline uint32_t row_key(uint32_t base, int64_t row) {
  return mixed(mixed(base + static_cast<uint32_t>(row)) + static_cast<uint32_t>(row >> 32));
}

template <class T>
struct Keep {
  uint32_t border;
  T scale;
  explicit Keep(const Dropout& dropout) {
    const double border_of = dropout.probability * 4294967296.0;
    border = border_of >= 4294967295.0 ? 0xffffffffu : static_cast<uint32_t>(border_of);
    scale = dropout.probability < 1 ? static_cast<T>(1 / (1 - dropout.probability)) : T{0};
  }
  // value * (scale where the element is kept, else 0), NaN for NaN; channels channel, channel + 1, ...
  Value<T> operator()(Value<T> value, uint32_t key, int64_t channel) const {
    constexpr int width = Simd<T>::width;
    using Words = Vector<uint32_t, width>;
    Words x;
    for (int i = 0; i < width; ++i) x[i] = static_cast<uint32_t>(i);
    x = ((x + static_cast<uint32_t>(channel)) * 0x9e3779b9u) ^ key;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    x = x ^ (x >> 16);
    const auto kept = x >= border;  // all bits or none, of 32-bit lanes
    if constexpr (sizeof(T) == 4) {
      return value * bit_cast<Value<T>>(bit_cast<Mask<T>>(kept) & bit_cast<Mask<T>>(fill(scale)));
    } else {
      return value * bit_cast<Value<T>>(__builtin_convertvector(kept, Mask<T>) & bit_cast<Mask<T>>(fill(scale)));
    }
  }
};

template <class T>
inline Value<T> relu(Value<T> x) {
  return x > T{0} || x != x ? x : Value<T>{};
}

}  // namespace SLR_ISA
}  // namespace slr
