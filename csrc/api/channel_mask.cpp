// slr_channel_mask_cpu: argument checks.
#include "common/channel_mask.h"

#include "api/clips.h"

slr_status slr_channel_mask_cpu(int32_t dtype, const void* z, int64_t clips, int64_t frames, int64_t channels,
                                const double* least, void* masked, uint8_t* keep, void* variance, int32_t threads) {
  using namespace slr;
  const char* const op = "channel_mask_cpu";
  if (!is_dtype(dtype)) return fail(SLR_INVALID_ARGUMENT, "%s: unknown dtype %d", op, dtype);
  int64_t rows, scratch;
  const int64_t size = size_of(dtype), wide = dtype == SLR_F64 ? 8 : 4;
  if (const slr_status status = multiply(op, clips, frames, &rows)) return status;
  if (const slr_status status = multiply(op, frames, kChannelTile * wide, &scratch)) return status;
  if (const slr_status status = check_buffers(op, {{"z", z, rows, channels, size},
                                                   {"least", least, clips, 1, 8},
                                                   {"masked", masked, rows, channels, size, true},
                                                   {"keep", keep, clips, channels, 1, true},
                                                   {"variance", variance, clips, channels, wide, true}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const ChannelMask job = {
      dtype, z, frames, channels, least, masked, variance, keep, rows * channels * size > (int64_t{4} << 20)};
  const auto kernel = SLR_SELECT_KERNEL(isa, channel_mask);
  return for_items(op, clips * channel_tiles(channels), useful_threads(rows * channels, threads), scratch,
                   [&](int64_t begin, int64_t end, char* memory) { kernel(job, begin, end, memory); });
}
