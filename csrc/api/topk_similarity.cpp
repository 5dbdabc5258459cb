// slr_topk_similarity_cpu: few neighbours in one pass over the bank, many from the scores of a group of batch rows.
#include "common/topk_similarity.h"

#include <algorithm>

#include "api/arguments.h"

namespace slr {
namespace {

constexpr int64_t kScores = 64ll << 20;  // bytes of scores to aim at

using Kernel = void (*)(const TopkSimilarity&, int64_t, int64_t, void*);

slr_status run(const char* op, const void* query, TopkSimilarity job, Isa isa, int32_t threads) {
  const int64_t size = job.dtype == SLR_F64 ? 8 : 4, rows = job.bank.n;
  const bool few = keeps_best(job.k, rows);
  job.blocks = blocks_of(job.dtype, job.b);
  // the result depends on no order of computation, so there are as many segments as threads
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows, wanted = std::clamp<int64_t>(threads, 1, tiles);
  job.segment_rows = (tiles + wanted - 1) / wanted * kTileRows;
  job.segments = (rows + job.segment_rows - 1) / job.segment_rows;
  const auto lay_out = [&](char* data) {
    Parts parts(data);
    // only products of bfloat16 queries are exact in pairs; see pack()
    job.query = pack(&parts, job.dtype, query, job.b, job.bank.d, takes_pairs(isa, job.dtype, job.bank));
    if (job.query.low != nullptr) job.query.high = job.query.low = nullptr;
    const int64_t kept = job.segments * job.b * job.k, all = job.blocks * lanes_of(job.dtype) * rows;
    job.scores = parts.take<char>((few ? kept : all) * size);
    job.rows = parts.take<int64_t>(few ? kept : 0);
    return parts.size();
  };
  const Memory memory(lay_out(nullptr));
  if (memory.data() == nullptr) return out_of_memory(op);
  lay_out(memory.data());
  const auto each = [&](int64_t items, Kernel kernel) {
    return for_items(op, items, threads, SLR_SELECT_KERNEL(isa, topk_similarity_scratch)(job),
                     [&](int64_t begin, int64_t end, void* scratch) { kernel(job, begin, end, scratch); });
  };
  slr_status status;
  if (few) {
    status = each(job.segments, SLR_SELECT_KERNEL(isa, topk_similarity_few));
    return status ? status : each(job.b, SLR_SELECT_KERNEL(isa, topk_similarity_merge));
  }
  status = each(job.segments, SLR_SELECT_KERNEL(isa, topk_similarity_scores));
  const int64_t columns = job.blocks * SLR_SELECT_KERNEL(isa, topk_similarity_columns)();
  return status ? status : each(columns, SLR_SELECT_KERNEL(isa, topk_similarity_choose));
}

}  // namespace
}  // namespace slr

slr_status slr_topk_similarity_cpu(int32_t dtype, const void* query, int32_t bank_dtype, const void* bank,
                                   int64_t row_stride, int64_t column_stride, int64_t b, int64_t n, int64_t d,
                                   int64_t k, int32_t sorted, void* values, int64_t* indices, int32_t threads) {
  using namespace slr;
  const char* const op = "topk_similarity_cpu";
  TopkSimilarity job = {};
  job.dtype = dtype, job.bank = {bank_dtype, bank, row_stride, column_stride, n, d}, job.k = k,
  job.sorted = sorted != 0;
  const int64_t size = dtype == SLR_F64 ? 8 : 4;
  if (const slr_status status = check_compute_dtype(op, dtype)) return status;
  if (const slr_status status = check_bank(op, job.bank)) return status;
  if (const slr_status status = check_k(op, k, n)) return status;
  if (!keeps_best(k, n) && n > kMostRows)
    return fail(SLR_INVALID_ARGUMENT, "%s: k must be at most 1024 in a bank of %lld rows, got %lld", op, (long long)n,
                (long long)k);
  if (const slr_status status = check_buffers(
          op, {{"query", query, b, d, size}, {"values", values, b, k, size}, {"indices", indices, b, k, 8}}))
    return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const int64_t blocks = keeps_best(k, n) ? 64 : std::clamp<int64_t>(kScores / (n * kBlockBytes), 1, 64);
  const int64_t group = blocks * lanes_of(dtype);
  for (int64_t row = 0; row < b; row += group) {
    job.b = std::min(group, b - row);
    job.values = static_cast<char*>(values) + row * k * size, job.indices = indices + row * k;
    if (const slr_status status = run(op, static_cast<const char*>(query) + row * d * size, job, isa, threads))
      return status;
  }
  return SLR_OK;
}

slr_status slr_topk_similarity_grad_cpu(int32_t dtype, const void* grad, const int64_t* indices, int32_t bank_dtype,
                                        const void* bank, int64_t row_stride, int64_t column_stride, int64_t b,
                                        int64_t n, int64_t d, int64_t k, void* result, int32_t threads) {
  using namespace slr;
  const char* const op = "topk_similarity_grad_cpu";
  const TopkSimilarityGrad job = {dtype, {bank_dtype, bank, row_stride, column_stride, n, d}, k, grad, indices, result};
  const int64_t size = dtype == SLR_F64 ? 8 : 4;
  if (const slr_status status = check_compute_dtype(op, dtype)) return status;
  if (const slr_status status = check_bank(op, job.bank)) return status;
  if (const slr_status status = check_buffers(
          op, {{"grad", grad, b, k, size}, {"indices", indices, b, k, 8}, {"result", result, b, d, size}}))
    return status;
  for (int64_t i = 0; i < b * k; ++i)
    if (indices[i] < 0 || indices[i] >= n)
      return fail(SLR_INVALID_ARGUMENT, "%s: indices must be in [0, %lld), got %lld", op, (long long)n,
                  (long long)indices[i]);
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  const auto kernel = SLR_SELECT_KERNEL(isa, topk_similarity_grad);
  return for_items(op, b, threads, 0, [&](int64_t begin, int64_t end, void*) { kernel(job, begin, end); });
}
