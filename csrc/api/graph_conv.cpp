// slr_graph_conv_cpu and its gradient: argument checks, packing and tiles.
#include "api/gcn.h"

namespace slr {
namespace {

// The bias of every node, [V][wide(outputs)]: sum over its incoming edges of coefficient and partition's bias.
template <class T>
void node_bias(const int32_t* edges, const float* coefficients, int64_t count, int64_t outputs, const void* bias,
               void* to) {
  for (int64_t e = 0; bias != nullptr && e < count; ++e) {
    const T* const from = static_cast<const T*>(bias) + edges[3 * e] * outputs;
    T* const of_node = static_cast<T*>(to) + edges[3 * e + 2] * wide(outputs);
    for (int64_t c = 0; c < outputs; ++c) of_node[c] += static_cast<T>(coefficients[e]) * from[c];
  }
}

// The gradient of the partitions' biases from that of the nodes', [V][wide(outputs)].
template <class T>
void partition_bias(const Skeleton& skeleton, int64_t outputs, const void* sums, void* bias) {
  for (int64_t p = 0; p < skeleton.partitions; ++p)
    for (int64_t c = 0; c < outputs; ++c) {
      double sum = 0;
      for (int64_t e = 0; e < skeleton.partition[p].edge_count; ++e) {
        const Edge& edge = skeleton.partition[p].edges[e];
        sum += static_cast<double>(edge.coefficient) * static_cast<const T*>(sums)[edge.target * wide(outputs) + c];
      }
      static_cast<T*>(bias)[p * outputs + c] = static_cast<T>(sum);
    }
}

}  // namespace
}  // namespace slr

