// slr_info_nce_cpu, slr_mined_bce_cpu and slr_bank_losses_cpu: one kernel with either or both of its halves.
#include "common/bank_losses.h"

#include <algorithm>
#include <new>
#include <vector>

#include "api/arguments.h"

namespace slr {
namespace {

struct Arguments {
  const char* op;
  const void *query, *positive;
  const int64_t* positives;
  int64_t d, m;
};

// The distinct entries of every row of `positives` that name a bank row, ascending.
void distinct(const int64_t* positives, int64_t b, int64_t m, int64_t n, int64_t* kept, int64_t* offset) {
  offset[0] = 0;
  for (int64_t row = 0; row < b; ++row) {
    int64_t* const begin = kept + offset[row];
    int64_t* end = std::copy_if(positives + row * m, positives + (row + 1) * m, begin,
                                [n](int64_t index) { return 0 <= index && index < n; });
    std::sort(begin, end);
    offset[row + 1] = std::unique(begin, end) - kept;
  }
}

slr_status run(const Arguments& given, BankLosses job, int32_t threads) {
  const char* const op = given.op;
  const bool nce = job.softmax, mined = job.sigmoid;
  const int64_t size = job.dtype == SLR_F64 ? 8 : 4, b = job.b, d = given.d;
  if (const slr_status status = check_compute_dtype(op, job.dtype)) return status;
  if (const slr_status status = check_bank(op, job.bank)) return status;
  if (const slr_status status = check_buffers(op, {{"query", given.query, b, d, size},
                                                   {"positive", given.positive, b, d, size, !nce},
                                                   {"positives", given.positives, job.mined_rows, given.m, 8, !mined},
                                                   {"loss", job.loss, b, 1, size, !nce},
                                                   {"rank", job.rank, b, 1, 8, true},
                                                   {"grad", job.grad, b, d, size, true},
                                                   {"mined_loss", job.mined_loss, job.mined_rows, 1, size, !mined},
                                                   {"mined_grad", job.mined_grad, job.mined_rows, d, size, true}}))
    return status;
  if (job.mined_rows > b)
    return fail(SLR_INVALID_ARGUMENT, "%s: positives must have at most %lld rows", op, (long long)b);
  if (nce)
    if (const slr_status status = check_temperature(op, "temperature", job.temperature)) return status;
  if (mined) {
    const char* const name = nce ? "mined_temperature" : "temperature";
    if (const slr_status status = check_temperature(op, name, job.mined_temperature)) return status;
    if (job.bank.n == 0) return fail(SLR_INVALID_ARGUMENT, "%s: the bank must have at least one row", op);
  }
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;
  if (b == 0) return SLR_OK;

  job.blocks = blocks_of(job.dtype, b);
  const int64_t groups = (job.blocks + kGroupBlocks - 1) / kGroupBlocks;
  const int64_t tiles = (job.bank.n + kTileRows - 1) / kTileRows;
  job.segments = std::min({std::max<int64_t>(64 / groups, 1), kMaxSegments, (tiles + 7) / 8});
  job.segment_rows = job.segments == 0 ? 0 : (tiles + job.segments - 1) / job.segments * kTileRows;
  if (job.segments > 0) job.segments = (job.bank.n + job.segment_rows - 1) / job.segment_rows;

  const auto lay_out = [&](char* data) {
    Parts parts(data);
    const int64_t rows = job.segments * job.blocks * lanes_of(job.dtype), none = 0;
    const auto take = [&](int64_t count) -> void* {
      char* const part = parts.take<char>(count * size);
      return count > 0 ? part : nullptr;
    };
    job.query = pack(&parts, job.dtype, given.query, b, d, takes_pairs(isa, job.dtype, job.bank));
    if (nce) job.positive = pack(&parts, job.dtype, given.positive, b, d).rows;
    job.top = take(nce ? rows : none), job.total = take(nce ? rows : none);
    job.above = job.rank != nullptr ? parts.take<int64_t>(rows) : nullptr;
    job.sum = take(job.grad != nullptr ? rows * d : none);
    job.mined_total = take(mined ? rows : none);
    job.mined_sum = take(job.mined_grad != nullptr ? rows * d : none);
    return parts.size();
  };
  const Memory memory(lay_out(nullptr));
  std::vector<int64_t> kept, offset;
  try {
    if (mined) kept.resize(job.mined_rows * given.m + 1), offset.resize(job.mined_rows + 1);
  } catch (const std::bad_alloc&) {
    return out_of_memory(op);
  }
  if (memory.data() == nullptr) return out_of_memory(op);
  lay_out(memory.data());
  if (mined) {
    distinct(given.positives, job.mined_rows, given.m, job.bank.n, kept.data(), offset.data());
    job.mined = kept.data(), job.offset = offset.data();
  }

  const auto kernel = SLR_SELECT_KERNEL(isa, bank_losses);
  const auto pass = [&](int64_t begin, int64_t end, void* scratch) { kernel(job, begin, end, scratch); };
  const int64_t scratch = SLR_SELECT_KERNEL(isa, bank_losses_scratch)(job);
  if (const slr_status status = for_items(op, job.segments * groups, threads, scratch, pass)) return status;
  const auto finish = SLR_SELECT_KERNEL(isa, bank_losses_finish);
  return for_items(op, job.blocks, threads, 0, [&](int64_t begin, int64_t end, void*) { finish(job, begin, end); });
}

}  // namespace
}  // namespace slr

