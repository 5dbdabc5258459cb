// The error of reconstructed masked keypoints.
#pragma once

#include "common/isa.h"
#include "slrfast/slrfast.h"

namespace slr {

constexpr int64_t kKeypoints = 8192;  // of one part of a clip: losses are sums of such parts, for any number of threads

struct MaskedPoseLoss {
  int32_t dtype;                                 // T is the type it names
  const void *prediction, *target, *confidence;  // [clips][keypoints][2], the last without the 2; T
  const uint8_t* mask;                           // [clips][keypoints]
  int64_t keypoints;
  void* grad;      // [clips][keypoints][2] T, or null
  double* losses;  // [clips][parts]
  int64_t* counts;
};

static inline int64_t parts_of(int64_t keypoints) { return (keypoints + kKeypoints - 1) / kKeypoints; }

// Parts [begin, end) of all clips.
SLR_DECLARE_KERNEL(void masked_pose_loss(const MaskedPoseLoss& job, int64_t begin, int64_t end))

}  // namespace slr
