// slr_augment_cpu: argument checks.
#include "api/clips.h"

slr_status slr_augment_cpu(int32_t dtype, const void* x, const void* confidence, int64_t clips, int64_t frames,
                           int64_t joints, const void* linear, const void* center, int64_t parts, const int64_t* part,
                           const uint8_t* affected, const uint8_t* drop, const uint8_t* swap, const int64_t* swap_index,
                           void* x_out, void* confidence_out, int32_t threads) {
  using namespace slr;
  const char* const op = "augment_cpu";
  if (!is_dtype(dtype)) return fail(SLR_INVALID_ARGUMENT, "%s: unknown dtype %d", op, dtype);
  const Changes changes = {joints, parts, linear, center, part, swap_index, affected, drop, swap};
  if (const slr_status status = check_changes(op, changes, clips, dtype)) return status;
  int64_t count, columns;
  if (const slr_status status = multiply(op, clips, frames, &count)) return status;
  if (const slr_status status = multiply(op, 2, joints, &columns)) return status;
  const int64_t size = size_of(dtype);
  if (const slr_status status = check_buffers(op, {{"x", x, count, columns, size},
                                                   {"confidence", confidence, count, joints, size},
                                                   {"x_out", x_out, count, columns, size},
                                                   {"confidence_out", confidence_out, count, joints, size}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const Augment job = {dtype, frames, changes, x, confidence, x_out, confidence_out};
  const auto kernel = SLR_SELECT_KERNEL(isa, augment);
  return for_items(op, count, useful_threads(count * columns, threads), 8 * changes_scratch(joints),
                   [&](int64_t begin, int64_t end, void* scratch) { kernel(job, begin, end, scratch); });
}
