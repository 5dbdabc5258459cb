// What the functions over packed clips share: checks of their windows and changes, and how they are split over threads.
#pragma once

#include "api/arguments.h"
#include "common/clips.h"
#include "common/dtype.h"

namespace slr {

// Windows [views, clips], each inside its clip; the clips are `total` frames.
slr_status check_windows(const char* op, const Windows& windows, int64_t views, int64_t total);

// Changes of `clips` clips whose arrays are there and whose parts and joints exist.
slr_status check_changes(const char* op, const Changes& changes, int64_t clips, int32_t dtype);

// a times b, or an error.
slr_status multiply(const char* op, int64_t a, int64_t b, int64_t* product);

// As many threads as pay for this many elements.
inline int32_t useful_threads(int64_t elements, int32_t threads) {
  const int64_t most = elements >> 15;
  return most < threads ? static_cast<int32_t>(most) : threads;
}

}  // namespace slr
