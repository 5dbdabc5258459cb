// KL divergence between the feature distributions of two embeddings.
#pragma once

#include "common/bank.h"
#include "common/isa.h"

namespace slr {

struct FeatureKl {
  int32_t dtype;  // T is the type it names
  Packed teacher, student;
  int64_t b, d;
  double temperature;
  void *loss, *grad;  // [b], [b][d] T; grad may be null
};

// Blocks [begin, end) of batch rows.
SLR_DECLARE_KERNEL(void feature_kl(const FeatureKl& job, int64_t begin, int64_t end))

}  // namespace slr
