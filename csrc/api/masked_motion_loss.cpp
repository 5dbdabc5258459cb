// slr_masked_motion_loss_cpu: argument checks.
#include "common/masked_motion_loss.h"

#include <cmath>

#include "api/arguments.h"

slr_status slr_masked_motion_loss_cpu(int32_t dtype, const void* prediction, const void* residual, const void* weight,
                                      int32_t per_coordinate, const uint8_t* mask, int64_t clips, int64_t frames,
                                      int64_t joints, double scale, int32_t squared, int32_t average, void* loss,
                                      void* grad, int32_t threads) {
  using namespace slr;
  const char* const op = "masked_motion_loss_cpu";
  const int64_t size = dtype == SLR_F64 ? 8 : 4;
  if (const slr_status status = check_compute_dtype(op, dtype)) return status;
  int64_t rows, row;
  if (clips < 0 || frames < 0 || joints < 0 || __builtin_mul_overflow(clips, frames, &rows) ||
      __builtin_mul_overflow(joints, 2, &row))
    return fail(SLR_INVALID_ARGUMENT, "%s: impossible sizes clips=%lld frames=%lld joints=%lld", op, (long long)clips,
                (long long)frames, (long long)joints);
  if (const slr_status status = check_buffers(op, {{"prediction", prediction, rows, row, size},
                                                   {"residual", residual, rows, row, size},
                                                   {"weight", weight, rows, per_coordinate ? row : joints, size},
                                                   {"mask", mask, rows, 1, 1},
                                                   {"loss", loss, clips, 1, size},
                                                   {"grad", grad, rows, row, size, true}}))
    return status;
  if (!(std::isfinite(scale) && scale > 0))
    return fail(SLR_INVALID_ARGUMENT, "%s: scale must be finite and > 0, got %g", op, scale);
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const MaskedMotionLoss job = {dtype, prediction,   residual,     weight, mask, frames, row, per_coordinate ? 1 : 2,
                                scale, squared != 0, average != 0, loss,   grad};
  const auto kernel = SLR_SELECT_KERNEL(isa, masked_motion_loss);
  return for_items(op, clips, rows * row < 1 << 15 ? 1 : threads, row * size,
                   [&](int64_t begin, int64_t end, void* scratch) { kernel(job, begin, end, scratch); });
}
