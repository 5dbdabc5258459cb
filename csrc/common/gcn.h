// The graph network of a skeleton: what the kernels of its convolution, its maps and its passes are given.
//
// A tile is a few frames (graph kernels) or rows (maps) of every channel. Operands of its products lie in panels of W
// channels, [ceil(C / W)][rows][W], W being two vectors; a graph tile's rows are joint by joint: row = joint * F +
// frame.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

namespace slr {

constexpr int64_t kWidest = 32;  // channels of the widest panel; sizes of packed data are rounded up to it
constexpr int64_t kRowStep = 8;  // rows of a tile come in multiples of this
constexpr int64_t kTileBytes = 600 << 10;

inline int64_t rounded_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
inline int64_t wide(int64_t channels) { return rounded_up(channels, kWidest); }
inline int64_t compute_size(int32_t dtype) { return dtype == SLR_F64 ? 8 : 4; }

struct Edge {
  int32_t source, target;
  float coefficient;
};

// A partition is multiplied on the side with fewer joints: the sums over neighbours at the `nodes` that edges lead to
// (at_target), or the joints that edges start from, whose products are then added up.
struct Partition {
  bool at_target;
  int64_t count;
  const int32_t* nodes;  // of that side, in rising order
  int64_t edge_count;
  const Edge* edges;  // in the order of those nodes
};

struct Skeleton {
  int64_t nodes, partitions;
  const Partition* partition;
};

// Batch normalisation of a group, [groups][4][C] of the compute type: 1 / deviation, -mean / deviation, gamma, beta.
// `sums`, [2][groups][C]: of the gradient and of the gradient times the normalised value, over `count` values.
struct Norm {
  const void* norm;
  const void* sums;
  int64_t count;
};

struct Dropout {
  double probability;
  uint32_t base;  // of seed and site
};

// Rows are split into equal groups, groups into tiles; no tile lies in two groups.
struct Tiles {
  int64_t groups, rows, size;  // rows of a group, rows of a tile
  int64_t each() const { return (rows + size - 1) / size; }
  int64_t count() const { return groups * each(); }
};

struct PackWeights {  // [k, n] with any strides -> panels [ceil(n / W)][k (even)][W]
  int32_t dtype;
  const void* from;
  int64_t k, n, k_stride, n_stride;
  void* to;
};

struct GraphConv {
  int32_t dtype;
  Skeleton skeleton;
  int64_t inputs, outputs, frames;     // frames of a tile, a multiple of kRowStep
  Tiles tiles;                         // of frames
  const void *x, *weight, *node_bias;  // weight: packed, one matrix per partition; node_bias: [V][wide(outputs)]
  void *y, *partial;                   // partial, or null: [tiles][2][outputs], mean and centred squares
};

struct GraphConvGrad {
  int32_t dtype;
  Skeleton skeleton;
  int64_t inputs, outputs, frames;
  Tiles tiles;
  const void *grad, *y;
  Norm norm;                       // norm.norm is null where grad is already that of the convolution's result
  const void *x, *weight, *along;  // weight: packed transposes; along, or null, is added to grad_x
  void* grad_x;
};

struct Map {
  int32_t dtype;
  int64_t inputs, outputs, width;  // width: rows of a tile
  Tiles tiles;
  const void* x;
  const void* norm;  // or null: of x, followed by ReLU and dropout
  Dropout dropout;
  const void *weight, *bias;  // packed; [wide(outputs)]
  void *y, *partial;
};

struct MapGrad {
  int32_t dtype;
  int64_t inputs, outputs, width;
  Tiles tiles;
  const void *grad, *y;
  Norm norm;  // of y
  Dropout dropout;
  const void *x, *x_norm;
  Dropout x_dropout;
  const void* weight;      // packed [outputs, inputs]
  void *grad_x, *partial;  // partial, or null: [tiles][2][inputs], sums of the gradient and times the normalised x
};

struct Output {
  int32_t dtype;
  int64_t channels;
  Tiles tiles;
  const void *y, *norm;
  Dropout dropout;
  const void *residual, *residual_norm;
  void* out;
};

struct OutputGrad {
  int32_t dtype;
  int64_t channels;
  Tiles tiles;
  const void *grad, *y, *norm;
  Dropout dropout;
  const void *residual, *residual_norm;
  void *masked, *partial;  // partial: [tiles][2 or 4][channels]
};

struct FoldedBlock {
  int64_t inputs, outputs;
  bool identity;
  const void *weight, *node_bias, *map, *bias, *residual;  // packed; biases [V][wide], [wide]; residual may be null
};

struct PartGcn {
  int32_t dtype;
  const FoldedBlock* blocks;
  int64_t count, joint_blocks;
  Skeleton skeleton, pooled;
  const int32_t* members;
  int64_t most_members, inputs, widest, frames;
  Tiles tiles;
  const void* x;
  void* out;
};

struct PartMax {
  int32_t dtype;
  int64_t nodes, channels, parts, most;
  const int32_t* members;
  const void* x;
  void* pooled;
  uint8_t* chosen;
};

struct PartMaxGrad {
  int32_t dtype;
  int64_t nodes, channels, parts, most;
  const int32_t* members;
  const void* grad;
  const uint8_t* chosen;
  void* grad_x;
};

// `sums` of a gradient, over a thread's tiles and zero before the first: of the weights, [matrices][ceil(n / W)]
// [wide(k)][W], then of the bias, [V or 1][wide(outputs)].
SLR_DECLARE_KERNEL(void pack_weights(const PackWeights& job, int64_t begin, int64_t end);
                   void unpack_weights(const PackWeights& job, int64_t begin, int64_t end);
                   void graph_conv(const GraphConv& job, int64_t begin, int64_t end, char* scratch);
                   void graph_conv_grad(const GraphConvGrad& job, int64_t begin, int64_t end, char* scratch,
                                        void* sums);
                   void gcn_map(const Map& job, int64_t begin, int64_t end, char* scratch);
                   void gcn_map_grad(const MapGrad& job, int64_t begin, int64_t end, char* scratch, void* sums);
                   void gcn_output(const Output& job, int64_t begin, int64_t end);
                   void gcn_output_grad(const OutputGrad& job, int64_t begin, int64_t end);
                   void part_gcn(const PartGcn& job, int64_t begin, int64_t end, char* scratch);
                   void part_max(const PartMax& job, int64_t begin, int64_t end);
                   void part_max_grad(const PartMaxGrad& job, int64_t begin, int64_t end))

}  // namespace slr
