// Prefix beam search over the frames of clips.
#pragma once

#include "common/isa.h"
#include "common/memory.h"
#include "slrfast/slrfast.h"

namespace slr {

struct CtcBeamSearch {
  int32_t dtype;
  const void* log_probs;  // [clips][frames][classes]
  int64_t frames, classes;
  const int64_t* lengths;  // [clips]
  int64_t blank, beam;     // beam: no more prefixes than there are
  int64_t nodes, slots;    // prefixes that one clip can make, and a power of two of at least twice as many
  int64_t* tokens;         // [clips][frames]
  int64_t* counts;         // [clips]
  double* scores;          // [clips]
};

SLR_DECLARE_KERNEL(int64_t ctc_beam_search_scratch(const CtcBeamSearch& job))
SLR_DECLARE_KERNEL(void ctc_beam_search(const CtcBeamSearch& job, int64_t clip, char* scratch))

}  // namespace slr
