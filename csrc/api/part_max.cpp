// slr_part_max_cpu and its gradient: argument checks.
#include "api/gcn.h"

slr_status slr_part_max_cpu(int32_t dtype, const void* x, int64_t rows, int64_t nodes, int64_t channels,
                            const int32_t* members, int64_t parts, int64_t most, void* pooled, uint8_t* chosen,
                            int32_t threads) {
  using namespace slr;
  const char* const op = "part_max_cpu";
  if (const slr_status status = check_dtype(op, dtype)) return status;
  if (const slr_status status = check_parts(op, rows, nodes, channels, members, parts, most)) return status;
  if (const slr_status status = check_buffers(op, {{"x", x, rows * nodes, channels, size_of(dtype)},
                                                   {"pooled", pooled, rows * parts, channels, size_of(dtype)},
                                                   {"chosen", chosen, rows * parts, channels, 1}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const PartMax job = {dtype, nodes, channels, parts, most, members, x, pooled, chosen};
  const auto kernel = SLR_SELECT_KERNEL(isa, part_max);
  return for_items(op, rows, rows * nodes * channels < 1 << 15 ? 1 : threads, 0,
                   [&](int64_t begin, int64_t end, void*) { kernel(job, begin, end); });
}

slr_status slr_part_max_grad_cpu(int32_t dtype, const void* grad, const uint8_t* chosen, int64_t rows, int64_t nodes,
                                 int64_t channels, const int32_t* members, int64_t parts, int64_t most, void* grad_x,
                                 int32_t threads) {
  using namespace slr;
  const char* const op = "part_max_grad_cpu";
  if (const slr_status status = check_dtype(op, dtype)) return status;
  if (const slr_status status = check_parts(op, rows, nodes, channels, members, parts, most)) return status;
  if (const slr_status status = check_buffers(op, {{"grad", grad, rows * parts, channels, size_of(dtype)},
                                                   {"chosen", chosen, rows * parts, channels, 1},
                                                   {"grad_x", grad_x, rows * nodes, channels, size_of(dtype)}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const PartMaxGrad job = {dtype, nodes, channels, parts, most, members, grad, chosen, grad_x};
  const auto kernel = SLR_SELECT_KERNEL(isa, part_max_grad);
  return for_items(op, rows, rows * nodes * channels < 1 << 15 ? 1 : threads, 0,
                   [&](int64_t begin, int64_t end, void*) { kernel(job, begin, end); });
}
