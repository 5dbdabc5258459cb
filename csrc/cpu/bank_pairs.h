// Products of a bfloat16 bank by the instruction that multiplies pairs of bfloat16 numbers and adds both products to a
// float. Scores: pairs of neighbouring d, of the query's high and, unless it is zero, low part. Sums: pairs of bank
// rows, with weights rounded to bfloat16. For files in cpu/ only (see isa.h).
#pragma once

#include "common/bank.h"
#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {

constexpr int kColumns = kBlockBytes / kVectorBytes;  // vectors across a block

// A tile as rows of T, `stride` elements apart.
template <class T>
struct Tile {
  const T* data;
  int64_t stride;
};

// Where the scores or weights of (bank row, lane) lie: lane l of vector v at row * row_stride + v * column_stride + l.
struct Layout {
  int64_t row_stride, column_stride;
};

#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;  // then nothing asks for them
#endif

// Asks for the rows from `at` on, those of the next tile, while this one is at work. Reading past the end is harmless.
template <class T>
inline void fetch(const T* at, int64_t stride, int64_t rows, int64_t d) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t n = 0; n < rows; ++n)
    for (int64_t j = 0; j < d; j += line) __builtin_prefetch(at + n * stride + j, 0, 2);
}

namespace pairs {

#if defined(__AVX512BF16__)

// Rows of the bank with an even number of elements, and pairs of neighbouring rows: together[i][j] holds element j of
// rows 2 i and 2 i + 1.
inline void load(const Bank& bank, int64_t first, int64_t rows, Bf16* copy, uint32_t* together, Tile<Bf16>* tile) {
  const Bf16* from = static_cast<const Bf16*>(bank.data) + first * bank.row_stride;
  const int64_t d = bank.d, even = (d + 1) / 2 * 2;
  *tile = {from, bank.row_stride};
  if (bank.column_stride != 1 || d != even) {
    for (int64_t j = 0; j < even; ++j)
      for (int64_t n = 0; n < rows; ++n)
        copy[n * even + j] = j < d ? from[n * bank.row_stride + j * bank.column_stride] : Bf16{0};
    *tile = {copy, even};
  }
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                       5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t n = 0; n < rows; n += 2, together += d) {
    const Bf16 *a = tile->data + n * tile->stride, *b = a + tile->stride;
    const bool both = n + 1 < rows;
    int64_t j = 0;
    if (tile->data == from) fetch(a + rows * tile->stride, tile->stride, 2, d);
    for (; both && j + 32 <= d; j += 32) {
      const __m512i x = _mm512_loadu_si512(a + j), y = _mm512_loadu_si512(b + j);
      _mm512_storeu_si512(together + j, _mm512_permutex2var_epi16(x, low, y));
      _mm512_storeu_si512(together + j + 16, _mm512_permutex2var_epi16(x, high, y));
    }
    for (; j < d; ++j) together[j] = a[j].bits | (both ? static_cast<uint32_t>(b[j].bits) << 16 : 0);
  }
}

inline __m512bh broadcast(const void* pair) {
  int32_t bits;
  std::memcpy(&bits, pair, sizeof bits);
  return bit_cast<__m512bh>(_mm512_set1_epi32(bits));
}

inline __m512bh read(const uint32_t* from) { return bit_cast<__m512bh>(_mm512_loadu_si512(from)); }

template <int rows, int columns, bool split>
inline __attribute__((always_inline)) void scores_of(Tile<Bf16> tile, const uint32_t* high, const uint32_t* low,
                                                     int64_t half, float* to, Layout layout) {
  __m512 sum[rows][columns];
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < columns; ++v) sum[i][v] = _mm512_setzero_ps();
  for (int64_t j = 0; j < half; ++j) {
    __m512bh q[columns], rest[columns];
    for (int v = 0; v < columns; ++v) {
      q[v] = read(high + (j * kColumns + v) * 16);
      if (split) rest[v] = read(low + (j * kColumns + v) * 16);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const __m512bh x = broadcast(tile.data + i * tile.stride + 2 * j);
#pragma GCC unroll 2
      for (int v = 0; v < columns; ++v) {
        if (split) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], rest[v], x);
        sum[i][v] = _mm512_dpbf16_ps(sum[i][v], q[v], x);
      }
    }
  }
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < columns; ++v)
      _mm512_storeu_ps(to + i * layout.row_stride + v * layout.column_stride, sum[i][v]);
}

