// slr_motion_mask_cpu: argument checks.
#include "common/motion_mask.h"

#include "api/arguments.h"
#include "common/dtype.h"

namespace slr {
namespace {

slr_status check_between(const char* op, const char* name, double value, double high) {
  if (value >= 0 && value <= high && value < __builtin_inf()) return SLR_OK;
  return fail(SLR_INVALID_ARGUMENT, "%s: %s must be in [0, %g], got %g", op, name, high, value);
}

}  // namespace
}  // namespace slr

slr_status slr_motion_mask_cpu(int32_t dtype, const void* x, const void* confidence, const int64_t* lengths,
                               int32_t key_dtype, const void* keys, int64_t clips, int64_t frames, int64_t joints,
                               int64_t interval, double confidence_threshold, double motion_threshold,
                               double joint_fraction, double mask_ratio, int32_t norm, void* residual, void* weight,
                               uint8_t* mask, int32_t threads) {
  using namespace slr;
  const char* const op = "motion_mask_cpu";
  if (!is_dtype(dtype)) return fail(SLR_INVALID_ARGUMENT, "%s: unknown dtype %d", op, dtype);
  if (const slr_status status = check_compute_dtype(op, key_dtype)) return status;
  int64_t rows, row;
  if (clips < 0 || frames < 0 || joints < 0 || __builtin_mul_overflow(clips, frames, &rows) ||
      __builtin_mul_overflow(joints, 2, &row))
    return fail(SLR_INVALID_ARGUMENT, "%s: impossible sizes clips=%lld frames=%lld joints=%lld", op, (long long)clips,
                (long long)frames, (long long)joints);
  const int64_t size = size_of(dtype);
  if (const slr_status status = check_buffers(op, {{"x", x, rows, row, size},
                                                   {"confidence", confidence, rows, joints, size},
                                                   {"lengths", lengths, clips, 1, 8, true},
                                                   {"keys", keys, rows, 1, size_of(key_dtype)},
                                                   {"residual", residual, rows, row, size},
                                                   {"weight", weight, rows, joints, size},
                                                   {"mask", mask, rows, 1, 1}}))
    return status;
  if (interval < 1) return fail(SLR_INVALID_ARGUMENT, "%s: interval must be >= 1, got %lld", op, (long long)interval);
  if (const slr_status status = check_between(op, "confidence_threshold", confidence_threshold, __builtin_inf()))
    return status;
  if (const slr_status status = check_between(op, "motion_threshold", motion_threshold, __builtin_inf())) return status;
  if (const slr_status status = check_between(op, "joint_fraction", joint_fraction, 1)) return status;
  if (const slr_status status = check_between(op, "mask_ratio", mask_ratio, 1)) return status;
  for (int64_t b = 0; lengths != nullptr && b < clips; ++b)
    if (lengths[b] < 0 || lengths[b] > frames)
      return fail(SLR_INVALID_ARGUMENT, "%s: lengths must be in [0, %lld], got %lld for clip %lld", op,
                  (long long)frames, (long long)lengths[b], (long long)b);
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const MotionMask job = {dtype,
                          key_dtype,
                          x,
                          confidence,
                          lengths,
                          keys,
                          frames,
                          joints,
                          interval,
                          confidence_threshold,
                          motion_threshold,
                          joint_fraction,
                          mask_ratio,
                          norm != 0,
                          residual,
                          weight,
                          mask};
  const auto lay_out = [&](char* data, MotionMaskScratch* scratch) {
    Parts parts(data);
    scratch->candidates = parts.take<MotionMaskScratch::Candidate>(frames);
    scratch->residual = parts.take<double>(row);
    scratch->weight = parts.take<double>(joints);
    return parts.size();
  };
  MotionMaskScratch none;
  const auto kernel = SLR_SELECT_KERNEL(isa, motion_mask);
  return for_items(op, frames == 0 ? 0 : clips, rows * row < 1 << 15 ? 1 : threads, lay_out(nullptr, &none),
                   [&](int64_t begin, int64_t end, char* memory) {
                     MotionMaskScratch scratch;
                     lay_out(memory, &scratch);
                     kernel(job, begin, end, scratch);
                   });
}
