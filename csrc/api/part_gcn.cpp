// slr_part_gcn_cpu: argument checks, packing and tiles.
#include "api/gcn.h"

slr_status slr_part_gcn_cpu(int32_t dtype, const void* x, int64_t rows, int64_t nodes, int64_t inputs,
                            int64_t partitions, const slr_folded_block* blocks, int64_t count, int64_t joint_blocks,
                            const int32_t* edges, const float* coefficients, int64_t edge_count, const int32_t* members,
                            int64_t parts, int64_t most, const int32_t* pooled_edges, const float* pooled_coefficients,
                            int64_t pooled_edge_count, void* out, int32_t threads) {
  using namespace slr;
  const char* const op = "part_gcn_cpu";
  if (const slr_status status = check_dtype(op, dtype)) return status;
  if (const slr_status status = check_edges(op, edges, coefficients, edge_count, nodes, partitions)) return status;
  if (const slr_status status =
          check_edges(op, pooled_edges, pooled_coefficients, pooled_edge_count, parts, partitions))
    return status;
  const int64_t size = size_of(dtype), compute = compute_size(dtype);
  if (joint_blocks < 1 || joint_blocks >= count || rows < 0)
    return fail(SLR_INVALID_ARGUMENT, "%s: %lld rows through %lld of %lld blocks on the joints", op, (long long)rows,
                (long long)joint_blocks, (long long)count);
  const int64_t words = static_cast<int64_t>(sizeof(slr_folded_block)) / 8;
  if (const slr_status status = check_buffers(op, {{"blocks", blocks, count, words, 8}})) return status;
  if (const slr_status status = check_parts(op, rows, nodes, inputs, members, parts, most)) return status;
  if (const slr_status status = check_buffers(op, {{"x", x, rows * nodes, inputs, size}})) return status;
  int64_t channels = inputs, most_values = 0, bytes = 0;
  for (int64_t i = 0; i < count; ++i) {
    const slr_folded_block& block = blocks[i];
    const int64_t joints = i < joint_blocks ? nodes : parts;
    if (block.inputs != channels || block.outputs < 1 || (block.identity && block.inputs != block.outputs))
      return fail(SLR_INVALID_ARGUMENT, "%s: block %lld maps %lld to %lld channels, given %lld", op, (long long)i,
                  (long long)block.inputs, (long long)block.outputs, (long long)channels);
    if (const slr_status status = check_channels(op, {block.inputs, block.outputs})) return status;
    if (const slr_status status =
            check_buffers(op, {{"weight", block.weight, partitions * block.inputs, block.outputs, compute},
                               {"node_bias", block.node_bias, joints, block.outputs, compute},
                               {"map", block.map, block.outputs, block.outputs, compute},
                               {"bias", block.bias, block.outputs, 1, compute},
                               {"residual", block.residual, block.outputs, block.inputs, compute, true}}))
      return status;
    if (block.identity && block.residual != nullptr)
      return fail(SLR_INVALID_ARGUMENT, "%s: block %lld has a residual map besides identity", op, (long long)i);
    bytes += partitions * packed_bytes(dtype, block.inputs, block.outputs) +
             packed_bytes(dtype, block.outputs, block.outputs) + packed_bytes(dtype, block.inputs, block.outputs) +
             (joints + 1) * wide(block.outputs) * compute + 5 * 64;
    const int64_t before = i < joint_blocks ? nodes : i == joint_blocks ? std::max(nodes, parts) : parts;
    most_values = std::max(most_values, std::max(before * wide(block.inputs), joints * wide(block.outputs)));
    channels = block.outputs;
  }
  if (const slr_status status = check_buffers(op, {{"out", out, rows, channels, size}})) return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  if (rows == 0) return SLR_OK;
  const Graph graph(edges, coefficients, edge_count, nodes, partitions, true);
  const Graph pooled(pooled_edges, pooled_coefficients, pooled_edge_count, parts, partitions, true);
  const Tiles tiles{1, rows, tile_size(rows, 2 * most_values * compute)};
  const int64_t room = tiles.size * most_values;
  const Memory memory(bytes + count * static_cast<int64_t>(sizeof(FoldedBlock)) + 64);
  if (memory.data() == nullptr || graph.empty() || pooled.empty()) return out_of_memory(op);
  Parts memory_parts(memory.data());
  auto* const folded = memory_parts.take<FoldedBlock>(count);
  for (int64_t i = 0; i < count; ++i) {
    const slr_folded_block& block = blocks[i];
    const int64_t k = block.inputs, n = block.outputs, joints = i < joint_blocks ? nodes : parts;
    char* const weight = memory_parts.take<char>(partitions * packed_bytes(dtype, k, n));
    char* const map = memory_parts.take<char>(packed_bytes(dtype, n, n));
    char* const residual = memory_parts.take<char>(packed_bytes(dtype, k, n));
    char* const node_bias = memory_parts.take<char>(joints * wide(n) * compute);
    char* const bias = memory_parts.take<char>(wide(n) * compute);
    pack_matrices(isa, dtype, block.weight, partitions, k, n, false, weight, threads);
    pack_matrices(isa, dtype, block.map, 1, n, n, true, map, threads);
    if (block.residual != nullptr) pack_matrices(isa, dtype, block.residual, 1, k, n, true, residual, threads);
    for (int64_t v = 0; v < joints; ++v)
      widen(dtype, static_cast<const char*>(block.node_bias) + v * n * compute, n, node_bias + v * wide(n) * compute);
    widen(dtype, block.bias, n, bias);
    folded[i] = {
        k, n, block.identity != 0, weight, node_bias, map, bias, block.residual == nullptr ? nullptr : residual};
  }
  const PartGcn job = {dtype, folded, count, joint_blocks, graph.skeleton(), pooled.skeleton(), members, most, inputs,
                       room,  tiles,  x,     out};
  const auto kernel = SLR_SELECT_KERNEL(isa, part_gcn);
  return for_items(op, count_of(tiles), threads, 3 * room * compute + 64,
                   [&](int64_t begin, int64_t end, void* own) { kernel(job, begin, end, static_cast<char*>(own)); });
}
