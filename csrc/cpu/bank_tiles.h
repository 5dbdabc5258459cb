// A memory bank, read in tiles of some rows, against blocks of rows of the batch: the scores of a tile, and sums
// of its rows under weights. Lanes run over the batch: a block is packed [d][lanes], and every element of the bank is
// broadcast to the block's lanes, so that a bank in row-major order is read as it lies. For files in cpu/ only.
#pragma once

#include "common/bank.h"
#include "cpu/bank_pairs.h"
#include "cpu/lanes.h"

namespace slr {
namespace SLR_ISA {

// Element (n, d) of tile or bank -> T.
template <class T>
inline T element(float x) {
  return static_cast<T>(x);
}
template <class T>
inline T element(double x) {
  return static_cast<T>(x);
}
template <class T>
inline T element(Bf16 x) {
  return static_cast<T>(to_compute(x));
}
template <class T>
inline T element(F16 x) {
  return static_cast<T>(to_compute(x));
}

template <class T, class S>
inline void convert_tile(const Bank& bank, int64_t first, int64_t rows, T* to) {
  const S* from = static_cast<const S*>(bank.data) + first * bank.row_stride;
  if (bank.column_stride == 1) {
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t d = 0; d < bank.d; ++d) to[n * bank.d + d] = element<T>(from[n * bank.row_stride + d]);
    return;
  }
  constexpr int64_t some = 16;  // rows at a time, so that a column-major bank is read by cache lines
  for (int64_t begin = 0; begin < rows; begin += some) {
    const int64_t end = begin + some < rows ? begin + some : rows;
    for (int64_t d = 0; d < bank.d; ++d)
      for (int64_t n = begin; n < end; ++n)
        to[n * bank.d + d] = element<T>(from[n * bank.row_stride + d * bank.column_stride]);
  }
}

// Rows [first, first + rows) of the bank, where they lie if they can be used there, else copied to `scratch`.
template <class T>
inline Tile<T> tile_of(const Bank& bank, int64_t first, int64_t rows, T* scratch) {
  const bool same = bank.dtype == (sizeof(T) == 4 ? SLR_F32 : SLR_F64);
  if (same && bank.column_stride == 1)
    return {static_cast<const T*>(bank.data) + first * bank.row_stride, bank.row_stride};
  switch (bank.dtype) {
    case SLR_F32:
      convert_tile<T, float>(bank, first, rows, scratch);
      break;
    case SLR_F64:
      convert_tile<T, double>(bank, first, rows, scratch);
      break;
    case SLR_BF16:
      convert_tile<T, Bf16>(bank, first, rows, scratch);
      break;
    case SLR_F16:
      convert_tile<T, F16>(bank, first, rows, scratch);
      break;
  }
  return {scratch, bank.d};
}

#if defined(__AVX512F__)
constexpr int kScoreRows = 8, kSumRows = 8;
#else
constexpr int kScoreRows = 6, kSumRows = 6;
#endif

template <class T, int rows, int columns>
inline __attribute__((always_inline)) void scores_of(const T* bank, int64_t stride, const T* packed, int64_t d, T* to,
                                                     Layout layout) {
  constexpr int width = Simd<T>::width;
  Value<T> sum[rows][columns] = {};
  for (int64_t j = 0; j < d; ++j) {
    Value<T> q[columns];
    for (int v = 0; v < columns; ++v) q[v] = read(packed + (j * kColumns + v) * width);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < columns; ++v) sum[i][v] = fused(fill(bank[i * stride + j]), q[v], sum[i][v]);
  }
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < columns; ++v) write(to + i * layout.row_stride + v * layout.column_stride, sum[i][v]);
}

template <class T, int columns>
inline void scores_columns(Tile<T> tile, int64_t rows, const T* packed, int64_t d, T* to, Layout layout) {
  int64_t n = 0;
  for (; n + kScoreRows <= rows; n += kScoreRows) {
    fetch(tile.data + (n + rows) * tile.stride, tile.stride, kScoreRows, d);
    scores_of<T, kScoreRows, columns>(tile.data + n * tile.stride, tile.stride, packed, d, to + n * layout.row_stride,
                                      layout);
  }
  for (; n < rows; ++n)
    scores_of<T, 1, columns>(tile.data + n * tile.stride, tile.stride, packed, d, to + n * layout.row_stride, layout);
}

// to[n, lane] = <tile row n, packed row of the lane> for the first `columns` vectors of a block.
template <class T>
inline void scores(Tile<T> tile, int64_t rows, const T* packed, int64_t d, int columns, T* to, Layout layout) {
  int v = 0;
  for (; v + 2 <= columns; v += 2)
    scores_columns<T, 2>(tile, rows, packed + v * Simd<T>::width, d, to + v * layout.column_stride, layout);
  if (v < columns)
    scores_columns<T, 1>(tile, rows, packed + v * Simd<T>::width, d, to + v * layout.column_stride, layout);
}

