#include "cpu/graph_tiles.h"

namespace slr {
namespace SLR_ISA {
namespace {

template <class K>
void rectify(const typename K::Compute* from, int64_t count, typename K::Element* to) {
  using T = typename K::Compute;
  for (int64_t at = 0; at < count; at += Simd<T>::width) store(to + at, relu<T>(read(from + at)));
}

template <class V>
inline V upper(V a, V b) {
  return b > a || b != b ? b : a;
}

template <class K, class S>
void tiles_of(const PartGcn& job, int64_t begin, int64_t end, char* scratch) {
  using T = typename K::Compute;
  using E = typename K::Element;
  constexpr int width = Simd<T>::width;
  constexpr int64_t W = kPanel<T>;
  const int64_t room = job.room, frames = job.tiles.size, block = frames * W;
  T* const result = reinterpret_cast<T*>(scratch);
  E* const first = reinterpret_cast<E*>(result + room);
  E* const second = first + room;
  for (int64_t t = begin; t < end; ++t) {
    const Range range = range_of(job.tiles, t);
    E *tile = first, *other = second;
    const Skeleton* skeleton = &job.skeleton;
    load_frames<K>(static_cast<const S*>(job.x) + range.first * skeleton->nodes * job.inputs, skeleton->nodes,
                   job.inputs, frames, range.valid, tile);
    for (int64_t i = 0; i < job.count; ++i) {
      const FoldedBlock& layer = job.blocks[i];
      const int64_t in_panels = panels_of<T>(layer.inputs), out_panels = panels_of<T>(layer.outputs);
      if (i == job.joint_blocks) {
        E* to = other;
        for (int64_t j = 0; j < in_panels; ++j)
          for (int64_t p = 0; p < job.pooled.nodes; ++p, to += block)
            for (int64_t at = 0; at < block; at += width) {
              const int32_t* const members = job.members + p * job.most;
              const E* const from = tile + j * skeleton->nodes * block + at;
              Value<T> best = load(from + members[0] * block);
              for (int64_t m = 1; m < job.most; ++m) best = upper(best, load(from + members[m] * block));
              store(to + at, best);
            }
        E* const swap = tile;
        tile = other;
        other = swap;
        skeleton = &job.pooled;
      }
      const int64_t nodes = skeleton->nodes, rows = nodes * frames;
      fill_tile(layer.node_bias, true, nodes, block, layer.outputs, result);
      convolve<K>(*skeleton, tile, frames, layer.inputs, layer.outputs, static_cast<const E*>(layer.weight), other,
                  result);
      rectify<K>(result, rows * out_panels * W, other);
      fill_tile(layer.bias, false, nodes, block, layer.outputs, result);
      if (layer.identity)
        for (int64_t at = 0; at < rows * out_panels * W; at += width)
          write(result + at, read(result + at) + load(tile + at));
      if (layer.residual != nullptr)
        multiply_tile<K>(tile, rows, layer.inputs, static_cast<const E*>(layer.residual), layer.outputs, result);
      multiply_tile<K>(other, rows, layer.outputs, static_cast<const E*>(layer.map), layer.outputs, result);
      rectify<K>(result, rows * out_panels * W, tile);
    }
    const int64_t channels = job.blocks[job.count - 1].outputs;
    for (int64_t f = 0; f < range.valid; ++f)
      for (int64_t c = 0; c < channels; c += width) {
        const E* const from = tile + c / W * skeleton->nodes * block + f * W + c % W;
        Value<T> best = load(from);
        for (int64_t v = 1; v < skeleton->nodes; ++v) best = upper(best, load(from + v * block));
        store_some(static_cast<S*>(job.out) + (range.first + f) * channels + c, best, channels - c);
      }
  }
}

}  // namespace

void part_gcn(const PartGcn& job, int64_t begin, int64_t end, char* scratch) {
  SLR_SWITCH_PRODUCTS(job.dtype, tiles_of, job, begin, end, scratch)
}

}  // namespace SLR_ISA
}  // namespace slr
