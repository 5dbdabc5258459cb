// slr_masked_pose_loss_cpu: argument checks.
#include "common/masked_pose_loss.h"

#include "api/arguments.h"

slr_status slr_masked_pose_loss_cpu(int32_t dtype, const void* prediction, const void* target, const uint8_t* mask,
                                    const void* confidence, int64_t clips, int64_t keypoints, void* loss,
                                    int64_t* count, void* grad, int32_t threads) {
  using namespace slr;
  const char* const op = "masked_pose_loss_cpu";
  const int64_t size = dtype == SLR_F64 ? 8 : 4;
  if (const slr_status status = check_compute_dtype(op, dtype)) return status;
  int64_t row, most;
  if (clips < 0 || keypoints < 0 || __builtin_mul_overflow(keypoints, 2, &row) ||
      __builtin_mul_overflow(clips, 16 * (parts_of(keypoints) + 1), &most))
    return fail(SLR_INVALID_ARGUMENT, "%s: impossible sizes clips=%lld keypoints=%lld", op, (long long)clips,
                (long long)keypoints);
  if (const slr_status status = check_buffers(op, {{"prediction", prediction, clips, row, size},
                                                   {"target", target, clips, row, size},
                                                   {"mask", mask, clips, keypoints, 1},
                                                   {"confidence", confidence, clips, keypoints, size},
                                                   {"loss", loss, clips, 1, size},
                                                   {"count", count, clips, 1, 8},
                                                   {"grad", grad, clips, row, size, true}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const int64_t parts = parts_of(keypoints);
  const Memory memory(16 * clips * parts);
  if (memory.data() == nullptr) return out_of_memory(op);
  double* const losses = reinterpret_cast<double*>(memory.data());
  int64_t* const counts = reinterpret_cast<int64_t*>(losses + clips * parts);
  const MaskedPoseLoss job = {dtype, prediction, target, confidence, mask, keypoints, grad, losses, counts};
  const auto kernel = SLR_SELECT_KERNEL(isa, masked_pose_loss);
  if (const slr_status status = for_items(op, clips * parts, clips * keypoints < 1 << 14 ? 1 : threads, 0,
                                          [&](int64_t begin, int64_t end, void*) { kernel(job, begin, end); }))
    return status;
  for (int64_t b = 0; b < clips; ++b) {
    double total = 0;
    count[b] = 0;
    for (int64_t i = b * parts; i < (b + 1) * parts; ++i) total += losses[i], count[b] += counts[i];
    if (dtype == SLR_F64)
      static_cast<double*>(loss)[b] = total;
    else
      static_cast<float*>(loss)[b] = static_cast<float>(total);
  }
  return SLR_OK;
}