slr_status slr_graph_conv_cpu(int32_t dtype, const void* x, int64_t rows, int64_t nodes, int64_t inputs,
                              int64_t outputs, int64_t partitions, const int32_t* edges, const float* coefficients,
                              int64_t edge_count, const void* weight, const void* bias, void* y, int64_t groups,
                              void* moments, int32_t threads) {
  using namespace slr;
  const char* const op = "graph_conv_cpu";
  if (const slr_status status = check_dtype(op, dtype)) return status;
  const int64_t size = size_of(dtype), compute = compute_size(dtype);
  if (const slr_status status = check_edges(op, edges, coefficients, edge_count, nodes, partitions)) return status;
  if (const slr_status status = check_groups(op, rows, groups)) return status;
  if (const slr_status status = check_product(op, rows, nodes)) return status;
  if (const slr_status status = check_channels(op, {inputs, outputs})) return status;
  if (const slr_status status = check_buffers(op, {{"x", x, rows * nodes, inputs, size},
                                                   {"weight", weight, partitions * inputs, outputs, compute},
                                                   {"bias", bias, partitions, outputs, compute, true},
                                                   {"y", y, rows * nodes, outputs, size},
                                                   {"moments", moments, 2 * groups, outputs, compute, true}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  if (moments != nullptr) std::memset(moments, 0, 2 * groups * outputs * compute);
  if (rows == 0 || outputs == 0) return SLR_OK;
  const Graph graph(edges, coefficients, edge_count, nodes, partitions, inputs <= outputs);
  const int64_t row = nodes * (wide(inputs) + wide(outputs)) * compute;
  Tiles tiles{groups, rows / groups, 0};
  tiles.size = tile_size(tiles.rows, row);
  GraphConv job = {dtype, graph.skeleton(), inputs, outputs, tiles, x, nullptr, nullptr, y, nullptr};
  void *packed = nullptr, *widened = nullptr, *partial = nullptr;
  const auto lay_out = [&](char* data) {
    Parts parts(data);
    job.weight = packed = parts.take<char>(partitions * packed_bytes(dtype, inputs, outputs));
    job.node_bias = widened = parts.take<char>(nodes * wide(outputs) * compute);
    partial = parts.take<char>(moments == nullptr ? 0 : count_of(tiles) * 2 * outputs * compute);
    job.partial = moments == nullptr ? nullptr : partial;
    return parts.size();
  };
  const Memory memory(lay_out(nullptr));
  if (memory.data() == nullptr || graph.empty()) return out_of_memory(op);
  lay_out(memory.data());
  pack_matrices(isa, dtype, weight, partitions, inputs, outputs, false, packed, threads);
  std::memset(widened, 0, nodes * wide(outputs) * compute);
  (dtype == SLR_F64 ? node_bias<double> : node_bias<float>)(edges, coefficients, edge_count, outputs, bias, widened);
  const auto kernel = SLR_SELECT_KERNEL(isa, graph_conv);
  const int64_t scratch = tiles.size * nodes * (wide(outputs) + 2 * wide(inputs)) * compute;
  return for_tiles(
      op, dtype, count_of(tiles), threads, scratch, 0,
      [&](int64_t begin, int64_t end, char* own, void*) { kernel(job, begin, end, own); },
      [&](void*) {
        if (moments != nullptr) merge_moments(dtype, partial, tiles, nodes, outputs, moments);
      });
}

slr_status slr_graph_conv_grad_cpu(int32_t dtype, const void* grad, const void* y, const void* norm, const void* sums,
                                   int64_t groups, const void* x, int64_t rows, int64_t nodes, int64_t inputs,
                                   int64_t outputs, int64_t partitions, const int32_t* edges, const float* coefficients,
                                   int64_t edge_count, const void* weight, const void* along, void* grad_x,
                                   void* grad_weight, void* grad_bias, int32_t threads) {
  using namespace slr;
  const char* const op = "graph_conv_grad_cpu";
  if (const slr_status status = check_dtype(op, dtype)) return status;
  const int64_t size = size_of(dtype), compute = compute_size(dtype);
  if (const slr_status status = check_edges(op, edges, coefficients, edge_count, nodes, partitions)) return status;
  if (const slr_status status = check_groups(op, rows, groups)) return status;
  if (const slr_status status = check_product(op, rows, nodes)) return status;
  if (const slr_status status = check_channels(op, {inputs, outputs})) return status;
  const bool plain = norm == nullptr;
  if (const slr_status status = check_buffers(op, {{"grad", grad, rows * nodes, outputs, size},
                                                   {"y", y, rows * nodes, outputs, size, plain},
                                                   {"norm", norm, 4 * groups, outputs, compute, true},
                                                   {"sums", sums, 2 * groups, outputs, compute, plain},
                                                   {"x", x, rows * nodes, inputs, size},
                                                   {"weight", weight, partitions * inputs, outputs, compute},
                                                   {"along", along, rows * nodes, inputs, size, true},
                                                   {"grad_x", grad_x, rows * nodes, inputs, size},
                                                   {"grad_weight", grad_weight, partitions * inputs, outputs, compute},
                                                   {"grad_bias", grad_bias, partitions, outputs, compute}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  if (inputs * outputs > 0) std::memset(grad_weight, 0, partitions * inputs * outputs * compute);
  if (outputs > 0) std::memset(grad_bias, 0, partitions * outputs * compute);
  if (rows == 0) return SLR_OK;
  const Graph graph(edges, coefficients, edge_count, nodes, partitions, inputs <= outputs);
  const int64_t row = nodes * (2 * wide(inputs) + 2 * wide(outputs)) * compute;
  Tiles tiles{groups, rows / groups, 0};
  tiles.size = tile_size(tiles.rows, row);
  const Memory packed(partitions * packed_bytes(dtype, outputs, inputs));
  if (packed.data() == nullptr || graph.empty()) return out_of_memory(op);
  pack_matrices(isa, dtype, weight, partitions, outputs, inputs, true, packed.data(), threads);
  const GraphConvGrad job = {
      dtype, graph.skeleton(), inputs, outputs, tiles, grad, y, {norm, sums, rows / groups * nodes},
      x,     packed.data(),    along,  grad_x};
  // gradients of both sides, x, and sums over neighbours of either; in pairs, half as large, also as columns
  const int64_t of_row =
      (paired(isa, dtype) ? 2 : 1) * wide(outputs) + 2 * wide(inputs) + std::max(wide(inputs), wide(outputs));
  const int64_t scratch = (tiles.size * nodes * of_row + kChain * wide(outputs)) * compute;
  const auto kernel = SLR_SELECT_KERNEL(isa, graph_conv_grad);
  const auto unpack = SLR_SELECT_KERNEL(isa, unpack_weights);
  const int64_t panel = panel_of(isa, dtype), matrix = (outputs + panel - 1) / panel * panel * wide(inputs) * compute;
  return for_tiles(
      op, dtype, count_of(tiles), threads, scratch, partitions * matrix + 2 * nodes * wide(outputs) * compute,
      [&](int64_t begin, int64_t end, char* own, void* total) { kernel(job, begin, end, own, total); },
      [&](void* total) {
        for (int64_t p = 0; p < partitions; ++p)
          unpack({dtype, static_cast<char*>(total) + p * matrix, inputs, outputs, outputs, 1,
                  static_cast<char*>(grad_weight) + p * inputs * outputs * compute},
                 0, inputs);
        char* const of_nodes = static_cast<char*>(total) + partitions * matrix;
        add_rest(dtype, of_nodes, nodes * wide(outputs));
        (dtype == SLR_F64 ? partition_bias<double> : partition_bias<float>)(graph.skeleton(), outputs, of_nodes,
                                                                            grad_bias);
      });
}
