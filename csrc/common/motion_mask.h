// Motion residuals of clips, their weights, and the choice of the frames to mask.
#pragma once

#include "common/isa.h"
#include "slrfast/slrfast.h"

namespace slr {

struct MotionMask {
  int32_t dtype, key_dtype;
  const void *x, *confidence;  // [clips][frames][joints][2], [clips][frames][joints]
  const int64_t* lengths;      // [clips], or null: `frames` for every clip
  const void* keys;            // [clips][frames]
  int64_t frames, joints, interval;
  double confidence_threshold, motion_threshold, joint_fraction, mask_ratio;
  bool norm;
  void *residual, *weight;
  uint8_t* mask;
};

// What a thread needs: candidates of a clip, and residuals and weights of a frame as computed.
struct MotionMaskScratch {
  struct Candidate {
    double key;
    int64_t frame;
  };
  Candidate* candidates;    // [frames]
  void *residual, *weight;  // [2 joints], [joints] of the compute type
};

// Clips [begin, end).
SLR_DECLARE_KERNEL(void motion_mask(const MotionMask& job, int64_t begin, int64_t end,
                                    const MotionMaskScratch& scratch))

}  // namespace slr
