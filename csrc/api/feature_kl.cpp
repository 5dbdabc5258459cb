// slr_feature_kl_cpu: argument checks.
#include "common/feature_kl.h"

#include <cstring>

#include "api/arguments.h"

slr_status slr_feature_kl_cpu(int32_t dtype, const void* teacher, const void* student, int64_t b, int64_t d,
                              double temperature, void* loss, void* grad, int32_t threads) {
  using namespace slr;
  const char* const op = "feature_kl_cpu";
  const int64_t size = dtype == SLR_F64 ? 8 : 4;
  if (const slr_status status = check_compute_dtype(op, dtype)) return status;
  if (const slr_status status = check_buffers(op, {{"teacher", teacher, b, d, size},
                                                   {"student", student, b, d, size},
                                                   {"loss", loss, b, 1, size},
                                                   {"grad", grad, b, d, size, true}}))
    return status;
  if (const slr_status status = check_temperature(op, "temperature", temperature)) return status;
  if (d == 0) std::memset(loss, 0, b * size);
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  FeatureKl job = {dtype, {}, {}, b, d, temperature, loss, grad};
  const auto lay_out = [&](char* data) {
    Parts parts(data);
    job.teacher = pack(&parts, dtype, teacher, b, d);
    job.student = pack(&parts, dtype, student, b, d);
    return parts.size();
  };
  const Memory memory(lay_out(nullptr));
  if (memory.data() == nullptr) return out_of_memory(op);
  lay_out(memory.data());
  const auto kernel = SLR_SELECT_KERNEL(isa, feature_kl);
  return for_items(op, d == 0 ? 0 : blocks_of(dtype, b), b * d < 1 << 15 ? 1 : threads, 0,
                   [&](int64_t begin, int64_t end, void*) { kernel(job, begin, end); });
}
