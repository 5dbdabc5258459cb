// The distance of predicted motion to the residuals of masked frames.
#pragma once

#include "common/isa.h"
#include "slrfast/slrfast.h"

namespace slr {

struct MaskedMotionLoss {
  int32_t dtype;                               // T is the type it names
  const void *prediction, *residual, *weight;  // [clips][frames][row] T; weight [clips][frames][row / repeat]
  const uint8_t* mask;                         // [clips][frames]
  int64_t frames, row, repeat;                 // repeat: entries that share a weight, 1 or 2
  double scale;
  bool squared, average;
  void *loss, *grad;  // [clips], [clips][frames][row] T; grad may be null
};

// Clips [begin, end); scratch: [row] T.
SLR_DECLARE_KERNEL(void masked_motion_loss(const MaskedMotionLoss& job, int64_t begin, int64_t end, void* scratch))

}  // namespace slr
