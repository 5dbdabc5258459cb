#include "cpu/graph_tiles.h"

namespace slr {
namespace SLR_ISA {
namespace {

template <class K, class S>
void tiles_of(const GraphConv& job, int64_t begin, int64_t end, char* scratch) {
  using T = typename K::Compute;
  using E = typename K::Element;
  constexpr int width = Simd<T>::width;
  constexpr int64_t W = kPanel<T>;
  const int64_t nodes = job.skeleton.nodes, frames = job.tiles.size, rows = nodes * frames, block = frames * W;
  T* const result = reinterpret_cast<T*>(scratch);
  E* const tile = reinterpret_cast<E*>(result + rows * wide(job.outputs));
  E* const gathered = tile + rows * wide(job.inputs);
  for (int64_t t = begin; t < end; ++t) {
    const Range range = range_of(job.tiles, t);
    load_frames<K>(static_cast<const S*>(job.x) + range.first * nodes * job.inputs, nodes, job.inputs, frames,
                   range.valid, tile);
    fill_tile(job.node_bias, true, nodes, block, job.outputs, result);
    convolve<K>(job.skeleton, tile, frames, job.inputs, job.outputs, static_cast<const E*>(job.weight), gathered,
                result);
    S* const y = static_cast<S*>(job.y) + range.first * nodes * job.outputs;
    for (int64_t f = 0; f < range.valid; ++f)
      for (int64_t v = 0; v < nodes; ++v)
        for (int64_t c = 0; c < job.outputs; c += width) {
          T* const at = result + ((c / W * nodes + v) * frames + f) * W + c % W;
          write(at, as_stored<S>(read(at)));  // statistics are those of the stored values
          store_some(y + (f * nodes + v) * job.outputs + c, read(at), job.outputs - c);
        }
    if (job.partial == nullptr) continue;
    T* const partial = static_cast<T*>(job.partial) + t * 2 * job.outputs;
    for (int64_t c = 0; c < job.outputs; c += width) {
      const T* const column = result + c / W * nodes * block + c % W;
      Spread<T> spread;
      for (int64_t v = 0; v < nodes; ++v) spread.add_to_mean(column + v * block, range.valid);
      spread.finish_mean(nodes * range.valid);
      for (int64_t v = 0; v < nodes; ++v) spread.add(column + v * block, range.valid);
      spread.finish(nodes * range.valid);
      store_some(partial + c, spread.mean, job.outputs - c);
      store_some(partial + job.outputs + c, spread.squares, job.outputs - c);
    }
  }
}

// The gradient of the convolution's result: through the batch normalisation behind it, if there is one.
template <class K, class S>
void load_gradient(const GraphConvGrad& job, const Range& range, typename K::Compute* chain,
                   typename K::Compute* tile) {
  using T = typename K::Compute;
  const int64_t nodes = job.skeleton.nodes, frames = job.tiles.size, first = range.first * nodes * job.outputs;
  if (job.norm.norm == nullptr)
    return load_frames<Plain<T>>(static_cast<const S*>(job.grad) + first, nodes, job.outputs, frames, range.valid,
                                 tile);
  constexpr int width = Simd<T>::width;
  constexpr int64_t W = kPanel<T>;
  const S *grad = static_cast<const S*>(job.grad) + first, *y = static_cast<const S*>(job.y) + first;
  prepare(job.norm, range.group, job.tiles.groups, job.outputs, chain);
  std::memset(tile, 0, panels_of<T>(job.outputs) * nodes * frames * W * sizeof(T));
  for (int64_t f = 0; f < range.valid; ++f)
    for (int64_t v = 0; v < nodes; ++v, grad += job.outputs, y += job.outputs)
      for (int64_t c = 0; c < job.outputs; c += width) {
        const int64_t some = job.outputs - c;
        write(tile + ((c / W * nodes + v) * frames + f) * W + c % W,
              through(chain, job.outputs, c, load_some(grad + c, some), load_some(y + c, some)));
      }
}

template <class K, class S>
void tiles_of_grad(const GraphConvGrad& job, int64_t begin, int64_t end, char* scratch, void* total) {
  using T = typename K::Compute;
  using E = typename K::Element;
  constexpr int width = Simd<T>::width;
  constexpr int64_t W = kPanel<T>;
  const Skeleton& skeleton = job.skeleton;
  const int64_t nodes = skeleton.nodes, frames = job.tiles.size, rows = nodes * frames, block = frames * W;
  const int64_t in_panels = panels_of<T>(job.inputs), out_panels = panels_of<T>(job.outputs);
  const int64_t even = rounded_up(job.outputs, 2) * W;
  T* const grad = reinterpret_cast<T*>(scratch);      // of the result
  T* const result = grad + rows * wide(job.outputs);  // of x
  T* const chain = result + rows * wide(job.inputs);
  // each operand as rows and as columns, which are one where the elements are not paired
  E* const tile = reinterpret_cast<E*>(chain + kChain * wide(job.outputs));
  E* const gathered = tile + rows * wide(job.inputs);
  E* const more = gathered + rows * (job.inputs > job.outputs ? wide(job.inputs) : wide(job.outputs));
  E *tile_columns = tile, *gathered_columns = gathered, *grad_rows, *grad_columns;
  if constexpr (K::pairs) {
    tile_columns = more;
    gathered_columns = tile_columns + (gathered - tile);
    grad_rows = gathered_columns + (more - gathered);
    grad_columns = grad_rows + rows * wide(job.outputs);
  } else {
    grad_rows = grad_columns = grad;
  }
  T* const weight_sums = static_cast<T*>(total);
  T* const bias_sums = weight_sums + skeleton.partitions * out_panels * wide(job.inputs) * W;
  T* const bias_rest = bias_sums + nodes * wide(job.outputs);
  for (int64_t t = begin; t < end; ++t) {
    const Range range = range_of(job.tiles, t);
    const int64_t first = range.first * nodes * job.inputs;
    load_frames<K>(static_cast<const S*>(job.x) + first, nodes, job.inputs, frames, range.valid, tile);
    load_gradient<K, S>(job, range, chain, grad);
    if (job.along != nullptr)
      load_frames<Plain<T>>(static_cast<const S*>(job.along) + first, nodes, job.inputs, frames, range.valid, result);
    else
      std::memset(result, 0, rows * in_panels * W * sizeof(T));
    if constexpr (K::pairs) {
      as_rows<K>(grad, rows * out_panels * W, grad_rows);
      weave<K>(grad_rows, rows * out_panels, grad_columns);
      weave<K>(tile, rows * in_panels, tile_columns);
    }
    for (int64_t v = 0; v < nodes; ++v)
      for (int64_t c = 0; c < out_panels * W; c += width)
        add_column(grad + (c / W * nodes + v) * block + c % W, frames, bias_sums + v * wide(job.outputs) + c,
                   bias_rest + v * wide(job.outputs) + c);
    const E* weight = static_cast<const E*>(job.weight);
    T* sums_of = weight_sums;
    for (int64_t p = 0; p < skeleton.partitions; ++p) {
      const Partition& partition = skeleton.partition[p];
      if (partition.at_target)
        gather(partition, tile, nodes, in_panels, block, gathered);
      else
        gather(partition, grad, nodes, out_panels, block, gathered);
      if constexpr (K::pairs)
        weave<K>(gathered, (partition.at_target ? in_panels : out_panels) * partition.count * frames, gathered_columns);
      for (int64_t j = 0; j < in_panels; ++j)
        for (int64_t i = 0, edge = 0; i < partition.count; ++i) {
          const int64_t first_edge = edge, node = partition.nodes[i];
          T* const panel = result + j * nodes * block;
          for (int64_t f = 0; f < frames; f += kSome) {
            Sums<T> sums;
            clear(sums);
            if (partition.at_target) {
              multiply<K>(grad_rows, rows, node * frames + f, job.outputs, weight + j * even, sums);
              edge = first_edge;
              scatter(partition, &edge, i, sums, block, panel + f * W);
            } else {
              multiply<K>(gathered, partition.count * frames, i * frames + f, job.outputs, weight + j * even, sums);
              add_to(panel + node * block + f * W, sums);
            }
          }
        }
      const E* const left = partition.at_target ? gathered_columns : tile_columns;
      const E* const right = partition.at_target ? grad_columns : gathered_columns;
      const int64_t left_joints = partition.at_target ? partition.count : nodes;
      const int64_t right_joints = partition.at_target ? nodes : partition.count;
      for (int64_t j = 0; partition.count > 0 && j < out_panels; ++j)
        for (int64_t k = 0; k < rounded_up(job.inputs, kSome); k += kSome) {
          Sums<T> sums;
          clear(sums);
          for (int64_t i = 0; i < partition.count; ++i) {
            const int64_t node = partition.nodes[i];
            multiply_columns<K>(left + (k / W * left_joints + (partition.at_target ? i : node)) * block, k % W, frames,
                                right + (j * right_joints + (partition.at_target ? node : i)) * block, sums);
          }
          add_to(sums_of + (j * wide(job.inputs) + k) * W, sums);
        }
      weight += packed<T>(job.outputs, job.inputs);
      sums_of += out_panels * wide(job.inputs) * W;
    }
    S* const grad_x = static_cast<S*>(job.grad_x) + first;
    for (int64_t f = 0; f < range.valid; ++f)
      for (int64_t v = 0; v < nodes; ++v)
        for (int64_t c = 0; c < job.inputs; c += width)
          store_some(grad_x + (f * nodes + v) * job.inputs + c,
                     read(result + ((c / W * nodes + v) * frames + f) * W + c % W), job.inputs - c);
  }
}

template <class K, class S>
void pack(const PackWeights& job, int64_t begin, int64_t end) {
  using T = typename K::Compute;
  using E = typename K::Element;
  constexpr int64_t W = kPanel<T>, some = 64;
  const int64_t even = rounded_up(job.k, 2);
  T rows[some * W];
  E elements[some * W];
  for (int64_t j = begin; j < end; ++j)
    for (int64_t k = 0; k < even; k += some) {
      const T* const from = static_cast<const T*>(job.from) + k * job.k_stride + j * W * job.n_stride;
      const int64_t depth = least(some, job.k - k), width = least(W, job.n - j * W), count = least(some, even - k);
      if (depth < some || width < W) std::memset(rows, 0, sizeof rows);
      if (job.n_stride == 1)
        for (int64_t r = 0; r < depth; ++r) std::memcpy(rows + r * W, from + r * job.k_stride, width * sizeof(T));
      else
        for (int64_t i = 0; i < width; ++i)
          for (int64_t r = 0; r < depth; ++r) rows[r * W + i] = from[r * job.k_stride + i * job.n_stride];
      E* const to = static_cast<E*>(job.to) + (j * even + k) * W;
      as_rows<K>(rows, count * W, K::pairs ? elements : to);
      if constexpr (K::pairs) weave<K>(elements, count, to);
    }
}

template <class T>
void unpack(const PackWeights& job, int64_t begin, int64_t end) {
  constexpr int64_t W = kPanel<T>;
  const T* const from = static_cast<const T*>(job.from);
  T* const to = static_cast<T*>(job.to);
  for (int64_t k = begin; k < end; ++k)
    for (int64_t n = 0; n < job.n; ++n)
      to[k * job.k_stride + n * job.n_stride] = from[(n / W * wide(job.k) + k) * W + n % W];
}

}  // namespace

void graph_conv(const GraphConv& job, int64_t begin, int64_t end, char* scratch) {
  SLR_SWITCH_PRODUCTS(job.dtype, tiles_of, job, begin, end, scratch)
}

void graph_conv_grad(const GraphConvGrad& job, int64_t begin, int64_t end, char* scratch, void* sums) {
  SLR_SWITCH_PRODUCTS(job.dtype, tiles_of_grad, job, begin, end, scratch, sums)
}

// Panels [begin, end) of a matrix.
void pack_weights(const PackWeights& job, int64_t begin, int64_t end) {
  SLR_SWITCH_PRODUCTS(job.dtype, pack, job, begin, end)
}

// Rows [begin, end) of the matrix; k_stride and n_stride are those of `to`.
void unpack_weights(const PackWeights& job, int64_t begin, int64_t end) {
  job.dtype == SLR_F64 ? unpack<double>(job, begin, end) : unpack<float>(job, begin, end);
}

}  // namespace SLR_ISA
}  // namespace slr
