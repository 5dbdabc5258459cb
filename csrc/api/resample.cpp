// slr_resample_cpu and slr_resample_nearest_cpu: argument checks.
#include "api/clips.h"

namespace slr {
namespace {

template <class Job, class Kernel>
slr_status run(const char* op, const Job& job, int64_t size, int64_t total, int64_t views, const void* frames,
               void* result, int32_t threads, const Kernel& kernel) {
  if (const slr_status status = check_windows(op, job.windows, views, total)) return status;
  int64_t windows, count, elements;
  if (const slr_status status = multiply(op, views, job.windows.clips, &windows)) return status;
  if (const slr_status status = multiply(op, windows, job.windows.out, &count)) return status;
  if (const slr_status status =
          check_buffers(op, {{"frames", frames, total, job.row, size}, {"result", result, count, job.row, size}}))
    return status;
  if (const slr_status status = multiply(op, count, job.row, &elements)) return status;
  return for_items(op, count, useful_threads(elements * size / 4, threads), 0,
                   [&](int64_t begin, int64_t end, void*) { kernel(job, begin, end); });
}

}  // namespace
}  // namespace slr

slr_status slr_resample_cpu(int32_t dtype, const void* frames, int64_t total, int64_t row, const int64_t* offsets,
                            int64_t clips, const int64_t* start, const int64_t* length, int64_t views,
                            int64_t out_frames, void* result, int32_t threads) {
  using namespace slr;
  const char* const op = "resample_cpu";
  if (!is_dtype(dtype)) return fail(SLR_INVALID_ARGUMENT, "%s: unknown dtype %d", op, dtype);
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const Resample job = {dtype, row, {clips, out_frames, offsets, start, length}, frames, result};
  return run(op, job, size_of(dtype), total, views, frames, result, threads, SLR_SELECT_KERNEL(isa, resample));
}

slr_status slr_resample_nearest_cpu(const void* frames, int64_t total, int64_t row, const int64_t* offsets,
                                    int64_t clips, const int64_t* start, const int64_t* length, int64_t views,
                                    int64_t out_frames, void* result, int32_t threads) {
  using namespace slr;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const ResampleNearest job = {row, {clips, out_frames, offsets, start, length}, frames, result};
  return run("resample_nearest_cpu", job, 1, total, views, frames, result, threads,
             SLR_SELECT_KERNEL(isa, resample_nearest));
}
