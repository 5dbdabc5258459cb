// slr_ctc_beam_search_cpu: argument checks, and how many prefixes there can be.
#include "common/ctc_beam_search.h"

#include <algorithm>

#include "api/clips.h"

namespace slr {
namespace {

// Labellings of at most `frames` tokens of `tokens` kinds, or `most` if there are more.
int64_t labellings(int64_t frames, int64_t tokens, int64_t most) {
  int64_t all = 1, longest = 1;
  for (int64_t t = 0; t < frames && all < most && longest > 0; ++t) {
    if (__builtin_mul_overflow(longest, tokens, &longest) || __builtin_add_overflow(all, longest, &all)) return most;
  }
  return std::min(all, most);
}

}  // namespace
}  // namespace slr

slr_status slr_ctc_beam_search_cpu(int32_t dtype, const void* log_probs, int64_t clips, int64_t frames, int64_t classes,
                                   const int64_t* lengths, int64_t blank, int64_t beam, int64_t* tokens,
                                   int64_t* counts, double* scores, int32_t threads) {
  using namespace slr;
  const char* const op = "ctc_beam_search_cpu";
  if (const slr_status status = check_compute_dtype(op, dtype)) return status;
  int64_t rows;
  if (const slr_status status = multiply(op, clips, frames, &rows)) return status;
  if (const slr_status status = check_buffers(op, {{"log_probs", log_probs, rows, classes, size_of(dtype)},
                                                   {"lengths", lengths, clips, 1, 8},
                                                   {"tokens", tokens, clips, frames, 8},
                                                   {"counts", counts, clips, 1, 8},
                                                   {"scores", scores, clips, 1, 8}}))
    return status;
  if (classes < 1 || classes > INT32_MAX)
    return fail(SLR_INVALID_ARGUMENT, "%s: classes must be in [1, 2147483647], got %lld", op, (long long)classes);
  if (blank < 0 || blank >= classes)
    return fail(SLR_INVALID_ARGUMENT, "%s: blank must be in [0, %lld], got %lld", op, (long long)classes - 1,
                (long long)blank);
  if (beam < 1) return fail(SLR_INVALID_ARGUMENT, "%s: beam must be at least 1, got %lld", op, (long long)beam);
  for (int64_t b = 0; b < clips; ++b)
    if (lengths[b] < 0 || lengths[b] > frames)
      return fail(SLR_INVALID_ARGUMENT, "%s: lengths must be in [0, %lld], got %lld", op, (long long)frames,
                  (long long)lengths[b]);
  const int64_t kept = labellings(frames, classes - 1, beam);
  int64_t nodes;
  if (__builtin_mul_overflow(kept, frames, &nodes) || nodes >= 1 << 30)
    return fail(SLR_INVALID_ARGUMENT, "%s: beam x frames must be below 2^30, got %lld x %lld", op, (long long)kept,
                (long long)frames);
  ++nodes;
  int64_t slots = 2;
  while (slots < 2 * nodes) slots *= 2;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const CtcBeamSearch job = {dtype, log_probs, frames, classes, lengths, blank,
                             kept,  nodes,     slots,  tokens,  counts,  scores};
  const auto kernel = SLR_SELECT_KERNEL(isa, ctc_beam_search);
  const int64_t scratch = SLR_SELECT_KERNEL(isa, ctc_beam_search_scratch)(job);
  return for_items(op, clips, useful_threads(rows * classes, threads), scratch,
                   [&](int64_t begin, int64_t end, char* own) {
                     for (int64_t clip = begin; clip < end; ++clip) kernel(job, clip, own);
                   });
}
