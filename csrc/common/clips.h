// Packed clips: what their resampling, their augmentation and both at once are given.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace slr {

// Windows [views, clips] of packed clips, each read at `out` positions.
struct Windows {
  int64_t clips, out;
  const int64_t *offsets, *start, *length;
};

// The changes of a batch, see AugmentTensors in slrfast/ops/augment.py; `linear` and `center` are of the compute type.
struct Changes {
  int64_t joints, parts;
  const void *linear, *center;
  const int64_t *part, *swap_index;
  const uint8_t *affected, *drop, *swap;
};

struct Resample {
  int32_t dtype;
  int64_t row;  // elements of a frame
  Windows windows;
  const void* frames;
  void* result;
};

struct ResampleNearest {
  int64_t row;  // bytes of a frame
  Windows windows;
  const void* frames;
  void* result;
};

struct Augment {
  int32_t dtype;
  int64_t frames;  // of a clip
  Changes changes;
  const void *x, *confidence;
  void *x_out, *confidence_out;
};

struct PoseViews {
  int32_t dtype;
  int32_t direction;  // of the motion, unless its result is null
  Windows windows;
  Changes changes;
  const void *xy, *confidence;
  void *xy_out, *motion_out, *confidence_out;
  uint8_t* visible;
};

// Numbers of 8 bytes that the scratch memory of a thread holds.
inline int64_t changes_scratch(int64_t joints) { return 32 * (joints + 15) + 64; }

// The frames [begin, end) of the result.
SLR_DECLARE_KERNEL(void resample(const Resample& job, int64_t begin, int64_t end))
SLR_DECLARE_KERNEL(void resample_nearest(const ResampleNearest& job, int64_t begin, int64_t end))
SLR_DECLARE_KERNEL(void augment(const Augment& job, int64_t begin, int64_t end, void* scratch))
SLR_DECLARE_KERNEL(void pose_views(const PoseViews& job, int64_t begin, int64_t end, void* scratch))

}  // namespace slr