template <class T, int width_d, int columns>
inline __attribute__((always_inline)) void sums_of(const T* bank, int64_t stride, int64_t rows, const T* weights,
                                                   Layout layout, T* to) {
  constexpr int width = Simd<T>::width;
  Value<T> sum[width_d][columns] = {};
  for (int64_t n = 0; n < rows; ++n) {
    Value<T> w[columns];
    for (int v = 0; v < columns; ++v) w[v] = read(weights + n * layout.row_stride + v * layout.column_stride);
#pragma GCC unroll 16
    for (int j = 0; j < width_d; ++j)
#pragma GCC unroll 2
      for (int v = 0; v < columns; ++v) sum[j][v] = fused(fill(bank[n * stride + j]), w[v], sum[j][v]);
  }
  for (int j = 0; j < width_d; ++j)
    for (int v = 0; v < columns; ++v) {
      T* at = to + (j * kColumns + v) * width;
      write(at, read(at) + sum[j][v]);
    }
}

template <class T, int columns>
inline void sums_columns(Tile<T> tile, int64_t rows, const T* weights, Layout layout, int64_t d, T* to) {
  int64_t j = 0;
  for (; j + kSumRows <= d; j += kSumRows)
    sums_of<T, kSumRows, columns>(tile.data + j, tile.stride, rows, weights, layout,
                                  to + j * kColumns * Simd<T>::width);
  for (; j < d; ++j)
    sums_of<T, 1, columns>(tile.data + j, tile.stride, rows, weights, layout, to + j * kColumns * Simd<T>::width);
}

// to[j, lane] += sum_n weights[n, lane] * tile[n, j], packed like a block.
template <class T>
inline void sums(Tile<T> tile, int64_t rows, const T* weights, Layout layout, int64_t d, int columns, T* to) {
  int v = 0;
  for (; v + 2 <= columns; v += 2)
    sums_columns<T, 2>(tile, rows, weights + v * layout.column_stride, layout, d, to + v * Simd<T>::width);
  if (v < columns)
    sums_columns<T, 1>(tile, rows, weights + v * layout.column_stride, layout, d, to + v * Simd<T>::width);
}

// Reads a bank tile by tile.
template <class T>
class Reader {
 public:
  static constexpr int64_t lanes = kBlockBytes / sizeof(T);
  static constexpr Layout block_layout = {lanes, Simd<T>::width};

  static int64_t scratch(int64_t d) { return kTileRows * (d + 1) * sizeof(T) + (kTileRows / 2) * (d + lanes) * 4; }

  // With `pairs`, products are those of bfloat16 pairs (see Packed).
  Reader(const Bank& bank, bool pairs, void* scratch) : bank_(bank), pairs_(pairs), copy_(static_cast<T*>(scratch)) {}

  void load(int64_t first, int64_t rows) {
    rows_ = rows;
    if constexpr (may_pair)
      if (pairs_) return pairs::load(bank_, first, rows, reinterpret_cast<Bf16*>(copy_), pair_rows(), &pair_tile_);
    tile_ = tile_of(bank_, first, rows, copy_);
  }

  // to[n, lane] = <tile row n, row of the lane> for the first `columns` vectors of a block.
  void score(const Packed& packed, int64_t block, int columns, T* to, Layout layout) const {
    if constexpr (may_pair)
      if (pairs_) return pairs::score(pair_tile_, rows_, packed, block, bank_.d, columns, to, layout);
    const T* rows = static_cast<const T*>(packed.rows) + block * bank_.d * lanes;
    scores(tile_, rows_, rows, bank_.d, columns, to, layout);
  }

  // to[j, lane] += sum_n weights[n, lane] * tile[n, j], packed like a block.
  void sum(const T* weights, Layout layout, int columns, T* to) const {
    if constexpr (may_pair)
      if (pairs_) return pairs::sum(pair_rows(), rows_, weights, layout, pair_weights(), bank_.d, columns, to);
    sums(tile_, rows_, weights, layout, bank_.d, columns, to);
  }

 private:
  static constexpr bool may_pair = kHasPairs && sizeof(T) == 4;
  uint32_t* pair_rows() const { return reinterpret_cast<uint32_t*>(copy_ + kTileRows * (bank_.d + 1)); }
  uint32_t* pair_weights() const { return pair_rows() + kTileRows / 2 * bank_.d; }

  const Bank bank_;
  const bool pairs_;
  T* const copy_;
  int64_t rows_ = 0;
  Tile<T> tile_ = {};
  Tile<Bf16> pair_tile_ = {};
};

// The vectors of a block in which there is a row.
template <class T>
inline int columns_of(int64_t b, int64_t block) {
  constexpr int64_t lanes = kBlockBytes / sizeof(T), width = Simd<T>::width;
  const int64_t left = b - block * lanes;
  return static_cast<int>((left < lanes ? left + width - 1 : lanes) / width);
}

}  // namespace SLR_ISA
}  // namespace slr
