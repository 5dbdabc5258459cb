// A skeleton's frames in panels, and their graph convolution. For files in cpu/ only (see isa.h).
#pragma once

#include "cpu/panels.h"

namespace slr {
namespace SLR_ISA {

// Elements of a packed matrix [k, n].
template <class T>
inline int64_t packed(int64_t k, int64_t n) {
  return panels_of<T>(n) * rounded_up(k, 2) * kPanel<T>;
}

// x [valid frames][V][C] into a tile [panels][V][F][W], zero beyond the valid frames.
template <class K, class S>
inline void load_frames(const S* x, int64_t nodes, int64_t channels, int64_t frames, int64_t valid,
                        typename K::Element* tile) {
  using T = typename K::Compute;
  constexpr int width = Simd<T>::width;
  constexpr int64_t W = kPanel<T>;
  for (int64_t f = 0; f < frames; ++f)
    for (int64_t v = 0; v < nodes; ++v)
      for (int64_t c = 0; c < panels_of<T>(channels) * W; c += width) {
        const Value<T> value = f < valid ? load_some(x + (f * nodes + v) * channels + c, channels - c) : Value<T>{};
        store(tile + ((c / W * nodes + v) * frames + f) * W + c % W, value);
      }
}

// The sums over a partition's edges at the joints of its smaller side, [panels][count][F][W], of a tile of all joints.
template <class To, class From>
inline void gather(const Partition& partition, const From* tile, int64_t nodes, int64_t panels, int64_t block, To* to) {
  constexpr int width = Lanes<From>::width;
  for (int64_t p = 0; p < panels; ++p, tile += nodes * block)
    for (int64_t i = 0, e = 0, end; i < partition.count; ++i, e = end, to += block) {
      const auto side = [&](int64_t k) {
        return partition.at_target ? partition.edges[k].target : partition.edges[k].source;
      };
      for (end = e; end < partition.edge_count && side(end) == partition.nodes[i];) ++end;
      for (int64_t at = 0; at < block; at += width) {
        typename Lanes<From>::Value sum = {};
        for (int64_t k = e; k < end; ++k) {
          const Edge& edge = partition.edges[k];
          const auto value = load(tile + (partition.at_target ? edge.source : edge.target) * block + at);
          sum = fused(decltype(sum){} + edge.coefficient, value, sum);
        }
        store(to + at, sum);
      }
    }
}

// Adds the products of kSome rows, that of joint i of the partition's smaller side, to the joints at its edges' other
// end; result: the rows of one panel, [V][F][W], from the first of those rows on.
template <class T>
inline void scatter(const Partition& partition, int64_t* edge, int64_t i, const Sums<T>& sums, int64_t block,
                    T* result) {
  constexpr int width = Simd<T>::width;
  int64_t k = *edge;
  for (; k < partition.edge_count; ++k) {
    const Edge& e = partition.edges[k];
    if ((partition.at_target ? e.target : e.source) != partition.nodes[i]) break;
    T* const to = result + (partition.at_target ? e.source : e.target) * block;
    const Value<T> a = fill(static_cast<T>(e.coefficient));
#pragma GCC unroll 8
    for (int r = 0; r < kSome; ++r) {
      write(to + r * 2 * width, fused(a, sums.at[r][0], read(to + r * 2 * width)));
      write(to + r * 2 * width + width, fused(a, sums.at[r][1], read(to + r * 2 * width + width)));
    }
  }
  *edge = k;
}

// result [panels of outputs][V][F][W] += the graph convolution of a tile; weight: one packed matrix per partition;
// gathered: room for a tile.
template <class K>
inline void convolve(const Skeleton& skeleton, const typename K::Element* tile, int64_t frames, int64_t inputs,
                     int64_t outputs, const typename K::Element* weight, typename K::Element* gathered,
                     typename K::Compute* result) {
  using T = typename K::Compute;
  constexpr int64_t W = kPanel<T>;
  const int64_t block = frames * W, even = rounded_up(inputs, 2) * W, nodes = skeleton.nodes;
  for (int64_t p = 0; p < skeleton.partitions; ++p, weight += packed<T>(inputs, outputs)) {
    const Partition& partition = skeleton.partition[p];
    if (partition.at_target) gather(partition, tile, nodes, panels_of<T>(inputs), block, gathered);
    for (int64_t j = 0; j < panels_of<T>(outputs); ++j) {
      T* const panel = result + j * nodes * block;
      for (int64_t i = 0, edge = 0; i < partition.count; ++i) {
        const int64_t first = edge;
        for (int64_t f = 0; f < frames; f += kSome) {
          Sums<T> sums;
          clear(sums);
          if (partition.at_target) {
            multiply<K>(gathered, partition.count * frames, i * frames + f, inputs, weight + j * even, sums);
            add_to(panel + partition.nodes[i] * block + f * W, sums);
          } else {
            multiply<K>(tile, nodes * frames, partition.nodes[i] * frames + f, inputs, weight + j * even, sums);
            edge = first;
            scatter(partition, &edge, i, sums, block, panel + f * W);
          }
        }
      }
    }
  }
}

}  // namespace SLR_ISA
}  // namespace slr
