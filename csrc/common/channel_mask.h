// The channels of clips that vary over time.
#pragma once

#include "common/isa.h"
#include "slrfast/slrfast.h"

namespace slr {

struct ChannelMask {
  int32_t dtype;
  const void* z;  // [clips][frames][channels]
  int64_t frames, channels;
  const double* least;      // [clips]
  void *masked, *variance;  // as z, or null; [clips][channels] of the compute type, or null
  uint8_t* keep;            // [clips][channels], or null
  bool past_cache;
};

constexpr int64_t kChannelTile = 128;  // channels that are worked on at once

inline int64_t channel_tiles(int64_t channels) { return (channels + kChannelTile - 1) / kChannelTile; }

// Tiles [begin, end) of all clips; scratch: [frames][kChannelTile] of the compute type.
SLR_DECLARE_KERNEL(void channel_mask(const ChannelMask& job, int64_t begin, int64_t end, void* scratch))

}  // namespace slr
