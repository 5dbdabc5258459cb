// Grey levels of clips and Otsu's threshold.
#pragma once

#include "common/isa.h"
#include "slrfast/slrfast.h"

namespace slr {

constexpr int kGreyLevels = 256, kHistograms = 4;

struct OtsuMask {
  int32_t dtype;
  const void* frames;  // [rows][3][pixels]
  const void* still;   // [3][pixels] of the compute type, or null
  int64_t pixels;
  uint8_t* levels;  // [rows][pixels]
};

// The grey levels of one frame, and how often each is there: kHistograms tables that are added to.
SLR_DECLARE_KERNEL(void grey_levels(const OtsuMask& job, int64_t frame, uint32_t* histograms))

// levels > threshold, in place.
SLR_DECLARE_KERNEL(void above(uint8_t* levels, int64_t count, int32_t threshold))

}  // namespace slr
