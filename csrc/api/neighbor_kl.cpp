// slr_neighbor_kl_cpu: argument checks, and the steps for one group of batch rows after the other.
#include "common/neighbor_kl.h"

#include <algorithm>

#include "api/arguments.h"

namespace slr {
namespace {

constexpr int64_t kScores = 64ll << 20;  // bytes of scores to aim at, of one kind
constexpr int64_t kMostBlocks = 8, kMostSegments = 32;

struct Arguments {
  const char *teacher, *student;
  char *loss, *grad;
};

slr_status run(const char* op, const Arguments& given, NeighborKl job, Isa isa, int32_t threads) {
  const int64_t size = job.dtype == SLR_F64 ? 8 : 4, lanes = lanes_of(job.dtype), n = job.teacher_bank.n;
  const int64_t d = job.student_bank.d;
  job.blocks = blocks_of(job.dtype, job.b);
  const auto lay_out = [&](char* data) {
    Parts parts(data);
    const int64_t rows = job.blocks * lanes, partials = job.segments * rows;
    const auto take = [&](int64_t count) -> void* { return parts.take<char>(count * size); };
    job.teacher = pack(&parts, job.dtype, given.teacher, job.b, job.teacher_bank.d,
                       takes_pairs(isa, job.dtype, job.teacher_bank));
    job.student = pack(&parts, job.dtype, given.student, job.b, d, takes_pairs(isa, job.dtype, job.student_bank));
    job.teacher_scores = take(rows * n), job.student_scores = take(rows * n);
    job.border = take(rows), job.teacher_top = take(rows), job.tie_end = parts.take<int64_t>(rows);
    job.student_top = take(partials), job.teacher_total = take(partials), job.student_total = take(partials);
    job.cross = take(partials);
    job.teacher_factor = take(rows), job.student_factor = take(rows), job.shift = take(rows);
    job.sum = given.grad == nullptr ? nullptr : take(partials * d);
    return parts.size();
  };
  const Memory memory(lay_out(nullptr));
  if (memory.data() == nullptr) return out_of_memory(op);
  lay_out(memory.data());
  job.loss = given.loss, job.grad = given.grad;

  const int64_t scratch = SLR_SELECT_KERNEL(isa, neighbor_kl_scratch)(job);
  using Step = void (*)(const NeighborKl&, int64_t, int64_t);
  using Pass = void (*)(const NeighborKl&, int64_t, int64_t, void*);
  const auto pass = [&](Pass kernel) {
    return for_items(op, job.segments, threads, scratch,
                     [&](int64_t begin, int64_t end, void* own) { kernel(job, begin, end, own); });
  };
  const auto step = [&](Step kernel, int64_t items) {
    return for_items(op, items, threads, 0, [&](int64_t begin, int64_t end, void*) { kernel(job, begin, end); });
  };
  const int64_t columns = job.blocks * SLR_SELECT_KERNEL(isa, neighbor_kl_columns)();
  slr_status status = pass(SLR_SELECT_KERNEL(isa, neighbor_kl_teacher));
  if (!status) status = step(SLR_SELECT_KERNEL(isa, neighbor_kl_border), columns);
  if (!status) status = pass(SLR_SELECT_KERNEL(isa, neighbor_kl_student));
  if (!status) status = step(SLR_SELECT_KERNEL(isa, neighbor_kl_loss), job.blocks);
  if (!status && given.grad != nullptr) status = pass(SLR_SELECT_KERNEL(isa, neighbor_kl_grad));
  if (!status && given.grad != nullptr) status = step(SLR_SELECT_KERNEL(isa, neighbor_kl_finish), job.blocks);
  return status;
}

}  // namespace
}  // namespace slr

slr_status slr_neighbor_kl_cpu(int32_t dtype, const void* teacher, int32_t teacher_bank_dtype, const void* teacher_bank,
                               int64_t teacher_row_stride, int64_t teacher_column_stride, int64_t d,
                               const void* student, int32_t student_bank_dtype, const void* student_bank,
                               int64_t student_row_stride, int64_t student_column_stride, int64_t student_d, int64_t b,
                               int64_t n, int64_t k, double teacher_temperature, double student_temperature, void* loss,
                               void* grad, int32_t threads) {
  using namespace slr;
  const char* const op = "neighbor_kl_cpu";
  NeighborKl job = {};
  job.dtype = dtype, job.k = k;
  job.teacher_bank = {teacher_bank_dtype, teacher_bank, teacher_row_stride, teacher_column_stride, n, d};
  job.student_bank = {student_bank_dtype, student_bank, student_row_stride, student_column_stride, n, student_d};
  job.teacher_temperature = teacher_temperature, job.student_temperature = student_temperature;
  const int64_t size = dtype == SLR_F64 ? 8 : 4;
  if (const slr_status status = check_compute_dtype(op, dtype)) return status;
  if (const slr_status status = check_bank(op, job.teacher_bank)) return status;
  if (const slr_status status = check_bank(op, job.student_bank)) return status;
  if (const slr_status status = check_buffers(op, {{"teacher", teacher, b, d, size},
                                                   {"student", student, b, student_d, size},
                                                   {"loss", loss, b, 1, size},
                                                   {"grad", grad, b, student_d, size, true}}))
    return status;
  if (const slr_status status = check_k(op, k, n)) return status;
  if (const slr_status status = check_temperature(op, "teacher_temperature", teacher_temperature)) return status;
  if (const slr_status status = check_temperature(op, "student_temperature", student_temperature)) return status;
  Isa isa;
  if (const slr_status status = chosen_isa(&isa)) return status;

  const int64_t tiles = (n + kTileRows - 1) / kTileRows, most = std::min(kMostSegments, (tiles + 7) / 8);
  job.segment_rows = (tiles + most - 1) / most * kTileRows;
  job.segments = (n + job.segment_rows - 1) / job.segment_rows;
  const int64_t group = std::clamp<int64_t>(kScores / (n * kBlockBytes), 1, kMostBlocks) * lanes_of(dtype);
  for (int64_t row = 0; row < b; row += group) {
    job.b = std::min(group, b - row);
    const auto at = [&](const void* rows, int64_t columns) {
      return static_cast<char*>(const_cast<void*>(rows)) + row * columns * size;
    };
    const Arguments given = {at(teacher, d), at(student, student_d), at(loss, 1),
                             grad == nullptr ? nullptr : at(grad, student_d)};
    if (const slr_status status = run(op, given, job, isa, threads)) return status;
  }
  return SLR_OK;
}