slr_status slr_info_nce_cpu(int32_t dtype, const void* query, const void* positive, int32_t bank_dtype,
                            const void* bank, int64_t row_stride, int64_t column_stride, int64_t b, int64_t n,
                            int64_t d, double temperature, void* loss, int64_t* rank, void* grad, int32_t threads) {
  slr::BankLosses job = {};
  job.dtype = dtype, job.b = b, job.bank = {bank_dtype, bank, row_stride, column_stride, n, d};
  job.softmax = true, job.temperature = temperature, job.loss = loss, job.rank = rank, job.grad = grad;
  return slr::run({"info_nce_cpu", query, positive, nullptr, d, 0}, job, threads);
}

slr_status slr_mined_bce_cpu(int32_t dtype, const void* query, int32_t bank_dtype, const void* bank, int64_t row_stride,
                             int64_t column_stride, const int64_t* positives, int64_t b, int64_t n, int64_t d,
                             int64_t m, double temperature, void* loss, void* grad, int32_t threads) {
  slr::BankLosses job = {};
  job.dtype = dtype, job.b = b, job.bank = {bank_dtype, bank, row_stride, column_stride, n, d};
  job.sigmoid = true, job.mined_rows = b, job.mined_temperature = temperature, job.mined_loss = loss,
  job.mined_grad = grad;
  return slr::run({"mined_bce_cpu", query, nullptr, positives, d, m}, job, threads);
}

slr_status slr_bank_losses_cpu(int32_t dtype, const void* query, const void* positive, int32_t bank_dtype,
                               const void* bank, int64_t row_stride, int64_t column_stride, const int64_t* positives,
                               int64_t b, int64_t n, int64_t d, int64_t p, int64_t m, double temperature,
                               double mined_temperature, void* info_nce, void* mined_bce, void* grad_info_nce,
                               void* grad_mined_bce, int32_t threads) {
  slr::BankLosses job = {};
  job.dtype = dtype, job.b = b, job.bank = {bank_dtype, bank, row_stride, column_stride, n, d};
  job.temperature = temperature, job.loss = info_nce, job.grad = grad_info_nce;
  job.softmax = job.sigmoid = true, job.mined_rows = p, job.mined_temperature = mined_temperature,
  job.mined_loss = mined_bce, job.mined_grad = grad_mined_bce;
  return slr::run({"bank_losses_cpu", query, positive, positives, d, m}, job, threads);
}
