// slr_pose_views_cpu: argument checks.
#include "api/clips.h"

slr_status slr_pose_views_cpu(int32_t dtype, const void* xy, const void* confidence, int64_t total, int64_t joints,
                              const int64_t* offsets, int64_t clips, const int64_t* start, const int64_t* length,
                              int64_t views, int64_t out_frames, const void* linear, const void* center, int64_t parts,
                              const int64_t* part, const uint8_t* affected, const uint8_t* drop, const uint8_t* swap,
                              const int64_t* swap_index, int32_t direction, void* xy_out, void* motion_out,
                              void* confidence_out, uint8_t* visible, int32_t threads) {
  using namespace slr;
  const char* const op = "pose_views_cpu";
  if (!is_dtype(dtype)) return fail(SLR_INVALID_ARGUMENT, "%s: unknown dtype %d", op, dtype);
  if (direction != SLR_BACKWARD && direction != SLR_FORWARD)
    return fail(SLR_INVALID_ARGUMENT, "%s: unknown direction %d", op, direction);
  const Windows windows = {clips, out_frames, offsets, start, length};
  if (const slr_status status = check_windows(op, windows, views, total)) return status;
  int64_t changed, count, columns, members;
  if (const slr_status status = multiply(op, views, clips, &changed)) return status;
  const Changes changes = {joints, parts, linear, center, part, swap_index, affected, drop, swap};
  if (const slr_status status = check_changes(op, changes, changed, dtype)) return status;
  if (const slr_status status = multiply(op, changed, out_frames, &count)) return status;
  if (const slr_status status = multiply(op, 2, joints, &columns)) return status;
  if (const slr_status status = multiply(op, columns + 32, 8 * parts, &members)) return status;
  const int64_t size = size_of(dtype);
  if (const slr_status status = check_buffers(op, {{"xy", xy, total, columns, size},
                                                   {"confidence", confidence, total, joints, size},
                                                   {"xy_out", xy_out, count, columns, size},
                                                   {"motion_out", motion_out, count, columns, size, true},
                                                   {"confidence_out", confidence_out, count, joints, size},
                                                   {"visible", visible, count, parts, 1}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const PoseViews job = {dtype,      direction, windows,    changes,        xy,
                         confidence, xy_out,    motion_out, confidence_out, visible};
  const auto kernel = SLR_SELECT_KERNEL(isa, pose_views);
  return for_items(op, count, useful_threads(2 * count * columns, threads), 8 * changes_scratch(joints) + members,
                   [&](int64_t begin, int64_t end, void* scratch) { kernel(job, begin, end, scratch); });
}
