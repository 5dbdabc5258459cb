#include "api/clips.h"

namespace slr {

slr_status multiply(const char* op, int64_t a, int64_t b, int64_t* product) {
  if (a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, product)) return SLR_OK;
  return fail(SLR_INVALID_ARGUMENT, "%s: impossible size %lld x %lld", op, (long long)a, (long long)b);
}

slr_status check_windows(const char* op, const Windows& windows, int64_t views, int64_t total) {
  int64_t scaled;
  if (windows.out < 1 || windows.out > INT32_MAX)
    return fail(SLR_INVALID_ARGUMENT, "%s: out_frames must be in [1, 2147483647], got %lld", op,
                (long long)windows.out);
  if (const slr_status status = multiply(op, 2 * windows.out + 1, total, &scaled)) return status;
  if (windows.clips < 0 || windows.clips == INT64_MAX)
    return fail(SLR_INVALID_ARGUMENT, "%s: impossible size %lld of clips", op, (long long)windows.clips);
  if (const slr_status status = check_buffers(op, {{"offsets", windows.offsets, 1, windows.clips + 1, 8},
                                                   {"start", windows.start, views, windows.clips, 8},
                                                   {"length", windows.length, views, windows.clips, 8}}))
    return status;
  bool rises = windows.offsets[0] == 0 && windows.offsets[windows.clips] == total;
  for (int64_t b = 0; b < windows.clips; ++b) rises &= windows.offsets[b] <= windows.offsets[b + 1];
  if (!rises) return fail(SLR_INVALID_ARGUMENT, "%s: offsets must rise from 0 to %lld", op, (long long)total);
  for (int64_t n = 0; n < views * windows.clips; ++n) {
    const int64_t b = n % windows.clips, frames = windows.offsets[b + 1] - windows.offsets[b];
    const int64_t start = windows.start[n], length = windows.length[n];
    if (start < 0 || length < 1 || start > frames - length)
      return fail(SLR_INVALID_ARGUMENT,
                  "%s: window %lld must lie inside the %lld frames of its clip, got %lld from %lld", op, (long long)n,
                  (long long)frames, (long long)length, (long long)start);
  }
  return SLR_OK;
}

slr_status check_changes(const char* op, const Changes& changes, int64_t clips, int32_t dtype) {
  const int64_t size = dtype == SLR_F64 ? 8 : 4;
  int64_t maps = 0;
  if (const slr_status status = multiply(op, clips, changes.parts, &maps)) return status;
  if (const slr_status status = check_buffers(op, {{"linear", changes.linear, maps, 4, size},
                                                   {"center", changes.center, maps, 2, size},
                                                   {"part", changes.part, 1, changes.joints, 8},
                                                   {"affected", changes.affected, clips, changes.joints, 1},
                                                   {"drop", changes.drop, clips, changes.joints, 1},
                                                   {"swap", changes.swap, 1, clips, 1},
                                                   {"swap_index", changes.swap_index, 1, changes.joints, 8}}))
    return status;
  for (int64_t v = 0; v < changes.joints; ++v) {
    if (changes.part[v] < 0 || changes.part[v] >= changes.parts)
      return fail(SLR_INVALID_ARGUMENT, "%s: part must be in [0, %lld), got %lld", op, (long long)changes.parts,
                  (long long)changes.part[v]);
    if (changes.swap_index[v] < 0 || changes.swap_index[v] >= changes.joints)
      return fail(SLR_INVALID_ARGUMENT, "%s: swap_index must be in [0, %lld), got %lld", op, (long long)changes.joints,
                  (long long)changes.swap_index[v]);
  }
  return SLR_OK;
}

}  // namespace slr
