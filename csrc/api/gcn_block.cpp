// The passes of slr_gcn_*_cpu: argument checks, packing and tiles.
#include "api/gcn.h"

namespace slr {
namespace {

slr_status check_dropout(const char* op, double dropout, const int64_t* seed) {
  if (!(dropout >= 0 && dropout <= 1))
    return fail(SLR_INVALID_ARGUMENT, "%s: dropout must be in [0, 1], got %g", op, dropout);
  return check_buffers(op, {{"seed", seed, dropout > 0, 1, 8}});
}

Dropout dropout_at(double dropout, const int64_t* seed, int32_t site) {
  return {dropout, dropout > 0 ? dropout_base(*seed, site) : 0};
}

}  // namespace
}  // namespace slr

slr_status slr_gcn_map_cpu(int32_t dtype, const void* x, int64_t rows, int64_t inputs, int64_t outputs, int64_t groups,
                           const void* norm, double dropout, const int64_t* seed, const void* weight, const void* bias,
                           void* y, void* moments, int32_t threads) {
  using namespace slr;
  const char* const op = "gcn_map_cpu";
  if (const slr_status status = check_dtype(op, dtype)) return status;
  const int64_t size = size_of(dtype), compute = compute_size(dtype);
  if (const slr_status status = check_groups(op, rows, groups)) return status;
  if (const slr_status status = check_channels(op, {inputs, outputs})) return status;
  if (const slr_status status = check_dropout(op, dropout, seed)) return status;
  if (const slr_status status = check_buffers(op, {{"x", x, rows, inputs, size},
                                                   {"norm", norm, 4 * groups, inputs, compute, true},
                                                   {"weight", weight, outputs, inputs, compute},
                                                   {"bias", bias, outputs, 1, compute},
                                                   {"y", y, rows, outputs, size},
                                                   {"moments", moments, 2 * groups, outputs, compute}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  if (outputs > 0) std::memset(moments, 0, 2 * groups * outputs * compute);
  if (rows == 0 || outputs == 0) return SLR_OK;
  Tiles tiles{groups, rows / groups, 0};
  tiles.size = tile_size(tiles.rows, (wide(inputs) + wide(outputs)) * compute);
  Map job = {dtype,   inputs,  outputs, tiles,  x, norm, dropout_at(norm == nullptr ? 0 : dropout, seed, 0),
             nullptr, nullptr, y,       nullptr};
  void *packed = nullptr, *widened = nullptr;
  const auto lay_out = [&](char* data) {
    Parts parts(data);
    job.weight = packed = parts.take<char>(packed_bytes(dtype, inputs, outputs));
    job.bias = widened = parts.take<char>(wide(outputs) * compute);
    job.partial = parts.take<char>(count_of(tiles) * 2 * outputs * compute);
    return parts.size();
  };
  const Memory memory(lay_out(nullptr));
  if (memory.data() == nullptr) return out_of_memory(op);
  lay_out(memory.data());
  pack_matrices(isa, dtype, weight, 1, inputs, outputs, true, packed, threads);
  widen(dtype, bias, outputs, widened);
  const auto kernel = SLR_SELECT_KERNEL(isa, gcn_map);
  const int64_t scratch = (tiles.size * (wide(outputs) + wide(inputs)) + 2 * wide(inputs)) * compute;
  return for_tiles(
      op, dtype, count_of(tiles), threads, scratch, 0,
      [&](int64_t begin, int64_t end, char* own, void*) { kernel(job, begin, end, own); },
      [&](void*) { merge_moments(dtype, job.partial, tiles, 1, outputs, moments); });
}

slr_status slr_gcn_map_grad_cpu(int32_t dtype, const void* grad, const void* y, int64_t rows, int64_t inputs,
                                int64_t outputs, int64_t groups, const void* norm, const void* sums, double dropout,
                                const int64_t* seed, const void* x, const void* x_norm, const void* weight,
                                void* grad_x, void* x_sums, void* grad_weight, void* grad_bias, int32_t threads) {
  using namespace slr;
  const char* const op = "gcn_map_grad_cpu";
  if (const slr_status status = check_dtype(op, dtype)) return status;
  const int64_t size = size_of(dtype), compute = compute_size(dtype);
  if (const slr_status status = check_groups(op, rows, groups)) return status;
  if (const slr_status status = check_channels(op, {inputs, outputs})) return status;
  if (const slr_status status = check_dropout(op, dropout, seed)) return status;
  if (const slr_status status = check_buffers(op, {{"grad", grad, rows, outputs, size},
                                                   {"y", y, rows, outputs, size},
                                                   {"norm", norm, 4 * groups, outputs, compute},
                                                   {"sums", sums, 2 * groups, outputs, compute},
                                                   {"x", x, rows, inputs, size},
                                                   {"x_norm", x_norm, 4 * groups, inputs, compute, true},
                                                   {"weight", weight, outputs, inputs, compute},
                                                   {"grad_x", grad_x, rows, inputs, size},
                                                   {"x_sums", x_sums, 2 * groups, inputs, compute, x_norm == nullptr},
                                                   {"grad_weight", grad_weight, outputs, inputs, compute},
                                                   {"grad_bias", grad_bias, outputs, 1, compute}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  if (inputs * outputs > 0) std::memset(grad_weight, 0, inputs * outputs * compute);
  if (outputs > 0) std::memset(grad_bias, 0, outputs * compute);
  if (x_norm != nullptr && inputs > 0) std::memset(x_sums, 0, 2 * groups * inputs * compute);
  if (rows == 0) return SLR_OK;
  Tiles tiles{groups, rows / groups, 0};
  tiles.size = tile_size(tiles.rows, (2 * wide(inputs) + wide(outputs)) * compute);
  MapGrad job = {dtype,
                 inputs,
                 outputs,
                 tiles,
                 grad,
                 y,
                 {norm, sums, tiles.rows},
                 dropout_at(dropout, seed, 1),
                 x,
                 x_norm,
                 dropout_at(x_norm == nullptr ? 0 : dropout, seed, 0),
                 nullptr,
                 grad_x,
                 nullptr};
  void *packed = nullptr, *partial = nullptr;
  const auto lay_out = [&](char* data) {
    Parts parts(data);
    job.weight = packed = parts.take<char>(packed_bytes(dtype, outputs, inputs));
    partial = parts.take<char>(x_norm == nullptr ? 0 : count_of(tiles) * 2 * inputs * compute);
    job.partial = x_norm == nullptr ? nullptr : partial;
    return parts.size();
  };
  const Memory memory(lay_out(nullptr));
  if (memory.data() == nullptr) return out_of_memory(op);
  lay_out(memory.data());
  pack_matrices(isa, dtype, weight, 1, outputs, inputs, false, packed, threads);
  // grad, x and its gradient; in pairs, half as large, both as columns and grad as rows too
  const int64_t of_row = wide(outputs) + 2 * wide(inputs) + (paired(isa, dtype) ? wide(outputs) + wide(inputs) / 2 : 0);
  const int64_t scratch = (tiles.size * of_row + kChain * wide(outputs) + 2 * wide(inputs)) * compute;
  const int64_t panel = panel_of(isa, dtype), matrix = (inputs + panel - 1) / panel * panel * wide(outputs) * compute;
  const auto kernel = SLR_SELECT_KERNEL(isa, gcn_map_grad);
  const auto unpack = SLR_SELECT_KERNEL(isa, unpack_weights);
  return for_tiles(
      op, dtype, count_of(tiles), threads, scratch, matrix + 2 * wide(outputs) * compute,
      [&](int64_t begin, int64_t end, char* own, void* total) { kernel(job, begin, end, own, total); },
      [&](void* total) {
        unpack({dtype, total, outputs, inputs, inputs, 1, grad_weight}, 0, outputs);
        add_rest(dtype, static_cast<char*>(total) + matrix, wide(outputs));
        std::memcpy(grad_bias, static_cast<char*>(total) + matrix, outputs * compute);
        if (x_norm != nullptr) merge_sums(dtype, partial, tiles, 0, 2, 2, inputs, x_sums);
      });
}

slr_status slr_gcn_output_cpu(int32_t dtype, const void* y, int64_t rows, int64_t channels, int64_t groups,
                              const void* norm, double dropout, const int64_t* seed, const void* residual,
                              const void* residual_norm, void* out, int32_t threads) {
  using namespace slr;
  const char* const op = "gcn_output_cpu";
  if (const slr_status status = check_dtype(op, dtype)) return status;
  const int64_t size = size_of(dtype), compute = compute_size(dtype);
  if (const slr_status status = check_groups(op, rows, groups)) return status;
  if (const slr_status status = check_channels(op, {channels})) return status;
  if (const slr_status status = check_dropout(op, dropout, seed)) return status;
  if (const slr_status status =
          check_buffers(op, {{"y", y, rows, channels, size},
                             {"norm", norm, 4 * groups, channels, compute},
                             {"residual", residual, rows, channels, size, residual_norm == nullptr},
                             {"residual_norm", residual_norm, 4 * groups, channels, compute, true},
                             {"out", out, rows, channels, size}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  Tiles tiles{groups, rows / groups, 0};
  tiles.size = tile_size(tiles.rows, 4 * channels * compute);
  const Output job = {dtype, channels, tiles, y, norm, dropout_at(dropout, seed, 1), residual, residual_norm, out};
  const auto kernel = SLR_SELECT_KERNEL(isa, gcn_output);
  return for_items(op, count_of(tiles), threads, 0,
                   [&](int64_t begin, int64_t end, void*) { kernel(job, begin, end); });
}

slr_status slr_gcn_output_grad_cpu(int32_t dtype, const void* grad, const void* y, int64_t rows, int64_t channels,
                                   int64_t groups, const void* norm, double dropout, const int64_t* seed,
                                   const void* residual, const void* residual_norm, void* masked, void* sums,
                                   void* residual_sums, int32_t threads) {
  using namespace slr;
  const char* const op = "gcn_output_grad_cpu";
  if (const slr_status status = check_dtype(op, dtype)) return status;
  const int64_t size = size_of(dtype), compute = compute_size(dtype);
  const bool linear = residual_norm != nullptr;
  if (const slr_status status = check_groups(op, rows, groups)) return status;
  if (const slr_status status = check_channels(op, {channels})) return status;
  if (const slr_status status = check_dropout(op, dropout, seed)) return status;
  if (const slr_status status =
          check_buffers(op, {{"grad", grad, rows, channels, size},
                             {"y", y, rows, channels, size},
                             {"norm", norm, 4 * groups, channels, compute},
                             {"residual", residual, rows, channels, size, !linear},
                             {"residual_norm", residual_norm, 4 * groups, channels, compute, true},
                             {"masked", masked, rows, channels, size},
                             {"sums", sums, 2 * groups, channels, compute},
                             {"residual_sums", residual_sums, 2 * groups, channels, compute, !linear}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  Tiles tiles{groups, rows / groups, 0};
  tiles.size = tile_size(tiles.rows, 4 * channels * compute);
  const int64_t each = linear ? 4 : 2;
  const Memory partial(count_of(tiles) * each * channels * compute);
  if (partial.data() == nullptr) return out_of_memory(op);
  const OutputGrad job = {dtype,    channels,      tiles,  grad,          y, norm, dropout_at(dropout, seed, 1),
                          residual, residual_norm, masked, partial.data()};
  const auto kernel = SLR_SELECT_KERNEL(isa, gcn_output_grad);
  const slr_status status =
      for_items(op, count_of(tiles), threads, 0, [&](int64_t begin, int64_t end, void*) { kernel(job, begin, end); });
  if (status != SLR_OK) return status;
  merge_sums(dtype, partial.data(), tiles, 0, 2, each, channels, sums);
  if (linear) merge_sums(dtype, partial.data(), tiles, 2, 2, each, channels, residual_sums);
  return SLR_OK;
}
