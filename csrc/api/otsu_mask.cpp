// slr_otsu_mask_cpu: argument checks, the histogram of each clip and its threshold.
#include "common/otsu_mask.h"

#include <cstring>

#include "api/clips.h"

namespace slr {
namespace {

// The first level that parts a histogram the most into what is above it and what is not; -1 where one side is empty.
int32_t threshold_of(const uint64_t* histogram) {
  double total = 0, whole = 0, below = 0, part = 0, best = -1;
  for (int level = 0; level < kGreyLevels; ++level) {
    const double counted = static_cast<double>(histogram[level]);
    total += counted;
    whole += counted * level;
  }
  int32_t found = -1;
  for (int level = 0; level < kGreyLevels - 1; ++level) {
    const double counted = static_cast<double>(histogram[level]);
    below += counted;
    part += counted * level;
    if (!(below > 0 && below < total)) continue;
    const double gap = part * total - whole * below;
    const double between = gap * gap / (below * (total - below));
    if (between > best) {
      best = between;
      found = level;
    }
  }
  return found;
}

}  // namespace
}  // namespace slr

slr_status slr_otsu_mask_cpu(int32_t dtype, const void* frames, const void* still, int64_t clips, int64_t frames_each,
                             int64_t pixels, uint8_t* mask, int32_t threads) {
  using namespace slr;
  const char* const op = "otsu_mask_cpu";
  if (!is_dtype(dtype)) return fail(SLR_INVALID_ARGUMENT, "%s: unknown dtype %d", op, dtype);
  int64_t rows, row;
  if (const slr_status status = multiply(op, clips, frames_each, &rows)) return status;
  if (const slr_status status = multiply(op, pixels, 3, &row)) return status;
  const int64_t wide = dtype == SLR_F64 ? 8 : 4;
  if (const slr_status status = check_buffers(op, {{"frames", frames, rows, row, size_of(dtype)},
                                                   {"still", still, row, 1, wide, true},
                                                   {"mask", mask, rows, pixels, 1}}))
    return status;
  if (pixels > INT32_MAX)
    return fail(SLR_INVALID_ARGUMENT, "%s: pixels must be at most 2147483647, got %lld", op, (long long)pixels);
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  int64_t bytes;
  if (const slr_status status = multiply(op, clips, kGreyLevels * 8, &bytes)) return status;
  if (rows * pixels == 0) return SLR_OK;
  const Memory memory(bytes);
  if (memory.data() == nullptr) return out_of_memory(op);
  uint64_t* const histograms = reinterpret_cast<uint64_t*>(memory.data());
  std::memset(static_cast<void*>(histograms), 0, bytes);
  const OtsuMask job = {dtype, frames, still, pixels, mask};
  const int32_t useful = useful_threads(rows * pixels, threads);
  const auto levels = SLR_SELECT_KERNEL(isa, grey_levels);
  const slr_status counted =
      for_items(op, rows, useful, kHistograms * kGreyLevels * 4, [&](int64_t begin, int64_t end, char* scratch) {
        uint32_t* const tables = reinterpret_cast<uint32_t*>(scratch);
        for (int64_t frame = begin; frame < end; ++frame) {
          std::memset(static_cast<void*>(tables), 0, kHistograms * kGreyLevels * 4);
          levels(job, frame, tables);
          uint64_t* const histogram = histograms + frame / frames_each * kGreyLevels;
          for (int level = 0; level < kGreyLevels; ++level) {
            uint64_t sum = 0;
            for (int k = 0; k < kHistograms; ++k) sum += tables[k * kGreyLevels + level];
            if (sum != 0) __atomic_fetch_add(histogram + level, sum, __ATOMIC_RELAXED);
          }
        }
      });
  if (counted != SLR_OK) return counted;
  const auto compare = SLR_SELECT_KERNEL(isa, above);
  for (int64_t clip = 0; clip < clips; ++clip)
    histograms[clip * kGreyLevels] = threshold_of(histograms + clip * kGreyLevels);
  return for_items(op, rows, useful, 0, [&](int64_t begin, int64_t end, char*) {
    for (int64_t frame = begin; frame < end; ++frame)
      compare(mask + frame * pixels, pixels, static_cast<int32_t>(histograms[frame / frames_each * kGreyLevels]));
  });
}
