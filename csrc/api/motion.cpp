// slr_motion_*: argument checks, and the one kernel that serves both directions and both gradients.
#include "common/motion.h"

#include "build_info.h"
#include "common/dtype.h"
#include "common/parallel.h"
#include "common/status.h"

namespace slr {
namespace {

constexpr int64_t kGrain = 1 << 15;              // elements a thread needs before waking it pays
constexpr int64_t kPastCacheBytes = 32ll << 20;  // a result of this size is written around the caches

slr_status make_job(MotionJob* job, const char* name, bool gradient, int32_t dtype, const void* source, void* result,
                    int64_t outer, int64_t frames, int64_t row, int64_t interval, int32_t direction) {
  if (!is_dtype(dtype)) return fail(SLR_INVALID_ARGUMENT, "%s: unknown dtype %d", name, dtype);
  if (direction != SLR_BACKWARD && direction != SLR_FORWARD)
    return fail(SLR_INVALID_ARGUMENT, "%s: unknown direction %d", name, direction);
  if (interval < 1) return fail(SLR_INVALID_ARGUMENT, "%s: interval must be >= 1, got %lld", name, (long long)interval);
  int64_t length = 0, count = 0, bytes = 0;
  if (outer < 0 || frames < 0 || row < 0 || __builtin_mul_overflow(frames, row, &length) ||
      __builtin_mul_overflow(outer, length, &count) || __builtin_mul_overflow(count, size_of(dtype), &bytes))
    return fail(SLR_INVALID_ARGUMENT, "%s: impossible sizes outer=%lld frames=%lld row=%lld", name, (long long)outer,
                (long long)frames, (long long)row);
  if (bytes > 0 && (source == nullptr || result == nullptr))
    return fail(SLR_INVALID_ARGUMENT, "%s: a buffer is null", name);
  const auto first = reinterpret_cast<uintptr_t>(source), second = reinterpret_cast<uintptr_t>(result);
  if (first % size_of(dtype) != 0 || second % size_of(dtype) != 0)
    return fail(SLR_INVALID_ARGUMENT, "%s: a buffer is not aligned to its elements", name);
  if ((first < second ? second - first : first - second) < static_cast<uintptr_t>(bytes))
    return fail(SLR_INVALID_ARGUMENT, "%s: the buffers overlap", name);

  *job = {dtype, source, result, count == 0 ? 0 : outer, length, {0, 0, 0}, {0, 0, 0}, bytes >= kPastCacheBytes};
  if (interval >= frames) return SLR_OK;  // both windows stay empty: all zero
  const int64_t shift = interval * row, rest = length - shift;
  const bool forward = direction == SLR_FORWARD;
  if (gradient) {
    job->plus = {shift, length, forward ? -shift : 0};
    job->minus = {0, rest, forward ? 0 : shift};
  } else if (forward) {
    job->plus = {0, rest, shift};
    job->minus = {0, rest, 0};
  } else {
    job->plus = {shift, length, 0};
    job->minus = {shift, length, -shift};
  }
  return SLR_OK;
}

slr_status on_cpu(const MotionJob& job, int32_t threads) {
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  struct Context {
    const MotionJob& job;
    void (*kernel)(const MotionJob&, int64_t, int64_t);
  } context{job, SLR_SELECT_KERNEL(isa, motion)};
  const auto body = [](const void* opaque, int64_t begin, int64_t end) {
    const auto* context = static_cast<const Context*>(opaque);
    context->kernel(context->job, begin, end);
  };
  parallel_for(job.rows * job.length, kGrain, threads, body, &context);
  return SLR_OK;
}

slr_status on_cuda(const MotionJob& job, void* stream) {
#ifdef SLR_WITH_CUDA
  return job.rows == 0 ? SLR_OK : cuda::motion(job, stream);
#else
  (void)job, (void)stream;
  return fail(SLR_UNSUPPORTED, "slrfast was built without CUDA: %s", SLR_BUILD_CUDA);
#endif
}

}  // namespace
}  // namespace slr

using slr::make_job;
using slr::MotionJob;

slr_status slr_motion_cpu(int32_t dtype, const void* x, void* y, int64_t outer, int64_t frames, int64_t row,
                          int64_t interval, int32_t direction, int32_t threads) {
  MotionJob job;
  const slr_status status = make_job(&job, "motion_cpu", false, dtype, x, y, outer, frames, row, interval, direction);
  return status ? status : slr::on_cpu(job, threads);
}

slr_status slr_motion_grad_cpu(int32_t dtype, const void* grad_y, void* grad_x, int64_t outer, int64_t frames,
                               int64_t row, int64_t interval, int32_t direction, int32_t threads) {
  MotionJob job;
  const slr_status status =
      make_job(&job, "motion_grad_cpu", true, dtype, grad_y, grad_x, outer, frames, row, interval, direction);
  return status ? status : slr::on_cpu(job, threads);
}

slr_status slr_motion_cuda(int32_t dtype, const void* x, void* y, int64_t outer, int64_t frames, int64_t row,
                           int64_t interval, int32_t direction, void* stream) {
  MotionJob job;
  const slr_status status = make_job(&job, "motion_cuda", false, dtype, x, y, outer, frames, row, interval, direction);
  return status ? status : slr::on_cuda(job, stream);
}

slr_status slr_motion_grad_cuda(int32_t dtype, const void* grad_y, void* grad_x, int64_t outer, int64_t frames,
                                int64_t row, int64_t interval, int32_t direction, void* stream) {
  MotionJob job;
  const slr_status status =
      make_job(&job, "motion_grad_cuda", true, dtype, grad_y, grad_x, outer, frames, row, interval, direction);
  return status ? status : slr::on_cuda(job, stream);
}
