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
constexpr int64_t kChain = 5;  // vectors of a normalisation that is made ready for its gradient

// Static, as this header is part of files for every instruction set (see isa.h).
static inline int64_t rounded_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
static inline int64_t wide(int64_t channels) { return rounded_up(channels, kWidest); }
static inline int64_t compute_size(int32_t dtype) { return dtype == SLR_F64 ? 8 : 4; }

// W: channels of a panel.
static constexpr int64_t panel_of(Isa isa, int32_t dtype) {
  return (isa == Isa::base ? 32 : isa == Isa::avx2 ? 64 : 128) / (dtype == SLR_F64 ? 8 : 4);
}

// Whether operands are bfloat16, multiplied in pairs.
static inline bool paired(Isa isa, int32_t dtype) { return isa == Isa::avx512bf16 && dtype == SLR_BF16; }

// The hash of dropout (slrfast/reference/dropout.py).
static inline uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

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
  int64_t groups, rows, size;  // rows of a group, rows of a tile (a multiple of kRowStep)
};
static inline int64_t tiles_of_group(const Tiles& tiles) { return (tiles.rows + tiles.size - 1) / tiles.size; }
static inline int64_t count_of(const Tiles& tiles) { return tiles.groups * tiles_of_group(tiles); }

// Activations x, y, grad and results have the storage type `dtype`, all else its compute type; shapes are compact, R
// being the rows (frames) of all groups, V the joints and C channels.

struct PackWeights {  // [k, n] with any strides -> panels [ceil(n / W)][k (even)][W]
  int32_t dtype;
  const void* from;
  int64_t k, n, k_stride, n_stride;
  void* to;
};

struct GraphConv {
  int32_t dtype;
  Skeleton skeleton;
  int64_t inputs, outputs;
  Tiles tiles;            // of frames
  const void* x;          // [R][V][inputs]
  const void* weight;     // packed, one matrix per partition
  const void* node_bias;  // [V][wide(outputs)]
  void* y;                // [R][V][outputs]
  void* partial;          // or null: [tiles][2][outputs], mean and centred squares
};

struct GraphConvGrad {
  int32_t dtype;
  Skeleton skeleton;
  int64_t inputs, outputs;
  Tiles tiles;           // of frames
  const void *grad, *y;  // [R][V][outputs]
  Norm norm;             // norm.norm is null where grad is already that of the convolution's result
  const void* x;         // [R][V][inputs]
  const void* weight;    // packed transposes
  const void* along;     // [R][V][inputs] or null: added to grad_x, whose buffer it may be
  void* grad_x;          // [R][V][inputs]
};

struct Map {
  int32_t dtype;
  int64_t inputs, outputs;
  Tiles tiles;       // of rows, R of them in all
  const void* x;     // [R][inputs]
  const void* norm;  // or null: of x, followed by ReLU and dropout
  Dropout dropout;
  const void *weight, *bias;  // packed; [wide(outputs)]
  void *y, *partial;          // [R][outputs]; [tiles][2][outputs], mean and centred squares
};

struct MapGrad {
  int32_t dtype;
  int64_t inputs, outputs;
  Tiles tiles;           // of rows
  const void *grad, *y;  // [R][outputs]; grad: before the dropout behind the norm of y
  Norm norm;             // of y
  Dropout dropout;
  const void *x, *x_norm;  // [R][inputs]; as `norm` of Map
  Dropout x_dropout;
  const void* weight;      // packed [outputs, inputs]
  void *grad_x, *partial;  // partial, or null: [tiles][2][inputs], sums of the gradient and times the normalised x
};

struct Output {
  int32_t dtype;
  int64_t channels;
  Tiles tiles;           // of rows
  const void *y, *norm;  // [R][channels]; [groups][4][channels] as in Norm
  Dropout dropout;
  const void *residual, *residual_norm;  // as y and norm; each may be null
  void* out;                             // [R][channels]
};

struct OutputGrad {
  int32_t dtype;
  int64_t channels;
  Tiles tiles;
  const void *grad, *y, *norm;  // grad: of out, [R][channels]; the others as in Output
  Dropout dropout;
  const void *residual, *residual_norm;
  void* masked;   // [R][channels]: grad, or 0 where out is; it passes where out is NaN
  void* partial;  // [tiles][2 or 4][channels]: the sums of Norm for norm and, if there is one, for residual_norm
};

struct FoldedBlock {
  int64_t inputs, outputs;
  bool identity;                                           // the residual is x, and `residual` null
  const void *weight, *node_bias, *map, *bias, *residual;  // packed; biases [V][wide], [wide]; residual may be null
};

struct PartGcn {
  int32_t dtype;
  const FoldedBlock* blocks;
  int64_t count, joint_blocks;  // of all blocks, the first so many on the joints
  Skeleton skeleton, pooled;    // of the joints, of the parts
  const int32_t* members;       // [parts][most]: joints
  int64_t most, inputs;
  int64_t room;   // elements of the largest tile
  Tiles tiles;    // of frames
  const void* x;  // [R][V][inputs]
  void* out;      // [R][outputs of the last block]
};

struct PartMax {
  int32_t dtype;
  int64_t nodes, channels, parts, most;
  const int32_t* members;  // [parts][most]: nodes, filled up with the part's first
  const void* x;           // [R][nodes][channels]
  void* pooled;            // [R][parts][channels]
  uint8_t* chosen;         // [R][parts][channels]: the first of the part's members that has the maximum
};

struct PartMaxGrad {
  int32_t dtype;
  int64_t nodes, channels, parts, most;
  const int32_t* members;
  const void* grad;  // [R][parts][channels]
  const uint8_t* chosen;
  void* grad_x;  // [R][nodes][channels]
};

// `sums` of a gradient, over a thread's tiles and zero before the first: of the weights, [matrices][ceil(n / W)]
// [wide(k)][W], then of the bias, [2][V or 1][wide(outputs)]: sums, and what their rounding lost.
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