template <int columns, bool split>
inline void scores_columns(Tile<Bf16> tile, int64_t rows, const uint32_t* high, const uint32_t* low, int64_t half,
                           float* to, Layout layout) {
  constexpr int some = 12;
  int64_t n = 0;
  for (; n + some <= rows; n += some)
    scores_of<some, columns, split>({tile.data + n * tile.stride, tile.stride}, high, low, half,
                                    to + n * layout.row_stride, layout);
  for (; n < rows; ++n)
    scores_of<1, columns, split>({tile.data + n * tile.stride, tile.stride}, high, low, half,
                                 to + n * layout.row_stride, layout);
}

inline void score(Tile<Bf16> tile, int64_t rows, const Packed& packed, int64_t block, int64_t d, int columns, float* to,
                  Layout layout) {
  const int64_t half = (d + 1) / 2, at = block * half * kBlockBytes / 4;
  const uint32_t *high = packed.high + at, *low = packed.low + at;
  if (packed.low == nullptr)
    columns == 2 ? scores_columns<2, false>(tile, rows, high, nullptr, half, to, layout)
                 : scores_columns<1, false>(tile, rows, high, nullptr, half, to, layout);
  else
    columns == 2 ? scores_columns<2, true>(tile, rows, high, low, half, to, layout)
                 : scores_columns<1, true>(tile, rows, high, low, half, to, layout);
}

template <int some, int columns>
inline __attribute__((always_inline)) void sums_of(const uint32_t* together, int64_t d, int64_t half,
                                                   const uint32_t* weights, float* to) {
  __m512 sum[some][columns];
  for (int j = 0; j < some; ++j)
    for (int v = 0; v < columns; ++v) sum[j][v] = _mm512_setzero_ps();
  for (int64_t n = 0; n < half; ++n) {
    __m512bh w[columns];
    for (int v = 0; v < columns; ++v) w[v] = read(weights + (n * kColumns + v) * 16);
#pragma GCC unroll 16
    for (int j = 0; j < some; ++j) {
      const __m512bh x = broadcast(together + n * d + j);
#pragma GCC unroll 2
      for (int v = 0; v < columns; ++v) sum[j][v] = _mm512_dpbf16_ps(sum[j][v], w[v], x);
    }
  }
  for (int j = 0; j < some; ++j)
    for (int v = 0; v < columns; ++v) {
      float* at = to + (j * kColumns + v) * 16;
      _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), sum[j][v]));
    }
}

template <int columns>
inline void sums_columns(const uint32_t* together, int64_t d, int64_t half, const uint32_t* weights, float* to) {
  constexpr int some = 8;
  int64_t j = 0;
  for (; j + some <= d; j += some) sums_of<some, columns>(together + j, d, half, weights, to + j * kBlockBytes / 4);
  for (; j < d; ++j) sums_of<1, columns>(together + j, d, half, weights, to + j * kBlockBytes / 4);
}

inline void sum(const uint32_t* together, int64_t rows, const float* weights, Layout layout, uint32_t* packed,
                int64_t d, int columns, float* to) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t n = 0; n < rows; n += 2)
    for (int v = 0; v < columns; ++v) {
      const float* at = weights + n * layout.row_stride + v * layout.column_stride;
      const __m512 x = _mm512_loadu_ps(at),
                   y = n + 1 < rows ? _mm512_loadu_ps(at + layout.row_stride) : _mm512_setzero_ps();
      const __m512i both = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(y, x));
      _mm512_storeu_si512(packed + (n / 2 * kColumns + v) * 16, _mm512_permutexvar_epi16(order, both));
    }
  const int64_t half = (rows + 1) / 2;
  columns == 2 ? sums_columns<2>(together, d, half, packed, to) : sums_columns<1>(together, d, half, packed, to);
}

#else

void load(const Bank&, int64_t, int64_t, Bf16*, uint32_t*, Tile<Bf16>*);
void score(Tile<Bf16>, int64_t, const Packed&, int64_t, int64_t, int, float*, Layout);
void sum(const uint32_t*, int64_t, const float*, Layout, uint32_t*, int64_t, int, float*);

#endif

}  // namespace pairs
}  // namespace SLR_ISA
}  // namespace slr
